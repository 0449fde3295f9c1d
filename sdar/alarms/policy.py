"""Alarms about how the policy acts: collapses, lengths, actions, groups, attempts."""

from sdar.alarms.base import Alarm, Bound, Finding, Measured
from sdar.errors import check_share
from sdar.registry import register


@register("success_collapse")
class SuccessCollapse(Alarm):
    """The policy has lost most of what it could do.

    Args:
        window: Iterations whose mean is looked at.
        share: It may fall to this share of the best mean so far.
        fall: A fall by less than this is chance.
    """

    def __init__(self, window: int = 10, share: float = 0.5, fall: float = 0.15):
        super().__init__(window)
        check_share("alarm", "a share", share=share, fall=fall)
        self.share, self.fall = share, fall

    def look(self, run: Measured) -> Finding | None:
        values, n = run.values("success/train"), self.window
        if len(values) < 2 * n:
            return None
        means = [sum(values[end - n : end]) / n for end in range(n, len(values) + 1)]
        best, now = max(means), means[-1]
        if now >= self.share * best or best - now < self.fall:
            return None
        return Finding(
            f"success/train fell from {best:.1%} to {now:.1%} (means of {n} iterations)",
            f"no less than {self.share:.0%} of the best mean so far",
            "A learning rate that is too high, or a teacher's channel that is stronger than the rewards: look at "
            "train/grad_norm, kl/old and "
            "gate/mean where the fall began, and go on from a checkpoint before it.",
        )


@register("entropy_collapse")
class EntropyCollapse(Alarm):
    """The policy has stopped to try other actions.

    Args:
        window: Iterations whose mean is looked at.
        share: It may fall to this share of where it began.
        least: In nats; above this no fall is a collapse.
    """

    def __init__(self, window: int = 5, share: float = 0.1, least: float = 0.05):
        super().__init__(window)
        check_share("alarm", "a share", share=share)
        self.share, self.least = share, least

    def look(self, run: Measured) -> Finding | None:
        before, now = run.start("train/entropy", self.window), run.recent("train/entropy", self.window)
        if before is None or now is None or now >= min(self.share * before, self.least):
            return None
        return Finding(
            f"train/entropy is {now:.2g} nats a token; it began at {before:.2g}",
            f"at least {self.share:.0%} of its beginning, or {self.least:g}",
            "All attempts at a task become one attempt, and groups bring no signal. Raise model.entropy_coef or "
            "model.kl_coef, or lower the "
            "learning rate.",
        )


class _Length(Alarm):
    """How the length of responses has changed since the beginning."""

    def __init__(self, window: int, factor: float):
        super().__init__(window)
        self.factor = factor

    def _lengths(self, run: Measured) -> tuple[float, float] | None:
        name = "rollout/response_length"
        before, now = run.start(name, self.window), run.recent(name, self.window)
        return None if before is None or now is None else (before, now)


@register("length_collapse")
class LengthCollapse(_Length):
    """Responses have become much shorter than they were.

    Args:
        window: Iterations whose mean is looked at.
        factor: How many times shorter they may become.
    """

    def __init__(self, window: int = 5, factor: float = 4.0):
        super().__init__(window, factor)

    def look(self, run: Measured) -> Finding | None:
        lengths = self._lengths(run)
        if lengths is None or lengths[1] * self.factor >= lengths[0]:
            return None
        return Finding(
            f"rollout/response_length is {lengths[1]:.1f} tokens; it began at {lengths[0]:.1f}",
            f"no less than a {self.factor:g}th of its beginning",
            "The policy no longer reasons, or ends its turn at once. Look at episodes, and at what short responses earn: "
            "penalties for length, "
            "a token mean that a few long responses carry, a teacher with shorter answers.",
        )


@register("length_explosion")
class LengthExplosion(_Length):
    """Responses have become much longer than they were, or most are cut.

    Args:
        window: Iterations whose mean is looked at.
        factor: How many times longer they may become.
        cut: Share of responses that may be cut at the limit.
    """

    def __init__(self, window: int = 5, factor: float = 3.0, cut: float = 0.5):
        super().__init__(window, factor)
        check_share("alarm", "a share", cut=cut)
        self.cut = cut

    def look(self, run: Measured) -> Finding | None:
        lengths, cut = self._lengths(run), run.recent("rollout/cut_share", self.window)
        if lengths is not None and lengths[1] > self.factor * lengths[0]:
            fact = f"rollout/response_length is {lengths[1]:.1f} tokens; it began at {lengths[0]:.1f}"
        elif cut is not None and cut > self.cut:
            fact = f"rollout/cut_share is {cut:.1%}: responses without an end, cut at max_new_tokens"
        else:
            return None
        return Finding(
            fact,
            f"no more than {self.factor:g} times its beginning, and at most {self.cut:.0%} cut",
            "A response that is cut has no action and earns nothing. Give more tokens (model.sampler.max_new_tokens), "
            "ask for less text, or "
            "penalise length (model.overlong_buffer).",
        )


@register("invalid_actions")
class InvalidActions(Bound):
    """The world refuses most actions.

    Args:
        window: Iterations whose mean is looked at.
        least: Share of actions that should be accepted.
    """

    metric = "rollout/valid_action_rate"
    what = "the share of actions that the world accepted"
    remedy = (
        "Nothing is learned about the task where nothing is done. Look at episodes: is the form of the answer in the "
        "prompt, and does the "
        "protocol read it? A weak policy needs behaviour cloning first."
    )

    def __init__(self, window: int = 10, least: float = 0.3):
        super().__init__(window, least=least)


@register("repeated_actions")
class RepeatedActions(Bound):
    """The policy does the same again and again.

    Args:
        window: Iterations whose mean is looked at.
        most: Share of turns that may repeat the action before them.
    """

    metric = "rollout/repeated_action_share"
    what = "turns that repeat the action before them"
    remedy = (
        "The policy does not see what its action brought, or does not care: look at the observations in episodes, at "
        "data.history, and at a "
        "reward or penalty that can be had without progress."
    )

    def __init__(self, window: int = 10, most: float = 0.5):
        super().__init__(window, most=most)


@register("flat_groups")
class FlatGroups(Bound):
    """Groups bring no signal: all attempts at a task earn the same.

    Args:
        window: Iterations whose mean is looked at.
        most: Share of rows whose group may have one and the same reward.
    """

    metric = "reward/flat_group_share"
    what = "rows whose group got one and the same reward, and so no policy gradient"
    remedy = (
        "Tasks are all solved or all failed. Choose tasks of another difficulty (data.curriculum), play more attempts "
        "(data.group_size), or "
        "let a teacher speak where rewards do not."
    )

    def __init__(self, window: int = 10, most: float = 0.9):
        super().__init__(window, most=most)


@register("narrowing")
class Narrowing(Alarm):
    """pass@k falls while avg@k rises: the policy sharpens what it could do and loses the rest.

    Args:
        margin: Changes by less than this are chance.
    """

    def __init__(self, margin: float = 0.05):
        super().__init__(1)
        check_share("alarm", "a share", margin=margin)
        self.margin = margin

    def look(self, run: Measured) -> Finding | None:
        for name, panel in run.names(r"pass@\d+/(.+)"):
            passes, averages = run.values(name), run.values(f"success/{panel}")
            for then, average in zip(passes[:-1], averages[:-1], strict=False):
                if then - passes[-1] > self.margin and averages[-1] - average > self.margin:
                    return Finding(
                        f"{name} fell from {then:.1%} to {passes[-1]:.1%} while success/{panel} rose from {average:.1%} "
                        f"to {averages[-1]:.1%}",
                        f"both rise together, to within {self.margin:.0%}",
                        "The policy becomes sure of what it does, not better at what it could not do. Keep entropy "
                        "(model.entropy_coef, "
                        "model.kl_coef) and learn from tasks that are still failed (data.curriculum).",
                    )
        return None
