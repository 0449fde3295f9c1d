"""Work in threads that do not keep the process from ending: a server may be slow, a run that failed should stop."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


def in_background(work: Callable[..., T], *args: Any) -> Future[T]:
    """What `work` returns or raises, later."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="policy server", daemon=True).start()
    return future
