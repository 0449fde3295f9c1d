"""The `sdar` command. `main` imports what a command needs when it is called."""

from sdar.cli import garbage


def main(args: list[str] | None = None) -> int:
    """Run the command line `args` (the process's by default) and return the exit code."""
    if args is not None:
        return _run(args)
    garbage.wait()
    try:
        return _run(None)
    finally:
        garbage.end()


def _run(args: list[str] | None) -> int:
    from sdar.cli.app import main as run

    return run(args)
