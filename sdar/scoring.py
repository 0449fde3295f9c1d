"""Log-probabilities and entropies of response tokens under any causal language model of transformers."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sdar.attention import can_lay_out, kind_of, read_rows
from sdar.comparing import over_vocabulary
from sdar.distributed.communicator import SINGLE_PROCESS, Communicator
from sdar.distributed.sharding import Sharding
from sdar.errors import ConfigError, PolicyError
from sdar.functional import chunked_token_stats, span_teacher_logp, vocabulary_log_probs, vocabulary_top_k
from sdar.functional.divergence_pass import Teacher
from sdar.functional.head import Projection, projection
from sdar.heads import Head as Head
from sdar.heads import head_of
from sdar.parts import Divergence, RemoteModel
from sdar.prefix_tree import PrefixTree, tree_batches
from sdar.registry import part_name
from sdar.renamed import old_names
from sdar.types import Batch, StudentTokens, TeacherSignal, TokenView

if TYPE_CHECKING:
    from transformers import PreTrainedModel

R = TypeVar("R")

_packs: set[tuple[int, Hashable]] = set()
"""Sizes of vocabularies and kinds of networks whose packed rows were compared with padded ones."""

__getattr__ = old_names(__name__, StudentPass="StudentOutput", consult="score_with_teachers")


class Scorer:
    """Scores response tokens in the density that is trained: tempered, without forbidden ids, no id beyond the tokenizer.

    Only hidden states that predict a response token pass through the head, in chunks.

    Args:
        temperature: That of the sampler, on student and teacher alike.
        forbidden_ids: What a turn may not emit.
        vocab_size: ``len(tokenizer)``; rows that pad the embedding never count.
        chunk: Tokens per piece of the head.
        packed: Rows go through a network as a tree of prefixes, without padding. None: wherever a network allows it.
    """

    def __init__(
        self, temperature: float, forbidden_ids: Sequence[int], vocab_size: int, chunk: int = 1024, packed: bool | None = None
    ):
        self.temperature = temperature or 1.0  # a greedy rollout is trained at temperature 1
        self.forbidden_ids = tuple(forbidden_ids)
        self.vocab_size = vocab_size
        self.chunk = chunk
        self.packed = packed

    def __call__(
        self, model: "PreTrainedModel", ids: Tensor, attention_mask: Tensor, response_mask: Tensor
    ) -> "StudentOutput":
        """Per token ``[batch, time]``, aligned with `ids`; zero outside of the response. Carries the model's gradient."""
        predicts = response_mask[:, 1:].bool()
        return self.output(model, self.states(model, ids, attention_mask, predicts), ids, predicts)

    def states(self, model: "PreTrainedModel", ids: Tensor, attention_mask: Tensor, predicts: Tensor) -> Tensor:
        """``[tokens, hidden]``: what the model is in at the places ``[batch, time - 1]`` that predict the token behind them."""
        if self.packs(model):
            tree = PrefixTree(ids, attention_mask.sum(1))
            return read_rows(model, tree.ids, tree.positions, tree).index_select(0, tree.index[:, :-1][predicts])
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)
        states = model.base_model(input_ids=ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        return states.last_hidden_state[:, :-1][predicts]

    def output(self, model: "PreTrainedModel", hidden: Tensor, ids: Tensor, predicts: Tensor) -> "StudentOutput":
        """What the head makes of such states."""
        targets = ids[:, 1:][predicts]

        def project(hidden: Tensor) -> tuple[Tensor, ...]:
            head = self.head(model)
            return chunked_token_stats(hidden, head.weight, targets, **head.settings(), **self.density, chunk=self.chunk)

        stats = run_as_forward(model.get_output_embeddings(), project, hidden)
        logp, entropy, allowed_logmass = (_spread(values, predicts) for values in stats)
        return StudentOutput(logp, entropy, allowed_logmass, hidden, predicts, model, self)

    @property
    def density(self) -> dict[str, Any]:
        """What is made of logits."""
        return {"temperature": self.temperature, "forbidden_ids": self.forbidden_ids}

    def projection(self, hidden: Tensor, head: Head) -> Projection:
        """Hidden states to logits of the density that is trained."""
        return projection(hidden, head.weight, **head.settings(), **self.density)

    def packs(self, model: "PreTrainedModel") -> bool:
        """Whether rows go through this network without padding."""
        return self.packed is not False and can_lay_out(model)

    def micro_batches(
        self, model: "PreTrainedModel", ids: Tensor, attention_mask: Tensor, max_tokens: int, most_tokens: int = 0
    ) -> list[Tensor]:
        """Rows in pieces of at most `max_tokens` tokens that this network reads, or of `most_tokens`, where it reads an eighth less so:
        smaller pieces are faster on processors, and larger ones read again less of what rows share."""
        lengths = attention_mask.sum(1)
        if not self.packs(model):
            return list(micro_batches(lengths, max_tokens))
        pieces = tree_batches(ids, lengths, max_tokens)
        if len(pieces) > 1 and most_tokens > max_tokens:
            larger = tree_batches(ids, lengths, most_tokens)
            tokens, fewer = (sum(size for size, _ in found) for found in (pieces, larger))
            pieces = larger if 8 * fewer <= 7 * tokens else pieces
        return [rows for _, rows in pieces]

    def head(self, model: "PreTrainedModel") -> Head:
        """What turns hidden states into logits of the tokenizer's ids; rows that pad the vocabulary do not count."""
        return head_of(model, self.vocab_size)

    def log_probs(self, hidden: Tensor, head: Head) -> Tensor:
        """``[tokens, hidden]`` to log-probabilities ``[tokens, vocab]`` of the density that is trained; differentiable."""
        return vocabulary_log_probs(hidden, head.weight, **head.settings(), **self.density)

    def score(
        self,
        model: "PreTrainedModel",
        ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        max_tokens: int,
        signal: TeacherSignal = TeacherSignal.SAMPLED,
        k: int = 0,
        sharding: Sharding | None = None,
        ranks: Communicator = SINGLE_PROCESS,
    ) -> "Scored":
        """The same without a gradient, in micro-batches of at most `max_tokens` tokens; on the device of the inputs."""
        return self.score_together(
            model, [Reading(ids, attention_mask, response_mask, signal, k)], max_tokens, sharding, ranks
        )[0]

    @torch.no_grad()
    def score_together(
        self,
        model: "PreTrainedModel",
        readings: Sequence["Reading"],
        max_tokens: int,
        sharding: Sharding | None = None,
        ranks: Communicator = SINGLE_PROCESS,
        most_tokens: int = 0,
    ) -> list["Scored"]:
        """`score` of several sets of rows: what rows of any of them begin with alike is read once.

        Args:
            sharding: How the model lies on the ranks.
            ranks: Who shares the work; each gets everything.
            most_tokens: As in `micro_batches`.
        """
        device = next(model.parameters()).device
        ids, attention_mask, response_mask = together(readings)
        lengths = attention_mask.sum(1)
        pieces = self.micro_batches(model, ids, attention_mask, max_tokens, most_tokens)
        spare = lengths.argmin()[None]
        ends = torch.tensor([len(reading.ids) for reading in readings]).cumsum(0)
        out: list[Scored | None] = [None] * len(readings)
        for rows in ranks.shard(pieces, spare):
            length = int(lengths[rows].max())
            row_ids, attention, mask = (t[rows, :length].to(device) for t in (ids, attention_mask, response_mask))
            part = row_ids, attention, torch.zeros_like(mask) if rows is spare else mask
            of = torch.bucketize(rows, ends, right=True)  # [rows] the reading of each

            def read(part: tuple[Tensor, Tensor, Tensor] = part, of: Tensor = of) -> list[dict[str, Tensor]]:
                now = self(model, *part)
                return [self.told(now, reading, (of == i).to(device)) for i, reading in enumerate(readings)]

            found = read() if sharding is None else sharding.run_as_forward(read)
            for i, (reading, told) in enumerate(zip(readings, found, strict=True)):
                shape, mine = reading.ids.shape, of == i
                if (into := out[i]) is None:
                    into = Scored(**{n: v.new_zeros(*shape, *v.shape[2:], device=ids.device) for n, v in told.items()})
                    out[i] = into
                if rows is not spare:
                    at, width = rows[mine] - int(ends[i]) + len(reading.ids), min(length, shape[1])
                    for name, values in told.items():
                        getattr(into, name)[at, :width] = values[:, :width].to(ids.device)
        scored = cast("list[Scored]", out)  # there is no batch without rows
        for values in (values for one in scored for values in vars(one).values() if values is not None):
            ranks.all_reduce_sum(values, "scores")  # each row was scored once, and is zero elsewhere
        return scored

    def told(self, now: "StudentOutput", reading: "Reading", mine: Tensor) -> dict[str, Tensor]:
        """What a pass says of those of its rows that are of a reading, `mine` (bool ``[rows]``)."""
        found = {"logp": now.logp[mine], "entropy": now.entropy[mine], "allowed_logmass": now.allowed_logmass[mine]}
        if reading.signal == TeacherSignal.SAMPLED:
            return found
        predicts = now.predicts[mine]
        hidden = now.hidden[mine[now.predicts.nonzero()[:, 0]]]
        if reading.signal == TeacherSignal.FULL:
            return found | {"hidden": _spread(hidden, predicts)}

        def likeliest(hidden: Tensor) -> tuple[Tensor, Tensor]:
            head = self.head(now.model)
            return vocabulary_top_k(hidden, head.weight, reading.k, **head.settings(), **self.density, chunk=self.chunk)

        top_ids, top_logp = run_as_forward(now.model.get_output_embeddings(), likeliest, hidden)
        return found | {"top_ids": _spread(top_ids, predicts), "top_logp": _spread(top_logp, predicts)}

    @torch.no_grad()
    def check_packing(self, model: "PreTrainedModel") -> None:
        """Compare rows in a tree with the same rows padded, with the first network of its kind in a process.

        Raises:
            PolicyError: a network that must be `packed` cannot be; in one that may be, more than 1e-3 nats and what rounding explains
                apart.
        """
        if not self.packs(model):
            if self.packed:
                raise PolicyError(
                    f"{type(model).__name__} with attention {model.config.get_text_config()._attn_implementation!r} cannot read rows "
                    "without padding: its attention asks nobody which tokens see which. Set model.packed to null or false, or "
                    "policy.attention to sdpa."
                )
            return
        kind = kind_of(model)
        if kind and (self.vocab_size, kind) in _packs:
            return
        ids = torch.arange(96, device=next(model.parameters()).device).view(3, 32) % self.vocab_size
        ids[1, :24] = ids[0, :24]  # the third row shares nothing
        ones = torch.ones_like(ids)
        apart, together = (
            Scorer(1.0, (), self.vocab_size, packed=packed)(model, ids, ones, ones).logp for packed in (False, None)
        )
        off = float((apart - together).abs().max())
        rounding = 64 * torch.finfo(next(model.parameters()).dtype).eps * float(apart.abs().max())
        if not off < 1e-3 + rounding:
            raise PolicyError(
                f"{type(model).__name__} with attention {model.config._attn_implementation!r} gives tokens of packed rows other "
                f"log-probabilities than the same rows alone ({off:.3g} nats apart): a row would attend to the ones before it. Set "
                "model.packed to false, or use another attention (policy.attention)."
            )
        _packs.add((self.vocab_size, kind))

    @torch.no_grad()
    def check(self, model: "PreTrainedModel") -> None:
        """Compare with the model's own logits on a few tokens: a head that does more than is known of it would be scored wrongly.

        Raises:
            PolicyError: more than 1e-3 nats and what rounding explains apart; fewer logits than the tokenizer has tokens.
        """
        device = next(model.parameters()).device
        ids = torch.arange(8, device=device)[None] % self.vocab_size
        ones = torch.ones_like(ids)
        given = model(input_ids=ids).logits
        if given.shape[-1] < self.vocab_size:
            raise PolicyError(
                f"the tokenizer has {self.vocab_size} tokens and {type(model).__name__} gives {given.shape[-1]} logits: the last "
                f"{self.vocab_size - given.shape[-1]} tokens could neither be read nor be said. Take these tokens out of the tokenizer's "
                "files, or give the model rows for them (`model.resize_token_embeddings`)."
            )
        plain = Scorer(1.0, (), self.vocab_size)(model, ids, ones, ones).logp[0, 1:]
        logits = given[0, :-1, : self.vocab_size].float()
        wanted = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        off = float((plain - wanted).abs().max())
        precision = torch.finfo(next(model.parameters()).dtype).eps
        rounding = 4 * precision * float(logits.abs().max())  # of the model's own logits: 0.8 at a logit of 25 in bfloat16
        if not off < 1e-3 + rounding:
            raise PolicyError(
                f"{type(model).__name__}: log-probabilities from hidden states differ from the model's own by {off:.3g} nats, "
                "so its head does more than a matrix product, a scale that `sdar.heads` knows and a soft cap. This architecture is not "
                "supported yet."
            )


@dataclass(frozen=True)
class Reading:
    """Rows for a network, right-padded ``[rows, time]``, and how much of its distribution is wanted where a token is predicted."""

    ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    signal: TeacherSignal = TeacherSignal.SAMPLED
    k: int = 0

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ids, self.attention_mask, self.response_mask

    def of(self, rows: Tensor) -> "Reading":
        """Some of the rows, by number or mask."""
        return replace(
            self, ids=self.ids[rows], attention_mask=self.attention_mask[rows], response_mask=self.response_mask[rows]
        )


@dataclass
class Scored:
    """What a model thinks of response tokens, ``[batch, time]`` (and more axes), without a gradient."""

    logp: Tensor
    entropy: Tensor
    allowed_logmass: Tensor
    top_ids: Tensor | None = None
    top_logp: Tensor | None = None
    hidden: Tensor | None = None


@dataclass
class StudentOutput:
    """One forward pass over rows: statistics of the response tokens, and what objectives over the vocabulary are made from."""

    logp: Tensor
    entropy: Tensor
    allowed_logmass: Tensor
    hidden: Tensor
    """[tokens, hidden] states that predict the response tokens."""
    predicts: Tensor
    """[batch, time - 1] which states those are."""
    model: "PreTrainedModel"
    scorer: Scorer

    def select(self, rows: Tensor, ids: Tensor, tokens: Tensor) -> "StudentOutput":
        """The same pass of some rows, with their `ids` and some of their response tokens: ``[rows, time]``. Only the head is asked anew."""
        predicts = tokens[:, 1:].bool()
        number = (self.predicts.flatten().cumsum(0) - 1).view_as(self.predicts)  # of the state that predicts a token
        hidden = self.hidden.index_select(0, number[rows, : predicts.shape[1]][predicts])
        return self.scorer.output(self.model, hidden, ids, predicts)

    def compare(
        self, divergence: Divergence, tokens: TokenView, teachers: Sequence[tuple[Head, Tensor, Tensor]] = (),
        weights: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The divergence of each response token, ``[batch, time]``.

        Over the vocabulary it is taken a few tokens at a time: nothing of size ``[batch, time, vocab]`` is ever there.

        Args:
            teachers: For TeacherSignal.FULL, each teacher's head, its hidden states ``[batch, time, hidden]`` and the rows ``[batch]``
                (bool) that it read.
            weights: ``[batch, time]`` what the loss will multiply each token's divergence with, up to one common factor: the gradient of
                the head is then formed with the value, from the same logits. If it is not so, the gradient is as exact, and costs more.

        Raises:
            ConfigError: the rows were scored with less of the teacher than the divergence needs.
        """
        signal, _ = divergence.needs()
        response = nn.functional.pad(self.predicts, (1, 0))
        if signal == TeacherSignal.SAMPLED:
            return divergence(StudentTokens(self.logp, self.entropy), tokens).where(response, 0.0)
        if not teachers if signal == TeacherSignal.FULL else not tokens.has("teacher_top_ids"):
            raise ConfigError(
                f"{part_name(divergence)} needs the teacher's {signal} signal, which these rows were not scored with: a strategy "
                "asks for one signal in each iteration. Use an objective that fits the strategy's `teacher_signal`."
            )
        flat = tokens.at(response)
        row = response.nonzero()[:, 0]
        weights = None if weights is None else weights[response].detach()

        def project(hidden: Tensor, logp: Tensor, entropy: Tensor) -> Tensor:
            student = self.scorer.projection(hidden, self.scorer.head(self.model))
            asked = [Teacher(torch.arange(len(row), device=row.device))]
            if signal == TeacherSignal.FULL:
                asked = []
                for head, states, rows in teachers:
                    mine = rows[row].nonzero()[:, 0]
                    its = states[response][mine]
                    asked.append(Teacher(mine, self.scorer.projection(its, head), its))
            now = StudentTokens(logp, entropy)
            return over_vocabulary(divergence, student, hidden, now, flat, asked, weights, self.scorer.chunk)

        values = run_as_forward(
            self.model.get_output_embeddings(), project, self.hidden, self.logp[response], self.entropy[response]
        )
        return _spread(values, self.predicts)


def run_as_forward(layer: nn.Module, work: Callable[..., R], *inputs: Tensor) -> R:
    """`work` as the forward of a layer whose weights it uses: they are there (gathered, under ZeRO-3) until its backward is over."""
    replaced = layer.__dict__.get("forward")  # somebody may have put one there already
    layer.forward = work
    try:
        return layer(*inputs)
    finally:
        del layer.forward
        if replaced is not None:
            layer.forward = replaced


def score_with_teachers(
    batch: Batch, networks: Sequence["PreTrainedModel | RemoteModel"], scorer: Scorer, max_tokens: int, signal: TeacherSignal, k: int,
    sharding: Sharding | None = None, ranks: Communicator = SINGLE_PROCESS, divides: bool = False,
) -> list[Head]:  # fmt: skip
    """`ask_teachers`, of whom nobody else asks anything, in passes of at most `max_tokens` tokens."""

    def ask(scorer: Scorer, network: "PreTrainedModel", reading: Reading) -> Callable[[], Scored]:
        return lambda: scorer.score_together(network, [reading], max_tokens, sharding, ranks)[0]

    return ask_teachers(batch, networks, scorer, ask, signal, k, sharding, ranks, divides)()


def ask_teachers(
    batch: Batch, networks: Sequence["PreTrainedModel | RemoteModel"], scorer: Scorer,
    ask: Callable[[Scorer, "PreTrainedModel", Reading], Callable[[], Scored]], signal: TeacherSignal, k: int,
    sharding: Sharding | None = None, ranks: Communicator = SINGLE_PROCESS, divides: bool = False,
) -> Callable[[], list[Head]]:  # fmt: skip
    """What fills in the teacher's signal of each row, aligned with the student's ids, and gives the heads of the teachers that were asked.

    Args:
        networks: The teacher of each row; equal ones read their rows together.
        scorer: In whose density they score: that of their own tokens, where they have some (``batch.teacher_spans``).
        ask: Has a network read rows (`JointPasses.ask`): what it gives is called for the answer.
        divides: Whether the gap of a span is divided among its tokens.
    """
    distinct = list({id(n): n for n in networks}.values())
    batch.teacher_index = torch.tensor([next(i for i, d in enumerate(distinct) if d is n) for n in networks])
    whole = cast("list[PreTrainedModel]", distinct) if signal == TeacherSignal.FULL else []  # nobody elsewhere tells so much
    wide = max((network.config.get_text_config().hidden_size for network in whole), default=0)
    fields = {"logp": "teacher_logp", "top_ids": "teacher_top_ids", "top_logp": "teacher_top_logp", "hidden": "teacher_hidden"}
    if not any(isinstance(network, RemoteModel) for network in distinct):
        fields["entropy"] = "teacher_entropy"
    told = Reading(batch.teacher_ids, batch.teacher_attention_mask, batch.teacher_response_mask, signal, k)
    readings = [told.of(batch.teacher_index == i) for i in range(len(distinct))]
    answers: list[Callable[[], Any]] = [
        partial(network.score, scorer, *reading.rows, signal, k, ranks)
        if isinstance(network, RemoteModel)
        else ask(scorer, network, reading)
        for network, reading in zip(distinct, readings, strict=True)
    ]

    def seen(answer: dict[str, Tensor] | Scored, rows: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if not isinstance(answer, Scored):
            return answer
        if batch.has("teacher_spans"):
            spans = (batch.teacher_spans[rows], batch.old_logp[rows], batch.student_spans[rows])
            return {"logp": span_teacher_logp(answer.logp.to(batch.old_logp), *spans, divides)[batch.response_mask[rows]]}
        return {name: values[mask] for name in fields if (values := getattr(answer, name)) is not None}

    def fill_in() -> list[Head]:
        for i, (answer, reading) in enumerate(zip(answers, readings, strict=True)):
            for name, values in seen(answer(), batch.teacher_index == i, reading.response_mask).items():
                field = fields[name]
                if name == "hidden":
                    values = nn.functional.pad(values, (0, wide - values.shape[-1]))
                empty = values.new_zeros(*batch.ids.shape, *values.shape[1:])
                filled = getattr(batch, field) if batch.has(field) else empty
                filled = filled.to(torch.promote_types(filled.dtype, values.dtype))  # teachers may differ in precision
                of_teacher = batch.response_mask & (batch.teacher_index == i)[:, None]
                filled[of_teacher] = values.to(filled.dtype)  # the same tokens, in order
                setattr(batch, field, filled)
        return [keep_head(scorer, network, sharding) for network in whole]

    return fill_in


def keep_head(scorer: Scorer, network: "PreTrainedModel", sharding: Sharding | None) -> Head:
    """A network's head as it is now, whole."""

    def kept() -> Head:
        return run_as_forward(network.get_output_embeddings(), lambda: scorer.head(network).kept())

    with torch.no_grad():
        return kept() if sharding is None else sharding.run_as_forward(kept)


def _spread(values: Tensor, predicts: Tensor) -> Tensor:
    """Put per-token values back to ``[batch, time, ...]``."""
    out = values.new_zeros(predicts.shape[0], predicts.shape[1] + 1, *values.shape[1:])
    index = predicts.nonzero(as_tuple=True)
    return out.index_put((index[0], index[1] + 1), values)


def together(readings: Sequence[Reading]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and response mask ``[rows, time]`` of the rows of all readings, one behind the other."""
    time = max(reading.ids.shape[1] for reading in readings)
    ids, attention_mask, response_mask = (
        torch.cat([nn.functional.pad(values, (0, time - values.shape[1])) for values in each])
        for each in zip(*(reading.rows for reading in readings), strict=True)
    )
    return ids, attention_mask, response_mask


def micro_batches(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Row indices in pieces of similar length, each at most `max_tokens` tokens after padding (or a single row)."""
    order = lengths.argsort(stable=True, descending=True).tolist()
    piece: list[int] = []
    for row in order:
        if piece and int(lengths[piece[0]]) * (len(piece) + 1) > max_tokens:
            yield torch.tensor(piece)
            piece = []
        piece.append(row)
    if piece:
        yield torch.tensor(piece)


def densities(batch: Batch, allowed_logmass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens of scored rows the policy's sampler drew, and what trainer and sampler gave them: log-probabilities of the
    tempered softmax over the whole vocabulary, before forbidden ids, top-k and top-p. All ``[batch, time]``.

    Args:
        allowed_logmass: Log of the mass that the trainer gives to the ids that are not forbidden.
    """
    # Both are 0 where a replay or a demonstration speaks.
    has_density = (batch.behaviour_logp != 0) | (batch.kept_logmass != 0)
    sampled = batch.response_mask.bool() & has_density & ~batch.extra[:, None]  # extra ones were sampled from a teacher
    return sampled, batch.old_logp + allowed_logmass, batch.behaviour_logp + batch.kept_logmass
