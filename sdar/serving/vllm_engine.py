"""The engine that is vLLM: paged attention, continuous batching and prefix caching; densities and random numbers are our own.

vLLM's native sampler cannot say what share of the mass top-p and top-k kept, nor draw each token with a number of its own. A
logits processor decides instead (`sdar.serving.vllm_processor`): tokens equal those of `TorchSampler`, and densities are true by
construction. It costs a quarter of the tokens a second for a network of a million parameters on a CPU (docs/serving.md has the
table). 0.32.0 was run, on a CPU. 0.33 wants torch 2.14, which nothing here was run with.
"""

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sdar.errors import ConfigError, ContextOverflowError
from sdar.parts import Completion
from sdar.paths import resolve
from sdar.registry import register
from sdar.serving.engine import INCOMPLETE, Abandoned, Engine, Outcome, longest_context
from sdar.serving.protocol import SampleRequest, ScoreRequest
from sdar.serving.weights import begun, complete

RANGE = ((0, 32), (0, 33))
"""From the first to before the second, as (major, minor)."""

OURS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is stepped in this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # its logits processors are of another kind
}
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}


@register("vllm")
class VLLMEngine(Engine):
    """vLLM, on one accelerator (or the CPU build). Rows are scored with one token of the context to spare.

    Args:
        model: Directory or hub id of the model.
        dtype: Type of the weights in memory; auto: that of the model's settings.
        context: Longest prompt and response together, in tokens; null: what the model knows.
        memory: Share of the accelerator's memory that vLLM may take; null: vLLM's own default, nearly all.
        eager: Do without compilation and CUDA graphs: starts faster, samples slower.
        options: Further arguments of ``vllm.LLM``, e.g. ``{max_num_seqs: 512}``.
    """

    scores = True

    def __init__(
        self,
        model: str,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        context: int | None = None,
        memory: float | None = None,
        eager: bool = False,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        if context is not None and context < 2:
            raise ConfigError(f"engine.context is {context}: a prompt and a response need at least 2 tokens.")
        if memory is not None and not 0 < memory <= 1:
            raise ConfigError(f"engine.memory is {memory}: it is a share of the accelerator's memory, in (0, 1].")
        self.model, self.dtype = str(resolve(model)), dtype
        self.memory, self.eager, self.options = memory, eager, dict(options or {})
        if ours := set(self.options) & set(self._arguments(0)):
            raise ConfigError(
                f"engine.options holds {', '.join(sorted(ours))}, which the engine sets itself: use its own arguments, or leave it out."
            )
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if self.options.get(name, 1) != 1:
                raise ConfigError(
                    f"engine.options.{name} is {self.options[name]}: an engine takes one accelerator, because weights are handed over "
                    "within its process. Start one server for each accelerator."
                )
        if self.options.get("speculative_config"):
            raise ConfigError(
                "engine.options.speculative_config is set: vLLM allows no logits processor with it. Leave it out."
            )
        self._asked_context = context
        self._jobs: dict[int, _Job] = {}
        self._unscored: deque[tuple[int, ScoreRequest, Callable[[], bool]]] = deque()
        self._scoring: set[int] = set()
        self._asleep: set[str] = set()

    def _arguments(self, context: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "dtype": self.dtype,
            "max_model_len": context,
            "enforce_eager": self.eager,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logits",
            "max_logprobs": -1,  # as many as a teacher is asked for
            "logits_processors": ["sdar.serving.vllm_processor:DrawProcessor"],
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "async_scheduling": False,  # a token's position names its random number: it is counted when the last one is known
            "gpu_memory_utilization": self.memory,
            "enable_sleep_mode": None,
            "distributed_executor_backend": None,
        }

    def open(self) -> None:
        vllm = import_vllm()
        config = AutoConfig.from_pretrained(self.model).get_text_config()
        self.context = longest_context(self._asked_context, config.max_position_embeddings)
        with torch.device("meta"):
            self._shapes = AutoModelForCausalLM.from_config(config)
        self.vocab_size = config.vocab_size
        self.parameters = sum(tensor.numel() for tensor in self._shapes.state_dict().values())
        cuda = torch.cuda.is_available()
        self.device = "cuda" if cuda else "cpu"
        if self.memory is not None and not cuda:
            raise ConfigError(
                f"engine.memory is {self.memory}, and there is no accelerator whose memory it is a share of: on a CPU the environment's "
                "VLLM_CPU_KVCACHE_SPACE gives the GiB for keys and values. Leave engine.memory out."
            )
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        arguments = self._arguments(self.context) | {
            "enable_sleep_mode": cuda,
            "distributed_executor_backend": "external_launcher" if several else None,
        }
        with as_torchrun_does() if several else nullcontext():
            self.llm = vllm.LLM(**{k: v for k, v in arguments.items() if v is not None}, **self.options)
        self._params, self._tokens_input = vllm.SamplingParams, importlib.import_module("vllm.inputs").tokens_input
        self._processor = importlib.import_module("sdar.serving.vllm_processor")
        self._scorer = importlib.import_module("sdar.serving.vllm_scorer")
        [self._prompt_scores] = self.llm.collective_rpc(self._scorer.install)

    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        pairs = begun(complete(version, weights, self._shapes))
        self._wake("weights")
        self.version = version + INCOMPLETE
        failures: list[Exception] = []
        stream = self._to_the_end(pairs, failures)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})
        if failures:
            raise failures[0]
        if not self._asleep and not self.llm.reset_prefix_cache():  # asleep: it was lost then
            raise RuntimeError("vLLM did not reset its prefix cache: keys and values of old weights would be used on.")
        self.version = version

    def _to_the_end(self, pairs: Iterator[tuple[str, Tensor]], failures: list[Exception]) -> Iterator[tuple[str, Tensor]]:
        """A reload that is broken off leaves vLLM without layers: what is missing is made up, and the failure told afterwards."""
        given = set()
        try:
            for name, tensor in pairs:
                given.add(name)
                yield name, tensor
        except Exception as error:
            failures.append(error)
            for name, shape in self._shapes.state_dict().items():
                if name not in given:
                    yield name, torch.zeros(shape.shape, dtype=shape.dtype)

    def admit(self, number: int, request: SampleRequest, wanted: Callable[[], bool]) -> None:
        self._wake("weights", "kv_cache")
        self._jobs[number] = _Job(lambda i, output: self._completion(request, output.outputs[0]), wanted, len(request.prompts))
        for i, (prompt, key) in enumerate(zip(request.prompts, request.draws, strict=True)):
            params = self._params(
                temperature=0.0,  # the processor draws, and leaves one choice
                max_tokens=request.sampling.max_new_tokens,
                stop_token_ids=list(request.sampling.stop_ids),
                ignore_eos=True,
                logprobs=2,
                flat_logprobs=True,
                detokenize=False,
                output_kind=self._final_only(),
                extra_args={self._processor.KEY: (request.sampling, key)},
            )
            prompt_input = self._tokens_input(list(prompt), cache_salt=self.version)
            self.llm.llm_engine.add_request(f"{number}/{i}", prompt_input, params)

    def admit_scoring(self, number: int, request: ScoreRequest, wanted: Callable[[], bool]) -> None:
        if (longest := max(map(len, request.rows), default=0)) >= self.context:
            raise ContextOverflowError(
                f"a row has {longest} tokens, and the engine's context is {self.context}: vLLM reads one less than that, as it adds a "
                "token. Start the engine with a longer one."
            )
        self._unscored.append((number, request, wanted))

    def _score_next(self) -> None:
        """Begin with the next requests for scores that have the density of those under way."""
        self._scoring.intersection_update(self._jobs)
        while self._unscored:
            number, request, wanted = self._unscored[0]
            scoring = request.scoring
            if self._scoring and self._prompt_scores.scoring != scoring:
                return
            self._unscored.popleft()
            self._wake("weights", "kv_cache")
            self._scoring.add(number)
            self._prompt_scores.scoring = scoring

            def scores(i: int, output: Any, r: ScoreRequest = request) -> Any:
                return self._scorer.scores_of(output.prompt_logprobs, r.responses[i], r.scoring.top_k)

            self._jobs[number] = _Job(scores, wanted, len(request.rows))
            params = self._params(
                temperature=0.0,
                max_tokens=1,
                ignore_eos=True,
                prompt_logprobs=self._scorer.LEAST + scoring.top_k,
                flat_logprobs=True,
                detokenize=False,
                output_kind=self._final_only(),
            )
            for i, row in enumerate(request.rows):
                self.llm.llm_engine.add_request(f"{number}/{i}", self._tokens_input(list(row)), params)

    def step(self) -> list[tuple[int, Outcome]]:
        finished: list[tuple[int, Outcome]] = []
        self._score_next()
        for number, job in list(self._jobs.items()):
            if not job.wanted():
                self._drop(number)
                finished.append((number, Abandoned()))
            elif not job.answers:  # there was nothing to do
                del self._jobs[number]
                finished.append((number, []))
        if not self.llm.llm_engine.has_unfinished_requests():
            return finished
        try:
            outputs = self.llm.llm_engine.step()
        except Exception:
            for number in list(self._jobs):
                self._drop(number)
            self._unscored.clear()  # they are said to have failed, too
            raise
        for output in outputs:
            number, i = map(int, output.request_id.split("/"))
            if not output.finished or number not in self._jobs:
                continue
            job = self._jobs[number]
            self.counts["prompt_tokens"] += len(output.prompt_token_ids)
            self.counts["cached_prompt_tokens"] += output.num_cached_tokens or 0
            try:
                job.answers[i] = job.read(i, output)
            except Exception as error:
                self._drop(number)
                finished.append((number, error))
                continue
            if None not in job.answers:
                del self._jobs[number]
                finished.append((number, job.answers))
        return finished

    def _completion(self, request: SampleRequest, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a response with {output.finish_reason!r} after {len(output.token_ids)} tokens.")
        ids, flat = list(output.token_ids), output.logprobs
        pairs = [
            self._processor.densities(token, flat.token_ids[begin:end], flat.logprobs[begin:end])
            for token, begin, end in zip(ids, flat.start_indices, flat.end_indices, strict=True)
        ]
        return Completion(ids, [logp for logp, _ in pairs], [kept for _, kept in pairs], ids[-1] in request.sampling.stop_ids)

    def _drop(self, number: int) -> None:
        job = self._jobs.pop(number)
        self.llm.llm_engine.abort_request([f"{number}/{i}" for i, a in enumerate(job.answers) if a is None])

    def forget(self, client: str) -> None:
        """Prefixes are cached by their tokens, for whoever comes; the oldest give way."""

    def release(self) -> None:
        if not self._asleep and not self._jobs:
            self.llm.sleep(level=1)  # weights to the host's memory, keys and values forgotten
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *tags: str) -> None:
        if wake := [tag for tag in tags if tag in self._asleep]:
            self.llm.wake_up(tags=wake)
            self._asleep.difference_update(wake)

    def _final_only(self) -> Any:
        return importlib.import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY

    def close(self) -> None:
        if hasattr(self, "llm"):
            self.llm.llm_engine.engine_core.shutdown()
            del self.llm


@contextmanager
def as_torchrun_does() -> Iterator[None]:
    """Where a process of a run finds its number; launchers but torchrun do not say it. The run's own process group is used."""
    rank = torch.distributed.get_rank()
    local = torch.cuda.current_device() if torch.cuda.is_available() else rank
    names = {"RANK": str(rank), "LOCAL_RANK": str(local), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    added = {name: value for name, value in names.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class _Job:
    """A request under way: how one of its answers is read off vLLM's, and those that are there."""

    def __init__(self, read: Callable[[int, Any], Any], wanted: Callable[[], bool], number: int):
        self.read, self.wanted = read, wanted
        self.answers: list[Any] = [None] * number


def import_vllm() -> Any:
    """vLLM, of a version that this was written for.

    Raises:
        ConfigError: it is missing or another.
    """
    for name, value in OURS.items():
        if os.environ.setdefault(name, value) != value:
            raise ConfigError(f"the environment sets {name}={os.environ[name]}, sampling needs {value}: unset it.")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    low, high = (".".join(map(str, v)) for v in RANGE)
    try:
        vllm = importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"sampling with vLLM needs the package vllm ({low} to before {high}), and {error.name} is not installed here: install it, "
            "or run `sdar serve-policy` in an environment that has it and use ServerSampler (docs/serving.md)."
        ) from None
    check_version(str(vllm.__version__))
    return vllm


def check_version(found: str) -> None:
    """Raise ConfigError for a version of vLLM outside of `RANGE`."""
    numbers = tuple(int(n) if n.isdigit() else -1 for n in found.split(".")[:2])
    if not RANGE[0] <= numbers < RANGE[1]:
        low, high = (".".join(map(str, v)) for v in RANGE)
        raise ConfigError(
            f"vLLM {found} is installed, this version of sdar works with {low} to before {high}: logits processors and weight updates "
            f'change between versions. Install "vllm>={low},<{high}", in an environment of '
            "its own for `sdar serve-policy` if other packages disagree."
        )
