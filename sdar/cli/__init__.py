"""The `sdar` command. `main` imports what a command needs when it is called."""


def main(args: list[str] | None = None) -> int:
    """Run the command line `args` (the process's by default) and return the exit code."""
    from sdar.cli.app import main as run

    return run(args)
