"""The engine that is plain torch: the training's own sampler behind the protocol, with its key-value caches kept between turns."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal, cast

import msgspec
from torch import Tensor, cuda, nn
from transformers import AutoModelForCausalLM

from sdar.errors import ConfigError
from sdar.parts import Completion, Session
from sdar.paths import resolve
from sdar.registry import register
from sdar.samplers.torch_sampler import TorchSampler
from sdar.scoring import Scorer
from sdar.serving.engine import INCOMPLETE, Abandoned, Engine, Outcome, longest_context
from sdar.serving.protocol import SampleRequest, Sampling, ScoreRequest
from sdar.serving.rows import score_rows
from sdar.serving.weights import begun, complete

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SILENT_S = 3600.0
"""What was read for a client that has asked for nothing for so long is let go of, when another one asks."""


@dataclass
class _Kept:
    """What was read for a client's rollout."""

    rollout: int
    sampling: Sampling
    session: Session
    used: float = 0.0


@dataclass
class _Job:
    """A request under way, and those of its answers that are there."""

    kept: _Kept
    wanted: Callable[[], bool]
    answers: list[Completion | None]
    rows: list[int] = field(default_factory=list)
    """The session's number of each prompt."""


@register("torch")
class TorchEngine(Engine):
    """A transformers model that `TorchSampler` samples from and `Scorer` reads rows with. All prompts that a client has sent are answered
    together, each until it has ended; clients take turns pass by pass, and requests for scores between two of them.

    Args:
        model: Directory or hub id of the model.
        dtype: Type of the weights in memory; auto: that of the model's settings.
        context: Longest prompt and response together, in tokens; null: what the model knows.
        batch_size: Most prompts in one forward pass.
        score_tokens: Most tokens (padding included) in one forward pass over rows that are scored.
        device: Where it runs; auto: the first CUDA device if there is one.
        clients: Whose keys and values are kept between turns: those of so many clients that asked last. Each process of a run that
            samples here is one; who comes back later is read anew.
        draft_tokens: Most tokens of an answer that a forward pass reads ahead, where they are likely (`sdar.samplers.drafts`); 0: none.
            They save passes and change no token.
    """

    scores = True

    def __init__(
        self,
        model: str,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        context: int | None = None,
        batch_size: int = 256,
        score_tokens: int = 16384,
        device: str = "auto",
        clients: int = 32,
        draft_tokens: int = 3,
    ):
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"engine.batch_size is {batch_size}: a forward pass needs at least 1 prompt.")
        if score_tokens < 1:
            raise ConfigError(f"engine.score_tokens is {score_tokens}: a forward pass needs at least 1 token.")
        if clients < 1:
            raise ConfigError(f"engine.clients is {clients}: at least 1 client's keys and values are kept.")
        if draft_tokens < 0:
            raise ConfigError(f"engine.draft_tokens is {draft_tokens}: give the most tokens to read ahead, or 0 for none.")
        if context is not None and context < 2:
            raise ConfigError(f"engine.context is {context}: a prompt and a response need at least 2 tokens.")
        self.model, self.dtype, self.batch_size = str(resolve(model)), dtype, batch_size
        self.score_tokens, self.clients, self.draft_tokens = score_tokens, clients, draft_tokens
        self.device = ("cuda" if cuda.is_available() else "cpu") if device == "auto" else device
        self._asked_context = context
        self._jobs: dict[int, _Job] = {}
        self._rows: dict[int, tuple[int, int]] = {}  # the session's number of a prompt -> its request and place there
        self._row_numbers = count()
        self._unscored: deque[tuple[int, ScoreRequest, Callable[[], bool]]] = deque()
        self._scores_next = False
        self._passes = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._wanted: Callable[[], bool] = lambda: True
        self._checked = False

    def open(self) -> None:
        self.network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.model, dtype=self.dtype, use_safetensors=True
        )
        cast(nn.Module, self.network).to(self.device).requires_grad_(False).eval()
        self.network.base_model.register_forward_pre_hook(self._check_wanted)
        config = self.network.config.get_text_config()
        self.context = longest_context(self._asked_context, config.max_position_embeddings)
        self.vocab_size = self.network.get_output_embeddings().weight.shape[0]
        self.parameters = sum(tensor.numel() for tensor in self.network.state_dict().values())

    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        state, pairs = self.network.state_dict(), begun(complete(version, weights, self.network))
        self._kept.clear()
        self.version = version + INCOMPLETE
        for name, tensor in pairs:
            state[name].copy_(tensor)
        self.version = version

    def admit(self, number: int, request: SampleRequest, wanted: Callable[[], bool]) -> None:
        job = _Job(self._kept_for(request), wanted, [None] * len(request.prompts))
        self._jobs[number] = job
        for place, (prompt, key) in enumerate(zip(request.prompts, request.draws, strict=True)):
            self._rows[row := next(self._row_numbers)] = number, place
            job.rows.append(row)
            job.kept.session.submit(row, prompt, key, request.sampling.max_new_tokens)

    def admit_scoring(self, number: int, request: ScoreRequest, wanted: Callable[[], bool]) -> None:
        self._unscored.append((number, request, wanted))

    def step(self) -> list[tuple[int, Outcome]]:
        finished: list[tuple[int, Outcome]] = []
        for number, job in list(self._jobs.items()):
            if not job.wanted():
                self._drop(number)
                finished.append((number, Abandoned()))
            elif not job.rows:  # there was nothing to do
                del self._jobs[number]
                finished.append((number, []))
        self._scores_next = bool(self._unscored) and (self._scores_next or not self._jobs)
        finished += self._score() if self._scores_next else self._sample_on()
        self._scores_next = not self._scores_next  # they take turns
        return finished

    def _sample_on(self) -> list[tuple[int, Outcome]]:
        """One pass for a client: they take turns."""
        if not self._jobs:
            return []
        clients = list({id(job.kept): job.kept for job in self._jobs.values()}.values())
        self._passes += 1
        kept = clients[self._passes % len(clients)]
        jobs = {number: job for number, job in self._jobs.items() if job.kept is kept}
        try:
            with self._while_wanted(lambda: any(job.wanted() for job in jobs.values())):
                ended = kept.session.step()
        except Exception as error:  # the server goes on; a cache that was left in the middle is of no use
            self._kept = OrderedDict((client, other) for client, other in self._kept.items() if other is not kept)
            for number in jobs:
                self._drop(number)
            return [(number, error) for number in jobs]
        finished: list[tuple[int, Outcome]] = []
        for row, completion in ended:
            if row not in self._rows:  # nobody waited for it any more
                continue
            number, place = self._rows.pop(row)
            answers = jobs[number].answers
            answers[place] = completion
            if None not in answers:
                del self._jobs[number]
                finished.append((number, cast(list[Completion], answers)))
        return finished

    def _score(self) -> list[tuple[int, Outcome]]:
        """The next request for scores, whole."""
        number, request, wanted = self._unscored.popleft()
        try:
            with self._while_wanted(wanted):
                if not self._checked:
                    Scorer(1.0, (), self.vocab_size).check(self.network)
                    self._checked = True
                return [(number, score_rows(self.network, request, self.score_tokens))]
        except Exception as error:  # the server goes on
            return [(number, error)]

    def _drop(self, number: int) -> None:
        job = self._jobs.pop(number)
        for row in job.rows:
            if self._rows.pop(row, None) is not None:
                job.kept.session.withdraw(row)

    def forget(self, client: str) -> None:
        self._kept.pop(client, None)

    def _kept_for(self, request: SampleRequest) -> _Kept:
        kept = self._kept.pop(request.client, None)
        s = msgspec.structs.replace(request.sampling, max_new_tokens=1)  # each prompt has a limit of its own
        if kept is None or (kept.rollout, kept.sampling) != (request.rollout, s):
            sampler = TorchSampler(
                max_new_tokens=s.max_new_tokens,
                temperature=s.temperature,
                top_k=s.top_k,
                top_p=s.top_p,
                batch_size=self.batch_size,
                draft_tokens=self.draft_tokens,
            )
            sampler.bind_ids(s.stop_ids, s.forbidden_ids, s.vocab_size, self.context)
            kept = _Kept(request.rollout, s, sampler.session(self.network))
        kept.used = time.monotonic()
        self._kept[request.client] = kept  # the last one
        while len(self._kept) > self.clients or next(iter(self._kept.values())).used < kept.used - SILENT_S:
            self._kept.popitem(last=False)
        return kept

    @contextmanager
    def _while_wanted(self, wanted: Callable[[], bool]) -> Iterator[None]:
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = lambda: True

    def _check_wanted(self, *_: object) -> None:
        if not self._wanted():
            raise Abandoned
