"""Tables of what methods and settings reach, from the measurements of runs."""

from collections.abc import Iterator, Sequence
from typing import Any

from sdar.errors import ConfigError
from sdar.figures.base import Chart, Row, Settings, Table, figure
from sdar.figures.training import learning_curves
from sdar.report.gather import Run

BETTER = "interval over tasks; of several seeds their mean alone: `sdar compare` has intervals over seeds"
COUNTED = ("success", "teacher/success", "teacher/lift")


def _last(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each panel's last measurement."""
    if not run.measured:
        raise ConfigError(
            f"{run.folder} has no measurement (validation.jsonl), which this table is made of. Train with trainer.val_check_interval "
            f"or measure it: sdar validate -c {run.folder}/config.yaml --ckpt_path last, and give that folder."
        )
    yield from {line["panel"]: line for line in run.measured}.items()


def _cell(found: Sequence[Any]) -> str:
    """A share in percent, of one run with its interval."""
    means = [100 * (one[0] if isinstance(one, list) else one) for one in found]
    mean = f"{sum(means) / len(means):.1f}"
    return (
        f"{mean} [{100 * found[0][1]:.1f}, {100 * found[0][2]:.1f}]"
        if len(found) == 1 and isinstance(found[0], list)
        else mean
    )


def _table(settings: Settings, title: str, families: bool) -> Table:
    """A row for each setting and panel: percent."""
    rows: list[Row] = []
    for label, runs in settings.items():
        last: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            for panel, line in _last(run):
                last.setdefault(panel, []).append(line)
        for panel, lines in last.items():
            names = [f"{name}/{panel}" for name in COUNTED]
            names += sorted(
                {n for line in lines for n in line if n.startswith(f"success_by_family/{panel}/")} if families else ()
            )
            known = {name: found for name in names if (found := [line[name] for line in lines if name in line])}
            told = {name.replace(f"/{panel}", "").removeprefix("success_by_family/"): _cell(v) for name, v in known.items()}
            rows.append({"setting": label, "panel": panel, "runs": len(lines), "iteration": lines[0]["iteration"], **told})
    columns = dict.fromkeys(name for row in rows for name in row)
    return Table(title, [{name: row.get(name, "") for name in columns} for row in rows])


def _variants(settings: Settings) -> list[Chart]:
    return [_table(settings, "success in percent", families=False), *learning_curves(settings)]


@figure(
    "SDAR (2605.15155), Table 1; SOD (2605.07725), its tables; Revisiting OPD, TOPD: success of the methods",
    f"the panels of the runs that are given; {BETTER}",
    {
        "GRPO": ("grpo",), "Skill-GRPO": ("skill_grpo",), "OPSD": ("gated_opsd",), "GRPO+OPSD": ("grpo_opsd",), "Skill-SD": ("skill_sd",),
        "RLSD": ("rlsd",), "SDAR": ("sdar",), "OPD": ("opd",), "top-K": ("top_k_opd",), "SOD": ("sod",), "TOPD": ("topd",),
    },
)  # fmt: skip
def methods(settings: Settings) -> list[Chart]:
    return [_table(settings, "success in percent", families=True)]


def _retriever(name: str) -> Sequence[str]:
    return ("sdar", "--model.retriever", name, "--model.retriever.skills", "conf/skills/quickstart")


@figure(
    "SDAR (2605.15155), Table 2: retrieval",
    "ShuffledRetriever, skills of other tasks, beside random ones; general skills are always told",
    {name: _retriever(f"{name}Retriever") for name in ("UCB", "Keyword", "Full", "Random", "Shuffled")},
)
def retrieval(settings: Settings) -> list[Chart]:
    return _variants(settings)


@figure(
    "SDAR (2605.15155), ablations (Fig. 7, 9): the gate's sharpness, beta 0, 1, 5, 10",
    "beta 0 is the ungated form: with the lift it has no expected gradient",
    {f"beta {beta}": ("sdar", "--model.gate.beta", str(beta)) for beta in (0, 1, 5, 10)},
)
def gate_sharpness(settings: Settings) -> list[Chart]:
    return _variants(settings)


@figure(
    "SDAR (2605.15155), Fig. 7: gap, entropy and soft-OR gate",
    "with the lift a gate of the entropy alone has no expected gradient (docs/methods/sdar.md)",
    {name: ("sdar", "--model.gate", f"{name}Gate") for name in ("Gap", "Entropy", "SoftOr", "Constant")},
)
def gates(settings: Settings) -> list[Chart]:
    return _variants(settings)


@figure(
    "SDAR (2605.15155), ablations (Fig. 7, 9): the weight of the distillation term",
    "0.5, 2 and 8 on the quickstart, whose policy is tiny and whose run is short, instead of 0.001, 0.01 and 0.1",
    {f"lambda {coef}": ("sdar", "--model.distill_coef", str(coef)) for coef in (0.5, 2, 8)},
)
def distillation_weight(settings: Settings) -> list[Chart]:
    return _variants(settings)


@figure(
    "SDAR (2605.15155), ablations (Fig. 7, 9): the objective, reverse KL, forward KL, JSD",
    "the lift, the published one, beside them; over the whole vocabulary",
    {name: ("sdar", "--model.divergence", name) for name in ("Lift", "ReverseKL", "ForwardKL", "JensenShannon")},
)
def objectives(settings: Settings) -> list[Chart]:
    return _variants(settings)
