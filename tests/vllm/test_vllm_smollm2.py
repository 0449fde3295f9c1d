"""A pretrained chat model behind vLLM: greedily it says what it says here, with its adapter too, merged or loaded as one.

In float32: in bfloat16 two tokens may be as likely, and engines then differ in which one comes first.
"""

import importlib.util
import json
import subprocess
import sys

import pytest
from sampled import assert_same
from smollm2 import smollm2_folder

from sdar.lora import LoRAPolicy, plain_weights
from sdar.parts import SampleKey
from sdar.policies import PretrainedPolicy
from sdar.rollout.chat import ChatFormat
from sdar.samplers import TorchSampler, VLLMSampler
from sdar.training.export import write_policy

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

QUESTIONS = [
    "Name three fruits.",
    "You are in a kitchen. Go to the fridge.",
    "What is 17 + 25?",
    "Write a line about the sea.",
]
CONTEXT, NEW = 256, 24
KEYS = [SampleKey(0, question, 0, 0) for question in QUESTIONS]


@pytest.fixture(scope="module")
def policy():
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not here: `make test-vllm` makes an environment for it")
    return LoRAPolicy(PretrainedPolicy(smollm2_folder(), dtype="float32"), adapter="conf/real/adapter")


@pytest.fixture(scope="module")
def chat(policy):
    return ChatFormat(policy.load_tokenizer(), {}, "smollm2")


@pytest.fixture(scope="module")
def network(policy):
    return policy.load_model().eval()


@pytest.fixture(scope="module")
def prompts(chat):
    return [chat.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]


@pytest.fixture(scope="module")
def ours(policy, chat, network, prompts):
    """What `TorchSampler` says without the adapter and with it."""
    sampler = TorchSampler(max_new_tokens=NEW, temperature=0.0, forbid=[])
    sampler.bind(chat.tokenizer, chat.stop_ids, CONTEXT)
    base = sampler.sample(policy.base.load_model().eval(), prompts, KEYS)
    tuned = sampler.sample(network, prompts, KEYS)
    assert [c.ids for c in base] != [c.ids for c in tuned]  # so that the adapter shows
    return {"base": base, "tuned": tuned}


@pytest.fixture(scope="module")
def exported(policy, network, tmp_path_factory):
    """What `sdar export` writes, merged and with ``--adapter true``."""
    folder = tmp_path_factory.mktemp("exported")
    write_policy(policy, network, network.state_dict().items(), str(folder / "merged"), "float32")
    policy.write_adapter(network.state_dict().items(), str(folder / "adapter"), "float32")
    return folder


def test_the_merged_model_and_pushed_weights_say_what_the_policy_says_here(policy, chat, network, prompts, ours, exported):
    sampler = VLLMSampler(
        model=str(exported / "merged"), max_new_tokens=NEW, temperature=0.0, forbid=[], dtype="float32", eager=True
    )
    sampler.bind(chat.tokenizer, chat.stop_ids, CONTEXT)
    try:
        sampler.engine.version = "as it was started"
        assert_same(sampler.sample(None, prompts, KEYS), ours["tuned"])
        sampler.load("0@0.0", policy.base.load_model().state_dict().items())
        assert_same(sampler.sample(None, prompts, KEYS), ours["base"])
        sampler.load("0@1.0", plain_weights(network, network.state_dict().items()))
        assert_same(sampler.sample(None, prompts, KEYS), ours["tuned"])
    finally:
        sampler.close()


ALONE = """
import json, sys
from sdar.serving.vllm_engine import import_vllm
vllm = import_vllm()  # for its settings on a CPU alone
from vllm.lora.request import LoRARequest
folder, adapter, prompts, stops, most, context = json.loads(sys.argv[1])
llm = vllm.LLM(folder, dtype="float32", max_model_len=context, enforce_eager=True, enable_lora=True, max_lora_rank=16,
               skip_tokenizer_init=True, generation_config="vllm")
params = vllm.SamplingParams(temperature=0.0, max_tokens=most, stop_token_ids=stops, ignore_eos=True, detokenize=False)
asked = [{"prompt_token_ids": prompt} for prompt in prompts]
for request in (None, LoRARequest("ours", 1, adapter)):
    found = llm.generate(asked, params, use_tqdm=False, lora_request=request)
    print("said", json.dumps([list(one.outputs[0].token_ids) for one in found]), flush=True)
"""


def test_vllm_alone_loads_the_adapter_on_its_base_and_samples_the_same_tokens(policy, chat, prompts, ours, exported):
    told = [policy.base.path, str(exported / "adapter"), prompts, sorted(chat.stop_ids), NEW, CONTEXT]
    command = [sys.executable, "-c", ALONE, json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line.removeprefix("said ")) for line in done.stdout.splitlines() if line.startswith("said ")]
    assert said == [[c.ids for c in ours["base"]], [c.ids for c in ours["tuned"]]]
