"""The trained policy as a directory that transformers loads."""

import copy
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sdar.errors import ConfigError
from sdar.lora import plain_weights
from sdar.parts import Policy
from sdar.rollout.chat import ChatFormat


def check_export(key: str, folder: str) -> None:
    """Raise ConfigError where a policy cannot be written to a folder, or something would be written over.

    Args:
        key: The setting that names it.
    """
    if os.path.isdir(folder) and os.listdir(folder):
        raise ConfigError(f"{key} {folder} is a directory with something in it: nothing is written over. Give another.")
    above = Path(folder).absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise ConfigError(f"{key} {folder}: {above} is a file, and the policy is a directory. Give another.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{key} {folder}: {above} is not to be written by this user. Give another.")


def write_policy(
    policy: Policy, network: PreTrainedModel, weights: Iterable[tuple[str, Tensor]], folder: str | None, dtype: str
) -> None:
    """A directory that transformers reads: weights, configuration, tokenizer with its chat template; adapters are merged.

    Whoever generates with it stops where training stopped: both configurations name every token that ends a turn.

    Args:
        weights: (name in the network's state dict, whole tensor), taken one after the other, also where nothing is written.
        folder: None: another rank writes.
    """
    plain = {}
    written = getattr(torch, dtype)
    for name, tensor in plain_weights(network, weights, written):  # rounded once
        if folder is not None:
            plain[name] = tensor.detach().to("cpu", written, copy=True)
    if folder is None:
        return
    with torch.device("meta"):
        model = type(network)(copy.deepcopy(network.config))
    model.load_state_dict(plain, assign=True)
    model.tie_weights()
    tokenizer = policy.load_tokenizer()
    stops = list(ChatFormat(tokenizer, policy.chat_options, policy.name).stop_ids)
    model.generation_config = copy.deepcopy(network.generation_config)
    for config in (model.config, model.generation_config):
        config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
