"""Messages are read strictly: what is wrong is named, what is right comes back as it was."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import changed

from sdar.parts import Completion, SampleKey
from sdar.serving.protocol import (
    BadMessage,
    LoadRequest,
    SampleRequest,
    Sampling,
    WeightsFile,
    dump,
    read,
    read_completions,
    write_completions,
)

SAMPLING = Sampling(1.0, 0, 0.9, (0, 2), (1,), 10, 3)
REQUEST = SampleRequest("0@1.1", "ab", 2, 60.0, SAMPLING, ((5, 6), (7,)), (SampleKey(0, "t", 0, 0), SampleKey(0, "u", 1, 2)))
ANSWER = [Completion([5, 1], [-0.5, -1e-300], [0.0, -0.25], True), Completion([4, 4, 9], [-1.0, -2.0, -3.0], [0.0] * 3, False)]


def test_messages_come_back_as_they_were():
    assert read(dump(REQUEST), SampleRequest) == REQUEST
    load = LoadRequest("v", (WeightsFile("/a/b.safetensors", "00ff"),), {"lm_head.weight": "embed"})
    assert read(dump(load), LoadRequest) == load
    assert read_completions(write_completions("0@1.1", ANSWER), REQUEST) == ANSWER


@given(st.lists(st.floats(max_value=0, allow_infinity=False, allow_nan=False), min_size=3, max_size=3))
def test_densities_travel_without_rounding(logp):
    answer = [ANSWER[0], Completion([4, 4, 9], logp, logp, False)]
    [_, back] = read_completions(write_completions("0@1.1", answer), REQUEST)
    assert back.behaviour_logp == back.kept_logmass == logp


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["protocol"], 2, '"protocol" is 2, here 1 is spoken'),
        (["protocol"], ..., '"protocol" is null, here 1 is spoken'),
        (["version"], 3, "no SampleRequest: Expected `str`, got `int` - at `$.version`"),
        (["version"], ..., "Object missing required field `version`"),
        (["seed"], 3, "Object contains unknown field `seed`"),
        (["draws", 0, "extra"], 3, "no SampleRequest: a field stands twice, or is unknown"),
        (["rollout"], True, "Expected `int`, got `bool` - at `$.rollout`"),
        (["deadline"], 0, '"deadline" is 0.0: seconds, more than 0'),
        (["prompts"], [[5]], '1 "prompts" and 2 "draws"'),
        (["prompts", 0], [], '"prompts" holds an empty prompt'),
        (["prompts", 0], [5, -1], "Expected `int` >= 0 - at `$.prompts[0][1]`"),
        (["prompts", 0], [5, 1.0], "Expected `int`, got `float` - at `$.prompts[0][1]`"),
        (["prompts"], 7, "Expected `array`, got `int` - at `$.prompts`"),
        (["draws", 1, "turn"], "2", "Expected `int`, got `str` - at `$.draws[1].turn`"),
        (["draws", 1, "task"], 2, "Expected `str`, got `int` - at `$.draws[1].task`"),
        (["sampling", "top_p"], 0, '"sampling.top_p" is 0.0: it must be in (0, 1]'),
        (["sampling", "top_p"], "a", "Expected `float`, got `str` - at `$.sampling.top_p`"),
        (["sampling", "top_k"], -1, '"sampling.top_k" is -1: it must be 0 (all) or more'),
        (["sampling", "temperature"], -0.1, '"sampling.temperature" is -0.1: it must be 0 or more'),
        (["sampling", "temperature"], math.nan, "bytes that are no JSON"),
        (["sampling", "temperature"], 10**400, "Number out of range"),
        (["rollout"], 10**400, "Expected `int` <= 9223372036854775807 - at `$.rollout`"),
        (["sampling", "forbidden_ids"], [10], '"sampling.forbidden_ids" is (10,): it must be of ids from 0 to 9'),
        (["sampling", "forbidden_ids"], list(range(10)), "holds all 10 tokens: nothing is left to sample"),
        (["sampling", "stop_ids"], [11], '"sampling.stop_ids" is (11,)'),
        (["sampling", "max_new_tokens"], 0, '"sampling.max_new_tokens" is 0: it must be at least 1'),
        (["sampling", "vocab_size"], 0, '"sampling.vocab_size" is 0'),
        (["sampling"], [], "Expected `object`, got `array` - at `$.sampling`"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(path, value, words):
    with pytest.raises(BadMessage, match=re.escape(words)):
        read(changed(dump(REQUEST), path, value), SampleRequest)


def written(value: bytes) -> bytes:
    return dump(REQUEST).replace(b'"rollout":2', b'"rollout":' + value)


HOSTILE = {
    "empty": b"",
    "cut off": dump(REQUEST)[:-1],
    "no UTF-8": b"\xff",
    "UTF-16": dump(REQUEST).decode().encode("utf-16"),
    "brackets": b"[" * 100_000,
    "brackets in a field": b'{"protocol":' + b"[" * 100_000,
    "brackets behind one": b'{"protocol":1,"x":' + b"[" * 100_000,
    "NaN": written(b"NaN"),
    "infinity": written(b"-Infinity"),
    "1e999": dump(REQUEST).replace(b"60.0", b"1e999"),
    "5,000 digits": written(b"1" + b"0" * 5000),
    "5,000 digits of a float": dump(REQUEST).replace(b"60.0", b"1" + b"0" * 5000),
    "something behind": dump(REQUEST) + b"{}",
    "a field twice": dump(REQUEST).replace(b'"rollout":2', b'"rollout":1,"rollout":2'),
    "a field twice, spelt otherwise": dump(REQUEST).replace(b'"rollout":2', b'"\\u0072ollout":1,"rollout":2'),
    "half a surrogate pair": dump(REQUEST).replace(b'"ab"', b'"\\ud800"'),
    "a byte that is no text": dump(REQUEST).replace(b'"ab"', b'"\xff"'),
    "a list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_body_is_a_bad_message_and_nothing_else(what):
    for kind in (SampleRequest, LoadRequest):
        with pytest.raises(BadMessage):
            read(HOSTILE[what], kind)
    with pytest.raises(BadMessage):
        read_completions(HOSTILE[what], REQUEST)


@pytest.mark.parametrize("name", ["behaviour_logp", "kept_logmass", "ids"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_a_huge_number_in_an_answer_is_a_bad_message(name, digits):
    body = write_completions("0@1.1", ANSWER).replace(f'"{name}":['.encode(), f'"{name}":[-1{"0" * digits},'.encode(), 1)
    with pytest.raises(BadMessage):
        read_completions(body, REQUEST)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bytes_that_were_changed_anywhere_are_read_or_a_bad_message(data):
    body = bytearray(dump(REQUEST))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 8))] = data.draw(
            st.one_of(
                st.binary(max_size=6), st.sampled_from([b"1e999", b"NaN", b"[" * 2000, b'"', b"{}", b"9" * 5000, b"true"])
            )
        )
    try:
        assert read(bytes(body), SampleRequest).protocol == 1
    except BadMessage as error:
        assert len(str(error)) < 400


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
        (["completions", 1, "behaviour_logp", 0], math.nan, "bytes that are no JSON"),
        (["completions", 1, "kept_logmass", 0], None, "Expected `float`, got `null` - at `$.completions[1].kept_logmass[0]`"),
        (["completions", 1, "ids"], [4, -1, 9], "a completion with the token -1, which is forbidden or none of 10"),
        (["completions", 0, "stopped"], False, "says stopped=False, against its ids"),
        (["completions", 1, "stopped"], True, "says stopped=True, against its ids"),
        (["completions", 1, "ids"], [1, 4, 9], "says stopped=False, against its ids"),
        (["completions", 1, "stopped"], 0, "Expected `bool`, got `int` - at `$.completions[1].stopped`"),
        (["completions", 1, "text"], "x", "a field stands twice, or is unknown"),
    ],
)
def test_an_answer_that_breaks_its_promises_is_noticed(path, value, words):
    body = write_completions("0@1.1", ANSWER)
    with pytest.raises(BadMessage, match=re.escape(words)):
        read_completions(changed(body, path, value), REQUEST)


def test_an_answer_that_stops_early_is_noticed():
    short = [ANSWER[0], Completion([4, 4], [-1.0, -2.0], [0.0, 0.0], False)]
    with pytest.raises(BadMessage, match="a completion of 2 tokens that says stopped=False"):
        read_completions(write_completions("0@1.1", short), REQUEST)
