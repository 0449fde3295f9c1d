"""Stored episodes and other people's conversations as what a run works on: `Episode`s that nobody has to play."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from sdar.data import Panel, TaskBatch, TaskModule, TaskSource
from sdar.data.conversations import Conversation, read_conversations
from sdar.data.transcripts import Transcriber
from sdar.episodes.reading import files_of, stream
from sdar.episodes.schema import StoredEpisode
from sdar.episodes.where import Condition, condition
from sdar.errors import ConfigError
from sdar.parts import PrivilegedView, Retriever, Sampler
from sdar.reading import excerpt, read_json_lines
from sdar.registry import part_name
from sdar.rollout import AgentLoop
from sdar.rollout.chat import ChatFormat
from sdar.rollout.rows import messages_of
from sdar.training.host import Host
from sdar.types import Episode, Retrieval, Status, Task, Turn

PIECE = 64
"""Episodes of a measurement, or conversations, that are read at once; the attempts at a task stay together."""


class StoredBatch(TaskBatch):
    """Episodes that are there already, in place of tasks to be played.

    Args:
        name: What a progress bar calls them.
        stored: Episodes of one iteration, of one measurement, or conversations of one file.
        retrieve: Ask the retriever anew where skills were stored.
        wanted: Which of them are asked for; the others are there because credit and views are about whole groups.
    """

    def __init__(
        self, name: str, stored: Sequence[StoredEpisode | Conversation], retrieve: bool, wanted: Condition | None = None
    ):
        super().__init__(Panel(name, (name,)), [], [], 1)
        self.stored, self.retrieve, self._wanted = stored, retrieve, wanted

    def wants(self, e: StoredEpisode | Conversation) -> bool:
        """Whether an episode is asked for."""
        return self._wanted is None or isinstance(e, Conversation) or self._wanted(e)


class StoredSource(TaskSource):
    """The worlds of a run, and stored episodes of their tasks.

    Args:
        data: The worlds.
        paths: Folders of runs, files of episodes, files of conversations (`sdar.data.conversations`).
        where: Only the episodes of which this is true (`sdar.episodes.condition`).
        kind: Only those of ``train``, ``validation`` or ``predict``.
        retrieve: As in `StoredBatch`.

    Raises:
        ConfigError: there are none; a file cannot be read.
    """

    def __init__(
        self, data: TaskSource, paths: Sequence[str], where: str | None = None, kind: str | None = None, retrieve: bool = False
    ):
        super().__init__()
        self.data, self.kind, self.retrieve = data, kind, retrieve
        self.wanted = None if where is None else condition(where)
        self.val_means = data.val_means
        talks = [path for path in paths if _holds_conversations(Path(path))]
        self.talks = {path: read_conversations([path], "--episodes") for path in talks}
        self.files = [file for path in paths if path not in talks for file in files_of(path)]
        self._count = sum(1 for _ in self)
        if not self._count:
            asked = " and ".join(
                word for word in (where and f"--where {excerpt(where, 200)}", kind and f"--kind {kind}") if word
            )
            raise ConfigError(
                f"{', '.join(paths)}: no episode that the policy played is there{f' with {asked}' * bool(asked)}. `sdar episodes "
                f"{paths[0]}` lists those that are; what a teacher played itself is never scored."
            )

    @property
    def worlds(self) -> Mapping[str, TaskModule]:
        return self.data.worlds

    @property
    def only(self) -> TaskModule:
        return self.data.only

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return self.data.tools

    def step(self, seed: int, iteration: int) -> TaskBatch:
        return self.data.step(seed, iteration)

    def rollout(self, chat: ChatFormat, sampler: Sampler, view: PrivilegedView, seed: int) -> AgentLoop:
        return self.data.rollout(chat, sampler, view, seed)

    def setup(self, stage: str) -> None:
        for world in self.worlds.values():
            world.check("validate")

    def predict_dataloader(self) -> "StoredSource":  # type: ignore[override]
        return self

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[StoredBatch]:
        """An iteration, or a piece of a measurement, after the other; nothing else is in memory."""
        for file in self.files:
            found = (e for e in stream(file, kind=self.kind) if not e.privileged)
            for (kind, iteration, *_), part in groupby(found, lambda e: (e.kind, e.iteration, e.panel, e.actor, e.run)):
                for piece in [list(part)] if kind == "train" else _pieces(part):
                    batch = StoredBatch(
                        f"{piece[0].panel or kind} {'' if iteration is None else iteration}".rstrip(),
                        piece,
                        self.retrieve,
                        self.wanted,
                    )
                    if any(map(batch.wants, piece)):
                        yield batch
        for path, talks in self.talks.items():
            for first in range(0, len(talks), PIECE):
                yield StoredBatch(Path(path).name, talks[first : first + PIECE], self.retrieve)


def _pieces(episodes: Iterable[StoredEpisode]) -> Iterator[list[StoredEpisode]]:
    piece: list[StoredEpisode] = []
    for _, attempts in groupby(episodes, lambda e: (e.world, e.task)):
        piece += attempts
        if len(piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def _holds_conversations(path: Path) -> bool:
    if path.suffix in (".csv", ".parquet"):
        return True
    if not path.is_file():
        return False
    row = next(read_json_lines(path), ("", None))[1]
    return isinstance(row, dict) and not {"messages", "conversations"}.isdisjoint(name.lower() for name in row)


class Restorer:
    """Makes `Episode`s of stored ones, for the student and the view of a run.

    Args:
        module: The run, set up.
        retrieve: As in `StoredBatch`.

    Raises:
        ConfigError: (when used) the task is of no world of the run; ids are not those of its tokenizer and chat template.
    """

    def __init__(self, module: Host, retrieve: bool):
        self.module, self.retrieve = module, retrieve
        self._retrieved: dict[tuple[str, str], Retrieval] = {}

    def __call__(self, stored: StoredEpisode | Conversation) -> Episode:
        return self.episode(stored) if isinstance(stored, StoredEpisode) else self.conversation(stored)

    def episode(self, e: StoredEpisode) -> Episode:
        """An episode of a run, with the messages that its prompts were made of."""
        task = self._task(e)
        loop = self.module.rollout.of(task)
        chat, by_turn = loop.chat, loop.layout == "turn"
        turns = [
            Turn(
                prompt_ids=t.prompt_ids or [], response_ids=t.response_ids, behaviour_logp=t.behaviour_logp or [0.0] * len(t.response_ids),
                kept_logmass=t.kept_logmass or [0.0] * len(t.response_ids), text=t.response, observation=t.observation, action=t.action,
                valid=t.valid, well_formed=t.well_formed, reward=t.reward, stopped=t.stopped, trainable=t.trainable, tool_ok=t.tool_ok,
            )
            for t in e.turns
        ]  # fmt: skip
        kept = Retrieval(tuple(e.skills), e.skill_text or "")
        retrieval = self._skills(task) if self.retrieve or not kept.text else kept
        made = Episode(
            task, e.attempt, turns, Status(e.status), e.success, e.reward, retrieval, extra=e.extra, scores=e.scores, error=e.error,
            final_observation=e.final_observation,
        )  # fmt: skip
        told = [
            chat.messages(t.prompt_ids) for t in turns
        ]  # of a short template an answer in a conversation reads like a prompt
        as_prompts = all(t.starts_row for t in e.turns)
        if len(turns) > 1 and (
            not as_prompts if by_turn else as_prompts and all(m and e.instruction in m[-1]["content"] for m in told)
        ):
            raise ConfigError(
                f"the episode of task {e.task} was not played with data.layout {loop.layout}, which this run has: its prompts would be put "
                "together wrongly. Give the data settings of the run that played it (-c RUN/config.yaml)."
            )
        for number, turn in enumerate(turns):
            if (told[number] is None and (by_turn or not number)) or chat.decode(turn.response_ids) != turn.text:
                self._refuse_tokens(e, number, chat)
        if by_turn:
            made.turn_messages = [messages for messages in told if messages]
        elif turns:
            made.first_messages = told[0] or []
            if chat.rewrites_history:
                self._retell(made, chat)
        return made

    def _task(self, e: StoredEpisode) -> Task:
        worlds = self.module.tasks.worlds
        fault = f"is of the world {e.world!r}, and this run has {', '.join(map(repr, worlds))}"
        if e.world in worlds:
            world = part_name(worlds[e.world].env)
            try:
                task = worlds[e.world].task(e.task)
            except Exception as error:  # the world is other people's code
                fault = f"is none that {world} has ({excerpt(str(error) or type(error).__name__, 200)})"
            else:
                if task.instruction == e.instruction:
                    return task
                fault = f"asks {excerpt(e.instruction, 80)}, and {world} has it ask {excerpt(task.instruction, 80)}"
        raise ConfigError(
            f"task {e.task} of a stored episode {fault}: a teacher would be told of another world. Give the data settings of the run that "
            "played it (-c RUN/config.yaml)."
        )

    def _refuse_tokens(self, e: StoredEpisode, number: int, chat: ChatFormat) -> NoReturn:
        turn = e.turns[number]
        if turn.prompt_ids is None:
            raise ConfigError(
                f"the episode of task {e.task} was stored without the ids of its prompts (version {e.schema} of the schema): nothing can "
                "be scored behind them. Play it anew with this release."
            )
        told = chat.decode(turn.response_ids)
        what = f"response reads {excerpt(told, 80)}, it was stored as {excerpt(turn.response, 80)}"
        if told == turn.response:
            what = f"prompt is none of the chat template's: {excerpt(chat.tokenizer.decode(turn.prompt_ids), 120)}"
        raise ConfigError(
            f"the episode of task {e.task} is of another tokenizer or chat template than {chat.name}: with its tokens the {number + 1}. "
            f"{what}. Score it with a student of the tokenizer that played it; its texts can be scored by any as a file of conversations."
        )

    def _retell(self, made: Episode, chat: ChatFormat) -> None:
        """A conversation whose past the template tells otherwise than it was said."""
        protocol = self.module.rollout.of(made.task).protocol
        for before, turn in zip(made.turns, made.turns[1:], strict=False):
            answer = {"role": "user", "content": protocol.answer(turn.observation, ())}
            made.later_messages += [chat.said(before.response_ids), answer]
        for number, turn in enumerate(made.turns[1:], 1):
            turn.starts_row = chat.prompt(messages_of(made, number)) == turn.prompt_ids

    def conversation(self, c: Conversation) -> Episode:
        """A conversation that nobody rewarded, as an episode without success; the assistant's messages are its turns."""
        module, messages = self.module, c.messages
        chat = module.chat.telling(c.tools)
        world = next(iter(module.tasks.worlds))
        asked = next((m["content"] for m in messages if m["role"] == "user"), "")
        task = Task(c.id, "chat", asked, world=world)
        made = Episode(task, 0, Transcriber(chat, split_rewritten=True)(c).played(), retrieval=self._skills(task))
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for place, turn in zip(places, made.turns, strict=True):
            turn.text, turn.observation = chat.decode(turn.response_ids), messages[place - 1]["content"]
        made.first_messages = messages[: places[0]]
        if any(turn.starts_row for turn in made.turns[1:]):
            made.turn_messages, told = [messages[:place] for place in places], list[int]()
            for turn in made.turns:
                turn.prompt_ids = [*([] if turn.starts_row else told), *turn.prompt_ids]
                told = [*turn.prompt_ids, *turn.response_ids]
        try:
            text = module.view.text(made, [made], 0, module.tasks.worlds[world].env)
        except Exception as error:  # a world that is asked about a task which is none of its own
            raise ConfigError(
                f"{c.place}: {part_name(module.view)} asks the world about the task, and a conversation has none "
                f"({excerpt(str(error) or type(error).__name__, 200)}). Use PlainView with a teacher of its own weights, or SkillView."
            ) from error
        if text and c.tools:
            raise ConfigError(
                f"{c.place} has tools, and {part_name(module.view)} adds text to messages: the teacher would not be told of them. Use "
                "PlainView, or tell of the tools in a message."
            )
        return made

    def _skills(self, task: Task) -> Retrieval:
        retriever: Retriever | None = self.module.retriever
        if (key := (task.world, task.id)) not in self._retrieved:
            self._retrieved[key] = Retrieval() if retriever is None else retriever.retrieve(task, 0)
        return self._retrieved[key]
