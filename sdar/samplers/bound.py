"""What every sampler that truncates a softmax shares: its settings, checked once, and the vocabulary that `bind` teaches it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sdar.errors import ConfigError, ContextOverflowError
from sdar.parts import SampleKey, Sampler


class TruncatingSampler(Sampler):
    """Samples from the density of `sdar.samplers.density.truncate`.

    Args:
        max_new_tokens: Longest response, in tokens.
        temperature: Softmax temperature; 0 is greedy.
        top_k: Keep the k likeliest tokens (0: all).
        top_p: Keep the likeliest tokens that together reach this mass.
        forbid: Tokens that a turn may not emit. Default: all special tokens but those that end a turn.
    """

    longest: int = 0
    """Tokens of the longest row so far, with a draft: the in-process engine makes room for so many at once."""

    def __init__(
        self,
        max_new_tokens: int = 512,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        forbid: list[str] | None = None,
    ):
        if max_new_tokens < 1:
            raise ConfigError(
                f"sampler.max_new_tokens is {max_new_tokens}: a response needs at least 1 token. Set it to 1 or more."
            )
        if temperature < 0:
            raise ConfigError(f"sampler.temperature is {temperature}: a softmax temperature is positive (0 means greedy).")
        if top_k < 0:
            raise ConfigError(f"sampler.top_k is {top_k}: give the number of tokens to keep, or 0 for all.")
        if not 0 < top_p <= 1:
            raise ConfigError(f"sampler.top_p is {top_p}: it is a probability mass in (0, 1]. 1 keeps everything.")
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.forbid = forbid

    def bind(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], context: int) -> None:
        if self.forbid is None:
            special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
            forbidden = (special | set(tokenizer.all_special_ids)) - set(stop_ids)
        else:
            vocabulary = tokenizer.get_vocab()
            unknown = [t for t in self.forbid if t not in vocabulary]
            if unknown:
                raise ConfigError(
                    f"sampler.forbid names {unknown}, not in the vocabulary of {len(vocabulary)} tokens: a token that does "
                    "not exist cannot be forbidden. Remove it or correct its spelling."
                )
            if stops := [t for t in self.forbid if vocabulary[t] in stop_ids]:
                raise ConfigError(
                    f"sampler.forbid names {stops}, which ends a turn: a response that may not end always runs to "
                    "max_new_tokens. Remove it."
                )
            forbidden = {vocabulary[t] for t in self.forbid}
        self.bind_ids(stop_ids, sorted(forbidden), len(tokenizer), context)

    def bind_ids(self, stop_ids: Sequence[int], forbidden_ids: Sequence[int], vocab_size: int, context: int) -> None:
        """The same for who knows the ids already; tokens from `vocab_size` on are never sampled."""
        self.stop_ids = frozenset(stop_ids)
        self.forbidden_ids = tuple(forbidden_ids)
        self.vocab_size = vocab_size
        self.context = context

    def check_room(self, prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey]) -> None:
        """Raise ContextOverflowError where a prompt and the longest response do not fit."""
        longest = max(range(len(prompts)), key=lambda i: len(prompts[i]), default=None)
        if longest is not None and len(prompts[longest]) + self.max_new_tokens > self.context:
            raise ContextOverflowError(
                f"the prompt of task {keys[longest].task} has {len(prompts[longest])} tokens and may get "
                f"{self.max_new_tokens} more, but the model's context is {self.context}: nothing is cut silently. Shorten the "
                "prompt or max_new_tokens."
            )
