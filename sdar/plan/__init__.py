"""What a run will need before it starts: memory of each rank, forwards, tokens and time of an iteration, all by formula.

Pure functions of a `Run`, which `sdar.plan.settings` reads off the settings and `sdar.plan.report` tells.
"""

from typing import TYPE_CHECKING

from sdar.faces import lazy

if TYPE_CHECKING:
    from sdar.plan.advice import changes as changes
    from sdar.plan.advice import combinations as combinations
    from sdar.plan.memory import BATCH_BYTES as BATCH_BYTES
    from sdar.plan.memory import CHUNK as CHUNK
    from sdar.plan.memory import LIVE_PARAMETERS as LIVE_PARAMETERS
    from sdar.plan.memory import LOST as LOST
    from sdar.plan.memory import PHASES as PHASES
    from sdar.plan.memory import RESERVED as RESERVED
    from sdar.plan.memory import activations as activations
    from sdar.plan.memory import backward as backward
    from sdar.plan.memory import cache_bytes as cache_bytes
    from sdar.plan.memory import device_memory as device_memory
    from sdar.plan.memory import gathered as gathered
    from sdar.plan.memory import host_memory as host_memory
    from sdar.plan.memory import kept as kept
    from sdar.plan.memory import kv_cache as kv_cache
    from sdar.plan.memory import layer_activations as layer_activations
    from sdar.plan.memory import logits as logits
    from sdar.plan.memory import passing as passing
    from sdar.plan.memory import peaks as peaks
    from sdar.plan.memory import playing as playing
    from sdar.plan.memory import stored as stored
    from sdar.plan.memory import weights as weights
    from sdar.plan.run import GIB as GIB
    from sdar.plan.run import GPU as GPU
    from sdar.plan.run import GPUS as GPUS
    from sdar.plan.run import Architecture as Architecture
    from sdar.plan.run import Launch as Launch
    from sdar.plan.run import Network as Network
    from sdar.plan.run import Run as Run
    from sdar.plan.run import Work as Work
    from sdar.plan.run import named as named
    from sdar.plan.times import BANDWIDTH_SHARE as BANDWIDTH_SHARE
    from sdar.plan.times import LAYER_LAUNCH_S as LAYER_LAUNCH_S
    from sdar.plan.times import MATMUL_SHARE as MATMUL_SHARE
    from sdar.plan.times import counts as counts
    from sdar.plan.times import seconds as seconds

__getattr__, __dir__, __all__ = lazy(__name__)
