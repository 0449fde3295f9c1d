"""Scoring and updating by distillation on identical rows, against TRL's DistillationTrainer.

    python benchmarks/distillation.py [--policies 1M 25M] [--rounds 5] [--rows 16] [--quick]

Both are given the same recorded rows of the household and the quickstart's external teacher, and make one optimizer step of the reverse
KL over the whole vocabulary, mean over the response tokens: teacher's pass, loss, backward, AdamW. The limit: forward and backward of the
prefix tree of the rows and the teacher's forward pass, at the rate of a large matrix product.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import measuring
from measuring import Run, Times, ratios, spread, timed
from rollout import POLICIES
from step import recorded

TEACHER = "conf/quickstart/teacher"


def settings(policy: str, quick: bool) -> list[str]:
    tasks, attempts, turns, tokens, precision = POLICIES[policy]
    if quick:
        tasks, turns = min(tasks, 2), min(turns, 4)
    chosen = {
        **measuring.policy(policy),
        "model.teacher": "ExternalTeacher",
        "model.teacher.policy": "PretrainedPolicy",
        "model.teacher.policy.path": TEACHER,
        "model.view": "PlainView",
        "model.retriever": "null",
        "model.divergence": "ReverseKL",
        "model.sampler.max_new_tokens": tokens,
        "model.updates_per_rollout": 1,
        "model.optimizer.lr": 1e-9,  # neither shall learn: the episodes would change
        "data.tasks_per_step": tasks,
        "data.group_size": attempts,
        "data.env.horizon": turns,
        "data.val_tasks": 2,
        "trainer.precision": precision,
    }
    return measuring.words(["quickstart/sdar"], {"model": "OPSD"} | chosen)


def theirs(module: Any, rows: int, micro_batch: int, steps: int, known: dict[int, list[Any]],
           before: Callable[[int], None], after: Callable[[int], None]) -> Times:  # fmt: skip
    """TRL's trainer with our policy and teacher on recorded rows: the seconds of its steps; `before` and `after` are called around each
    step and not counted."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    found = Times()

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            before(state.global_step)
            self.watch = measuring.watch()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found.append(self.watch())
            after(state.global_step - 1)

    class Recorded(DistillationTrainer):
        def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
            told = recorded(known[self.state.global_step])
            return told["prompt_ids"], told["completion_ids"], told["env_mask"], None, []

    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
            logging_steps=1, max_steps=steps, learning_rate=1e-9, weight_decay=0.0, lr_scheduler_type="constant", disable_tqdm=True,
            dataloader_pin_memory=False, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=rows // micro_batch,
            max_completion_length=8192, beta=1.0,
        )  # fmt: skip
        Recorded(
            model=copy.deepcopy(module.model), teacher_model=copy.deepcopy(next(iter(module.teacher_networks.values()))), args=config,
            processing_class=module.chat.tokenizer, callbacks=[Clock()],
            train_dataset=Dataset.from_dict({"prompt": ["play"] * rows}),
        ).train()  # fmt: skip
    return found


def measure(policy: str, given: argparse.Namespace) -> list[object]:
    """A row of the table."""
    measuring.need("trl")

    def work(run: Run) -> list[object]:
        module = run.module
        rate = measuring.matrix_rate(next(module.model.parameters()).dtype)
        ours, least, tokens, known = Times(), [], [], {}
        collect = module.collect

        def before(number: int) -> None:
            run.at(number)
            known[number] = collect(module.tasks.step(module.seed, number))
            module.collect = lambda tasks: known[number]

        def after(number: int) -> None:
            ours.append(timed(lambda: run.step(number))[0])
            nodes, depths = measuring.tree([p + said for e in known[number] for p, said, _ in measuring.turns(e)[-1:]])
            responses = sum(e.response_tokens for e in known[number])
            teacher = next(iter(module.teacher_networks.values()))
            passes = [(3, module.model), (1, teacher)]
            least.append(sum(n * measuring.operations(model, nodes, responses, depths) for n, model in passes) / rate)
            tokens.append(nodes)

        rows = sum(part.attempts * len(part.tasks) for part in module.tasks.step(module.seed, 0).parts)
        other = Times(theirs(module, rows, min(rows, given.rows), given.rounds + 1, known, before, after)[1:])
        mine = Times(ours[1:])
        return [
            policy,
            f"{statistics.median(tokens[1:]):,.0f}",
            spread(other.cpu),
            spread(mine.cpu),
            f"**{spread(ratios(other.cpu, mine.cpu))}**",
            spread(ratios(other.clock, mine.clock)),
            f"{statistics.median(ratios(mine.cpu, least[1:])):.1f}",
        ]

    return measuring.inside([settings(policy, given.quick)], work)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["1M", "25M"])
    parser.add_argument("--rows", type=int, default=16, help="rows of TRL's micro-batch")
    given = parser.parse_args()
    measuring.begin(given)
    columns = ["policy", "tokens of the tree", "TRL, s", "ours, s", "ratio", "by the clock", "times the limit"]
    measuring.tell(
        given,
        "A step of distillation against TRL's",
        f"Processor seconds, medians [least, most] of {given.rounds} interleaved pairs. TRL's micro-batch has {given.rows} rows.",
        measuring.table(columns, [measure(policy, given) for policy in given.policies]),
    )


if __name__ == "__main__":
    measuring.run(main)
