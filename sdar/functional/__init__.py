"""The mathematics as pure functions: tensors in, per-token tensors out, one reduction. No state, nothing is logged.

Tensors are ``[batch, time]`` unless a docstring says otherwise, masks are 0/1 or bool, log-probabilities are in nats. What a
docstring calls *detached* is treated as a constant whatever graph it came with. Half precision is computed in float32.
"""

from sdar.functional.advantages import anchor_advantages as anchor_advantages
from sdar.functional.advantages import discounted_returns as discounted_returns
from sdar.functional.advantages import dr_grpo_advantages as dr_grpo_advantages
from sdar.functional.advantages import episode_group_advantages as episode_group_advantages
from sdar.functional.advantages import group_advantages as group_advantages
from sdar.functional.advantages import reinforce_pp_advantages as reinforce_pp_advantages
from sdar.functional.advantages import rloo_advantages as rloo_advantages
from sdar.functional.advantages import similar_anchors as similar_anchors
from sdar.functional.filters import cliff_groups as cliff_groups
from sdar.functional.filters import failed_only as failed_only
from sdar.functional.filters import has_successful_sibling as has_successful_sibling
from sdar.functional.filters import mixed_groups as mixed_groups
from sdar.functional.gates import entropy_gate as entropy_gate
from sdar.functional.gates import gap_gate as gap_gate
from sdar.functional.gates import log_prob_gap as log_prob_gap
from sdar.functional.gates import soft_or_gate as soft_or_gate
from sdar.functional.local_support import TeacherTop as TeacherTop
from sdar.functional.local_support import local_support as local_support
from sdar.functional.local_support import top_k_forward_kl as top_k_forward_kl
from sdar.functional.local_support import top_k_ids as top_k_ids
from sdar.functional.local_support import top_k_jsd as top_k_jsd
from sdar.functional.local_support import top_k_reverse_kl as top_k_reverse_kl
from sdar.functional.local_support import top_k_support as top_k_support
from sdar.functional.masks import first_occurrences as first_occurrences
from sdar.functional.masks import soft_or_importance as soft_or_importance
from sdar.functional.masks import token_importance as token_importance
from sdar.functional.masks import weighted_subset as weighted_subset
from sdar.functional.objectives import importance_k3 as importance_k3
from sdar.functional.objectives import k1_policy_gradient as k1_policy_gradient
from sdar.functional.objectives import k2 as k2
from sdar.functional.objectives import k3 as k3
from sdar.functional.objectives import lift as lift
from sdar.functional.policy_gradient import clip_indicator as clip_indicator
from sdar.functional.policy_gradient import gspo_clip as gspo_clip
from sdar.functional.policy_gradient import importance_policy_gradient as importance_policy_gradient
from sdar.functional.policy_gradient import masked_ratio as masked_ratio
from sdar.functional.policy_gradient import ppo_clip as ppo_clip
from sdar.functional.policy_gradient import truncated_ratio as truncated_ratio
from sdar.functional.reduction import masked_mean as masked_mean
from sdar.functional.shaping import additive_gap as additive_gap
from sdar.functional.shaping import agent_opsd_weights as agent_opsd_weights
from sdar.functional.shaping import belief_revision as belief_revision
from sdar.functional.shaping import gap_returns as gap_returns
from sdar.functional.shaping import mix_advantages as mix_advantages
from sdar.functional.shaping import rlsd_advantages as rlsd_advantages
from sdar.functional.shaping import trajectory_zscore as trajectory_zscore
from sdar.functional.token_stats import TokenStats as TokenStats
from sdar.functional.token_stats import chunked_token_stats as chunked_token_stats
from sdar.functional.token_stats import vocabulary_log_probs as vocabulary_log_probs
from sdar.functional.transport import transport_plan as transport_plan
from sdar.functional.transport import window_distance as window_distance
from sdar.functional.turns import atod_turn_weights as atod_turn_weights
from sdar.functional.turns import iw_opd_weights as iw_opd_weights
from sdar.functional.turns import stepwise_turn_weights as stepwise_turn_weights
from sdar.functional.turns import stepwise_weights as stepwise_weights
from sdar.functional.turns import turn_mean as turn_mean
from sdar.functional.vocabulary import common_vocabulary as common_vocabulary
from sdar.functional.vocabulary import forward_kl as forward_kl
from sdar.functional.vocabulary import jsd as jsd
from sdar.functional.vocabulary import reverse_kl as reverse_kl
from sdar.functional.vocabulary import skew_forward_kl as skew_forward_kl
from sdar.functional.vocabulary import skew_reverse_kl as skew_reverse_kl
