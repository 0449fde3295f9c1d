"""Any number of ranks, any strategy: the same losses, gradient norms, weights, teacher and skills as one process.

Rounds are ragged: with four ranks one plays no episode, one an episode of a single turn, two the longest; optimizer steps have
three to five micro-batches of one or two rows. Checkpoints are exact with as many ranks, the same run with others, and give a
policy that plain transformers loads. (One file, so that one worker makes the runs.)
"""

import math

import pytest
import torch
from launch import finish, start
from rank_results import HALVES, KINDS, SLOW, WORLDS, assert_same, trained
from tiny_policy import TinyPolicy
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar.cli.trainer import read_run

RUNS = [(world, kind) for world in (2, 4) for kind in WORLDS[world] if kind not in (*HALVES, *SLOW)]


@pytest.mark.parametrize(("world", "kind"), RUNS)
def test_ranks_end_where_one_process_ends(straight, world, kind):
    payload = kind.partition("-")[2]
    one, many = straight(1)[f"one-{payload}" if payload else "one"], straight(world)[kind]
    assert (
        len(one["losses"]) == 2
        and max(map(abs, one["losses"])) > 1e-3
        and min(one["norms"]) > (1e-2 if payload != "lora" else 1e-3)
    )
    torch.testing.assert_close(many["losses"], one["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many["norms"], one["norms"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many["stored"], many["losses"], rtol=0, atol=1e-5)  # the episodes have every rank's tokens
    assert_same(one, many, atol=1e-5)
    assert many["validated"] == one["validated"]  # the same answers to the same tasks
    assert [len(played) for played in one["validated"]] == [6]
    moved = [(one["weights"][name] - one["teacher"][name]).abs().max() for name in one["weights"]]
    assert max(moved) > 1e-3  # it learned, and the average lags behind


@pytest.mark.parametrize(("kind", "dtype"), HALVES.items())
def test_in_bfloat16_a_run_stays_near_that_of_full_precision(straight, kind, dtype):
    one, half = straight(1)["one"], straight(2)[kind]
    torch.testing.assert_close(half["losses"], one["losses"], rtol=0, atol=1e-2)
    assert all(values.dtype == dtype for values in half["weights"].values())
    assert 0 < max((one["weights"][name] - half["weights"][name]).abs().max() for name in one["weights"]) < 0.05


@pytest.mark.parametrize("kind", SLOW)
def test_a_teacher_in_bfloat16_moves_by_less_than_it_can_hold(straight, kind):
    """One process has its teacher in float32; two ranks have it in bfloat16, and a float32 average beside it."""
    one, half = straight(1)["one-slow"]["teacher"], straight(2)[kind]
    first = TinyPolicy().load_model().state_dict()
    averages = {name.removeprefix("copy."): values for name, values in half["averages"].items()}
    for name, values in averages.items():
        assert torch.equal(half["teacher"][name], values.bfloat16())
        if torch.equal(half["weights"][name], first[name].bfloat16()):
            continue  # the student's own could not move: norms begin at 1
        expected, moved = one[name] - first[name], values - first[name].bfloat16()
        assert torch.corrcoef(torch.stack([expected.flatten(), moved.flatten()]))[0, 1] > 0.9
        assert (moved != 0).float().mean() > 0.9


@pytest.mark.parametrize("world", [2, 4])
def test_under_fsdp2_a_rank_keeps_its_part_of_weights_and_optimizer_states(straight, world):
    whole, part = straight(world)["ddp"]["held"], straight(world)["fsdp2"]["held"]
    assert whole / world <= part < 1.02 * whole / world


def test_under_fsdp2_a_gradient_that_is_no_number_on_one_rank_is_seen_by_the_others(straight):
    assert math.isnan(straight(4)["fsdp2"]["poisoned"])  # and took no step, or the weights would not be those of one process


def test_under_fsdp2_layers_are_given_up_after_their_forward_pass_unless_they_shall_stay(straight):
    assert straight(2)["fsdp2"]["stays"] == {False} and straight(2)["kept2-untied"]["stays"] == {True}


# ------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="session")
def resumed(halfway, tmp_path_factory):
    """Each kind, gone on from its own checkpoint."""
    return trained(2, [*KINDS, "sharded3", *SLOW], tmp_path_factory.mktemp("resumed"), RESUME=f"{halfway}/{{kind}}.ckpt")


@pytest.mark.parametrize("kind", [*KINDS, "sharded3", *SLOW])
def test_as_many_ranks_go_on_bit_for_bit(straight, resumed, kind):
    whole, part = straight(2)[kind.replace("sharded", "zero")], resumed[kind]
    assert_same(whole, part)
    assert part["losses"] == whole["losses"][1:] and part["norms"] == whole["norms"][1:]


@pytest.mark.parametrize(("world", "kinds"), [(1, ["one"]), (4, ["zero3", "zero1", "ddp", "fsdp2"])])
def test_any_number_of_ranks_and_any_strategy_goes_on_and_says_so(straight, halfway, tmp_path, world, kinds):
    found = trained(world, kinds, tmp_path, RESUME=f"{halfway}/zero3.ckpt")
    for kind in kinds:
        assert_same(straight(1)["one"], found[kind], atol=1e-5)
    assert f"written by 2 rank(s) with ZeROStrategy; {world} with" in found["said"][0]
    assert all("written by 2 rank(s)" not in said for said in found["said"][1:])


def test_a_file_of_one_strategy_is_that_of_every_other(halfway):
    files = {kind: torch.load(halfway / f"{kind}.ckpt", weights_only=True) for kind in KINDS}
    for kind, file in files.items():
        assert file["state_dict"].keys() == files["ddp"]["state_dict"].keys(), kind
        for name, values in files["ddp"]["state_dict"].items():
            torch.testing.assert_close(file["state_dict"][name], values, rtol=0, atol=1e-5)
        [ours], [its] = files["ddp"]["optimizer_states"], file["optimizer_states"]
        assert its["param_groups"][0]["params"] == ours["param_groups"][0]["params"]
        assert its["param_groups"][0]["lr"] == ours["param_groups"][0]["lr"]
        for number, values in ours["state"].items():
            assert its["state"][number]["step"] == values["step"] == 2
            for key in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(its["state"][number][key], values[key], rtol=1e-4, atol=1e-7)


def test_parts_of_ranks_are_replaced_whole_and_read_by_as_many_only(halfway, tmp_path):
    path = halfway / "sharded3.ckpt"
    assert path.is_symlink() and [p.name for p in halfway.glob("sharded3.ckpt.*")] == ["sharded3.ckpt.2"]
    whole = torch.load(halfway / "zero3.ckpt", weights_only=True)["state_dict"]
    parts = read_run(str(path))[0]
    trained_names = [name for name in whole if name.startswith("model.")]
    assert trained_names and all(torch.equal(parts[name], whole[name]) for name in trained_names)
    ranks = start(1, "rank_run.py", tmp_path / "out", 10, "sharded3", folder=tmp_path, RESUME=str(path))
    assert finish(ranks, 200) == [1]
    assert "was written in parts by 2 ranks, and 1 would go on from it" in ranks[0].said


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_policy_is_loaded_by_plain_transformers(halfway, kind):
    stored = torch.load(halfway / f"out.{kind}")["weights"]
    folder = f"{halfway}/out.{kind}.policy"
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, values in model.state_dict().items():
        assert torch.equal(values, stored[name]), name
    twin = AutoModelForCausalLM.from_config(model.config)
    twin.load_state_dict(stored)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("You see a mug.")["input_ids"]])
    assert torch.equal(model.eval()(ids).logits, twin.eval()(ids).logits)
