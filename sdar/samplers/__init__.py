"""Rollout samplers: token ids in, token ids with the densities that they were really sampled from out."""

from sdar.samplers.torch_sampler import TorchSampler as TorchSampler
