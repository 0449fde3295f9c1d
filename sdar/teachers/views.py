"""What a teacher may see of a task, of an attempt and of its group."""

import re
from collections.abc import Callable, Sequence

from sdar.errors import ConfigError
from sdar.parts import Environment, Placement, PrivilegedView
from sdar.quoting import hanging, indented
from sdar.registry import register
from sdar.types import Episode, Task

NO_ANSWER = r"(?!~?answer\[)(.*)"
"""Actions that give no answer to a question."""
QUERIES = r"~?search\[(.*)\]"
"""What a search action asks."""


@register("plain")
class PlainView(PrivilegedView):
    """Nothing: the teacher reads what the student reads, and knows better by its weights."""

    tells = False

    def __init__(self) -> None:
        super().__init__()

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        return ""


@register("skills")
class SkillView(PrivilegedView):
    """The skills that were retrieved for the task; nothing is cut."""

    def uses_retrieval(self) -> bool:
        return True

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        return episode.retrieval.text


@register("solution")
class SolutionView(PrivilegedView):
    """A reference solution (OPSD, arXiv 2601.18734)."""

    own_heading = "A reference solution of the task:"

    def check_tasks(self, env: Environment, task_ids: Sequence[str]) -> None:
        _ask(env.solution, env, task_ids)

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        return env.solution(episode.task)


@register("hint")
class HintView(PrivilegedView):
    """A hint of the environment: less than the solution (the OPSD_hint baseline of SOD, arXiv 2605.07725)."""

    own_heading = "A hint:"

    def check_tasks(self, env: Environment, task_ids: Sequence[str]) -> None:
        _ask(env.hint, env, task_ids)

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        return env.hint(episode.task)


@register("sibling")
class SiblingView(PrivilegedView):
    """What the first successful *other* attempt of the group did: its actions, without its thoughts (SDPO, arXiv 2601.20802)."""

    own_heading = "A successful attempt at the task:"

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        success = next((e for e in group if e is not episode and e.success), None)
        return "" if success is None else "\n".join(hanging(t.action) for t in success.turns)


@register("feedback")
class FeedbackView(PrivilegedView):
    """What the world answered to the attempt's own actions, if it failed (SDPO): hindsight, also about later turns."""

    own_heading = "A failed attempt at the task, and what came of it:"

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        if episode.success or not episode.turns:
            return ""
        answers = [t.observation for t in episode.turns[1:]] + [episode.final_observation]
        return "\n".join(
            f"> {hanging(t.action)}\n{indented(answer)}" for t, answer in zip(episode.turns, answers, strict=True)
        )


@register("hindsight")
class HindsightView(PrivilegedView):
    """What every attempt of the group asked, and whether it succeeded; no thoughts, no answers of the world (SD-Search).

    Of the attempt itself only what it asked before the row's first turn is told: never the present or the future, which a
    teacher could only copy.

    Args:
        own: Tell of the attempt itself at all.
        per_turn: Tell it of every turn of a growing conversation, too, not of its first turn alone: each turn becomes a row that
            repeats the conversation before it and is credited as rows of ``layout: turn`` are. There it changes nothing.
        asked: Regular expression of the actions that are told; its group is what is told of them. By default every action but
            ``answer[...]``, which a teacher could only copy; `QUERIES`, as SDSearch has it, are search queries alone.
    """

    own_heading = "Attempts at this task and their outcomes:"

    def __init__(
        self,
        placement: Placement = "system",
        heading: str | None = None,
        own: bool = True,
        asked: str = NO_ANSWER,
        per_turn: bool = False,
    ):
        super().__init__(placement, heading)
        if per_turn and not own:
            raise ConfigError(
                "view.per_turn tells of each turn what the attempt asked before it, and view.own is false. Take one of them out."
            )
        self.own, self.per_turn = own, per_turn
        try:
            self.asked = re.compile(asked, re.DOTALL)
        except re.error as error:
            raise ConfigError(f"view.asked is {asked!r}, no regular expression: {error}.") from error
        if self.asked.groups != 1:
            raise ConfigError(
                f"view.asked is {asked!r}: it has {self.asked.groups} groups, and one must say what is told of an action. "
                "Put it into ( )."
            )

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        lines = []
        for e in group:
            actions = [self.asked.fullmatch(t.action) for t in (e.turns[:turn] if e is episode else e.turns)]
            asked = [action[1] for action in actions if action is not None]
            if asked and (self.own or e is not episode):
                outcome = "This attempt so far" if e is episode else "Correct" if e.success else "Incorrect"
                lines.append(f"{outcome}: {'; '.join(map(hanging, asked))}")
        return "\n".join(lines)


@register("first_of")
class FirstOf(PrivilegedView):
    """The first of several views that has something to tell.

    Args:
        views: In the order of preference, each with its own heading. None: SiblingView, then FeedbackView, as SDPO has it.
        placement: Where the text stands; the placements of the single views are not used and must not be set.
    """

    def __init__(self, views: list[PrivilegedView] | None = None, placement: Placement = "system"):
        super().__init__(placement)
        self.views = [SiblingView(), FeedbackView()] if views is None else views
        if not self.views:
            raise ConfigError("view.views is empty: FirstOf chooses among at least one view.")
        if any(v.placement != "system" for v in self.views):
            raise ConfigError("view.views sets a placement inside FirstOf: the text has one place. Set FirstOf's placement.")
        self.per_turn = any(v.per_turn for v in self.views)

    def check_tasks(self, env: Environment, task_ids: Sequence[str]) -> None:
        for view in self.views:
            view.check_tasks(env, task_ids)

    def uses_retrieval(self) -> bool:
        return any(view.uses_retrieval() for view in self.views)

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment) -> str:
        for view in self.views:
            if text := view.text(episode, group, turn, env):
                return f"{view.heading}\n{text}" if view.heading else text
        return ""


def _ask(told: Callable[[Task], str], env: Environment, task_ids: Sequence[str]) -> None:
    """Raise what `told` raises for one of the tasks. Of a world whose tasks all have the same to tell the first is asked for; a task that
    cannot be made is told of when it is wanted."""
    lacking: dict[str, ConfigError] = {}
    for task_id in task_ids if env.told_by_row else task_ids[:1]:
        try:
            task = env.task(task_id)
        except Exception:  # the world is other people's code, with other people's files
            continue
        try:
            told(task)
        except ConfigError as error:
            lacking[task_id] = error
    if len(lacking) > 1:
        named = ", ".join([*lacking][:20]) + (", ..." if len(lacking) > 20 else "")
        raise ConfigError(
            f"{next(iter(lacking.values()))} The same holds for {len(lacking)} of {len(task_ids)} tasks: {named}."
        )
    for only in lacking.values():
        raise only
