"""What is measured, as torchmetrics' metrics: means of an iteration by name, numbers over tasks with intervals, metrics of your own."""

from typing import TYPE_CHECKING

from sdar.faces import lazy

if TYPE_CHECKING:
    from sdar.metrics.base import EpisodeMetric as EpisodeMetric
    from sdar.metrics.base import RunMetric as RunMetric
    from sdar.metrics.base import TokenMetric as TokenMetric
    from sdar.metrics.mean import Mean as Mean
    from sdar.metrics.means import Metrics as Metrics
    from sdar.metrics.tasks import PassAtK as PassAtK
    from sdar.metrics.tasks import Score as Score
    from sdar.metrics.tasks import Success as Success
    from sdar.metrics.tasks import TaskMean as TaskMean
    from sdar.metrics.tasks import TeacherLift as TeacherLift
    from sdar.metrics.tools import ToolCalls as ToolCalls

__getattr__, __dir__, __all__ = lazy(__name__)
