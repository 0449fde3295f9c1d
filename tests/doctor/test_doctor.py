"""`sdar doctor`: every planted mistake is found and told with its remedy, and nothing in a run that has none."""

import json
import re
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chats import sums, written
from examined import examined
from families import FAMILIES, tokenizer_of
from planned import fresh

from sdar import versions
from sdar.cli import main
from sdar.corrections import TruncatedCorrection
from sdar.data import ChatModule
from sdar.divergences import TopKReverseKL
from sdar.doctor.findings import Findings
from sdar.envs import HouseholdEnv, SearchEnv, WebShopHTTPEnv
from sdar.errors import ConfigError
from sdar.judges import EndpointJudge
from sdar.plan.run import Launch
from sdar.policies import FreshPolicy, PretrainedPolicy
from sdar.retrievers import FullRetriever, KeywordRetriever
from sdar.samplers import ServerSampler, VLLMSampler
from sdar.search import HTTPBackend
from sdar.strategies import GRPO, OPD, SDAR, SFT, CriticSearch, TopKOPD
from sdar.teachers import ExternalTeacher, LiveTeacher, RoutedTeacher, ServedTeacher, SkillView, SolutionView

NOWHERE = "http://127.0.0.1:9"
QUICKSTART = Path("conf/quickstart/policy")


class Spoken(FreshPolicy):
    """The fresh policy with another chat template, or without one."""

    def __init__(self, template: str | None):
        self.__dict__ |= vars(fresh(context=1024))
        self.name, self.template = "the policy", template

    def load_tokenizer(self) -> Any:
        return tokenizer_of(replace(FAMILIES["qwen3"], template=self.template))


def unknown_words() -> Any:
    """A policy whose tokenizer is another one's."""
    policy = fresh(context=1024)
    policy._tokenizer = tokenizer_of(FAMILIES["qwen3"])
    return policy


def no_ending() -> str:
    return "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }} {% endfor %}"


def long_skill(folder: Path) -> FullRetriever:
    (folder / "bank").mkdir()
    (folder / "bank" / "mapping.yaml").write_text("endless: {file: endless.md, always: true}")
    (folder / "bank" / "endless.md").write_text("look again and " * 400)
    return FullRetriever(str(folder / "bank"))


def kept_manner(folder: Path, tiny: Path) -> PretrainedPolicy:
    shutil.copytree(tiny, folder / "told")
    (folder / "told/sdar.json").write_text(json.dumps({"protocol": "SearchProtocol", "layout": "turn", "chat_options": {}}))
    return PretrainedPolicy(str(folder / "told"))


def full_folder(folder: Path) -> str:
    (folder / "made").mkdir()
    (folder / "made" / "model.safetensors").write_text("")
    return str(folder / "made")


REPEATING = {"receptacles": 6, "rooms": 1, "distractors": 0, "instances": 1, "usual_share": 1.0, "world": 0, "horizon": 4}

MISTAKES: dict[str, tuple[Callable[[SimpleNamespace], Findings], str]] = {
    "skills that reach nobody": (
        lambda at: examined(view=SolutionView()),
        r"model\.retriever is set, but SolutionView tells nothing that was retrieved.*Use SkillView, or no retriever",
    ),
    "a teacher that is told nothing": (
        lambda at: examined(OPD, teacher=LiveTeacher(), view=SkillView()),
        r"model\.retriever is not set: the teacher would see nothing more than the student\. Give a retriever",
    ),
    "a bank of another world": (
        lambda at: examined(retriever=KeywordRetriever("conf/skills/webshop")),
        r"conf/skills/webshop has a skill for 0 of 6 tasks of this run: it is for the families",
    ),
    "a rollout ahead in one process": (
        lambda at: examined(rollouts_ahead=1),
        r"model\.rollouts_ahead is 1, but TorchSampler samples in the process that trains.*set it to 0",
    ),
    "a loss scale": (
        lambda at: examined(launch=Launch(precision="16-mixed")),
        r"trainer\.precision is 16-mixed.*Use bf16-mixed, or DeepSpeed",
    ),
    "GPUs that are not there": (
        lambda at: examined(given={"accelerator": "gpu"}, launch=Launch(kind="ddp", ranks=64)),
        r"trainer\.accelerator is gpu with 64 devices a node, and this machine has \d+: .*set trainer\.accelerator to cpu",
    ),
    "a GPU without bfloat16": (
        lambda at: (
            at.patch(torch.cuda, "device_count", lambda: 1),
            at.patch(torch.cuda, "get_device_capability", lambda device: (7, 5)),
            at.patch(torch.cuda, "get_device_name", lambda: "Old"),
            examined(launch=Launch(precision="bf16-mixed")),
        )[-1],
        r"trainer\.precision is bf16-mixed, and Old does not multiply bfloat16 itself: .*or 32-true",
    ),
    "a teacher of another family": (
        lambda at: examined(OPD, teacher=ExternalTeacher(unknown_words())),
        r"have different tokenizers: \d+ of \d+ tokens differ.*Use a teacher of the student's family",
    ),
    "a teacher without room": (
        lambda at: examined(OPD, teacher=ExternalTeacher(fresh(context=40))),
        r"the teacher's context is 40 tokens and sampler\.max_new_tokens is 40.*Use a teacher .* with a longer context",
    ),
    "a skill without room": (
        lambda at: examined(retriever=long_skill(at.folder)),
        r"the longest skill of .*, endless, makes a first prompt of \d+ tokens.*Shorten it, take it out",
    ),
    "a prompt without room": (
        lambda at: examined(policy=fresh(context=60)),
        r"tasks have a first prompt that does not fit: .*Leave them out with data\.leave_out",
    ),
    "no chat template": (
        lambda at: examined(GRPO, policy=Spoken(None)),
        r"has no chat template: .*Use an instruction-tuned model, or give the policy a `chat_template` file",
    ),
    "no end of turn": (
        lambda at: examined(GRPO, policy=Spoken(no_ending())),
        r"puts no end-of-turn token behind an assistant message.*Use a template that closes each turn",
    ),
    "a conversation that is no prefix of the next": (
        lambda at: examined(GRPO, policy=Spoken(FAMILIES["qwen3"].template)),
        r"data\.layout is trajectory, and the chat template of the policy tells past responses otherwise.*set data\.layout to turn",
    ),
    "another manner than it learned": (
        lambda at: examined(GRPO, policy=kept_manner(at.folder, at.tiny)),
        r"was trained with layout 'turn', here 'trajectory'.*Set the same in data",
    ),
    "tasks that training repeats": (
        lambda at: examined(
            data={
                "env": HouseholdEnv(families=["pick_and_place_simple"], **REPEATING),
                "train_tasks": 512,
                "val_tasks": 64,
                "val_splits": ["seen"],
            }
        ),
        r"\d+ of the 64 tasks of panel 'seen' are, but for their ids, tasks of training too.*A larger world",
    ),
    "no policy server": (
        lambda at: examined(GRPO, sampler=ServerSampler([NOWHERE], max_new_tokens=40)),
        r"no policy server answers at http://127\.0\.0\.1:9 .*start it with `sdar serve-policy`, or correct sampler\.urls",
    ),
    "no teacher server": (
        lambda at: examined(OPD, teacher=ServedTeacher([NOWHERE])),
        r"no policy server answers at http://127\.0\.0\.1:9 .*or correct teacher\.urls",
    ),
    "no judge": (
        lambda at: examined(CriticSearch, judge=EndpointJudge(f"{NOWHERE}/v1", "gpt", retries=0)),
        r"the judge 'gpt' at http://127\.0\.0\.1:9.* cannot be asked: .*Start the endpoint, or correct judge\.url",
    ),
    "no search server": (
        lambda at: examined(GRPO, {"env": SearchEnv(HTTPBackend(f"{NOWHERE}/retrieve"), passages=200)}),
        r"env\.backend: the search server http://127\.0\.0\.1:9/retrieve gave no usable answer.*Look at the server",
    ),
    "no shop": (
        lambda at: examined(GRPO, {"env": WebShopHTTPEnv(NOWHERE, pause=0)}),
        r"env\.url: the WebShop server gave no page .* in 1 tries .*Check that the server runs at env\.url",
    ),
    "no vLLM": (
        lambda at: (at.patch(sys.modules, "vllm", None), examined(policy=at.policy, sampler=VLLMSampler()))[-1],
        r"sampling with vLLM needs the package vllm .*install it, or run `sdar serve-policy`",
    ),
    "a support larger than the vocabulary": (
        lambda at: examined(TopKOPD, teacher=LiveTeacher(), divergence=TopKReverseKL(k=100_000)),
        r"divergence\.k is 100000, but the vocabulary of .* has \d+ tokens.*Use a smaller k",
    ),
    "a span that no response has": (
        lambda at: examined(span="think"),
        r"the span is 'think', but responses of CompactProtocol hold action: no token would be chosen.*Use one of them",
    ),
    "a correction without a sampler": (
        lambda at: examined(
            SFT, ChatModule(files=[written(at.folder / "chats.jsonl", *sums(4))]), correction=TruncatedCorrection()
        ),
        r"model\.correction is about episodes that the sampler plays, and SFT makes its episodes in another way.*Leave it out",
    ),
    "a family without a teacher": (
        lambda at: examined(teacher=RoutedTeacher({"cooking": LiveTeacher()})),
        r"is of family '\w+', for which teacher\.routes names no teacher.*Add it, or give a default",
    ),
    "one batch again and again": (
        lambda at: examined(trainer={"overfit_batches": 1}),
        r"trainer\.overfit_batches is 1.*set data\.train_tasks to data\.tasks_per_step",
    ),
    "epochs that never end": (
        lambda at: examined(trainer={"max_epochs": 3}),
        r"trainer\.max_epochs is 3: training is one epoch without an end\. Leave it out",
    ),
    "an optimizer that asks again": (
        lambda at: examined(optimizer=torch.optim.LBFGS),
        r"model\.optimizer: LBFGS\.step needs closure.*Use AdamW, SGD",
    ),
    "a schedule that ends before the run": (
        lambda at: examined(
            trainer={"max_steps": 50}, lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3, total_steps=20)
        ),
        r"OneCycleLR\.total_steps is 20 and trainer\.max_steps is 50.*Give both the same number",
    ),
    "an export over something": (
        lambda at: examined(export=full_folder(at.folder)),
        r"model\.export .* is a directory with something in it: nothing is written over\. Give another",
    ),
    "a disk that is full": (
        lambda at: (at.patch(shutil, "disk_usage", lambda place: Disk(10**6, 10**6, 10**5)), examined())[-1],
        r"0\.0 GiB are free at .*, and a checkpoint takes .* GiB .*Set trainer\.default_root_dir to a larger disk",
    ),
    "no sandbox for code": (
        lambda at: examined(GRPO, {"env": at.unsafe_math()}),
        r"nothing isolates untrusted code on this machine: .*Install bubblewrap",
    ),
}
Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def at(tmp_path: Path, tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    def patch(owner: Any, name: str, value: Any) -> None:
        (monkeypatch.setitem if isinstance(owner, dict) else monkeypatch.setattr)(owner, name, value)

    def unsafe_math() -> Any:
        from sdar.envs import MathEnv
        from sdar.sandbox import choose

        error = ConfigError("nothing isolates untrusted code on this machine: no kernel. Install bubblewrap")
        monkeypatch.setattr(choose, "best_runner", lambda *settings: (_ for _ in ()).throw(error))
        monkeypatch.setattr(choose, "_chosen", {})
        return MathEnv(horizon=4)

    return SimpleNamespace(
        folder=tmp_path,
        tiny=tiny_policy_dir,
        patch=patch,
        unsafe_math=unsafe_math,
        policy=PretrainedPolicy(str(tiny_policy_dir)),
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_and_told_with_what_to_do(mistake: str, at: SimpleNamespace) -> None:
    make, told = MISTAKES[mistake]
    found = make(at)
    assert len([text for text in found if re.search(told, text, re.DOTALL)]) == 1, found


def test_at_least_fifteen_mistakes_are_planted() -> None:
    assert len(MISTAKES) >= 15


@pytest.mark.parametrize("strategy", [GRPO, SDAR])
def test_nothing_is_found_in_a_run_without_a_mistake(strategy: type) -> None:
    assert examined(strategy) == []


def test_one_mistake_does_not_hide_the_others(at: SimpleNamespace) -> None:
    found = examined(
        rollouts_ahead=1,
        view=SolutionView(),
        span="think",
        export=full_folder(at.folder),
        trainer={"overfit_batches": 1},
        optimizer=torch.optim.LBFGS,
        launch=Launch(precision="16-mixed"),
    )
    keys = ("16-mixed", "overfit_batches", "rollouts_ahead", "retriever is set", "model.export", "the span is", "LBFGS.step")
    assert len(found) == len(keys) and all(key in text for key, text in zip(keys, found, strict=True)), found


SHIPPED = {
    "quickstart": ["-c", "conf/quickstart/sdar.yaml"],
    "quickstart's teacher": ["-c", "conf/quickstart/teacher.yaml"],
    "quickstart's policy": ["-c", "conf/quickstart/warmup.yaml"],
    "measured": ["-c", "conf/quickstart/sdar.yaml", "--model", "SkillPrompt", "--stage", "validate"],
} | {
    world: [word for file in (f"env/{world}", f"method/{method}", "scale/tiny") for word in ("-c", f"conf/{file}.yaml")]
    for world, method in (("code_tiny", "grpo"), ("math_tiny", "gigpo"), ("search_tiny", "grpo"), ("webshop_tiny", "grpo"))
}


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_found_in_what_is_shipped(
    name: str, own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "complaints", list)  # this machine may have other versions
    assert main(["doctor", *SHIPPED[name]]) == 0
    told = capsys.readouterr().out
    assert told.endswith("\n0 findings\n") and re.search(r"^  method +\w+, 1 process, 32-true$", told, re.MULTILINE)
    assert list(own_folder.iterdir()) == [], "nothing is left"


def test_the_machine_alone_is_looked_at_without_a_configuration(
    own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "complaints", lambda: ["torch 9.9 is installed, sdar was tested with torch<2.14."])
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(2**40, 2**39, 2**29))
    assert main(["doctor", "--json", "found.json"]) == 1
    told, found = capsys.readouterr().out, json.loads(Path("found.json").read_text())
    assert "3 findings:\n  1. torch 9.9 is installed" in told and "  2. 0.50 GiB are free at " in told
    assert found["findings"][0] in told and found["facts"]["torch"].startswith(torch.__version__)
    assert {"accelerator", "deepspeed", "vllm", "sandbox", "disk here"} <= found["facts"].keys()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--data.val_splits", "[train]"], 1, "1 finding:\n  1. panels 'train' and 'train' share"),
        (["--data.deadline", "3"], 1, "1. data.deadline is 3.0 seconds, but the world runs in this process"),
        (["--trainer.strategy", "fsdp", "--trainer.devices", "2"], 1, "1. trainer.strategy is fsdp, torch's first FSDP"),
        (
            ["--trainer.strategy", "deepspeed_stage_2"],
            1,
            "1. trainer.strategy is DeepSpeed's, and the package deepspeed is not",
        ),
        (["--model.retreiver", "NoRetriever"], 2, "SDAR takes no 'retreiver'"),
        (["--json", "no/found.json"], 2, "--json no/found.json: there is no folder no. Make it"),
        (["--patience", "0"], 2, "--patience is 0.0: it must be more than 0 seconds"),
    ],
)
def test_settings_of_which_no_run_can_be_made_are_findings(
    words: list[str],
    code: int,
    told: str,
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "complaints", list)
    monkeypatch.setattr("sdar.distributed.zero.find_spec", lambda name: None)
    assert main(["doctor", "-c", "conf/quickstart/sdar.yaml", *words]) == code
    out, err = capsys.readouterr()
    assert told in (out if code == 1 else err)


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "sdar doctor -c conf/quickstart/sdar.yaml" in told and "0 nothing was found, 1 something was" in told
    assert "--patience" in told and "--stage" in told
