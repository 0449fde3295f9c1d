"""The server in a process of its own, asked as Search-R1's and verl-agent's clients ask, and in every wrong way."""

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from asking import get, post
from launch import Script

from sdar.errors import ConfigError, EnvironmentFault
from sdar.search import HTTPBackend, Passage, SearchBackend, serve_search
from sdar.search.server import BadRequest, Limits, MicroBatcher, read_request

CODE = """
import sys
from sdar.envs import EncyclopediaBackend
from sdar.search import serve_search
serve_search(EncyclopediaBackend(passages=200), port=int(sys.argv[1]), topk=3, max_topk=20, max_queries=8, max_request_mb=0.01)
"""


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def url():
    port = free_port()
    process = Script(CODE, [str(port)], dict(os.environ))
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                get(f"{address}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def search_r1_client(url, queries, topk):
    """What Search-R1's generation loop does with a server, step by step."""
    answer = post(url, json={"queries": queries, "topk": topk, "return_scores": True}).json()
    texts = []
    for result in answer["result"]:
        text = ""
        for number, entry in enumerate(result):
            lines = entry["document"]["contents"].split("\n")
            text += f"Doc {number + 1}(Title: {lines[0]}) {chr(10).join(lines[1:])}\n"
        texts.append(text)
    return texts


def test_search_r1s_client_is_answered(url):
    from sdar.envs import SearchEnv

    env = SearchEnv(passages=200)
    questions = list(env.questions()["train"].values())[:4]
    texts = search_r1_client(f"{url}/retrieve", [q.hops[0].query for q in questions], 2)
    for question, text in zip(questions, texts, strict=True):
        assert text.startswith(f'Doc 1(Title: "{question.hops[0].title}") ') and "\nDoc 2(Title: " in text
        assert question.hops[0].value.split()[0] in text


def test_verl_agents_client_is_answered(url):
    answer = post(
        f"{url}/retrieve",
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        json={"query": "a novel set in a town", "topk": 3, "return_scores": True},
        timeout=60,
    )
    assert answer.status_code == 200
    [result] = answer.json()["result"]
    assert len(result) == 3 and all(isinstance(d["document"]["contents"], str) and d["score"] > 0 for d in result)


def test_without_scores_documents_stand_bare_and_topk_has_a_default(url):
    for topk in ({}, {"topk": None}, {"topk": 0}):
        [result] = post(f"{url}/retrieve", json={"queries": ["river kilometres"], **topk}).json()["result"]
        assert len(result) == 3 and all(set(document) == {"id", "contents"} for document in result)
    assert post(f"{url}/retrieve", json={"queries": []}).json() == {"result": []}
    assert post(f"{url}/retrieve", json={"query": "zzzz"}).json() == {"result": [[]]}


def test_our_own_client_is_answered_as_by_the_backend_itself(url):
    from sdar.envs import EncyclopediaBackend

    queries = ["novel", "river kilometres", "zzzz"]
    there, here = HTTPBackend(f"{url}/retrieve").search(queries, 5), EncyclopediaBackend(passages=200).search(queries, 5)
    assert there == here and there[2] == []


BAD = {
    "{": (400, "the body: no JSON"),
    "[1]": (400, 'either "queries"'),
    "{}": (400, 'either "queries"'),
    '{"query": "a", "queries": ["b"]}': (400, 'either "queries"'),
    '{"queries": "a"}': (400, '"queries" must be a list of texts'),
    '{"queries": [1]}': (400, '"queries" must be a list of texts'),
    '{"query": null}': (400, '"query" one text'),
    '{"query": "a", "topk": 21}': (400, '"topk" is 21: a number from 1 to 20'),
    '{"query": "a", "topk": -1}': (400, '"topk" is -1'),
    '{"query": "a", "topk": "3"}': (400, "\"topk\" is '3'"),
    '{"query": "a", "topk": true}': (400, '"topk" is True'),
    '{"query": "a", "return_scores": "yes"}': (400, "\"return_scores\" is 'yes'"),
    json.dumps({"queries": ["a"] * 9}): (413, "9 queries: at most 8"),
    json.dumps({"query": "a" * 11_000}): (413, "the body is larger than 10485 bytes"),
    "[" * 9000: (400, "nested more than 100 deep"),
}


@pytest.mark.parametrize("body", BAD)
def test_a_bad_request_is_told_what_is_wrong(url, body):
    answer = post(f"{url}/retrieve", data=body)
    status, reason = BAD[body]
    assert answer.status_code == status and reason in answer.json()["error"]


def test_a_long_query_is_refused():
    with pytest.raises(BadRequest, match="a query of 50 characters: at most 40"):
        read_request(json.dumps({"queries": ["a", "b" * 50]}).encode(), Limits(max_query_chars=40))


def test_other_methods_and_paths_are_refused_and_health_counts(url):
    assert get(f"{url}/retrieve").status_code == 405
    assert post(f"{url}/other", json={}).status_code == 404
    health = get(f"{url}/health").json()
    assert (health["status"], health["backend"]) == ("ok", "EncyclopediaBackend")
    assert health["requests"] >= health["searches"] > 0


def test_concurrent_requests_are_all_answered_with_their_own(url):
    def ask(n):
        return post(f"{url}/retrieve", json={"query": f"year{n % 3} novel", "topk": 1 + n % 4}).json()["result"][0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(64)))
    assert [len(a) for a in answers] == [1 + n % 4 for n in range(64)]


class Echo(SearchBackend):
    """Says what it was asked; fails for some queries."""

    def __init__(self):
        self.calls = []

    def search(self, queries, k):
        self.calls.append((list(queries), k))
        if "down" in queries:
            raise EnvironmentFault("the index is gone")
        if "wrong" in queries:
            return []
        return [[Passage(q, q)] * k for q in queries]


def run_batcher(requests, batch=8, wait=0.05):
    async def go():
        backend = Echo()
        batcher = MicroBatcher(backend, batch, wait)
        worker = asyncio.create_task(batcher.run())
        answers = await asyncio.gather(*(batcher.search(q, k) for q, k in requests), return_exceptions=True)
        worker.cancel()
        batcher.close()
        return backend, answers

    return asyncio.run(go())


def test_waiting_queries_are_searched_together_by_their_k():
    backend, answers = run_batcher([(["a"], 1), (["b", "c"], 1), (["d"], 2), ([], 1)])
    assert backend.calls == [(["a", "b", "c"], 1), (["d"], 2)]
    assert [[p[0].id for p in answer] for answer in answers] == [["a"], ["b", "c"], ["d"], []]
    backend, _ = run_batcher([([str(n)], 1) for n in range(8)], batch=4)
    assert [len(queries) for queries, _ in backend.calls] == [4, 4]


@pytest.mark.parametrize(("query", "error"), [("down", EnvironmentFault), ("wrong", RuntimeError)])
def test_a_backend_that_fails_fails_its_requests_and_the_server_goes_on(query, error):
    async def go():
        batcher = MicroBatcher(Echo(), 1, 0.0)
        worker = asyncio.create_task(batcher.run())
        with pytest.raises(error):
            await batcher.search([query], 1)
        answer = await batcher.search(["fine"], 1)
        worker.cancel()
        batcher.close()
        return answer

    assert asyncio.run(go())[0][0].id == "fine"


@pytest.mark.parametrize(("query", "status"), [("down", 503), ("wrong", 500)])
def test_a_backend_that_fails_is_told_to_the_client(query, status):
    from aiohttp.test_utils import TestClient, TestServer

    from sdar.search.server import make_app

    async def go():
        async with TestClient(TestServer(make_app(Echo(), Limits()))) as client:
            answer = await client.post("/retrieve", json={"query": query})
            assert answer.status == status and (await answer.json())["error"]
            answer = await client.post("/retrieve", json={"query": "fine"})
            assert answer.status == 200

    asyncio.run(go())


def test_too_many_waiting_queries_are_sent_away():
    from aiohttp.test_utils import TestClient, TestServer

    from sdar.search.server import make_app

    async def go():
        async with TestClient(TestServer(make_app(Echo(), Limits(max_waiting=1)))) as client:
            answer = await client.post("/retrieve", json={"queries": ["a", "b"]})
            assert answer.status == 503 and "waiting" in (await answer.json())["error"]

    asyncio.run(go())


def test_settings_that_cannot_work_are_refused():
    for settings in ({"port": 70_000}, {"topk": 0}, {"topk": 200}, {"batch": 0}, {"max_queries": 0}, {"batch_wait_ms": -1.0}):
        name = next(iter(settings))
        with pytest.raises(ConfigError, match=f"serve-search: {name} is "):
            serve_search(Echo(), **settings)
