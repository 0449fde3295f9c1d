"""`sdar plan`: sizes of networks, read without their weights."""

import pytest
import torch
from planned import PUBLISHED, fresh, network, tiny_sizes
from transformers import Qwen3MoeConfig

from sdar.errors import ConfigError, PolicyError
from sdar.lora import LoRAPolicy
from sdar.plan import settings as plan_settings
from sdar.policies import FreshPolicy, PretrainedPolicy


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
    ],
)
def test_parameters_are_those_of_the_model_cards_and_nothing_is_allocated(hub, name, parameters):
    found = plan_settings.located(PretrainedPolicy(name), str(hub)).blueprint()
    model, adapters = found.network, found.adapters
    sizes = plan_settings.architecture_of(model, name)
    assert (sizes.parameters, sizes.active, adapters) == (parameters, parameters, 0)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sizes.tied == PUBLISHED[name]["tie_word_embeddings"]


def test_adapters_are_counted_as_the_trained_model_has_them():
    policy = LoRAPolicy(fresh(), rank=4)
    found = plan_settings.network_of(policy.blueprint(), policy.name, "policy", trains=True)
    trained = [p for p in policy.load_model().parameters() if p.requires_grad]
    assert found.trained == found.adapters == sum(p.numel() for p in trained) == 4 * found.architecture.sides
    assert found.loaded == sum(p.numel() * p.element_size() for p in policy.load_model().parameters())


def test_a_token_passes_through_its_experts_only():
    config = Qwen3MoeConfig(**tiny_sizes(), num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
    sizes = network(config).architecture
    expert = 3 * 64 * 16
    assert sizes.parameters - sizes.active == 2 * 6 * expert  # six of eight in each of two layers are idle
    assert sizes.intermediate == 32


def test_a_hub_that_cannot_be_reached_is_told_with_what_is_enough(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nmore")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    told = (
        r"the sizes of Nobody/Nothing-1B could not be read: .*We couldn't connect.*config.json is enough, no weights are read: put it to "
        r"FOLDER/Nobody/Nothing-1B/config.json .*--configs FOLDER"
    )
    with pytest.raises(PolicyError, match=told):
        plan_settings.located(PretrainedPolicy("Nobody/Nothing-1B"), str(tmp_path)).blueprint()


def test_a_policy_of_an_unknown_kind_is_refused_with_a_way_out():
    class Own(FreshPolicy.__mro__[1]):  # a Policy
        name = "own"
        load_tokenizer = load_model = context = lambda self: None

    with pytest.raises(
        ConfigError, match=r"Own is a policy whose sizes .* cannot tell without loading it: it has no `blueprint`. Give"
    ):
        Own().blueprint()


@pytest.mark.parametrize(
    "make, numbers",
    [
        (lambda p: torch.optim.AdamW(p), 2),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
        (lambda p: torch.optim.SGD(p, lr=1.0), 0),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), 1),
    ],
)
def test_the_optimizers_own_numbers_are_found_by_a_step(make, numbers):
    assert plan_settings.optimizer_numbers(make) == numbers
