"""Weights as flat buckets of bytes: what a collective sends at once. A bucket's message says which tensor lies where in it."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sdar.serving.protocol import BadMessage, Bucket, Place

ALIGNMENT = 16
"""Bytes: a tensor of any type may begin at a multiple of it."""
ROW = 4096
"""Bytes: a bucket is a whole number of rows, each of which has a weight of its own in the checksum."""


def pack(weights: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[tuple[Bucket, Tensor]]:
    """Buckets of tensors in the host's memory; one is closed when it has grown to `bucket_bytes`. A tensor is never cut."""
    held: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in weights:
        held.append((name, tensor))
        size += tensor.nbytes
        if size >= bucket_bytes:
            yield _packed(held)
            held, size = [], 0
    if held:
        yield _packed(held)


def _packed(held: list[tuple[str, Tensor]]) -> tuple[Bucket, Tensor]:
    places, end = [], 0
    for name, tensor in held:
        places.append(Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), end))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    flat = torch.zeros(-(-end // ROW) * ROW, dtype=torch.uint8)
    for place, (_, tensor) in zip(places, held, strict=True):
        view(flat, place).copy_(tensor)
    return Bucket(len(flat), checksum(flat), tuple(places)), flat


def view(flat: Tensor, place: Place) -> Tensor:
    """A tensor of a bucket, in the bucket's own memory.

    Raises:
        BadMessage: it does not lie in the bucket, or has no type of torch.
    """
    dtype = getattr(torch, place.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise BadMessage(f'"{place.name}" has the type {place.dtype!r}, which is none of torch')
    end = place.begin + torch.Size(place.shape).numel() * dtype.itemsize
    if end > len(flat) or place.begin % ALIGNMENT:
        raise BadMessage(f'"{place.name}" lies at bytes {place.begin} to {end} of a bucket of {len(flat)}')
    return flat[place.begin : end].view(dtype).view(place.shape)


def checksum(flat: Tensor) -> int:
    """Sum over rows of 4 KiB of (sum of the row's 64-bit words) x (an odd number of its own), modulo 2^64: cheap on any device.

    It finds a row that is missing, another one or in another's place; it is no protection from somebody who wants to deceive.
    """
    rows = flat.view(torch.int64).view(-1, ROW // 8).sum(1)
    return int((rows * (2 * torch.arange(len(rows), device=flat.device) + 1)).sum())
