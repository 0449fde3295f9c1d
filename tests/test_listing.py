"""What `sdar list` says of each registered part can be imported, given and read."""

import importlib
import re

import pytest
import yaml

from sdar import registry
from sdar.cli.signatures import arguments
from sdar.listing import named, part

registry.load_parts()
PARTS = [(plural, cls) for plural in registry.kinds() for cls in dict.fromkeys(registry.parts(plural).values())]
OURS = [(plural, cls) for plural, cls in PARTS if cls.__module__.startswith("sdar.")]


def documented(block: str) -> set[str]:
    """Names of the arguments that a block explains."""
    heads = re.findall(r"^ {6}([\w, ]+):(?: |$)", block.partition("  arguments, with their defaults:")[0], re.MULTILINE)
    return {name.strip() for head in heads for name in head.split(",")}


@pytest.mark.parametrize(("plural", "cls"), OURS, ids=lambda value: getattr(value, "__name__", value))
def test_a_part_is_documented(plural: str, cls: type) -> None:
    assert registry.summary(cls).endswith("."), "the first sentence ends"
    assert set(arguments(cls)) - documented(part(plural, cls)) == set()


@pytest.mark.parametrize(("plural", "cls"), PARTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_part_can_be_imported_and_given_as_its_block_says(plural: str, cls: type) -> None:
    block = part(plural, cls)
    module, name = re.search(r"from ([\w.]+) import (\w+)", block).groups()
    assert getattr(importlib.import_module(module), name) is cls
    node = yaml.safe_load(re.search(r"YAML: +(.+)", block)[1])
    while "class_path" not in node:
        (node,) = node if isinstance(node, list) else node.values()
    assert named(plural, node["class_path"]) is cls and set(node.get("init_args", {})) <= set(arguments(cls))


def test_kinds_say_in_a_sentence_what_they_are() -> None:
    assert all(registry.summary(base).endswith(".") for base in registry.kinds().values())
