"""Import paths of earlier releases."""

from importlib import import_module
from pathlib import Path

import pytest

from sdar.moved import MOVED

FACES = {
    "sdar.data": "Panel Pieces Played TaskBatch TaskModule TrainingSteps check_disjoint protocol_of",
    "sdar.plan": "Architecture GPU GPUS Launch Network Run Work changes combinations counts host_memory named peaks seconds",
    "sdar.skills": "FACT_TEMPLATE Skill SkillBank check_count retrieval seeded",
}
"""Modules that became packages, with what they had."""


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_is_the_same_object_under_its_old_path(old):
    assert import_module(old) is import_module(MOVED[old])
    assert not Path(import_module("sdar").__file__).parent.joinpath(*old.split(".")[1:]).with_suffix(".py").exists()


@pytest.mark.parametrize("face", sorted(FACES))
def test_a_package_has_the_names_of_the_module_that_it_was(face):
    module = import_module(face)
    assert [name for name in FACES[face].split() if not hasattr(module, name)] == []
