"""Settings that do not go together are refused before anything is loaded."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sdar.corrections import NoCorrection
from sdar.data import TaskModule, TaskSource
from sdar.errors import ConfigError, PolicyError
from sdar.registry import part_name
from sdar.skills.skill import retrieval
from sdar.training.host import Host
from sdar.types import Episode, Request, Row, TeacherSignal


def setting_checks(module: Host, data: TaskSource) -> list[Callable[[], None]]:
    """What is looked at in a strategy and its tasks before anything is loaded; each is to be called, and none needs another one.

    Raises:
        ConfigError: (when called) an option could have no effect, or a teacher would be told nothing.
        SkillBankError: (when called) the skills are of another world.
    """
    return [
        partial(_check_sampling, module),
        partial(check_loss_scale, getattr(module.trainer.precision_plugin, "scaler", None) is not None),
        partial(_check_teacher, module),
        partial(_check_teacher_tasks, module, data),
        partial(_check_retriever, module),
        partial(_check_banks, module, data),
    ]


def check_loss_scale(scaled: bool) -> None:
    """Raise ConfigError where gradients would be multiplied by a loss scale that nobody takes off."""
    if scaled:
        raise ConfigError(
            "trainer.precision is 16-mixed: its gradients are multiplied by a loss scale, and would be clipped and judged with it. Use "
            "bf16-mixed, or DeepSpeed (trainer.strategy deepspeed_stage_1), which takes the scale off itself."
        )


def _check_teacher_tasks(module: Host, data: TaskSource) -> None:
    if module.teacher is not None:
        module.teacher.check_tasks(data.some_tasks())


def _check_retriever(module: Host) -> None:
    """Raise ConfigError where skills would reach nobody, or a teacher would be told none."""
    if module.retriever is not None and not module.view.uses_retrieval():
        raise ConfigError(
            f"model.retriever is set, but {part_name(module.view)} tells nothing that was retrieved: the skills would reach nobody. "
            "Use SkillView, or no retriever (null)."
        )
    if module.retriever is None and module.teacher is not None and module.view.uses_retrieval():
        raise ConfigError(
            f"{part_name(module.view)} tells the teacher what a retriever found, and model.retriever is not set: the teacher would "
            "see nothing more than the student. Give a retriever, or another view."
        )


def _check_banks(module: Host, data: TaskSource) -> None:
    """Raise SkillBankError where a bank is of another world."""
    for name, world in data.worlds.items():
        if module.retriever is not None and (bank := module.retriever.bank_of(name)) is not None:
            bank.check_world(world.first_tasks())


def check_support(module: Host) -> None:
    """Raise ConfigError where an objective wants more of the teacher's likeliest tokens than there are tokens."""
    if module.top_k > module.scorer.vocab_size:
        raise ConfigError(
            f"divergence.k is {module.top_k}, but the vocabulary of {module.policy.name} has {module.scorer.vocab_size} tokens: the "
            "support cannot be larger. Use a smaller k, or a divergence over the whole vocabulary."
        )


def check_longest_skills(module: Host) -> None:
    """Warn where the longest skill of a bank, alone, leaves no room for a response in the context of who is told of it."""
    sees = "policy" if module.student_sees_skills else "teacher"
    if module.retriever is None or (module.teacher is None and not module.student_sees_skills):
        return
    for name, world in module.tasks.worlds.items():
        bank, task = module.retriever.bank_of(name), next(world.first_tasks(1), None)
        if not bank or task is None:
            continue
        skill = max(bank, key=lambda one: len(one.text))
        request = Request(task, 0, retrieval([skill]), True)
        request.privileged_text = module.view.text(request.begin(), (), 0, world.env)
        loop = module.rollout.of(task)
        prompt = len(loop.prompt(request.begin(), [], "", []))
        most = module.context if module.student_sees_skills else module.teacher_context(task)
        if prompt + loop.max_new_tokens > most:
            rank_zero_warn(
                f"the longest skill of {bank.source}, {skill.id}, makes a first prompt of {prompt} tokens: with the response (up to "
                f"{loop.max_new_tokens}) that is more than the {most} tokens that the {sees} can read. Nothing is cut: such a row is read "
                "without skills or left out. Shorten it, take it out of the bank, or use a longer context."
            )


def check_teacher_context(module: Host) -> None:
    """Look at how long a row each task's teacher can read; it is known when the teacher was prepared.

    Raises:
        ConfigError: not even a response and one token before it.
    """
    data = module.tasks
    tasks = {(task.world, task.family): task for task in data.some_tasks()}
    room = {(module.teacher_context(task), module.rollout.of(task).max_new_tokens) for task in tasks.values()}
    least, longest = min(room, key=lambda pair: pair[0] - pair[1], default=(module.context, module.sampler.max_new_tokens))
    if least <= longest:
        raise ConfigError(
            f"the teacher's context is {least} tokens and sampler.max_new_tokens is {longest}: a response alone would fill it, and "
            "nothing is cut. Use a teacher (or start its server) with a longer context, or shorter responses."
        )
    if least < module.context:
        rank_zero_info(
            f"the teacher can read {least} tokens, the policy {module.context}: a longer row is read without its privileged text, or "
            "left out (teacher/overflow_share). Give the teacher a longer context if episodes may become that long."
        )


def check_teacher_tokens(module: Host) -> None:
    """Look at added tokens of the student that the teacher has not: as nothing that it reads may hold them, none may be said, and the
    chat template may not write them before a response.

    Raises:
        PolicyError: one may.
    """
    lacks = {} if module.teacher is None else dict(module.teacher.lacks)
    said = [token for i, token in lacks.items() if i not in module.sampler.forbidden_ids]
    told = [token for i, token in lacks.items() if i in module.chat.generation_ids]
    if not (said or told):
        return
    tokenizer = module.chat.tokenizer
    forbid = [tokenizer.convert_ids_to_tokens(i) for i in sorted({*module.sampler.forbidden_ids, *lacks})]
    advice = f"forbid them (model.sampler.forbid: {json.dumps(forbid)}), or use" if not told else "Use"
    why = f"{module.policy.name}'s template writes {told[0]!r} before every response" if told else "a response may hold them"
    raise PolicyError(
        f"the teacher lacks {len(lacks)} added tokens of {module.policy.name} ({', '.join(lacks.values())}), and {why}: the teacher could "
        f"neither read nor score them. {advice[:1].upper()}{advice[1:]} a teacher of the student's family (conf/teacher)."
    )


def check_teacher_rows(module: Host, rows: Iterable[Row], episodes: Sequence[Episode]) -> None:
    """
    Raises:
        PolicyError: a row holds a token that the teacher lacks.
    """
    lacks = {} if module.teacher is None else dict(module.teacher.lacks)
    for row in rows if lacks else ():
        if found := lacks.keys() & set(row.teacher_ids or ()):
            raise PolicyError(
                f"what the teacher reads of task {episodes[row.episode].task.id} holds {lacks[min(found)]!r}, which its vocabulary has "
                "not: what it says behind it would mean nothing. Use a teacher of the student's family (conf/teacher), or a protocol and "
                "template options that do not write it."
            )


def check_first_prompts(module: Host, data: TaskSource, seconds: float = 2.0) -> None:
    """Warn of tasks whose first prompt cannot fit, even before the world has said anything. Of each panel those with the longest
    instructions are looked at, in each world for at most so many `seconds`: what is found later ends one episode."""
    for world in data.worlds.values():
        _check_first_prompts(module, world, seconds)


def _check_first_prompts(module: Host, data: TaskModule, seconds: float) -> None:
    most_new = min(module.sampler.max_new_tokens, data.max_new_tokens or module.sampler.max_new_tokens)
    room = module.sampler.context - most_new
    if (most := data.env.longest_instruction) is not None and 2 * most <= room:
        return
    found: dict[str, int] = {}
    due = time.monotonic() + seconds
    for task_id in dict.fromkeys(task_id for panel in [*data.measured, data.train_panel] for task_id in panel.task_ids):
        if time.monotonic() > due:
            break
        if task_id in data.left_out:
            continue
        with contextlib.suppress(Exception):  # one that cannot be made is told when it is wanted
            task = data.task(task_id)
            if 2 * len(task.instruction.encode(errors="replace")) > room:  # fewer bytes are fewer tokens
                length = len(module.rollout.of(task).prompt(Episode(task, 0), [], "", []))
                if length > room:
                    found[task_id] = length
    if found:
        longest = max(found, key=found.__getitem__)
        named = ", ".join([*found][:10]) + (", ..." if len(found) > 10 else "")
        rank_zero_warn(
            f"{len(found)} tasks have a first prompt that does not fit: the longest, of {longest}, has {found[longest]} tokens, there is "
            f"room for {room} (context {module.sampler.context}, sampler.max_new_tokens {most_new}). They end "
            f"without a turn, and count as failed. Leave them out with data.leave_out: [{named}]"
        )


def _check_teacher(module: Host) -> None:
    """Raise ConfigError where a teacher that is elsewhere is asked for more than it can tell."""
    if module.teacher is None or module.teacher.acts:
        return
    if not module.teacher.shares_tokens:
        name, teacher = type(module).__name__, part_name(module.teacher)
        if module.teacher_signal != TeacherSignal.SAMPLED:
            raise ConfigError(
                f"{name} compares distributions over the vocabulary ({module.teacher_signal}), and {teacher} has a tokenizer of its own: "
                "only what was sampled can be compared, as spans of text. Use a method or an objective on sampled tokens (OPD, SOD, TCOD; "
                "K1PolicyGradient), or a teacher with the student's tokenizer (ExternalTeacher)."
            )
        if module.teacher_acts:
            raise ConfigError(
                f"{name} has its teacher act in training, and {teacher} has a tokenizer of its own, with which it only scores. Use a "
                "teacher with the student's tokenizer (ExternalTeacher), or another method."
            )
        return
    if module.teacher_signal == TeacherSignal.FULL:
        raise ConfigError(
            f"{type(module).__name__} needs the teacher's whole distribution, and model.teacher is asked in other processes: a hidden "
            "state for each token, and the head, would have to travel. Use an objective on the teacher's likeliest tokens (TopKReverseKL, "
            "TopKJensenShannon) or on sampled ones, or a teacher in the process (ExternalTeacher)."
        )
    if module.teacher_acts:
        raise ConfigError(
            f"{type(module).__name__} has its teacher act in training, and model.teacher is asked in other processes, where it only "
            "scores. Use a teacher in the process (ExternalTeacher), or another method."
        )


def _check_sampling(module: Host) -> None:
    """Raise ConfigError where an option about sampling could have no effect."""
    if module.rollouts_ahead and not module.sampler.works_alone:
        raise ConfigError(
            f"model.rollouts_ahead is {module.rollouts_ahead}, but {part_name(module.sampler)} samples in the process that trains: "
            "nothing could be done at the same time, and samples would only be older. Use ServerSampler and `sdar serve-policy`, or "
            "set it to 0."
        )
    if module.plays_attempts:
        return
    if module.rollouts_ahead or not isinstance(module.correction, NoCorrection):
        option = "rollouts_ahead" if module.rollouts_ahead else "correction"
        raise ConfigError(
            f"model.{option} is about episodes that the sampler plays, and {type(module).__name__} makes its episodes in another way: "
            "it would have no effect. Leave it out."
        )
