"""Scores, teachers' payloads and objectives against a naive log-softmax of the model's own logits."""

import inspect
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sdar.errors import ConfigError, PolicyError
from sdar.functional import log_prob_gap
from sdar.registry import load_parts, parts
from sdar.rollout import collate
from sdar.scoring import Head, Scorer, StudentOutput, micro_batches, score_with_teachers
from sdar.types import Episode, Payload, Row, StudentTokens, Task, TokenView

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


def network(config=Qwen3Config, seed=0, **kwargs):
    """A model with opinions."""
    config = config(**SIZE | ({} if config in (PhiConfig, CohereConfig) else {"head_dim": 8}) | kwargs)
    torch.manual_seed(seed)
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


def stats_of(scored):
    """What is there for each token, of a pass or of scores."""
    return scored.logp, scored.entropy, scored.allowed_logmass


SETTINGS = [(1.0, ()), (0.6, ()), (1.7, FORBIDDEN)]
by_setting = pytest.mark.parametrize("temperature, forbidden", SETTINGS)


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


# ------------------------------------------------------------------ two sides: a student, and teachers in a context of their own

load_parts()
DIVERGENCES = {name: cls for name, cls in parts("divergences").items() if cls.__module__.startswith("sdar.")}
CASES = [pytest.param(name, {}, id=name) for name in DIVERGENCES] + [
    pytest.param(name, settings, id=f"{name} {' '.join(map(str, settings.values()))}")
    for name, settings in [
        ("top_k_reverse", {"tail": "bucket"}),
        ("top_k_reverse", {"tail": "sampled", "max_log_ratio": 0.5}),
        ("top_k_forward", {"support": "student", "tail": "bucket"}),
        ("top_k_jensen_shannon", {"support": "student", "tail": "sampled", "beta": 0.3}),
        ("reverse", {"temperature": 1.5}),
        ("jensen_shannon", {"beta": 0.9}),
    ]
]
by_case = pytest.mark.parametrize("name, settings", CASES)
EVERYTHING = 10**6


def objective(name, settings):
    """A divergence; those on a support get one that is smaller than the vocabulary."""
    small = {"k": 3} if "k" in inspect.signature(DIVERGENCES[name]).parameters else {}
    return DIVERGENCES[name](**small | settings)


def two_sides(seed=0):
    """Rows whose teacher reads a longer beginning, a shorter one, the same; two turns in the first and third."""
    generator = torch.Generator().manual_seed(seed)

    def some(n):
        return torch.randint(7, VOCAB, (n,), generator=generator).tolist()

    rows, episodes = [], []
    for e, (head, its_head, tail) in enumerate([(3, 6, "11011"), (4, 2, "111"), (2, 2, "1001"), (5, 9, "0110")]):
        end, mask = some(len(tail)), [int(c) for c in tail]
        zeros, turns = [0.0] * (head + len(end)), [0] * head + [int(i > 2) for i in range(len(end))]
        rows.append(
            Row(some(head) + end, [0] * head + mask, turns, zeros, zeros, e, 0, [0] * len(zeros), some(its_head) + end, True)
        )
        episodes.append(Episode(Task(str(e), "family", ""), 0))
    return collate(rows, episodes, [0] * len(rows))


def everything(model, ids, attention, response, temperature=1.0, forbidden=()):
    """Log-probabilities of the whole vocabulary for each response token ``[tokens, VOCAB]``, from the model's own logits."""
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    logits = model(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, :-1, :VOCAB] / temperature
    logits = logits.index_fill(-1, torch.tensor(forbidden, dtype=torch.long), -torch.inf)
    return logits.log_softmax(-1)[response[:, 1:]].clamp_min(torch.finfo(logits.dtype).min)


def told(batch):
    return batch.ids, batch.attention_mask, batch.response_mask


def told_teacher(batch):
    return batch.teacher_ids, batch.teacher_attention_mask, batch.teacher_response_mask


def view_of(batch, now, vocab_size=VOCAB):
    """What a strategy tells of each token."""
    logp, entropy = now.logp.detach(), now.entropy.detach()
    moved = 0.1 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(8)) * batch.response_mask
    return TokenView(
        student_logp=logp,
        teacher_logp=batch.teacher_logp,
        gap=log_prob_gap(batch.teacher_logp, logp),
        entropy=entropy,
        response_mask=batch.response_mask,
        turn_ids=batch.turn_ids,
        advantages=torch.ones_like(logp),
        vocab_size=vocab_size,
        old_logp=logp + moved,
        ids=batch.ids,
        group_success=torch.full_like(logp, 0.5),
        **{name: getattr(batch, name) for name in ("teacher_top_ids", "teacher_top_logp") if batch.has(name)},
    )


def teachers_of(batch, heads):
    return [(h, batch.teacher_hidden[..., : h.weight.shape[1]], batch.teacher_index == i) for i, h in enumerate(heads)]


def compared(divergence, student, networks, scorer, batch=None):
    """The divergence of each token ``[batch, time]`` as a strategy gets it, and the batch."""
    batch = batch or two_sides()
    heads = score_with_teachers(batch, networks, scorer, EVERYTHING, *divergence.needs())
    now = scorer(student, *told(batch))
    return now.compare(divergence, view_of(batch, now), teachers_of(batch, heads)), batch


def naively_compared(divergence, student, networks, batch, temperature, forbidden):
    """The same from the logits of whole models, all tokens at once and without any alignment but the order of tokens."""
    setting = (temperature, forbidden)
    logp, ids = everything(student, *told(batch), *setting), batch.ids[batch.response_mask]
    its = torch.zeros_like(logp, requires_grad=False)
    row = batch.response_mask.nonzero()[:, 0]
    for i, network in enumerate(networks):
        with torch.no_grad():
            its_row = batch.teacher_response_mask.nonzero()[:, 0]
            its[row == i] = everything(network, *told_teacher(batch), *setting)[its_row == i]
    own = logp.gather(1, ids[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(1)
    fixed, sampled = own.detach(), its.gather(1, ids[:, None])[:, 0]
    moved = 0.1 * torch.randn(batch.ids.shape, generator=torch.Generator().manual_seed(8))[batch.response_mask]
    zero = torch.zeros_like(fixed)
    top = its.topk(divergence.needs()[1])
    view = TokenView(
        student_logp=fixed, teacher_logp=sampled, gap=sampled - fixed, entropy=entropy.detach(), response_mask=ids >= 0, turn_ids=ids,
        advantages=zero, vocab_size=VOCAB, old_logp=fixed + moved, ids=ids, group_success=zero, teacher_top_ids=top.indices,
        teacher_top_logp=top.values, teacher_logits=its,
    )  # fmt: skip
    values = divergence(StudentTokens(own, entropy, logp), view)
    return torch.zeros(batch.ids.shape, dtype=values.dtype).index_put(batch.response_mask.nonzero(as_tuple=True), values)


def gradients(values, model, seed=1):
    """Of all parameters, with another weight for each token."""
    model.zero_grad()
    (values * torch.randn(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(seed))).sum().backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def wide():
    """A student and two teachers of other sizes, in float64."""
    other = {"hidden_size": 24, "num_hidden_layers": 1}
    return network().double(), network(seed=1).double(), network(LlamaConfig, seed=2, **other).double()


# ------------------------------------------------------------------ scores of the teacher


@pytest.mark.parametrize("max_tokens", [1, 20, EVERYTHING])
@pytest.mark.parametrize("k", [1, 4, VOCAB])
def test_the_likeliest_ids_are_those_of_the_whole_distribution(model, k, max_tokens):
    batch = two_sides()
    scorer = Scorer(1.7, FORBIDDEN, VOCAB, chunk=3)
    seen = scorer.score(model, *told_teacher(batch), max_tokens, Payload.TOP_K, k)
    mask = batch.teacher_response_mask
    expected = everything(model, *told_teacher(batch), 1.7, FORBIDDEN).detach()
    assert seen.top_ids.shape == seen.top_logp.shape == (*batch.teacher_ids.shape, k) and seen.hidden is None
    assert torch.allclose(seen.top_logp[mask], expected.topk(k).values, atol=1e-5)
    assert torch.allclose(seen.top_logp[mask], expected.gather(1, seen.top_ids[mask]), atol=1e-5)
    assert not seen.top_ids[~mask].any() and not seen.top_logp[~mask].any()
    if k < VOCAB - len(FORBIDDEN):
        assert not torch.isin(seen.top_ids[mask], torch.tensor(FORBIDDEN)).any()
    assert torch.allclose(seen.logp[mask], expected.gather(1, batch.teacher_ids[mask][:, None])[:, 0], atol=1e-5)


def test_only_what_is_asked_for_is_kept(model):
    batch, scorer = two_sides(), Scorer(1.0, (), VOCAB)
    kept = {
        payload: {f.name for f in fields(seen) if getattr(seen, f.name) is not None}
        for payload in Payload
        for seen in [scorer.score(model, *told_teacher(batch), EVERYTHING, payload, 2)]
    }
    assert kept[Payload.SAMPLED] == {"logp", "entropy", "allowed_logmass"}
    assert kept[Payload.TOP_K] - kept[Payload.SAMPLED] == {"top_ids", "top_logp"}
    assert kept[Payload.FULL] - kept[Payload.SAMPLED] == {"hidden"}


@pytest.mark.parametrize("max_tokens", [1, 25, EVERYTHING])
@pytest.mark.parametrize("payload", Payload)
def test_each_row_is_read_by_its_own_teacher(wide, payload, max_tokens):
    _, a, b = wide
    networks, batch, scorer = [b, a, b, a], two_sides(), Scorer(0.8, FORBIDDEN, VOCAB, chunk=3)
    heads = score_with_teachers(batch, networks, scorer, max_tokens, payload, 4)
    mask, row = batch.response_mask, batch.response_mask.nonzero()[:, 0]
    its_row = batch.teacher_response_mask.nonzero()[:, 0]
    assert batch.teacher_index.tolist() == [0, 1, 0, 1]
    assert batch.has("teacher_top_ids") == (payload == Payload.TOP_K)
    assert batch.has("teacher_hidden") == (payload == Payload.FULL) == bool(heads)
    with torch.no_grad():
        for i, network_ in enumerate(networks):
            expected = everything(network_, *told_teacher(batch), 0.8, FORBIDDEN)[its_row == i]
            sampled = expected.gather(1, batch.ids[mask][row == i][:, None])[:, 0]
            torch.testing.assert_close(batch.teacher_logp[mask][row == i], sampled, atol=1e-6, rtol=0)
            if payload == Payload.TOP_K:
                ids, logp = (t[mask][row == i] for t in (batch.teacher_top_ids, batch.teacher_top_logp))
                torch.testing.assert_close(logp, expected.topk(4).values, atol=1e-6, rtol=0)
                torch.testing.assert_close(logp, expected.gather(1, ids), atol=1e-6, rtol=0)
            if payload == Payload.FULL:
                head, hidden, rows = teachers_of(batch, heads)[int(batch.teacher_index[i])]
                assert rows[i] and hidden.shape[2] == network_.config.hidden_size
                whole = scorer.log_probs(hidden[mask][row == i], head)
                torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)
    for name in ("teacher_logp", "teacher_top_ids", "teacher_top_logp", "teacher_hidden"):
        values = getattr(batch, name) if batch.has(name) else None
        assert values is None or not values[~mask].any()


@pytest.mark.parametrize("order", [(0, 1, 1, 0), (1, 0, 0, 1)])
@pytest.mark.parametrize("payload", Payload)
def test_teachers_of_different_precision_share_a_batch(payload, order):
    """None is lowered to the precision of another."""
    pair = [network().to(torch.bfloat16), network(LlamaConfig, seed=3, hidden_size=24)]
    batch, scorer = two_sides(), Scorer(1.0, (), VOCAB)
    heads = score_with_teachers(batch, [pair[i] for i in order], scorer, EVERYTHING, payload, 3)
    assert batch.teacher_logp.dtype == torch.float32
    for i, network_ in enumerate(pair):
        alone = two_sides()
        alone_heads = score_with_teachers(alone, [network_] * 4, scorer, EVERYTHING, payload, 3)
        mine = batch.response_mask & (torch.tensor(order) == i)[:, None]
        assert torch.allclose(batch.teacher_logp[mine], alone.teacher_logp[mine], atol=1e-5 if i else 0.1)
        if payload == Payload.FULL:
            its, own = (
                scorer.log_probs(b.teacher_hidden[mine][:, : h.weight.shape[1]], h)
                for b, h in ((batch, heads[order[0] != i]), (alone, alone_heads[0]))
            )
            assert torch.allclose(its, own, atol=1e-5 if i else 0.1)


@pytest.mark.parametrize("name", ["reverse", "top_k_reverse", "k1"])
def test_a_live_teacher_stays_what_it_was_when_the_rows_were_scored(name):
    student, divergence, scorer = network().double(), objective(name, {}), Scorer(1.0, FORBIDDEN, VOCAB)
    fixed = network().double()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    values, batch = compared(divergence, student, [student] * 4, scorer)
    heads = score_with_teachers(batch, [student] * 4, scorer, EVERYTHING, *divergence.needs())
    gradients(values, student)
    optimizer.step()
    now = scorer(student, *told(batch))
    after = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads) if heads else [])
    expected = naively_compared(divergence, student, [fixed] * 4, batch, 1.0, FORBIDDEN)
    torch.testing.assert_close(after, expected, atol=1e-9, rtol=1e-7)
    assert not torch.allclose(after, values, atol=1e-3)


# ------------------------------------------------------------------ objectives


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@by_case
def test_every_objective_is_the_naive_one_and_so_is_its_gradient(wide, name, settings, chunk):
    student, a, b = wide
    divergence, networks = objective(name, settings), [b, a, a, b]
    values, batch = compared(divergence, student, networks, Scorer(1.7, FORBIDDEN, VOCAB, chunk))
    actual = gradients(values, student)
    wanted = naively_compared(divergence, student, networks, batch, 1.7, FORBIDDEN)
    assert values.shape == batch.ids.shape and not values[~batch.response_mask].any()
    assert (values[batch.response_mask] != 0).all()
    torch.testing.assert_close(values, wanted, atol=1e-10, rtol=1e-8)
    expected = gradients(wanted, student)
    for parameter, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[parameter], atol=1e-9, rtol=1e-7, msg=parameter)
    assert actual["lm_head.weight"].any() and not actual["lm_head.weight"][VOCAB:].any()


def test_the_exact_ones_are_their_formulas(wide):
    student, teacher, _ = wide
    batch = two_sides()
    mine = everything(student, *told(batch)).detach()
    its = everything(teacher, *told_teacher(batch)).detach()
    mixture = (0.5 * mine.exp() + 0.5 * its.exp()).log()
    formulas = {
        "reverse": mine.exp() * (mine - its),
        "forward": its.exp() * (its - mine),
        "jensen_shannon": 0.5 * mine.exp() * (mine - mixture) + 0.5 * its.exp() * (its - mixture),
        "top_k_cross_entropy": torch.where(its >= its.topk(3).values[:, 2:], -its.exp() * mine, 0.0),
    }
    for name, terms in formulas.items():
        values, _ = compared(objective(name, {}), student, [teacher] * 4, Scorer(1.0, (), VOCAB, 3), batch)
        torch.testing.assert_close(values[batch.response_mask], terms.sum(1), atol=1e-9, rtol=0)


@by_case
def test_objectives_without_a_gradient_have_the_same_values(wide, name, settings):
    student, a, b = wide
    divergence, scorer = objective(name, settings), Scorer(1.0, (), VOCAB, chunk=4)
    values, _ = compared(divergence, student, [a, b, b, a], scorer)
    with torch.no_grad():
        plain, _ = compared(divergence, student, [a, b, b, a], scorer)
    assert values.requires_grad and not plain.requires_grad
    assert torch.equal(plain, values)


@by_case
def test_what_a_row_holds_outside_of_its_response_is_no_loss(wide, name, settings):
    student, teacher, _ = wide
    divergence, scorer = objective(name, settings), Scorer(1.0, (), VOCAB, chunk=4)
    values, batch = compared(divergence, student, [teacher] * 4, scorer)
    heads = score_with_teachers(batch, [teacher] * 4, scorer, EVERYTHING, *divergence.needs())
    now = scorer(student, *told(batch))
    view = view_of(batch, now)
    view = view.including(
        teacher_logp=view.teacher_logp.masked_fill(~batch.response_mask, -3.0),
        gap=view.gap.masked_fill(~batch.response_mask, -3.0),
    )
    assert torch.equal(now.compare(divergence, view, teachers_of(batch, heads) if heads else []), values)


class Largest(TorchDispatchMode):
    """Most rows of any tensor with a column for each id, made inside; the transposed head is no matter."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.shape[-1:] == (VOCAB,)
                and tensor.shape != (SIZE["hidden_size"], VOCAB)
            ):
                self.rows = max(self.rows, tensor.numel() // VOCAB)
        return out


@by_case
def test_no_logits_are_kept_for_the_backward_pass(name, settings):
    """Some are made in both passes, a chunk at a time."""
    student, teacher, scorer = network(), network(seed=1), Scorer(1.0, FORBIDDEN, VOCAB, chunk=2)
    divergence, batch = objective(name, settings), two_sides()
    heads = score_with_teachers(batch, [teacher] * 4, scorer, EVERYTHING, *divergence.needs())
    now = scorer(student, *told(batch))
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with Largest() as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads) if heads else [])
    assert VOCAB not in {shape[-1] for shape in kept if len(shape) > 1}, "logits are kept"
    with Largest() as backward:
        values.sum().backward()
    vocabulary = divergence.needs()[0] != Payload.SAMPLED
    assert forward.rows == (2 if vocabulary else 0)
    assert backward.rows == 2  # the statistics of the pass itself are chunked as well
    assert student.model.embed_tokens.weight.grad.abs().max() > 0


def test_rows_that_no_given_teacher_has_read_are_no_loss(wide):
    student, a, b = wide
    divergence, scorer, batch = objective("reverse", {}), Scorer(1.0, (), VOCAB), two_sides()
    heads = score_with_teachers(batch, [a, b, a, b], scorer, EVERYTHING, *divergence.needs())
    now = scorer(student, *told(batch))
    both = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads))
    first = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads)[:1])
    assert torch.equal(first[::2], both[::2]) and not first[1::2].any() and both[1::2].any()


@pytest.mark.parametrize("name", ["reverse", "top_k_reverse"])
def test_rows_without_a_response_compare_to_nothing(wide, name):
    student, teacher, _ = wide
    batch = two_sides()
    batch.response_mask[:] = False
    batch.teacher_response_mask[:] = False
    values, _ = compared(objective(name, {}), student, [teacher] * 4, Scorer(1.0, (), VOCAB), batch)
    assert values.shape == batch.ids.shape and not values.any()


@pytest.mark.parametrize("name, payload", [("reverse", "full"), ("top_k_forward", "top_k"), ("top_k_cross_entropy", "top_k")])
def test_an_objective_that_needs_more_than_was_scored_says_so(wide, name, payload):
    student, teacher, _ = wide
    batch, scorer = two_sides(), Scorer(1.0, (), VOCAB)
    score_with_teachers(batch, [teacher] * 4, scorer, EVERYTHING, Payload.SAMPLED, 0)
    now = scorer(student, *told(batch))
    with pytest.raises(
        ConfigError, match=rf"{DIVERGENCES[name].__name__} needs the teacher's {payload} payload, which these rows"
    ):
        now.compare(objective(name, {}), view_of(batch, now))


# ------------------------------------------------------------------ padded embeddings


def padded(model, rows, value):
    """The same model with further rows in its embedding and head, as models are padded to multiples of 64 and more."""
    config = type(model.config)(**model.config.to_dict() | {"vocab_size": model.config.vocab_size + rows})
    out = type(model)(config).eval()
    weights = {
        name: torch.cat([t, torch.full((rows, *t.shape[1:]), value)]) if t.shape[0] == model.config.vocab_size else t
        for name, t in model.state_dict().items()
    }
    out.load_state_dict(weights)
    return out


@pytest.mark.parametrize("value", [0.3, 1e30])
@by_case
def test_rows_that_pad_a_teacher_change_no_bit(name, settings, value):
    divergence, scorer = objective(name, settings), Scorer(0.9, FORBIDDEN, VOCAB, chunk=4)
    plain = network(LlamaConfig, seed=1, hidden_size=24, vocab_size=VOCAB)
    found = []
    for teacher in (plain, padded(plain, 64, value)):
        student = network()
        values, _ = compared(divergence, student, [teacher] * 4, scorer)
        found.append((values, gradients(values, student)))
    assert torch.equal(found[0][0], found[1][0]) and found[0][0].any()
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


@pytest.mark.parametrize("value, tied", [(0.3, True), (1e30, False)])
@by_case
def test_rows_that_pad_a_student_change_no_bit_and_have_no_gradient(name, settings, value, tied):
    divergence, scorer, teacher = objective(name, settings), Scorer(0.9, FORBIDDEN, VOCAB, chunk=4), network(seed=1)
    plain = network(vocab_size=VOCAB, tie_word_embeddings=tied)
    found = []
    for student in (plain, padded(plain, 64, value)):
        values, _ = compared(divergence, student, [teacher] * 4, scorer)
        found.append((values, gradients(values, student)))
    assert torch.equal(found[0][0], found[1][0]) and found[0][0].any()
    for parameter, gradient in found[0][1].items():
        other = found[1][1][parameter]
        assert torch.equal(other[: len(gradient)], gradient) and not other[len(gradient) :].any(), parameter


def test_a_kept_head_is_a_copy_without_the_padding():
    model = network(PhiConfig)
    head = Scorer(1.0, (), VOCAB).head(model)
    kept = head.kept()
    assert isinstance(kept, Head) and kept.weight.shape == (VOCAB, 16) and kept.bias.shape == (VOCAB,)
    assert head.weight.requires_grad and not kept.weight.requires_grad and not kept.bias.requires_grad
    with torch.no_grad():
        model.lm_head.weight += 1
        model.lm_head.bias += 1
    assert torch.equal(kept.weight + 1, head.weight) and torch.equal(kept.bias + 1, head.bias)
    assert kept.to(torch.device("cpu")).softcap is None


@torch.no_grad()
@pytest.mark.parametrize("config, kwargs", [(Gemma2Config, {"final_logit_softcapping": 3.0}), (PhiConfig, {})])
def test_caps_and_biases_of_both_heads_are_applied(config, kwargs):
    student, teacher = network(config, **kwargs), network(config, seed=1, **kwargs)
    for model in (student, teacher):
        if config is PhiConfig:
            model.lm_head.bias.normal_()
    divergence = objective("reverse", {})
    values, batch = compared(divergence, student, [teacher] * 4, Scorer(0.7, FORBIDDEN, VOCAB, chunk=3))
    wanted = naively_compared(divergence, student, [teacher] * 4, batch, 0.7, FORBIDDEN)
    assert torch.allclose(values, wanted, atol=1e-5) and isinstance(
        Scorer(1.0, (), VOCAB)(student, *told(batch)), StudentOutput
    )
