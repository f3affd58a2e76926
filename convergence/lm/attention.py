"""Causal attention with grouped queries, forward and backward, for all replicas at once.

    o = softmax(q k^T / sqrt(head) + mask) v

For short sequences the probabilities are kept: on small heads that is faster than kernels that
compute them again in the backward pass (1.4 times on a CPU at 64 tokens and heads of 16). There, on a
CPU, queries are taken in blocks, and a block sees no key behind its end, which saves up to half of
the work; on CUDA one large product is faster than several small ones. For long sequences
`scaled_dot_product_attention` saves the memory.

The rotary embedding (Su et al., arXiv 2104.09864) multiplies complex numbers here. `transformers`
pairs dimension i with i + head/2; the caller lays the rows of the query and key matrices so that
pairs are neighbours, which changes no product of q and k.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from convergence.lm.shape import Shape

KEPT_TOKENS_MAX: Final = 256
"""Longest sequence whose probabilities are kept."""
BLOCK_TOKENS_MIN: Final = 64
"""Smallest block of queries on a CPU: smaller products cost more than they save."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the backward pass of a short sequence needs; S sequences, G queries per key, T tokens."""

    k: torch.Tensor
    """[kv_heads * S, T, head]"""
    v: torch.Tensor
    """[kv_heads * S, T, head]"""
    blocks: list[tuple[torch.Tensor, torch.Tensor]]
    """Queries, [kv_heads * S, G * tokens, head], and probabilities, [..., G * tokens, end]."""


@dataclass(frozen=True, slots=True)
class Graph:
    """What the backward pass of a long sequence needs: input and output of an autograd graph."""

    qkv: torch.Tensor
    out: torch.Tensor


Memory: TypeAlias = Kept | Graph


class Attention:
    """Attention over sequences of one length."""

    def __init__(self, shape: Shape, length: int, device: torch.device) -> None:
        self._heads, self._keys, self._head = shape.heads, shape.kv_heads, shape.head
        self._group = shape.heads // shape.kv_heads
        self._turned = shape.turned
        self._length = length
        self._scale = float(shape.head**-0.5)
        inverse = 1.0 / (
            shape.theta ** (torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head)
        )
        angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
        turn = torch.polar(torch.ones_like(angles), angles).repeat(1, shape.heads + shape.kv_heads)
        self._turn = turn.to(device)
        self._turn_back = turn.conj().resolve_conj().to(device)
        self._blocks: list[tuple[slice, int, torch.Tensor]] = []
        """Which queries, the end of the keys that they see, the mask [G * tokens, end]."""
        if length <= KEPT_TOKENS_MAX:
            size = length if device.type == "cuda" else max(BLOCK_TOKENS_MIN, -(-length // 4))
            mask = torch.full((length, length), float("-inf")).triu(1)
            for start in range(0, length, size):
                end = min(start + size, length)
                part = mask[start:end, :end].repeat(self._group, 1).to(device)
                self._blocks.append((slice(start, end), end, part))

    def forward(self, qkv: torch.Tensor) -> tuple[torch.Tensor, Memory]:
        """From [S, T, (heads + 2 * kv_heads) * head], which is overwritten, to [S, T, heads * head]."""
        self._pairs(qkv).mul_(self._turn)
        if self._length > KEPT_TOKENS_MAX:
            return self._forward_graph(qkv)
        k, v = (each.contiguous().view(-1, self._length, self._head) for each in self._kv(qkv))
        o = torch.empty_like(qkv[..., : self._heads * self._head])
        queries, outputs = self._queries(qkv), self._queries(o)
        blocks = []
        for tokens, end, mask in self._blocks:
            q = queries[..., tokens, :].contiguous().view(k.shape[0], -1, self._head)
            p = torch.baddbmm(mask, q, k[:, :end].mT, alpha=self._scale).softmax(-1)
            part = outputs[..., tokens, :]
            part.copy_(torch.bmm(p, v[:, :end]).view(part.shape))
            blocks.append((q, p))
        return o, Kept(k, v, blocks)

    def backward(self, grad: torch.Tensor, memory: Memory) -> torch.Tensor:
        """From the gradient of the output, [S, T, heads * head], to that of ``qkv``."""
        if isinstance(memory, Graph):
            (dqkv,) = torch.autograd.grad(memory.out, memory.qkv, grad)
        else:
            dqkv = self._backward_kept(grad, memory)
        self._pairs(dqkv).mul_(self._turn_back)
        return dqkv

    def _backward_kept(self, grad: torch.Tensor, kept: Kept) -> torch.Tensor:
        dqkv = grad.new_empty(*grad.shape[:2], (self._heads + 2 * self._keys) * self._head)
        k, v = kept.k, kept.v
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        grads, queries = self._queries(grad), self._queries(dqkv)
        beta = 0.0
        # The last block sees every key: it overwrites, the others add.
        for (tokens, end, _), (q, p) in zip(self._blocks[::-1], kept.blocks[::-1], strict=True):
            do = grads[..., tokens, :].contiguous().view(q.shape)
            dv[:, :end].baddbmm_(p.mT, do, beta=beta)
            dp = torch.bmm(do, v[:, :end].mT)
            ds = torch._softmax_backward_data(dp, p, -1, torch.float32)
            dk[:, :end].baddbmm_(ds.mT, q, beta=beta, alpha=self._scale)
            part = queries[..., tokens, :]
            dq = torch.baddbmm(q, ds, k[:, :end], beta=0, alpha=self._scale)
            part.copy_(dq.view(part.shape))
            beta = 1.0
        for out, found in zip(self._kv(dqkv), (dk, dv), strict=True):
            out.copy_(found.view(out.shape))
        return dqkv

    def _forward_graph(self, qkv: torch.Tensor) -> tuple[torch.Tensor, Memory]:
        with torch.enable_grad():
            leaf = qkv.detach().requires_grad_()
            heads = torch.unflatten(leaf, 2, (-1, self._head)).transpose(1, 2)
            q, k, v = torch.split(heads, [self._heads, self._keys, self._keys], dim=1)
            # Kernels for fp32 know no groups: each key is repeated for its queries.
            k, v = (each.repeat_interleave(self._group, dim=1) for each in (k, v))
            o = scaled_dot_product_attention(q, k, v, is_causal=True)
            out = o.transpose(1, 2).flatten(2)
        return out.detach(), Graph(leaf, out)

    def _pairs(self, qkv: torch.Tensor) -> torch.Tensor:
        pairs = torch.unflatten(qkv[..., : self._turned], 2, (-1, 2))
        return torch.view_as_complex(pairs)

    def _queries(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queries, or what has their shape, as a view [kv_heads, S, G, T, head]."""
        queries = tensor[..., : self._heads * self._head]
        shape = (self._keys, self._group, self._head)
        return torch.unflatten(queries, 2, shape).permute(2, 0, 3, 1, 4)

    def _kv(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as views [kv_heads, S, T, head]."""
        both = qkv[..., self._heads * self._head :]
        both = torch.unflatten(both, 2, (2 * self._keys, self._head)).permute(2, 0, 1, 3)
        return both[: self._keys], both[self._keys :]
