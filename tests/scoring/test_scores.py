"""Scores against a naive log-softmax of the model's own logits, and which models can be scored."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from scored import FORBIDDEN, VOCAB, batch, by_setting, naive, network, stats_of
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig, Qwen2Config, Qwen3Config

from sdar import heads
from sdar.errors import PolicyError
from sdar.heads import head_of
from sdar.scoring import Scorer, micro_batches


@torch.no_grad()
@by_setting
@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_scores_are_the_log_softmax_of_the_models_logits(model, temperature, forbidden, chunk):
    ids, attention, response = batch([11, 5, 8, 3])
    stats = Scorer(temperature, forbidden, VOCAB, chunk)(model, ids, attention, response)
    expected = naive(model, ids, attention, response, temperature, forbidden)
    for values, wanted in zip(stats_of(stats), expected, strict=True):
        assert values.shape == ids.shape
        assert torch.allclose(values, wanted, atol=1e-5)
    assert (stats.logp[response] < -0.1).any() and (stats.entropy[response] > 0.1).any()


@torch.no_grad()
@by_setting
def test_outside_of_the_response_everything_is_zero(model, temperature, forbidden):
    ids, attention, response = batch([11, 5, 8, 3])
    ids[~response] = torch.where(torch.rand(ids[~response].shape) < 0.3, 0, ids[~response])  # forbidden ids may be told
    for values in stats_of(Scorer(temperature, forbidden, VOCAB)(model, ids, attention, response)):
        assert (values[~response] == 0).all()


@torch.no_grad()
def test_padding_and_companions_change_nothing(model):
    lengths = [11, 5, 8, 3]
    scorer = Scorer(1.0, FORBIDDEN, VOCAB)
    ids, attention, response = batch(lengths)
    together = scorer(model, ids, attention, response)
    wide = [torch.nn.functional.pad(t, (0, 9), value=v) for t, v in ((ids, 13), (attention, 0), (response, False))]
    padded = scorer(model, *wide)
    for row, length in enumerate(lengths):
        alone = scorer(model, *(t[row : row + 1, :length] for t in (ids, attention, response)))
        for one, all_rows, more in zip(*map(stats_of, (alone, together, padded)), strict=True):
            assert torch.allclose(one[0], all_rows[row, :length], atol=1e-5)
            assert torch.allclose(one[0], more[row, :length], atol=1e-5)
            assert (more[:, ids.shape[1] :] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("max_tokens", [1, 8, 16, 1000])
def test_scoring_in_micro_batches_is_scoring_at_once(model, max_tokens):
    ids, attention, response = batch([11, 5, 8, 3])
    scorer = Scorer(1.0, FORBIDDEN, VOCAB)
    in_pieces = scorer.score(model, ids, attention, response, max_tokens)
    for values, wanted in zip(*map(stats_of, (in_pieces, scorer(model, ids, attention, response))), strict=True):
        assert torch.allclose(values, wanted, atol=1e-5)


@by_setting
def test_the_gradient_is_the_naive_one(temperature, forbidden):
    model = network()
    ids, attention, response = batch([11, 5, 8, 3])
    weights = torch.randn(3, *ids.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for values in (
        torch.stack(stats_of(Scorer(temperature, forbidden, VOCAB, chunk=3)(model, ids, attention, response))),
        naive(model, ids, attention, response, temperature, forbidden),
    ):
        model.zero_grad()
        (values * weights).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-4 * (1 + gradient.abs().max().item())), name
    assert gradients[0]["model.embed_tokens.weight"].abs().max() > 1e-3


@torch.no_grad()
def test_rows_that_pad_the_embedding_never_count():
    model = network(tie_word_embeddings=False)
    ids, attention, response = batch([9, 6])
    before = Scorer(1.0, FORBIDDEN, VOCAB)(model, ids, attention, response)
    model.lm_head.weight[VOCAB:] += 7.0
    after = Scorer(1.0, FORBIDDEN, VOCAB)(model, ids, attention, response)
    assert all(torch.equal(a, b) for a, b in zip(stats_of(before), stats_of(after), strict=True))


def test_a_greedy_rollout_is_scored_at_temperature_one(model):
    assert Scorer(0.0, (), VOCAB).temperature == 1.0


def test_rows_without_a_response_have_a_gradient_of_zero():
    model = network()
    ids, attention, response = batch([5, 4])
    stats = Scorer(1.0, (), VOCAB)(model, ids, attention, torch.zeros_like(response))
    assert all((values == 0).all() for values in stats_of(stats))
    stats.logp.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


# ------------------------------------------------------------------ which models can be scored


@torch.no_grad()
@pytest.mark.parametrize(
    "config, kwargs",
    [
        (Qwen2Config, {}),
        (Qwen3Config, {}),
        (LlamaConfig, {}),
        (Gemma2Config, {"final_logit_softcapping": 3.0}),
        (PhiConfig, {}),  # its head has a bias
    ],
)
def test_common_architectures_pass_the_check_and_are_scored_right(config, kwargs):
    model = network(config, **kwargs)
    if config is PhiConfig:
        model.lm_head.bias.normal_()
    scorer = Scorer(0.7, FORBIDDEN, VOCAB)
    scorer.check(model)
    scorer.check(model.to(torch.bfloat16))
    model = network(config, **kwargs)
    ids, attention, response = batch([11, 5, 8, 3])
    expected = naive(model, ids, attention, response, 0.7, FORBIDDEN)
    for values, wanted in zip(stats_of(scorer(model, ids, attention, response)), expected, strict=True):
        assert torch.allclose(values, wanted, atol=1e-5)


@pytest.mark.parametrize("config, kwargs", [(Qwen3Config, {}), (Gemma2Config, {"final_logit_softcapping": 30.0})])
def test_large_logits_that_a_model_rounds_pass_the_check(config, kwargs):
    model = network(config, tie_word_embeddings=False, **kwargs)
    with torch.no_grad():
        model.lm_head.weight *= 8
    assert model(input_ids=torch.arange(8)[None]).logits.abs().max() > 20
    Scorer(1.0, (), VOCAB).check(model.to(torch.bfloat16))


MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
SCALED = {
    "Granite": {"logits_scaling": 8.0},
    "GraniteMoeShared": {"logits_scaling": 8.0},
    "Cohere": {"logit_scale": 0.25},
    "Cohere2": {"logit_scale": 0.25},
    "HyperCLOVAX": {"logits_scaling": 0.25},
    "MiniCPM3": {"dim_model_base": 8, **MLA},
    "NanoChat": {"final_logit_softcapping": 3.0},
    "Inkling": {"logits_mup_width_multiplier": 8.0},
}


@pytest.mark.parametrize("family", [*SCALED, pytest.param("FalconH1", marks=pytest.mark.slow)])
def test_heads_that_scale_their_logits_are_scored_right_and_learn_right(family):
    config = getattr(transformers, f"{family}TextConfig" if family == "Inkling" else f"{family}Config")
    model = network(config, **SCALED.get(family, {"lm_head_multiplier": 0.25}))
    scorer, (ids, attention, response) = Scorer(0.7, FORBIDDEN, VOCAB), batch([11, 5, 8, 3])
    scorer.check(model)
    found = []
    for logp in (scorer(model, ids, attention, response).logp, naive(model, ids, attention, response, 0.7, FORBIDDEN)[0]):
        found.append((logp, torch.autograd.grad(logp.sum(), model.get_output_embeddings().weight)[0]))
    (logp, gradient), (wanted, its) = found
    torch.testing.assert_close(logp, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, its, atol=1e-5 * float(its.abs().max()), rtol=1e-5)
    scorer.check(model.to(torch.bfloat16))


def test_muses_scale_stands_within_its_cap():
    """`MuseSparkForConditionalGeneration.forward`: cap tanh(multiplier logits / cap)."""
    layer = torch.nn.Linear(4, VOCAB, bias=False)
    settings = {"model_type": "muse_spark_text", "output_multiplier": 0.2, "final_logit_softcapping": 3.0}
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings))
    head = head_of(SimpleNamespace(get_output_embeddings=lambda: layer, config=config), VOCAB)
    hidden = torch.randn(5, 4)
    wanted = (3.0 * torch.tanh(0.2 * layer(hidden) / 3.0)).log_softmax(-1)
    torch.testing.assert_close(Scorer(1.0, (), VOCAB).log_probs(hidden, head), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config, kwargs", [(GraniteConfig, {"logits_scaling": 8.0}), (CohereConfig, {"logit_scale": 0.25})])
def test_a_head_that_scales_by_what_nobody_knows_is_refused(config, kwargs, dtype, monkeypatch):
    monkeypatch.setattr(heads, "FACTORS", {})
    name = config.__name__.removesuffix("Config") + "ForCausalLM"
    message = rf"{name}: log-probabilities from hidden states differ from the model's own by [\d.e+]+ nats"
    with pytest.raises(PolicyError, match=message):
        Scorer(1.0, (), VOCAB).check(network(config, **kwargs).to(dtype))


def test_a_model_of_nothing_but_nan_is_refused(model):
    broken = network()
    broken.model.norm.weight.data[:] = torch.nan
    with pytest.raises(PolicyError, match="by nan nats"):
        Scorer(1.0, (), VOCAB).check(broken)


def test_a_tokenizer_that_is_longer_than_the_head_is_refused():
    model = network()
    with pytest.raises(
        PolicyError, match=rf"has {VOCAB + 40} tokens and Qwen3ForCausalLM gives \d+ logits: the last \d+ tokens could"
    ):
        Scorer(1.0, (), VOCAB + 40).check(model)


# ------------------------------------------------------------------ micro-batches


@given(lengths=st.lists(st.integers(1, 60), max_size=30), max_tokens=st.integers(1, 200))
def test_micro_batches_hold_every_row_once_and_keep_the_limit(lengths, max_tokens):
    pieces = [piece.tolist() for piece in micro_batches(torch.tensor(lengths, dtype=torch.long), max_tokens)]
    assert sorted(row for piece in pieces for row in piece) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or max(lengths[row] for row in piece) * len(piece) <= max_tokens
    ordered = [lengths[row] for piece in pieces for row in piece]
    assert ordered == sorted(lengths, reverse=True)  # similar lengths share a piece
    for piece in pieces[:-1]:
        assert lengths[piece[0]] * (len(piece) + 1) > max_tokens  # none could have taken one more
