"""Models with opinions, rows of two sides, and a naive log-softmax of the model's own logits."""

import inspect

import pytest
import torch
from transformers import CohereConfig, PhiConfig, Qwen3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sdar.functional import log_prob_gap
from sdar.registry import load_parts, parts
from sdar.rollout import collate
from sdar.scoring import score_with_teachers
from sdar.types import Episode, Row, StudentTokens, Task, TokenView

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
