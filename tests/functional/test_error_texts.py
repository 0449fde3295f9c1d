"""What each function says when it refuses something, to the letter: the fact with its numbers, the reason, what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sdar.functional
from sdar.errors import ConfigError
from sdar.functional import (
    TeacherTop,
    agent_opsd_weights,
    belief_revision,
    chunked_token_stats,
    common_vocabulary,
    concentration,
    entropy_gate,
    failed_only,
    forward_kl,
    iw_opd_weights,
    jsd,
    k3,
    local_support,
    masked_mean,
    masked_ratio,
    mix_advantages,
    ppo_clip,
    rlsd_advantages,
    similar_anchors,
    skew_forward_kl,
    stepwise_turn_weights,
    token_importance,
    top_k_ids,
    top_k_reverse_kl,
    transport_plan,
    truncated_ratio,
    weighted_subset,
)
from sdar.functional.turns import discounted_sums, trajectory_index
from sdar.functional.vocabulary import kl

LOGITS, ROW, IDS = torch.zeros(1, 3), torch.zeros(2), torch.tensor([0, 1])

REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: similar_anchors(["a"], IDS[:1], 0.0),
        ConfigError,
        (
            "similarity threshold is 0.0: it bounds a ratio in [0, 1] from below, and at 0 all texts would be one state. Use "
            "0.95, or null for equal texts."
        ),
    ),
    (
        lambda: similar_anchors(["a"], IDS, None),
        ValueError,
        ("there are 1 texts and 2 group ids: each text needs the group it is of."),
    ),
    (
        lambda: concentration(ROW, 0.0),
        ConfigError,
        ("the share of the tokens is 0.0: a part of them is compared with all. Use e.g. 0.01."),
    ),
    (
        lambda: failed_only(torch.tensor([1.0, 0.5]), IDS),
        ValueError,
        ("the success of episode 1 is 0.5: an episode succeeds (1) or fails (0). Pass whether it succeeded, not its reward."),
    ),
    (
        lambda: entropy_gate(ROW, 5.0, 1),
        ConfigError,
        (
            "vocab_size is 1: entropy is divided by ln(vocab_size), which needs at least 2 tokens. Pass the size of the "
            "student's vocabulary."
        ),
    ),
    (
        lambda: local_support(LOGITS, IDS[None], LOGITS[:, :1], "drop"),
        ValueError,
        (
            "student_logits have shape (1, 3), support_ids (1, 2) and teacher_support_logp (1, 1): each row needs its own K "
            "ids and their K log-probabilities. Select the same tokens in all three."
        ),
    ),
    (
        lambda: top_k_ids(LOGITS, 4),
        ConfigError,
        ("k is 4, the vocabulary that student and teacher share has 3 ids: the support holds k of them. Use 1 to 3, e.g. 3."),
    ),
    (
        lambda: top_k_reverse_kl(LOGITS, TeacherTop(IDS[None], LOGITS[:, :2]), 2, support="student", temperature=0.5),
        ValueError,
        (
            "of the teacher 2 tokens are known at temperature 1: they are its support, not the student's 2 at 0.5. "
            "Pass its logits."
        ),
    ),
    (
        lambda: top_k_reverse_kl(LOGITS, LOGITS, 2, support="both"),
        ConfigError,
        ("support is 'both': it says whose most probable tokens count. Use one of ('teacher', 'student')."),
    ),
    (
        lambda: top_k_reverse_kl(LOGITS, LOGITS, 2, tail="cut"),
        ConfigError,
        ("tail is 'cut': it says what becomes of ids outside of the support. Use one of ('drop', 'bucket', 'sampled')."),
    ),
    (
        lambda: top_k_reverse_kl(LOGITS, LOGITS, 2, tail="sampled"),
        ValueError,
        (
            'tail is "sampled", but the sampled token or its log-probability is missing: it is a category of its own. Pass '
            'sampled_ids and the teacher\'s log-probabilities of them, or use the tail "drop" or "bucket".'
        ),
    ),
    (
        lambda: weighted_subset(ROW, ROW > 1, 1.5),
        ConfigError,
        ("share is 1.5: it is the share of tokens that are kept. Use a number above 0, up to 1, e.g. 0.5."),
    ),
    (
        lambda: weighted_subset(torch.tensor([1.0, -2.0, torch.nan]), torch.ones(3), 0.5),
        ValueError,
        (
            "2 of 3 weights in the mask are negative or not finite, the first is -2: tokens are drawn in proportion to their "
            "weights. Pass finite weights of 0 or more."
        ),
    ),
    (
        lambda: token_importance(ROW, ROW, 8, -1.0, 1.0),
        ConfigError,
        (
            "alpha is -1.0 and gamma is 1.0: a token without entropy or divergence would have infinite importance. Use "
            "exponents of 0 or more, e.g. 1.0."
        ),
    ),
    (
        lambda: k3(ROW, ROW, clamp=0.0),
        ConfigError,
        (
            "clamp is 0.0: it is the largest value of a KL estimate, which is 0 where both agree, so that no token would have"
            " a gradient. Use e.g. 10, or null for no bound."
        ),
    ),
    (
        lambda: ppo_clip(ROW, ROW, ROW, 0.2, 0.2, dual_clip=1.0),
        ConfigError,
        (
            "dual_clip is 1.0: it bounds the ratio of tokens with a negative advantage and must be above 1, or on-policy "
            "tokens lose their gradient. Use 3.0, or null for no bound."
        ),
    ),
    (
        lambda: ppo_clip(ROW, ROW, ROW, 1.0, 0.2),
        ConfigError,
        (
            "clip_low is 1.0 and clip_high is 0.2: the ratio is kept in [1 - clip_low, 1 + clip_high], which needs 0 <= "
            "clip_low < 1 and clip_high >= 0. Use 0.2 for both."
        ),
    ),
    (
        lambda: truncated_ratio(ROW, ROW, cap=0.0),
        ConfigError,
        (
            "cap is 0.0: it bounds importance ratios, which are positive, so no token would have a gradient. Use a number "
            "above 1, e.g. 2.0, or null for no bound."
        ),
    ),
    (
        lambda: masked_ratio(ROW, ROW, 1.0, 5.0),
        ConfigError,
        (
            "low is 1.0 and high is 5.0: only tokens with a ratio in [low, high] have a gradient, and where both densities "
            "are the same it is 1, but for rounding. Use 0 <= low < 1 < high, e.g. 0.5 and 5.0."
        ),
    ),
    (
        lambda: masked_mean(LOGITS, torch.ones(1, 2)),
        ValueError,
        ("mask has shape (1, 2), values have (1, 3): a broadcast mask would count its tokens wrongly. Expand the mask first."),
    ),
    (
        lambda: belief_revision(ROW, IDS, torch.tensor([0.5, 10.0]), 1.0),
        ValueError,
        (
            "the prior of turn 1 is 10: it is the probability of success before the first turn. Pass the success rate of the "
            "turn's group, not its mean return."
        ),
    ),
    (
        lambda: mix_advantages(ROW, ROW, 2.0),
        ConfigError,
        ("lam is 2.0: it is the share of the advantage that the weights scale. Use a number from 0 to 1, e.g. 0.5."),
    ),
    (
        lambda: rlsd_advantages(ROW, LOGITS, LOGITS, 0.5, 2.0),
        ConfigError,
        (
            "clip is 2.0: weights are kept in [1 - clip, 1 + clip], and a negative one would turn the advantage around. Use a"
            " number from 0 to 1, e.g. 0.2."
        ),
    ),
    (
        lambda: agent_opsd_weights(ROW, ROW, -0.5),
        ConfigError,
        (
            "band is -0.5: weights are kept in [1 - band, 1 + band], and a negative one would turn the advantage around. Use "
            "a number from 0 to 1, e.g. 0.2."
        ),
    ),
    (
        lambda: chunked_token_stats(LOGITS, torch.zeros(5, 3), IDS[:1], forbidden_ids=[-1]),
        ConfigError,
        ("forbidden_ids holds -1: token ids are not negative. Remove it."),
    ),
    (
        lambda: chunked_token_stats(LOGITS, torch.zeros(5, 3), IDS[:1], forbidden_ids=range(5)),
        ConfigError,
        ("forbidden_ids holds all 5 ids of the vocabulary: nothing can be sampled. Allow some."),
    ),
    (
        lambda: chunked_token_stats(LOGITS, torch.zeros(5, 3), IDS[:1], temperature=0.0),
        ConfigError,
        (
            "temperature is 0.0: logits are divided by it, and greedy decoding has no density. Use the temperature above 0 "
            "that the rollout sampled with."
        ),
    ),
    (
        lambda: chunked_token_stats(LOGITS, torch.zeros(5, 3), IDS[:1], softcap=0.0),
        ConfigError,
        ("softcap is 0.0: logits are bounded by it. Use a number above 0, or null for no bound."),
    ),
    (
        lambda: chunked_token_stats(LOGITS, torch.zeros(5, 3), IDS[:1], chunk=0),
        ConfigError,
        ("chunk is 0: it is the number of tokens projected at a time. Use 1 or more, e.g. 1024."),
    ),
    (
        lambda: chunked_token_stats(LOGITS, torch.zeros(5, 3), torch.tensor([5])),
        ValueError,
        ("target 0 is token id 5, outside of the vocabulary of 5: it has no probability."),
    ),
    (
        lambda: chunked_token_stats(LOGITS, torch.zeros(5, 3), torch.tensor([4]), forbidden_ids=[4]),
        ValueError,
        (
            "target 0 is token id 4, which forbidden_ids excludes: its log-probability would be -inf. Score with the "
            "forbidden ids of the sampler that produced the response, and leave its context tokens out."
        ),
    ),
    (
        lambda: transport_plan(torch.zeros(1, 2, 2), torch.ones(1, 2), torch.ones(1, 2), regularization=0.0),
        ConfigError,
        (
            "transport regularization is 0.0 and iterations is 50: costs are divided by the one, and the plan is made by the "
            "other. Use a regularization above 0, e.g. 0.05, and at least 1 iteration, e.g. 50."
        ),
    ),
    (
        lambda: stepwise_turn_weights(ROW, IDS, epsilon=0.0),
        ConfigError,
        (
            "epsilon is 0.0 and delta is 0.2: weights are ratios of divergences + epsilon, at most 1 + delta, and the first "
            "is 1. Use an epsilon above 0, e.g. 1e-6, and a delta of 0 or more, e.g. 0.2."
        ),
    ),
    (
        lambda: iw_opd_weights(LOGITS, torch.ones(1, 3), gamma=-1.0),
        ConfigError,
        (
            "gamma is -1.0 and epsilon is 1e-08: weights fall from 1 + gamma to 1 with a share of at least epsilon. Use a "
            "gamma of 0 or more, e.g. 0.5, and an epsilon above 0, e.g. 1e-8."
        ),
    ),
    (
        lambda: trajectory_index(torch.tensor([1, 2, 1])),
        ValueError,
        (
            "trajectory_ids hold 2 trajectories in 3 pieces: the turns of a trajectory must be consecutive, in the order of "
            "time. Sort by trajectory and then by turn."
        ),
    ),
    (
        lambda: discounted_sums(ROW, IDS, 1.5),
        ConfigError,
        (
            "discount is 1.5: what lies k turns away counts discount^k, which must not grow. Use a number from 0 to 1; 1 does"
            " not discount."
        ),
    ),
    (
        lambda: jsd(LOGITS, LOGITS, 1.5),
        ConfigError,
        (
            "beta is 1.5: it is the teacher's share of the mixture and lies in [0, 1]. Use 0.5 for the symmetric divergence, "
            "0 for KL(teacher || student), 1 for KL(student || teacher)."
        ),
    ),
    (
        lambda: common_vocabulary(LOGITS, torch.zeros(2, 3)),
        ValueError,
        (
            "student_logits have shape (1, 3), teacher_logits (2, 3): only the vocabulary may differ, rows are compared one "
            "by one. Select the same tokens on both sides."
        ),
    ),
    (
        lambda: kl(LOGITS, LOGITS, max_log_ratio=0.0),
        ConfigError,
        (
            "max_log_ratio is 0.0: log ratios are kept within plus and minus this, and nothing would be left. Use a number "
            "above 0, e.g. 5.0, or null for no bound."
        ),
    ),
    (
        lambda: forward_kl(LOGITS, LOGITS, temperature=0.0),
        ConfigError,
        ("temperature is 0.0: logits are divided by it. Use the temperature above 0 that the rollout sampled with."),
    ),
    (
        lambda: skew_forward_kl(LOGITS, LOGITS, 1.0),
        ConfigError,
        (
            "alpha is 1.0: it is the share of the first distribution in the mixture that it is compared with, from 0 to below"
            " 1, where nothing is left to learn. Use 0.1, or 0 for the plain KL."
        ),
    ),
]


@pytest.mark.usefixtures("without_shapes")
@pytest.mark.parametrize(("call", "kind", "text"), REFUSED)
def test_what_is_refused_is_told_in_full(call: Callable[[], object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and str(caught.value) == text


def test_every_error_is_tried() -> None:
    [folder] = sdar.functional.__path__
    assert sum(path.read_text().count("    raise ") for path in Path(folder).glob("*.py")) + 1 == len(
        REFUSED
    )  # band and clip in one
