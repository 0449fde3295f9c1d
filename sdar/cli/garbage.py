"""When a process that answers one command looks for garbage: not before a run begins, and never for what was imported.

Sources that were read and modules that were imported are millions of objects, nearly all of which stay. Looking through them took
half of what `sdar list` needs, most of it as the process ended.
"""

import gc

_waiting = False


def wait() -> None:
    """From here on nothing is collected, until `begin`."""
    global _waiting
    _waiting = gc.isenabled()
    gc.disable()


def begin() -> None:
    """What is here now stays; everything that comes is collected as ever."""
    global _waiting
    if _waiting:
        _waiting = False
        gc.freeze()
        gc.enable()


def end() -> None:
    """The process ends: if it began nothing, nothing of it has to be closed."""
    if _waiting:
        gc.freeze()
