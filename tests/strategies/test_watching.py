"""`sdar play` with a policy: each turn is shown as it is taken, with what the teacher thinks of each token."""

import re

import pytest

from sdar.cli.trainer import AgentTrainer
from sdar.retrievers import FactRetriever
from sdar.strategies import GRPO, SDAR


@pytest.mark.parametrize("method", [SDAR, GRPO])
def test_a_policy_plays_while_one_watches_and_nothing_is_left(small, capsys, method):
    strategy = small.strategy(method, **({"retriever": FactRetriever()} if method is SDAR else {}))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    AgentTrainer(accelerator="cpu", default_root_dir=small.folder, **quiet).play(strategy, small.data(), policy=True)
    said = capsys.readouterr().out
    assert said.startswith(f"{method.__name__}'s policy ") and re.search(r"outcome: (success|failure), reward ", said)
    turns = re.findall(r"^turn (\d)", said, re.MULTILINE)
    assert turns == [str(n) for n in range(len(turns))] and turns
    assert all(c.isprintable() or c == "\n" for c in said)
    if method is SDAR:
        assert len(re.findall(r"token by token \(gap: mean [+-]", said)) == len(turns)
        assert said.count("the teacher's own prompt:") == 1 and re.search(r"\[[+-]\d+\.\d\d\]", said)
    else:
        assert "There is no teacher here" in said and "|" in said
    assert not [*small.folder.iterdir()]
