"""Sequence filters: which episodes the distillation term learns from."""

from torch import Tensor

from sdar import functional
from sdar.parts import SequenceFilter
from sdar.registry import register


@register("failed")
class FailedOnly(SequenceFilter):
    """Attempts that failed."""

    def __call__(self, success: Tensor, groups: Tensor) -> Tensor:
        return functional.failed_only(success, groups).bool()


@register("mixed")
class MixedGroups(SequenceFilter):
    """Attempts at tasks that some attempts solved and some did not."""

    def __call__(self, success: Tensor, groups: Tensor) -> Tensor:
        return functional.mixed_groups(success, groups).bool()


@register("cliff")
class CliffGroups(SequenceFilter):
    """Attempts at tasks that no attempt solved."""

    def __call__(self, success: Tensor, groups: Tensor) -> Tensor:
        return functional.cliff_groups(success, groups).bool()


@register("has_sibling")
class HasSuccessfulSibling(SequenceFilter):
    """Attempts at tasks that another attempt solved."""

    def __call__(self, success: Tensor, groups: Tensor) -> Tensor:
        return functional.has_successful_sibling(success, groups).bool()
