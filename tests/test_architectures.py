"""Small random models of the common families, each with a tokenizer and a chat template in its family's form.

What holds for every family: scores are the model's own densities, a rollout records the densities that are scored, a teacher who
is told nothing is the student, and a training step changes the weights.
"""

import copy
from dataclasses import dataclass, field
from functools import cache, partial

import pytest
import torch
from families import FAMILIES, tokenizer_of
from lightning.pytorch import Trainer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from sdar.data import TaskModule
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.errors import PolicyError
from sdar.lora import LoRAPolicy, adapted
from sdar.parts import Policy
from sdar.policies import PretrainedPolicy
from sdar.retrievers import FactRetriever
from sdar.rollout import LocalPool, Request, Rollout, collate, make_rows
from sdar.rollout.chat import ChatFormat
from sdar.rollout.rows import add_teacher_view
from sdar.samplers import TorchSampler
from sdar.scoring import Scorer
from sdar.strategies import SDAR, BehaviorCloning
from sdar.teachers import SkillView
from sdar.types import Batch, Episode, Retrieval

WORLD = {"world": 5, "receptacles": 6, "distractors": 1, "horizon": 3}
LAYOUTS = ("trajectory", "turn")


@dataclass(frozen=True)
class Architecture:
    family: str
    config: type[PreTrainedConfig]
    settings: dict = field(default_factory=dict, hash=False)
    options: dict = field(default_factory=dict, hash=False)


GEMMA2 = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16, "sliding_window": 4096}
GEMMA3 = {"query_pre_attn_scalar": 16, "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES = {
    "qwen2.5": Architecture("qwen2.5", Qwen2Config),
    "qwen3": Architecture("qwen3", Qwen3Config),
    "qwen3 thinking": Architecture("qwen3", Qwen3Config, options={"enable_thinking": True}),
    "qwen3 without thinking": Architecture("qwen3", Qwen3Config, options={"enable_thinking": False}),
    "llama3": Architecture("llama3", LlamaConfig, {"tie_word_embeddings": False}),
    "gemma2": Architecture("gemma", Gemma2Config, GEMMA2),
    "gemma3": Architecture("gemma", Gemma3TextConfig, GEMMA3),
}
KINDS = [name for name, a in ARCHITECTURES.items() if not a.options]  # one of each network
by_name = pytest.mark.parametrize("name", ARCHITECTURES)
by_kind = pytest.mark.parametrize("name", KINDS)
pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")


@cache
def network(name: str, **changes) -> PreTrainedModel:
    """A model with opinions, some rows larger than its vocabulary; read it, change a copy."""
    architecture = ARCHITECTURES[name]
    tokenizer = tokenizer_of(FAMILIES[architecture.family])
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    size |= {"num_key_value_heads": 1, "max_position_embeddings": 4096, "vocab_size": len(tokenizer) + 3}
    size |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": None}
    if architecture.config is Qwen2Config:
        del size["head_dim"]
    config = architecture.config(**size | architecture.settings | changes)
    torch.manual_seed(3)
    chosen = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    model = AutoModelForCausalLM.from_config(config, **chosen).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.4)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Each architecture as `save_pretrained` writes it."""
    made = {}
    for name, architecture in ARCHITECTURES.items():
        folder = tmp_path_factory.mktemp("policy") / name.replace(" ", "_")
        network(name).save_pretrained(folder)
        tokenizer_of(FAMILIES[architecture.family]).save_pretrained(folder)
        made[name] = str(folder)
    return made


def policy_of(name: str, folders: dict[str, str]) -> PretrainedPolicy:
    return PretrainedPolicy(folders[name], chat_options=ARCHITECTURES[name].options)


def bound(chat: ChatFormat, **settings) -> TorchSampler:
    sampler = TorchSampler(**{"max_new_tokens": 6} | settings)
    sampler.bind(chat.tokenizer, chat.stop_ids, 4096)
    return sampler


def scorer_of(sampler: TorchSampler) -> Scorer:
    return Scorer(sampler.temperature, sampler.forbidden_ids, sampler.vocab_size)


def chat_of(name: str) -> ChatFormat:
    return ChatFormat(tokenizer_of(FAMILIES[ARCHITECTURES[name].family]), ARCHITECTURES[name].options, name)


def played(name: str, layout: str, sampler: TorchSampler, retrieval: Retrieval) -> list[Episode]:
    env, chat = HouseholdEnv(**WORLD), chat_of(name)
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, sampler, SkillView(), layout, horizon=3, seed=1)
    return rollout(network(name), [Request(env.task(t), 0, retrieval) for t in env.task_ids("train", 3, 0)])


def batch_of(name: str, layout: str, episodes: list[Episode]) -> Batch:
    rows = make_rows(episodes, layout)
    add_teacher_view(rows, episodes, [[e] for e in episodes], chat_of(name), SkillView(), None, [4096] * len(episodes))
    return collate(rows, episodes, range(len(episodes)))


def naive(model, ids, attention, response, scorer):
    """Log-probabilities of response tokens from the model's own logits, row by row without padding."""
    out = torch.zeros(ids.shape)
    for b, length in enumerate(attention.sum(1).tolist()):
        logits = model(input_ids=ids[b : b + 1, :length]).logits[0, :-1, : scorer.vocab_size] / scorer.temperature
        logits[:, list(scorer.forbidden_ids)] = -torch.inf
        out[b, 1:length] = logits.log_softmax(-1).gather(-1, ids[b, 1:length, None])[:, 0]
    return out.where(response, 0.0)


# ------------------------------------------------------------------ densities


@torch.no_grad()
@pytest.mark.parametrize("name, window", [*((name, None) for name in KINDS), ("gemma2", 5), ("gemma3", 5)])
def test_scores_are_the_models_own_densities(name, window):
    """Also of rows that are longer than a window of the model, beside shorter ones."""
    model = network(name, **{"sliding_window": window} if window else {})
    sampler = bound(chat_of(name), temperature=0.7)
    plain = [i for i in range(sampler.vocab_size) if i not in sampler.forbidden_ids]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(plain)[torch.randint(len(plain), (3, 24), generator=generator)]
    attention = (torch.arange(24) < torch.tensor([[24], [9], [15]])).long()
    response = (attention > 0) & (torch.arange(24) % 3 > 0)
    scorer = scorer_of(sampler)
    scorer.check(model)
    found = scorer.score(model, ids, attention, response, 1000).logp
    assert torch.allclose(found, naive(model, ids, attention, response, scorer), atol=2e-5)
    assert found[response].max() < -0.01 and found[response].std() > 0.1


@by_name
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rollout_records_the_densities_that_are_scored(name, layout):
    sampler = bound(chat_of(name), temperature=0.8)
    episodes = played(name, layout, sampler, Retrieval())
    batch = batch_of(name, layout, episodes)
    assert len(batch) == 9 if layout == "turn" else len(batch) >= 3
    scored = scorer_of(sampler).score(network(name), batch.ids, batch.attention_mask, batch.response_mask, 10**6)
    assert torch.allclose(scored.logp, batch.behaviour_logp, atol=2e-4)
    assert torch.allclose(scored.allowed_logmass[batch.response_mask], batch.kept_logmass[batch.response_mask], atol=2e-4)
    assert batch.response_mask.sum() == sum(e.response_tokens for e in episodes) > 9


@by_name
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_teacher_who_is_told_nothing_is_the_student_bit_for_bit(name, layout):
    sampler = bound(chat_of(name))
    scorer = scorer_of(sampler)

    def read(batch, ids, attention, response):
        return scorer.score(network(name), ids, attention, response, 10**6).logp[response]

    for told in ("", "The mug is in the drawer.<|im_end|><end_of_turn><|eot_id|>"):
        batch = batch_of(name, layout, played(name, layout, sampler, Retrieval((), told)))
        student = read(batch, batch.ids, batch.attention_mask, batch.response_mask)
        teacher = read(batch, batch.teacher_ids, batch.teacher_attention_mask, batch.teacher_response_mask)
        assert torch.equal(student, teacher) is (told == "") and batch.is_privileged.all().item() is (told != "")
        assert student.shape == teacher.shape


def test_thinking_decides_how_many_rows_an_episode_has():
    """Random responses hold no thought: only the empty one of a prompt without thinking is not told again."""
    rows = {
        name: len(make_rows(played(name, "trajectory", bound(chat_of(name)), Retrieval()), "trajectory"))
        for name in ARCHITECTURES
    }
    assert rows.pop("qwen3 without thinking") == 9 and set(rows.values()) == {3}


# ------------------------------------------------------------------ sliding windows


def through_a_window(model):
    env, chat = HouseholdEnv(**WORLD), chat_of("gemma3")
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, bound(chat), SkillView(), "turn", horizon=3)
    return rollout(model, [Request(env.task(env.task_ids("train", 1, 0)[0]), 0)])[0]


def test_a_batch_that_is_wider_than_a_window_is_refused_where_the_cache_has_holes():
    """A window would count them."""
    model = copy.deepcopy(network("gemma3", sliding_window=32))
    model.set_attn_implementation("eager")
    with pytest.raises(PolicyError, match=r"Gemma3ForCausalLM looks back over 32 positions only, and the batch takes \d+"):
        through_a_window(model)


def test_rows_without_padding_are_sampled_through_a_window():
    model = network("gemma3", sliding_window=32)
    turn = through_a_window(model).turns[-1]
    assert len(turn.prompt_ids) > 32
    ids = torch.tensor([turn.prompt_ids + turn.response_ids])
    with torch.no_grad():
        logp = network("gemma3", sliding_window=32)(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1].log_softmax(-1)
    told = torch.tensor(turn.behaviour_logp) + torch.tensor(turn.kept_logmass)
    vocabulary = len(chat_of("gemma3").tokenizer)
    logp = logp[:, :vocabulary] - logp[:, :vocabulary].logsumexp(-1, keepdim=True)
    torch.testing.assert_close(logp.gather(1, torch.tensor(turn.response_ids)[:, None])[:, 0], told.float(), atol=1e-4, rtol=0)


# ------------------------------------------------------------------ training


def fit(strategy, layout, tmp_path, steps=1):
    data = TaskModule(
        HouseholdEnv(**WORLD), tasks_per_step=1, group_size=2, train_tasks=4, val_tasks=2, val_splits=["unseen"],
        protocol=CompactProtocol(), layout=layout,
    )  # fmt: skip
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(strategy, data)
    return {k: float(v) for k, v in trainer.callback_metrics.items()}


def trained(policy: Policy, layout: str, tmp_path, cls=SDAR, **kwargs):
    optimizer = partial(torch.optim.SGD, lr=1e-2)
    settings = {"retriever": FactRetriever(), "sampler": TorchSampler(max_new_tokens=6), "optimizer": optimizer}
    strategy = cls(policy=policy, log_episodes_every=0, **settings | kwargs)
    return strategy, fit(strategy, layout, tmp_path)


@pytest.mark.parametrize(
    "name, layout", [*((name, "trajectory") for name in ARCHITECTURES), ("qwen3", "turn"), ("gemma3", "turn")]
)
def test_a_training_step_changes_the_weights(name, layout, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    export = tmp_path / "export"
    strategy, metrics = trained(
        policy_of(name, folders), layout, tmp_path, distill_coef=1.0, kl_coef=0.0, export=str(export), export_dtype="float32"
    )
    before, after = policy_of(name, folders).load_model().state_dict(), strategy.model.state_dict()
    assert any(not torch.equal(before[n], t) for n, t in after.items()) and all(t.isfinite().all() for t in after.values())
    assert metrics["train/skipped_steps"] == 0 and metrics["train/grad_norm"] > 0
    assert metrics["teacher/empty_share"] == 0 and metrics["gap/abs"] > 0
    stored = PretrainedPolicy(str(export), chat_options=ARCHITECTURES[name].options)
    assert all(torch.equal(after[n], t) for n, t in stored.load_model().state_dict().items())
    again, chat = ChatFormat(stored.load_tokenizer(), stored.chat_options), chat_of(name)
    told = [{"role": "user", "content": "Go.\n\n<|im_end|> é"}]
    assert again.prompt(told) == chat.prompt(told) and again.stop_ids == chat.stop_ids
    assert stored.context() == 4096


@by_kind
def test_a_training_step_with_adapters_and_recomputed_activations(name, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    policy = LoRAPolicy(PretrainedPolicy(folders[name], gradient_checkpointing=True), rank=2)
    strategy, metrics = trained(policy, "trajectory", tmp_path, distill_coef=1.0)
    assert metrics["train/grad_norm"] > 0 and len(list(adapted(strategy.model))) == 14
    assert any(layer.lora_B["default"].weight.abs().max() > 0 for _, layer in adapted(strategy.model))
    base = network(name).state_dict()
    assert all(
        torch.equal(base[n.replace(".base_layer", "")], t) for n, t in strategy.model.state_dict().items() if ".lora_" not in n
    )


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "qwen3 without thinking", "gemma3"])
def test_behaviour_is_cloned_with_the_rows_of_the_template(name, folders, tmp_path, monkeypatch):
    """A demonstration is told as a rollout would be: where the template rewrites the past, in several rows."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    seen = []
    demonstrate = BehaviorCloning.demonstrate
    monkeypatch.setattr(BehaviorCloning, "demonstrate", lambda self, r: seen.append(demonstrate(self, r)) or seen[-1])
    strategy, metrics = trained(policy_of(name, folders), "trajectory", tmp_path, cls=BehaviorCloning)
    assert metrics["train/loss"] > 0 and seen
    for episode in seen:
        restarts = [t.starts_row for t in episode.turns]
        assert restarts == [False] + [name == "qwen3 without thinking"] * (len(restarts) - 1)
        told = [i for t in episode.turns for i in t.prompt_ids + t.response_ids]
        if not any(restarts):
            assert told[: len(episode.turns[0].prompt_ids)] == strategy.view.prompt(
                strategy.chat, episode.first_messages, episode.privileged_text
            )
