"""Old names answer, say the new ones, and are not silently ignored in a class of one's own."""

import pytest

import sdar
from sdar import data, parts, scoring, types
from sdar.distributed import communicator
from sdar.errors import ConfigError
from sdar.metrics import Metrics
from sdar.module import AgentModule
from sdar.renamed import Renamed
from sdar.teachers import LiveTeacher
from sdar.types import Batch, Episode, Request, Row, Task, Turn

NOUNS = {
    Episode: Episode(Task("a", "put", ""), 0, privileged_text="The mug is red.", first_messages=[{}], turn_messages=[[]]),
    Request: Request(Task("a", "put", ""), 0, privileged_text="The mug is red."),
    Turn: Turn([], [], [], [], trainable=False, starts_row=True),
    Row: Row([], [], [], [], [], 0, 0, is_privileged=True),
    LiveTeacher: LiveTeacher(),
}


@pytest.mark.parametrize(
    ("owner", "old", "new"),
    [
        (owner, old, value.new)
        for owner in (*NOUNS, AgentModule, Batch, Metrics, parts.Policy, parts.Retriever, parts.Sampler)
        for base in owner.__mro__
        for old, value in vars(base).items()
        if isinstance(value, Renamed)
    ],
)
def test_an_old_name_answers_and_says_the_new_one(owner: type, old: str, new: str) -> None:
    assert hasattr(owner, new) or any(new in vars(base).get("__annotations__", {}) for base in owner.__mro__)
    if owner in NOUNS:
        noun = NOUNS[owner]
        with pytest.warns(FutureWarning, match=rf"^{owner.__name__}\.{old} is called {new} now\.$"):
            assert getattr(noun, old) == getattr(noun, new)
        with pytest.warns(FutureWarning, match=f"is called {new} now"):
            setattr(noun, old, getattr(noun, new))


def test_a_class_that_defines_an_old_name_is_refused() -> None:
    """Nobody would call it, and training would go on without it."""
    with pytest.raises(
        ConfigError, match=r"Mine.conclude is called finish_iteration now: under its old name it would never be asked"
    ):

        class Mine(sdar.GRPO):
            def conclude(self, episodes):
                pass

    with pytest.raises(ConfigError, match=r"Far.elsewhere is called is_remote now"):

        class Far(LiveTeacher):
            elsewhere = True


def test_old_names_of_classes_and_functions_are_found_in_their_modules() -> None:
    for module, old, new in (
        (scoring, "StudentPass", "StudentOutput"),
        (parts, "Elsewhere", "RemoteModel"),
        (communicator, "Ranks", "Communicator"),
        (types, "Draw", "SampleKey"),
        (sdar, "Payload", "TeacherSignal"),
        (data, "Step", "TaskBatch"),
    ):
        with pytest.warns(FutureWarning, match=f"{module.__name__}.{old} is called {new} now"):
            assert getattr(module, old) is getattr(module, new)
    with pytest.raises(AttributeError, match=r"module 'sdar.scoring' has no attribute 'Everywhere'"):
        scoring.Everywhere  # noqa: B018
