"""`sdar plan`: the command and its page."""

import json
import re
from pathlib import Path

import pytest
from planned import files

from sdar import plan

ALFWORLD = files("env/alfworld", "method/sdar", "policy/qwen2.5-3b", "scale/8gpu_zero2")


def test_the_command_plans_a_run_for_eight_gpus_where_there_is_none(sdar, hub, tmp_path):
    code, out, _ = sdar(
        "plan", *ALFWORLD, "--configs", str(hub), "--json", "plan.json", "--data.train_tasks", "8", "--data.val_tasks", "2"
    )
    assert code == 0
    assert "two steps with tiny models on the CPU: no mistake" in out and "data.env.horizon 5 instead of 50" in out
    assert "8 rank(s) on 1 node(s), ZeRO-2, bf16-mixed" in out
    assert "Qwen2ForCausalLM, 3.09 B parameters, 3.09 B trained; 36 layers" in out
    assert re.search(r"^  weights: initial copy +11.50( +5.75){5}$", out, re.MULTILINE)
    assert re.search(r"^fits: [\d.]+ GiB in the \w+ phase of 79.1 GiB \(h100\), [\d.]+ GiB are left.$", out, re.MULTILINE)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["counts"]["episodes"] == 128 and found["counts"]["turns"] == 6400
    assert found["run"]["work"]["passes"] == {"policy": 1.0, "reference": 1.0, "teacher": 1.0}
    assert found["run"]["work"]["told"] > 0  # the teacher's skills
    assert found["fits"] and sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]  # and nothing else is left


def test_what_does_not_fit_is_told_with_settings_that_make_it_fit(sdar, hub):
    args = ["--configs", str(hub), "--dry_run", "false", "--row_tokens", "4096"]
    one = files("env/alfworld", "method/sdar", "policy/qwen2.5-3b", "scale/1gpu")
    code, out, _ = sdar("plan", *one, *args, "--gpu", "rtx4090", "--model.policy.gradient_checkpointing", "false")
    assert code == 0
    assert re.search(r"does not fit: [\d.]+ GiB in the \w+ phase of 23.5 GiB \(rtx4090\), [\d.]+ GiB too much", out)
    advised = re.findall(r"^ +[\d.]+ GiB  (fits|not enough alone) +(.*)$", out, re.MULTILINE)
    assert {"--model.policy.gradient_checkpointing true", "LoRAPolicy (conf/policy/qwen3-1.7b_lora.yaml), rank 64"} <= {
        w for _, w in advised
    }
    assert "fits" in {verdict for verdict, _ in advised}
    for _, what in advised:  # each is something that `fit` takes
        options = [
            word
            for word in re.sub(r"\(.*?\)|and|on other GPUs|LoRAPolicy.*", "", what).split()
            if word not in ("a", "smaller")
        ]
        if "--model.sampler" in options:
            options += ["--model.sampler.urls", "[http://127.0.0.1:1]"]
        if options and "--data.val_batch" not in options:
            assert sdar("fit", *one, *options, "--print_config")[0] == 0, what


@pytest.mark.parametrize(
    "args, message",
    [
        (["--gpu", "h10"], "--gpu h10: not in the table. Did you mean 'h100'? Known: a100-40"),
        (["--ranks", "0"], "--ranks is 0: a run has at least 1."),
        (["--ranks", "2", "--nodes", "4"], "--ranks 2 on --nodes 4: each node has at least 1 rank."),
        (["--turns", "99"], "--turns is 99: a mean lies above 0 and is at most 12, which data.env.horizon allows."),
        (
            ["--response_tokens", "13"],
            "--response_tokens is 13: a mean lies above 0 and is at most 12, which model.sampler.max_new_tokens",
        ),
        (
            ["--row_tokens", "4096"],
            "--row_tokens is 4096: a row holds a prompt and a response of up to 12 tokens, and fits the context of 1024.",
        ),
        (["--json", "nowhere/plan.json"], "--json nowhere/plan.json: there is no folder nowhere. Make it"),
        (["--trainer.strategy", "fsdp", "--trainer.devices", "2"], "trainer.strategy is fsdp, torch's first FSDP"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_run(sdar, args, message):
    code, _, err = sdar("plan", *files("quickstart/sdar"), *args)
    assert code == 2
    assert message in err and "Traceback" not in err


def test_a_mistake_of_the_settings_ends_with_the_message_of_fit(sdar):
    """Each appears when a run has begun, and not when its settings are read."""
    small = ["--trainer.limit_val_batches", "0", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]
    for wrong in (
        ["--model.retriever", "null"],
        ["--data.env.receptacles", "6", "--model.sampler.forbid", "[nothing_of_this_name]"],
    ):
        told = []
        for command in ("plan", "fit"):
            code, _, err = sdar(command, *files("quickstart/sdar"), *wrong, *(small if command == "fit" else []))
            assert code == 2
            told.append(next(line for line in err.splitlines() if line.startswith("error: ")))
        assert told[0] == told[1]


def test_ranks_and_means_can_be_given(sdar):
    args = [
        "--dry_run",
        "false",
        "--ranks",
        "16",
        "--nodes",
        "4",
        "--turns",
        "6",
        "--response_tokens",
        "8",
        "--row_tokens",
        "200",
    ]
    code, out, _ = sdar("plan", *files("quickstart/sdar"), *args, "--gpu", "l40s")
    assert code == 0
    assert "16 rank(s) on 4 node(s), ddp, 32-true" in out and "GiB in the main memory of each node (4 process(es))" in out
    assert re.search(r"^  response tokens +3,072$", out, re.MULTILINE)  # 64 episodes x 6 turns x 8
    assert "two steps" not in out and "every row is taken to have 200 tokens" in out


PAGE = Path(__file__).parents[2].joinpath("docs", "scaling.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].split()
    for line in re.sub(r"\\\n\s*", " ", PAGE).splitlines()
    if re.match(r" {4}(srun |torchrun .*-m )?sdar (fit|plan) ", line)
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_of_the_page_parse(sdar, words):
    assert sdar(*words[words.index("sdar") + 1 :], "--print_config")[0] == 0


def test_the_page_names_what_exists():
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`((?:conf|docs|sdar|benchmarks)/[\w./-]+\w)`", PAGE)) | {
        f"docs/{p}" for p in re.findall(r"\]\((\w+\.md)\)", PAGE)
    }
    assert len(COMMANDS) >= 6 and [path for path in sorted(named) if not (root / path).exists()] == []
    assert all(f"`{name}`" in PAGE for name in plan.GPUS)
