"""What was found: each finding is one text, the fact with its numbers, the reason, and what to do."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sdar.errors import SdarError, first_line

OTHERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
"""Warnings that libraries address to each other."""


class Findings(list[str]):
    """Texts in the order in which they were found, none of them twice."""

    def add(self, text: str) -> None:
        text = text.strip()
        if text not in self:
            self.append(text)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """What is refused or warned of inside is a finding, and what stands behind goes on. Another exception is one, too, but where
        something was found before: it may be what comes of that."""
        with warnings.catch_warnings(record=True) as warned:
            try:
                yield
            except Exception as error:
                if isinstance(error, SdarError) or type(error).__name__ == "MisconfigurationException":  # Lightning's
                    self.add(str(error))
                elif not self:
                    self.add(
                        f"{type(error).__name__}: {first_line(error)}. It is no refusal of sdar's: SDAR_TRACEBACK=1 sdar fit ... shows it."
                    )
        for warning in warned:
            if not issubclass(warning.category, OTHERS):
                self.add(str(warning.message))


def report(facts: Mapping[str, str], findings: Findings, file: Path | None = None) -> int:
    """Print what is there and what was found, and return the exit code: 0 where nothing was, else 1.

    Args:
        file: Gets the same as JSON.
    """
    width = max(map(len, facts), default=0)
    lines = [f"  {name:<{width}}  {fact}" for name, fact in facts.items()]
    lines += ["", f"{len(findings)} finding{'s' * (len(findings) != 1)}{':' if findings else ''}"]
    lines += [f"  {number}. {finding}" for number, finding in enumerate(findings, 1)]
    print("\n".join(lines), flush=True)
    if file is not None:
        file.write_text(json.dumps({"facts": dict(facts), "findings": list(findings)}, indent=1) + "\n", encoding="utf-8")
    return int(bool(findings))
