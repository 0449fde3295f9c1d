"""What the parts of a method share."""

from typing import Any

from sdar.contracts import returned
from sdar.renamed import OldNames


class Part(returned.Checked, OldNames):
    """What the parts of a method share: answers that are looked at, and a state.

    Whatever `state_dict` tells goes into the checkpoint, and comes back bit for bit when a run goes on.
    """

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as tensors and plain Python only; empty: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
