"""Runs that are planned: tiny networks, settings, and the sizes of published models."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from sdar import plan
from sdar.data import TaskModule
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.plan import settings as plan_settings
from sdar.policies import FreshPolicy
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
PUBLISHED = {
    "Qwen/Qwen2.5-3B-Instruct": QWEN2
    | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "tie_word_embeddings": True}
    | {"num_attention_heads": 16, "num_key_value_heads": 2},
    "Qwen/Qwen2.5-7B-Instruct": QWEN2
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "tie_word_embeddings": False}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    }
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "head_dim": 128}
    | {"num_attention_heads": 16, "num_key_value_heads": 8},
}
SMALL = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 64, "context": 512}


def files(*names: str) -> list[str]:
    return [part for name in names for part in ("-c", f"conf/{name}.yaml")]


def network(config, **kwargs) -> plan.Network:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = plan_settings.architecture_of(model, "test")
    return plan.Network("policy", sizes, 4, **({"trained": sizes.parameters} | kwargs))


def work(**kwargs) -> plan.Work:
    usual = dict(tasks=4, attempts=8, extra=0, turns=5, response=64, layout="turn", splits=False, row=512, row_mean=300.0)
    usual |= dict(prompt=448, told=0, updates=2, micro_batch=2048, passes={"policy": 1.0})
    return plan.Work(**(usual | kwargs))


def a_run(launch: plan.Launch | None = None, **kwargs) -> plan.Run:
    policy = kwargs.pop("policy", None) or network(Qwen3Config(**tiny_sizes()))
    return plan.Run(policy, kwargs.pop("others", ()), launch or plan.Launch(), kwargs.pop("work", work()), **kwargs)


def tiny_sizes(**kwargs):
    usual = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
    return usual | dict(vocab_size=100, max_position_embeddings=1024, head_dim=32) | kwargs


@cache
def tokenizer():
    """The world's, made once: it does not depend on the policy's size."""
    return FreshPolicy(HouseholdEnv(), context=1024).load_tokenizer()


def fresh(**kwargs) -> FreshPolicy:
    policy = FreshPolicy(HouseholdEnv(), **(SMALL | kwargs))
    policy._tokenizer = tokenizer()
    return policy


def untrained(strategy=GRPO, **settings):
    env = HouseholdEnv(world=5, receptacles=6, distractors=1, horizon=12)
    data = TaskModule(
        env,
        tasks_per_step=3,
        train_tasks=6,
        val_tasks=2,
        val_splits=["unseen"],
        protocol=CompactProtocol(),
        layout="trajectory",
    )
    policy = settings.pop("policy", None) or fresh(context=1024)
    return strategy(policy=policy, sampler=TorchSampler(max_new_tokens=40), **settings), data


def retriever():
    from sdar.retrievers import NoRetriever

    return NoRetriever()


def given(**kwargs):
    return {"devices": "auto", "num_nodes": 1, "precision": None} | kwargs
