"""Alarms about the teacher and its channel: what it sees, whether it is better, whether anything of it arrives."""

from itertools import pairwise
from statistics import fmean, stdev

from sdar.alarms.base import Alarm, Bound, Finding, Measured
from sdar.errors import check_least, check_positive, check_share
from sdar.registry import register


@register("gap_grows")
class GapGrows(Alarm):
    """The gap to the teacher grows turn by turn: late turns stand where the teacher would never have been.

    Args:
        window: Iterations whose mean is looked at.
        factor: How many times larger than in the first turn it may become in a later one.
        least: In nats; a gap below this is none.
    """

    def __init__(self, window: int = 10, factor: float = 4.0, least: float = 0.5):
        super().__init__(window)
        check_least("alarm", 1, factor=factor)
        self.factor, self.least = factor, least

    def look(self, run: Measured) -> Finding | None:
        means = {place: run.recent(name, self.window) for name, place in run.names(r"gap/abs/turn/(.+)")}
        known = {place: mean for place, mean in means.items() if mean is not None}
        if "1" not in known or len(known) < 3:
            return None
        place, worst = max(known.items(), key=lambda pair: pair[1])
        in_order = sorted(known, key=lambda p: int(p.rstrip("+").split("-")[0]))
        rises = sum(known[b] > known[a] for a, b in pairwise(in_order))
        if worst < self.least or worst <= self.factor * known["1"] or rises < 0.75 * (len(in_order) - 1):
            return None
        return Finding(
            f"gap/abs is {known['1']:.2g} nats in the first turn and {worst:.2g} in turn {place} (means of {self.window} "
            f"iterations)",
            f"no more than {self.factor:g} times that of the first turn",
            "The teacher judges situations that it would not have come into. Weigh turns by their distance (SOD's "
            "StepwiseWeight), bound the "
            "gap, or begin with shorter horizons (TCOD).",
        )


@register("gate_saturated")
class GateSaturated(Bound):
    """The gate is open or shut for nearly every token: it does not choose.

    Args:
        window: Iterations whose mean is looked at.
        margin: How near to 0 and to 1 the mean may come.
    """

    metric = "gate/mean"
    what = "the gate is the same for nearly every token"
    remedy = (
        "A gate that never chooses is a constant, and the lift with a constant gate has no gradient on average. Look at "
        "gap/mean and gap/abs: "
        "a sharper or flatter gate (model.gate.beta) fits a smaller or larger gap; a teacher that sees nothing has none."
    )

    def __init__(self, window: int = 5, margin: float = 0.02):
        check_share("alarm", "a share", margin=margin)
        super().__init__(window, margin, 1 - margin)


@register("weights_capped")
class WeightsCapped(Bound):
    """Turn weights lie at their cap in most turns: they do not weigh.

    Args:
        window: Iterations whose mean is looked at.
        most: Share of turns that may lie at the cap.
    """

    metric = "turn/weight_capped_share"
    what = "turns whose weight is the cap, whatever their distance"
    remedy = "The first turn is further from the teacher than the others, or the cap is low: look at turn/weight/turn/<k> and at delta."

    def __init__(self, window: int = 10, most: float = 0.9):
        super().__init__(window, most=most)


@register("clip_never_reached")
class ClipNeverReached(Alarm):
    """The ratio is never clipped although several steps share a rollout.

    Args:
        window: Iterations that are looked at.
        least: Mean absolute kl/old, in nats, from which on the policy does move between the steps of a rollout.
    """

    def __init__(self, window: int = 50, least: float = 1e-3):
        super().__init__(window)
        check_positive("alarm", least=least)
        self.least = least

    def look(self, run: Measured) -> Finding | None:
        clipped, moved = (run.values(name)[-self.window :] for name in ("train/clip_share", "kl/old"))
        movement = sum(map(abs, moved)) / self.window
        if len(clipped) < self.window or any(clipped) or movement < self.least:
            return None
        return Finding(
            f"train/clip_share is 0 over {self.window} iterations, and kl/old {movement:.2g} nats in size, on average",
            "above 0 where several steps share a rollout",
            "The clip does nothing: its bounds are wider than the policy moves. Narrow model.policy_loss.clip_low and "
            "clip_high, or know that "
            "the loss is the unclipped one.",
        )


@register("teacher_silent")
class TeacherSilent(Alarm):
    """The teacher's channel has a coefficient of zero, or no token to speak about, from the beginning.

    Args:
        window: Iterations that are looked at.
    """

    def __init__(self, window: int = 20):
        super().__init__(window)

    def look(self, run: Measured) -> Finding | None:
        told = {"distill/coef": "the weight of the teacher's channel", "distill/chosen_share": "the tokens that it is about"}
        for name, what in told.items():
            values = run.values(name)
            if len(values) >= self.window and not any(values) and not any(value for _, value in run.first[name]):
                return Finding(
                    f"{name} is 0 in all {len(values)} iterations: {what}",
                    "above 0",
                    "The run is one without a teacher, and pays for one. Look at model.distill_coef and its schedule, at "
                    "model.span and at "
                    "model.sequence_filter.",
                )
        return None


@register("teacher_no_better")
class TeacherNoBetter(Alarm):
    """The teacher plays no better than the student, who has not caught up with it either.

    Args:
        least: Lift, as a share of tasks, that is worth a teacher. Where the lift was above it when the run began, and half or more of what
            it lost is what the student won, the teacher has done its work.
    """

    def __init__(self, least: float = 0.0):
        super().__init__(1)
        self.least = least

    def look(self, run: Measured) -> Finding | None:
        for name, panel in run.names(r"teacher/lift/(.+)"):
            (_, first), lift = run.first[name][0], run.values(name)[-1]
            (_, before), reached = run.first[f"success/{panel}"][0], run.values(f"success/{panel}")[-1]
            caught_up = first > self.least and 2 * (reached - before) >= first - lift
            if lift <= self.least and not caught_up:
                return Finding(
                    f"{name} is {100 * lift:+.1f} points; the student reaches {reached:.1%}",
                    f"above {100 * self.least:g}",
                    "Nothing can be learned from this teacher. Look at its prompt in an episode: does it hold the skill, and does the "
                    "skill fit the task?",
                )
        return None


@register("teacher_prefers_failure")
class TeacherPrefersFailure(Alarm):
    """Where the student goes, the teacher likes what fails better than what succeeds.

    Args:
        window: Iterations whose mean is looked at.
        margin: In nats; a difference below this is none.
        errors: Standard errors of its mean over the iterations by which the difference has to lie below 0.
    """

    def __init__(self, window: int = 10, margin: float = 0.05, errors: float = 3.0):
        check_least("alarm", 2, window=window)
        super().__init__(window)
        self.margin, self.errors = margin, errors

    def look(self, run: Measured) -> Finding | None:
        measured = [dict(run.last.get(f"gap/{outcome}", ())) for outcome in ("success", "failure")]
        both = sorted(measured[0].keys() & measured[1].keys())[-self.window :]
        if len(both) < self.window:
            return None
        success, failure = (fmean(gaps[i] for i in both) for gaps in measured)
        noise = stdev(measured[0][i] - measured[1][i] for i in both) / len(both) ** 0.5
        if success - failure >= -max(self.margin, self.errors * noise):
            return None
        return Finding(
            f"the mean gap is {success:.3g} nats on tokens of episodes that reached the goal and {failure:.3g} on the others, "
            f"with a standard error of {noise:.2g}",
            f"no more than {self.margin:g} below, or {self.errors:g} standard errors",
            "On the student's own path the teacher pushes towards failure: it may know the task and not the situation. "
            "Trust it less "
            "(model.gate, model.distill_coef), by outcome (model.sequence_filter), or give it skills that fit.",
        )


@register("teacher_empty")
class TeacherEmpty(Bound):
    """The teacher is told nothing in most rows.

    Args:
        window: Iterations whose mean is looked at.
        most: Share of rows to which its view may add nothing.
    """

    metric = "teacher/empty_share"
    what = "rows to which the teacher's view adds nothing, so that it is the student"
    remedy = "The retriever finds no skill for these tasks: `sdar list retrievers`, the families of the bank, retrievals.jsonl of the run."

    def __init__(self, window: int = 5, most: float = 0.5):
        super().__init__(window, most=most)


@register("skills_copied")
class SkillsCopied(Bound):
    """Responses recite the skills that the policy was told, or that it learned by heart from its teacher.

    Args:
        window: Iterations whose mean is looked at.
        most: Share of responses that may hold a passage of the skills of their task.
    """

    metric = "retrieval/copied_share"
    what = "responses that hold a passage of the skills of their task"
    remedy = (
        "The policy learns the text of the skills and not what they are for, and will recite them where they do not fit. "
        "Leave out the "
        "tokens of thought (model.span), gate by entropy, or lower model.distill_coef."
    )

    def __init__(self, window: int = 5, most: float = 0.1):
        super().__init__(window, most=most)


@register("one_token")
class OneToken(Bound):
    """A single token carries much of a step's gradient.

    Args:
        window: Iterations whose mean is looked at.
        most: Share of the gradient's norms that the largest token of a micro-batch may have.
    """

    metric = "grad/top_token_share"
    what = "the largest token's share of the gradient of its micro-batch"
    remedy = (
        "The step follows one token: an outlier of the gap or of a ratio. Look at gap/top1_share, loss/special_share and "
        "rollout/mismatch_max; bound the gap (clip), mask special tokens, or use more tokens a step."
    )

    def __init__(self, window: int = 5, most: float = 0.3):
        super().__init__(window, most=most)


@register("mismatch")
class Mismatch(Bound):
    """The sampler does not sample from the density that is trained.

    Args:
        window: Iterations whose mean is looked at.
        most: Mean absolute difference of the two log-probabilities, in nats; 0.04 is ordinary in bfloat16, 1e-5 in float32.
    """

    metric = "rollout/mismatch"
    is_share = False
    what = "nats between the sampler's and the trainer's log-probability of a sampled token"
    remedy = (
        "Every ratio and gradient is about another policy. Look whether the engine has the weights and the dtype of the "
        "training; "
        "model.correction makes up for a small difference."
    )

    def __init__(self, window: int = 5, most: float = 0.1):
        super().__init__(window, most=most)
