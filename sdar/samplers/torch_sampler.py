"""Sampling in the training process with plain torch: what was read once is not read again."""

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from transformers import PreTrainedConfig

from sdar.errors import ConfigError, PolicyError
from sdar.parts import Completion, SampleKey, Session
from sdar.registry import register
from sdar.samplers.bound import TruncatingSampler
from sdar.samplers.cache import CACHE, RaggedCache
from sdar.samplers.density import draw, uniforms
from sdar.samplers.session import TorchSession, reads_rows
from sdar.samplers.slots import SMALLEST_ROOM, Slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("in_process")
class TorchSampler(TruncatingSampler):
    """Samples with the training weights in the training process.

    A forward pass goes over what is new in the rows that are being answered, without padding. Keys and values stay until `reset`: a prompt
    is read from where it differs from all that was read, an earlier turn of its episode or another attempt at its task, say.
    Every token's random number derives from (run seed, task id, attempt, turn, position), so what an episode draws does not
    depend on what else is in the batch.

    Models whose attention cannot be told which tokens see which (`sdar.attention.can_lay_out`) get padded batches, in which a prompt
    goes on from the last turn of its episode alone.

    Args:
        batch_size: Most rows in one forward pass, and most whose keys and values are kept.
        draft_tokens: Most tokens of a row that a forward pass reads ahead, where they are likely (`sdar.samplers.drafts`); 0: none. They
            save passes and change no token. Padded batches have none.
    """

    def __init__(self, *, batch_size: int = 256, draft_tokens: int = 3, **kwargs: Any):
        super().__init__(**kwargs)
        if batch_size < 1:
            raise ConfigError(f"sampler.batch_size is {batch_size}: a forward pass needs at least 1 prompt.")
        if draft_tokens < 0:
            raise ConfigError(f"sampler.draft_tokens is {draft_tokens}: give the most tokens to read ahead, or 0 for none.")
        self.batch_size, self.draft_tokens = batch_size, draft_tokens
        self._slots: tuple[ref[PreTrainedModel], Slots] | None = None
        self._caches: list[RaggedCache] = []

    def reset(self) -> None:
        self._slots, self._caches = None, []

    release = reset

    def session(self, model: "PreTrainedModel") -> Session:
        own = type(self).sample is TorchSampler.sample  # a subclass that samples in its own way is asked to
        if not (own and reads_rows(model)):
            return super().session(model)
        return TorchSession(self, model, self._slots_for(model), self.batch_size, self.draft_tokens)

    @torch.no_grad()
    def sample(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey]
    ) -> list[Completion]:
        self.check_room(prompts, keys)
        if not reads_rows(model):
            return self._sample_padded(model, prompts, keys)
        slots = self._slots_for(model)
        slots.keep({(key.seed, key.task, key.attempt) for key in keys})
        with closing(TorchSession(self, model, slots, self.batch_size, self.draft_tokens)) as session:
            for number, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
                session.submit(number, prompt, key, self.max_new_tokens)
            out: dict[int, Completion] = {}
            while session.busy:
                out |= session.step()
        self._slots = ref(model), slots
        return [out[number] for number in range(len(prompts))]

    def _slots_for(self, model: "PreTrainedModel") -> Slots:
        """What was read with this model; it is not kept should the caller fail, for what is left in the middle is of no use."""
        of, slots = self._slots or (None, None)
        self._slots = None
        if slots is None or of is None or of() is not model:
            return Slots(self.batch_size, max(SMALLEST_ROOM, self.longest))
        return slots

    def _sample_padded(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey]
    ) -> list[Completion]:
        """For models whose rows cannot be laid out."""
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        parts = [slice(start, start + self.batch_size) for start in range(0, len(prompts), self.batch_size)]
        self._caches = [self._cache(prompts[part], keys[part], device) for part in parts]  # others are gone now
        out: list[Completion] = []
        for part, cache in zip(parts, self._caches, strict=True):
            out += self._sample_batch(model, prompts[part], keys[part], cache)
        model.train(was_training)
        return out

    def _cache(self, prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey], device: torch.device) -> RaggedCache:
        """What is known of the prompts: one that they all go on from, or an empty one."""
        names = [(d.seed, d.task, d.attempt) for d in keys]
        for candidate in self._caches:
            rows = candidate.continues(names, prompts)
            if rows is not None:
                candidate.keep(rows)
                self._caches.remove(candidate)
                return candidate
        return RaggedCache(names, device)

    def _sample_batch(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey], cache: RaggedCache
    ) -> list[Completion]:
        device = next(model.parameters()).device
        config: Any = model.config
        window = attention_window(config.get_text_config())
        forbidden = None
        if self.forbidden_ids:
            forbidden = torch.zeros(self.vocab_size, dtype=torch.bool, device=device)
            forbidden[list(self.forbidden_ids)] = True
        new = [list(prompt[len(known) :]) for prompt, known in zip(prompts, cache.ids, strict=True)]
        out = [Completion([], [], [], False) for _ in prompts]
        for position in range(self.max_new_tokens):
            tokens, mask, positions = cache.extend(new)
            if window is not None and mask.shape[1] > window:
                raise PolicyError(
                    f"{type(model).__name__} looks back over {window} positions only, and the batch takes {mask.shape[1]} "
                    "with its padding, which would count: tokens would come from another density than they are scored in. Shorten "
                    "the prompts or use a model without sliding attention."
                )
            step = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{CACHE: cache.layers},
            )
            logits = step.logits[:, -1, : self.vocab_size]
            chosen, logp, kept = draw(
                logits, uniforms(keys, position).to(device), self.temperature, self.top_k, self.top_p, forbidden
            )
            new = [[] for _ in prompts]
            for b, (token, token_logp, token_kept) in enumerate(
                zip(chosen.tolist(), logp.tolist(), kept.tolist(), strict=True)
            ):
                if not out[b].stopped:
                    out[b].ids.append(token)
                    out[b].behaviour_logp.append(token_logp)
                    out[b].kept_logmass.append(token_kept)
                    out[b].stopped = token in self.stop_ids
                    if not out[b].stopped:
                        new[b] = [token]
            if not any(new):
                break
        return out


def attention_window(config: PreTrainedConfig) -> int | None:
    """How far back the narrowest layer of a model looks, in positions; None when every layer sees everything."""
    layers = getattr(config, "layer_types", None)
    if layers is not None and not {"sliding_attention", "chunked_attention"}.intersection(layers):
        return None
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((w for w in windows if w), default=None)
