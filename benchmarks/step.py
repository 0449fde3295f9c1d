"""Scoring and updating, and whole GRPO steps, against TRL's GRPOTrainer in the same world.

    python benchmarks/step.py [--policies 1M 25M] [--what update step] [--rounds 5] [--rows 16] [--quick]

`update`: both are given the same recorded rows and make one optimizer step of them: old log-probabilities, loss, backward, AdamW.
`step`: both play first, the same tasks of the household; TRL through a `rollout_func` that asks `generate` for each turn of all running
episodes. There is no reference (coefficient zero); TRL takes the log-probabilities of its one pass for the old ones. Rewards are 0 and
1 in turn, so that every row counts. The limit: forward and backward of the prefix tree of the rows, three times the operations of a
forward pass, at the rate of a large matrix product; of a whole step, one more pass to play them.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import measuring
import torch
from measuring import Run, Times, ratios, spread, timed
from rollout import POLICIES


def settings(policy: str, quick: bool) -> list[str]:
    tasks, attempts, turns, tokens, precision = POLICIES[policy]
    if quick:
        tasks, turns = min(tasks, 2), min(turns, 4)
    chosen = {
        **measuring.policy(policy),
        "model.sampler.max_new_tokens": tokens,
        "model.updates_per_rollout": 1,
        "model.kl_coef": 0.0,
        "model.entropy_coef": 0.0,
        "model.invalid_penalty": 0.0,
        "model.optimizer.lr": 1e-9,  # neither shall learn: the episodes would change
        "data.tasks_per_step": tasks,
        "data.group_size": attempts,
        "data.env.horizon": turns,
        "data.val_tasks": 2,
        "trainer.precision": precision,
    }
    return measuring.words(["quickstart/sdar"], {"model": "GRPO"} | chosen)


def recorded(episodes: list[Any]) -> dict[str, Any]:
    """Episodes of one row each, in TRL's words."""
    rows = []
    for turns in map(measuring.turns, episodes):
        ids, mask = list(turns[0][1]), [1] * len(turns[0][1])
        for (before, said, _), (prompt, response, _) in itertools.pairwise(turns):
            told = prompt[len(before) + len(said) :]
            ids, mask = ids + told + response, mask + [0] * len(told) + [1] * len(response)
        rows.append((turns[0][0], ids, mask))
    prompts, ids, masks = map(list, zip(*rows, strict=True))
    return {"prompt_ids": prompts, "completion_ids": ids, "logprobs": None, "env_mask": masks}


def played(model: Any, module: Any, tasks: Any) -> dict[str, Any]:
    """The attempts at the tasks of a step, by `generate`: each turn's prompts together, padded on the left."""
    from transformers import GenerationConfig

    sampler, chat, world = module.rollout.sampler, module.chat, module.tasks.only
    stop = sorted(sampler.stop_ids)
    config = GenerationConfig(
        max_new_tokens=sampler.max_new_tokens, do_sample=True, top_k=0, top_p=1.0, eos_token_id=stop, pad_token_id=stop[0],
        suppress_tokens=list(sampler.forbidden_ids) or None,
    )  # fmt: skip
    wanted = [task for part in tasks.parts for task in part.tasks for _ in range(part.attempts)]
    envs = [copy.deepcopy(world.env) for _ in wanted]
    prompts, ids, masks = [], [[] for _ in wanted], [[] for _ in wanted]
    for env, task in zip(envs, wanted, strict=True):
        prompts.append(chat.prompt(world.protocol.opening(task, env.reset(task), env.admissible())))
    live = list(range(len(wanted)))
    for _ in range(module.rollout.horizon):
        told = [prompts[e] + ids[e] for e in live]
        longest = max(map(len, told))
        padded = torch.tensor([[stop[0]] * (longest - len(row)) + row for row in told])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in told])
        with torch.no_grad():
            out = model.generate(padded, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        for e, response in zip(list(live), out, strict=True):
            end = next((i + 1 for i, token in enumerate(response) if token in stop), len(response))
            response = response[:end]
            ids[e], masks[e] = ids[e] + response, masks[e] + [1] * end
            action, _ = world.protocol.parse(chat.decode(response), envs[e].admissible())
            result = envs[e].step(action)
            if result.done:
                live.remove(e)
                continue
            reply = chat.reply(world.protocol.answer(result.observation, envs[e].admissible()), ended=response[-1] in stop)
            ids[e], masks[e] = ids[e] + reply, masks[e] + [0] * len(reply)
        if not live:
            break
    for e in live:  # what the world said last answers nobody
        while masks[e] and not masks[e][-1]:
            ids[e].pop(), masks[e].pop()
    return {"prompt_ids": prompts, "completion_ids": ids, "logprobs": None, "env_mask": masks}


def clock(found: Times, before: Callable[[int], None], after: Callable[[int], None]) -> Any:
    """A callback of transformers' Trainer that adds the seconds of each step to `found`; `before` and `after` are called around each
    step, with its number, and not counted."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            before(state.global_step)
            self.watch = measuring.watch()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found.append(self.watch())
            after(state.global_step - 1)

    return Clock()


def options(folder: str, rows: int, micro_batch: int, steps: int) -> dict[str, Any]:
    """Of TRL's trainers: steps of all rows, in pieces, that change nothing."""
    return {
        "output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "max_steps": steps, "learning_rate": 1e-9, "weight_decay": 0.0, "lr_scheduler_type": "constant",
        "disable_tqdm": True, "dataloader_pin_memory": False, "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": rows // micro_batch, "max_completion_length": 8192,
    }  # fmt: skip


def compared(tokens: Sequence[int], theirs: Times, ours: Times, least: Sequence[float]) -> list[object]:
    """Cells of a table: tokens, their seconds, ours, both ratios, and ours over the limit; first steps are not counted."""
    theirs, ours = Times(theirs[1:]), Times(ours[1:])
    return [
        f"{statistics.median(tokens[1:]):,.0f}",
        spread(theirs.cpu),
        spread(ours.cpu),
        f"**{spread(ratios(theirs.cpu, ours.cpu))}**",
        spread(ratios(theirs.clock, ours.clock)),
        f"{statistics.median(ratios(ours.cpu, least[1:])):.1f}",
    ]


def theirs(module: Any, rows: int, micro_batch: int, steps: int, rollout: Callable[[Any, int], Any],
           before: Callable[[int], None], after: Callable[[int], None]) -> Times:  # fmt: skip
    """TRL's trainer with our policy: the seconds of its steps. `rollout` is given the model and the step's number, `before` and `after`
    are called around each step and not counted."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    found = Times()

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        trainer.model.eval()
        out = rollout(trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step)
        trainer.model.train()
        return out

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(**options(folder, rows, micro_batch, steps), num_generations=2, beta=0.0)
        GRPOTrainer(
            model=copy.deepcopy(module.model), args=config, rollout_func=rollouts, processing_class=module.chat.tokenizer,
            reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))], callbacks=[clock(found, before, after)],
            train_dataset=Dataset.from_dict({"prompt": ["play"] * rows}),
        ).train()  # fmt: skip
    return found


def measure(policy: str, what: str, given: argparse.Namespace) -> list[object]:
    """A row of the table."""
    measuring.need("trl")

    def work(run: Run) -> list[object]:
        module = run.module
        rate = measuring.matrix_rate(next(module.model.parameters()).dtype)
        ours, least, tokens, known = Times(), [], [], {}
        collect = module.collect

        def before(number: int) -> None:
            if what == "update":
                run.at(number)
                known[number] = collect(module.tasks.step(module.seed, number))
                module.collect = lambda tasks: known[number]

        def after(number: int) -> None:
            taken, _ = timed(lambda: run.step(number))
            ours.append(taken)
            episodes = known.get(number) or run.play(number)
            told = [prompt + said for e in episodes for prompt, said, _ in measuring.turns(e)[-1:]]
            nodes, depths = measuring.tree(told)
            passes = 4 if what == "step" else 3
            responses = sum(e.response_tokens for e in episodes)
            least.append(passes * measuring.operations(module.model, nodes, responses, depths) / rate)
            tokens.append(sum(map(len, told)))

        def rollout(model: Any, number: int) -> dict[str, Any]:
            return (
                recorded(known[number]) if what == "update" else played(model, module, module.tasks.step(module.seed, number))
            )

        rows = sum(part.attempts * len(part.tasks) for part in module.tasks.step(module.seed, 0).parts)
        micro_batch = min(rows, given.rows)
        other = theirs(module, rows, micro_batch, given.rounds + 1, rollout, before, after)
        return [policy, what, *compared(tokens, other, ours, least)]

    return measuring.inside([settings(policy, given.quick)], work)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["1M", "25M"])
    parser.add_argument("--what", nargs="+", choices=["update", "step"], default=["update", "step"])
    parser.add_argument("--rows", type=int, default=16, help="rows of TRL's micro-batch")
    given = parser.parse_args()
    measuring.begin(given)
    columns = ["policy", "what", "tokens of rows", "TRL, s", "ours, s", "ratio", "by the clock", "times the limit"]
    rows = [measure(policy, what, given) for policy in given.policies for what in given.what]
    measuring.tell(
        given,
        "A GRPO step against TRL's",
        f"Processor seconds, medians [least, most] of {given.rounds} interleaved pairs. TRL's micro-batch has {given.rows} rows.",
        measuring.table(columns, rows),
    )


if __name__ == "__main__":
    measuring.run(main)
