"""The base classes of everything that can be swapped.

A part is a class with a typed constructor below one of these bases; the annotation in the constructor that takes it is all
that YAML needs. ``sdar list`` prints the registered ones.
"""

from sdar.parts.methods import AdvantageEstimator as AdvantageEstimator
from sdar.parts.methods import AdvantageTransform as AdvantageTransform
from sdar.parts.methods import Correction as Correction
from sdar.parts.methods import Credit as Credit
from sdar.parts.methods import Divergence as Divergence
from sdar.parts.methods import EpisodeController as EpisodeController
from sdar.parts.methods import Gate as Gate
from sdar.parts.methods import Placement as Placement
from sdar.parts.methods import PolicyLoss as PolicyLoss
from sdar.parts.methods import PrivilegedView as PrivilegedView
from sdar.parts.methods import Retriever as Retriever
from sdar.parts.methods import Schedule as Schedule
from sdar.parts.methods import SequenceFilter as SequenceFilter
from sdar.parts.methods import TurnWeight as TurnWeight
from sdar.parts.models import Blueprint as Blueprint
from sdar.parts.models import Judge as Judge
from sdar.parts.models import ModelCopy as ModelCopy
from sdar.parts.models import Policy as Policy
from sdar.parts.models import RemoteModel as RemoteModel
from sdar.parts.models import Sampler as Sampler
from sdar.parts.models import Session as Session
from sdar.parts.models import SharedWeights as SharedWeights
from sdar.parts.models import Teacher as Teacher
from sdar.parts.part import Part as Part
from sdar.parts.worlds import Environment as Environment
from sdar.parts.worlds import Expert as Expert
from sdar.parts.worlds import Protocol as Protocol
from sdar.renamed import old_names
from sdar.types import Completion as Completion
from sdar.types import SampleKey as SampleKey
from sdar.types import StepResult as StepResult

__getattr__ = old_names(__name__, Elsewhere="RemoteModel", Draw="SampleKey")
