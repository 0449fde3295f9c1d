"""Listens to a running process: takes a bounded part of what it writes, until it ends or must be ended, and feeds it meanwhile.

Standard library only, as it is also read inside the sandbox.
"""

import contextlib
import os
import select
import time

TICK = 0.05
"""Seconds between two looks at what a run uses."""
DRAIN = 0.2
"""Seconds that output may still come when the process is gone."""


def pump(pidfd, streams, most, deadline, watch=None, feed=None):
    """What came from the two descriptors `streams`, and why the process must be ended: '' (it has ended), 'wall' or 'output'
    or what `watch` said.

    Args:
        pidfd: Of the process.
        most: Bytes of each stream that are kept; one more, and the verdict is 'output'.
        deadline: On the clock of `time.monotonic`.
        watch: Called every TICK seconds; a text other than '' is the verdict.
        feed: A descriptor to write to and what: its standard input, at the end of which, or when nobody reads it any more, it is closed.
    """
    poll = select.poll()
    kept = {descriptor: bytearray() for descriptor in streams}
    for descriptor in (pidfd, *streams):
        poll.register(descriptor, select.POLLIN)
    open_streams, ended, verdict = set(streams), False, ""
    into, food = feed or (-1, b"")
    food = memoryview(food)
    if feed:
        os.set_blocking(into, False)
        poll.register(into, select.POLLOUT)
    while open_streams or not ended:
        left = deadline - time.monotonic()
        if left <= 0:
            verdict = "" if ended else "wall"
            break
        events = poll.poll(1000 * (min(left, TICK) if watch and not ended else left))
        for descriptor, event in events:
            if descriptor == into:
                food = food[_write(into, food) :] if event == select.POLLOUT else food[:0]
                if not food:
                    poll.unregister(into)
                    os.close(into)
                    into = -1
                continue
            if descriptor == pidfd:
                ended, deadline = True, time.monotonic() + DRAIN
                poll.unregister(pidfd)
                continue
            data = os.read(descriptor, 65536)
            if not data:
                poll.unregister(descriptor)
                open_streams.discard(descriptor)
            kept[descriptor] += data
            if len(kept[descriptor]) > most:
                verdict = "output"
        if not verdict and watch and not ended:
            verdict = watch()
        if verdict:
            break
    return [bytes(kept[descriptor][: most + 1]) for descriptor in streams], verdict


def _write(descriptor, data):
    """How many bytes were taken; all of them where nobody reads any more."""
    with contextlib.suppress(BlockingIOError):
        try:
            return os.write(descriptor, data)
        except BrokenPipeError:
            return len(data)
    return 0
