"""The sampler on tiny models: the same tokens in any company, a cache that is never wrong, densities that are true."""

import weakref
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sdar.errors import ConfigError, ContextOverflowError, PolicyError
from sdar.parts import SampleKey
from sdar.samplers import TorchSampler
from sdar.samplers.torch_sampler import attention_window
from sdar.scoring import Scorer

WORDS = ["<pad>", "<end>", "<sys>", "<bos>", *"abcdefghijklmnopqrst"]
END = 1
SIZE = {
    "vocab_size": len(WORDS) + 5,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": END,
    "bos_token_id": None,
}


def network(config=Qwen3Config, seed=0, **kwargs):
    """A model whose next token depends on all it was told; 5 rows of its head stand for no token and are the likeliest."""
    config = config(**SIZE | kwargs)
    torch.manual_seed(seed)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.4 if "lm_head" in name else 0.6)
        model.lm_head.weight[len(WORDS) :] *= 4
    return model


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def padded():
    """The same model with an attention that cannot be told which tokens see which."""
    return network(attn_implementation="eager")


@pytest.fixture(scope="module", params=["rows", "padded"])
def either(request, model, padded):
    return {"rows": model, "padded": padded}[request.param]


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.add_special_tokens(WORDS[:4])  # as Llama-3's: special, and but for two of them without a role
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


@pytest.fixture(scope="module")
def sampler_of(tokenizer):
    def make(context=512, stop_ids=(END,), **options):
        sampler = TorchSampler(**{"max_new_tokens": 6, "draft_tokens": 0, **options})
        sampler.bind(tokenizer, stop_ids, context)
        return sampler

    return make


def told(seed, length):
    """Some words."""
    return torch.randint(4, len(WORDS), (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def draw(row, turn=0):
    return SampleKey(0, f"task-{row}", 0, turn)


def play(sampler, model, lengths, turns=1, forget=False):
    """Episodes: `lengths[row][turn]` words are told before each response; a row leaves when its list ends."""
    contexts = [[] for _ in lengths]
    said = [[] for _ in lengths]
    for turn in range(max(map(len, lengths))):
        live = [row for row, told_lengths in enumerate(lengths) if turn < len(told_lengths)]
        for row in live:
            contexts[row] = contexts[row] + told(1000 * row + turn, lengths[row][turn])
        if forget:
            sampler.reset()
        completions = sampler.sample(model, [contexts[r] for r in live], [draw(r, turn) for r in live])
        for row, completion in zip(live, completions, strict=True):
            said[row].append(completion)
            contexts[row] = contexts[row] + completion.ids
    return said, contexts


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert [c.ids for c in a] == [c.ids for c in b]
        assert [c.stopped for c in a] == [c.stopped for c in b]
        for x, y in zip(a, b, strict=True):
            assert x.behaviour_logp == pytest.approx(y.behaviour_logp, abs=1e-4)
            assert x.kept_logmass == pytest.approx(y.kept_logmass, abs=1e-4)


def alone(sampler, model, lengths):
    """Every row by itself, every turn from an empty cache."""
    out = []
    for row in range(len(lengths)):
        only = [own if r == row else [] for r, own in enumerate(lengths)]
        out.append(play(sampler, model, only, forget=True)[0][row])
    return out


OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "greedy": {"temperature": 0.0},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.8},
    "forbid": {"forbid": ["a", "b", "<pad>"]},
    "everything": {"temperature": 1.5, "top_k": 12, "top_p": 0.9},
    "drafts": {"temperature": 0.3, "draft_tokens": 3},
}
by_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

# ------------------------------------------------------------------ company and cache

episodes = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=5)


@given(lengths=episodes, batch_size=st.integers(1, 5), options=st.sampled_from(list(OPTIONS.values())))
@settings(max_examples=10, derandomize=True)  # a rounding error may tip one token in a million
def test_a_response_depends_neither_on_its_company_nor_on_the_cache(either, sampler_of, lengths, batch_size, options):
    together, _ = play(sampler_of(batch_size=batch_size, **options), either, lengths)
    assert_same(together, alone(sampler_of(**options), either, lengths))


@pytest.mark.parametrize(
    "lengths",
    [[[60], [3]], [[60, 1, 1, 1], [1, 1, 1, 1]], [[30, 40, 2], [2, 40, 30], [1, 1, 90]], [[64], [65], [63]]],
)
def test_a_cache_may_outgrow_its_room(either, sampler_of, lengths):
    options = {"max_new_tokens": 12, "forbid": ["<end>"], "stop_ids": (2,)}  # never stops early
    together, contexts = play(sampler_of(**options), either, lengths)
    assert max(map(len, contexts)) > 64
    assert_same(together, alone(sampler_of(**options), either, lengths))


def test_rows_leave_and_holes_are_closed(padded, sampler_of):
    lengths = [[2, 2, 2], [80], [5, 3, 7], [1, 1]]
    sampler = sampler_of()
    with watched(padded) as calls:
        together, contexts = play(sampler, padded, lengths)
    assert_same(together, alone(sampler_of(), padded, lengths))
    firsts = [call for call in calls if call["new"] > 1]
    assert [call["rows"] for call in firsts] == [4, 3, 2]
    assert firsts[0]["width"] == 80
    # nothing of the row that left keeps its place; what is there is at most a quarter longer than the longest row
    assert all(call["width"] < 40 for call in firsts[1:])
    assert calls[-1]["width"] <= 1.25 * max(len(contexts[0]), len(contexts[2])) + 6


@contextmanager
def watched(model):
    """Shapes of every forward pass; `new` tokens of all rows together, where they are not padded."""
    calls = []

    def note(module, args, kwargs):
        rows, new = kwargs["input_ids"].shape
        calls.append({"rows": rows, "new": new, "width": kwargs["attention_mask"].shape[-1]})

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def test_a_prompt_that_goes_on_is_not_read_again(model, sampler_of):
    sampler = sampler_of()
    prompt = told(0, 40)
    first = sampler.sample(model, [prompt], [draw(0)])[0]
    with watched(model) as calls:
        sampler.sample(model, [prompt + first.ids + told(1, 3)], [draw(0, 1)])
    assert calls[0]["new"] == 4  # the observation, and the last token of the response, whose successor nobody asked for
    assert all(call["new"] == 1 for call in calls[1:])
    with watched(model) as calls:
        sampler.sample(model, [prompt[:-1]], [draw(0, 2)])
        sampler.sample(model, [prompt[:30] + told(2, 9)], [draw(5)])
    assert [call["new"] for call in calls if call["new"] > 1] == [9]  # what it begins with is known, whoever it was


def test_every_attempt_at_a_task_keeps_its_own_past(model, sampler_of):
    sampler = sampler_of(max_new_tokens=12)
    attempts = [SampleKey(seed, "task", attempt, 0) for seed in range(2) for attempt in range(3)]
    with watched(model) as calls:
        first = sampler.sample(model, [told(0, 20)] * 6, attempts)
    assert calls[0]["new"] == 20 + 5  # the prompt that they share is read once, but for the token that each is answered behind
    assert len({tuple(c.ids) for c in first}) > 1
    onwards = [told(0, 20) + c.ids + told(1, 3) for c in first]
    with watched(model) as calls:
        out = sampler.sample(model, onwards, attempts)
    assert calls[0]["new"] == 6 * 4
    assert_same([out], [sampler_of(max_new_tokens=12).sample(model, onwards, attempts)])


def test_another_past_under_the_same_name_is_not_mistaken(either, sampler_of):
    sampler = sampler_of()
    prompt = told(0, 12)
    first = sampler.sample(either, [prompt, told(5, 4)], [draw(0), draw(1)])
    changed = [prompt[0], prompt[2], prompt[1], *prompt[3:], *first[0].ids, *told(1, 3)]
    onwards = [*told(5, 4), *first[1].ids, *told(2, 3)]
    again = sampler.sample(either, [changed, onwards], [draw(0, 1), draw(1, 1)])
    fresh = sampler_of().sample(either, [changed, onwards], [draw(0, 1), draw(1, 1)])
    assert_same([again], [fresh])


def test_a_prompt_that_is_asked_again_gets_its_response(either, sampler_of):
    sampler = sampler_of(max_new_tokens=1)
    prompts = [told(0, 12), told(5, 4)]
    for turn in range(2):
        again = sampler.sample(either, prompts, [draw(0, turn), draw(1, turn)])
        assert_same([again], [sampler_of(max_new_tokens=1).sample(either, prompts, [draw(0, turn), draw(1, turn)])])


def test_rows_may_return_in_another_order_and_twice(model, sampler_of):
    sampler = sampler_of()
    prompts = [told(0, 9), told(1, 4), told(2, 15)]
    first = sampler.sample(model, prompts, [draw(r) for r in range(3)])
    order = [2, 0, 2]
    second = [prompts[r] + first[r].ids + told(9, 2) for r in order]
    with watched(model) as calls:
        out = sampler.sample(model, second, [draw(r, 1) for r in order])
    assert calls[0]["new"] == 3 + 3 + 1
    assert_same([out], [sampler_of().sample(model, second, [draw(r, 1) for r in order])])
    assert out[0].ids == out[2].ids


def test_after_a_reset_changed_weights_are_used(sampler_of):
    model, sampler = network(seed=1), sampler_of()
    prompt = told(0, 20)
    first = sampler.sample(model, [prompt], [draw(0)])[0]
    onwards = prompt + first.ids + told(1, 3)
    model.load_state_dict(network(seed=2).state_dict())
    sampler.reset()
    with watched(model) as calls:
        after = sampler.sample(model, [onwards], [draw(0, 1)])
    assert calls[0]["new"] == len(onwards)
    assert_same([after], [sampler_of().sample(network(seed=2), [onwards], [draw(0, 1)])])


def test_what_no_prompt_goes_on_from_is_gone_before_the_next_pass(padded, sampler_of):
    sampler = sampler_of(batch_size=1)
    said = sampler.sample(padded, [told(0, 5), told(1, 5)], [draw(0), draw(1)])
    kept, dropped = (weakref.ref(cache.layers.layers[0].keys) for cache in sampler._caches)
    there = []
    hook = padded.register_forward_pre_hook(lambda *_: there.append((kept() is not None, dropped() is not None)))
    sampler.sample(padded, [told(0, 5) + said[0].ids + told(2, 3), told(3, 9)], [draw(0, 1), draw(1, 1)])
    hook.remove()
    assert there[0] == (True, False)
    sampler.release()
    assert kept() is None and sampler._caches == []


def test_a_batch_larger_than_batch_size_is_cut(padded, sampler_of):
    with watched(padded) as calls:
        play(sampler_of(batch_size=2, max_new_tokens=1), padded, [[3]] * 5)
    assert [call["rows"] for call in calls] == [2, 2, 1]


def test_attempts_turns_and_tasks_draw_anew_and_the_same_name_draws_the_same(model, sampler_of):
    prompt = told(0, 8)
    names = [
        SampleKey(0, "t", 0, 0),
        SampleKey(0, "t", 1, 0),
        SampleKey(0, "u", 0, 0),
        SampleKey(1, "t", 0, 0),
        SampleKey(0, "t", 0, 1),
    ]
    sampler = sampler_of(max_new_tokens=12, forbid=["<pad>"])
    out = [sampler.sample(model, [prompt], [name])[0].ids for name in names]
    assert len(set(map(tuple, out))) == len(names)
    sampler.reset()
    assert [c.ids for c in sampler.sample(model, [prompt] * 5, names)] == out


# ------------------------------------------------------------------ densities


@by_option
def test_the_scorer_confirms_the_density(model, sampler_of, options):
    sampler = sampler_of(max_new_tokens=8, **options)
    said, contexts = play(sampler, model, [[5, 3], [12, 2], [1, 9], [30, 1], [8]])
    scorer = Scorer(sampler.temperature, sampler.forbidden_ids, sampler.vocab_size)
    truncated = options.get("temperature") == 0 or "top_k" in options or "top_p" in options
    for row, (completions, context) in enumerate(zip(said, contexts, strict=True)):
        where, at = torch.zeros(1, len(context), dtype=torch.bool), 0
        for turn, completion in enumerate(completions):
            at += [[5, 3], [12, 2], [1, 9], [30, 1], [8]][row][turn]
            where[0, at : at + len(completion.ids)] = True
            at += len(completion.ids)
        stats = scorer(model, torch.tensor([context]), torch.ones(1, len(context), dtype=torch.long), where)
        logp, allowed = stats.logp[where], stats.allowed_logmass[where]
        behaviour = torch.tensor([x for c in completions for x in c.behaviour_logp])
        kept = torch.tensor([x for c in completions for x in c.kept_logmass])
        assert torch.allclose(logp + allowed, behaviour + kept, atol=1e-4)
        if not truncated:
            assert torch.allclose(logp, behaviour, atol=1e-4)
            assert torch.allclose(allowed, kept, atol=1e-4)
        else:
            assert (logp <= behaviour + 1e-4).all()  # a density on fewer tokens is higher on them
    assert (kept < -1e-3).any()  # something was kept away, so the comparison means something


def test_temperature_zero_is_greedy(model, sampler_of):
    said, _ = play(sampler_of(temperature=0.0, max_new_tokens=10), model, [[4], [11], [7]])
    for row, length in enumerate((4, 11, 7)):
        ids = told(1000 * row, length)
        for token in said[row][0].ids:
            logits = model(torch.tensor([ids])).logits[0, -1, : len(WORDS)]
            logits[[0, 2, 3]] = -torch.inf
            assert token == logits.argmax()
            ids.append(token)
        assert said[row][0].behaviour_logp == [0.0] * len(said[row][0].ids)


# ------------------------------------------------------------------ what may be sampled, and when it ends


@pytest.fixture(scope="module")
def many(model, sampler_of):
    return [c for row in play(sampler_of(max_new_tokens=9), model, [[3 + r % 5] for r in range(300)])[0] for c in row]


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(many):
    for c in many:
        assert END not in c.ids[:-1]
        assert c.stopped == (c.ids[-1] == END)
        assert c.stopped or len(c.ids) == 9
        assert len(c.ids) == len(c.behaviour_logp) == len(c.kept_logmass)
    assert {c.stopped for c in many} == {True, False}


def test_rows_beyond_the_tokenizer_and_special_tokens_are_never_sampled(many, model, sampler_of):
    seen = {i for c in many for i in c.ids}
    assert seen == {END, *range(4, len(WORDS))}
    free = play(sampler_of(forbid=[]), model, [[4]] * 300)[0]
    assert {i for c in free for i in c[0].ids} == set(range(len(WORDS)))


def test_every_stop_token_ends_a_turn(model, sampler_of):
    sampler = sampler_of(stop_ids=(END, 2), max_new_tokens=30)
    assert sampler.forbidden_ids == (0, 3)
    said = play(sampler, model, [[4]] * 100)[0]
    assert {c[0].ids[-1] for c in said if c[0].stopped} == {END, 2}
    assert not any({END, 2}.intersection(c[0].ids[:-1]) for c in said)


def test_all_special_tokens_but_the_stops_are_forbidden(sampler_of, tokenizer):
    assert set(tokenizer.all_special_ids) == {0, 1}  # two more are special without a role
    assert sampler_of().forbidden_ids == (0, 2, 3)
    assert sampler_of(forbid=[]).forbidden_ids == ()
    assert sampler_of(forbid=["b", "<sys>"]).forbidden_ids == (2, 5)


def test_sampling_leaves_the_model_as_it_was(sampler_of):
    model = network(attention_dropout=0.5)
    for mode in (True, False):
        model.train(mode)
        out = sampler_of().sample(model, [told(0, 9)], [draw(0)])
        assert model.training is mode
        assert all(p.grad is None for p in model.parameters())
        assert_same([out], [sampler_of().sample(network(), [told(0, 9)], [draw(0)])])


# ------------------------------------------------------------------ architectures


@pytest.mark.parametrize("config", [Qwen2Config, LlamaConfig, Gemma2Config, MistralConfig])
def test_other_architectures_have_the_same_cache(config, sampler_of):
    model = network(config)
    lengths = [[9, 3, 2], [2, 8], [25, 1, 4]]
    together, _ = play(sampler_of(), model, lengths)
    assert_same(together, alone(sampler_of(), model, lengths))


@pytest.mark.parametrize("config", [MistralConfig, Gemma2Config])
def test_a_window_shorter_than_the_batch_is_refused(config, sampler_of):
    model = network(config, sliding_window=16, attn_implementation="eager")
    lengths = [[9, 1], [3, 1]]
    together, _ = play(sampler_of(max_new_tokens=2), model, lengths)
    assert_same(together, alone(sampler_of(max_new_tokens=2), model, lengths))
    with pytest.raises(PolicyError, match=r"ForCausalLM looks back over 16 positions only, .* takes 17 .* sliding attention"):
        sampler_of().sample(model, [told(0, 17)], [draw(0)])


def test_a_window_counts_only_where_a_layer_has_one():
    assert attention_window(Qwen3Config(**SIZE, sliding_window=16, use_sliding_window=False)) is None
    assert attention_window(Qwen3Config(**SIZE, sliding_window=16, use_sliding_window=True, max_window_layers=1)) == 16
    assert attention_window(LlamaConfig(**SIZE)) is None


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, r"sampler\.max_new_tokens is 0: a response needs at least 1 token"),
        ({"temperature": -0.1}, r"sampler\.temperature is -0\.1: .* \(0 means greedy\)"),
        ({"top_k": -1}, r"sampler\.top_k is -1: .* or 0 for all"),
        ({"top_p": 0.0}, r"sampler\.top_p is 0\.0: it is a probability mass in \(0, 1\]"),
        ({"top_p": 1.1}, r"sampler\.top_p is 1\.1"),
        ({"draft_tokens": -1}, r"sampler\.draft_tokens is -1: give the most tokens to read ahead, or 0 for none"),
        ({"batch_size": 0}, r"sampler\.batch_size is 0: a forward pass needs at least 1 prompt"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TorchSampler(**options)


def test_a_forbidden_token_must_exist(sampler_of):
    with pytest.raises(ConfigError, match=r"sampler\.forbid names \['<syss>'\], not in the vocabulary of 24 tokens"):
        sampler_of(forbid=["<sys>", "<syss>"])


def test_the_end_of_a_turn_cannot_be_forbidden(sampler_of):
    with pytest.raises(ConfigError, match=r"sampler\.forbid names \['<end>'\], which ends a turn"):
        sampler_of(forbid=["<sys>", "<end>"])


def test_a_prompt_that_does_not_fit_names_its_task(model, sampler_of):
    sampler = sampler_of(context=20)
    prompts, draws = [told(0, 5), told(1, 15), told(2, 3)], [draw(r) for r in range(3)]
    message = r"the prompt of task task-1 has 15 tokens and may get 6 more, but the model's context is 20: nothing is cut"
    with pytest.raises(ContextOverflowError, match=message):
        sampler.sample(model, prompts, draws)
    assert len(sampler_of(context=21).sample(model, prompts, draws)) == 3
