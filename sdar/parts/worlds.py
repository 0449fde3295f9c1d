"""What worlds and protocols promise: tasks, actions, and how a model is told of them."""

import pickle
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sdar.contracts import returned
from sdar.errors import ConfigError, PanelError
from sdar.parts.part import Part
from sdar.quoting import hanging
from sdar.registry import did_you_mean, part_kind
from sdar.tags import pairs
from sdar.types import StepResult, Task


@part_kind("environments")
class Environment(ABC):
    """A text world. One object runs one episode at a time; the rollout copies it once for each parallel episode.

    A copy must be cheap and must pickle: the object holds its settings and, in `running`, the episode. What is large and never
    changes (a catalogue, an index, parsed games) stands in a cache of the module that every copy in a process shares. What
    cannot be copied (a process, a connection) is opened at the first use.
    """

    splits: tuple[str, ...] = ("train", "seen", "unseen")
    """Names of the panels that there are. Their tasks have different ids; `shared` counts those that are the same all the same."""
    horizon: int
    """Largest number of actions in an episode."""
    protocol_name: str = "general"
    """Registered name of the protocol that tells it where ``data.protocol`` is not set."""
    action_form: str | None = None
    """What its actions are: ``commands``, ``searches`` (``search[...]``, ``answer[...]``) or ``programs``; protocols that give others
    are refused. None: it takes any text."""
    world_kind: str = ""
    """What a protocol's words may take it for: ``household``, ``shop``, ``questions``, ``mathematics``, ``programming``,
    ``science``; empty: none of them."""
    has_tools: bool = False
    """Whether actions may call a tool (`StepResult.tool_ok`): calls are counted then."""
    fact_template: str = "{thing}: {place}"
    """How one of its tasks' facts is told, where nobody says otherwise."""
    told_by_row: bool = False
    """Whether one task may have a solution or a hint and another none, as rows of a file: then a view that tells it asks for each task's
    before the run."""
    running: Any = None
    """All that belongs to the episode that runs now: plain data or an object that pickles. None: no episode was begun."""

    @abstractmethod
    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        """An ordered list of `count` task ids of one of the `splits`: a function of its arguments alone.

        Raises:
            PanelError: no such split, or fewer tasks than asked for.
        """

    def size(self, split: str) -> int | None:
        """How many tasks there are in one of the `splits`; None: as many as are asked for."""
        self.check_split(split)
        return None

    @abstractmethod
    def task(self, task_id: str) -> Task:
        """The task of an id, the same on every machine."""

    @property
    def longest_instruction(self) -> int | None:
        """Most bytes that the instruction of a task can have, where that is known without making tasks: then none has to be made
        before a run, to see that they fit. None: it is not known."""
        return None

    def shared(self, trained: Sequence[str], measured: Sequence[str]) -> int:
        """How many of the `measured` tasks differ from each of the `trained` in nothing but their id."""
        return 0

    @abstractmethod
    def reset(self, task: Task) -> str:
        """Begin an episode; returns the first observation."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Act."""

    def admissible(self) -> list[str]:
        """Actions that the world would accept now, where it can tell."""
        return []

    def unfinished(self) -> StepResult:
        """The rollout ends here, in the middle of the episode: what it is worth as it stands, beyond the rewards so far.

        A world that makes an episode without an end cheaper than a bad end teaches a policy to fill its context. Without `scores`
        those of the last answer stand.
        """
        return StepResult("", done=True, truncated=True)

    def save(self) -> bytes:
        """The running episode, to be taken up by `restore` in any copy of this environment, in any process."""
        return pickle.dumps(self.running)

    def restore(self, state: bytes) -> None:
        """Go on from where `save` was called. The state is trusted: it is no format for data of other people."""
        self.running = pickle.loads(state)

    def ongoing(self) -> Any:
        """The episode that runs.

        Raises:
            ConfigError: none was begun.
        """
        if self.running is None:
            raise ConfigError(f"{type(self).__name__} was asked to act before `reset`: begin an episode first.")
        return self.running

    def close(self) -> None:
        """Let go of processes and connections; the object is not used afterwards."""

    def check(self) -> None:
        """Called once before training: raise now what would fail after time on a GPU was spent.

        Raises:
            ConfigError: no episode can be played with these settings on this machine.
        """

    @property
    def conditions(self) -> dict[str, str]:
        """What of this machine, beside the settings, decides what an action does: it stands beside every measurement."""
        return {}

    def check_split(self, split: str) -> None:
        """Raise PanelError unless `split` is one of the world's."""
        if split not in self.splits:
            raise PanelError(
                f"{type(self).__name__} has no split {split!r}.{did_you_mean(split, self.splits)} Splits: {', '.join(self.splits)}."
            )

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "Expert":
        """Somebody who can act from any state of the episode that runs now, knowing `facts` and what was observed since its
        start; where the facts leave a choice, `rng` makes it."""
        raise ConfigError(f"{type(self).__name__} has no expert: behaviour cloning needs a world that can demonstrate.")

    def demonstration(self, task: Task) -> list[str]:
        """Actions that solve the task from its start."""
        raise ConfigError(
            f"{type(self).__name__} has no demonstrations: it cannot say how a task is solved. Give them as a file, or use a "
            "method without them."
        )

    def solution(self, task: Task) -> str:
        """The reference solution as a text that a teacher may read: by default the actions of the demonstration."""
        return "\n".join(map(hanging, self.demonstration(task)))

    def hint(self, task: Task) -> str:
        """Less than the solution: a text that helps."""
        raise ConfigError(f"{type(self).__name__} has no hints. Use SolutionView or SkillView.")

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        """Texts of the world for a tokenizer, and the phrases that may become one token each."""
        raise ConfigError(
            f"{type(self).__name__} has no corpus: a fresh policy needs a world whose texts are known beforehand."
        )


class Expert(ABC):
    """Demonstrates in one running episode."""

    @abstractmethod
    def act(self) -> str:
        """The next action."""

    @abstractmethod
    def watch(self, action: str) -> None:
        """Take note of what `action`, taken by anybody, has just shown."""


@part_kind("protocols")
class Protocol(Part, ABC):
    """How a world is told to a model and how its words become an action."""

    answers: ClassVar = {
        "parse": returned.parsed,
        "opening": returned.messages,
        "window": returned.messages,
        "answer": returned.text,
        "write": returned.text,
    }

    tags: tuple[str, ...] = ()
    """Names of the spans that a response may hold, e.g. ``("think", "action")``."""
    action_form: str = "commands"
    """What `parse` gives: `Environment.action_form`."""
    world_kind: str = ""
    """The world that its words speak of (`Environment.world_kind`); empty: any."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the chat template tells of, as JSON schemas in the form of OpenAI's `tools`; not told in any message."""

    def opening(self, task: Task, observation: str, admissible: Sequence[str]) -> list[dict[str, str]]:
        """Messages of the first prompt; by default a turn's own prompt without a history."""
        return self.window(task, (), observation, admissible)

    @abstractmethod
    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        """User message that follows a response (trajectory layout)."""

    @abstractmethod
    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        """Messages of a turn's own prompt (turn layout); `history` holds (observation, action), oldest first: from a rollout a
        `History`, which also says how many there were altogether."""

    @abstractmethod
    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        """The action in a response, and whether the response was valid."""

    def write(self, action: str) -> str:
        """The response that a demonstration gives for an action; `parse` reads the action back."""
        return action

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """The spans of a response in the order of the text: tag, first character of the content, one behind its last.

        By default what stands between ``<tag>`` and the next ``</tag>``, in any case, for each of `tags`. Without a closing tag
        there is no span, as there is no action to be read.
        """
        found = [(tag, pair.first, pair.end) for tag in self.tags for pair in pairs(text, tag, re.IGNORECASE | re.ASCII)]
        return sorted(found, key=lambda span: span[1:])
