"""Policy servers in processes of their own, and one in between that misbehaves on command."""

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import torch
from launch import Script
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar.serving.protocol import parse
from sdar.serving.replica import Replica, RequestFailed

CODE = """
import sys, torch
torch.set_num_threads(1)
from sdar.serving import TorchEngine, serve_policy
serve_policy(TorchEngine(sys.argv[1], dtype="float32"), port=int(sys.argv[2]))
"""


SLOW = """
import pathlib, sys, time
from sdar.serving import torch_engine
whole = torch_engine.complete
def slowly(version, weights, network):
    flag = pathlib.Path(sys.argv[3])
    for number, pair in enumerate(whole(version, weights, network)):
        if flag.with_name("slow").exists():
            if number == 5:
                flag.touch()
            time.sleep(0.2)
        yield pair
torch_engine.complete = slowly
"""
"""Before CODE, with a file as further argument: if a file `slow` is beside it, tensors take their time, and the file appears in the
middle of them."""


NUMBERS = count(os.getpid() * 97)


def free_port() -> int:
    """None that the system gives to whoever asks for any, nor that another process of the tests is about to take."""
    for number in NUMBERS:
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port := 20000 + number % 12000))
            return port


class PolicyServer:
    """A server process that can be killed, stopped and started again at the same address.

    Args:
        python: An interpreter that begins anew; by default the process is forked from one that has imported everything.
    """

    def __init__(self, model: Path, code: str = CODE, *arguments: object, python: str | None = None):
        self.port = free_port()
        self.code, self.arguments = code, [str(model), str(self.port), *map(str, arguments)]
        self.url, self.python = f"http://127.0.0.1:{self.port}", python
        self.start()

    def start(self) -> None:
        if self.python is None:
            self.process = Script(self.code, self.arguments, dict(os.environ))
        else:
            self.process = subprocess.Popen([self.python, "-c", self.code, *self.arguments], stdout=subprocess.DEVNULL)

    def wait(self, seconds: float = 120) -> "PolicyServer":
        due = time.monotonic() + seconds
        while True:
            try:
                self.health()
                return self
            except RequestFailed:
                assert self.process.poll() is None, "the server ended before it answered"
                assert time.monotonic() < due, "the server did not answer in time"
                time.sleep(0.1)

    def health(self) -> dict:
        return parse(Replica(self.url).request("GET", "/health", None, 10))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)


@contextmanager
def policy_servers(model: Path, number: int, code: str = CODE):
    servers = [PolicyServer(model, code) for _ in range(number)]
    try:
        yield [server.wait() for server in servers]
    finally:
        for server in servers:
            server.kill()


class Meddler:
    """Hands requests on to a server, but for those to `path` that `faults` has something else for, in order."""

    def __init__(self, behind: str, path: str = "/sample"):
        self.faults: list = []
        meddler, target = self, behind.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == path and meddler.faults and (fault := meddler.faults.pop(0)) is not None:
                    fault(self, lambda: self.hand_on(body))
                    return
                self.answer(*self.hand_on(body))

            do_GET = do_POST = handle_any

            def hand_on(self, body: bytes) -> tuple[int, bytes]:
                connection = http.client.HTTPConnection(target, timeout=30)
                connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, response.read()

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def sharp_policy(source: Path, folder: Path, seed: int) -> Path:
    """The policy of a directory in another one, with weights so large that every token's probability depends on them."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def dripping(handler, hand_on):
    """An answer that comes byte by byte, and never whole."""
    _, body = hand_on()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    for byte in body[:40]:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)
