"""Divergence objectives as parts: per-token losses that say what their value and their gradient estimate."""

from sdar.divergences.k1_policy_gradient import K1PolicyGradient as K1PolicyGradient
from sdar.divergences.lift import Lift as Lift
