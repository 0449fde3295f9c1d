"""Scores against a naive log-softmax of the model's own logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sdar.errors import PolicyError
from sdar.scoring import Scorer, micro_batches

VOCAB = 23
FORBIDDEN = (0, 5, 6)
SIZE = {
    "vocab_size": VOCAB + 4,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def network(config=Qwen3Config, **kwargs):
    """A model with opinions."""
    config = config(**SIZE | ({} if config in (PhiConfig, CohereConfig) else {"head_dim": 8}) | kwargs)
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.4)
    return model


@pytest.fixture(scope="module")
def model():
    return network()


def batch(lengths, width=None, seed=0):
    """Right-padded rows with garbage behind their end; responses in two places, also at the very end."""
    width = width or max(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(7, VOCAB, (64,), generator=generator)[:width] for _ in lengths])
    at = torch.arange(width)[None]
    ends = torch.tensor(lengths)[:, None]
    attention = (at < ends).long()
    response = ((at >= ends - 2) | ((at >= 2) & (at < 4))) & (at < ends) & (at > 0)
    return ids, attention, response


def naive(model, ids, attention, response, temperature=1.0, forbidden=()):
    """(log-probability, entropy, allowed log-mass), row by row without padding."""
    out = torch.zeros(3, *ids.shape)
    for b, length in enumerate(attention.sum(1).tolist()):
        logits = model(input_ids=ids[b : b + 1, :length]).logits[0, :-1, :VOCAB].float() / temperature
        allowed = torch.tensor([i for i in range(VOCAB) if i not in forbidden])
        mass = logits[:, allowed].logsumexp(-1)
        logp = logits[:, allowed] - mass[:, None]
        target = logits.gather(-1, ids[b, 1:length, None])[:, 0] - mass
        rows = torch.stack([target, -(logp.exp() * logp).sum(-1), mass - logits.logsumexp(-1)])
        out[:, b, 1:length] = rows
    return out * response


SETTINGS = [(1.0, ()), (0.6, ()), (1.7, FORBIDDEN)]
by_setting = pytest.mark.parametrize("temperature, forbidden", SETTINGS)


@torch.no_grad()
@by_setting
@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_scores_are_the_log_softmax_of_the_models_logits(model, temperature, forbidden, chunk):
    ids, attention, response = batch([11, 5, 8, 3])
    stats = Scorer(temperature, forbidden, VOCAB, chunk)(model, ids, attention, response)
    expected = naive(model, ids, attention, response, temperature, forbidden)
    for values, wanted in zip(stats, expected, strict=True):
        assert values.shape == ids.shape
        assert torch.allclose(values, wanted, atol=1e-5)
    assert (stats.logp[response] < -0.1).any() and (stats.entropy[response] > 0.1).any()


@torch.no_grad()
@by_setting
def test_outside_of_the_response_everything_is_zero(model, temperature, forbidden):
    ids, attention, response = batch([11, 5, 8, 3])
    ids[~response] = torch.where(torch.rand(ids[~response].shape) < 0.3, 0, ids[~response])  # forbidden ids may be told
    for values in Scorer(temperature, forbidden, VOCAB)(model, ids, attention, response):
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
        for one, all_rows, more in zip(alone, together, padded, strict=True):
            assert torch.allclose(one[0], all_rows[row, :length], atol=1e-5)
            assert torch.allclose(one[0], more[row, :length], atol=1e-5)
            assert (more[:, ids.shape[1] :] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("max_tokens", [1, 8, 16, 1000])
def test_scoring_in_micro_batches_is_scoring_at_once(model, max_tokens):
    ids, attention, response = batch([11, 5, 8, 3])
    scorer = Scorer(1.0, FORBIDDEN, VOCAB)
    in_pieces = scorer.score(model, ids, attention, response, max_tokens)
    for values, wanted in zip(in_pieces, scorer(model, ids, attention, response), strict=True):
        assert torch.allclose(values, wanted, atol=1e-5)


@by_setting
def test_the_gradient_is_the_naive_one(temperature, forbidden):
    model = network()
    ids, attention, response = batch([11, 5, 8, 3])
    weights = torch.randn(3, *ids.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for values in (
        torch.stack(list(Scorer(temperature, forbidden, VOCAB, chunk=3)(model, ids, attention, response))),
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
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_greedy_rollout_is_scored_at_temperature_one(model):
    assert Scorer(0.0, (), VOCAB).temperature == 1.0


def test_rows_without_a_response_have_a_gradient_of_zero():
    model = network()
    ids, attention, response = batch([5, 4])
    stats = Scorer(1.0, (), VOCAB)(model, ids, attention, torch.zeros_like(response))
    assert all((values == 0).all() for values in stats)
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
    for values, wanted in zip(scorer(model, ids, attention, response), expected, strict=True):
        assert torch.allclose(values, wanted, atol=1e-5)


@pytest.mark.parametrize("config, kwargs", [(Qwen3Config, {}), (Gemma2Config, {"final_logit_softcapping": 30.0})])
def test_large_logits_that_a_model_rounds_pass_the_check(config, kwargs):
    model = network(config, tie_word_embeddings=False, **kwargs)
    with torch.no_grad():
        model.lm_head.weight *= 8
    assert model(input_ids=torch.arange(8)[None]).logits.abs().max() > 20
    Scorer(1.0, (), VOCAB).check(model.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config, kwargs", [(GraniteConfig, {"logits_scaling": 8.0}), (CohereConfig, {"logit_scale": 0.25})])
def test_a_head_that_scales_its_logits_is_refused(config, kwargs, dtype):
    name = config.__name__.removesuffix("Config") + "ForCausalLM"
    message = rf"{name}: log-probabilities from hidden states differ from the model's own by [\d.e+]+ nats"
    with pytest.raises(PolicyError, match=message):
        Scorer(1.0, (), VOCAB).check(network(config, **kwargs).to(dtype))


def test_a_model_of_nothing_but_nan_is_refused(model):
    broken = network()
    broken.model.norm.weight.data[:] = torch.nan
    with pytest.raises(PolicyError, match="by nan nats"):
        Scorer(1.0, (), VOCAB).check(broken)


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
