"""Rows: what is trained on, made from episodes."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sdar.data import TaskBatch
from sdar.parts import Teacher
from sdar.rollout import collate, make_rows
from sdar.rollout.groups import group_numbers
from sdar.rollout.rows import add_teacher_view, without_privilege
from sdar.rollout.spans import response_spans
from sdar.training.checks import check_teacher_rows
from sdar.training.playing import Playing
from sdar.types import Batch, Episode, Row, Turn


class Rows(Playing):
    """Episodes become rows; rows get the teacher's view."""

    def rows(self, episodes: list[Episode]) -> Batch | None:
        """Training rows of all episodes whose world did not fail."""
        group_of = group_numbers(episodes)
        made = make_rows(episodes, spans=self.spans if self.needs_spans else None, one_turn=self.view.per_turn)
        rows = [r for r in made if not episodes[r.episode].lost]
        rows = [r for r in rows if any(r.response_mask)]
        if not rows:
            return None
        rows = [self._as_student(r, episodes[r.episode]) if episodes[r.episode].extra else r for r in rows]
        if not self.hears_teacher():
            rows = [replace(r, teacher_ids=None) for r in rows]
        else:
            members: dict[int, list[Episode]] = {}
            for e, g in zip(episodes, group_of, strict=True):
                if not (e.extra or e.lost):
                    members.setdefault(g, []).append(e)
            contexts = [self.teacher_context(e.task) for e in episodes]
            too_long = self._add_teacher_views(rows, episodes, [members.get(g, []) for g in group_of], contexts)
            self.metrics.add("teacher/overflow_share", len(too_long), len(rows))
            check_teacher_rows(self, rows, episodes)
            rows = self._readable(rows, contexts, too_long)
            if self.teacher is not None and not self.teacher.shares_tokens:
                rows = self._retold(self.teacher, rows, episodes, [members.get(g, []) for g in group_of], contexts)
        if not rows:
            return None
        batch = collate(rows, episodes, group_of)
        if len(worlds := [*self.tasks.worlds]) > 1:
            batch.world = torch.tensor([worlds.index(episodes[row.episode].task.world) for row in rows])
        return batch

    def _as_student(self, row: Row, episode: Episode) -> Row:
        return without_privilege(row, episode, self.rollout.of(episode.task).chat)

    def _add_teacher_views(
        self, rows: list[Row], episodes: list[Episode], groups: list[list[Episode]], contexts: list[int]
    ) -> dict[int, str]:
        """`add_teacher_view`, of each world with its own conversation format."""
        too_long: dict[int, str] = {}
        for name, world in self.tasks.worlds.items():
            places = [place for place, row in enumerate(rows) if episodes[row.episode].task.world == name]
            if places:
                chat = self.rollout.of(episodes[rows[places[0]].episode].task).chat
                mine = [rows[place] for place in places]
                found = add_teacher_view(mine, episodes, groups, chat, self.view, world.env, contexts)
                too_long |= {places[place]: text for place, text in found.items()}
        return too_long

    def _retold(
        self, teacher: Teacher, rows: list[Row], episodes: list[Episode], groups: list[list[Episode]], contexts: Sequence[int]
    ) -> list[Row]:
        """The rows in a teacher's own tokens, but for those that are too long for it."""
        told = []
        for row in rows:
            episode = episodes[row.episode]
            env, chat = self.tasks.worlds[episode.task.world].env, self.rollout.of(episode.task).chat
            turn = row.turn if row.view_turn is None else row.view_turn
            text = self.view.text(episode, groups[row.episode], turn, env) if row.is_privileged else ""
            told.append(teacher.retell(row, episode, text, self.view, chat))
        kept = [row for row in told if len(row.teacher_ids or ()) <= contexts[row.episode]]
        said = sum(sum(row.response_mask) for row in kept)
        compared = [span for row in kept for span in row.spans_of_teacher if span]
        self.metrics.add("teacher/overflow_share", len(told) - len(kept), 0)
        self.metrics.add("teacher/compared_share", len(compared), said)
        self.metrics.add("teacher/span_tokens", len(compared), sum(len({*row.spans_of_teacher} - {0}) for row in kept))
        return kept

    def _readable(self, rows: list[Row], contexts: Sequence[int], too_long: dict[int, str]) -> list[Row]:
        """The rows that their teachers can read: where the privileged text is too much without it, as if there were none; the others
        are left out."""
        if too_long:
            said = (
                f"{next(iter(too_long.values()))} Until then the teacher reads such rows without it; rows that are too long by"
            )
            self.say_once("overflow", f"{said} themselves are left out. Further ones are counted in teacher/overflow_share.")
        for place in too_long:
            if rows[place].is_privileged and len(rows[place].ids) <= contexts[rows[place].episode]:
                rows[place] = replace(rows[place], teacher_ids=rows[place].ids, is_privileged=False)
        return [row for row in rows if len(row.teacher_ids or ()) <= contexts[row.episode]]

    def spans(self, episode: Episode, turn: Turn) -> list[int]:
        """For each response token 0, or 1 + the number of the tag (of `Rollout.tags`) that it stands in."""
        protocol = self.rollout.of(episode.task).protocol
        numbers = [0, *(1 + self.rollout.tags.index(tag) for tag in protocol.tags)]
        found = response_spans(turn.response_ids, self.chat.tokenizer, protocol, self.chat.stop_ids)
        return [numbers[number] for number in found]

    def tell_unreadable(self, task_batch: TaskBatch) -> None:
        """Tasks of a step that could not be made are left out of it, told and counted."""
        for task_id, error in task_batch.unreadable.items():
            self.say_once(f"unreadable {task_id}", f"task {task_id} cannot be made and is left out: {error}")
        self.metrics.add(
            "rollout/unreadable_share", len(task_batch.unreadable), max(1, len(task_batch.tasks) + len(task_batch.unreadable))
        )
