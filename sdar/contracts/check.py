"""``sdar check``: the contracts that our own parts are tested by, for the parts of somebody else."""

import io
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sdar import registry
from sdar.contracts import estimands, samples
from sdar.contracts.environments import PROMISES
from sdar.errors import ConfigError, PartError
from sdar.metrics import Metrics
from sdar.parts import Divergence, Environment, EpisodeController, Gate, Judge, Part, PrivilegedView, Retriever
from sdar.reading import read_yaml
from sdar.rollout import Request
from sdar.turns import Turns

Case = tuple[str, Callable[[], object]]
Make = Callable[[], Any]
RETURNS = "what it returns"


def check(parts: list[str] | None = None, settings: str | None = None) -> None:
    """Check parts of your own by the contracts that ours are tested by: sdar check --plugin my_package

    A line for each part and check: ok, or what is wrong. Ends with exit code 1 where something is. What acts on a model (a policy, a
    sampler, a teacher, a whole method) is looked at in a run only: there every answer of every part is.

    Args:
        parts: Names of the parts to check; by default all registered ones that are not ours.
        settings: YAML file with the arguments of parts that cannot be made without: {name: {argument: value}}.
    """
    chosen = list(_chosen(parts or []))
    given = _settings(settings)
    problems, lines = [], []
    for kind, name, cls in chosen:
        if kind == "strategies":  # it is made of other parts, among them a model
            lines.append(f"{kind:<20} {name:<20} looked at in a run only")
            continue
        for what, problem in _checked(kind, cls, given.get(name, {})):
            problems.append(problem)
            lines.append(f"{kind:<20} {name:<20} {what:<24} {'ok' if problem is None else f'WRONG  {problem}'}")
    print("\n".join(lines), flush=True)
    if wrong := [problem for problem in problems if problem is not None]:
        raise PartError(
            f"{len(wrong)} of {len(problems)} checks of {len(chosen)} parts failed: what is wrong stands above. Correct the parts."
        )


def _chosen(names: list[str]) -> Iterator[tuple[str, str, type]]:
    """Kind, short name and class of what is to be checked."""
    every = [(kind, name, cls) for kind in sorted(registry.kinds()) for name, cls in registry.parts(kind).items()]
    unknown = [n for n in names if not any(n in (name, cls.__name__) for _, name, cls in every)]
    if unknown:
        near = registry.did_you_mean(unknown[0], [name for _, name, _ in every])
        raise ConfigError(
            f"no registered part is called {unknown[0]!r}.{near} `sdar list` names them all; --plugin imports a package."
        )
    found = [
        (kind, name, cls)
        for kind, name, cls in every
        if (name in names or cls.__name__ in names if names else not cls.__module__.startswith("sdar."))
    ]
    if not found:
        raise ConfigError(
            "there is no part to check: every registered one is ours. Name the package that registers yours, as in `sdar check --plugin "
            "my_package`, or parts, as in `sdar check --parts '[gap]'`."
        )
    yield from found


def _settings(path: str | None) -> dict[str, dict[str, Any]]:
    told = {} if path is None else read_yaml(Path(path))
    if not isinstance(told, dict) or not all(isinstance(arguments, dict) for arguments in told.values()):
        raise ConfigError(f"{path} holds no settings of parts: it is {{name: {{argument: value}}}}. Correct it.")
    return told


def _checked(kind: str, cls: type, settings: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """What was checked of a part, each with what is wrong with it."""
    make = partial(cls, **settings)
    try:
        make()
    except Exception as error:
        yield "can be made", f"{type(error).__name__}: {error} (its arguments: --settings)"
        return
    yield "can be made", None
    for what, run in _cases(kind, make):
        problem = _problem(run)
        yield what, problem
        if problem is not None and what == RETURNS:
            return  # everything after it would say so again


def _problem(run: Callable[[], object]) -> str | None:
    """What is wrong, in one line; None where nothing is."""
    try:
        run()
    except ConfigError as error:
        return f"refused: {error}"
    except (AssertionError, PartError) as error:
        return str(error).strip().replace("\n", " ")
    except Exception as error:
        [*_, last] = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    return None


def _cases(kind: str, make: Make) -> Iterator[Case]:
    """The checks of a kind."""
    part = make()
    if isinstance(part, Environment):
        for name, promise in PROMISES.items():
            yield name, partial(promise, make)
        return
    if isinstance(part, Divergence):
        yield "estimands", partial(_estimands, part)
    if isinstance(part, Gate):
        yield "estimands behind it", partial(_behind, part)
    call = CALLS.get(kind)
    if call is not None:
        yield RETURNS, partial(_in_both_layouts, make, call)
        if kind in ("gates", "turn_weights"):
            yield "same in both layouts", partial(_same, make, call)
    if isinstance(part, Part) and type(part).state_dict is not Part.state_dict:
        yield "state", partial(_state, make, call)


def _estimands(divergence: Divergence) -> None:
    for gate in (None, *(cls() for cls in _ours("gates"))):
        estimands.prove(divergence, gate, 0)


def _behind(gate: Gate) -> None:
    for cls in _ours("divergences"):
        for settings in estimands.every_setting(cls):
            estimands.prove(cls(**settings), gate, 0)


def _ours(kind: str) -> list[Any]:
    return [cls for cls in registry.parts(kind).values() if cls.__module__.startswith("sdar.")]


def _in_both_layouts(make: Make, call: Callable[[Any, str], object]) -> None:
    for layout in samples.LAYOUTS:
        call(make(), layout)


def _same(make: Make, call: Callable[[Any, str], object]) -> None:
    """Tokens and turns are the same ones, whatever rows they stand in."""
    one, other = (call(make(), layout) for layout in samples.LAYOUTS)
    torch.testing.assert_close(one, other)


def _state(make: Make, call: Callable[[Any, str], object] | None) -> None:
    """What was learned goes through a checkpoint and comes back as it was, in a part that was made anew."""
    part, fresh, file = make(), make(), io.BytesIO()
    for _ in range(3):
        if call is not None:
            call(part, "turn")
    torch.save(part.state_dict(), file)
    told = file.getvalue()
    try:
        fresh.load_state_dict(torch.load(io.BytesIO(told), weights_only=True))
    except Exception as error:
        raise AssertionError(
            f"its state does not come back ({type(error).__name__}: {error}): tensors and plain Python only"
        ) from error
    again = io.BytesIO()
    torch.save(fresh.state_dict(), again)
    if again.getvalue() != told:
        raise AssertionError("after `load_state_dict` of it `state_dict` is another one: something is not restored")
    if call is not None and not _equal(call(part, "turn"), call(fresh, "turn")):
        raise AssertionError("after `load_state_dict` it answers otherwise: something that it learned is not in its state")


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def _gate(gate: Gate, layout: str) -> torch.Tensor:
    """Ordinary tokens, and teachers that agree or differ by 50 nats."""
    rows = samples.batch(layout)
    for gap in (0.0, 50.0, -50.0):
        gate(samples.tokens(rows, gap))
    gate.observe(samples.tokens(rows), Metrics())
    return gate(samples.tokens(rows))[rows.response_mask]


def _turn_weight(weight: Any, layout: str) -> torch.Tensor:
    rows = samples.batch(layout)
    return weight(samples.tokens(rows), Turns(rows), Metrics())


def _transform(transform: Any, layout: str) -> torch.Tensor:
    rows = samples.batch(layout)
    tokens = samples.tokens(rows)
    return transform(tokens.advantages, tokens, Turns(rows), 0, Metrics())


def _filter(chosen: Any, layout: str) -> torch.Tensor:
    return chosen(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1, 2]))


def _correction(correction: Any, layout: str) -> torch.Tensor:
    tokens = samples.tokens(samples.batch(layout))
    return correction(tokens.student_logp, tokens.teacher_logp)


def _policy_loss(loss: Any, layout: str) -> torch.Tensor:
    tokens = samples.tokens(samples.batch(layout))
    return loss(tokens.student_logp, tokens.old_logp, tokens.advantages, tokens.response_mask)


def _retriever(retriever: Retriever, layout: str) -> Any:
    """The same skills for the same task and visit; then it hears how that went."""
    task = samples.attempts()[0].task
    if retriever.retrieve(task, 0) != retriever.retrieve(task, 0):
        raise AssertionError(
            "it retrieves otherwise for the same task and visit: derive chance from (seed, task id, visit) alone"
        )
    found = retriever.retrieve(task, 1)
    retriever.observe(task, found, 0.5)
    return found


def _protocol(protocol: Any, layout: str) -> Any:
    """What a demonstration writes is read back."""
    task = samples.attempts()[0].task
    protocol.opening(task, "You see a mug.", ["take mug"])
    protocol.window(task, [("You see a door.", "open door")], "You see a mug.", ["take mug"])
    protocol.answer("You see a mug.", ["take mug"])
    if (read := protocol.parse(protocol.write("take mug"), ["take mug"])) != ("take mug", True):
        raise AssertionError(f"`parse(write('take mug'))` is {read}: what a demonstration writes must be read back")
    return read


def _view(view: PrivilegedView, layout: str) -> list[str]:
    """Before an episode, and from each turn of each attempt; to be told something changes nothing."""
    world, episodes = samples.World(), samples.attempts()
    told = [view.text(replace(e, turns=[]), [], 0, world) for e in episodes]
    groups = {e.task.id: [other for other in episodes if other.task == e.task] for e in episodes}
    told += [view.text(e, groups[e.task.id], turn, world) for e in episodes for turn in range(len(e.turns))]
    if episodes != samples.attempts():
        raise AssertionError("`text` changes the episodes that it is shown: the rows that are trained on are made of them")
    return told


def _controller(controller: EpisodeController, layout: str) -> list[Request]:
    """Early and late in training."""
    asked = [Request(e.task, e.attempt) for e in samples.attempts()]
    told = [controller(request, iteration, samples.World()) for iteration in (0, 1, 1000) for request in asked]
    if wrong := [r.max_turns for r in told if r.max_turns is not None and r.max_turns < 1]:
        raise AssertionError(f"it leaves the acting model {wrong[0]} turns: at least 1, or None for as many as the world has")
    return told


def _judge(judge: Judge, layout: str) -> list[list[float | None]]:
    """Attempts of one to three turns."""
    judge.check()
    episodes = samples.attempts()
    return judge(episodes, [samples.World().solution(e.task) for e in episodes])


CALLS: dict[str, Callable[[Any, str], object]] = {
    "gates": _gate,
    "turn_weights": _turn_weight,
    "advantages": lambda part, layout: part(samples.credit(samples.batch(layout))),
    "advantage_transforms": _transform,
    "filters": _filter,
    "corrections": _correction,
    "policy_losses": _policy_loss,
    "schedules": lambda part, layout: [part(iteration) for iteration in range(200)],
    "retrievers": _retriever,
    "protocols": _protocol,
    "views": _view,
    "controllers": _controller,
    "judges": _judge,
}
"""How a part of each kind is called; what it returns is looked at on the way (`sdar.contracts.returned`)."""
