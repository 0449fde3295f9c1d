"""Figures of a training, from the metrics of its iterations."""

from sdar.errors import ConfigError
from sdar.evaluate.curves import Curve, smooth
from sdar.figures.base import Chart, Lines, Settings, curves, figure

TAUGHT = "Train a method with a teacher and a gate (--model SDAR)."
TOOLS = "Train in a world with a tool: conf/env/math.yaml, conf/env/code.yaml (docs/environments.md)."


@figure(
    "SDAR (2605.15155), Fig. 5: mean gap and share of open gates over training",
    "gap/negative_share beside them: the paper's more than half of negative gaps",
    {"SDAR": ("sdar",)},
)
def gap_and_gate(settings: Settings) -> list[Chart]:
    return [
        curves(settings, "gap/mean", "mean gap", TAUGHT, "nats"),
        curves(settings, "gap/negative_share", "tokens with a negative gap", TAUGHT, percent=True),
        curves(settings, "gate/mean", "gate", TAUGHT),
        curves(settings, "gate/active_share", "tokens with a gate above 0.5", TAUGHT, percent=True),
    ]


@figure(
    "SDAR (2605.15155), Fig. 2 right: RLSD amplifies early updates",
    "the mean change that the teacher made to advantages, and the share of clipped ratios",
    {"RLSD": ("rlsd",)},
)
def early_updates(settings: Settings) -> list[Chart]:
    how = "Train RLSD (--model RLSD)."
    return [
        curves(settings, "advantage/reshaped_by", "mean change of advantages", how),
        curves(settings, "advantage/evidence_clipped_share", "tokens with a clipped ratio", how, percent=True),
    ]


@figure(
    "SOD (2605.07725), Fig. 4: success, entropy and tool-calling turns over training",
    "success of the training attempts instead of accuracy on a benchmark; calls an episode",
    {},
)
def tool_use(settings: Settings) -> list[Chart]:
    return [
        curves(settings, "success/train", "success in training", TOOLS, percent=True),
        curves(settings, "train/entropy", "entropy", TOOLS, "nats"),
        curves(settings, "rollout/tool_calls", "tool calls an episode", TOOLS),
    ]


@figure(
    "CriticSearch (2511.12159): does the critic's label agree with the outcome?",
    "the paper has no such figure; without agreement its turn rewards say nothing",
    {"CriticSearch": ("critic_search",)},
)
def critic_agreement(settings: Settings) -> list[Chart]:
    how = "Train CriticSearch (--model CriticSearch)."
    return [
        curves(settings, "judge/agreement", "labels with the sign of the outcome", how, percent=True),
        curves(settings, "judge/label_success", "mean label where the goal was reached", how),
        curves(settings, "judge/label_failure", "mean label where it was missed", how),
    ]


@figure(
    "TOPD (2606.00305): about 30 % of high-loss tokens are surface mismatches",
    "measured against a distance, which is ours: the paper gives none",
    {"TOPD": ("topd", "--model.surface_share", "null", "--model.surface_distance", "0.4")},
)
def surface_mismatches(settings: Settings) -> list[Chart]:
    how = "Train TOPD with --model.surface_share null --model.surface_distance 0.4: a share that is given is no measurement."
    for run in (run for runs in settings.values() for run in runs):
        if ((run.settings.get("model") or {}).get("init_args") or {}).get("surface_share") is not None:
            raise ConfigError(
                f"{run.folder}: its model.surface_share was given, so transport/surface_share is what was asked for. {how}"
            )
    return [
        curves(settings, "transport/surface_share", "surface mismatches among the candidates", how, percent=True),
        curves(settings, "transport/distance", "distance of the near futures", how),
    ]


@figure(
    "SDAR, SOD, CriticSearch, SD-Search (2605.18299), TOPD: training curves of a method beside its baselines",
    "success of the training attempts over environment steps, mean of the last five iterations",
    {"GRPO": ("grpo",), "SDAR": ("sdar",), "SD-Search": ("sd_search",), "CriticSearch": ("critic_search",)},
)
def learning_curves(settings: Settings) -> list[Chart]:
    of: dict[str, list[tuple[list[float], list[float]]]] = {}
    for label, runs in settings.items():
        of[label] = []
        for run in runs:
            curve = Curve.read(run.folder)
            if curve is None or "env_steps" not in curve.costs:
                raise ConfigError(
                    f"{run.folder}: its metrics.csv has no success/train with train/env_steps, which this figure draws. Give the folder "
                    "of a training that played (sdar fit), not of a measurement."
                )
            of[label].append((curve.costs["env_steps"].tolist(), smooth(curve.success.tolist())))
    return [Lines("success in training", of, percent=True, x="environment steps")]
