"""A judge behind an endpoint: a real server on this machine that answers well, badly, late or not at all."""

import json
import socket
import time
import warnings

import pytest
from chat_server import Endpoint, Handler, serving

from sdar.errors import ConfigError
from sdar.judges import EndpointJudge
from sdar.types import Episode, Task, Turn

KEY = "sk-very-secret"


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        yield server


def attempt(name: str, turns: int) -> Episode:
    told = [Turn([], [], [], [], observation=f"seen {k}", action=f"done {k}", text=f"thought {k}") for k in range(turns)]
    return Episode(Task(name, "f", f"task {name}"), 0, told)


def ready(endpoint: Endpoint, **kwargs) -> EndpointJudge:
    """A judge that has been checked, on a server that has forgotten that."""
    judge = EndpointJudge(endpoint.url, "critic", **{"timeout": 5.0} | kwargs)
    judge.check()
    endpoint.requests.clear()
    return judge


def ask(judge: EndpointJudge, *episodes: Episode) -> tuple[list[list[float | None]], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels = judge(episodes, ["gold"] * len(episodes))
    return labels, [str(w.message) for w in caught if w.category is RuntimeWarning]


# ------------------------------------------------------------------ good answers


@pytest.mark.parametrize(
    "answer",
    [
        '["Good", "Bad", "Good"]',
        'Turn 1 found [the author]. So:\n```json\n["good", "BAD", " Good"]\n```\nThat is all.',
        '<think>Maybe ["Bad", "Bad", "Bad"]? No, ["Good"].</think>["Good", "Bad", "Good"]',
        '{"verdicts": ["Good", "Bad", "Good"]} [1]',
    ],
)
def test_a_list_of_verdicts_is_read_wherever_it_stands(endpoint: Endpoint, answer: str) -> None:
    judge = ready(endpoint)
    endpoint.script = lambda question, again: answer
    assert ask(judge, attempt("a", 3)) == ([[1.0, -1.0, 1.0]], [])
    assert judge.failures == 0 and len(endpoint.requests) == 1


def test_each_episode_is_asked_about_once_and_labels_stay_with_it(endpoint: Endpoint) -> None:
    judge = ready(endpoint, concurrency=4)

    def script(question: str, again: int) -> str:
        number = int(question.split("task ")[1].split()[0])
        time.sleep(0.02 * (5 - number))  # the first one answers last
        return json.dumps(["Bad"] * (number - 1) + ["Good"])

    endpoint.script = script
    labels, warned = ask(judge, *(attempt(str(n), n) for n in (1, 2, 3, 4)), attempt("0", 0))
    assert labels == [[1.0], [-1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0, 1.0], []]
    assert not warned and len(endpoint.requests) == 4  # nothing to ask about without turns


def test_a_request_holds_the_whole_trajectory_the_gold_answer_and_the_options(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    judge = ready(endpoint, api_key_env="MY_KEY", options={"max_tokens": 99, "temperature": 0.5}, good="Yes", bad="No")
    endpoint.script = lambda question, again: '["No", "Yes"]'
    assert ask(judge, attempt("a", 2))[0] == [[-1.0, 1.0]]
    [(path, body, headers)] = endpoint.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("critic", 99, 0.5)
    for part in ("task a", "gold", "seen 0", "thought 1", "all 2 turns", '"Yes" or "No"'):
        assert part in body["messages"][0]["content"]


def test_without_a_key_none_is_sent(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for settings in ({"api_key_env": None}, {"api_key_env": "NOT_SET"}):
        judge = ready(endpoint, **settings)
        endpoint.script = lambda question, again: '["Good"]'
        ask(judge, attempt("a", 1))
        assert "Authorization" not in endpoint.requests[0][2] and endpoint.requests[0][1]["temperature"] == 0.0


def test_requests_run_side_by_side_but_no_more_than_allowed(endpoint: Endpoint) -> None:
    judge = ready(endpoint, concurrency=3)
    endpoint.script = lambda question, again: time.sleep(0.1) or '["Good"]'
    began = time.monotonic()
    assert ask(judge, *(attempt(str(n), 1) for n in range(9)))[0] == [[1.0]] * 9
    assert endpoint.busiest == 3 and time.monotonic() - began < 0.8


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot say.", "no list of 2 verdicts in the answer 'I cannot say.'"),
        ('["Good"]', "no list of 2 verdicts in the answer '[\"Good\"]'"),
        ('["Good", "Fair"]', "no list of 2 verdicts"),
        ('["Good", null]', "no list of 2 verdicts"),
        ("[" * 3000, "no list of 2 verdicts"),
        ("", "no list of 2 verdicts in the answer ''"),
        ((200, {}, "<html>hello</html>"), "it answered with something else than a chat completion: <html>hello</html>"),
        ((200, {}, '{"choices": []}'), "something else than a chat completion"),
        ((200, {}, '{"choices": [{"message": {"content": null}}]}'), "no list of 2 verdicts in the answer ''"),
        ((500, {}, "overloaded"), "it answered 500 Internal Server Error: overloaded"),
        ((400, {}, f"too long, {KEY}"), "it answered 400 Bad Request: too long, ..."),
        ((307, {"Location": "http://127.0.0.1:1/v1"}, ""), "it answered 307 Temporary Redirect"),
    ],
)
def test_an_answer_that_is_none_costs_the_labels_of_its_episode_only(
    endpoint: Endpoint, monkeypatch, answer, reason: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = ready(endpoint, retries=0)
    endpoint.script = lambda question, again: answer if "task bad" in question else '["Good", "Bad"]'
    labels, warned = ask(judge, attempt("bad", 2), attempt("ok", 2), attempt("bad again", 2))
    assert labels == [[None, None], [1.0, -1.0], [None, None]]
    [message] = warned  # one warning for both
    assert "the judge 'critic' gave no verdict on 2 of 3 episodes (2 since the start)" in message and reason in message
    assert judge.failures == 2 and KEY not in message
    assert "(4 since the start)" in ask(judge, attempt("bad", 2), attempt("ok", 2), attempt("bad again", 2))[1][0]


def test_a_failed_request_is_tried_again(endpoint: Endpoint) -> None:
    judge = ready(endpoint, retries=2)
    answers = [(500, {}, "busy"), "Let me think.", '["Good"]']
    endpoint.script = lambda question, again: answers[again]
    assert ask(judge, attempt("a", 1)) == ([[1.0]], [])
    assert judge.failures == 0 and len(endpoint.requests) == 3


def test_a_request_that_can_never_succeed_is_not_tried_again(endpoint: Endpoint) -> None:
    judge = ready(endpoint, retries=2)
    endpoint.script = lambda question, again: (401, {}, "who are you?")
    labels, [message] = ask(judge, attempt("a", 1))
    assert labels == [[None]] and "401 Unauthorized: who are you?" in message and len(endpoint.requests) == 1


def test_an_endpoint_that_asks_for_rest_gets_it(endpoint: Endpoint) -> None:
    judge, hasty = ready(endpoint, retries=1), ready(endpoint, retries=1, patience=0.5)
    endpoint.script = lambda question, again: '["Good"]' if again else (429, {"Retry-After": "1"}, "slow down")
    began = time.monotonic()
    assert ask(judge, attempt("a", 1))[0] == [[1.0]]
    assert 1.0 <= time.monotonic() - began < 3.0
    assert ask(hasty, attempt("b", 1))[0] == [[None]]  # no rest beyond its patience


def sleeping(endpoint: Endpoint):
    return lambda handler: endpoint.over.wait(30)


def dribbling(endpoint: Endpoint):
    """A byte from time to time, so that no single read ever times out: some endpoints keep connections alive like that."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not endpoint.over.wait(0.05):
            try:
                handler.wfile.write(b"\n")
            except OSError:
                return

    return answer


@pytest.mark.parametrize("late", [sleeping, dribbling])
def test_a_late_answer_is_not_waited_for(endpoint: Endpoint, late) -> None:
    judge = ready(endpoint, retries=0, timeout=0.4)
    endpoint.script = lambda question, again: late(endpoint) if "task slow" in question else '["Good"]'
    began = time.monotonic()
    labels, [message] = ask(judge, attempt("slow", 1), attempt("quick", 1))
    assert labels == [[None], [1.0]] and time.monotonic() - began < 2.0
    assert "no answer within 0.4 s (judge.timeout)" in message


def test_all_episodes_together_take_no_longer_than_its_patience(endpoint: Endpoint) -> None:
    judge = ready(endpoint, retries=5, timeout=0.3, concurrency=1, patience=0.8)
    endpoint.script = lambda question, again: sleeping(endpoint)
    began = time.monotonic()
    labels, [message] = ask(judge, *(attempt(str(n), 1) for n in range(20)))
    assert labels == [[None]] * 20 and time.monotonic() - began < 2.5
    assert "there was no time left of the 0.8 s (judge.patience)" in message


def test_a_key_that_cannot_be_sent_is_not_shown(endpoint: Endpoint, monkeypatch) -> None:
    judge = ready(endpoint)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    labels, [message] = ask(judge, attempt("a", 1))
    assert labels == [[None]] and KEY not in message and "OPENAI_API_KEY holds characters that no key has" in message


def test_a_hidden_key_is_in_nothing_that_can_be_printed(endpoint: Endpoint, monkeypatch, caplog, capsys) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = ready(endpoint, retries=0)
    endpoint.script = lambda question, again: (403, {}, f"wrong key {KEY}")
    _, warned = ask(judge, attempt("a", 1))
    with pytest.raises(ConfigError) as raised:
        judge.check()
    shown = [*warned, str(raised.value), repr(judge), repr(vars(judge)), caplog.text, *capsys.readouterr()]
    assert not any(KEY in text for text in shown)


ECHOES = {
    "body of 200": lambda handler: handler.reply(200, {}, str(handler.headers)),
    "chat answer": lambda handler: handler.reply(
        200, {}, json.dumps({"choices": [{"message": {"content": f"I saw {handler.headers['Authorization']}"}}]})
    ),
    "status line": lambda handler: handler.wfile.write(f"HTTP/1.1 {handler.headers['Authorization']}\r\n\r\n".encode()),
    "reason": lambda handler: handler.wfile.write(f"HTTP/1.1 401 {handler.headers['Authorization']}\r\n\r\n".encode()),
    "header": lambda handler: handler.wfile.write(f"HTTP/1.1 200 OK\r\n{handler.headers['Authorization']}\r\n\r\n".encode()),
    "part of it in a 401": lambda handler: handler.reply(401, {}, f"no such key: {KEY[3:]}"),
}


@pytest.mark.parametrize("how", ECHOES)
def test_an_endpoint_that_gives_the_key_back_is_not_quoted_with_it(endpoint: Endpoint, monkeypatch, how) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = ready(endpoint, retries=0)
    endpoint.script = lambda question, again: ECHOES[how]
    labels, [message] = ask(judge, attempt("a", 1))
    assert endpoint.requests[0][2]["Authorization"] == f"Bearer {KEY}"
    assert labels == [[None]] and not any(KEY[i : i + 8] in message for i in range(len(KEY) - 7)), message


# ------------------------------------------------------------------ before training


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_nobody_there_is_an_error_before_the_first_verdict(monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url = f"http://127.0.0.1:{free_port()}/v1"
    for first_use in (lambda j: j.check(), lambda j: j([attempt("a", 1)], ["gold"])):
        with pytest.raises(
            ConfigError, match=rf"the judge 'critic' at {url}/chat/completions cannot be asked: .*refused"
        ) as raised:
            first_use(EndpointJudge(url, "critic", retries=0))
        assert "OPENAI_API_KEY is empty. Training would go on without verdicts. Start the endpoint" in str(raised.value)


@pytest.mark.parametrize(
    ("code", "reason"), [(404, "404 Not Found: no such model"), (503, "503 Service Unavailable: no such")]
)
def test_a_wrong_address_or_model_is_an_error_before_the_first_verdict(endpoint: Endpoint, code: int, reason: str) -> None:
    endpoint.script = lambda question, again: (code, {}, "no such model")
    with pytest.raises(ConfigError, match=f"cannot be asked: it answered {reason}"):
        EndpointJudge(endpoint.url, "critic", retries=0).check()


def test_an_endpoint_that_is_lost_later_costs_labels_only(endpoint: Endpoint) -> None:
    judge = ready(endpoint, retries=0)
    endpoint.shutdown()
    endpoint.server_close()
    labels, [message] = ask(judge, attempt("a", 2))
    assert labels == [[None, None]] and "refused" in message and judge.failures == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"url": "localhost:8000/v1"},
            r"judge.url is 'localhost:8000/v1': it begins with http:// or https:// and a host, e.g. http://localhost:8000/v1",
        ),
        ({"url": "file:///etc/passwd"}, "it begins with http:// or https:// and a host"),
        ({"url": "https://me:pw@host/v1"}, r"judge.url for host holds a user, a password or a key: .* environment variable"),
        ({"concurrency": 0}, "judge.concurrency is 0: it must be at least 1"),
        ({"timeout": 0.0}, "judge.timeout is 0.0: it must be more than 0 seconds"),
        ({"retries": -1}, "judge.retries is -1: it must be at least 0"),
        ({"patience": -1.0}, "judge.patience is -1.0"),
        ({"good": "Bad"}, "judge.good is 'Bad' and judge.bad is 'Bad'"),
        ({"template": "{task}"}, "judge.template lacks"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        EndpointJudge(**{"url": "http://localhost:8000/v1", "model": "critic"} | settings)
    assert "pw" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"])
def test_an_address_may_be_given_with_its_ending(url: str) -> None:
    assert EndpointJudge(url, "critic").url == "http://h:1/v1/chat/completions"
    assert EndpointJudge("https://h/v1?version=2", "critic").url == "https://h/v1/chat/completions?version=2"
