"""Where the model that learns comes from: a directory or hub id, or fresh weights with a tokenizer made for a world."""

import copy
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdar.errors import ConfigError, PolicyError, first_line
from sdar.gguf import converted, gguf_file
from sdar.parts import Blueprint, Environment, Policy
from sdar.paths import how_to_fetch, resolve
from sdar.precision import SMALL, bfloat16_unit
from sdar.registry import did_you_mean, register

CONTROL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
SMALLEST_VOCABULARY = len(CONTROL_TOKENS) + 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@register("pretrained")
class PretrainedPolicy(Policy):
    """Any causal language model of transformers, with its tokenizer and chat template.

    Args:
        path: Directory or hub id; a GGUF file, or a folder of one, is converted at its first use. What is relative is also looked up among
            the installed settings and fetched models.
        dtype: Type of the weights in memory. auto: of weights that are trained float32; of others, those below adapters or of a teacher,
            bfloat16 where they are stored so, the device multiplies it and they are 30 million or more, else float32. Weights that are
            trained want float32: `sdar` then sets trainer.precision to bf16-mixed under the same conditions, unless that is set.
        chat_template: File that replaces the tokenizer's template.
        chat_options: Arguments for the template, e.g. ``{enable_thinking: false}``.
        trust_remote_code: Run code that lies beside the weights.
        attention: Attention implementation of transformers; by default the fastest that computes the architecture rightly (``sdpa``,
            or ``eager`` where attention logits are capped).
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them: less memory, about a third
            more time in the update. Changes neither gradients nor what is sampled.
    """

    def __init__(
        self,
        path: str,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        chat_template: str | None = None,
        chat_options: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        attention: str | None = None,
        gradient_checkpointing: bool = False,
    ):
        file = gguf_file(resolve(path))
        self.path = str(resolve(path) if file is None else converted(file))
        self.dtype = dtype
        self.name = path
        self.chat_template = chat_template
        self.chat_options = dict(chat_options or {})
        self.trust_remote_code = trust_remote_code
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self._context: int | None = None  # a teacher is asked for it at every row
        looks_local = path.startswith((".", "/", "~", "conf/", "runs/")) or Path(self.path).exists()
        if looks_local and not (Path(self.path) / "config.json").is_file():
            raise PolicyError(
                f"policy path {path!r} has no config.json: it is no model directory. Give a directory written by "
                "`save_pretrained`, a GGUF file, or a hub id such as Qwen/Qwen2.5-3B-Instruct."
            )
        if looks_local and not list(Path(self.path).glob("*.safetensors")):
            raise PolicyError(
                f"policy path {path!r} holds no .safetensors file: other weight formats can run code when they are read. "
                "Convert it with `model.save_pretrained(...)`."
            )
        if chat_template is not None and not resolve(chat_template).is_file():
            raise PolicyError(f"chat_template file {chat_template!r} does not exist: give the path of a Jinja file.")

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        with self._found():
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        if self.chat_template is not None:
            tokenizer.chat_template = resolve(self.chat_template).read_text(encoding="utf-8")
        return tokenizer

    def load_model(self) -> PreTrainedModel:
        return self._load(DTYPES.get(self.dtype, torch.float32))

    def load_frozen(self) -> PreTrainedModel:
        unit = bfloat16_unit()
        if self.dtype != "auto" or self._config().dtype != torch.bfloat16:
            return super().load_frozen()
        model = self._load(torch.float32 if unit is None else torch.bfloat16).requires_grad_(False).eval()
        if model.num_parameters() < SMALL:
            return model.float()
        held = (
            "float32, as this device does not multiply bfloat16" if unit is None else f"bfloat16, as they are stored ({unit})"
        )
        rank_zero_info(f"{self.name}: weights that are not trained are held in {held}; its dtype says otherwise.")
        return model

    def precision(self, bfloat16: bool) -> str | None:
        if not bfloat16 or self.dtype != "auto":
            return None
        try:
            return None if self.blueprint().frozen is None else "bf16-mixed"
        except PolicyError:  # told when it is loaded
            return None

    def _load(self, dtype: torch.dtype) -> PreTrainedModel:
        chosen = {} if self.attention is None else {"attn_implementation": self.attention}
        try:
            with self._found():
                model = AutoModelForCausalLM.from_pretrained(
                    self.path,
                    dtype=dtype,
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    **chosen,
                )
        except (ValueError, ImportError) as error:
            if self.attention is None or "attention" not in str(error).lower():
                raise
            raise PolicyError(
                f"policy.attention is {self.attention!r}, which {self.name} cannot be loaded with: {error} Leave it out for the "
                "fastest that is right."
            ) from error
        never_drop(model)
        if self.gradient_checkpointing:
            if not model.supports_gradient_checkpointing:
                raise PolicyError(
                    f"policy.gradient_checkpointing is set, but {type(model).__name__} cannot compute activations again. Remove it."
                )
            known = "activation_checkpointing_enable"  # its name from transformers 5.21 on
            getattr(model, known if hasattr(model, known) else "gradient_checkpointing_enable")({"use_reentrant": False})
            model.train()  # it checkpoints in no other mode
        return model

    def context(self) -> int:
        """Largest number of positions that the model knows."""
        if self._context is None:
            with self._found():
                config = self._config()
            self._context = int(config.get_text_config().max_position_embeddings)
        return self._context

    def _config(self) -> PreTrainedConfig:
        return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)

    def blueprint(self) -> Blueprint:
        try:
            config = self._config()
        except (OSError, ValueError) as error:
            if Path(self.path).is_dir():
                raise PolicyError(f"{self.path}/config.json cannot be used: {first_line(error)}") from error
            raise PolicyError(
                f"the sizes of {self.name} could not be read: there is no such directory here, and the hub was not reached or does not "
                f"have it ({first_line(error)}). Its config.json is enough, no weights are read: put it to "
                f"FOLDER/{self.name}/config.json (its tokenizer's files beside it, unless --dry_run false) and give --configs FOLDER, "
                f"or run `hf download {self.name} --include '*.json'` where the hub can be reached."
            ) from error
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)
        options = {name: name for name in ("dtype", "gradient_checkpointing")}
        narrow = self.dtype == "auto" and config.dtype == torch.bfloat16 and network.num_parameters() >= SMALL
        dtype, frozen = DTYPES.get(self.dtype, torch.float32), torch.bfloat16 if narrow else None
        return Blueprint(network, dtype, 0, self.gradient_checkpointing, options, frozen)

    def found_in(self, folder: str) -> "PretrainedPolicy":
        local = Path(folder, self.name)
        if not (local / "config.json").is_file():
            return self
        found = copy.copy(self)
        found.path, found._context = str(local), None
        return found

    def resized(self, network: PreTrainedModel, folder: Path, cut: list[str]) -> "PretrainedPolicy":
        network.save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code).save_pretrained(folder)
        small = copy.copy(self)
        small.path, small._context = str(folder), None
        if self.attention not in (None, "eager", "sdpa"):
            cut.append(f"{self.name}: attention sdpa instead of {self.attention}, which is for GPUs")
            small.attention = None
        return small

    @contextmanager
    def _found(self) -> Iterator[None]:
        """Raise PolicyError where transformers finds nothing: it speaks of connections, whatever the path was meant to be."""
        try:
            yield
        except OSError as error:
            if Path(self.path).exists():
                raise
            folder = Path(self.path).parent
            beside = [str(p) for p in (folder.iterdir() if folder.is_dir() else ()) if (p / "config.json").is_file()]
            reason = str(error).partition("\n")[0].rstrip(".")
            raise PolicyError(
                f"policy path {self.name!r}: there is no such folder here (in {os.getcwd()}), and the hub was not reached or has nothing "
                f"of this name ({reason}).{did_you_mean(self.path, beside)} Give the folder of a model, or a hub id that can be reached."
                f"{how_to_fetch(self.name)}"
            ) from error


def never_drop(model: nn.Module) -> None:
    """Switch dropout off for good: what is scored and what is trained must be the same density, in either mode."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@register("fresh")
class FreshPolicy(Policy):
    """Random weights of the Qwen3 architecture, with a tokenizer trained on the words of a world.

    The tokenizer's pieces are the world's words and frequent phrases, which shortens its sentences to about half; it spells
    everything else in bytes.

    Args:
        env: The world whose texts the tokenizer is trained on; null: that of the run.
        hidden_size, layers, heads, key_value_heads, intermediate_size: Size of the network.
        vocab_size: Largest size of the vocabulary.
        context: Largest number of positions.
        seed: Of the weights and of the corpus.
    """

    def __init__(
        self,
        env: Environment | None = None,
        hidden_size: int = 128,
        layers: int = 4,
        heads: int = 4,
        key_value_heads: int = 4,
        intermediate_size: int = 384,
        vocab_size: int = 640,
        context: int = 1024,
        seed: int = 0,
    ):
        if hidden_size % (2 * heads):
            raise ConfigError(
                f"policy.hidden_size is {hidden_size} and policy.heads is {heads}: rotary positions need heads of an even "
                f"width. Make hidden_size a multiple of {2 * heads}."
            )
        if heads % key_value_heads:
            raise ConfigError(
                f"policy.heads is {heads} and policy.key_value_heads is {key_value_heads}: heads share keys and values in "
                "equal groups. Make heads a multiple of key_value_heads."
            )
        if vocab_size < SMALLEST_VOCABULARY:
            raise ConfigError(
                f"policy.vocab_size is {vocab_size}: control tokens and bytes alone are {SMALLEST_VOCABULARY}. Give at least "
                "that."
            )
        self.name = "the fresh policy"
        self.env, self._given = env, env is not None
        self._worlds = [] if env is None else [env]
        self.vocab_size = vocab_size
        self.seed = seed
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "head_dim": hidden_size // heads,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": context,
        }
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def bind_env(self, env: Environment) -> None:
        if self._given or env is None or any(env is known for known in self._worlds):
            return
        self._worlds.append(env)
        self.env = self._worlds[0]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.env is None:
            raise ConfigError(
                "policy.env is not set and no run has said what its world is: a fresh tokenizer needs its texts. Give policy.env."
            )
        if self._tokenizer is None:
            told = [world.corpus(random.Random(f"corpus/{self.seed}")) for world in self._worlds]
            corpus, phrases = ([text for of in told for text in of[part]] for part in (0, 1))
            self._tokenizer = world_tokenizer(corpus, phrases, self.vocab_size, self.config["max_position_embeddings"])
        return self._tokenizer

    def load_model(self) -> PreTrainedModel:
        config = self._architecture()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Qwen3ForCausalLM(config)

    def _architecture(self) -> Qwen3Config:
        tokenizer = self.load_tokenizer()
        return Qwen3Config(
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            **self.config,
        )

    def context(self) -> int:
        return int(self.config["max_position_embeddings"])

    def blueprint(self) -> Blueprint:
        with torch.device("meta"):
            return Blueprint(Qwen3ForCausalLM(self._architecture()))


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def world_tokenizer(corpus: list[str], phrases: list[str], vocab_size: int, context: int) -> PreTrainedTokenizerBase:
    """A unigram tokenizer whose pieces are the commonest phrases and words of `corpus`; it spells other text in bytes."""
    alternatives = [escape_pattern(p) for p in sorted(phrases, key=len, reverse=True)]
    pattern = "|".join([*alternatives, r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+"])
    splitter = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    counts: Counter[str] = Counter()
    for text, times in Counter(corpus).items():  # a world says the same again and again
        for piece, _ in splitter.pre_tokenize_str(text):
            counts[piece] += times
    spelled = [*CONTROL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    common = sorted(counts, key=lambda piece: (-counts[piece], piece))[: max(0, vocab_size - len(spelled))]
    vocabulary = [(token, -30.0) for token in spelled] + [(piece, -1.0) for piece in sorted(common)]  # fewest pieces win
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=context,
        padding_side="left",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def escape_pattern(text: str) -> str:
    """Escape for the Oniguruma dialect that tokenizers uses."""
    return "".join("\\" + c if c in r".^$*+?{}[]\|()" else c for c in text)
