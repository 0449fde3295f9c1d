"""Evaluation: success with intervals, avg@k and pass@k, the teacher's lift, paired comparison."""

from sdar.evaluate.intervals import Estimate as Estimate
from sdar.evaluate.intervals import macro_mean as macro_mean
from sdar.evaluate.intervals import mean_interval as mean_interval
from sdar.evaluate.intervals import paired_difference as paired_difference
from sdar.evaluate.intervals import pass_at_k as pass_at_k
from sdar.evaluate.intervals import wilson_interval as wilson_interval
