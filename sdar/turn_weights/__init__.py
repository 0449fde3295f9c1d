"""Turn weights: how much each turn of an episode counts in the distillation."""

from sdar.turn_weights.atod import ATODWeight as ATODWeight
from sdar.turn_weights.random_choice import RandomWeight as RandomWeight
from sdar.turn_weights.stepwise import StepwiseWeight as StepwiseWeight
from sdar.turn_weights.threshold import ThresholdWeight as ThresholdWeight
