"""Train language-model agents with reinforcement learning and on-policy self-distillation."""

from sdar.parts import AdvantageEstimator as AdvantageEstimator
from sdar.parts import Divergence as Divergence
from sdar.parts import Environment as Environment
from sdar.parts import Gate as Gate
from sdar.parts import Policy as Policy
from sdar.parts import PrivilegedView as PrivilegedView
from sdar.parts import Protocol as Protocol
from sdar.parts import Retriever as Retriever
from sdar.parts import Sampler as Sampler
from sdar.parts import Schedule as Schedule
from sdar.parts import StepResult as StepResult
from sdar.parts import Teacher as Teacher
from sdar.registry import register as register
from sdar.types import Retrieval as Retrieval
from sdar.types import Task as Task
from sdar.types import TokenView as TokenView

__version__ = "0.1.0"
