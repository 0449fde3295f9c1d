"""Lightning's record of a logged number stays as it is where it is moved to the device that it is on: Lightning makes a deep copy of what
it knows of the number, for each number of each iteration, which was a fifteenth of what runs of several ranks did.
"""

from typing import Any

import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

moved = _ResultMetric.to


def to(self: _ResultMetric, *args: Any, **kwargs: Any) -> _ResultMetric:
    target = args[0] if args else kwargs.get("device")
    if self.is_tensor and isinstance(target, (str, torch.device)) and self.value.device == torch.device(target):
        return self
    return moved(self, *args, **kwargs)


_ResultMetric.to = to
