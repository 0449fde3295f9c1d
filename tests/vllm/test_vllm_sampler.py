"""vLLM itself, in this process: what `TorchSampler` samples, token by token. Run with `make test-vllm`."""

import copy
import json
import random

import numpy
import pytest
import torch
from engines import CONTEXT, DRAWS, NEW, PROMPTS, VOCABULARY, in_process
from sampled import assert_same, told

from sdar.errors import ContextOverflowError, EngineFault, PolicyError
from sdar.parts import SampleKey
from sdar.samplers import VLLMSampler
from sdar.scoring import Scorer
from sdar.serving.engine import Abandoned
from sdar.serving.protocol import SampleRequest, Sampling

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def model(policy):
    return policy.load_model().eval()


@pytest.fixture(scope="module")
def other_model(policy):
    model = policy.load_model().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * weight.std().nan_to_num() * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def first(chat):
    """The sampler whose engine all others share."""
    sampler = VLLMSampler(max_new_tokens=NEW, dtype="float32", eager=True)
    sampler.bind(chat.tokenizer, chat.stop_ids, CONTEXT)
    random.seed(3)
    numpy.random.seed(3)
    torch.manual_seed(3)
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert sampler.engine.version is None
    assert states == (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with pytest.raises(EngineFault, match="called before `load`"):
        sampler.sample(None, PROMPTS, DRAWS)
    yield sampler
    sampler.close()


@pytest.fixture
def sampler_of(first, chat, model):
    def make(network=model, version="0@0.0", **options):
        sampler = copy.copy(first)  # as continuations are sampled: another density, the same engine
        sampler.__dict__ |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "forbid": None} | options
        sampler.bind(chat.tokenizer, chat.stop_ids, CONTEXT)
        sampler.load(version, network.state_dict().items())
        return sampler

    return make


OPTIONS = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.8},
    "nothing forbidden": {"forbid": []},
    "everything": {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "forbid": ["<0x41>", "<0x42>", "<|pad|>"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_vllm_samples_what_torch_samples_turn_by_turn(sampler_of, chat, model, options):
    there, here = sampler_of(**options), in_process(chat, **options)
    prompts, lengths = PROMPTS, set()
    for turn in range(3):
        draws = [SampleKey(0, d.task, 0, turn) for d in DRAWS[: len(prompts)]]
        out = there.sample(None, prompts, draws)
        assert_same(out, here.sample(model, prompts, draws))
        lengths |= {len(c.ids) for c in out}
        prompts = [p + c.ids + told(turn, 4, VOCABULARY) for p, c in zip(prompts, out, strict=True)][: 9 - turn]
    assert len(lengths) > 2  # some stop, some do not


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_trainers_scorer_confirms_vllms_density(sampler_of, model, options):
    sampler = sampler_of(**options)
    scorer = Scorer(sampler.temperature, sampler.forbidden_ids, sampler.vocab_size)
    kept_away = 0.0
    for prompt, completion in zip(PROMPTS, sampler.sample(None, PROMPTS, DRAWS), strict=True):
        ids = torch.tensor([prompt + completion.ids])
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[0, len(prompt) :] = True
        with torch.no_grad():
            stats = scorer(model, ids, torch.ones_like(ids), where)
        logp, allowed = stats.logp[where], stats.allowed_logmass[where]
        behaviour, kept = torch.tensor(completion.behaviour_logp), torch.tensor(completion.kept_logmass)
        assert torch.allclose(logp + allowed, behaviour + kept, atol=1e-4)
        if not {"top_k", "top_p"} & set(options) and sampler.temperature:
            assert torch.allclose(logp, behaviour, atol=1e-4)
        kept_away += float(-kept.sum())
    assert (kept_away > 1e-3) == (options != {"forbid": []})  # something was kept away, so the comparison means something


def test_pushed_weights_are_seen_and_keys_and_values_of_the_old_ones_are_not(sampler_of, chat, model, other_model):
    long = [told(50 + i, 120, VOCABULARY) for i in range(4)]  # several blocks of the prefix cache each
    seen = []
    for version, network in (("0@1.1", model), ("0@2.2", other_model), ("0@3.3", model)):
        out = sampler_of(network, version).sample(None, long, DRAWS[:4])
        assert_same(out, in_process(chat).sample(network, long, DRAWS[:4]))
        seen.append([c.ids for c in out])
    assert seen[0] == seen[2] != seen[1]


def test_the_prefix_of_a_turn_before_is_not_read_again(sampler_of, model):
    sampler = sampler_of()
    prompt = told(77, 150, VOCABULARY)
    sampler.metrics()
    out = sampler.sample(None, [prompt], DRAWS[:1])[0]
    assert sampler.metrics() == {"rollout/cached_share": 0.0}
    onwards = prompt + out.ids + told(78, 4, VOCABULARY)
    sampler.sample(None, [onwards], [SampleKey(0, "task-0", 0, 1)])
    assert sampler.metrics()["rollout/cached_share"] >= 128 / len(onwards)
    sampler.load("0@7.7", model.state_dict().items())
    sampler.sample(None, [onwards], [SampleKey(0, "task-0", 0, 1)])
    assert sampler.metrics() == {"rollout/cached_share": 0.0}


def test_a_tied_head_may_be_sent_or_left_out(first, chat, other_model, sampler_of):
    sampler = sampler_of()
    assert "lm_head.weight" in other_model.state_dict() and "lm_head.weight" not in dict(other_model.named_parameters())
    sampler.load("0@4.4", ((n, p) for n, p in other_model.named_parameters()))
    assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(chat).sample(other_model, PROMPTS, DRAWS))


def test_weights_of_another_model_are_refused_and_the_right_ones_taken_afterwards(sampler_of, chat, model):
    sampler = sampler_of()
    weights = dict(model.state_dict())
    for changed, words in (
        (
            weights | {"model.norm.weight": torch.ones(7)},
            r"have model.norm.weight of shape \(7,\), the engine's Qwen3ForCausalLM",
        ),
        (
            {n: t for n, t in weights.items() if "layers.2.mlp.up" not in n},
            "lack model.layers.2.mlp.up_proj.weight and 0 more of the",
        ),
        (weights | {"model.extra": torch.ones(1)}, "no such tensor"),
    ):
        with pytest.raises(PolicyError, match=words):
            sampler.load("0@9.9", changed.items())
        with pytest.raises(EngineFault, match="before `load`"):  # half of each: nothing is sampled from that
            sampler.sample(None, PROMPTS, DRAWS)
    sampler.load("0@9.9", weights.items())
    assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(chat).sample(model, PROMPTS, DRAWS))


@pytest.mark.parametrize("loads", [True, False])
def test_it_sleeps_after_a_rollout_and_wakes_for_weights_and_for_prompts(sampler_of, chat, model, other_model, loads):
    sampler, network = sampler_of(version="0@5.5"), model
    sampler.sample(None, PROMPTS, DRAWS)
    sampler.release()
    assert sampler.engine._asleep == {"weights", "kv_cache"}
    sampler.release()
    if loads:
        network = other_model
        sampler.load("0@6.6", network.state_dict().items())
        assert sampler.engine._asleep == {"kv_cache"}
    assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(chat).sample(network, PROMPTS, DRAWS))
    assert sampler.engine._asleep == set()


def test_a_request_that_nobody_waits_for_is_dropped_and_the_others_go_on(first, sampler_of, chat, model):
    engine = sampler_of().engine
    sampling = Sampling(1.0, 0, 1.0, first.forbidden_ids, tuple(first.stop_ids), first.vocab_size, NEW)
    request = SampleRequest(engine.version, "", 0, 1.0, sampling, tuple(map(tuple, PROMPTS)), tuple(DRAWS))
    wanted = [True]
    dropped, kept = engine.start(request, lambda: wanted[0]), engine.start(request)
    assert engine.step() == []  # both are under way together
    wanted[0] = False
    outcomes = {}
    while len(outcomes) < 2:
        outcomes |= dict(engine.step())
    assert isinstance(outcomes[dropped], Abandoned)
    assert_same(outcomes[kept], in_process(chat).sample(model, PROMPTS, DRAWS))
    assert not engine.llm.llm_engine.has_unfinished_requests()


def test_a_session_takes_up_prompts_while_it_answers_and_leaves_none_behind(sampler_of, chat, model):
    sampler, found = sampler_of(), {}
    session = sampler.session(None)
    for number, (prompt, key) in enumerate(zip(PROMPTS, DRAWS, strict=True)):
        session.submit(number, prompt, key, NEW)
        found |= dict(session.step())
    while session.busy:
        found |= dict(session.step())
    assert_same([found[number] for number in range(len(PROMPTS))], in_process(chat).sample(model, PROMPTS, DRAWS))
    session.submit(0, PROMPTS[0], DRAWS[0], NEW)
    session.close()
    assert not sampler.engine.llm.llm_engine.has_unfinished_requests() and not sampler.engine._jobs


def test_what_does_not_fit_is_said(sampler_of):
    with pytest.raises(ContextOverflowError, match="the prompt of task t has 250 tokens and may get 12 more"):
        sampler_of().sample(None, [told(0, 250, VOCABULARY)], [SampleKey(0, "t", 0, 0)])
    assert sampler_of().sample(None, [], []) == []


@pytest.mark.parametrize("method", ["SDAR", "GRPO"])
def test_the_quickstart_trains_with_vllm(tmp_path, method):
    """Twenty iterations: what vLLM says it sampled from is what the trainer scores, after every update."""
    import csv
    import os
    import subprocess
    import sys

    settings = {
        "model.sampler": json.dumps(
            {"class_path": "VLLMSampler", "init_args": {"max_new_tokens": 12, "dtype": "float32", "eager": True}}
        ),
        "trainer.max_steps": "40",
        "trainer.num_sanity_val_steps": "0",
        "trainer.limit_val_batches": "0",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": str(tmp_path),
        "data.tasks_per_step": "4",
    }
    command = [sys.executable, "-c", "import sys; from sdar.cli import main; sys.exit(main())", "fit"]
    command += (
        ["-c", "conf/quickstart/sdar.yaml", "--model", method] if method != "SDAR" else ["-c", "conf/quickstart/sdar.yaml"]
    )
    command += [word for key, value in settings.items() for word in (f"--{key}", value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    [table] = tmp_path.glob("version_*/metrics.csv")
    rows = [row for row in csv.DictReader(table.open()) if row["rollout/mismatch_max"]]
    assert len(rows) == 20
    assert all(float(row["rollout/mismatch_max"]) < 1e-3 for row in rows)
    assert all(float(row["rollout/mismatch"]) < 1e-4 for row in rows)


RANK = """
import json, sys, torch
from torch import distributed
from sdar.rollout.chat import ChatFormat
from sdar.parts import SampleKey
from sdar.policies import PretrainedPolicy
from sdar.samplers import TorchSampler, VLLMSampler
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
policy = PretrainedPolicy("conf/quickstart/policy")
chat, model = ChatFormat(policy.load_tokenizer(), {}, "quickstart"), policy.load_model().eval()
there, here = VLLMSampler(max_new_tokens=8, dtype="float32", eager=True), TorchSampler(max_new_tokens=8)
for sampler in (there, here):
    sampler.bind(chat.tokenizer, chat.stop_ids, 128)
for version in range(2):
    there.load(f"0@{version}.0", model.state_dict().items())
    for turn in range(1 + rank):  # one has more to do than the other
        prompts = [list(range(20 + i, 60 + 2 * i)) for i in range(3 + rank)]
        draws = [SampleKey(0, f"{rank}/{i}", version, turn) for i in range(3 + rank)]
        assert [c.ids for c in there.sample(None, prompts, draws)] == [c.ids for c in here.sample(model, prompts, draws)]
    there.release()
total = torch.ones(1)
distributed.all_reduce(total)  # the run's own group still works
print("same", int(total), flush=True)
there.close()
distributed.barrier()
"""


def test_each_of_two_ranks_has_an_engine_of_its_own(tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(r), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    try:
        outs = [process.communicate(timeout=300) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for out, err in outs:
        assert "same 2" in out, err[-3000:]
