"""Rollouts against `generate` of transformers, turn by turn: the same episodes, the same tokens.

    python benchmarks/rollout.py [--policies 1M 25M 135M] [--layouts trajectory turn] [--rounds 5] [--quick]

Measured: what the policy says, in tokens a processor second. Ours plays, worlds, prompts and random numbers included; then `generate`
is given each turn's prompts of all running episodes at once and made to say the same tokens, with neither worlds nor prompts to
make. The limit: every token of the prefix tree of all prompts and responses passes through the layers once and every response token
through the head, at the rate of a large matrix product.
"""

import statistics
from typing import Any

import measuring
import torch
from measuring import Run, Times, ratios, spread, timed

POLICIES = {
    # tasks, attempts, turns, tokens of a response, dtype
    "tiny": (2, 2, 2, 4, "32-true"),
    "1M": (16, 4, 12, 12, "32-true"),
    "25M": (8, 4, 8, 12, "32-true"),
    "135M": (2, 4, 6, 12, "bf16-true"),
}


def settings(policy: str, layout: str, quick: bool) -> list[str]:
    tasks, attempts, turns, tokens, precision = POLICIES[policy]
    if quick:
        tasks, turns = min(tasks, 2), min(turns, 4)
    chosen = {
        **measuring.policy(policy),
        "model.sampler.max_new_tokens": tokens,
        "data.tasks_per_step": tasks,
        "data.group_size": attempts,
        "data.env.horizon": turns,
        "data.layout": layout,
        "data.val_tasks": 2,
        "model.optimizer.lr": 0.01,  # less would move no weight of bfloat16, and is refused; nothing learns here
        "trainer.precision": precision,
    }
    return measuring.words(["quickstart/sdar"], {"model": "GRPO"} | chosen)


def generate(module: Any, episodes: list[Any]) -> None:
    """The episodes once more, by `generate`: each turn's prompts together, padded on the left."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class Recorded(LogitsProcessor):
        """Leaves each row the token that was said."""

        def __init__(self, start: int, said: torch.Tensor):
            self.start, self.said = start, said

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf).scatter_(1, self.said[:, ids.shape[1] - self.start, None], 0.0)

    sampler = module.rollout.sampler
    stop = sorted(sampler.stop_ids)
    config = GenerationConfig(
        max_new_tokens=sampler.max_new_tokens, do_sample=True, top_k=0, top_p=1.0, eos_token_id=stop, pad_token_id=stop[0]
    )
    known = [measuring.turns(e) for e in episodes]
    module.model.eval()
    for number in range(max(map(len, known))):
        now = [turns[number] for turns in known if len(turns) > number]
        longest = max(len(prompt) for prompt, *_ in now)
        ids = torch.tensor([[stop[0]] * (longest - len(prompt)) + prompt for prompt, *_ in now])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, *_ in now])
        said = torch.tensor([said + [stop[0]] * (sampler.max_new_tokens - len(said)) for _, said, *_ in now])
        out = module.model.generate(
            ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([Recorded(longest, said)])
        )[:, longest:]
        for row, (_, response, *_) in zip(out.tolist(), now, strict=True):
            assert row[: len(response)] == response, "generate said something else"
    module.model.train()


def limit(module: Any, episodes: list[Any], rate: float) -> float:
    """Processor seconds of the rollout at the rate of a matrix product, if no token is computed twice."""
    told = [prompt + said for e in episodes for prompt, said, _ in measuring.turns(e)]
    nodes, depths = measuring.tree(told)
    return measuring.operations(module.model, nodes, sum(e.response_tokens for e in episodes), depths) / rate


def measure(policy: str, layout: str, given: Any) -> list[object]:
    """A row of the table."""

    def work(run: Run) -> list[object]:
        rate = measuring.matrix_rate(next(run.module.model.parameters()).dtype)
        ours, theirs, tokens, least = Times(), Times(), [], []
        for number in range(given.rounds + 1):
            played, episodes = timed(lambda: run.play(number))  # noqa: B023
            replayed, _ = timed(lambda: generate(run.module, episodes))  # noqa: B023
            if number:
                ours.append(played)
                theirs.append(replayed)
                tokens.append(sum(e.response_tokens for e in episodes))
                least.append(limit(run.module, episodes, rate))
        return [
            policy,
            layout,
            f"{statistics.median(tokens):,.0f}",
            spread(theirs.cpu),
            spread(ours.cpu),
            f"{statistics.median(ratios(tokens, ours.cpu)):,.0f}",
            f"**{spread(ratios(theirs.cpu, ours.cpu), 1)}**",
            spread(ratios(theirs.clock, ours.clock), 1),
            f"{statistics.median(ratios(ours.cpu, least)):.1f}",
        ]

    return measuring.inside([settings(policy, layout, given.quick)], work)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["1M", "25M"])
    parser.add_argument("--layouts", nargs="+", default=["trajectory", "turn"])
    given = parser.parse_args()
    measuring.begin(given)
    columns = ["policy", "layout", "response tokens", "`generate`, s", "ours, s", "ours, tokens/s", "ratio", "by the clock",
               "times the limit"]  # fmt: skip
    rows = [measure(policy, layout, given) for policy in given.policies for layout in given.layouts]
    measuring.tell(
        given,
        "Rollout against `generate`",
        f"Processor seconds, medians [least, most] of {given.rounds} interleaved pairs.",
        measuring.table(columns, rows),
    )


if __name__ == "__main__":
    measuring.run(main)
