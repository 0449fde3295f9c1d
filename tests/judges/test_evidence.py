"""The judge by evidence reads the ids of the policy: with another tokenizer its verdicts would be about other texts."""

import re

import pytest
from tiny_policy import TinyPolicy

from sdar.envs import SearchEnv
from sdar.errors import PolicyError
from sdar.judges import EvidenceJudge
from sdar.policies import FreshPolicy


def test_a_judge_with_another_tokenizer_is_refused():
    other = FreshPolicy(SearchEnv(passages=40, short=True), hidden_size=16, layers=1, heads=2, key_value_heads=2)
    tokenizer = TinyPolicy().load_tokenizer()
    fault = r"the judge .* and the student tiny have different tokenizers: [\d,]+ of [\d,]+ tokens differ, .*Use a judge of the student's"
    with pytest.raises(PolicyError) as caught:
        EvidenceJudge(other).check_tokenizer(tokenizer, "tiny")
    assert re.match(fault, str(caught.value)), caught.value
    EvidenceJudge(TinyPolicy()).check_tokenizer(tokenizer, "tiny")
