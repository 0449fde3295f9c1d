"""Lightning's strategies, made for steps that consist of several forward and backward passes."""

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DDPStrategy

from sdar.arguments import checked
from sdar.distributed.communicator import SINGLE_PROCESS
from sdar.distributed.sharding import Replicated, ShardedModule, Sharding
from sdar.errors import ConfigError
from sdar.plan.run import Launch

if TYPE_CHECKING:
    _Strategy = DDPStrategy  # what it is mixed into: Strategy itself has no barrier to call
else:
    _Strategy = object


class Direct(_Strategy):
    """Steps are called as they are: only what they ask for passes through the wrapped module, one micro-batch at a time."""

    deadline: float

    @property
    def _module(self) -> Any:
        """Lightning's module, with what methods add to it."""
        return self.lightning_module

    def timeout_of(self, deadline: float) -> timedelta:
        """Remember the deadline; it is also that of torch's collectives."""
        if deadline <= 0:
            raise ConfigError(
                f"trainer.strategy.deadline is {deadline} seconds: every rank would be late. Give a positive number."
            )
        self.deadline = deadline
        return timedelta(seconds=deadline)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.train_step_context():
            return self._module.training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.val_step_context():
            return self._module.validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.test_step_context():
            return self._module.test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.predict_step_context():
            return self._module.predict_step(*args, **kwargs)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        with self._error_context():
            super().barrier(*args, **kwargs)

    def broadcast(self, *args: Any, **kwargs: Any) -> Any:
        with self._error_context():
            return super().broadcast(*args, **kwargs)

    def _error_context(self) -> AbstractContextManager[None]:
        """Lightning's own meetings, at a checkpoint say, name who is missing, too."""
        return getattr(self._module, "ranks", SINGLE_PROCESS).error_context()

    def sharding(self, module: ShardedModule) -> Sharding:
        raise NotImplementedError

    def launch(self) -> Launch:
        """How ranks share networks, as `sdar plan` counts them; how many there are and their precision are filled in there."""
        return Launch("ddp")


@checked
class ReplicatedStrategy(Direct, DDPStrategy):
    """DistributedDataParallel. Ranks never differ in which parameters have a gradient, and networks have no buffers to keep equal.

    Args:
        deadline: Seconds that ranks wait for each other.
        broadcast_buffers: As in DistributedDataParallel.
        **kwargs: Those of DDPStrategy.
    """

    def __init__(self, deadline: float = 1800.0, broadcast_buffers: bool = False, **kwargs: Any):
        super().__init__(timeout=self.timeout_of(deadline), broadcast_buffers=broadcast_buffers, **kwargs)

    def pre_backward(self, closure_loss: Any) -> None:
        """The forward of the micro-batch has prepared the reducer."""

    def sharding(self, module: ShardedModule) -> Sharding:
        return Replicated(module)
