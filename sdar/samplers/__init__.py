"""Rollout samplers: token ids in, token ids with the densities that they were really sampled from out."""

from sdar.samplers.server_sampler import ServerSampler as ServerSampler
from sdar.samplers.torch_sampler import TorchSampler as TorchSampler
from sdar.samplers.vllm_sampler import VLLMSampler as VLLMSampler
