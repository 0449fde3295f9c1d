"""Rows that are read without padding, with what they share read once: the tokens and densities of each row alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sdar.parts import SampleKey
from sdar.samplers import TorchSampler
from sdar.samplers.density import draw, inverse_cdf, truncate
from sdar.samplers.drafts import KEPT, Drafts
from sdar.samplers.session import reads_rows

END, VOCABULARY = 1, 24
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": END,
}
CONFIGS = {
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
    "qwen2": Qwen2Config(**SIZE),
    "llama": LlamaConfig(**SIZE),
    "window": MistralConfig(**SIZE, sliding_window=7),
}


def network(config):
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5)
    return model


@pytest.fixture(scope="module")
def models():
    return {name: network(config) for name, config in CONFIGS.items()}


def sampler_of(**options):
    sampler = TorchSampler(**{"max_new_tokens": 5, **options})
    sampler.bind_ids([END], [0], VOCABULARY, 512)
    return sampler


@torch.no_grad()
def alone(model, sampler, prompt, completion):
    """Densities of a response by the model's own forward pass over the whole row."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion.ids]])).logits[0, len(prompt) - 1 : -1]
    forbidden = torch.zeros(VOCABULARY, dtype=torch.bool)
    forbidden[0] = True
    log_density, kept = truncate(logits, sampler.temperature, 0, 1.0, forbidden)
    return log_density, kept


def assert_true(model, sampler, prompt, key, completion):
    """Each token is the one that its random number chooses in the density of the row alone."""
    from sdar.samplers.density import uniform

    log_density, kept = alone(model, sampler, prompt, completion)
    uniforms = torch.tensor([uniform(key, position) for position in range(len(completion.ids))], dtype=torch.float64)
    assert inverse_cdf(log_density, uniforms).tolist() == completion.ids
    assert completion.behaviour_logp == pytest.approx(log_density[range(len(kept)), completion.ids].tolist(), abs=1e-5)
    assert completion.kept_logmass == pytest.approx(kept.tolist(), abs=1e-5)
    assert completion.stopped == (completion.ids[-1] == END)
    assert completion.stopped or len(completion.ids) == sampler.max_new_tokens


class Tree:
    """How many tokens must be read at least: those of all rows, each beginning once."""

    def __init__(self):
        self.read = set()

    def add(self, row):
        self.read |= {tuple(row[:stop]) for stop in range(1, len(row) + 1)}


branches = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 40), st.lists(st.integers(2, 5), min_size=1, max_size=6)),
    min_size=1,
    max_size=7,
)


@pytest.mark.parametrize("name", CONFIGS)
@given(
    turns=st.lists(branches, min_size=1, max_size=3),
    batch_size=st.sampled_from([2, 3, 64]),
    goes_on=st.booleans(),
    drafts=st.none() | st.randoms(use_true_random=False),
)
@settings(max_examples=12, derandomize=True, deadline=None)
def test_prompts_that_begin_alike_are_answered_as_if_alone(models, name, turns, batch_size, goes_on, drafts):
    """A turn's prompts begin with a part of any earlier row, answered or not; the memory is often too small for all. Any tokens may be
    drafted, among them such as end a response or are forbidden."""
    model, sampler = models[name], sampler_of(batch_size=batch_size, draft_tokens=4)
    if drafts is None:
        answer(model, sampler, turns, goes_on)
        return
    with pytest.MonkeyPatch.context() as patch:
        drawn = [0, END, 2, 3, 4, 5]
        patch.setattr(Drafts, "propose", lambda _, __, most: drafts.choices(drawn, k=drafts.randint(0, most)))
        answer(model, sampler, turns, goes_on)


def answer(model, sampler, turns, goes_on):
    rows = [[2, 3, 4]]
    for turn, branches in enumerate(turns):
        sources = [rows[which % len(rows)] for which, _, _ in branches]
        prompts = [[*row[: length % (len(row) + 1)], *new] for row, (_, length, new) in zip(sources, branches, strict=True)]
        keys = [SampleKey(0, "task", which if goes_on else 10 * turn + which, turn) for which in range(len(prompts))]
        for prompt, key, completion in zip(prompts, keys, sampler.sample(model, prompts, keys), strict=True):
            assert_true(model, sampler, prompt, key, completion)
            rows += [prompt, [*prompt, *completion.ids]]
    assert len(sampler._slots[1]) <= sampler.batch_size


def passes(model):
    """Numbers of tokens in the passes of a model; a list that grows."""
    counts = []
    model.register_forward_pre_hook(lambda _, __, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True)
    return counts


def test_nothing_is_read_twice():
    model, sampler, tree = network(CONFIGS["qwen3"]), sampler_of(draft_tokens=0), Tree()
    assert reads_rows(model)
    counts = passes(model)
    system, tasks, skill = [*range(2, 22)], [[4, 5, 6, 7], [6, 7, 8, 9]], [*range(9, 22)]
    windows = {}
    for turn in range(4):
        prompts, keys = [], []
        for number, task in enumerate(tasks):
            for attempt in range(3):
                seen = windows.setdefault((number, attempt), [])
                seen += [2 + number, 3 + attempt, 4 + turn]
                prompts.append([*system, *task, *skill, *seen[-6:], 9])  # a window of the last two turns
                keys.append(SampleKey(0, str(number), attempt, turn))
        for prompt, completion in zip(prompts, sampler.sample(model, prompts, keys), strict=True):
            tree.add([*prompt, *completion.ids[:-1]])
    read_again = sum(counts) - len(tree.read)
    # the last token of a prompt is read for each row; what a row had said is gone when its next window stands in its place
    assert 0 <= read_again <= 4 * 6 * 2


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_long_and_short_rows_and_a_few_of_many(models, draft_tokens):
    """Rows of very different lengths attend apart, and a few that still go on among many that ended are picked."""
    model, sampler = models["qwen3"], sampler_of(max_new_tokens=40, draft_tokens=draft_tokens)
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 200, 4, 90, 5, 5, 70, 71, 6, 7, 8, 9, 150, 10, 11, 12, 13, 14, 100, 15, 16, 17, 18, 19, 20, 21, 22, 23]
    prompts = [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    keys = [SampleKey(0, str(row), 0, 0) for row in range(len(prompts))]
    for prompt, key, completion in zip(prompts, keys, sampler.sample(model, prompts, keys), strict=True):
        assert_true(model, sampler, prompt, key, completion)


def test_greedy_responses_are_those_of_generate(models):
    model, sampler = models["llama"], sampler_of(temperature=0.0, max_new_tokens=12)
    sampler.bind_ids([END], [], VOCABULARY, 512)
    prompts = [[2, 3, 4], [2, 3, 4, 5, 6, 7], [9, 8, 2], [2, 3]]
    said = sampler.sample(model, prompts, [SampleKey(0, "t", i, 0) for i in range(4)])
    for prompt, completion in zip(prompts, said, strict=True):
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0)[0, len(prompt) :]
        assert completion.ids == ids.tolist()


def test_the_same_rollout_has_the_same_bits(models):
    prompts = [[2, 3, 4, *range(5, 5 + n)] for n in (1, 9, 3, 12)]
    keys = [SampleKey(0, "t", i, 0) for i in range(4)]
    one, other = (sampler_of().sample(models["qwen2"], prompts, keys) for _ in range(2))
    assert one == other


# ------------------------------------------------------------------ draft tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_drafts_save_passes_and_change_no_token(name):
    """Responses that repeat themselves: greedy ones of a model that goes by little more than the last token."""
    model, prompts = network(CONFIGS[name]), [[2, 3, 4, *range(5, 5 + n)] for n in range(6)]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.1
    counts, found = passes(model), {}
    assert reads_rows(model)
    for most in (0, 1, 4):
        counts.clear()
        sampler = sampler_of(temperature=0.0, max_new_tokens=60, draft_tokens=most)
        keys = [SampleKey(0, "task", attempt, 0) for attempt in range(6)]
        said = sampler.sample(model, prompts, keys)
        found[most] = said, len(counts)
        ends = sorted(len(prompt) + len(c.ids) - 1 for prompt, c in zip(prompts, said, strict=True))
        assert sorted(sampler._slots[1].lengths) == ends  # nothing is kept that was not said
    (plain, slow), (_, faster), (_, fastest) = found.values()
    assert slow == max(len(c.ids) for c in plain) > 20
    assert fastest <= faster < 0.9 * slow
    for said, _ in found.values():
        assert [c.ids for c in said] == [c.ids for c in plain]
        for one, other in zip(said, plain, strict=True):
            assert one.kept_logmass == pytest.approx(other.kept_logmass, abs=1e-5)


def test_what_followed_is_drafted_as_long_as_such_guesses_are_right():
    drafts = Drafts()
    assert drafts.propose([7, 8], 4) == []
    drafts.learn([9], 1)
    assert drafts.propose([9], 4) == [1]  # of contexts with credit 1 nothing is known: one half
    drafts.learn([9, 1], 2)
    assert drafts.propose([9], 4) == [1]  # two such tokens: a quarter
    assert drafts.propose([9], 0) == []
    drafts.learn([9], 1)  # two of three were right with credit 1, so that ...
    drafts.learn([9, 1], 2)  # three of four
    assert drafts.propose([5, 1], 4) == [2]  # 5 1 is not known, 1 is, with credit 2: one half
    drafts.learn([9, 1], 2)
    assert drafts.propose([9], 4) == [1]  # credit 2 and 3: 2/3 of 1/2
    drafts.learn([9, 1], 2)
    drafts.learn([9, 1], 2)
    drafts.learn([9], 1)
    assert drafts.propose([9], 4) == [1, 2]  # both have all credit, which was right 3 of 4 times: 9/16


def test_a_context_that_fails_gets_another_token():
    drafts = Drafts()
    drafts.learn([4], 5)
    drafts.learn([4], 5)
    assert drafts.propose([4], 1) == [5]
    for _ in range(8):
        drafts.learn([4], 6)
    assert drafts.propose([4], 1) == [6]


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_repeated_next_to_nothing_is_drafted(seed):
    drafts, row, drafted = Drafts(), [0], 0
    for token in random.Random(seed).choices(range(50), k=3000):
        drafted += len(drafts.propose(row, 4))
        drafts.learn(row, token)
        row.append(token)
    assert drafted < 30


def test_drafts_remember_so_much_and_no_more():
    drafts = Drafts()
    for token in range(KEPT):
        drafts.learn([token, token, token], 1)
    assert len(drafts._next) <= KEPT + 3
    assert drafts.propose([token], 1) == [1]


def test_models_that_cannot_be_told_are_found_out(models):
    assert all(reads_rows(model) for model in models.values())
    capped = network(Gemma2Config(**SIZE, head_dim=8))
    assert not reads_rows(capped)  # caps its attention
    other = network(CONFIGS["llama"])
    other.lm_head.register_forward_hook(lambda *_: torch.zeros(1, _[1][0].shape[1], VOCABULARY) + _[1][0].shape[1])
    assert not reads_rows(other)  # gives other numbers for other company


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("forbids", [False, True])
@pytest.mark.parametrize("size", [5000, 5120])
def test_a_large_vocabulary_is_drawn_from_in_the_same_density(size, forbids, temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(300, size, generator=generator)
    logits[:50, 7] = 200.0  # all but all of the mass
    uniforms = torch.rand(300, generator=generator, dtype=torch.float64)
    uniforms[:3] = torch.tensor([0.0, 1 - 2**-53, 0.5])
    forbidden = None
    if forbids:
        forbidden = torch.zeros(size, dtype=torch.bool)
        forbidden[[7, 100, size - 1]] = True
    log_density, kept = truncate(logits, temperature, 0, 1.0, forbidden)
    chosen, logp, mass = draw(logits, uniforms, temperature, 0, 1.0, forbidden)
    assert (chosen != inverse_cdf(log_density, uniforms))[3:].sum() <= 1  # a rounding error may tip one
    torch.testing.assert_close(logp, log_density.gather(-1, chosen[:, None])[:, 0], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(mass, kept, atol=1e-5, rtol=1e-6)
    if forbidden is not None:
        assert not forbidden[chosen].any()
