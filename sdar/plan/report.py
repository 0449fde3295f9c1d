"""What `sdar plan` prints, and the same for programs."""

import math
from dataclasses import asdict, fields
from typing import Any

from sdar.plan.advice import combinations
from sdar.plan.memory import PHASES, device_memory, host_memory, peaks
from sdar.plan.run import GIB, Run, named
from sdar.plan.times import BANDWIDTH_SHARE, LAYER_LAUNCH_S, MATMUL_SHARE, counts, seconds


def report(run: Run, gpu: str) -> str:
    """What `sdar plan` prints."""
    card = named(gpu)
    launch, work = run.launch, run.work
    sets, peak, took = device_memory(run, card), peaks(run, card), seconds(run, card)
    lines = [f"{launch}"]
    width = max(len(network.role) for network in (run.policy, *run.others)) + 2
    for network in (run.policy, *run.others):
        n = network.architecture
        trained = f", {_count(network.trained)} trained" if network.trained else ""
        lines.append(
            f"{network.role:<{width}}{n.kind}, {_count(network.parameters)} parameters{trained}; {n.layers} layers, hidden {n.hidden}, "
            f"vocabulary {n.vocab}, context {n.context}"
        )
    extra = f" + up to {work.extra}" if work.extra else ""
    lines += [
        "",
        f"an iteration at most: {work.tasks} tasks x {work.attempts} attempts{extra}, {work.turns} turns, {work.response} tokens a "
        f"response; longest row {work.row} tokens" + (f", the teacher's {work.row + work.told}" if work.told else ""),
    ]
    lines += [f"  {what:<40}{_number(value):>16}" for what, value in counts(run).items()]
    if work.passes:
        lines.append(f"  scoring passes: {', '.join(f'{who} {times:g}' for who, times in work.passes.items())}")
    lines += ["", "GiB on each rank's device".ljust(42) + "".join(f"{phase:>10}" for phase in PHASES)]
    order = dict.fromkeys(what for parts in sets.values() for what in parts)
    for what in order:
        cells = (sets[phase].get(what, 0.0) / GIB for phase in PHASES)
        lines.append(f"  {what[:39]:<40}" + "".join(f"{cell:>10.2f}" if cell else f"{'-':>10}" for cell in cells))
    spare = (peak[phase] / GIB - sum(sets[phase].values()) / GIB for phase in PHASES)
    lines.append(f"  {'CUDA context and fragmentation (assumed)':<40}" + "".join(f"{cell:>10.2f}" for cell in spare))
    lines.append(f"  {'together':<40}" + "".join(f"{peak[phase] / GIB:>10.2f}" for phase in PHASES))
    host = host_memory(run)
    lines += ["", f"GiB in the main memory of each node ({math.ceil(launch.ranks / launch.nodes)} process(es))"]
    lines += [f"  {what:<58}{size / GIB:>10.2f}" for what, size in host.items()]
    total = sum(took.values())
    lines += [
        "",
        f"seconds of an iteration on {launch.ranks} x {gpu} at the counts above: estimates, without the world's own time",
    ]
    for phase, value in took.items():
        lines.append(f"  {phase:<12}{value:>12.1f}   {100 * value / max(total, 1e-9):>4.0f} %")
    lines.append(
        f"  (from peak numbers: {MATMUL_SHARE:.0%} of the FLOP/s, {BANDWIDTH_SHARE:.0%} of the bandwidth"
        + (f", {LAYER_LAUNCH_S * 1e3:g} ms for a layer and token)" if work.in_process and work.plays else ")")
    )
    if run.notes:
        lines += ["", *run.notes]
    lines += ["", *verdict(run, gpu)]
    return "\n".join(lines)


def verdict(run: Run, gpu: str) -> list[str]:
    """Whether it fits, and what to set if it does not."""
    card, peak = named(gpu), peaks(run, named(gpu))
    phase = max(peak, key=peak.__getitem__)
    over = peak[phase] / GIB - card.memory
    told = f"{peak[phase] / GIB:.1f} GiB in the {phase} phase of {card.memory:g} GiB ({gpu})"
    if over <= 0:
        return [f"fits: {told}, {-over:.1f} GiB are left."]
    lines = [f"does not fit: {told}, {over:.1f} GiB too much. What takes memory off:"]
    for what, size in combinations(run, card):
        fits = "fits" if size / GIB <= card.memory else "not enough alone"
        lines.append(f"  {size / GIB:>8.1f} GiB  {fits:<17} {what}")
    if all(size / GIB > card.memory for _, size in combinations(run, card)):
        lines.append(
            "  Nothing of this is enough: use more ranks, a larger GPU, shorter rows (--row_tokens) or a smaller policy."
        )
    return lines


def as_json(run: Run, gpu: str) -> dict[str, Any]:
    """The same for programs; bytes and seconds."""
    card = named(gpu)
    peak = peaks(run, card)
    return {
        "gpu": {"name": gpu, **card._asdict()},
        "run": {f.name: _plain(getattr(run, f.name)) for f in fields(run)},
        "counts": counts(run),
        "memory": device_memory(run, card),
        "peak": peak,
        "host": host_memory(run),
        "seconds": seconds(run, card),
        "fits": max(peak.values()) <= card.memory * GIB,
        "advice": [{"set": what, "peak": size} for what, size in combinations(run, card)]
        if max(peak.values()) > card.memory * GIB
        else [],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value > 100 else f"{value:,.1f}"
