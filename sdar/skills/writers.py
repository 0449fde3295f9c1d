"""Who writes skills: a model behind an endpoint, or a policy in this process."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from sdar.chat_endpoint import ChatEndpoint, NoAnswerError
from sdar.errors import check_least, check_positive

Check = Callable[[str], object]
"""Raises NoAnswerError for an answer that is of no use."""


class Writer(Protocol):
    """Answers questions."""

    name: str
    """Which model, with what decides its answers."""

    def answers(self, texts: Sequence[str], checks: Sequence[Check]) -> Iterator[tuple[int, str | NoAnswerError]]:
        """Number of a question and its answer, or why there is none, each as soon as it is there."""
        ...


class EndpointWriter:
    """A model behind an OpenAI-compatible endpoint, asked several questions at a time."""

    def __init__(
        self, url: str, model: str, api_key_env: str | None, temperature: float, max_new_tokens: int, concurrency: int, timeout: float,
        retries: int,
    ):  # fmt: skip
        check_least("", 1, concurrency=concurrency)
        check_least("", 0, retries=retries)
        check_positive("", "seconds", timeout=timeout)
        options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
        self.endpoint = ChatEndpoint("", url, model, api_key_env, timeout, retries, options)
        self.concurrency = concurrency
        self.name = f"{model}, temperature {temperature:g}, {max_new_tokens} tokens"

    def answers(self, texts: Sequence[str], checks: Sequence[Check]) -> Iterator[tuple[int, str | NoAnswerError]]:
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="writer")
        try:
            asked = {pool.submit(self._ask, text, check): k for k, (text, check) in enumerate(zip(texts, checks, strict=True))}
            for future in as_completed(asked):
                yield asked[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, text: str, check: Check) -> str | NoAnswerError:
        def read(answer: str) -> str:
            try:
                check(answer)
            except NoAnswerError as error:
                raise NoAnswerError(f"{error}: {self.endpoint.quoted(answer)}") from None
            return answer

        try:
            return self.endpoint.insist(text, read, time.monotonic() + (self.endpoint.retries + 1) * self.endpoint.timeout)
        except NoAnswerError as error:
            return NoAnswerError(f"{error}{self.endpoint.no_key() if '401' in str(error) else ''}")


class PolicyWriter:
    """A policy's directory or hub id, sampled in this process, a few questions at a time."""

    BATCH = 8

    def __init__(self, path: str, temperature: float, max_new_tokens: int, retries: int, seed: int, device: str | None):
        check_least("", 0, retries=retries)
        from sdar.policies import PretrainedPolicy
        from sdar.samplers import TorchSampler

        self.policy = PretrainedPolicy(path)
        self.sampler = TorchSampler(max_new_tokens=max_new_tokens, temperature=temperature)
        self.retries, self.seed, self.device = retries, seed, device
        self.name = f"{path}, temperature {temperature:g}, {max_new_tokens} tokens, seed {seed}"

    def answers(self, texts: Sequence[str], checks: Sequence[Check]) -> Iterator[tuple[int, str | NoAnswerError]]:
        import torch

        from sdar.rollout.chat import ChatFormat
        from sdar.types import SampleKey

        chat = ChatFormat(self.policy.load_tokenizer(), self.policy.chat_options, self.policy.name)
        context = self.policy.context()
        self.sampler.bind(chat.tokenizer, chat.stop_ids, context)
        device = self.device or torch.accelerator.current_accelerator() or "cpu"
        model: Any = self.policy.load_frozen()
        model = model.to(device)
        prompts = {k: chat.prompt([{"role": "user", "content": text}]) for k, text in enumerate(texts)}
        room = context - self.sampler.max_new_tokens
        for k in [k for k, prompt in prompts.items() if len(prompt) > room]:
            yield (
                k,
                NoAnswerError(
                    f"the question has {len(prompts.pop(k))} tokens and there is room for {room} (context {context}): fewer episodes "
                    "(per_family) or characters of each (episode_chars)"
                ),
            )
        for attempt in range(self.retries + 1):
            left = list(prompts)
            for piece in (left[n : n + self.BATCH] for n in range(0, len(left), self.BATCH)):
                keys = [SampleKey(self.seed, f"write-skills/{texts[k]}", attempt, 0) for k in piece]
                said = self.sampler.sample(model, [prompts[k] for k in piece], keys)
                for k, completion in zip(piece, said, strict=True):
                    answer = chat.decode(completion.ids)
                    try:
                        checks[k](answer)
                    except NoAnswerError as error:
                        if attempt == self.retries:
                            yield k, error
                    else:
                        del prompts[k]
                        yield k, answer
