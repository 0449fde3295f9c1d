"""Train language-model agents with reinforcement learning and on-policy self-distillation.

Every name is imported at its first use.
"""

from typing import TYPE_CHECKING

from sdar import moved as _moved  # noqa: F401
from sdar.faces import lazy

if TYPE_CHECKING:
    from sdar.cli.trainer import AgentTrainer as AgentTrainer
    from sdar.data import ChatModule as ChatModule
    from sdar.data import MultiTaskModule as MultiTaskModule
    from sdar.data import TaskModule as TaskModule
    from sdar.envs import ALFWorldEnv as ALFWorldEnv
    from sdar.envs import BriefProtocol as BriefProtocol
    from sdar.envs import CompactProtocol as CompactProtocol
    from sdar.envs import GymnasiumEnv as GymnasiumEnv
    from sdar.envs import HouseholdEnv as HouseholdEnv
    from sdar.envs import MathEnv as MathEnv
    from sdar.envs import SearchEnv as SearchEnv
    from sdar.envs import ThinkActProtocol as ThinkActProtocol
    from sdar.envs import WebShopEnv as WebShopEnv
    from sdar.errors import ConfigError as ConfigError
    from sdar.lora import LoRAPolicy as LoRAPolicy
    from sdar.metrics import EpisodeMetric as EpisodeMetric
    from sdar.metrics import Metrics as Metrics
    from sdar.metrics import TokenMetric as TokenMetric
    from sdar.metrics.means import Tally as Tally
    from sdar.module import AgentModule as AgentModule
    from sdar.parts import AdvantageEstimator as AdvantageEstimator
    from sdar.parts import AdvantageTransform as AdvantageTransform
    from sdar.parts import Blueprint as Blueprint
    from sdar.parts import Correction as Correction
    from sdar.parts import Credit as Credit
    from sdar.parts import Divergence as Divergence
    from sdar.parts import Environment as Environment
    from sdar.parts import EpisodeController as EpisodeController
    from sdar.parts import Gate as Gate
    from sdar.parts import Judge as Judge
    from sdar.parts import ModelCopy as ModelCopy
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
    from sdar.policies import FreshPolicy as FreshPolicy
    from sdar.policies import PretrainedPolicy as PretrainedPolicy
    from sdar.registry import register as register
    from sdar.retrievers import FactRetriever as FactRetriever
    from sdar.retrievers import KeywordRetriever as KeywordRetriever
    from sdar.samplers import ServerSampler as ServerSampler
    from sdar.samplers import TorchSampler as TorchSampler
    from sdar.samplers import VLLMSampler as VLLMSampler
    from sdar.strategies import GRPO as GRPO
    from sdar.strategies import HDPO as HDPO
    from sdar.strategies import OPD as OPD
    from sdar.strategies import OPSD as OPSD
    from sdar.strategies import RLSD as RLSD
    from sdar.strategies import SDAR as SDAR
    from sdar.strategies import SDPO as SDPO
    from sdar.strategies import SFT as SFT
    from sdar.strategies import SOD as SOD
    from sdar.strategies import TCOD as TCOD
    from sdar.strategies import TIP as TIP
    from sdar.strategies import TOPD as TOPD
    from sdar.strategies import BehaviorCloning as BehaviorCloning
    from sdar.strategies import CriticSearch as CriticSearch
    from sdar.strategies import GatedOPSD as GatedOPSD
    from sdar.strategies import GiGPO as GiGPO
    from sdar.strategies import GRPOWithOPSD as GRPOWithOPSD
    from sdar.strategies import SDSearch as SDSearch
    from sdar.strategies import SkillGRPO as SkillGRPO
    from sdar.strategies import SkillPrompt as SkillPrompt
    from sdar.strategies import SkillSD as SkillSD
    from sdar.strategies import TopKOPD as TopKOPD
    from sdar.teachers import EMATeacher as EMATeacher
    from sdar.teachers import ExternalTeacher as ExternalTeacher
    from sdar.teachers import InitialTeacher as InitialTeacher
    from sdar.teachers import LiveTeacher as LiveTeacher
    from sdar.training.checkpoints import RunCheckpoint as RunCheckpoint
    from sdar.turns import Turns as Turns
    from sdar.types import Batch as Batch
    from sdar.types import Episode as Episode
    from sdar.types import Retrieval as Retrieval
    from sdar.types import StudentTokens as StudentTokens
    from sdar.types import Task as Task
    from sdar.types import TeacherSignal as TeacherSignal
    from sdar.types import TokenView as TokenView

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(__name__, Payload="TeacherSignal")
