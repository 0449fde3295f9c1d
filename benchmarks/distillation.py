"""Scoring and updating by distillation on identical rows, against TRL's DistillationTrainer.

    python benchmarks/distillation.py [--policies 1M 25M] [--rounds 5] [--rows 16] [--quick]

Both are given the same recorded rows of the household and the quickstart's external teacher, and make one optimizer step of the reverse
KL over the whole vocabulary, mean over the response tokens: teacher's pass, loss, backward, AdamW. The limit: forward and backward of the
prefix tree of the rows and the teacher's forward pass, at the rate of a large matrix product.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from typing import Any

import measuring
from measuring import Run, Times, timed
from rollout import POLICIES
from step import clock, compared, options, recorded

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
    from trl import DistillationConfig, DistillationTrainer

    found = Times()

    class Recorded(DistillationTrainer):
        def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
            told = recorded(known[self.state.global_step])
            return told["prompt_ids"], told["completion_ids"], told["env_mask"], None, []

    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(**options(folder, rows, micro_batch, steps), beta=1.0)
        Recorded(
            model=copy.deepcopy(module.model), teacher_model=copy.deepcopy(next(iter(module.teacher_networks.values()))), args=config,
            processing_class=module.chat.tokenizer, callbacks=[clock(found, before, after)],
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
        other = theirs(module, rows, min(rows, given.rows), given.rounds + 1, known, before, after)
        return [policy, *compared(tokens, other, ours, least)]

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
