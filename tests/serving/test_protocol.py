"""Messages are read strictly: what is wrong is named, what is right comes back as it was."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import changed

from sdar.parts import Completion, Draw
from sdar.serving.protocol import (
    BadMessage,
    LoadRequest,
    SampleRequest,
    Sampling,
    WeightsFile,
    dump,
    read_completions,
    read_load,
    read_sample,
    write_completions,
)

SAMPLING = Sampling(1.0, 0, 0.9, (0, 2), (1,), 10, 3)
REQUEST = SampleRequest("0@1.1", "ab", 2, 60.0, SAMPLING, ((5, 6), (7,)), (Draw(0, "t", 0, 0), Draw(0, "u", 1, 2)))
ANSWER = [Completion([5, 1], [-0.5, -1e-300], [0.0, -0.25], True), Completion([4, 4, 9], [-1.0, -2.0, -3.0], [0.0] * 3, False)]


def test_messages_come_back_as_they_were():
    assert read_sample(dump(REQUEST)) == REQUEST
    load = LoadRequest("v", (WeightsFile("/a/b.safetensors", "00ff"),), {"lm_head.weight": "embed"})
    assert read_load(dump(load)) == load
    assert read_completions(json.dumps(write_completions("0@1.1", ANSWER)).encode(), REQUEST) == ANSWER


@given(st.lists(st.floats(max_value=0, allow_infinity=False, allow_nan=False), min_size=3, max_size=3))
def test_densities_travel_without_rounding(logp):
    answer = [ANSWER[0], Completion([4, 4, 9], logp, logp, False)]
    [_, back] = read_completions(json.dumps(write_completions("0@1.1", answer)).encode(), REQUEST)
    assert back.behaviour_logp == back.kept_logmass == logp


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["protocol"], 2, '"protocol" is 2, here 1 is spoken'),
        (["protocol"], ..., '"protocol" is None, here 1 is spoken'),
        (["version"], 3, "\"version\" is '3': a str is wanted"),
        (["version"], ..., "a SampleRequest lacks version"),
        (["seed"], 3, "a SampleRequest has unknown seed"),
        (["rollout"], True, "\"rollout\" is 'True': a whole number is wanted"),
        (["deadline"], 0, '"deadline" is 0.0: seconds, more than 0'),
        (["prompts"], [[5]], '1 "prompts" and 2 "draws"'),
        (["prompts", 0], [], '"prompts" holds an empty prompt'),
        (["prompts", 0], [5, -1], "a list of token ids is wanted"),
        (["prompts", 0], [5, 1.0], "a list of token ids is wanted"),
        (["prompts"], 7, "\"prompts\" is '7': a list is wanted"),
        (["draws", 1, "turn"], "2", "\"draws.turn\" is '2': a whole number is wanted"),
        (["draws", 1, "task"], 2, "\"draws.task\" is '2': a str is wanted"),
        (["sampling", "top_p"], 0, '"sampling.top_p" is 0.0: it must be in (0, 1]'),
        (["sampling", "top_p"], "a", "\"sampling.top_p\" is 'a': a number is wanted"),
        (["sampling", "top_k"], -1, '"sampling.top_k" is -1: it must be 0 (all) or more'),
        (["sampling", "temperature"], -0.1, '"sampling.temperature" is -0.1: it must be 0 or more'),
        (["sampling", "temperature"], math.nan, '"sampling.temperature" is nan'),
        (["sampling", "forbidden_ids"], [10], '"sampling.forbidden_ids" is (10,): it must be of ids from 0 to 9'),
        (["sampling", "forbidden_ids"], list(range(10)), "holds all 10 tokens: nothing is left to sample"),
        (["sampling", "stop_ids"], [11], '"sampling.stop_ids" is (11,)'),
        (["sampling", "max_new_tokens"], 0, '"sampling.max_new_tokens" is 0: it must be at least 1'),
        (["sampling", "vocab_size"], 0, '"sampling.vocab_size" is 0'),
        (["sampling"], [], "\"sampling\" is '[]': a dict is wanted"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(path, value, words):
    with pytest.raises(BadMessage, match=re.escape(words)):
        read_sample(changed(dump(REQUEST), path, value))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 9000])
def test_what_is_no_json_is_told(body):
    with pytest.raises(BadMessage, match=f"{len(body)} bytes that are no JSON"):
        read_sample(body)
    with pytest.raises(BadMessage, match="the body is no JSON object"):
        read_load(b"[]")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["version"], "0@2.2", "\"version\" is '0@2.2', '0@1.1' was asked for"),
        (["completions"], [], "0 completions for 2 prompts"),
        (["completions", 0, "ids"], [], "a completion of 0 ids, 2 log-probabilities and 2 kept masses"),
        (["completions", 1, "ids"], [4, 4, 9, 9], "a completion of 4 ids, 3 log-probabilities and 3 kept masses; at most 3"),
        (["completions", 1, "ids"], [4, 4, 10], "a completion with the token 10, which is forbidden or none of 10"),
        (["completions", 1, "ids"], [4, 2, 9], "a completion with the token 2, which is forbidden"),
        (["completions", 1, "behaviour_logp", 0], 0.1, "that is not in (-inf, 0]"),
        (["completions", 1, "behaviour_logp", 0], math.nan, "that is not in (-inf, 0]"),
        (["completions", 1, "kept_logmass", 0], -math.inf, "that is not in (-inf, 0]"),
        (["completions", 1, "kept_logmass", 0], None, "\"kept_logmass\" is 'None': a number is wanted"),
        (["completions", 0, "stopped"], False, "says stopped=False, against its ids"),
        (["completions", 1, "stopped"], True, "says stopped=True, against its ids"),
        (["completions", 1, "ids"], [1, 4, 9], "says stopped=False, against its ids"),
        (["completions", 1, "stopped"], 0, "\"stopped\" is '0': a bool is wanted"),
        (["completions", 1, "text"], "x", "a Completion has unknown text"),
    ],
)
def test_an_answer_that_breaks_its_promises_is_noticed(path, value, words):
    body = json.dumps(write_completions("0@1.1", ANSWER)).encode()
    with pytest.raises(BadMessage, match=re.escape(words)):
        read_completions(changed(body, path, value), REQUEST)


def test_an_answer_that_stops_early_is_noticed():
    short = [ANSWER[0], Completion([4, 4], [-1.0, -2.0], [0.0, 0.0], False)]
    with pytest.raises(BadMessage, match="a completion of 2 tokens that says stopped=False"):
        read_completions(json.dumps(write_completions("0@1.1", short)).encode(), REQUEST)
