"""Rollouts without a model: tokenizers made on the spot, a sampler that reads from a script, a world that says given texts."""

import random
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdar.parts import Completion, Environment, SampleKey, Sampler, StepResult
from sdar.policies import world_tokenizer
from sdar.rollout.chat import ChatFormat
from sdar.types import Task

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_chat() -> ChatFormat:
    """Words and bytes, one control token a role: what `FreshPolicy` has."""
    corpus = ["You see a mug. Your task is to: put it away. <think>go to the shelf 1</think><action>look</action>"]
    return ChatFormat(world_tokenizer(corpus, ["You see a", "Your task is to:"], 300, 4096), name="words")


def byte_chat() -> ChatFormat:
    """Bytes, ChatML, and added tokens of which one is not special: the family of Qwen and many others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>"])
    return ChatFormat(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
        ),
        name="bytes",
    )


CHATS = {"words": word_chat, "bytes": byte_chat}


class ScriptedSampler(Sampler):
    """Says what `script` says to a draw: a text, which then ends properly, or ids as they are. Keeps what it was asked."""

    temperature = 1.0

    max_new_tokens = 8

    def __init__(self, script: Callable[[SampleKey], str | list[int]], chat: ChatFormat, context: int = 4096):
        self.script, self.chat = script, chat
        self.calls: list[list[tuple[SampleKey, list[int]]]] = []
        self.resets = 0
        self.bind(chat.tokenizer, chat.stop_ids, context)

    def bind(self, tokenizer: object, stop_ids: Sequence[int], context: int) -> None:
        self.context = context

    def reset(self) -> None:
        self.resets += 1

    def sample(self, model: object, prompts: Sequence[Sequence[int]], draws: Sequence[SampleKey]) -> list[Completion]:
        self.calls.append([(draw, list(prompt)) for draw, prompt in zip(draws, prompts, strict=True)])
        return [self._complete(draw) for draw in draws]

    def _complete(self, draw: SampleKey) -> Completion:
        said = self.script(draw)
        ids = self.chat.response(said) if isinstance(said, str) else list(said)
        logp = [-(draw.turn + 1) - position / 100 for position in range(len(ids))]  # recognisable: turn and position
        return Completion(ids, logp, [value / 10 for value in logp], bool(ids) and ids[-1] in self.chat.stop_ids)


def random_ids(chat: ChatFormat, draw: SampleKey) -> list[int]:
    """Ids that no encoder would give: any token but control tokens, in any order; every other response ends properly."""
    rng = random.Random(f"{draw.task}/{draw.attempt}/{draw.turn}")
    plain = [i for i in range(len(chat.tokenizer)) if i not in chat.control]
    return [rng.choice(plain) for _ in range(rng.randint(1, 6))] + [chat.end_of_turn] * (draw.turn % 2)


class Parrot(Environment):
    """Says one given text after the other, whatever it is told."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)
        self.horizon = len(texts)

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        return [f"parrot-{i}" for i in range(count)]

    def task(self, task_id: str) -> Task:
        return Task(task_id, "parrot", "listen")

    def reset(self, task: Task) -> str:
        self.turn = 0
        return self.texts[0]

    def step(self, action: str) -> StepResult:
        self.turn += 1
        over = self.turn == len(self.texts)
        return StepResult("" if over else self.texts[self.turn], done=over)
