"""Tokenizers and chat templates in the shapes that the common model families have."""

from dataclasses import dataclass, field
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sdar.rollout.chat import ChatFormat

QWEN25 = """
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou help people.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

QWEN3 = """
{%- set question = namespace(at=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
        {%- set question.at = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set said = m.content %}
    {%- set thought = '' %}
    {%- if m.role == 'assistant' and '</think>' in said %}
        {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > question.at and (loop.last or thought) %}
        {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# In Qwen's templates tools stand in the system message: behind its text, or behind the default (2.5), or alone (3).
_TOLD = """
    {{- '# Functions\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nA call stands in <tool_call></tool_call>.<|im_end|>\\n' }}"""
_REST = """
{%- for m in messages %}
    {%- if not (tools and loop.first and m.role == 'system') %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
TOOLED = {
    "qwen2.5": """
{%- set given = messages[0].content if messages[0].role == 'system' else 'You help people.' %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + given + '\\n\\n' }}"""
    + _TOLD
    + """
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\\n' + given + '<|im_end|>\\n' }}
{%- endif %}"""
    + _REST,
    "qwen3": """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}"""
    + _TOLD
    + """
{%- endif %}"""
    + _REST,
}

LLAMA3 = """
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {{- raise_exception('there is no system role') }}
{%- endif %}
{%- for m in messages %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}"""

MISTRAL = """
{{- bos_token }}
{%- set system = namespace(text='') %}
{%- if messages[0].role == 'system' %}
    {%- set system.text = messages[0].content + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '[INST]' + (system.text if loop.last else '') + m.content + '[/INST]' }}
    {%- else %}
        {{- m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""

ZEPHYR = """
{%- for m in messages %}
    {{- '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}"""
"""Of TinyLlama: the names of roles are plain text."""

INST = """
{{- bos_token }}
{%- for m in messages %}
    {{- '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + eos_token }}
{%- endfor %}"""
"""Of Mistral 7B: a space stands before every text, and no special token."""


@dataclass(frozen=True)
class Family:
    template: str | None
    special: tuple[str, ...]
    eos: str
    end_of_turn: str
    added: tuple[str, ...] = ()
    """Tokens that are added without being special."""
    rewrites_history: bool = False
    has_system_role: bool = True
    named: dict[str, str] = field(default_factory=dict, hash=False)


FAMILIES = {
    "qwen2.5": Family(
        QWEN25, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>", ("<|fim_prefix|>", "<tool_call>")
    ),
    "qwen3": Family(
        QWEN3, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>", ("<think>", "</think>"), rewrites_history=True
    ),
    "llama3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_0|>"),
        "<|eot_id|>",
        "<|eot_id|>",
        named={"bos_token": "<|begin_of_text|>"},
    ),
    "gemma": Family(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        ("\n", "\n\n", "<table>"),
        has_system_role=False,
        named={"bos_token": "<bos>"},
    ),
    "mistral": Family(
        MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", has_system_role=False, named={"bos_token": "<s>"}
    ),
}
PREFIXED = {
    "zephyr": Family(ZEPHYR, ("<s>", "</s>"), "</s>", "</s>", named={"bos_token": "<s>"}),
    "phi3": Family(
        ZEPHYR.replace("eos_token", "'<|end|>'"),
        ("<|endoftext|>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        "<|end|>",
    ),
    "mistral": FAMILIES["mistral"],
    "inst": Family(
        INST,
        ("<s>", "</s>"),
        "</s>",
        "</s>",
        has_system_role=False,
        named={"bos_token": "<s>"},
    ),
}
"""Families whose tokenizer puts a space before each text."""
CORPUS = [
    "You are in the middle of a room. You open the drawer 1. On the desk 12, you see a mug 3 and an egg.\n\nYour task is to:",
    "system user assistant model\nThe tomato isn't here; <think> go to fridge 1 </think>\n\n",
] * 3


@cache
def tokenizer_of(family: Family, normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of a few merges; every text has ids."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    splitter, speller = pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, speller])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(s, normalized=normalizer is not None, special=True) for s in family.special])
    tokenizer.add_tokens([AddedToken(s, normalized=False, special=False) for s in family.added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=family.eos,
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
        **family.named,
    )


@cache
def sentencepiece_of(family: Family, prefix: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer in Gemma's form: spaces are written as a sign, pieces of characters, and bytes for what has no piece.

    Args:
        prefix: Where it puts a space as well: ``always`` (before every text between special tokens, as Llama 2), ``first`` (before
            the whole, as newer files), None.
    """
    pieces = [
        "<unk>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *sorted({c for text in CORPUS for c in text if c != " "}),
        "\u2581",
    ]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "always":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), tokenizer.normalizer])
    if prefix == "first":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([*steps, *[decoders.Strip(" ", 1, 0)] * (prefix is not None)])
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in family.special])
    tokenizer.add_tokens([AddedToken(s, normalized=False, special=False) for s in family.added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=family.eos,
        unk_token="<unk>",
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
        **family.named,
    )


@cache
def chat_of(name: str, thinking: bool | None = None) -> ChatFormat:
    """A family's format; `thinking` sets `enable_thinking`."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    return ChatFormat(tokenizer_of(FAMILIES[name]), options, name=name)
