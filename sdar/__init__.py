"""Train language-model agents with reinforcement learning and on-policy self-distillation."""

from sdar.parts import AdvantageEstimator as AdvantageEstimator
from sdar.parts import AdvantageTransform as AdvantageTransform
from sdar.parts import Correction as Correction
from sdar.parts import Credit as Credit
from sdar.parts import Divergence as Divergence
from sdar.parts import Environment as Environment
from sdar.parts import EpisodeController as EpisodeController
from sdar.parts import Gate as Gate
from sdar.parts import Judge as Judge
from sdar.parts import Policy as Policy
from sdar.parts import PolicyLoss as PolicyLoss
from sdar.parts import PrivilegedView as PrivilegedView
from sdar.parts import Protocol as Protocol
from sdar.parts import Retriever as Retriever
from sdar.parts import Sampler as Sampler
from sdar.parts import Schedule as Schedule
from sdar.parts import SequenceFilter as SequenceFilter
from sdar.parts import StepResult as StepResult
from sdar.parts import Teacher as Teacher
from sdar.parts import TurnWeight as TurnWeight
from sdar.registry import register as register
from sdar.tally import Tally as Tally
from sdar.turns import Turns as Turns
from sdar.types import Payload as Payload
from sdar.types import Retrieval as Retrieval
from sdar.types import StudentTokens as StudentTokens
from sdar.types import Task as Task
from sdar.types import TokenView as TokenView

__version__ = "0.1.0"
