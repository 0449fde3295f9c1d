"""A client of SandboxFusion's ``POST /run_code``: code runs in a service, on this machine or elsewhere."""

import json
import re
import time
from pathlib import Path

import msgspec

from sdar import http_client
from sdar.errors import ConfigError, EnvironmentFault
from sdar.http_client import check_url, hide, read_token, shown
from sdar.reading import convert, parse_json
from sdar.registry import register
from sdar.sandbox import cells
from sdar.sandbox.base import CUT, CodeRunner, Limits, Program, Result, judge

CUT_THERE = re.compile(re.escape(CUT).replace(r"\{\}", r"\d+").encode() + rb"\Z")
"""The end of an output that a server of ours has cut: within limits of its own, which may be smaller."""


class Run(msgspec.Struct):
    """What a service says about a program that ran."""

    status: str
    return_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None


class Told(msgspec.Struct):
    """A service's answer."""

    status: str
    message: str | None = None
    run_result: Run | None = None


@register("fusion")
class FusionRunner(CodeRunner):
    """Asks a SandboxFusion-compatible service (ByteDance's, or `sdar serve-sandbox`).

    What is sent is a plain Python program that shows the last value and rebuilds the state itself, so any such service will do.
    CPU time, processes and files are limited by the service alone.

    Args:
        url: Of the service, e.g. ``http://sandbox:8080``.
        limits: What one run may use: the wall and memory limits are sent along; output is cut here.
        retries: How often a request is repeated when the service does not answer, or says that it failed itself.
        backoff_s: Seconds before the first repetition; each later one waits twice as long.
        patience_s: Seconds beyond the wall limit that an answer may take, to its last byte (a queue in front of the service).
        token_env: Environment variable that holds the token which the service wants (`sdar serve-sandbox --token_env`).
    """

    local = False

    def __init__(
        self,
        url: str,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        retries: int = 3,
        backoff_s: float = 0.5,
        patience_s: float = 30.0,
        token_env: str | None = None,
    ):
        check_url(url, "runner.url", "http://localhost:8080")
        if retries < 0 or backoff_s < 0 or patience_s <= 0:
            raise ConfigError(
                f"runner.retries is {retries}, backoff_s {backoff_s} and patience_s {patience_s}: the first two are 0 or more, the "
                "last is more than 0."
            )
        self.url = url.rstrip("/").removesuffix("/run_code")
        self.limits = limits
        self.retries = retries
        self.backoff_s = backoff_s
        self.patience_s = patience_s
        self.token_env = token_env

    @property
    def layers(self) -> tuple[str, ...]:
        return (f"service {shown(self.url)}",)

    def _execute(self, program: Program, limits: Limits) -> Result:
        request = {
            "code": as_script(program),
            "language": "python",
            "compile_timeout": limits.wall_s,
            "run_timeout": limits.wall_s,
            "memory_limit_MB": limits.memory_bytes >> 20,
            "stdin": program.stdin,
            "files": {},
            "fetch_files": [],
        }
        failures = []
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                return read_answer(self._post(request, limits), limits)
            except (http_client.RequestFailed, ValueError) as error:
                failures.append(str(error))
        raise EnvironmentFault(
            f"the code service {shown(self.url)} failed {len(failures)} times, the last time with {failures[-1][:300]}. Nothing is known "
            "about the code. Look at the service, or raise runner.retries or runner.patience_s."
        )

    def _post(self, request: dict, limits: Limits) -> Told:
        """One exchange; RequestFailed or ValueError when no usable answer came."""
        body = json.dumps(request).encode()  # escapes what is no UTF-8
        token = read_token(self.token_env, "runner.token_env")
        answer = http_client.request(
            "POST", f"{self.url}/run_code", body, timeout=limits.wall_s + self.patience_s, token=token
        )
        if answer.status != 200:
            raise ValueError(f"HTTP status {answer.status}: {answer.said()}")
        said = parse_json(answer.body, "the answer", ValueError, advice="")
        told = convert(said, Told, "the answer", ValueError, advice="")
        if told.status not in ("Success", "Failed"):
            raise ValueError(f"the service says that it failed itself ({hide(told.message or '', token)[:200]})")
        return told


def read_answer(answer: Told, limits: Limits) -> Result:
    """A service's answer as a result; ValueError if it is none."""
    ran = answer.run_result
    if ran is None:
        raise ValueError("an answer without run_result")
    outputs = [(text or "").encode("utf-8", "replace") for text in (ran.stdout, ran.stderr)]
    if ran.status == "TimeLimitExceeded":
        return judge("wall", 0, outputs, limits)
    code = ran.return_code
    if ran.status != "Finished" or code is None:
        raise ValueError(f"a run with status {ran.status[:100]!r} and return code {code!r}")
    long = any(len(data) > limits.output_bytes or (code == 137 and CUT_THERE.search(data)) for data in outputs)
    code = 128 - code if 128 < code < 160 else code  # as a shell tells a signal
    memory = code != 0 and outputs[1].rstrip().endswith(b"MemoryError")
    return judge("output" if long else "memory" if memory else "", code, outputs, limits)


def as_script(program: Program) -> str:
    """A program that stands alone: what runs the cells, and the cells."""
    library = Path(cells.__file__).read_text(encoding="utf-8")
    return f"{library}\n\nos._exit(run_cells({list(program.cells)!r}, {program.show}))\n"
