"""The episodes of a run on disk: which are written, under which name, with what the run knows about them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import msgspec

from sdar.data.conversations import Conversation
from sdar.data.panels import Panel
from sdar.episodes.files import LEFT_OUT, EpisodeFiles
from sdar.episodes.record import Speller, record
from sdar.episodes.schema import StoredEpisode
from sdar.episodes.tokens import Kept
from sdar.rollout.spans import token_offsets
from sdar.training.host import Host
from sdar.training.reporting import run_folder
from sdar.types import Episode


class EpisodeWriter:
    """Writes episodes to ``episodes/`` in the run's folder; the first rank has one.

    Args:
        module: The run, whose settings say which: ``log_episodes_every`` and ``log_episodes_mb``.
    """

    def __init__(self, module: Host):
        self.module = module
        self._opened: EpisodeFiles | None = None

    def wants(self, iteration: int) -> bool:
        """Whether the training episodes of an iteration (from 1) are written. Every rank says the same."""
        every = self.module.log_episodes_every
        return every > 0 and (iteration == 1 or iteration % every == 0) and run_folder(self.module.trainer) is not None

    def training(self, episodes: Sequence[Episode], kept: Kept) -> Path | None:
        """Write the episodes of the iteration that ends now."""
        panels = {name: world.train_panel for name, world in self.module.tasks.worlds.items()}
        told = {"objective": self.module.objective()} | ({"tags": list(tags)} if (tags := self.module.rollout.tags) else {})
        number = self.module.iteration + 1
        return self._write(f"train-{number:06d}", "train", episodes, panels, told | {"iteration": number}, kept)

    def validation(self, episodes: Sequence[Episode], panel: Panel, actor: str) -> Path | None:
        """Write what somebody played of a panel."""
        name = f"{panel.name}-{actor}-{self.module.iteration:06d}"
        return self._write(name, "validation", episodes, panel, {"actor": actor})

    def prediction(self, episodes: Sequence[Episode], panel: Panel, piece: int) -> Path | None:
        """Write one piece of a panel."""
        return self._write(f"predict-{panel.name}-{piece:06d}", "predict", episodes, panel)

    def rescored(
        self, number: int, episodes: Sequence[tuple[int, StoredEpisode | Conversation, Episode]], kept: Kept
    ) -> Path | None:
        """Write stored episodes with what this run thinks of their tokens; whose they are they keep.

        Args:
            episodes: Place in `kept`, as stored, and as scored.
        """
        told = {"command": "score", "method": type(self.module).__name__, "objective": self.module.objective()}
        told |= {"tags": list(tags)} if (tags := self.module.rollout.tags) else {}
        lines = []
        for place, e, made in episodes:
            if isinstance(e, StoredEpisode):
                names = ("run", "kind", "seed", "iteration", "panel", "panel_hash", "actor")
                known = {name: value for name in names if (value := getattr(e, name)) is not None}
                lines.append(self._line(made, told | known, place, kept))
                continue
            file = Path(e.id.rpartition(":")[0].rpartition(":")[0]).name
            lines.append(self._line(made, told | {"kind": "predict", "panel": file}, place, kept))
            for turn in lines[-1]["turns"]:
                del turn["behaviour_logp"]  # nobody sampled it
        return self._put(f"scored-{number:06d}", lines)

    def told(self, episode: Episode, kept: Kept | None = None) -> StoredEpisode:
        """An episode as it would be stored and read again; what is known of its tokens is kept under number 0."""
        return msgspec.convert(record(episode, kept=kept, student=self._student, teacher=self._teacher), StoredEpisode)

    def _files(self, folder: Path) -> EpisodeFiles:
        """Those of the run's folder; the next Trainer of a module has another."""
        most = self.module.log_episodes_mb
        if self._opened is None or self._opened.folder != folder:
            self._opened = EpisodeFiles(folder, None if most is None else most * 1e6)
        return self._opened

    @cached_property
    def _student(self) -> Speller:
        return Speller(self.module.chat.tokenizer, token_offsets)

    @cached_property
    def _teacher(self) -> Speller | None:
        """Of the teacher's prompts; None where nobody here has its tokenizer."""
        teacher = self.module.teacher
        if teacher is None or teacher.shares_tokens:
            return self._student
        own = getattr(teacher, "tokenizer", None)
        return None if own is None else Speller(own, token_offsets)

    def _write(
        self, name: str, kind: str, episodes: Sequence[Episode], panels: Panel | dict[str, Panel], told: dict[str, Any] | None = None,
        kept: Kept | None = None,
    ) -> Path | None:  # fmt: skip
        module = self.module
        if (folder := run_folder(module.trainer)) is None:
            return None
        about = {
            "run": folder.name,
            "command": cast(Any, module.trainer.state.fn).value,
            "kind": kind,
            "method": type(module).__name__,
            "seed": module.seed,
            "iteration": module.iteration,
        }
        lines = []
        for number, e in enumerate(episodes):
            panel = panels if isinstance(panels, Panel) else panels[e.task.world]
            of_panel = {"panel": panel.name, "panel_hash": panel.hash}
            lines.append(self._line(e, about | of_panel | (told or {}), number, kept))
        return self._put(name, lines)

    def _line(self, e: Episode, about: dict[str, Any], number: int, kept: Kept | None) -> dict[str, Any]:
        return record(e, about, number, kept, self._student, self._teacher)

    def _put(self, name: str, lines: Sequence[dict[str, Any]]) -> Path | None:
        """Write a file, unless the run has no folder or its limit is reached."""
        module = self.module
        if (folder := run_folder(module.trainer)) is None:
            return None
        for speller in (self._student, self._teacher):
            if speller is not None:
                speller.forget()
        files = self._files(folder / "episodes")
        if (path := files.write(name, lines)) is None:
            module.say_once(
                "episodes limit",
                f"{name}: its {len(lines)} episodes are not written, for those of the run would take more than "
                f"{module.log_episodes_mb:g} MB (model.log_episodes_mb; {files.bytes / 1e6:.1f} MB are there). Further ones are told in "
                f"episodes/{LEFT_OUT}.",
            )
        return path
