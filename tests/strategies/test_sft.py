"""SFT: the loss is cross-entropy on the assistant's tokens, however rows are packed; passes, held-out numbers, and what is refused."""

import json
from functools import partial

import pytest
import torch
from chats import FORGETFUL, SUM, sums, written
from one_step import assert_close, double, gradient_of, one_step

from sdar.cli import main
from sdar.data import ChatModule
from sdar.errors import ConfigError, PolicyError
from sdar.lora import LoRAPolicy
from sdar.scoring import Scorer
from sdar.strategies import GRPO, SFT, BehaviorCloning
from sdar.training.checkpoints import RunCheckpoint


@pytest.fixture
def chats(small, tmp_path):
    """Makes the data of a run: so many conversations to learn from, so many held out."""

    def make(learned=7, held_out=0, rows=None, **kwargs):
        files = [written(tmp_path / "train.jsonl", *(rows or sums(learned)))]
        val = [written(tmp_path / "val.jsonl", *sums(held_out, 50))] if held_out else []
        return ChatModule(files, val, **{"tasks_per_step": 4} | kwargs)

    return make


def naive(strategy, ids, mask):
    """Log-probabilities ``[tokens]`` of the masked tokens of one row, from the model's own logits."""
    logits = strategy.model(input_ids=ids[None]).logits[0, :-1, : strategy.scorer.vocab_size].log_softmax(-1)
    return logits.gather(1, ids[1:, None])[:, 0][mask[1:].bool()]


def rows_of(batch):
    for ids, mask, attention in zip(batch.ids, batch.response_mask, batch.attention_mask, strict=True):
        length = int(attention.sum())
        yield ids[:length], mask[:length]


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_is_the_mean_over_the_assistants_tokens_of_the_step_packed_or_not(small, chats, packed):
    strategy = small.strategy(SFT, policy=double(small.policy()), packed=packed, micro_batch_tokens=60)
    seen = one_step(small, strategy, chats(rows=[{"messages": SUM}, *sums(3)]))
    assert len(seen.batch) == 4 and len(list(strategy.local_micro_batches(seen.batch))) > 1
    logp = torch.cat([naive(strategy, ids, mask) for ids, mask in rows_of(seen.batch)])
    assert seen.metrics["train/loss"] == pytest.approx(-float(logp.mean()), rel=1e-6)
    assert_close(seen.gradient, gradient_of(strategy, -logp.mean()), 1e-7)


def test_packed_rows_and_rows_with_padding_give_the_same_numbers(small, chats):
    """To the last bits of float64: sums in another order."""
    runs = [
        one_step(small, small.strategy(SFT, policy=double(small.policy()), packed=p, micro_batch_tokens=4096), chats())
        for p in (False, True)
    ]
    assert runs[0].metrics["train/loss"] == pytest.approx(runs[1].metrics["train/loss"], rel=1e-6)
    assert_close(runs[0].gradient, runs[1].gradient, 1e-10)


def test_attention_that_looks_over_the_border_of_a_row_is_refused(small, monkeypatch):
    model = small.policy().load_model()
    Scorer(1.0, (), 64).check_packing(model)
    forward = model.base_model.forward

    def across(**kwargs):
        kwargs["position_ids"] = torch.arange(kwargs["input_ids"].shape[1])[None]
        return forward(**kwargs)

    monkeypatch.setattr(model.base_model, "forward", across)
    with pytest.raises(PolicyError, match=r"a row would attend to the ones before it.* model.packed to false"):
        Scorer(1.0, (), 64).check_packing(model)


def test_epochs_see_each_conversation_once_in_orders_of_their_own_and_end_the_run(small, chats, monkeypatch):
    data, seen = chats(epochs=2), []
    strategy = small.strategy(SFT)
    monkeypatch.setattr(
        strategy, "collect", lambda batch: seen.append([t.id for t in batch.tasks]) or SFT.collect(strategy, batch)
    )
    trainer = small.fit(strategy, -1, data)
    order = [name for step in seen for name in step]
    assert [len(step) for step in seen] == [4, 4, 4, 2] and trainer.global_step == 4
    assert sorted(order[:7]) == sorted(order[7:]) == sorted(data.train_panel.task_ids) and order[:7] != order[7:]
    assert trainer.callback_metrics["train/epoch"] == 2


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_a_run_that_goes_on_ends_bit_for_bit_where_one_that_never_stopped_does(small, chats, adapters):
    def run(steps, **kwargs):
        policy = LoRAPolicy(small.policy(), rank=2, alpha=4.0) if adapters else small.policy()
        strategy = small.strategy(SFT, policy=policy)
        small.fit(strategy, steps, chats(epochs=2), **kwargs)
        return {name: p.clone() for name, p in strategy.model.named_parameters()}

    keep = {"enable_checkpointing": True, "callbacks": [RunCheckpoint(str(small.folder / "kept"))]}
    whole = run(4)
    run(3, **keep)
    resumed = run(4, ckpt_path=small.folder / "kept" / "last.ckpt")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_file_that_changed_is_not_gone_on_with(small, chats):
    small.fit(
        small.strategy(SFT), 1, chats(), enable_checkpointing=True, callbacks=[RunCheckpoint(str(small.folder / "kept"))]
    )
    with pytest.raises(Exception, match=r"panel 'train' has hash .* the checkpoint was made with"):
        small.fit(small.strategy(SFT), 2, chats(8), ckpt_path=small.folder / "kept" / "last.ckpt")


def test_held_out_conversations_are_measured_in_nats_a_token(small, chats, capsys):
    data = chats(held_out=5, val_batch=2)
    strategy = small.strategy(SFT)
    trainer = small.trainer(1, limit_val_batches=1.0)
    (numbers,) = trainer.validate(strategy, data, verbose=False)
    batch = strategy.rows([e for p in data.val_dataloader()[0] for e in strategy.collect(p)])
    with torch.no_grad():
        logp = torch.cat([naive(strategy, ids, mask) for ids, mask in rows_of(batch)])
        likeliest = [strategy.model(input_ids=ids[None]).logits[0, :-1].argmax(-1) for ids, _ in rows_of(batch)]
    hits = [(top == ids[1:])[mask[1:].bool()] for top, (ids, mask) in zip(likeliest, rows_of(batch), strict=True)]
    assert numbers["loss/held_out"] == pytest.approx(-float(logp.mean()), rel=1e-5)
    assert numbers["token_accuracy/held_out"] == pytest.approx(float(torch.cat(hits).float().mean()))
    line = json.loads((small.folder / "validation.jsonl").read_text())
    assert (
        line["conversations"] == 5
        and line["tokens"] == len(logp)
        and line["loss/held_out"] == pytest.approx(-float(logp.mean()), rel=1e-5)
    )
    assert f"validation of held_out (5 conversations, {len(logp)} tokens)" in capsys.readouterr().out


def test_a_world_is_played_beside_the_held_out_conversations(small, chats):
    world = small.data()
    data = chats(held_out=2, env=world.env, protocol=world.protocol, layout="turn", val_tasks=2, val_splits=["unseen"])
    numbers = small.trainer(1, limit_val_batches=1.0).validate(small.strategy(SFT), data, verbose=False)
    assert {name for of in numbers for name in of} >= {"loss/held_out", "success/unseen"}


def test_conversations_that_are_too_long_are_refused_or_left_out_with_a_count(small, chats):
    rows = [*sums(6), {"messages": [{"role": "user", "content": "x " * 300}, SUM[2]]}]
    with pytest.raises(
        ConfigError, match=r"1 of 7 conversations have a row of more than 100 tokens, the first at .*train.jsonl, row 7 with"
    ):
        small.fit(small.strategy(SFT), 1, chats(rows=rows, max_tokens=100))
    data = chats(rows=rows, max_tokens=100, too_long="drop", epochs=1)
    with pytest.warns(UserWarning, match=r"1 of 7 conversations .* are left out"):
        trainer = small.fit(small.strategy(SFT), -1, data)
    assert trainer.global_step == 2 and sum(len(data.step(1, n).tasks) for n in range(2)) == 6


def test_a_template_that_forgets_is_an_error_or_gives_rows(small, chats):
    rows = [{"messages": [SUM[1], {"role": "assistant", "content": "<think>So</think>2."}, *SUM[3:]]}]
    policy = small.policy()
    load = policy.load_tokenizer

    def forgetful():
        tokenizer = load()
        tokenizer.chat_template = FORGETFUL
        return tokenizer

    policy.load_tokenizer = forgetful
    before = load().chat_template
    try:
        with pytest.raises(
            ConfigError, match=r"row 1: the chat template of the fresh policy tells what stands before message 4 otherwise"
        ):
            small.fit(small.strategy(SFT, policy=policy), 1, chats(rows=rows))
        seen = one_step(small, small.strategy(SFT, policy=policy, split_rewritten=True), chats(rows=rows, tasks_per_step=1))
    finally:
        load().chat_template = before
    assert len(seen.batch) == 2


def test_who_plays_has_no_conversations_and_who_reads_them_needs_some(small, chats):
    for method in (GRPO, partial(BehaviorCloning, retriever=None)):
        with pytest.raises(
            ConfigError, match=r"data is a ChatModule, whose conversations nobody plays, and .* learns from episodes"
        ):
            small.fit(small.strategy(method), 1, chats())
    with pytest.raises(ConfigError, match=r"SFT learns from files of conversations: give `data: {class_path: ChatModule"):
        small.fit(small.strategy(SFT), 1)
    with pytest.raises(ConfigError, match=r"an optimizer step of SFT sees data.tasks_per_step conversations"):
        small.strategy(SFT, updates_per_rollout=2)
    with pytest.raises(ConfigError, match=r"data.env is not set: there is nothing to play"):
        small.trainer(1).predict(small.strategy(SFT), chats())


def test_what_is_held_out_and_learned_all_the_same_is_told(chats, tmp_path):
    file = written(tmp_path / "same.jsonl", *sums(3))
    with pytest.warns(UserWarning, match=r"1 of the 2 conversations of data.val_files are in data.files, too"):
        ChatModule([file], [written(tmp_path / "val.jsonl", *sums(2, 2))])
    with pytest.raises(ConfigError, match=r"data.files is empty"):
        ChatModule([])


def test_a_broken_row_ends_the_command_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "c.jsonl", *sums(1), {"messages": [SUM[1]]})
    policy = ["--model.policy", "FreshPolicy"]
    assert main(["fit", "--model", "SFT", *policy, "--data", "ChatModule", "--data.files", f"[{file}]"]) == 2
    assert "c.jsonl, row 2 ends with the user" in capsys.readouterr().err
