"""The tree of settings: nothing valid is refused, and what is misspelt is told with its key and the right word."""

import collections.abc
import difflib
import inspect
import re
import typing
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from sdar import registry
from sdar.cli import main
from sdar.cli.commands import COMMANDS
from sdar.cli.roots import checked_settings, settings_of
from sdar.cli.settings import Settings, parts
from sdar.cli.signatures import Argument, Expected, Signature, arguments, expected, signature
from sdar.cli.words import Source, Text, options, sources
from sdar.cli.yaml_values import RefusedYAML, read_value
from sdar.distributed import FSDP2Strategy, ReplicatedStrategy, ZeROStrategy
from sdar.errors import ConfigError
from sdar.outline import UnreadableError
from sdar.paths import installed_settings

registry.load_parts()
CONF = installed_settings()
PARTS = [cls for plural in registry.kinds() for cls in dict.fromkeys(registry.parts(plural).values())]
METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
WORLDS = [
    name for name in ("alfworld", "code", "math", "quickstart", "search", "webshop") if (CONF / f"env/{name}.yaml").exists()
]
FIT = [name for name, command in COMMANDS.items() if command.needs_settings]


def tree_of(cls: type, **init_args: Any) -> Settings:
    """A configuration of one part."""
    base = next(kind for kind in registry.kinds().values() if issubclass(cls, kind))
    settings = Settings(Signature("this command", given={"part": Argument("part", base, True, None, Expected((base,)))}))
    settings.read([Source({"part": {"class_path": cls.__name__, "init_args": init_args}}, Path("a.yaml"))])
    return settings


def files(world: str, method: str) -> list[str]:
    names = (f"env/{world}", f"method/{method}", "policy/qwen2.5-3b")
    return [word for name in names for word in ("-c", str(CONF / f"{name}.yaml"))]


@cache
def whole(method: str) -> dict[str, Any]:
    """One mapping of the files of a run, as a user would write it in one file."""
    found: dict[str, Any] = {}
    for source in sources(files("quickstart", method)):
        merge(found, source.content)
    return found


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = deepcopy(value)


# ------------------------------------------------------------------ what is valid passes


@pytest.mark.parametrize("cls", PARTS, ids=lambda cls: cls.__name__)
def test_a_part_takes_every_argument_that_is_listed_of_it(cls: type) -> None:
    usual = {name: argument.usual for name, argument in signature(cls).arguments.items()}
    plain = {name: value if isinstance(value, (bool, int, float, str)) else None for name, value in usual.items()}
    assert plain.keys() == arguments(cls).keys()
    tree_of(cls, **plain)


@pytest.mark.parametrize("cls", PARTS, ids=lambda cls: cls.__name__)
def test_a_part_needs_what_its_constructor_has_no_default_for(cls: type) -> None:
    needed = {name for name, text in arguments(cls).items() if text.endswith("(required)")}
    own = inspect.signature(cls).parameters.values()
    assert {p.name for p in own if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} <= needed
    if needed:
        with pytest.raises(ConfigError, match=rf"^part\.\w+(, part\.\w+)*: missing, {cls.__name__} needs it"):
            tree_of(cls).check_missing()
    else:
        tree_of(cls).check_missing()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_in_every_world_has_only_names_that_exist(method: str) -> None:
    for world in WORLDS:
        checked_settings(["fit", *files(world, method)])


@pytest.mark.parametrize("command", FIT)
def test_the_keys_of_a_command_are_those_of_the_parser(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *files("quickstart", "grpo"), "--print_config"]) == 0
    known = settings_of([command]).root.takes()
    printed = yaml.safe_load(capsys.readouterr().out).keys()
    assert known.keys() - {"config", "plugin", "print_config"} == printed


# ------------------------------------------------------------------ what is not is told


def misspelt(word: str) -> st.SearchStrategy[str]:
    """A word with one letter lost, doubled, or exchanged with the next."""
    places = st.integers(1, len(word) - 2)
    ways = st.sampled_from(["lost", "doubled", "exchanged"])

    def wrong(place: int, way: str) -> str:
        head, letter, rest = word[:place], word[place], word[place + 1 :]
        return {"lost": head + rest, "doubled": head + letter * 2 + rest, "exchanged": head + rest[:1] + letter + rest[1:]}[
            way
        ]

    return st.builds(wrong, places, ways).filter(lambda text: text != word and text.isidentifier())


@given(data=st.data(), cls=st.sampled_from(PARTS).filter(lambda cls: any(len(name) > 3 for name in arguments(cls))))
def test_a_misspelt_argument_of_any_part_is_told_with_the_right_one(data: st.DataObject, cls: type) -> None:
    right = data.draw(st.sampled_from([name for name in arguments(cls) if len(name) > 3]))
    wrong = data.draw(misspelt(right))
    assume(difflib.get_close_matches(wrong, arguments(cls), 1) == [right])
    with pytest.raises(ConfigError) as refused:
        tree_of(cls, **{wrong: None})
    first = f"part.{wrong} (in a.yaml): {cls.__name__} takes no {wrong!r}. Did you mean {right!r}?"
    assert str(refused.value).splitlines()[0] == first


def spots(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every key and every name of a part in settings, with the way to it."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "class_path" and "." not in value:
            yield (*keys, key), value
        elif isinstance(key, str) and key not in ("class_path", "init_args"):
            yield (*keys, key), key
        yield from spots(value, (*keys, key))


@hypothesis_settings(max_examples=50)
@given(data=st.data(), method=st.sampled_from(METHODS))
def test_one_misspelt_word_of_a_whole_configuration_is_told_with_its_place(data: st.DataObject, method: str) -> None:
    settings = deepcopy(whole(method))
    way, word = data.draw(st.sampled_from([spot for spot in spots(settings) if len(spot[1]) > 3]))
    wrong = data.draw(misspelt(word))
    node = settings
    for key in way[:-1]:
        node = node[key]
    if way[-1] == "class_path":
        near = difflib.get_close_matches(wrong.lower(), [name.lower() for name in registry.names()], 1)
        assume(wrong not in registry.names() and near == [word.lower()])
        node["class_path"] = wrong
    else:
        node[wrong] = node.pop(way[-1])
    path = ".".join(str(key) for key in way[:-1] if key not in ("class_path", "init_args"))
    place = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path if way[-1] == "class_path" else f"{path}.{wrong}".lstrip("."))
    with pytest.raises(ConfigError) as refused:
        read(settings)
    message = str(refused.value).splitlines()[0]
    assert message.startswith(f"{place} (in a.yaml): ") and wrong in message
    assert re.search(rf"Did you mean '([\w.]+\.)?{word}'", message), message


def read(content: dict[str, Any]) -> Settings:
    """The settings of `sdar fit` with one file."""
    settings = settings_of(["fit"])
    settings.read([Source(content, Path("a.yaml"))])
    return settings


def test_a_wrong_value_is_found_among_right_ones() -> None:
    settings = read(
        {"model": {"class_path": "GRPO", "init_args": {"kl_coef": 0.1, "optimizer": {"init_args": {"lr": "fast"}}}}}
    )
    assert settings.wrong_value() == "model.optimizer.lr (in a.yaml): must be float or Tensor, not 'fast'."
    assert read({"model": {"class_path": "GRPO", "init_args": {"kl_coef": 0.1}}}).wrong_value() is None


# ------------------------------------------------------------------ before anything is imported

WRONG = [
    "fit --model SDRA",
    "fit --model SDAR --model.gate gapp",
    "fit --model SDAR --model.gate UCBRetriever",
    "fit --model SDAR --model.gate Gate",
    "fit --model SDAR --model.gate.bta 3",
    "fit --model SDAR --model.beta 3",
    "fit --model SDAR --model.transforms [gap,gep]",
    "fit --model SDAR --model.retriever.skills x",
    "fit --model SDAR --model.teacher InitialTeacher --model.teacher.policy x",
    "fit --model GRPO --model.optimizer.lr 1e-3 --model.sampler.max_new_token 3",
    "fit --model SDAR --model GRPO --model.gate.beta 3",
    "fit --model SDAR",
    "fit --model GRPO --model.policy PretrainedPolicy",
    "fit --trainer.max_steps 3",
    "export --model GRPO",
    "serve-search",
    "fit --data TaskModul",
    "fit --data.env household --data.env.horizn 3",
    "fit --data.envs household",
    "fit --trainer.max_step 3",
    "fit --trainer.callbacks [ModelCheckpoint] --trainer.strategy ddp --checkpoint.evry 1",
    "validate --ckpt_pth x",
    "plan --gpuu h100",
    "export --too x",
    "serve-search --backend BM25Backnd",
    "serve-search --backend BM25Backend --backend.indx x",
    "build-index --corpsu x",
]


def refusal(words: list[str]) -> str:
    with pytest.raises(ConfigError) as refused:
        checked_settings(words)
    return str(refused.value).partition(" Choose one of")[0]  # other tests have parts of their own


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_told_from_the_sources_as_from_the_imported_classes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = refusal(line.split())
    monkeypatch.setattr(registry, "_reads_sources", True)
    assert refusal(line.split()) == imported


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.needs_settings or command.tool])
def test_a_command_takes_the_same_as_its_sources_say(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> dict[str, Any]:
        found = dict(parts(settings_of([command]).root, usual=True, deep=2))
        return {key: {n: a.required for n, a in part.takes().items()} for key, part in found.items() if key.count(".") == 0}

    imported = taken()
    monkeypatch.setattr(registry, "_reads_sources", True)
    assert taken() == imported and ("trainer" in imported) == COMMANDS[command].needs_settings


@pytest.mark.parametrize("method", METHODS)
def test_what_is_valid_passes_from_the_sources(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_reads_sources", True)
    for world in WORLDS:
        checked_settings(["fit", *files(world, method)])


def test_what_the_sources_do_not_say_is_left_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_reads_sources", True)
    settings_of(["fit", "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lrr", "3", "--trainer.logger", "CSVLoger"])
    for name in ("sdar.gates.GapGat", "no_such_package.Gate", "Function"):  # a class of the package, but no part
        with pytest.raises(UnreadableError):
            settings_of(["fit", "--model", "SDAR", "--model.gate", name])


# ------------------------------------------------------------------ merging


def written(settings: Settings) -> dict[str, Any]:
    """Class and arguments of each part that a configuration names."""
    return {key: (part.signature and part.signature.name, sorted(part.arguments)) for key, part in parts(settings.root) if key}


def test_a_later_class_keeps_what_it_takes_and_tells_what_it_drops() -> None:
    settings = read(
        {"model": {"class_path": "SDAR", "init_args": {"gate": {"class_path": "gap", "init_args": {"beta": 2.0}}}}}
    )
    settings.read([Source({"model": {"init_args": {"distill_coef": 0.5, "kl_coef": 0.1}}}, Path("b.yaml"))])
    assert written(settings)["model"] == ("SDAR", ["distill_coef", "gate", "kl_coef"])
    settings.read([Source({"model": Text("GRPO")}, key="model")])
    assert written(settings) == {"model": ("GRPO", ["kl_coef"])}
    assert settings.notes == [
        "note: GRPO replaces SDAR; settings of SDAR that GRPO does not take are dropped: gate, distill_coef"
    ]


def test_a_default_that_is_written_out_is_dropped_without_a_word() -> None:
    settings = read(
        {"model": {"class_path": "SDAR", "init_args": {"gate": {"class_path": "GapGate", "init_args": {"beta": 5.0}}}}}
    )
    settings.read([Source({"model": Text("GRPO")}, key="model")])
    assert settings.notes == []


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--a.b", "1", "-c", "x.yaml"], [("--a.b", "1"), ("-c", "x.yaml")]),
        (["--a=b=c", "--a+=d"], [("--a", "b=c"), ("--a+", "d")]),
        (["--a", "-1", "--b", "-.5"], [("--a", "-1"), ("--b", "-.5")]),
        (["--a", "-1e-3"], [("--a", None), ("-1e-3", None)]),
        (["--a", "-x and y"], [("--a", "-x and y")]),
        (["--print_config", "more", "--help"], [("--print_config", None), ("", "more"), ("--help", None)]),
        (["--a"], [("--a", None)]),
    ],
)
def test_words_are_options_and_values_as_argparse_sees_them(args: list[str], found: list[Any]) -> None:
    assert list(options(args)) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("yes", True),
        ("a:", "a:"),
        ("{a, b}", "{a, b}"),
        ("1:30", "1:30"),
        ("{a: null}", {"a": None}),
        ("a b", "a b"),
    ],
)
def test_a_word_is_the_value_that_a_file_would_have(text: str, value: Any) -> None:
    assert read_value(text) == value


def test_a_word_beyond_the_limits_is_no_value() -> None:
    with pytest.raises(RefusedYAML):
        read_value("[" * 5000)


T = typing.TypeVar("T")


@pytest.mark.parametrize(
    "hint",
    [
        typing.Callable,
        collections.abc.Callable,
        typing.Callable[..., int],
        collections.abc.Callable[[], Any],
        typing.List,  # noqa: UP006
        list,
        dict[str, Any],
        tuple[int, ...],
        typing.Optional[typing.Callable],  # noqa: UP045
        type[int],
        T,
        list[T],
        "a name that nobody defined",
        Any,
        typing.Literal[1, "a"],
    ],
    ids=str,
)
def test_an_annotation_that_names_no_part_is_left_to_the_parser(hint):
    assert not expected(hint).parts


@pytest.mark.parametrize(
    "cls",
    [DDPStrategy, FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, ReplicatedStrategy, FSDP2Strategy, ZeROStrategy],
    ids=lambda cls: cls.__name__,
)
def test_strategies_of_lightning_and_ours_can_be_named_with_their_path(cls):
    """Their constructors have annotations of torch, of DeepSpeed and without any type."""
    words = ["--trainer.strategy", f"{cls.__module__}.{cls.__name__}"]
    checked_settings(["fit", *files("quickstart", "grpo"), *words])
    with pytest.raises(ConfigError, match=r"trainer\.strategy\.deadlin"):
        checked_settings(["fit", *files("quickstart", "grpo"), *words, "--trainer.strategy.deadlin", "1"])


def test_worlds_that_a_later_file_does_not_name_are_told(tmp_path: Path) -> None:
    for name, worlds in (("both", "{a: {env: household}, b: {env: household}}"), ("one", "{a: {share: 3}}")):
        (tmp_path / name).write_text(f"data: {{class_path: MultiTaskModule, init_args: {{envs: {worlds}}}}}")
    files = ["fit", "-c", str(tmp_path / "both"), "-c", str(tmp_path / "one")]
    [note] = settings_of(files).notes
    assert note.startswith("note: data.envs (in ") and "one): b of an earlier file is left out" in note
    assert settings_of([*files[:3], "--data.envs.a.share", "3"]).notes == []
