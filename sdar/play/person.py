"""A person plays one task of a world: sees what a policy would see, and gives actions, a line each."""

from collections.abc import Sequence

from sdar.cli.failure import say
from sdar.data import TaskModule
from sdar.episodes.told import block, line
from sdar.parts import Protocol
from sdar.play.screen import QUIT, ask
from sdar.rollout.pool import EnvPool, EnvReply, make_pool
from sdar.types import History, Task

LISTED = 60
"""Most admissible actions that are listed at once."""
HELP = """An action is a line (a backslash at its end goes on in the next); a number takes that action of the list.
?: the whole list. quit: stop."""


def play(world: TaskModule, task: Task, prompts: bool) -> None:
    """One episode.

    Args:
        prompts: Show what the protocol tells a policy instead of the bare observation.
    """
    world.env.check()
    pool = make_pool(world.env, world.workers, world.deadline, world.threads)
    try:
        _Game(world, task, pool, prompts).play()
    finally:
        pool.close()


class _Game:
    """The episode that a person plays."""

    def __init__(self, world: TaskModule, task: Task, pool: EnvPool, prompts: bool):
        self.world, self.task, self.pool, self.prompts = world, task, pool, prompts
        self.past: list[tuple[str, str]] = []
        self.listed: list[str] = []
        self.reward = 0.0

    def play(self) -> None:
        task, horizon = self.task, self.world.env.horizon
        say(
            f"task:   {line(task.id)} ({line(task.family)})\nactions: at most {horizon}\ninstruction:\n{block(task.instruction)}\n{HELP}"
        )
        seen = self.pool.reset({0: task})[0]
        while not self._over(seen):
            self._show(seen)
            action = self._action(seen.admissible)
            if action is None:
                return self._leave()
            self.past.append((seen.result.observation, action))
            seen = self.pool.step({0: action})[0]

    def _show(self, seen: EnvReply) -> None:
        say(f"\nseen:\n{block(self._prompt(seen) if self.prompts else seen.result.observation)}")
        if seen.admissible and seen.admissible != self.listed:
            say(_listed(seen.admissible, LISTED))
        self.listed = seen.admissible

    def _prompt(self, seen: EnvReply) -> str:
        """What a policy would be told now."""
        protocol, observation = self.world.protocol, seen.result.observation
        if self.past and self.world.layout == "trajectory":
            return protocol.answer(observation, seen.admissible)
        if not self.past:
            messages = protocol.opening(self.task, observation, seen.admissible)
        else:
            window = History(self.past[max(0, len(self.past) - self.world.history) :], taken=len(self.past))
            messages = protocol.window(self.task, window, observation, seen.admissible)
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def _action(self, admissible: Sequence[str]) -> str | None:
        """What the person does next; None: stops."""
        while (text := _line("> ")) is not None and text.strip().lower() not in QUIT:
            word = text.strip()
            if word == "?":
                say(
                    _listed(admissible, len(admissible))
                    if admissible
                    else "This world does not list the actions that it would accept."
                )
            elif admissible and word.isdecimal() and not 1 <= int(word) <= len(admissible):
                say(f"There is no action {word}: the list has 1 to {len(admissible)}.")
            elif word:
                chosen = admissible[int(word) - 1] if admissible and word.isdecimal() else text
                action, formed = self.world.protocol.parse(response(self.world.protocol, chosen), admissible)
                if not formed:
                    say("(As a response of a policy this has not the form that the protocol asks for.)")
                return action
        if text is None:
            say(f"The input ended after {_actions(len(self.past))}.")
        return None

    def _over(self, seen: EnvReply) -> bool:
        """Tell what came of the last action; whether the episode has ended."""
        if seen.fault is not None:
            say(f"A fault of the world ended the episode ({seen.fault}): {line(seen.error)}")
            return True
        result, taken = seen.result, len(self.past)
        self.reward += result.reward
        if taken:
            refused = "" if result.valid else ", and the world did not accept it"
            say(f"reward {result.reward:g} (so far {self.reward:g}) for action {taken}{refused}")
        if result.done:
            scores = "".join(f", {line(name)} {score:g}" for name, score in result.scores.items())
            how = "success" if result.success else "failure"
            say(f"\nseen:\n{block(result.observation)}\n{how} after {_actions(taken)}, reward {self.reward:g}{scores}")
        elif taken >= self.world.env.horizon:
            say(f"\nseen:\n{block(result.observation)}\nThis was the last of {_actions(taken)}.")
            self._leave()
        return result.done or taken >= self.world.env.horizon

    def _leave(self) -> None:
        """The person stops here: what it is worth as it stands."""
        seen = self.pool.unfinished({0: None})[0] if self.past else None
        self.reward += 0.0 if seen is None or seen.fault is not None else seen.result.reward
        say(f"The goal was not reached; reward {self.reward:g} after {_actions(len(self.past))}.")


def response(protocol: Protocol, text: str) -> str:
    """A person's line as a policy's response: an action alone, unless it has tags of the protocol already."""
    return text if any(f"<{tag}" in text for tag in protocol.tags) else protocol.write(text)


def _line(prompt: str) -> str | None:
    text = ask(prompt)
    while text is not None and text.endswith("\\"):
        more = ask("... ")
        text = text[:-1] + ("" if more is None else f"\n{more}")
    return text


def _listed(actions: Sequence[str], most: int) -> str:
    lines = [f"  {number:>3} {line(action)}" for number, action in enumerate(actions[:most], 1)]
    if len(actions) > most:
        lines.append(f"  ... and {len(actions) - most} more (?)")
    return "\n".join(lines)


def _actions(count: int) -> str:
    return f"{count} action{'s' * (count != 1)}"
