"""What parts and the trainer refuse is said with the key that was written."""

import re
from pathlib import Path

import pytest
from toy_command import model, told, write


def test_a_refused_setting_is_told_with_its_key_and_without_a_traceback(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.gate.slope", "0")
    assert code == 2
    assert "error: model.gate.slope is 0: nothing would pass. Use 1.\n" in err
    assert "Traceback" not in err and not Path("runs").exists()


def test_the_key_of_a_refused_setting_is_found_in_optional_and_listed_parts(sdar) -> None:
    wrong = {"class_path": "NestedToyGate", "init_args": {"inner": {"class_path": "ToyGate", "init_args": {"slope": 0}}}}
    write("wrong.yaml", model=model(gate="constant", gates=["entropy", wrong]))
    code, _, err = sdar("fit", "-c", "base.yaml", "-c", "wrong.yaml")
    assert code == 2
    assert "error: model.gates[1].inner.slope is 0" in err


def test_a_setting_that_the_tasks_refuse(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--data.group_size", "0")
    assert code == 2
    assert "error: data.group_size is 0: it must be at least 1.\n" in err
    code, _, err = sdar("fit", "-c", "base.yaml", "--data.val_splits", "[unsen]")
    assert code == 2
    assert "error: data.val_splits names 'unsen', with data.val_tasks 1: household has no split 'unsen'. Did" in err


RLSD = ["--model", "RLSD", "--model.policy", "PretrainedPolicy", "--model.policy.path", "x"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.lam", "2.0"], "model.lam is 2.0: it is the share of the advantage that is scaled"),
        (["--model.evidence_clip", "2"], "model.evidence_clip is 2.0: the ratio is kept in [1 - clip, 1 + clip]"),
        (["--model.sampler.top_p", "3"], "model.sampler.top_p is 3.0: it is a probability mass"),
        (["--model.val_sampler", "TorchSampler", "--model.val_sampler.top_p", "3"], "model.val_sampler.top_p is 3.0: it is"),
        (["--model.kl_clamp", ".inf"], "model.kl_clamp is inf, but it must be a finite number."),
    ],
)
def test_a_refused_setting_has_the_key_that_was_written(sdar, args: list[str], message: str) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", *RLSD, *args)
    assert code == 2 and told(message, err)


def test_the_traceback_is_shown_on_request(sdar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDAR_TRACEBACK", "1")
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.gate.slope", "0")
    assert code == 2
    assert "Traceback" in err and "error: model.gate.slope is 0" in err


def test_an_unforeseen_error_of_a_part_has_key_and_traceback(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.retriever", "ToyRetriever", "--model.retriever.bank", "gone")
    assert code == 1
    assert "Traceback" in err and err.endswith("error: model.retriever: FileNotFoundError: gone\n")


def test_a_setting_that_the_trainer_refuses(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--trainer.limit_train_batches", "-3")
    assert code == 2
    assert re.search(r"error: trainer: You have passed invalid value -3(\.0)? for limit_train_batches", err)


def test_a_configuration_error_before_the_first_iteration_is_a_mistake(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model", "LostToyMethod")
    assert code == 2
    assert "error: model: nothing to learn from.\n" in err and "last checkpoint" not in err


@pytest.mark.parametrize("fault", ["world", "config"])
def test_an_error_while_training_says_where_the_last_checkpoint_is(sdar, fault: str) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.fail_at", "1", "--model.fault", fault)
    assert code == 1
    last = Path("runs/version_0/checkpoints/last.ckpt")
    assert f"error: model: it broke\nlast checkpoint: {last} (continue with the same command and --ckpt_path last)\n" in err
    assert "Traceback" not in err and last.exists()


def test_an_unforeseen_error_while_training_keeps_its_traceback(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.fail_at", "1", "--model.fault", "bug")
    assert code == 1
    assert "Traceback" in err and "error: model: ZeroDivisionError: it broke\nlast checkpoint: " in err
