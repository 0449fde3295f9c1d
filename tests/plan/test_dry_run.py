"""`sdar plan`: the two steps with tiny models."""

import pytest
import torch
from planned import PUBLISHED, tiny_sizes, untrained
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from sdar import plan
from sdar.plan import settings as plan_settings
from sdar.plan.dry_run import rehearse, shrunk, tiny
from sdar.policies import PretrainedPolicy
from sdar.samplers import ServerSampler
from sdar.strategies import GRPO, SDAR


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tiny_model_has_the_architecture_the_tokenizer_and_the_context(hub, name, tmp_path):
    small = tiny(plan_settings.located(PretrainedPolicy(name, gradient_checkpointing=True), str(hub)), tmp_path, [])
    model, real = small.load_model(), plan_settings.located(PretrainedPolicy(name), str(hub)).blueprint().network
    assert type(model) is type(real)
    assert sum(p.numel() for p in model.parameters()) < 300_000
    assert model.get_output_embeddings().weight.shape[0] == len(small.load_tokenizer())
    assert small.context() == PUBLISHED[name]["max_position_embeddings"] and small.name == name
    assert model.config.tie_word_embeddings == PUBLISHED[name]["tie_word_embeddings"]
    groups = PUBLISHED[name]["num_attention_heads"] // PUBLISHED[name]["num_key_value_heads"]
    assert model.config.num_attention_heads // model.config.num_key_value_heads == min(groups, 4)


def test_layers_of_every_kind_and_experts_are_kept():
    config = Qwen3MoeConfig(**tiny_sizes(num_hidden_layers=6), num_experts=16, num_experts_per_tok=8, moe_intermediate_size=96)
    small = shrunk(config, 50)
    assert (small.num_experts, small.num_experts_per_tok, small.moe_intermediate_size, small.num_hidden_layers) == (
        4,
        2,
        32,
        2,
    )
    model = AutoModelForCausalLM.from_config(small)
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 50)


def test_samplers_with_an_engine_of_their_own_are_rehearsed_in_process():
    module, data = untrained(GRPO, kl_coef=0.0)
    module.sampler = module.val_sampler = ServerSampler(["http://127.0.0.1:9"], max_new_tokens=8)
    seen, cut = rehearse(module, data)
    assert seen.sampled and "model.sampler: TorchSampler instead of ServerSampler" in cut
    run = plan_settings.describe(module, data, plan.Launch(), seen)
    assert isinstance(module.sampler, ServerSampler) and not run.work.in_process
    assert "keys and values" not in plan.device_memory(run)["rollout"]


def test_skills_make_the_teachers_rows_longer():
    from sdar.retrievers import KeywordRetriever

    module, data = untrained(SDAR, retriever=KeywordRetriever("conf/skills/quickstart"))
    seen, _ = rehearse(module, data)
    assert seen.told > 0
