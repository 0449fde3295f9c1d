"""Sampling with vLLM in the training process: it sleeps while the weights are updated, and takes them over in memory."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sdar.errors import ConfigError, EngineFault
from sdar.parts import Completion, SampleKey, Session
from sdar.registry import register
from sdar.samplers.bound import TruncatingSampler
from sdar.samplers.engine_session import EngineSession
from sdar.serving.engine import INCOMPLETE
from sdar.serving.protocol import SampleRequest, Sampling
from sdar.serving.vllm_engine import VLLMEngine, import_vllm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VLLM_SHARE = 0.9
"""Of the accelerator's memory, which vLLM takes by its own default."""


@register("vllm")
class VLLMSampler(TruncatingSampler):
    """Samples with vLLM on the accelerator that trains; in a run of several processes each has an engine of its own.

    Tokens are those that `TorchSampler` samples: every random number derives from (run seed, task id, attempt, turn, position). An
    engine in another process or environment: `ServerSampler`.

    Args:
        model: Directory or hub id of the model whose weights are trained; by default where its tokenizer comes from.
        dtype: Type of the weights that sample; auto: that of the model's settings. Another one than the training's shows up in
            `rollout/mismatch`.
        memory: Share of the accelerator's memory that vLLM may take beside the training, e.g. 0.3; null: vLLM's own default, nearly all.
        eager: Do without compilation and CUDA graphs: starts faster, samples slower.
        options: Further arguments of ``vllm.LLM``.
    """

    own_engine = True

    def __init__(
        self,
        *,
        model: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        memory: float | None = None,
        eager: bool = False,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        VLLMEngine(model or "", dtype, None, memory, eager, options)  # says now what is wrong with them
        self.model, self.dtype, self.memory, self.eager, self.options = model, dtype, memory, eager, options
        self.engine_share = memory or VLLM_SHARE
        self._held: list[VLLMEngine] = []  # shared by copies of this sampler
        self._reported: Counter[str] = Counter()

    def bind(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], context: int) -> None:
        super().bind(tokenizer, stop_ids, context)
        model = self.model or str(tokenizer.name_or_path or "")
        if not model or (not self.model and Path(model).exists() and not (Path(model) / "config.json").is_file()):
            raise ConfigError(
                "sampler.model is not set, and the policy's tokenizer comes from no model directory: vLLM builds its network from one. "
                "Export the policy (a model with `save_pretrained`) and give sampler.model that directory."
            )
        import_vllm()
        self._engine_settings = (model, self.dtype, context, self.memory, self.eager, self.options)

    @property
    def engine(self) -> VLLMEngine:
        """Opened at the first use."""
        if not self._held:
            engine = VLLMEngine(*self._engine_settings)
            with untouched_randomness():
                engine.open()
            self._held.append(engine)
        return self._held[0]

    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        if version == self.engine.version:
            for _ in weights:
                pass
            return
        # vLLM holds tensors until a layer has all of its own, longer than a gathered one may live
        self.engine.load(version, ((name, tensor.detach().clone()) for name, tensor in weights))

    def sample(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey]
    ) -> list[Completion]:
        return self.engine.sample(self._request(prompts, keys, self.max_new_tokens))

    def session(self, model: "PreTrainedModel") -> Session:
        if type(self).sample is not VLLMSampler.sample:  # a subclass that samples in its own way is asked to
            return super().session(model)
        return EngineSession(self.engine, self._request)

    def _request(self, prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey], most: int) -> SampleRequest:
        self.check_room(prompts, keys)
        engine = self.engine
        if engine.version is None or engine.version.endswith(INCOMPLETE):
            raise EngineFault(
                "VLLMSampler.sample was called before `load`: vLLM does not have the weights of the training yet."
            )
        return SampleRequest(
            version=engine.version,
            client="",
            rollout=0,
            deadline=1.0,
            sampling=msgspec.structs.replace(Sampling.of(self), max_new_tokens=most),
            prompts=tuple(tuple(p) for p in prompts),
            draws=tuple(keys),
        )

    def release(self) -> None:
        if self._held:
            self._held[0].release()

    def metrics(self) -> dict[str, float]:
        if not self._held:
            return {}
        counts, reported = self._held[0].counts, self._reported
        new = counts - reported
        reported.clear()
        reported.update(counts)
        return {"rollout/cached_share": new["cached_prompt_tokens"] / max(1, new["prompt_tokens"])}

    def close(self) -> None:
        while self._held:
            self._held.pop().close()


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """vLLM seeds the process's generators when it starts; the run's own are put back."""
    python, array = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
