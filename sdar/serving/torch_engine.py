"""The engine that is plain torch: the training's own sampler behind the protocol, with its key-value caches kept between turns."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from torch import Tensor, cuda, nn
from transformers import AutoModelForCausalLM

from sdar.errors import ConfigError
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
    sampler: TorchSampler
    used: float = 0.0


@register("torch")
class TorchEngine(Engine):
    """A transformers model that `TorchSampler` samples from and `Scorer` reads rows with, one request after the other.

    Args:
        model: Directory or hub id of the model.
        dtype: Type of the weights in memory; auto: that of the model's settings.
        context: Longest prompt and response together, in tokens; null: what the model knows.
        batch_size: Most prompts in one forward pass.
        score_tokens: Most tokens (padding included) in one forward pass over rows that are scored.
        device: Where it runs; auto: the first CUDA device if there is one.
        clients: Whose keys and values are kept between turns: those of so many clients that asked last. Each process of a run that
            samples here is one; who comes back later is read anew.
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
    ):
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"engine.batch_size is {batch_size}: a forward pass needs at least 1 prompt.")
        if score_tokens < 1:
            raise ConfigError(f"engine.score_tokens is {score_tokens}: a forward pass needs at least 1 token.")
        if clients < 1:
            raise ConfigError(f"engine.clients is {clients}: at least 1 client's keys and values are kept.")
        if context is not None and context < 2:
            raise ConfigError(f"engine.context is {context}: a prompt and a response need at least 2 tokens.")
        self.model, self.dtype, self.batch_size = str(resolve(model)), dtype, batch_size
        self.score_tokens, self.clients = score_tokens, clients
        self.device = ("cuda" if cuda.is_available() else "cpu") if device == "auto" else device
        self._asked_context = context
        self._waiting: deque[tuple[int, Callable[[], Outcome], Callable[[], bool]]] = deque()
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
        self._waiting.append((number, lambda: self._sampled(request), wanted))

    def admit_scoring(self, number: int, request: ScoreRequest, wanted: Callable[[], bool]) -> None:
        self._waiting.append((number, lambda: self._scored(request), wanted))

    def step(self) -> list[tuple[int, Outcome]]:
        if not self._waiting:
            return []
        number, work, self._wanted = self._waiting.popleft()
        try:
            return [(number, work())]
        except Exception as error:  # the server goes on
            return [(number, error)]
        finally:
            self._wanted = lambda: True

    def forget(self, client: str) -> None:
        self._kept.pop(client, None)

    def _sampled(self, request: SampleRequest) -> Outcome:
        try:
            return self._sampler(request).sample(self.network, request.prompts, request.draws)
        except Exception:
            self.forget(request.client)  # a cache that was left in the middle is of no use
            raise

    def _scored(self, request: ScoreRequest) -> Outcome:
        if not self._checked:
            Scorer(1.0, (), self.vocab_size).check(self.network)
            self._checked = True
        return score_rows(self.network, request, self.score_tokens)

    def _sampler(self, request: SampleRequest) -> TorchSampler:
        kept = self._kept.pop(request.client, None)
        if kept is None or (kept.rollout, kept.sampling) != (request.rollout, request.sampling):
            s = request.sampling
            sampler = TorchSampler(
                max_new_tokens=s.max_new_tokens,
                temperature=s.temperature,
                top_k=s.top_k,
                top_p=s.top_p,
                batch_size=self.batch_size,
            )
            sampler.bind_ids(s.stop_ids, s.forbidden_ids, s.vocab_size, self.context)
            kept = _Kept(request.rollout, s, sampler)
        kept.used = time.monotonic()
        self._kept[request.client] = kept  # the last one
        while len(self._kept) > self.clients or next(iter(self._kept.values())).used < kept.used - SILENT_S:
            self._kept.popitem(last=False)
        return kept.sampler

    def _check_wanted(self, *_: object) -> None:
        if not self._wanted():
            raise Abandoned
