"""Weights over a collective, between processes of which some die in the middle."""

import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import torch
from launch import Script

from sdar.errors import EngineFault
from sdar.serving import collective
from sdar.serving.collective import Interrupted, Sender, choose_backend, meeting_address, receive
from sdar.serving.engine import Abandoned
from sdar.serving.fleet import Seats
from sdar.serving.protocol import BadMessage, ReceiveRequest, dump, read

RECEIVER = """
import os, pathlib, sys, time
from sdar.serving.collective import receive
from sdar.serving.protocol import ReceiveRequest, read
total = 0.0
try:
    for i, (name, tensor) in enumerate(receive(read(pathlib.Path(sys.argv[2]).read_bytes(), ReceiveRequest), "cpu")):
        total += float(tensor.double().sum())
        print(name, flush=True)
        time.sleep(float(sys.argv[1]))
    print("all", total, flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
os._exit(0)
"""


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(collective, "BUCKET_BYTES", 64)


@pytest.fixture
def sender():
    sender = Sender("127.0.0.1", Seats(), 60.0)
    yield sender
    sender.close()


def state(seed=0, size=5):
    torch.manual_seed(seed)
    head = torch.randn(7, 3)
    return {
        "embed": head,
        "norm": torch.randn(3).bfloat16(),
        "head": head,
        **{f"w{i}": torch.randn(size, 4) for i in range(6)},
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name])


def all_of(request, seat):
    return dict(receive(request.seated(seat), "cpu"))


def test_all_who_are_expected_get_everything_in_one_round_and_a_latecomer_in_another(sender, small_buckets, caplog):
    weights = state()
    request = sender.stage("a@1", weights.items())
    assert len(request.buckets) > 3 and request.tied == {"head": "embed"}
    sender.seats.expected |= {"x", "y", "z"}
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(all_of, request, "x")
        time.sleep(0.3)
        assert not first.done()  # the others are missing
        second = pool.submit(all_of, request, "y")
        time.sleep(0.3)
        assert not second.done()
        sender.seats.expected.discard("z")  # its request failed
        for got in (first, second):
            assert_equal(got.result(30), weights)
    assert sender._staged.rounds == 1
    sender.seats.expected.clear()
    assert_equal(all_of(request, "restarted"), weights)
    assert sender._staged.rounds == 2 and not caplog.records


def test_only_the_named_address_listens(sender):
    port = sender.stage("a@1", state().items()).port
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(ConnectionRefusedError):  # as it is for every other address of this machine
        socket.create_connection(("127.0.0.2", port), 5)


def test_who_was_not_asked_to_come_gets_nothing_and_keeps_nobody_waiting(sender, caplog):
    request = sender.stage("a@1", state().items())
    stranger = msgspec.structs.replace(request, seat=f"x.{'0' * 64}", deadline=0.5)
    with pytest.raises(Interrupted, match=r"had nothing for this seat within 0.5 s"):
        dict(receive(stranger, "cpu"))
    assert "who was not asked to" in caplog.text
    own = request.seated("x")
    assert_equal(dict(receive(own, "cpu")), state())
    with pytest.raises(Interrupted):  # a seat is for one; who comes with it again is told of a round that is over
        dict(receive(msgspec.structs.replace(own, deadline=2.0), "cpu"))
    assert sender._staged.rounds == 1
    sender.seats.expected.add("y")
    assert_equal(all_of(request, "y"), state())


@pytest.mark.parametrize(
    "told", ["x", "", "[" * 100_000, '{"seat": 1, "device": "cpu"}', '{"seat": "\\ud800", "device": "cpu"}', "5"]
)
def test_an_arrival_that_is_none_costs_nobody_anything(sender, told):
    request = sender.stage("a@1", state().items())
    store = collective.connect("127.0.0.1", request.port, 5)
    store.set(f"arrival/{store.add('arrivals', 1)}", told)
    store.add("arrivals", 10**12)  # and more that never come
    assert_equal(all_of(request, "x"), state())
    assert sender._thread.is_alive()


def test_the_thread_that_sends_outlives_a_store_that_was_spoilt(sender):
    request = sender.stage("a@1", state().items())
    collective.connect("127.0.0.1", request.port, 5).set("arrivals", "no number")
    time.sleep(0.3)
    assert sender._thread.is_alive()
    assert_equal(all_of(sender.stage("a@2", state(2).items()), "x"), state(2))


def test_a_server_waits_for_weights_as_long_as_somebody_waits_for_it():
    sender = Sender("127.0.0.1", Seats(expected={"never"}), 60.0)
    try:
        request, begun = sender.stage("a@1", state().items()).seated("x"), time.monotonic()
        with pytest.raises(Abandoned):
            dict(receive(request, "cpu", lambda: time.monotonic() < begun + 0.3))
        assert time.monotonic() - begun < 5
    finally:
        sender.close()


def test_a_round_that_cannot_be_is_not_joined(sender):
    request = msgspec.structs.replace(sender.stage("a@1", state().items()), seat="s")
    for told in (
        '{"round": 1, "backend": "mpi", "rank": 1, "size": 2}',
        '{"round": 1, "backend": "gloo", "rank": 2, "size": 2}',
        "x",
    ):
        collective.connect("127.0.0.1", request.port, 5).set("seat/s", told)
        with pytest.raises(Interrupted, match="the trainer's store"):
            dict(receive(request, "cpu"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "10.9.8.7", "trainer"])
def test_weights_are_fetched_from_this_machine_and_from_named_ones(host):
    assert collective.refuse_stranger(host, ["10.9.8.7", "trainer"]) == ""


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::1", "example.org", "", "a\x00b", "1" * 500])
def test_weights_are_not_fetched_from_anywhere_else(host):
    assert "name the trainer's address with --trainers" in collective.refuse_stranger(host, ["10.9.8.7"])


def test_who_does_not_come_is_not_waited_for_for_ever():
    sender = Sender("127.0.0.1", Seats(expected={"x", "never"}), 2.0)
    try:
        begun = time.monotonic()
        assert_equal(all_of(sender.stage("a@1", state().items()), "x"), state())
        assert time.monotonic() - begun >= 1.0
    finally:
        sender.close()


def test_newer_weights_replace_the_old_ones_and_who_waits_for_those_is_told(sender):
    sender.seats.expected |= {"x", "y"}
    with ThreadPoolExecutor(1) as pool:
        old = sender.stage("a@1", state(1).items())
        waiting = pool.submit(all_of, old, "x")
        time.sleep(0.3)
        sender.seats.expected.clear()
        sender.seats.expected.add("y")
        new = sender.stage("a@2", state(2).items())
        with pytest.raises(Interrupted, match="were not received to their end"):
            waiting.result(30)
    sender.seats.expected.clear()
    assert_equal(all_of(new, "y"), state(2))


def test_a_bucket_that_arrives_as_another_one_is_not_handed_on(sender, small_buckets):
    request = sender.stage("a@1", state().items())
    sender._staged.flats[2][0] ^= 1
    taken = []
    with pytest.raises(EngineFault, match=r"bucket 2 of the weights of a@1 has the checksum -?\d+, the message says -?\d+"):
        for name, _ in receive(request.seated("x"), "cpu"):
            taken.append(name)
    assert [name for name in taken if name != "head"] == [p.name for b in request.buckets[:2] for p in b.tensors]


def test_a_run_that_ends_leaves_nobody_waiting():
    sender = Sender("127.0.0.1", Seats(expected={"never"}), 60.0)
    request = sender.stage("a@1", state().items())
    threading.Timer(0.3, sender.close).start()
    with pytest.raises(Interrupted, match="were not received to their end"):
        all_of(request, "x")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_whoever_dies_in_the_middle_of_a_large_tensor_ends_the_round_for_the_others_soon(how, monkeypatch, tmp_path):
    """Larger than any socket's buffer: gloo itself would tell the survivor nothing before the deadline."""
    monkeypatch.setattr(collective, "BUCKET_BYTES", 1)
    patience = 240.0 if how == signal.SIGKILL else 8.0
    sender = Sender("127.0.0.1", Seats(), patience)
    weights = {f"w{i}": torch.full((5_000_000,), float(i)) for i in range(8)}
    request = sender.stage("a@1", weights.items())
    sender.seats.expected |= {"x", "y"}
    logs, receivers = [tmp_path / seat for seat in "xy"], []
    try:
        for log, pause in zip(logs, ("0.3", "0"), strict=True):
            told = tmp_path / f"{log.name}.told"
            told.write_bytes(dump(request.seated(log.name)))
            receivers.append(Script(RECEIVER, [pause, str(told)], dict(os.environ), log))
        struck, other = receivers
        due = time.monotonic() + 60
        while not (logs[0].exists() and logs[0].read_text().startswith("w0\nw1\n")):
            assert time.monotonic() < due, "the weights did not come"
            time.sleep(0.01)
        struck.send_signal(how)
        struck_at = time.monotonic()
        if how == signal.SIGKILL:
            sender.seats.lost.add("x")  # as the request's connection tells
        assert other.wait(60) == 0
        lines = logs[1].read_text().splitlines()
        assert time.monotonic() - struck_at < 15
        assert lines[-1].startswith("Interrupted "), lines
        sender.seats.expected.clear()
        sender.seats.lost.clear()
        assert_equal(all_of(request, "y2"), weights)  # and it may come again at once
    finally:
        for process in receivers:
            process.kill()
            process.wait()
        sender.close()


def test_a_message_is_read_as_it_was_written_and_wrong_ones_are_refused(sender, small_buckets):
    request = sender.stage("a@1", state().items()).seated("x")
    assert read(dump(request), ReceiveRequest) == request
    message = json.loads(dump(request))
    for change, words in (
        ({"port": "80"}, "Expected `int`, got `str` - at `$.port`"),
        ({"port": 0}, "Expected `int` >= 1 - at `$.port`"),
        ({"deadline": 0}, '"deadline" is 0.0: seconds, more than 0'),
        ({"tied": {"a": 1}}, "Expected `str`, got `int` - at `$.tied[...]`"),
        ({"files": []}, "Object contains unknown field `files`"),
        ({"buckets": [{"size": 1, "checksum": 1}]}, "Object missing required field `tensors` - at `$.buckets[0]`"),
        ({"buckets": [{"size": -1, "checksum": 1, "tensors": []}]}, "Expected `int` >= 0 - at `$.buckets[0].size`"),
    ):
        with pytest.raises(BadMessage, match=re.escape(words)):
            read(json.dumps(message | change).encode(), ReceiveRequest)


@pytest.mark.parametrize(
    ("devices", "backend"),
    [
        (["cpu", "cpu"], "gloo"),
        (["cuda A", "cpu"], "gloo"),
        (["cuda A", "cuda B", "cuda C"], "nccl"),
        (["cuda A", "cuda B", "cuda A"], "gloo"),  # two on one accelerator, which NCCL refuses
    ],
)
def test_nccl_needs_an_accelerator_for_each_member(devices, backend):
    assert choose_backend(devices) == backend


def test_the_trainer_is_met_where_servers_reach_it():
    assert meeting_address(["http://127.0.0.1:8000", "http://localhost:1"]) == "127.0.0.1"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two accelerators")
def test_weights_travel_from_accelerator_to_accelerator(sender):
    weights = {name: tensor.to("cuda:0") for name, tensor in state().items()}
    weights["head"] = weights["embed"]
    request = sender.stage("a@1", weights.items())
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(lambda: dict(receive(request.seated("x"), "cuda:1"))).result(120)
    assert {tensor.device for tensor in got.values()} == {torch.device("cuda:1")}
    assert_equal({n: t.cpu() for n, t in got.items()}, state())
