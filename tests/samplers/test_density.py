"""The density that is sampled from, against brute force, and against what `TorchSampler` really draws."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sdar.parts import SampleKey
from sdar.samplers import TorchSampler
from sdar.samplers.density import inverse_cdf, truncate, uniform, uniforms

# ------------------------------------------------------------------ truncate


def brute_force(logits, temperature, top_k, top_p, forbidden):
    """(probability of each id, kept mass), one id after the other."""
    if temperature == 0:
        temperature, top_k = 1.0, 1
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    mass = [w / math.fsum(weights) for w in weights]
    ranked = sorted((i for i in range(len(logits)) if i not in forbidden), key=lambda i: (-logits[i], i))
    ranked = ranked[: top_k or None]
    candidates = math.fsum(mass[i] for i in ranked)
    kept = []
    for i in ranked:
        if kept and math.fsum(mass[j] for j in kept) / candidates >= top_p * (1 - 1e-12):
            break
        kept.append(i)
    total = math.fsum(mass[i] for i in kept)
    return [mass[i] / total if i in kept else 0.0 for i in range(len(logits))], total


def mask_of(forbidden, size):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(forbidden)] = True
    return mask


@st.composite
def densities(draw):
    size = draw(st.integers(2, 9))
    # few distinct values: ties are common
    logits = draw(st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]), min_size=size, max_size=size))
    forbidden = draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    temperature = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.5]))
    top_p = draw(st.sampled_from([0.01, 0.25, 0.5, 0.75, 0.9, 1.0]))
    return logits, temperature, draw(st.integers(0, size + 1)), top_p, forbidden


@given(densities())
@settings(max_examples=300)
def test_truncate_is_brute_force_for_every_mixture_of_options(case):
    logits, temperature, top_k, top_p, forbidden = case
    expected, mass = brute_force(*case)
    log_density, kept = truncate(torch.tensor([logits]), temperature, top_k, top_p, mask_of(forbidden, len(logits)))
    assert log_density.dtype == kept.dtype == torch.float64
    assert log_density[0].exp().tolist() == pytest.approx(expected, abs=1e-12)
    assert [p == 0 for p in expected] == torch.isneginf(log_density[0]).tolist()
    assert kept.item() == pytest.approx(math.log(mass), abs=1e-12)
    assert log_density[0].exp().sum().item() == pytest.approx(1.0)


def test_rows_of_a_batch_are_truncated_each_on_its_own():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    together = truncate(logits, 0.8, 4, 0.9, mask_of({2}, 7))
    for row in range(5):
        alone = truncate(logits[row : row + 1], 0.8, 4, 0.9, mask_of({2}, 7))
        assert torch.equal(alone[0][0], together[0][row]) and torch.equal(alone[1][0], together[1][row])


def test_a_density_by_hand():
    # weights 8 4 2 1 1; without the first: 4 2 1 1; top-k 3: 4 2 1; top-p 0.6: 4 2, which are 6 of 16
    logits = torch.tensor([[8.0, 4.0, 2.0, 1.0, 1.0]]).log()
    log_density, kept = truncate(logits, 1.0, 3, 0.6, mask_of({0}, 5))
    assert log_density[0].exp().tolist() == pytest.approx([0, 4 / 6, 2 / 6, 0, 0])
    assert kept.exp().item() == pytest.approx(6 / 16)


@pytest.mark.parametrize("size", range(2, 30))
def test_a_mass_that_exactly_reaches_top_p_takes_no_further_token(size):
    for wanted in range(1, size):
        log_density, kept = truncate(torch.zeros(1, size), 1.0, 0, wanted / size, None)
        assert torch.isfinite(log_density[0]).tolist() == [i < wanted for i in range(size)]
        assert kept.exp().item() == pytest.approx(wanted / size)


@pytest.mark.parametrize("options", [(0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 0, 1e-15)])
def test_of_equal_logits_the_lowest_id_is_the_greedy_one(options):
    log_density, kept = truncate(torch.tensor([[0.0, 3.0, 3.0, 1.0]]), *options, None)
    assert log_density.tolist() == [[-math.inf, 0.0, -math.inf, -math.inf]]
    assert kept.item() == pytest.approx(3 - math.log(1 + 2 * math.exp(3) + math.exp(1)))


def test_without_options_nothing_is_cut():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    log_density, kept = truncate(logits, 1.0, 0, 1.0, None)
    assert torch.allclose(log_density, logits.double().log_softmax(-1), atol=1e-14)
    assert kept.abs().max() < 1e-14


# ------------------------------------------------------------------ inverse_cdf


@given(
    st.lists(st.sampled_from([0, 0, 1, 2, 1000]), min_size=1, max_size=8).filter(any),
    st.one_of(st.sampled_from([0.0, 1 - 2.0**-53, 0.5]), st.floats(0, 1, exclude_max=True)),
)
def test_a_token_without_probability_is_never_picked(weights, number):
    log_density = torch.tensor([weights], dtype=torch.float64).log().log_softmax(-1)
    token = inverse_cdf(log_density, torch.tensor([number], dtype=torch.float64)).item()
    assert weights[token] > 0
    below = sum(weights[:token]) / sum(weights)
    assert below - 1e-9 <= number <= below + weights[token] / sum(weights) + 1e-9


def test_the_cumulative_probability_decides():
    log_density = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25]], dtype=torch.float64).log()
    picked = [inverse_cdf(log_density, torch.tensor([u])).item() for u in (0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1 - 2.0**-53)]
    assert picked == [1, 1, 3, 3, 3, 4, 4]


# ------------------------------------------------------------------ uniform


def test_the_random_numbers_are_frozen():
    # a change here changes what every recorded run has sampled
    assert [uniform(SampleKey(0, "t", 0, 0), i) for i in range(3)] == [
        0.7839261218254039,
        0.17579227246256457,
        0.37801747634808913,
    ]
    assert uniforms([SampleKey(7, "household-1", 3, 2)] * 2, 1).tolist() == [0.6501658411070275] * 2


draws = st.builds(SampleKey, st.integers(0, 9), st.text(max_size=5), st.integers(0, 99), st.integers(0, 99))


@given(draws, st.integers(0, 999))
def test_a_random_number_is_in_the_unit_interval(draw, position):
    assert 0 <= uniform(draw, position) < 1


def test_every_part_of_the_name_counts():
    names = list(product((0, 1), ("a", "b", "a1", "1a"), (0, 1, 11), (0, 1, 11), (0, 1, 11)))
    numbers = [uniform(SampleKey(s, t, a, n), p) for s, t, a, n, p in names]
    assert len(set(numbers)) == len(names)
    assert numbers == [uniform(SampleKey(s, t, a, n), p) for s, t, a, n, p in names]


def test_the_random_numbers_of_neighbours_look_independent():
    numbers = torch.stack([uniforms([SampleKey(0, f"task-{i}", 0, 0) for i in range(2000)], p) for p in range(2)])
    assert numbers.mean(1).sub(0.5).abs().max() < 4 / math.sqrt(12 * 2000)
    assert abs(torch.corrcoef(numbers)[0, 1]) < 4 / math.sqrt(2000)


# ------------------------------------------------------------------ what a model really draws

VOCABULARY = ["<pad>", "<end>", *"abcdefghij"]
PROMPT = [2, 5, 3]
OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 1.8},
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.8},
    "forbidden": {"forbid": ["<pad>", "c", "j"]},
    "everything": {"temperature": 1.4, "top_k": 7, "top_p": 0.9, "forbid": ["<pad>", "a"]},
}
by_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def network(seed):
    """A model with opinions; 4 rows of its embedding stand for no token."""
    torch.manual_seed(seed)
    width = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    depth = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(VOCABULARY) + 4, tie_word_embeddings=False, **width, **depth))
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.3)
        model.lm_head.weight[len(VOCABULARY) :] = 9 * model.lm_head.weight[:4]
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return network(0)


def sample(model, tokenizer, count, max_new_tokens=1, **options):
    sampler = TorchSampler(max_new_tokens=max_new_tokens, **{"forbid": [], **options})
    sampler.bind(tokenizer, [1], context=64)
    out = sampler.sample(model, [PROMPT] * count, [SampleKey(0, "task", i, 0) for i in range(count)])
    return sampler, out


@torch.no_grad()
def exact(model, prompt, options):
    """Density and kept mass by brute force, from the model's own logits."""
    logits = model(torch.tensor([prompt])).logits[0, -1, : len(VOCABULARY)].tolist()
    forbidden = {VOCABULARY.index(word) for word in options.get("forbid", [])}
    return brute_force(logits, options.get("temperature", 1.0), options.get("top_k", 0), options.get("top_p", 1.0), forbidden)


def surprise(counts, expected):
    """Chi-square in standard deviations above its mean; ids of probability 0 must not occur."""
    assert all(expected[name] > 0 for name in counts)
    total = sum(counts.values())
    live = [name for name, p in expected.items() if p * total >= 5]
    rare = 1 - sum(expected[name] for name in live)
    cells = [(counts.get(name, 0), expected[name] * total) for name in live]
    if rare * total > 1:
        cells.append((total - sum(c for c, _ in cells), rare * total))
    freedom = max(1, len(cells) - 1)
    return (sum((c - e) ** 2 / e for c, e in cells) - freedom) / math.sqrt(2 * freedom)


def count(values):
    return {v: values.count(v) for v in set(values)}


@by_option
def test_frequencies_are_those_of_the_exact_density(model, tokenizer, options):
    _, out = sample(model, tokenizer, 4000, **options)
    density, mass = exact(model, PROMPT, options)
    assert surprise(count([c.ids[0] for c in out]), dict(enumerate(density))) < 4
    for completion in out[:50]:
        assert completion.behaviour_logp[0] == pytest.approx(math.log(density[completion.ids[0]]), abs=1e-5)
        assert completion.kept_logmass[0] == pytest.approx(math.log(mass), abs=1e-5)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["everything"]], ids=["plain", "everything"])
def test_frequencies_of_whole_responses_are_those_of_the_chain_rule(model, tokenizer, options):
    _, out = sample(model, tokenizer, 4000, max_new_tokens=2, **options)
    first, _ = exact(model, PROMPT, options)
    expected = {}
    for a, p in enumerate(first):
        if p and a != 1:
            second, _ = exact(model, [*PROMPT, a], options)
            expected |= {(a, b): p * q for b, q in enumerate(second)}
        elif a == 1:
            expected[(a,)] = p
    assert sum(expected.values()) == pytest.approx(1)
    assert surprise(count([tuple(c.ids) for c in out]), expected) < 4
    for c in out[:50]:
        assert sum(c.behaviour_logp) == pytest.approx(math.log(expected[tuple(c.ids)]), abs=1e-5)


def standard_errors_from_one(ratios):
    ratios = torch.tensor(ratios, dtype=torch.float64)
    spread = ratios.std().item() / math.sqrt(len(ratios))
    return abs(ratios.mean().item() - 1) / spread if spread else 0.0 if ratios[0] == pytest.approx(1) else math.inf


@by_option
def test_the_mean_importance_ratio_of_another_policy_on_the_support_is_one(model, tokenizer, options):
    _, out = sample(model, tokenizer, 4000, **options)
    density, _ = exact(model, PROMPT, options)
    other, _ = exact(network(1), PROMPT, {})
    other = [p if mu else 0.0 for p, mu in zip(other, density, strict=True)]
    ratios = [other[c.ids[0]] / sum(other) / math.exp(c.behaviour_logp[0]) for c in out]
    assert torch.tensor(ratios).std() > 0.1  # a real test: the two differ
    assert standard_errors_from_one(ratios) < 4


@by_option
def test_the_kept_mass_corrects_the_ratio_of_the_full_density(model, tokenizer, options):
    _, out = sample(model, tokenizer, 500, **options)
    full, _ = exact(model, PROMPT, {"temperature": options.get("temperature", 1.0)})
    _, mass = exact(model, PROMPT, options)
    corrected = [full[c.ids[0]] / math.exp(c.behaviour_logp[0] + c.kept_logmass[0]) for c in out]
    assert corrected == pytest.approx([1.0] * len(out), abs=1e-5)
    uncorrected = [full[c.ids[0]] / math.exp(c.behaviour_logp[0]) for c in out]
    assert uncorrected == pytest.approx([mass] * len(out), abs=1e-5)  # off by exactly the kept mass


def test_the_mean_ratio_of_whole_responses_is_one(model, tokenizer):
    options = OPTIONS["everything"]
    _, out = sample(model, tokenizer, 3000, max_new_tokens=3, **options)
    other = network(1)
    cache = {}

    def restricted(prefix):
        if prefix not in cache:
            mu, _ = exact(model, [*PROMPT, *prefix], options)
            pi, _ = exact(other, [*PROMPT, *prefix], {})
            pi = [p if m else 0.0 for p, m in zip(pi, mu, strict=True)]
            cache[prefix] = [p / sum(pi) for p in pi]
        return cache[prefix]

    ratios = []
    for c in out:
        pi = math.prod(restricted(tuple(c.ids[:t]))[token] for t, token in enumerate(c.ids))
        ratios.append(pi / math.exp(sum(c.behaviour_logp)))
    assert standard_errors_from_one(ratios) < 4
    assert all(len(c.ids) == 3 or c.stopped for c in out)
    assert {c.stopped for c in out} == {True, False}  # both ends occur


def test_the_position_in_the_density_follows_the_random_number(model, tokenizer):
    _, out = sample(model, tokenizer, 300)
    numbers = [uniform(SampleKey(0, "task", i, 0), 0) for i in range(300)]
    ranked = [token for _, token in sorted(zip(numbers, [c.ids[0] for c in out], strict=True))]
    assert all(a <= b for a, b in pairwise(ranked))
