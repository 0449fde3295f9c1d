"""Rows as a tree of prefixes: what rows begin with alike is computed once, in a forward pass and in its backward pass."""

from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sdar.attention import RowLayout

LEAST_SAVED = 16
"""Tokens that sharing a prefix has to save, and one in so many of those below it: every node is an attention of its own."""


class Node(NamedTuple):
    """Tokens `start` to `end` of a pass are its own; those of its descendants follow, up to `stop`."""

    start: int
    end: int
    stop: int
    row: int
    """One of the rows that pass through it."""
    depth: int
    """Place of its first token in its rows."""


class PrefixTree(RowLayout):
    """The tokens of rows, each shared one once: a token sees those before it in its rows.

    Value:    of each token what its row alone gives; sums come in another order.
    Gradient: that of the rows alone: what rows share gets the sum of theirs.

    Args:
        ids: ``[rows, time]``, right-padded.
        lengths: ``[rows]`` tokens of each.
    """

    ids: Tensor
    """[tokens]"""
    positions: Tensor
    """[tokens] place in the row."""
    index: Tensor
    """[rows, time] the token of the pass at each place of each row; 0 behind a row's end."""

    def __init__(self, ids: Tensor, lengths: Tensor):
        rows, sizes = ids.cpu().numpy(), lengths.cpu().numpy()
        order, common = in_order(rows, sizes)
        index = np.zeros(rows.shape, np.int64)
        nodes: list[list[int]] = []  # start, end, stop, row, depth
        tokens = 0
        todo = [(0, len(order), 0, -1)]  # rows first to last of the order, read up to depth; -1: a node's end
        while todo:
            first, last, depth, closes = todo.pop()
            if closes >= 0:
                nodes[closes][2] = tokens
                continue
            members = order[first:last]
            alike = int(common[first + 1 : last].min() if last - first > 1 else sizes[members[0]])
            if last - first == 1 or pays(alike - depth, members, sizes, depth):
                if alike > depth:
                    todo.append((0, 0, 0, len(nodes)))
                    nodes.append([tokens, tokens + alike - depth, 0, int(members[0]), depth])
                    index[members, depth:alike] = np.arange(tokens, tokens + alike - depth)
                    tokens += alike - depth
                depth = alike
            if last - first > 1:
                starts = [first, *(first + 1 + (common[first + 1 : last] == alike).nonzero()[0]).tolist(), last]
                todo.extend((a, b, depth, -1) for a, b in reversed(list(pairwise(starts))))
        self.nodes = [Node(*node) for node in nodes]
        self.longest, self.tokens_of_rows = int(sizes.max()), int(sizes.sum())
        pieces = [(node.row, slice(node.depth, node.depth + node.end - node.start)) for node in self.nodes]
        self.ids = torch.from_numpy(np.concatenate([rows[row, place] for row, place in pieces])).to(ids)
        positions = np.concatenate([np.arange(place.start, place.stop) for _, place in pieces])
        self.positions = torch.from_numpy(positions).to(ids.device)
        self.index = torch.from_numpy(index).to(ids.device)
        self._keys: dict[int | None, Any] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        kind = query.device.type
        if torch.is_autocast_enabled(kind):
            query, key, value = (t.to(torch.get_autocast_dtype(kind)) for t in (query, key, value))
        if window is not None and window >= self.longest:
            window = None
        if kind == "cpu" and window is None and query.shape[-1] == value.shape[-1]:
            return _NodeByNode.apply(query, key, value, self.nodes, scaling)  # type: ignore[no-untyped-call]
        if kind == "cuda" and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] == value.shape[-1]:
            return self.attend_flash(query, key, value, scaling, window)
        return self.attend_masked(query, key, value, scaling, window)

    def seen(self, node: Node, window: int | None) -> Tensor:
        """Tokens of the pass that those of a node see."""
        first = 0 if window is None else max(0, node.depth - window + 1)
        return self.index[node.row, first : node.depth + node.end - node.start]

    def attend_masked(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
        """On any device, with any window: a mask for each node."""
        out = []
        for node in self.nodes:
            keys = self.seen(node, window)
            own = node.end - node.start
            back = torch.arange(len(keys) - own, len(keys), device=keys.device)[:, None] - torch.arange(
                len(keys), device=keys.device
            )
            mask = (back >= 0) & (back < (window or self.longest))
            q, k, v = query[:, node.start : node.end], key[:, keys], value[:, keys]
            found = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scaling, enable_gqa=True)
            out.append(found[0])
        return torch.cat(out, 1).transpose(0, 1)

    def attend_flash(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
        """On GPUs in two bytes: all nodes in one kernel, each behind the keys that it sees; its last query sees them all."""
        from torch.nn.attention.varlen import varlen_attn

        if window not in self._keys:
            keys = [self.seen(node, window) for node in self.nodes]
            own = [node.end - node.start for node in self.nodes]
            bounds = [
                F.pad(torch.tensor(sizes, device=query.device).cumsum(0), (1, 0)).int()
                for sizes in (own, [len(k) for k in keys])
            ]
            self._keys[window] = torch.cat(keys), *bounds, max(own), max(len(k) for k in keys)
        keys, own_bounds, bounds, most, most_keys = self._keys[window]
        q, k, v = query.transpose(0, 1), key.transpose(0, 1)[keys], value.transpose(0, 1)[keys]
        sides = (-1 if window is None else window - 1, 0)
        found = varlen_attn(q, k, v, own_bounds, bounds, most, most_keys, scale=scaling, window_size=sides, enable_gqa=True)
        return cast(Tensor, found)


def tree_batches(ids: Tensor, lengths: Tensor, max_tokens: int) -> list[tuple[int, Tensor]]:
    """Rows in pieces of about `max_tokens` tokens at most (or a single row), as a tree counts them, each with its tokens: rows that begin
    alike stay together, and what is small fills up what is large.

    Args:
        ids: ``[rows, time]``, right-padded.
        lengths: ``[rows]``
    """
    rows, sizes = ids.cpu().numpy(), lengths.cpu().numpy()
    pieces: list[tuple[int, list[int]]] = []  # tokens, rows
    for row, common in zip(*in_order(rows, sizes), strict=True):
        more = int(sizes[row] - common)
        if common < LEAST_SAVED or pieces[-1][0] + more > max_tokens:
            pieces.append((int(sizes[row]), [int(row)]))
        else:
            pieces[-1] = (pieces[-1][0] + more, [*pieces[-1][1], int(row)])
    filled: list[tuple[int, list[int]]] = []
    for tokens, members in sorted(pieces, key=lambda piece: -piece[0]):
        place = next((i for i, (there, _) in enumerate(filled) if there + tokens <= max_tokens), None)
        if place is None:
            filled.append((tokens, members))
        else:
            filled[place] = (filled[place][0] + tokens, filled[place][1] + members)
    return [(tokens, torch.tensor(members)) for tokens, members in filled]


def in_order(rows: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows such that those that begin alike stand together, and of each how many tokens it shares with the one before."""
    keys = [rows[i, : sizes[i]].astype(">u4").tobytes() for i in range(len(rows))]
    order = np.array(sorted(range(len(rows)), key=keys.__getitem__))
    common = np.zeros(len(rows), np.int64)
    for i in range(1, len(order)):
        a, b = order[i - 1], order[i]
        most = min(sizes[a], sizes[b])
        differs = rows[a, :most] != rows[b, :most]
        common[i] = differs.argmax() if differs.any() else most
    return order, common


def pays(tokens: int, members: np.ndarray, sizes: np.ndarray, depth: int) -> bool:
    """Whether to compute `tokens` tokens once for all these rows: always where that is all that is left of them."""
    if int(sizes[members].max()) == depth + tokens:
        return True
    saved = tokens * (len(members) - 1)
    return saved >= LEAST_SAVED and LEAST_SAVED * saved >= int(sizes[members].sum()) - len(members) * depth


class _NodeByNode(torch.autograd.Function):
    """Attention of all tokens that see a node's, node after node, merged by the sums of their exponentials.

    The first queries are the node's own, so that each sees one key more than the one before, and the descendants' see every one: a
    causal mask that begins at the upper left. The backward pass of a part needs nothing but the merged output and the merged sum.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, nodes: list[Node], scaling: float | None) -> Tensor:
        read = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        wide = torch.promote_types(query.dtype, torch.float32)
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2], dtype=wide).transpose(
            0, 1
        )  # [heads, tokens, width]
        logsum = query.new_empty(query.shape[1], query.shape[0], dtype=wide).t()  # [heads, tokens]
        for start, end, stop, _, depth in nodes:
            found, sums = read(
                query[None, :, start:stop], key[None, :, start:end], value[None, :, start:end], 0.0, True, scale=scaling
            )
            if depth == 0:
                out[:, start:stop], logsum[:, start:stop] = found[0], sums[0]
                continue
            before, after = logsum[:, start:stop], torch.logaddexp(logsum[:, start:stop], sums[0])
            # kept + (1 - kept) found: what came before has the share exp(before - after)
            out[:, start:stop].lerp_(found[0].to(wide), torch.exp(sums[0] - after)[..., None])
            before.copy_(after)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, logsum)
        ctx.nodes, ctx.scaling = nodes, scaling
        return out.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *narrow, logsum = ctx.saved_tensors
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dtype = narrow[0].dtype
        wide = torch.promote_types(dtype, torch.float32)  # in bfloat16 the kernel is slower
        query, key, value, out, grad = (t.to(wide) for t in (*narrow, grad))
        grad = grad.transpose(0, 1)[None]
        grad_query, grad_key, grad_value = (torch.empty_like(t) for t in (query, key, value))
        for start, end, stop, _, depth in ctx.nodes:
            seeing, own = slice(start, stop), slice(start, end)
            of_query, of_key, of_value = back(
                grad[:, :, seeing], query[None, :, seeing], key[None, :, own], value[None, :, own], out[None, :, seeing],
                logsum[None, :, seeing], 0.0, True, scale=ctx.scaling,
            )  # fmt: skip
            grad_query[:, seeing] = of_query[0] if depth == 0 else grad_query[:, seeing] + of_query[0]
            grad_key[:, own], grad_value[:, own] = of_key[0], of_value[0]
        return grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype), None, None
