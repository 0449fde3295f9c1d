"""The episodes that runs leave: written with what a training step knows of each token, read as objects, rows or a frame of pandas."""

from typing import TYPE_CHECKING

from sdar.faces import lazy

if TYPE_CHECKING:
    from sdar.episodes.reading import read as read
    from sdar.episodes.reading import stream as stream
    from sdar.episodes.recompute import recomputed_loss as recomputed_loss
    from sdar.episodes.recompute import stored_loss as stored_loss
    from sdar.episodes.schema import StoredEpisode as StoredEpisode
    from sdar.episodes.schema import StoredTurn as StoredTurn
    from sdar.episodes.tables import export as export
    from sdar.episodes.tables import frame as frame
    from sdar.episodes.tables import rows as rows
    from sdar.episodes.where import condition as condition

__getattr__, __dir__, __all__ = lazy(__name__)
