"""The agent loop: prompts out, responses in, actions to the worlds, until every episode has a status.

Each episode is a small program of its own, `Rollout.play`, that asks now the sampler for a response and now the world for an answer.
`play_together` is who brings them what they ask for; no episode waits for another.
"""

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from sdar.errors import ConfigError
from sdar.parts import PrivilegedView, Protocol, Sampler, Session
from sdar.rollout.chat import ChatFormat, Message
from sdar.rollout.pool import Command, EnvPool, EnvReply
from sdar.rollout.rows import messages_of
from sdar.rollout.standing import Standing
from sdar.types import Completion, Episode, History, Request, SampleKey, Status, Task, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYOUTS = ("trajectory", "turn")


class Asked(NamedTuple):
    """A prompt that waits for a response."""

    prompt: list[int]
    key: SampleKey
    most: int
    """Longest response, in tokens."""


Play = Generator["Asked | Command", "Completion | EnvReply | None", Episode]
"""An episode that is being played: asks the sampler for a `Completion` (`Asked`), or its world for an `EnvReply` (anything else)."""


class AgentLoop(ABC):
    """Plays episodes with a sampler, in one world or in several."""

    sampler: Sampler
    seed: int
    """The run's; with task, attempt, turn and position it names every random number."""
    progress: Callable[[Standing], None]
    """Told after each turn how far all episodes are that are played together: the same object each time."""

    @property
    @abstractmethod
    def tags(self) -> tuple[str, ...]:
        """Names of the spans that a response may hold."""

    @abstractmethod
    def of(self, task: Task) -> "Rollout":
        """The loop that plays a task."""

    @abstractmethod
    def __call__(self, model: "PreTrainedModel", requests: Sequence[Request]) -> list[Episode]:
        """Play all requests; the order of the result is theirs."""


class Rollout(AgentLoop):
    """Plays episodes of one world.

    Args:
        pool: Where the worlds run.
        protocol: How the world is told and an action is read.
        chat: The policy's conversation format.
        sampler: Token ids in, token ids out.
        view: Where privileged text stands in the prompt of an episode that is told one.
        layout: ``trajectory``: one growing conversation; where the chat template tells the past otherwise than it was said, the
            conversation as the template tells it. ``turn``: each turn has a prompt of its own with a window of history.
        history: Number of past exchanges in a ``turn`` prompt.
        seed: The run's seed; with task, attempt, turn and position it names every random number.
        max_tokens: Most tokens of an episode behind its first prompt (`length`): the response that passes the bound is cut there, the
            world gets what is left of it, and there is no further turn. None: no bound.
        max_new_tokens: Most tokens of a response, where that is less than the sampler's.
    """

    def __init__(
        self,
        pool: EnvPool,
        protocol: Protocol,
        chat: ChatFormat,
        sampler: Sampler,
        view: PrivilegedView,
        layout: str = "trajectory",
        history: int = 2,
        horizon: int = 50,
        seed: int = 0,
        max_tokens: int | None = None,
        max_new_tokens: int | None = None,
    ):
        if layout not in LAYOUTS:
            raise ConfigError(f"layout is {layout!r}: the two row layouts are {' and '.join(LAYOUTS)}.")
        if layout == "trajectory" and chat.rewrites_history:
            _say_that_rows_split(chat)
        self.pool, self.protocol, self.chat, self.sampler, self.view = pool, protocol, chat, sampler, view
        self.layout, self.history, self.horizon, self.seed = layout, history, horizon, seed
        self.max_tokens, self._max_new_tokens = max_tokens, max_new_tokens
        self._chat_is_checked = False
        self.progress = lambda standing: None
        self.after_turn: Callable[[Episode], None] = lambda episode: None
        """Told of an episode whenever its world has answered a response."""

    @property
    def tags(self) -> tuple[str, ...]:
        return self.protocol.tags

    @property
    def max_new_tokens(self) -> int:
        """Longest response, in tokens."""
        most = self.sampler.max_new_tokens
        return most if self._max_new_tokens is None else min(most, self._max_new_tokens)

    def of(self, task: Task) -> "Rollout":
        return self

    def __call__(self, model: "PreTrainedModel", requests: Sequence[Request]) -> list[Episode]:
        return play_together(model, self.sampler, [(self, requests)])[0]

    def play(self, request: Request) -> Play:
        """One episode, in the hands of somebody who samples and acts: each prompt, and each action, is given out for its answer."""
        episode, context = request.begin(), list[int]()  # tokens that the model was told and said so far
        limit = self.horizon if request.max_turns is None else min(len(request.replay) + request.max_turns, self.horizon)
        seen: EnvReply = yield request.task  # type: ignore[assignment]
        if self._faulted(episode, seen):
            return episode
        while True:
            turn, observation = len(episode.turns), seen.result.observation
            prompt = self.prompt(episode, context, observation, seen.admissible)
            if len(prompt) + self.max_new_tokens > self.sampler.context:
                self.end_for_context(episode, prompt)
                break
            if self.left(episode, context, prompt) <= 0:
                self.end_before_turn(episode, Status.TOKEN_LIMIT)
                break
            if is_replay := turn < len(request.replay):
                completion = self.replayed(request.replay[turn])
            else:
                key = SampleKey(self.seed, request.task.id, request.attempt, turn)
                completion = yield Asked(prompt, key, self.max_new_tokens)  # type: ignore[assignment]
                completion = first_tokens(completion, self.left(episode, context, prompt))
            text = self.chat.decode(completion.ids)
            action, valid = self.protocol.parse(text, seen.admissible)
            said = self.turn(context, prompt, completion, text, observation, action)
            said.valid = said.well_formed = valid
            said.trainable = not is_replay
            episode.turns.append(said)
            context = prompt + completion.ids
            seen = yield action  # type: ignore[assignment]
            ended = self._ended(episode, seen, limit)
            self.after_turn(episode)
            if self._used_up(episode) or ended:
                break
        if not seen.result.done:  # it ends here by our doing: the world would go on, and says what it is worth so far
            seen = yield None  # type: ignore[assignment]
            self._price(episode, seen)
        return episode

    def prompt(self, episode: Episode, context: list[int], observation: str, admissible: Sequence[str]) -> list[int]:
        """Ids that the next response of an episode answers; `context` is all that the model was told and said before."""
        if self.layout == "turn":
            past = [(t.observation, t.action) for t in episode.turns]
            past = History(past[max(0, len(past) - self.history) :], taken=len(past))
            episode.turn_messages.append(self.protocol.window(episode.task, past, observation, admissible))
            self._check_chat(episode.turn_messages[-1])
            return self.view.prompt(self.chat, episode.turn_messages[-1], episode.privileged_text)
        if not episode.turns:
            episode.first_messages = self.protocol.opening(episode.task, observation, admissible)
            self._check_chat(episode.first_messages)
            return self.view.prompt(self.chat, episode.first_messages, episode.privileged_text)
        said, answer = episode.turns[-1], self.protocol.answer(observation, admissible)
        if not self.chat.rewrites_history:
            return context + self.chat.reply(answer, ended=said.response_ids[-1:] == [self.chat.end_of_turn])
        episode.later_messages += [self.chat.said(said.response_ids), {"role": "user", "content": answer}]
        return self.view.prompt(self.chat, messages_of(episode, len(episode.turns)), episode.privileged_text)

    def _check_chat(self, messages: Sequence[Message]) -> None:
        """Raise PolicyError where the first prompt of all is not what the chat template says."""
        if not self._chat_is_checked:
            self.chat.check(messages)
            self._chat_is_checked = True

    def turn(
        self, context: list[int], prompt: list[int], completion: Completion, text: str, observation: str, action: str
    ) -> Turn:
        """A response to a prompt, before the world answers; `context` as in `prompt`."""
        return Turn(
            prompt_ids=self.told_since(context, prompt),
            starts_row=self.starts_row(context, prompt),
            response_ids=completion.ids,
            behaviour_logp=completion.behaviour_logp,
            kept_logmass=completion.kept_logmass,
            text=text,
            observation=observation,
            action=action,
            stopped=completion.stopped,
        )

    def end_for_context(self, episode: Episode, prompt: list[int]) -> None:
        """End an episode whose next prompt does not fit: nobody is given it."""
        if not episode.turns:
            episode.error = no_room(len(prompt), self.max_new_tokens, self.sampler.context)
        self.end_before_turn(episode, Status.CONTEXT)

    def end_before_turn(self, episode: Episode, status: Status) -> None:
        """End an episode whose next prompt was made and is given to nobody."""
        turns = len(episode.turns)
        episode.status = status
        del episode.turn_messages[turns:], episode.later_messages[max(0, 2 * turns - 2) :]

    def left(self, episode: Episode, context: list[int], prompt: list[int]) -> int:
        """How many tokens the answer to a prompt may have before the bound of the episode; `context` as in `prompt`."""
        if self.max_tokens is None:
            return sys.maxsize
        told = (
            0 if not episode.turns or self.layout == "turn" or self.starts_row(context, prompt) else len(prompt) - len(context)
        )
        return self.max_tokens - length(episode.turns, self.layout) - told

    def _used_up(self, episode: Episode) -> bool:
        """Whether the bound of the episode cut its last response, or leaves no room for another; marks it then."""
        full = self.max_tokens is not None and length(episode.turns, self.layout) >= self.max_tokens
        if not full or episode.lost or (episode.status == Status.DONE and episode.turns[-1].stopped):
            return False
        episode.status = Status.TOKEN_LIMIT
        return True

    def told_since(self, context: list[int], prompt: list[int]) -> list[int]:
        """What of a prompt belongs to its turn: all of it where the turn begins a row, otherwise what is new."""
        return prompt if self.layout == "turn" or self.starts_row(context, prompt) else prompt[len(context) :]

    def starts_row(self, context: list[int], prompt: list[int]) -> bool:
        """True where a trajectory's prompt does not go on from all that the model was told and said before, id by id."""
        return self.layout == "trajectory" and prompt[: len(context)] != context

    def replayed(self, action: str) -> Completion:
        """An action of somebody else, as the response that gives it; nobody sampled its tokens."""
        ids = self.chat.response(self.protocol.write(action))
        return Completion(ids, [0.0] * len(ids), [0.0] * len(ids), stopped=True)

    def _faulted(self, episode: Episode, seen: EnvReply) -> bool:
        if seen.fault is not None:
            episode.status, episode.error = seen.fault, seen.error
        return seen.fault is not None

    def _price(self, episode: Episode, seen: EnvReply) -> None:
        """What an episode is worth that ended before its world did."""
        if not self._faulted(episode, seen):
            if episode.turns:
                episode.turns[-1].reward += seen.result.reward
            episode.reward += seen.result.reward
            episode.scores = seen.result.scores or episode.scores

    def _ended(self, episode: Episode, seen: EnvReply, limit: int) -> bool:
        if self._faulted(episode, seen):
            episode.final_observation = ""  # the last action got no answer
            return True
        turn, result = episode.turns[-1], seen.result
        turn.reward = result.reward
        turn.valid = turn.valid and result.valid
        turn.tool_ok = result.tool_ok
        episode.final_observation = result.observation
        episode.reward += result.reward
        episode.success = result.success
        episode.scores = result.scores
        if result.done:
            episode.status = Status.HORIZON if result.truncated else Status.DONE
        elif len(episode.turns) >= limit:
            episode.status = Status.HORIZON
        return result.done or len(episode.turns) >= limit


def length(turns: Sequence[Turn], layout: str) -> int:
    """Tokens of an episode behind its first prompt: its responses, and in the ``trajectory`` layout what the world answered between them,
    as verl counts a response of several turns. Of the prompt of a turn that begins a row nothing counts."""
    told = turns[1:] if layout == "trajectory" else ()
    return sum(len(t.response_ids) for t in turns) + sum(len(t.prompt_ids) for t in told if not t.starts_row)


def first_tokens(completion: Completion, most: int) -> Completion:
    """A completion with at most so many tokens: as if it had been sampled with that limit."""
    if len(completion.ids) <= most:
        return completion
    ids, logp, kept = completion.ids, completion.behaviour_logp, completion.kept_logmass
    return Completion(ids[:most], logp[:most], kept[:most], stopped=False)


def play_together(
    model: "PreTrainedModel", sampler: Sampler, shares: Sequence[tuple[Rollout, Sequence[Request]]]
) -> list[list[Episode]]:
    """Play the requests of several worlds at once, each episode at its own pace: a response goes to its world as soon as it ends, and what
    the world answers joins those that are being answered.

    In this process who comes when depends on numbers of passes alone and never on the clock: worlds that run elsewhere step beside one
    `Session.step`, and are waited for behind it. Where responses are made elsewhere, too, whatever is there first goes on first.
    """
    sampler.reset()
    with closing(sampler.session(model)) as session:
        return _Table(session, shares).play()


class _Table:
    """Episodes in play, and what each of them waits for."""

    def __init__(self, session: Session, shares: Sequence[tuple[Rollout, Sequence[Request]]]):
        self.session, self.shares = session, shares
        self.seats = [(share, slot) for share, (_, requests) in enumerate(shares) for slot in range(len(requests))]
        self.waiting = deque(enumerate(self.seats))
        self.playing: dict[int, Play] = {}  # number of a seat -> the episode
        self.acts: list[dict[int, Command]] = [{} for _ in shares]  # of each share: slot -> what its world shall do
        self.acting: dict[tuple[int, int], Future[dict[int, EnvReply]]] = {}  # (share, lane): calls under way elsewhere
        self.numbers = {seat: number for number, seat in enumerate(self.seats)}
        self.played: list[dict[int, Episode]] = [{} for _ in shares]
        self.standing = Standing(len(self.seats))
        self.asked = [0] * len(self.seats)  # of each seat: responses that were asked for

    def play(self) -> list[list[Episode]]:
        """All episodes, in the order of the requests of each share."""
        try:
            self._fill()
            while self.playing:
                self._act()
                completed = self.session.step() if self.session.busy else []
                self._hear(self._replies())
                for number, completion in completed:
                    self._go_on(number, completion)
                self._fill()
        finally:
            wait(self.acting.values())  # the caller may close them
        return [[played[slot] for slot in range(len(played))] for played in self.played]

    def _act(self) -> None:
        """Have the worlds do what was asked of them; those of this process at once, for as long as they go on without a response."""
        while calls := self._calls():
            for (share, lane), commands in calls.items():
                pool = self.shares[share][0].pool
                if pool.elsewhere:
                    self.acting[share, lane] = future = pool.begin(commands)
                    future.add_done_callback(lambda _: self.session.wake())
                else:
                    self._hear([(share, pool.call(commands))])
            if self.acting and not self.session.elsewhere:
                break
            self._fill()

    def _calls(self) -> dict[tuple[int, int], dict[int, Command]]:
        """What may be done now, by share and lane: where responses come at any time lanes are called one by one, else all at once."""
        calls: dict[tuple[int, int], dict[int, Command]] = {}
        for share, commands in enumerate(self.acts):
            pool = self.shares[share][0].pool
            self.acts[share] = {}
            for slot, command in commands.items():
                lane = share, pool.lane(slot) if self.session.elsewhere else 0
                later = lane in self.acting
                (self.acts[share] if later else calls.setdefault(lane, {}))[slot] = command
        return calls

    def _replies(self) -> list[tuple[int, dict[int, EnvReply]]]:
        """Of worlds that act elsewhere: what has come by now where responses come, too; else all that is still to come."""
        if self.acting and not (self.session.elsewhere and self.session.busy):
            wait(self.acting.values(), return_when=FIRST_COMPLETED if self.session.elsewhere else ALL_COMPLETED)
        return [(lane[0], self.acting.pop(lane).result()) for lane in list(self.acting) if self.acting[lane].done()]

    def _hear(self, replies: Sequence[tuple[int, dict[int, EnvReply]]]) -> None:
        for share, answered in replies:
            for slot in sorted(answered):  # worlds that run elsewhere answer in any order
                self._go_on(self.numbers[share, slot], answered[slot])
            self.shares[share][0].progress(self.standing)

    def _go_on(self, number: int, answer: Completion | EnvReply | None) -> None:
        """Give an episode what it waited for."""
        share, slot = self.seats[number]
        rollout = self.shares[share][0]
        try:
            wish = self.playing[number].send(answer)
        except StopIteration as end:
            self.played[share][slot] = episode = end.value
            del self.playing[number]
            self.standing.end(self.asked[number], rollout.horizon, episode.lost, episode.success)
            self.session.leave(SampleKey(rollout.seed, episode.task.id, episode.attempt, 0))
            return
        if isinstance(wish, Asked):
            self.asked[number] += 1
            self.standing.took_turn(rollout.horizon)
            self.session.submit(number, *wish)
        else:
            self.acts[share][slot] = wish

    def _fill(self) -> None:
        """Begin as many episodes as the session has places for."""
        while self.waiting and len(self.playing) < self.session.places:
            number, (share, slot) = self.waiting.popleft()
            rollout, requests = self.shares[share]
            self.playing[number] = rollout.play(requests[slot])
            self._go_on(number, None)


def no_room(tokens: int, most: int, context: int) -> str:
    """Why an episode ends before its first turn."""
    return (
        f"its first prompt has {tokens} tokens and may get {most} more, but the context is {context}: nothing is cut. Leave the task out "
        "(data.leave_out), use a model with a longer context or shorter responses."
    )


@lru_cache(maxsize=8)
def _say_that_rows_split(chat: ChatFormat) -> None:
    """Once for each format: a run has several rollouts."""
    rank_zero_warn(
        f"the chat template of {chat.name} tells past assistant turns otherwise than they were said (thinking removed, say): the model "
        "is told what the template gives, and an episode becomes several training rows, a new one wherever the past was changed. With "
        "`layout: turn` every turn is a row with a window of history."
    )
