"""The update of a pretrained model of 135 M parameters with adapters, against plain transformers training all weights.

    python benchmarks/adapters.py [--rows 4] [--rank 16] [--rounds 5] [--quick]

Both read the same demonstrations of the full-size household (growing history, compact protocol) in bfloat16. Ours is the update of
behaviour cloning with LoRA: loss, backward and AdamW. Theirs is forward, cross-entropy of the same tokens and backward of all weights,
two rows at a time, without an optimizer. The limit of ours: forward, and the gradient of what flows through the layers (twice a forward
pass), at the rate of a large bfloat16 matrix product; of all weights it would be three times a forward pass.
"""

import argparse
import statistics
from typing import Any

import measuring
import torch
from measuring import Run, Times, ratios, spread, timed


def settings(given: argparse.Namespace) -> list[str]:
    chosen = {
        "model": "BehaviorCloning",
        "model.retriever": "NoRetriever",
        "model.informed_share": 0.0,
        "model.astray_share": 0.0,
        "model.policy": "LoRAPolicy",
        "model.policy.base": "PretrainedPolicy",
        "model.policy.base.path": measuring.smollm2(),
        "model.policy.rank": given.rank,
        "model.policy.alpha": 2 * given.rank,
        "model.sampler": "TorchSampler",
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.lr": 1e-9,
        "model.micro_batch_tokens": 2048,
        "data.layout": "trajectory",
        "data.protocol": "CompactProtocol",
        "data.tasks_per_step": given.rows,
        "data.group_size": 1,
        "data.val_tasks": 2,
        "model.policy.base.dtype": "bfloat16",
        "trainer.accelerator": "cpu",
    }
    return measuring.words(["env/alfworld"], chosen)


def plain(model: Any, batch: Any) -> None:
    """Forward and backward of all weights, two rows at a time."""
    lengths = batch.attention_mask.sum(1)
    model.zero_grad()
    for rows in lengths.argsort(descending=True).split(2):
        length = int(lengths[rows].max())
        ids, attention, mask = (t[rows, :length] for t in (batch.ids, batch.attention_mask, batch.loss_mask))
        hidden = model.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        predicts = mask[:, 1:].bool()
        logits = model.get_output_embeddings()(hidden[:, :-1][predicts]).float()
        torch.nn.functional.cross_entropy(logits, ids[:, 1:][predicts]).backward()


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    measuring.begin(given)
    if given.quick:
        given.rows = 2

    def work(run: Run) -> list[object]:
        from transformers import AutoModelForCausalLM

        module = run.module
        model = AutoModelForCausalLM.from_pretrained(measuring.smollm2(), dtype=torch.bfloat16).train()
        rate = measuring.matrix_rate(torch.bfloat16)
        ours, theirs, tokens, least = Times(), Times(), [], []
        seen: list[Any] = []
        observe = module.observe_tokens
        module.observe_tokens = lambda batch: seen.append(batch) or observe(batch)
        for number in range(given.rounds + 1):
            phases = run.step(number)
            taken, _ = timed(lambda: plain(model, seen[-1]))
            if number:
                count = int(seen[-1].attention_mask.sum())
                depths = sum(n * (n + 1) // 2 for n in seen[-1].attention_mask.sum(1).tolist())
                ours.append((phases["update"], phases["update"]))
                theirs.append(taken)
                tokens.append(count)
                least.append(2 * measuring.operations(model, count, int(seen[-1].loss_mask.sum()), depths) / rate)
        return [
            f"{statistics.median(tokens):,.0f}",
            f"{statistics.median(ratios(tokens, theirs.cpu)):,.0f}",
            f"{statistics.median(ratios(tokens, ours.cpu)):,.0f}",
            f"**{spread(ratios(theirs.cpu, ours.cpu))}**",
            f"{statistics.median(ratios(ours.cpu, least)):.1f}",
        ]

    row = measuring.inside([settings(given)], work)
    measuring.tell(
        given,
        "Update of 135 M parameters in bfloat16, with adapters",
        f"Tokens a processor second, medians of {given.rounds} interleaved pairs; rank {given.rank}.",
        measuring.table(["tokens", "all weights, plain", "adapters, ours", "ratio", "times the limit"], [row]),
    )


if __name__ == "__main__":
    measuring.run(main)
