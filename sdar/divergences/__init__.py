"""Divergence objectives as parts: per-token losses that say what their value and their gradient estimate."""

from sdar.divergences.cross_entropy import TopKCrossEntropy as TopKCrossEntropy
from sdar.divergences.k1_policy_gradient import K1PolicyGradient as K1PolicyGradient
from sdar.divergences.k2 import K2 as K2
from sdar.divergences.k3 import K3 as K3
from sdar.divergences.k3 import ImportanceK3 as ImportanceK3
from sdar.divergences.lift import Lift as Lift
from sdar.divergences.top_k import TopKForwardKL as TopKForwardKL
from sdar.divergences.top_k import TopKJensenShannon as TopKJensenShannon
from sdar.divergences.top_k import TopKReverseKL as TopKReverseKL
from sdar.divergences.vocabulary import ForwardKL as ForwardKL
from sdar.divergences.vocabulary import JensenShannon as JensenShannon
from sdar.divergences.vocabulary import ReverseKL as ReverseKL
from sdar.divergences.vocabulary import SkewForwardKL as SkewForwardKL
from sdar.divergences.vocabulary import SkewReverseKL as SkewReverseKL
