"""Weights on their way to servers, by files and by a collective: the same tokens, whoever is killed in the middle."""

import json
import os
import re
import threading
import time

import pytest
import torch
import yaml
from launch import SUPPORT, Rank, Script, finish, start
from policy_servers import CODE, SLOW, PolicyServer

from sdar.cli import main
from sdar.errors import ConfigError, EngineFault, PolicyError
from sdar.parts import SampleKey
from sdar.samplers import ServerSampler, TorchSampler
from sdar.serving import collective
from sdar.serving.protocol import SampleRequest, Sampling, dump
from sdar.serving.replica import Replica, StaleReplica

BOTH = pytest.mark.parametrize("transport", ["files", "collective"])


@pytest.fixture(scope="module")
def started(tiny_policy_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("marks")
    servers = [PolicyServer(tiny_policy_dir, SLOW + CODE, folder / f"half.{i}") for i in range(2)]
    try:
        for server in servers:
            server.wait()
        yield folder, servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture
def marks(started):
    """The folder where servers say that they are in the middle, and where they are told to be slow."""
    folder = started[0]
    for mark in folder.iterdir():
        mark.unlink()
    yield folder
    folder.joinpath("slow").unlink(missing_ok=True)


@pytest.fixture
def servers(started, marks):
    for server in started[1]:
        if server.process.poll() is not None:
            server.start()
    return [server.wait() for server in started[1]]


@pytest.fixture
def sampler_of(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(collective, "BUCKET_BYTES", 4096)
    made = []

    def make(servers, transport, **options):
        settings = {"max_new_tokens": 6, "pause": 0.05, "outage": 60.0, "transport": transport}
        settings |= {"weights_folder": str(tmp_path / "weights")} if transport == "files" else {}
        sampler = ServerSampler([s.url for s in servers], **settings | options)
        sampler.bind(tokenizer, [tokenizer.eos_token_id], 512)
        made.append(sampler)
        return sampler

    yield make
    for sampler in made:
        sampler.close()


PROMPTS = [list(range(5 + i, 12 + 2 * i)) for i in range(8)]
DRAWS = [SampleKey(0, f"task-{i}", 0, 0) for i in range(8)]


def assert_samples_as(sampler, network, tokenizer):
    here = TorchSampler(max_new_tokens=6)
    here.bind(tokenizer, [tokenizer.eos_token_id], 512)
    sampler.reset()
    out, wanted = sampler.sample(None, PROMPTS, DRAWS), here.sample(network, PROMPTS, DRAWS)
    assert [c.ids for c in out] == [c.ids for c in wanted]
    for a, b in zip(out, wanted, strict=True):
        assert a.behaviour_logp == pytest.approx(b.behaviour_logp, abs=1e-4)


def wait_for(path, seconds=120.0):
    due = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < due, f"{path.name} did not appear"
        time.sleep(0.01)


def loads(server):
    return server.health()["counts"].get("loads", 0)


# ------------------------------------------------------------------ nobody dies


def test_what_is_broadcast_samples_from_then_on(servers, sampler_of, network_of, tokenizer):
    sampler, before = sampler_of(servers, "collective"), [loads(s) for s in servers]
    for step in range(3):
        sampler.load(f"0@{step}.0", network_of(step).state_dict().items())
        assert_samples_as(sampler, network_of(step), tokenizer)
        assert len({s.health()["version"] for s in servers}) == 1
        assert sampler._transport._sender._staged.rounds == 1  # one broadcast for both
    assert [loads(s) - b for s, b in zip(servers, before, strict=True)] == [3, 3]
    assert sampler.metrics()["time/weights_s"] > 0 and sampler.metrics()["rollout/replica_failures"] == 0
    sampler.load("0@2.0", iter(network_of(2).state_dict().items()))
    assert [loads(s) - b for s, b in zip(servers, before, strict=True)] == [3, 3]


@BOTH
def test_a_server_that_was_restarted_gets_them_in_the_middle_of_a_rollout(
    servers, sampler_of, network_of, tokenizer, transport
):
    sampler = sampler_of(servers, transport)
    sampler.load("0@1.0", network_of(1).state_dict().items())
    assert_samples_as(sampler, network_of(1), tokenizer)
    servers[0].kill()
    servers[0].start()
    servers[0].wait()
    assert_samples_as(sampler, network_of(1), tokenizer)
    assert sampler.metrics()["rollout/stale_replicas"] == 1 and loads(servers[0]) == 1
    sampler.close()
    sampler.load("0@1.0", network_of(1).state_dict().items())  # another fit after a teardown
    assert_samples_as(sampler, network_of(1), tokenizer)


def test_runs_that_share_servers_send_in_turns(servers, sampler_of, network_of, tokenizer):
    ours, theirs = sampler_of(servers, "collective"), sampler_of(servers, "collective")
    ours.load("0@0.0", network_of(1).state_dict().items())
    theirs.load("0@0.0", network_of(2).state_dict().items())
    for sampler, seed in ((ours, 1), (theirs, 2), (ours, 1)):
        assert_samples_as(sampler, network_of(seed), tokenizer)


def test_weights_of_another_model_are_told_and_both_servers_live_on(servers, sampler_of, network_of, tokenizer):
    sampler, state = sampler_of(servers, "collective"), network_of(1).state_dict()
    with pytest.raises(PolicyError, match=r"have model.norm.weight of shape \(7,\), the engine's Qwen3ForCausalLM"):
        sampler.load("0@0.0", (state | {"model.norm.weight": torch.ones(7)}).items())
    sampler.load("0@1.0", state.items())
    assert_samples_as(sampler, network_of(1), tokenizer)


def test_a_folder_without_files_is_refused():
    with pytest.raises(
        ConfigError, match=r"sampler.weights_folder is /x, and with sampler.transport collective nothing is written"
    ):
        ServerSampler(["http://127.0.0.1:1"], transport="collective", weights_folder="/x")


RANK = """
import json, pathlib, sys, time, torch
from torch import distributed
from transformers import AutoTokenizer
from sdar.parts import SampleKey
from sdar.samplers import ServerSampler
from sdar.distributed.communicator import TorchCommunicator
rank, store, folder, weights, urls = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
tokenizer = AutoTokenizer.from_pretrained(folder)
sampler = ServerSampler(urls, max_new_tokens=6, pause=0.05, transport="collective")
sampler.ranks = TorchCommunicator(60.0)
sampler.bind(tokenizer, [tokenizer.eos_token_id], 512)
state = torch.load(weights)
def gathered():
    for name, tensor in state.items():
        whole = tensor.clone() if rank == 0 else torch.zeros_like(tensor)
        distributed.broadcast(whole, 0)  # hangs unless both ranks take every tensor
        yield name, whole
sampler.load("0@0.0", gathered())
folder = pathlib.Path(weights).parent
prompts, draws = json.loads((folder / "told.json").read_text())
for turn in range(2):
    if turn:
        if rank == 0:
            (folder / "loaded").touch()
            while not (folder / "go on").exists():  # it does nothing while the second one finds a server that was restarted
                time.sleep(0.01)
        distributed.barrier()
    out = sampler.sample(None, prompts, [SampleKey(*d) for d in draws]) if rank or not turn else []
    distributed.barrier()
print(json.dumps([[c.ids for c in out], sampler.metrics()["rollout/stale_replicas"]]), flush=True)
sampler.close()
sampler.ranks.close()
"""


def test_the_second_rank_of_a_run_meets_a_restarted_server_and_the_first_one_sends(
    servers, network_of, tokenizer, tiny_policy_dir, tmp_path
):
    torch.save(network_of(3).state_dict(), tmp_path / "state.pt")
    (tmp_path / "told.json").write_text(json.dumps([PROMPTS, [[d.seed, d.task, d.attempt, d.turn] for d in DRAWS]]))
    arguments = [str(tmp_path / "store"), str(tiny_policy_dir), str(tmp_path / "state.pt"), *(s.url for s in servers)]
    logs = [tmp_path / f"rank.{r}.log" for r in range(2)]
    ranks = [Rank(Script(RANK, [str(r), *arguments], dict(os.environ), logs[r]), logs[r]) for r in range(2)]
    try:
        wait_for(tmp_path / "loaded")
        servers[0].kill()
        servers[0].start()
        servers[0].wait()
        (tmp_path / "go on").touch()
    finally:
        codes = finish(ranks, 60)
    assert codes == [0, 0], [rank.said[-2000:] for rank in ranks]
    out, stale = json.loads(next(line for line in ranks[1].said.splitlines() if line.startswith("[[")))
    here = TorchSampler(max_new_tokens=6)
    here.bind(tokenizer, [tokenizer.eos_token_id], 512)
    assert out == [c.ids for c in here.sample(network_of(3), PROMPTS, DRAWS)] and stale == 1


@BOTH
def test_a_rank_that_is_killed_in_the_middle_of_a_push_is_named_by_the_other(servers, marks, tmp_path, transport):
    marks.joinpath("slow").touch()
    arguments = settings_of(tmp_path, servers, transport, steps=6)
    both = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "sdar.distributed.ReplicatedStrategy",
        "--trainer.strategy.deadline",
        "10",
    ]
    first, second = start(2, "push_ranks.py", tmp_path / "report.json", *arguments, *both, folder=tmp_path)
    try:
        wait_for(marks / "half.0", 100)
        first.process.kill()
        assert second.process.wait(60) == 1
    finally:
        second.process.kill()
    told = second.said.strip().splitlines()
    assert re.search(r"error: .*probe before training: .*rank 0 is gone", told[-1]), told[-1]


def test_two_ranks_under_zero_train_with_what_the_first_one_broadcasts(servers, tmp_path):
    """Weights are gathered tensor by tensor; what the servers sampled from is what is trained, after every update."""
    report = tmp_path / "mismatch.json"
    arguments = settings_of(tmp_path, servers, "collective", steps=6)
    both = ["--trainer.devices", "2", "--trainer.strategy", "deepspeed_stage_3"]
    ranks = start(2, "push_ranks.py", report, *arguments, *both, folder=tmp_path)
    try:
        assert [rank.process.wait(200) for rank in ranks] == [0, 0], [rank.said[-2000:] for rank in ranks]
    finally:
        for rank in ranks:
            rank.process.kill()
    logged = json.loads(report.read_text())
    assert len(logged) == 3 and all(m["rollout/mismatch_max"] < 1e-3 and m["time/weights_s"] > 0 for m in logged)


# ------------------------------------------------------------------ a server dies


def test_a_server_that_is_killed_in_the_middle_of_a_broadcast_costs_the_others_nothing(
    servers, marks, sampler_of, network_of, tokenizer
):
    sampler = sampler_of(servers, "collective")
    sampler.load("0@0.0", network_of(1).state_dict().items())
    sampler.metrics()
    marks.joinpath("slow").touch()

    def strike():
        wait_for(marks / "half.0")
        servers[0].kill()
        marks.joinpath("slow").unlink()

    struck = threading.Thread(target=strike)
    struck.start()
    begun = time.monotonic()
    sampler.load("0@1.0", network_of(2).state_dict().items())
    struck.join()
    assert time.monotonic() - begun < 60  # of 600 that a push may take
    counted = sampler.metrics()
    assert counted["rollout/failed/connection"] == counted["rollout/replica_failures"] == 1  # the other one is not blamed
    assert_samples_as(sampler, network_of(2), tokenizer)
    servers[0].start()
    servers[0].wait()
    time.sleep(0.1)
    assert_samples_as(sampler, network_of(2), tokenizer)
    assert servers[0].health()["version"] == servers[1].health()["version"]


def test_where_all_are_killed_the_run_ends_with_a_reason(servers, marks, sampler_of, network_of):
    sampler = sampler_of(servers[:1], "collective", outage=0.5)
    marks.joinpath("slow").touch()
    threading.Thread(target=lambda: (wait_for(marks / "half.0"), servers[0].kill())).start()
    with pytest.raises(EngineFault, match=r"none of 1 policy servers could take the weights of .*0@0.0 for"):
        sampler.load("0@0.0", network_of(1).state_dict().items())


# ------------------------------------------------------------------ the trainer dies

TRAINER = """
import sys, torch
from transformers import AutoTokenizer
from sdar.samplers import ServerSampler
from sdar.serving import collective
collective.BUCKET_BYTES = 4096
transport, folder, weights, urls = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
tokenizer = AutoTokenizer.from_pretrained(folder)
sampler = ServerSampler(urls, max_new_tokens=6, transport=transport)
sampler.bind(tokenizer, [tokenizer.eos_token_id], 512)
sampler.load("0@0.0", torch.load(weights).items())
"""


@BOTH
def test_servers_outlive_a_trainer_that_is_killed_in_the_middle_of_a_push(
    servers, marks, sampler_of, network_of, tokenizer, tiny_policy_dir, tmp_path, transport
):
    sampler = sampler_of(servers, transport)
    sampler.load("0@0.0", network_of(1).state_dict().items())
    before = servers[0].health()["version"]
    torch.save(network_of(2).state_dict(), tmp_path / "state.pt")
    marks.joinpath("slow").touch()
    arguments = [transport, tiny_policy_dir, tmp_path / "state.pt", *(s.url for s in servers)]
    trainer = Script(TRAINER, [*map(str, arguments)], dict(os.environ))
    try:
        wait_for(marks / "half.1")
        half = servers[1].health()["version"]
    finally:
        trainer.kill()
        trainer.wait()
    marks.joinpath("slow").unlink()
    assert half != before  # neither the old weights nor the new ones
    with pytest.raises(StaleReplica, match="was asked for, here is"):
        request = SampleRequest(
            before, "c", 0, 60.0, Sampling(1.0, 0, 1.0, (), (1,), 400, 4), ((5, 6, 7),), (SampleKey(0, "t", 0, 0),)
        )
        Replica(servers[1].url).request("POST", "/sample", dump(request), 60)
    assert {s.process.poll() for s in servers} == {None}
    anew = sampler_of(servers, transport)
    anew.load("0@0.0", network_of(3).state_dict().items())
    assert_samples_as(anew, network_of(3), tokenizer)
    assert anew.metrics()["rollout/replica_failures"] == 0


def settings_of(folder, servers, transport, steps):
    """The arguments of a small run on servers."""
    household = {"world": 5, "receptacles": 6, "distractors": 2, "horizon": 2}
    content = {
        "seed_everything": 3,
        "model": {
            "class_path": "SDAR",
            "init_args": {
                "policy": {"class_path": "PretrainedPolicy", "init_args": {"path": str(servers[0].arguments[0])}},
                "retriever": {"class_path": "UCBRetriever", "init_args": {"skills": "conf/skills/quickstart"}},
                "sampler": {
                    "class_path": "ServerSampler",
                    "init_args": {"max_new_tokens": 6, "urls": [s.url for s in servers], "transport": transport},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "updates_per_rollout": 2,
            },
        },
        "data": {
            "class_path": "TaskModule",
            "init_args": {
                "env": {"class_path": "HouseholdEnv", "init_args": household},
                "protocol": "CompactProtocol",
                "layout": "trajectory",
                "tasks_per_step": 2,
                "group_size": 2,
                "train_tasks": 12,
                "val_tasks": 2,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": steps,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["fit", "-c", str(path), "--trainer.default_root_dir", str(folder / transport)]


@pytest.fixture(scope="module")
def undisturbed(started, tmp_path_factory):
    """By transport: the folder of a run that ends without a death; made once."""
    folders = {}

    def of(transport):
        if transport not in folders:
            folder = folders[transport] = tmp_path_factory.mktemp(transport)
            assert main(settings_of(folder, started[1][:1], transport, steps=8)) == 0
        return folders[transport]

    return of


@pytest.mark.parametrize(("transport", "place"), [("files", "write"), ("files", "load"), ("collective", "load")])
def test_a_run_that_is_killed_in_the_middle_of_a_push_ends_like_one_that_never_was(
    servers, undisturbed, marks, tmp_path, transport, place
):
    """One server, so that the same prompts are read together: the same weights, bit for bit, and the same counts."""
    server = servers[:1]
    straight, killed = undisturbed(transport), tmp_path / "killed"
    killed.mkdir()
    arguments = settings_of(killed, server, transport, steps=8)
    process = Script(SUPPORT / "push_run.py", [place, str(marks), *arguments], dict(os.environ))
    try:
        wait_for(marks / ("middle" if place == "write" else "half.0"), 200)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    marks.joinpath("slow").unlink(missing_ok=True)
    last = killed / transport / "version_0" / "checkpoints" / "last.ckpt"
    kept = torch.load(last, weights_only=True)
    assert kept["global_step"] == 4 and kept["sdar"]["iteration"] == 2  # two pushes, two iterations; nothing of the third
    assert main([*arguments, "--ckpt_path", "last"]) == 0
    one, other = (
        torch.load(f / transport / "version_0" / "checkpoints" / "last.ckpt", weights_only=True) for f in (straight, killed)
    )
    assert one["global_step"] == other["global_step"] == 8
    assert all(torch.equal(one["state_dict"][k], other["state_dict"][k]) for k in one["state_dict"])
    assert one["sdar"]["env_steps"] == other["sdar"]["env_steps"] > kept["sdar"]["env_steps"] > 0
    assert one["sdar"]["retriever"] == other["sdar"]["retriever"]
