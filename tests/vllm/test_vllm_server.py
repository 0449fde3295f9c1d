"""vLLM behind the protocol, in a process of its own: weights through files, requests of several clients together, a death."""

import threading
import time

import pytest
import torch
from engines import DRAWS, NEW, PROMPTS, command, in_process
from sampled import assert_same

from sdar.errors import PolicyError
from sdar.samplers import ServerSampler

pytestmark = pytest.mark.vllm

PROGRAM = command()


@pytest.fixture(scope="module")
def network_of(policy):
    def make(seed):
        model = policy.load_model().eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * seed * weight.std().nan_to_num() * torch.randn_like(weight)
        return model

    return make


@pytest.fixture
def sampler_of(server, chat):
    made = []

    def make(**options):
        sampler = ServerSampler([server.url], **{"max_new_tokens": NEW, "pause": 0.2, "outage": 300.0} | options)
        sampler.bind(chat.tokenizer, chat.stop_ids, 1024)
        made.append(sampler)
        return sampler

    yield make
    for sampler in made:
        sampler.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"temperature": 1.3, "top_k": 40, "top_p": 0.8}],
    ids=["plain", "greedy", "truncated"],
)
def test_it_samples_what_torch_samples_with_the_weights_that_were_pushed(sampler_of, chat, network_of, options):
    sampler = sampler_of(**options)
    assert sampler.context == 256  # the server's own
    for seed in (1, 2):
        network = network_of(seed)
        sampler.load(f"0@{seed}.0", network.state_dict().items())
        sampler.reset()
        assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(chat, **options).sample(network, PROMPTS, DRAWS))


def test_weights_that_are_broadcast_are_seen(server, sampler_of, chat, network_of, monkeypatch):
    monkeypatch.setattr("sdar.serving.collective.BUCKET_BYTES", 2**20)  # several
    sampler, loads = sampler_of(transport="collective"), server.health()["counts"].get("loads", 0)
    for seed in (1, 2):
        network = network_of(seed)
        sampler.load(f"0@{seed}.0", network.state_dict().items())
        assert len(sampler._fleet.weights.buckets) > 2
        sampler.reset()
        assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(chat).sample(network, PROMPTS, DRAWS))
    assert server.health()["counts"]["loads"] == loads + 2


def test_clients_are_served_together_each_by_its_own_settings(server, sampler_of, chat, network_of):
    network = network_of(1)
    options = [{"max_new_tokens": 60}, {"temperature": 0.5}, {"top_p": 0.7, "max_new_tokens": 30}]
    clients = [sampler_of(**o) for o in options]
    clients[0].load("0@0.0", network.state_dict().items())
    for client in clients[1:]:  # as the other ranks of a run
        client._fleet.weights = clients[0]._fleet.weights
    outs = [None] * 3
    threads = [
        threading.Thread(target=lambda k=k: outs.__setitem__(k, clients[k].sample(None, PROMPTS, DRAWS))) for k in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out, o in zip(outs, options, strict=True):
        assert_same(out, in_process(chat, **o).sample(network, PROMPTS, DRAWS))


def test_weights_of_another_model_are_refused_and_the_server_lives_on(sampler_of, chat, network_of):
    sampler, network = sampler_of(), network_of(1)
    with pytest.raises(PolicyError, match="the engine's Qwen3ForCausalLM has no such tensor"):
        sampler.load("0@0.0", [("model.extra", torch.ones(3))])
    sampler.load("0@1.0", network.state_dict().items())
    assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(chat).sample(network, PROMPTS, DRAWS))


def test_a_killed_server_that_is_started_again_gets_the_weights_and_answers(server, sampler_of, chat, network_of):
    sampler, network = sampler_of(), network_of(2)
    sampler.load("0@0.0", network.state_dict().items())
    assert_same(sampler.sample(None, PROMPTS, DRAWS), in_process(chat).sample(network, PROMPTS, DRAWS))
    server.freeze()
    out = []
    asking = threading.Thread(target=lambda: out.append(sampler.sample(None, PROMPTS, DRAWS)))
    asking.start()
    time.sleep(0.3)
    server.kill()
    server.start()
    asking.join(300)
    assert_same(out[0], in_process(chat).sample(network, PROMPTS, DRAWS))
    counted = sampler.metrics()
    assert counted["rollout/failed/connection"] >= 1 and counted["rollout/stale_replicas"] == 1
