"""The mathematics as pure functions: tensors in, per-token tensors out, one reduction. No state, nothing is logged.

Tensors are ``[batch, time]`` unless a docstring says otherwise, masks are 0/1 or bool, log-probabilities are in nats. What a
docstring calls *detached* is treated as a constant whatever graph it came with. Half precision is computed in float32.
"""

from sdar.functional.advantages import episode_group_advantages as episode_group_advantages
from sdar.functional.advantages import group_advantages as group_advantages
from sdar.functional.gates import entropy_gate as entropy_gate
from sdar.functional.gates import gap_gate as gap_gate
from sdar.functional.gates import log_prob_gap as log_prob_gap
from sdar.functional.gates import soft_or_gate as soft_or_gate
from sdar.functional.objectives import importance_k3 as importance_k3
from sdar.functional.objectives import k1_policy_gradient as k1_policy_gradient
from sdar.functional.objectives import k2 as k2
from sdar.functional.objectives import k3 as k3
from sdar.functional.objectives import lift as lift
from sdar.functional.policy_gradient import clip_indicator as clip_indicator
from sdar.functional.policy_gradient import ppo_clip as ppo_clip
from sdar.functional.reduction import masked_mean as masked_mean
from sdar.functional.token_stats import TokenStats as TokenStats
from sdar.functional.token_stats import chunked_token_stats as chunked_token_stats
from sdar.functional.turns import turn_mean as turn_mean
