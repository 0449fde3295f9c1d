"""An error of a part is told with the key that the user wrote, whatever the part calls itself and whoever made it."""

import inspect
import re
from typing import Any

import pytest

from sdar import Gate, registry
from sdar.cli.origin import origin
from sdar.cli.signatures import arguments, defaults
from sdar.errors import ConfigError

registry.load_parts()
PARTS = [cls for plural in registry.kinds() for cls in dict.fromkeys(registry.parts(plural).values())]
OURS = [cls for cls in PARTS if cls.__module__.startswith("sdar.")]
BAD = (-1, 0, 1.5)
"""Numbers of which most arguments refuse one."""


def numbers(cls: type) -> list[str]:
    """Arguments of a part that take a number."""
    return [name for name, text in arguments(cls).items() if re.search(r": (.*\| )?(int|float)\b", text.partition(" = ")[0])]


def refusal(cls: type, given: dict[str, Any]) -> ConfigError | None:
    """What a part says to its arguments; None: it takes them, or cannot be made without more."""
    policy = {"policy": None} if "policy" in arguments(cls) else {}
    try:
        cls(**policy | given)
    except ConfigError as error:
        return error
    except Exception:
        return None
    return None


def spec(cls: type, **given: Any) -> dict[str, Any]:
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": given}


def told(cls: type, error: ConfigError, **given: Any) -> str:
    """The message for a part that stands where its kind does."""
    if issubclass(cls, registry.kinds()["strategies"]):
        return origin(error, {"model": spec(cls, **given)}).message.replace("model.", "here.", 1)
    return origin(error, {"here": spec(cls, **given)}).message


@pytest.mark.parametrize("kind", registry.kinds())
def test_what_a_part_refuses_is_told_with_its_key(kind: str) -> None:
    for cls in (cls for cls in OURS if issubclass(cls, registry.kinds()[kind])):
        names, refused = numbers(cls), 0
        for name in names:
            for value in (*BAD, float("nan")):
                if error := refusal(cls, {name: value}):
                    refused += 1
                    text = told(cls, error, **{name: value})
                    first = re.match(rf"here\.(\w+)\b|{cls.__name__} ", text)
                    assert first and first[1] in (None, *arguments(cls)), f"{cls.__name__}({name}={value}): {text}"
                    if first[1]:
                        assert name in text, text
        assert not names or refused or any(text.endswith("(required)") for text in arguments(cls).values()), cls


class Inner(Gate):
    def __init__(self, clip: float = 0.2) -> None:
        if clip > 1:
            raise ConfigError(f"gate.clip is {clip}: gate.clip and gate.other lie below 1, gates do not.")

    __call__ = None


class Outer(Gate):
    def __init__(self, evidence_clip: float = 0.2, share: float = 0.2, others: Any = None) -> None:
        self.inner = Inner(evidence_clip)

    __call__ = None


def test_a_part_within_a_part_is_told_with_the_argument_that_was_handed_to_it() -> None:
    error = refusal(Outer, {"evidence_clip": 2.0})
    told = origin(error, {"model": {"gate": spec(Outer, evidence_clip=2.0)}})
    assert told.key == "model.gate"
    assert told.message == (
        "model.gate.evidence_clip is 2.0: model.gate.evidence_clip and gate.other lie below 1, gates do not."
    )


def test_two_parts_of_a_class_are_told_apart_by_their_values() -> None:
    error = refusal(Inner, {"clip": 2.0})
    listed = {"model": {"gates": [spec(Inner, clip=0.5), spec(Inner, clip=2.0)]}}
    assert origin(error, listed).message.startswith("model.gates[1].clip is 2.0")


def test_an_error_from_elsewhere_is_left_as_it_is() -> None:
    for message in ("clip is 2.0", "data.clip is 2.0", "no number"):
        try:
            raise ConfigError(message)
        except ConfigError as error:
            assert (origin(error, {"model": spec(Inner)}).key, origin(error, {"model": spec(Inner)}).message) == ("", message)


def test_constructors_are_looked_up() -> None:
    assert inspect.signature(Inner).parameters.keys() == defaults(Inner).keys()
