"""Which tasks a run plays: panels, the tasks of each iteration, and the world that they are played in."""

from typing import TYPE_CHECKING

from sdar.faces import lazy

if TYPE_CHECKING:
    from sdar.data.batches import Pieces as Pieces
    from sdar.data.batches import Played as Played
    from sdar.data.batches import TaskBatch as TaskBatch
    from sdar.data.chats import ChatModule as ChatModule
    from sdar.data.panels import Panel as Panel
    from sdar.data.panels import check_disjoint as check_disjoint
    from sdar.data.tasks import TaskModule as TaskModule
    from sdar.data.tasks import TaskSource as TaskSource
    from sdar.data.tasks import TrainingSteps as TrainingSteps
    from sdar.data.tasks import protocol_of as protocol_of
    from sdar.data.worlds import MultiTaskModule as MultiTaskModule
    from sdar.data.worlds import World as World

__getattr__, __dir__, __all__ = lazy(__name__, Step="TaskBatch")
