"""A policy whose tokenizer is trained once, in the process that all runs of several ranks are forked from."""

from functools import cache

from transformers import PreTrainedTokenizerBase

from sdar.envs import HouseholdEnv
from sdar.policies import FreshPolicy

SIZE = {"hidden_size": 16, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 32, "context": 512}


@cache
def trained_tokenizer() -> PreTrainedTokenizerBase:
    return FreshPolicy(HouseholdEnv(), **SIZE).load_tokenizer()


class TinyPolicy(FreshPolicy):
    """`FreshPolicy` of the household, of the size above."""

    def __init__(self) -> None:
        super().__init__(HouseholdEnv(), **SIZE)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return trained_tokenizer()
