"""Sampling engines outside of the training loop. The command `sdar serve-policy` is a function here; samplers are its clients."""

from typing import TYPE_CHECKING

from sdar.faces import lazy
from sdar.serving.engine import Engine as Engine
from sdar.serving.torch_engine import TorchEngine as TorchEngine
from sdar.serving.vllm_engine import VLLMEngine as VLLMEngine

if TYPE_CHECKING:  # most runs serve nobody
    from sdar.serving.server import serve_policy as serve_policy

__getattr__, __dir__, _ = lazy(__name__)
