"""`sdar check`: the table, the exit code, and that parts which break a promise are found."""

import random
import re
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from sdar import registry
from sdar.cli import main
from sdar.contracts.check import check
from sdar.divergences import Lift
from sdar.envs import HouseholdEnv
from sdar.errors import ConfigError, PartError
from sdar.parts import EpisodeController, Gate, Judge, PrivilegedView, Retriever, StepResult, TurnWeight
from sdar.strategies import GRPO
from sdar.turns import Turns
from sdar.types import Retrieval

registry.load_parts()


class Open(Gate):
    def __call__(self, tokens):
        return torch.full_like(tokens.gap, 0.75)


class Loud(Gate):
    def __call__(self, tokens):
        return 10 * tokens.gap.abs()


class ByTurn(Gate):
    """Compares each token with the mean of its turn, behind it in its row."""

    def __call__(self, tokens):
        turns = Turns(tokens)
        batch, time = tokens.gap.shape
        mean = turns.spread(turns.mean(tokens.gap))
        return torch.sigmoid(tokens.gap - mean).where(tokens.response_mask, 0.0).view(batch, time)


class Learner(Open):
    """Learns something that its state does not hold."""

    def __init__(self):
        self.seen, self.kept = 0, 0

    def observe(self, tokens, metrics):
        self.seen += 1
        self.kept += 1

    def __call__(self, tokens):
        return torch.full_like(tokens.gap, 1 / (1 + self.seen))

    def state_dict(self):
        return {"kept": self.kept}

    def load_state_dict(self, state):
        self.kept = state["kept"]


class Remembering(Learner):
    def state_dict(self):
        return {"seen": self.seen, "kept": self.kept}

    def load_state_dict(self, state):
        self.seen, self.kept = state["seen"], state["kept"]


class ByRow(TurnWeight):
    """Weighs a turn by the row that it happens to stand in."""

    def __call__(self, tokens, turns, metrics):
        return 1.0 + turns.row.float()


class Liar(Lift):
    value_estimand = "KL(student || teacher)"


class Moody(Retriever):
    def retrieve(self, task, visit=0):
        return Retrieval((), str(random.random()))


class Generous(HouseholdEnv):
    """Pays for an episode that was cut, and answers copies otherwise than the first."""

    def unfinished(self):
        return StepResult("", 100.0, done=True, truncated=True)


class Needy(Gate):
    def __init__(self, width: float):
        self.width = width

    def __call__(self, tokens):
        return torch.full_like(tokens.gap, self.width)


class Careless(PrivilegedView):
    """Tells the attempt's own actions, and forgets them."""

    def text(self, episode, group, turn, env):
        return ", ".join(t.action for t in iter(lambda: episode.turns.pop() if episode.turns else None, None))


class Miser(EpisodeController):
    def __call__(self, request, iteration, env):
        return replace(request, max_turns=1000 - iteration)


class Terse(Judge):
    def __call__(self, episodes, solutions):
        return [[1.0] for _ in episodes]


FAULTS = {
    ("gates", "Open"): {},
    ("gates", "ByTurn"): {},
    ("gates", "Remembering"): {},
    ("gates", "Loud"): {"what it returns": r"Loud returned .*weights in \[0, 1\]", "estimands behind it": "weights in"},
    ("gates", "Learner"): {"state": "after `load_state_dict` it answers otherwise"},
    ("turn_weights", "ByRow"): {"same in both layouts": "not close"},
    ("divergences", "Liar"): {"estimands": "not (close|equal)"},
    ("retrievers", "Moody"): {"what it returns": "for the same task and visit"},
    ("environments", "Generous"): {"cuts": "a cut episode is worth 100.0"},
    ("views", "Careless"): {"what it returns": "changes the episodes that it is shown"},
    ("controllers", "Miser"): {"what it returns": "it leaves the acting model 0 turns: at least 1"},
    ("judges", "Terse"): {"what it returns": r"Terse returned \[1.0\] .* for 3 turns"},
    ("gates", "Needy"): {"can be made": r"missing 1 required positional argument: 'width' \(its arguments: --settings\)"},
}


@pytest.fixture
def mine(monkeypatch):
    """The parts of this file as registered ones, forgotten afterwards."""

    def add(kind, name):
        monkeypatch.setitem(registry._parts[kind], f"my_{name.lower()}", globals()[name])
        return f"my_{name.lower()}"

    return add


@pytest.mark.parametrize(("kind", "name"), FAULTS)
def test_what_a_part_breaks_is_found_and_nothing_else(mine, capsys, kind, name):
    short, expected = mine(kind, name), FAULTS[kind, name]
    if expected:
        with pytest.raises(PartError, match=rf"^{len(expected)} of \d+ checks of 1 parts failed: what is wrong stands above"):
            check([short])
    else:
        check([short])
    lines = capsys.readouterr().out.splitlines()
    wrong = {line[42:66].strip(): line[66:] for line in lines if "WRONG" in line}
    assert wrong.keys() == expected.keys(), lines
    assert all(re.search(expected[what], wrong[what]) for what in expected), wrong
    assert all(line.startswith(f"{kind:<20} {short:<20} ") for line in lines)


def test_arguments_come_from_a_file(mine, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("my_needy: {width: 0.25}\n")
    check([mine("gates", "Needy")], str(tmp_path / "s.yaml"))
    assert "WRONG" not in capsys.readouterr().out


def test_our_own_parts_pass(capsys):
    """One of each kind that can be made without arguments."""
    check(["gap", "lift", "stepwise", "mixed", "rloo", "ppo", "truncated", "no", "hindsight", "first_of", "front_to_back"])
    assert "WRONG" not in capsys.readouterr().out


def test_the_command_imports_the_plugin_prints_the_table_and_ends_with_the_exit_code(monkeypatch, mine, capsys):
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    mine("gates", "Open")
    every = [(kind, name, cls) for kind in registry.kinds() for name, cls in registry.parts(kind).items()]
    others = [(kind, name) for kind, name, cls in every if not cls.__module__.startswith("sdar.") and name != "my_open"]
    for kind, name in others:
        monkeypatch.delitem(registry._parts[kind], name)
    assert main(["check", "--plugin", "my_package"]) == 0
    assert re.search(r"gates +my_open +what it returns +ok", capsys.readouterr().out)
    monkeypatch.setitem(registry._parts["strategies"], "my_method", type("MyMethod", (GRPO,), {"__module__": __name__}))
    assert main(["check", "--plugin", "my_package"]) == 0, "a method needs a model, which is nothing that can be made here"
    assert re.search(r"strategies +my_method +looked at in a run only", capsys.readouterr().out)
    mine("gates", "Loud")
    assert main(["check", "--plugin", "my_package"]) == 1
    told = capsys.readouterr()
    assert re.search(r"gates +my_loud +what it returns +WRONG", told.out) and "checks of 3 parts failed" in told.err


def test_nothing_to_check_and_an_unknown_name_say_so(monkeypatch):
    for kind in registry.kinds():
        ours = {n: c for n, c in registry.parts(kind).items() if c.__module__.startswith("sdar.")}
        monkeypatch.setitem(registry._parts, kind, ours)
    with pytest.raises(ConfigError, match="there is no part to check: every registered one is ours"):
        check()
    with pytest.raises(ConfigError, match=r"no registered part is called 'gapp'\..* 'gap'"):
        check(["gapp"])
