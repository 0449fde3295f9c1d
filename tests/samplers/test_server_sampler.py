"""The sampler against servers in other processes: the same tokens as in this one, whatever happens to a server."""

import copy
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from launch import Rank, Script, finish
from policy_servers import Meddler, dripping, policy_servers
from sampled import assert_same, told

from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.errors import ConfigError, ContextOverflowError, EngineFault, PolicyError
from sdar.parts import SampleKey
from sdar.rollout import LocalPool, Request, Rollout
from sdar.rollout.chat import ChatFormat
from sdar.samplers import ServerSampler, TorchSampler
from sdar.serving.weights import remove_orphans
from sdar.teachers import SkillView


@pytest.fixture(scope="module")
def model(network_of):
    return network_of(1)


@pytest.fixture(scope="module")
def pair(tiny_policy_dir):
    with policy_servers(tiny_policy_dir, 2) as servers:
        yield servers


@pytest.fixture
def servers(pair):
    """Both at work, whatever was done to them before."""
    for server in pair:
        if server.process.poll() is not None:
            server.start()
    return [server.wait() for server in pair]


@pytest.fixture
def sampler_of(tokenizer, tmp_path):
    made = []

    def make(urls, model=None, **options):
        settings = {"max_new_tokens": 6, "pause": 0.05, "outage": 60.0, "weights_folder": str(tmp_path)}
        sampler = ServerSampler(urls, **settings | options)
        sampler.bind(tokenizer, [tokenizer.eos_token_id], 512)
        if model is not None:
            sampler.load("0@0.0", model.state_dict().items())
        made.append(sampler)
        return sampler

    yield make
    for sampler in made:
        sampler.close()


def in_process(tokenizer, **options):
    sampler = TorchSampler(**{"max_new_tokens": 6, **options})
    sampler.bind(tokenizer, [tokenizer.eos_token_id], 512)
    return sampler


PROMPTS = [told(i, 3 + i) for i in range(8)]
DRAWS = [SampleKey(0, f"task-{i}", 0, 0) for i in range(8)]


def samples(server):
    return server.health()["counts"].get("requests/sample", 0)


# ------------------------------------------------------------------ the same as in one process


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"top_p": 0.7}, {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "forbid": ["<0x41>", "<0x42>"]}],
    ids=["plain", "greedy", "top-p", "everything"],
)
def test_two_servers_sample_what_one_process_samples_turn_by_turn(servers, sampler_of, tokenizer, model, options):
    there, here = sampler_of([s.url for s in servers], model, **options), in_process(tokenizer, **options)
    before = [samples(s) for s in servers]
    prompts = PROMPTS
    for turn in range(3):
        draws = [SampleKey(0, d.task, 0, turn) for d in DRAWS[: len(prompts)]]
        out = there.sample(None, prompts, draws)
        assert_same(out, here.sample(model, prompts, draws))
        prompts = [p + c.ids + told(turn, 3) for p, c in zip(prompts, out, strict=True)]
        prompts = prompts[: 7 - turn]  # episodes end
    assert [samples(s) - b for s, b in zip(servers, before, strict=True)] == [
        3,
        3,
    ]  # both have worked, each with its own episodes
    assert there.metrics().keys() >= {"rollout/retries", "rollout/replica_failures", "rollout/stale_replicas"}


def test_an_episode_stays_with_the_server_that_has_read_it(servers, sampler_of, model):
    sampler = sampler_of([s.url for s in servers], model)
    sampler.sample(None, PROMPTS, DRAWS)
    homes = dict(sampler._assigned)
    assert sorted(homes.values()).count(servers[0].url) == 4
    sampler.sample(None, PROMPTS[::2], DRAWS[::2])
    assert sampler._assigned == homes
    other = copy.copy(sampler)
    other.reset()
    assert other._assigned == {} and sampler._assigned == homes


def test_pushed_weights_sample_from_then_on_and_no_file_is_left_of_the_old(
    servers, sampler_of, tokenizer, network_of, tmp_path
):
    sampler, here = sampler_of([s.url for s in servers]), in_process(tokenizer)
    seen = []
    for step in range(3):
        network = network_of(step)
        sampler.load(f"0@{step}.{step}", network.state_dict().items())
        sampler.reset()
        here.reset()
        out = sampler.sample(None, PROMPTS, DRAWS)
        assert_same(out, here.sample(network, PROMPTS, DRAWS))
        seen.append([c.ids for c in out])
        [folder] = tmp_path.iterdir()
        [version] = folder.iterdir()
        assert version.name.endswith(f".0@{step}.{step}") and [f.name for f in version.iterdir()] == ["00000.safetensors"]
        assert {s.health()["version"] for s in servers} == {version.name}
    assert seen[0] != seen[1] != seen[2]
    loads = [s.health()["counts"]["loads"] for s in servers]
    sampler.load("0@2.2", iter(taken := CountedWeights(network)))
    assert taken.count == len(network.state_dict())  # gathered by all ranks, also where nobody needs them
    assert [s.health()["counts"]["loads"] for s in servers] == loads
    sampler.close()
    assert list(tmp_path.iterdir()) == []


class CountedWeights:
    def __init__(self, network):
        self.network, self.count = network, 0

    def __iter__(self):
        for item in self.network.state_dict().items():
            self.count += 1
            yield item


def test_two_runs_with_versions_of_one_name_do_not_sample_from_each_others_weights(servers, sampler_of, tokenizer, network_of):
    urls = [s.url for s in servers]
    ours, theirs = sampler_of(urls, network_of(1)), sampler_of(urls, network_of(2))
    for sampler, seed in ((ours, 1), (theirs, 2), (ours, 1)):
        assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(tokenizer).sample(network_of(seed), PROMPTS, DRAWS))
    assert ours.metrics()["rollout/stale_replicas"] == 4 and theirs.metrics()["rollout/stale_replicas"] == 2


RANK = """
import sys, json, torch
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer
from sdar.parts import SampleKey
from sdar.samplers import ServerSampler
from sdar.distributed.communicator import TorchCommunicator
rank, store, folder, weights, urls = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
tokenizer = AutoTokenizer.from_pretrained(folder)
sampler = ServerSampler(urls, max_new_tokens=6, pause=0.05, weights_folder=weights)
sampler.ranks = TorchCommunicator(60.0)
sampler.bind(tokenizer, [tokenizer.eos_token_id], 512)
state = torch.load(f"{weights}/state.pt")
taken = []
def gathered():
    for name, tensor in state.items():
        whole = tensor.clone() if rank == 0 else torch.zeros_like(tensor)
        distributed.broadcast(whole, 0)  # hangs unless both ranks take every tensor
        taken.append(name)
        yield name, whole
sampler.load("0@0.0", gathered())
assert len(taken) == len(state)
prompts, draws = json.load(open(f"{weights}/told.json"))
mine = slice(rank, None, 2)
out = sampler.sample(None, prompts[mine], [SampleKey(*d) for d in draws[mine]])
print(json.dumps([c.ids for c in out]), flush=True)
distributed.barrier()
sampler.close()
sampler.ranks.close()
"""


def test_each_of_two_ranks_is_a_client_and_the_first_one_writes_the_weights(
    servers, tokenizer, model, tiny_policy_dir, tmp_path
):
    torch.save(model.state_dict(), tmp_path / "state.pt")
    (tmp_path / "told.json").write_text(json.dumps([PROMPTS, [[d.seed, d.task, d.attempt, d.turn] for d in DRAWS]]))
    arguments = [str(tmp_path / "store"), str(tiny_policy_dir), str(tmp_path), *(s.url for s in servers)]
    logs = [tmp_path / f"rank.{r}.log" for r in range(2)]
    ranks = [Rank(Script(RANK, [str(r), *arguments], dict(os.environ), logs[r]), logs[r]) for r in range(2)]
    assert finish(ranks, 120) == [0, 0], [rank.said[-2000:] for rank in ranks]
    outs = [next(line for line in rank.said.splitlines() if line.startswith("[[")) for rank in ranks]
    wanted = [c.ids for c in in_process(tokenizer).sample(model, PROMPTS, DRAWS)]
    assert [json.loads(out) for out in outs] == [wanted[0::2], wanted[1::2]]


# ------------------------------------------------------------------ failures


def test_a_server_killed_during_a_rollout_costs_no_episode_and_comes_back(servers, sampler_of, tokenizer, model):
    env = HouseholdEnv(world=5, receptacles=6, distractors=2, horizon=4)
    chat = ChatFormat(tokenizer, {}, "tiny")
    requests = [Request(env.task(t), a) for t in env.task_ids("train", 3, 0) for a in range(2)]

    def play(sampler, network):
        rollout = Rollout(LocalPool(env), CompactProtocol(), chat, sampler, SkillView(), "trajectory", horizon=4, seed=3)
        return rollout(network, requests)

    sampler = sampler_of([s.url for s in servers], model)
    attempt, asked = sampler._fleet.attempt, []

    def with_a_death(replica, request, abort):
        asked.append((replica.url, request.draws[0].turn))
        if asked.count((servers[0].url, 1)) == 1 and asked[-1] == (servers[0].url, 1):  # it is under way, and never answered
            servers[0].freeze()
            threading.Timer(0.3, servers[0].kill).start()
        return attempt(replica, request, abort)

    sampler._fleet.attempt = with_a_death
    episodes = play(sampler, None)
    assert [[t.response_ids for t in e.turns] for e in episodes] == [
        [t.response_ids for t in e.turns] for e in play(in_process(tokenizer), model)
    ]
    assert {url for url, turn in asked if turn == 3} == {servers[1].url} and all(len(e.turns) == 4 for e in episodes)
    counted = sampler.metrics()
    assert counted["rollout/failed/connection"] >= 1 and counted["rollout/retries"] >= 1
    assert counted["rollout/replica_failures"] == counted["rollout/failed/connection"]

    servers[0].start()
    servers[0].wait()
    deadline = time.monotonic() + 30
    while samples(servers[0]) == 0 and time.monotonic() < deadline:  # its pause may last a little longer
        sampler.reset()
        out = sampler.sample(None, PROMPTS, DRAWS)
    assert_same(out, in_process(tokenizer).sample(model, PROMPTS, DRAWS))
    assert sampler.metrics()["rollout/stale_replicas"] == 1  # it was told to read the weights, and only then asked
    assert servers[0].health()["version"] == servers[1].health()["version"]


def status(code, body=b"{}"):
    return lambda handler, hand_on: handler.answer(code, body)


def malformed(handler, hand_on):
    handler.answer(200, hand_on()[1][:-20])


def one_too_few(handler, hand_on):
    answer = json.loads(hand_on()[1])
    answer["completions"].pop()
    handler.answer(200, json.dumps(answer).encode())


def cut_off(handler, hand_on):
    _, body = hand_on()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) + 100))
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True


def silent(handler, hand_on):
    time.sleep(2)


FAULTS = {
    "status": status(500, b'{"error": "CUDA out of memory"}'),
    "malformed": malformed,
    "malformed (number)": one_too_few,
    "connection": cut_off,
    "timeout": silent,
    "slow": dripping,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_answer_is_counted_and_asked_for_again(servers, sampler_of, tokenizer, model, kind):
    meddler = Meddler(servers[0].url)
    try:
        sampler = sampler_of([meddler.url], model, timeout=1.0)
        meddler.faults = [FAULTS[kind]] * 2
        out = sampler.sample(None, PROMPTS, DRAWS)
    finally:
        meddler.close()
    assert_same(out, in_process(tokenizer).sample(model, PROMPTS, DRAWS))
    counted = sampler.metrics()
    assert (
        counted[f"rollout/failed/{kind.split()[0]}"] == counted["rollout/replica_failures"] == counted["rollout/retries"] == 2
    )
    assert sampler.metrics()["rollout/retries"] == 0  # counted once


def test_a_slow_server_is_waited_for_within_the_deadline(servers, sampler_of, tokenizer, model):
    meddler = Meddler(servers[0].url)
    try:
        sampler = sampler_of([meddler.url], model, timeout=20.0)
        meddler.faults = [lambda handler, hand_on: (time.sleep(1), handler.answer(*hand_on()))]
        assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(tokenizer).sample(model, PROMPTS, DRAWS))
    finally:
        meddler.close()
    assert sampler.metrics()["rollout/replica_failures"] == 0


def test_while_one_server_fails_the_other_one_does_its_work(servers, sampler_of, tokenizer, model):
    meddler = Meddler(servers[0].url)
    try:
        sampler = sampler_of([meddler.url, servers[1].url], model, pause=30.0)
        meddler.faults = [FAULTS["status"]]
        begun = time.monotonic()
        assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(tokenizer).sample(model, PROMPTS, DRAWS))
        assert time.monotonic() - begun < 10  # nobody waited for the pause
    finally:
        meddler.close()
    assert set(sampler._assigned.values()) == {servers[1].url}


def test_patience_ends(servers, sampler_of, model):
    meddler = Meddler(servers[0].url)
    try:
        sampler = sampler_of([meddler.url], model, retries=1)
        meddler.faults = [FAULTS["status"]] * 2
        words = r"8 responses were asked for 2 times in vain; the last time: .* answered 500: CUDA out of memory. Look at"
        with pytest.raises(EngineFault, match=words):
            sampler.sample(None, PROMPTS, DRAWS)
    finally:
        meddler.close()
    sampler._fleet.retry_policy.outage = 0.2
    with pytest.raises(
        EngineFault, match=r"none of 1 policy servers could sample 8 responses for .* s; the last failure: .*refused"
    ):
        sampler.sample(None, PROMPTS, DRAWS)


def test_weights_of_another_model_are_refused_by_the_server(servers, sampler_of, model):
    sampler = sampler_of([servers[0].url])
    weights = model.state_dict()
    weights["model.norm.weight"] = torch.ones(7)
    with pytest.raises(
        PolicyError, match=r"have model.norm.weight of shape \(7,\), the engine's Qwen3ForCausalLM has shape \(32,\)"
    ):
        sampler.load("0@0.0", weights.items())
    sampler.load("0@1.0", model.state_dict().items())  # no harm was done
    sampler.sample(None, PROMPTS, DRAWS)


def test_weights_that_find_no_place_are_told(servers, sampler_of, model, tmp_path, monkeypatch):
    sampler = sampler_of([servers[0].url])
    monkeypatch.setattr("sdar.serving.weights.save_file", full)
    with pytest.raises(EngineFault, match=f"the weights of 0@0.0 could not be written to {tmp_path}.*: .*No space left"):
        sampler.load("0@0.0", iter(taken := CountedWeights(model)))
    assert taken.count == len(model.state_dict())  # the other ranks would wait for ever


def full(*_):
    raise OSError(28, "No space left on device")


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"urls": []}, "sampler.urls is empty"),
        ({"urls": ["127.0.0.1:8000"]}, "sampler.urls is '127.0.0.1:8000': it begins with http"),
        ({"urls": ["http://a:1", "http://a:1/"]}, "sampler.urls names http://a:1 twice"),
        ({"timeout": 0.0}, "sampler.timeout is 0.0: it must be more than 0 seconds"),
        ({"load_timeout": -1.0}, "sampler.load_timeout is -1.0"),
        ({"retries": -1}, "sampler.retries is -1: it must be at least 0"),
        ({"outage": -1.0}, "sampler.outage is -1.0"),
        ({"pause": -1.0}, "sampler.pause is -1.0"),
        ({"top_p": 0.0}, "sampler.top_p is 0.0"),
        ({"temperature": -1.0}, "sampler.temperature is -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        ServerSampler(**{"urls": ["http://127.0.0.1:1"]} | options)


def test_a_server_that_is_not_there_is_named_at_the_start(tokenizer):
    sampler = ServerSampler(["http://127.0.0.1:9"], outage=0.3, pause=0.05)
    with pytest.raises(
        EngineFault, match=r"no policy server answers at http://127.0.0.1:9 .*start it with `sdar serve-policy`"
    ):
        sampler.bind(tokenizer, [1], 512)


def test_a_server_of_another_model_is_noticed_at_the_start(servers, tokenizer):
    class Larger:
        added_tokens_decoder, all_special_ids = {}, []

        def __len__(self):
            return 100_000

    with pytest.raises(ConfigError, match=rf"has a model of {len(tokenizer)} tokens, the tokenizer has 100000"):
        ServerSampler([servers[0].url]).bind(Larger(), [1], 512)
    with pytest.raises(ConfigError, match=r"has a context of 512 tokens and sampler.max_new_tokens is 512"):
        ServerSampler([servers[0].url], max_new_tokens=512).bind(tokenizer, [1], 4096)
    sampler = ServerSampler([servers[0].url], max_new_tokens=500)
    sampler.bind(tokenizer, [1], 4096)
    assert sampler.context == 512  # an episode that needs more ends with a status
    with pytest.raises(ContextOverflowError, match="the prompt of task t has 20 tokens and may get 500 more"):
        sampler.sample(None, [told(0, 20)], [SampleKey(0, "t", 0, 0)])
    with pytest.raises(EngineFault, match="called before `load`"):
        sampler.sample(None, [told(0, 5)], [SampleKey(0, "t", 0, 0)])


def test_what_a_killed_run_left_is_removed(tmp_path):
    import socket

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, alive, other = (
        tmp_path / f"{socket.gethostname()}.{dead.pid}.ab",
        tmp_path / f"{socket.gethostname()}.{os.getpid()}.cd",
        tmp_path / f"another-machine.{dead.pid}.ef",
    )
    for folder in (gone, alive, other):
        (folder / "v").mkdir(parents=True)
    remove_orphans(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, other])
    assert Path(alive / "v").is_dir()


# ------------------------------------------------------------------ in a training run


def test_training_with_servers_is_training(servers, tiny_policy_dir, tmp_path, monkeypatch):
    """Two iterations, one server: every update is pushed, and what is trained does not notice who sampled."""
    from lightning.pytorch import LightningModule

    from sdar.cli import main

    logged = {}
    monkeypatch.setattr(
        LightningModule, "log_dict", lambda self, metrics, **_: logged.setdefault(run, []).append(dict(metrics))
    )
    samplers = {
        "in process": {"class_path": "TorchSampler", "init_args": {"max_new_tokens": 6}},
        "servers": {
            "class_path": "ServerSampler",
            "init_args": {"max_new_tokens": 6, "urls": [s.url for s in servers], "weights_folder": str(tmp_path / "weights")},
        },
    }
    settings = {
        "model.policy.init_args.path": tiny_policy_dir,
        "model.optimizer.init_args.lr": "0.01",
        "trainer.max_steps": "4",
        "trainer.num_sanity_val_steps": "0",
        "trainer.limit_val_batches": "0",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.logger": "false",
        "data.val_tasks": "4",
        "data.tasks_per_step": "2",
        "data.group_size": "2",
        "data.env.horizon": "2",
    }
    for run, sampler in samplers.items():
        args = ["fit", "-c", "conf/quickstart/sdar.yaml", "--model.sampler", json.dumps(sampler)]
        args += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        assert main([*args, "--trainer.default_root_dir", str(tmp_path / run)]) == 0
    here, there = (
        [a | b for a, b in zip(logged[run][::2], logged[run][1::2], strict=True)] for run in samplers
    )  # two calls an iteration
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        assert other["rollout/mismatch_max"] < 1e-4 and one["rollout/response_tokens"] == other["rollout/response_tokens"]
        assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-3)
        assert one["train/entropy"] == pytest.approx(other["train/entropy"], abs=1e-3)
