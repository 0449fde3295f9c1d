"""A chat-completions endpoint on this machine that answers what a script says."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint(ThreadingHTTPServer):
    """Answers with what `script(question, how often it was asked before)` returns: a text, (code, headers, body) or a function
    that gets the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = lambda question, again: "[]"
        self.lock = threading.Lock()
        self.requests: list[tuple[str, dict, dict]] = []
        self.busy = self.busiest = 0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        with server.lock:
            again = sum(b["messages"][0]["content"] == question for _, b, _ in server.requests)
            server.requests.append((self.path, body, dict(self.headers)))
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        answer = server.script(question, again)
        with server.lock:
            server.busy -= 1
        if callable(answer):
            return answer(self)
        if isinstance(answer, str):
            answer = (200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}))
        self.reply(*answer)

    def reply(self, code: int, headers: dict[str, str], body: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args) -> None:
        pass


@contextmanager
def serving() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
