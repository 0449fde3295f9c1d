"""TOPD: near-future guidance for on-policy distillation (arXiv 2606.00305). Real forks teach; other words for the same do not.

    candidates = tokens with the largest loss -gap > 0;   the teacher goes on from each prefix for a window of tokens
    distance = optimal transport between the teacher's window and what the student really wrote, in the student's embeddings
    small distance: a surface mismatch, its loss is suppressed;   large distance: a fork, where the transport plan spreads the
    teacher's window as soft targets over the student's next tokens
    L = mean over the tokens that are not suppressed of k1 + trajectory_coef * mean_t -sum_v target_v log student_v

The paper states neither ground cost, nor thresholds, nor weight, and gives no code: 1 - cosine, the thresholds below, the coefficient
and the rule that the latest fork owns a token are ours. The student's short future is its rollout, which is a sample of it.
"""

from typing import Any, cast

import torch
from jsonargparse import lazy_instance
from torch import Tensor, nn

from sdar.distillation import Distillation
from sdar.divergences import K1PolicyGradient, TopKCrossEntropy
from sdar.errors import ConfigError, check_share
from sdar.functional import window_distance
from sdar.parts import Divergence, PrivilegedView, SampleKey, Teacher
from sdar.registry import register
from sdar.scoring import StudentOutput
from sdar.teachers import PlainView
from sdar.types import Batch, Episode


@register("topd")
class TOPD(Distillation):
    """On-policy distillation that tells forks from surface mismatches by the teacher's near future.

    Value:    KL(student || teacher) over the tokens that are not suppressed, plus the cross-entropy of the soft targets.
    Gradient: grad KL(student || teacher) there, on-policy, plus that of the cross-entropy, exact.

    Args:
        teacher: Usually ExternalTeacher.
        divergence: Per-token objective.
        view: What the teacher may see; by default what the student sees.
        window: Tokens of a near future.
        candidates: Most candidate positions in a row; each costs one continuation of the teacher.
        loss_share: Candidates are among this share of tokens with the largest loss: those that the teacher finds less likely than
            the student. A token that it endorses is no candidate.
        surface_share: Share of the candidates, those with the smallest distance, that count as surface mismatches; None: the distance
            says which.
        surface_distance: Largest distance of a surface mismatch, in [0, 2], instead of a share of them: how many there are is then
            measured (``transport/surface_share``).
        trajectory_coef: Weight of the trajectory term, whose mean is over all tokens; 0 is the suppression variant.
    """

    learns_everywhere = False  # both terms are about tokens with a weight
    teacher_acts = True

    def __init__(
        self,
        teacher: Teacher,
        divergence: Divergence = lazy_instance(K1PolicyGradient),
        view: PrivilegedView = lazy_instance(PlainView),
        window: int = 50,
        candidates: int = 4,
        loss_share: float = 0.2,
        surface_share: float | None = 0.3,
        trajectory_coef: float = 1.0,
        surface_distance: float | None = None,
        **kwargs,
    ):
        super().__init__(teacher=teacher, divergence=divergence, view=view, **kwargs)
        check_share("model", "a share of tokens,", loss_share=loss_share, surface_share=surface_share or 0.0)
        if (surface_share is None) == (surface_distance is None):
            raise ConfigError(
                f"model.surface_share is {surface_share} and model.surface_distance {surface_distance}: surface mismatches are the nearest "
                "share of the candidates, or those up to a distance. Set one, e.g. surface_distance 0.4, and the other to null."
            )
        if surface_distance is not None and not 0 <= surface_distance <= 2:
            raise ConfigError(
                f"model.surface_distance is {surface_distance}: the mean of 1 - cosine over what is transported lies in [0, 2]. "
                "Use e.g. 0.4."
            )
        if window < 1 or candidates < 1 or trajectory_coef < 0:
            raise ConfigError(
                f"model.window is {window}, candidates {candidates}, trajectory_coef {trajectory_coef}: a window and a row need at "
                "least 1 token and 1 candidate, and the coefficient is 0 or more."
            )
        self.window, self.candidates = window, candidates
        self.loss_share, self.trajectory_coef = loss_share, trajectory_coef
        self.surface_share, self.surface_distance = surface_share, surface_distance

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        weighed = super().weigh(batch, episodes)
        if weighed is None:
            return None
        batch = weighed
        rows, places = self.candidate_places(batch)  # [found] each
        teacher_ids, teacher_mask = self.teacher_windows(batch, episodes, rows, places)  # [found, window] each
        there = teacher_mask.any(1)
        rows, places, teacher_ids, teacher_mask = (t[there] for t in (rows, places, teacher_ids, teacher_mask))
        student_ids, student_mask = self.student_windows(batch, rows, places)  # [found, window] each
        embedding = cast(nn.Embedding, self.model.get_input_embeddings()).weight.detach()  # [vocab, hidden]
        student, teacher = (embedding[ids.to(embedding.device)].cpu() for ids in (student_ids, teacher_ids))
        distance, plan = window_distance(student, teacher, student_mask, teacher_mask)  # [found], [found, window, window]
        surface = self.surface(distance)
        fork = ~surface
        self.metrics.add("transport/distance", float(distance.sum()), len(distance))
        self.metrics.add("transport/surface_share", float(surface.sum()), len(distance))
        if surface.any():
            self.metrics.add("transport/surface_distance", float(distance[surface].max()))
        batch.distill_weights[rows[surface], places[surface]] = 0.0
        self.soft_targets(batch, rows[fork], places[fork], student_mask[fork], teacher_ids[fork], plan[fork])
        return batch

    def surface(self, distance: Tensor) -> Tensor:
        """Bool ``[found]``: which candidates are other words for the same, from their distances."""
        if self.surface_distance is not None:
            return distance <= self.surface_distance
        assert self.surface_share is not None, "one of the two is set"
        rank = distance.argsort(stable=True).argsort()  # [found]: 0 for the smallest distance
        return rank < round(self.surface_share * len(distance))

    def candidate_places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Row and time of the tokens with the largest loss ``[found]``, in reading order, as `soft_targets` wants them."""
        weighted = batch.distill_weights > 0
        loss = (batch.old_logp - batch.teacher_logp).where(weighted, -torch.inf)  # k1, [batch, time]
        least = loss[weighted].quantile(1 - self.loss_share)
        top = loss.topk(min(self.candidates, loss.shape[1]), 1)  # [batch, candidates], by loss
        rows, ranks = ((top.values >= least) & (top.values > 0)).nonzero(as_tuple=True)
        self.metrics.add("transport/candidate_share", len(rows), float(((loss >= least) & (loss > 0)).sum()))
        places = top.indices[rows, ranks]
        order = (rows * loss.shape[1] + places).argsort()
        return rows[order], places[order]

    def teacher_windows(self, batch: Batch, episodes: list[Episode], rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher would say instead, from places in the middle of responses: ids and mask ``[places, window]``.

        It goes on from its own view of the row, up to before the place, and stops where it would end the turn. Where its context has
        no room for a whole window the window is empty.
        """
        shift = batch.teacher_attention_mask.sum(1) - batch.attention_mask.sum(
            1
        )  # [batch] how much longer the teacher's row is
        ids = torch.zeros(len(rows), self.window, dtype=torch.long)
        mask = torch.zeros(len(rows), self.window, dtype=torch.bool)
        networks = [self.teacher_network(episodes[e].task) for e in batch.episode[rows].tolist()]
        for network in {id(n): n for n in networks}.values():  # each teacher goes on from all of its prefixes at once
            prefixes, keys = {}, {}
            for i in (i for i, n in enumerate(networks) if n is network):
                row, place = int(rows[i]), int(places[i])
                episode, turn = episodes[int(batch.episode[row])], int(batch.turn_ids[row, place])
                prefix = batch.teacher_ids[row, : place + int(shift[row])].tolist()
                if len(prefix) + self.window <= self.teacher_context(episode.task):
                    prefixes[i] = prefix
                    keys[i] = SampleKey(self.seed, f"{episode.task.id}/from {place}/{self.iteration}", episode.attempt, turn)
            if prefixes:
                said = self.continuations(network, list(prefixes.values()), list(keys.values()), self.window)
                for i, completion in zip(prefixes, said, strict=True):
                    ids[i, : len(completion.ids)] = torch.tensor(completion.ids)
                    mask[i, : len(completion.ids)] = True
        return ids, mask

    def student_windows(self, batch: Batch, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """What the student wrote from each place on to the end of its turn: ids and mask ``[candidates, window]``."""
        ahead = places[:, None] + torch.arange(self.window)  # [candidates, window], times
        inside = ahead < batch.ids.shape[1]
        ahead = ahead.clamp_max(batch.ids.shape[1] - 1)
        turn = batch.turn_ids[rows[:, None], ahead] == batch.turn_ids[rows, places][:, None]
        return batch.ids[rows[:, None], ahead], inside & turn & batch.response_mask[rows[:, None], ahead]

    def soft_targets(
        self, batch: Batch, rows: Tensor, places: Tensor, student_mask: Tensor, teacher_ids: Tensor, plan: Tensor
    ) -> None:
        """Spread each fork's teacher window over the student's next tokens: each gets what the plan sends it, as one distribution."""
        time = batch.ids.shape[1]
        batch.soft_target_ids = batch.ids.new_zeros(len(batch), time, self.window)
        batch.soft_target_logp = batch.old_logp.new_full((len(batch), time, self.window), -torch.inf)
        share = plan / plan.sum(2, keepdim=True).clamp_min(1e-12)  # [forks, window of the student, window of the teacher]
        for row, place, mask, ids, of_place in zip(rows, places, student_mask, teacher_ids, share, strict=True):
            end = int(place) + int(mask.sum())  # later forks own what they share with earlier ones
            batch.soft_target_ids[row, place:end] = ids
            batch.soft_target_logp[row, place:end] = of_place[mask].log()

    def objective(self) -> dict[str, Any]:
        return super().objective() | {"trajectory_coef": self.trajectory_coef}

    def token_loss(self, batch: Batch, now: StudentOutput) -> Tensor:
        loss = super().token_loss(batch, now)
        covered = batch.soft_target_logp.isfinite().any(-1)
        self.metrics.add_tokens("transport/covered_share", covered, batch.response_mask)
        if self.trajectory_coef == 0 or not covered.any():
            return loss
        tokens = self.token_view(batch, now.logp, now.entropy)
        targets = tokens.including(teacher_top_ids=batch.soft_target_ids, teacher_top_logp=batch.soft_target_logp)
        entropy = now.compare(TopKCrossEntropy(self.window), targets)
        self.metrics.add_tokens("transport/cross_entropy", entropy, covered)
        return loss + self.trajectory_coef * covered * entropy
