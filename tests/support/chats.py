"""Small files of conversations, and templates that tell them."""

import json
from pathlib import Path
from typing import Any

from sdar.policies import world_tokenizer
from sdar.rollout.chat import ChatFormat

TURN = (
    "<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}"
)
CALLING = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}"
    + TURN
    + "</tool_call>{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Tools, calls and results; a line break behind each turn, which no model says."""
MARKED = CALLING.replace("<|{{ 'user'", "{% if m.role != 'assistant' %}<|{{ 'user'", 1).replace(
    "<|end|>\n{% endfor %}",
    "<|end|>\n{% else %}<|assistant|>{% generation %}{{ m.content }}<|end|>{% endgeneration %}{{ '\\n' }}{% endif %}{% endfor %}",
)
FORGETFUL = CALLING.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}", 1)
"""Past thinking is removed, as Qwen3's template does."""

SUM = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, 2."},
]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
TRACE = {
    "messages": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ],
    "tools": [TOOL],
}


def chat(template: str | None = None, **options: Any) -> ChatFormat:
    """A format with a small tokenizer; by default its own template."""
    tokenizer = world_tokenizer(["It is 2. Sure? Yes, Add. Two. think tool call"], [], 320, 512)
    tokenizer.chat_template = template or tokenizer.chat_template
    return ChatFormat(tokenizer, options, "Tiny")


def written(file: Path, *rows: Any) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sums(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Conversations of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{n} + 1? " * (1 + n % 3)},
                {"role": "assistant", "content": f"It is {n + 1}."},
            ]
        }
        for n in range(first, first + count)
    ]
