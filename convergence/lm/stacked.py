"""Loss and gradient of many Llama replicas at once, by hand, without autograd.

Every tensor has a leading replica axis and every product is a batched one. The gradient is written
straight into its flat vector: that, reused buffers and fewer passes over memory are what a
hand-written backward pass buys. With n = x / rms(x) a norm's weight w is folded into the matrix W
behind it,

    W (w * n) = W' n,   W' = W diag(w),   dW = dW' diag(w),   dw = sum over rows of (dW' * W),

so that no pass over the activations is spent on it; the head alone, whose matrix is large, does
without. Equations: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467;
Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, silu

from convergence.lm.attention import Attention, Memory
from convergence.lm.shape import Shape, Views


@dataclass(frozen=True, slots=True)
class _Norm:
    """A normalised residual stream: n = x * r, [R, M, hidden], and r, [R, M, 1]."""

    n: torch.Tensor
    r: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer's backward pass needs; M tokens of each of R replicas."""

    attention_norm: _Norm
    attention: Memory
    o: torch.Tensor
    """[R, M, heads * head]"""
    forward_norm: _Norm
    gate_up: torch.Tensor
    """[R, M, 2 * intermediate]"""
    gate: torch.Tensor
    """silu of the gate, [R, M, intermediate]."""
    product: torch.Tensor
    """Gate times up, [R, M, intermediate]."""


@dataclass(frozen=True, slots=True)
class _Folded:
    """Matrices with the norm's weight in them, rows of queries and keys in the rotary order."""

    qkv: torch.Tensor
    """[R, L, qkv, hidden]"""
    gate_up: torch.Tensor
    """[R, L, 2 * intermediate, hidden]"""


class Stacked:
    """A Llama of one shape over sequences of one length; holds no parameters."""

    def __init__(self, shape: Shape, length: int, device: torch.device) -> None:
        self.shape = shape
        self._length = length
        self._attention = Attention(shape, length, device)
        self._epsilon = torch.tensor(shape.epsilon, device=device)

    def token_bytes(self) -> int:
        """Memory that a gradient needs per token of one replica, about."""
        shape = self.shape
        outer = shape.heads * shape.head
        probabilities = shape.heads * min(self._length, 256)
        layer = 3 * shape.hidden + shape.qkv + 2 * outer + 4 * shape.intermediate + probabilities
        widest = max(3 * shape.vocabulary, 2 * layer)
        return 4 * (shape.layers * layer + 6 * shape.hidden + widest)

    @torch.no_grad()
    def loss(self, flat: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss in nats of each replica, [R].

        ``flat``: parameters, fp32, [R, elements]. ``tokens``: int64, [R, sequences, length + 1].
        """
        views = self.shape.views(flat)
        final, _ = self._trunk(flat, views, self._fold(views), tokens[..., :-1], keep=False)
        loss, _, _ = self._head(views, final, tokens[..., 1:].flatten(1))
        return loss / (tokens.shape[1] * self._length)

    @torch.no_grad()
    def gradient(
        self, flat: torch.Tensor, tokens: torch.Tensor, micro: int, out: torch.Tensor
    ) -> torch.Tensor:
        """The loss of each replica, as `loss` gives it, and its gradient in ``out``.

        ``flat`` and ``out``: contiguous, fp32, [R, elements]; what ``out`` held is overwritten.
        ``micro``: sequences of a replica per pass; the passes add up.
        """
        views, grads = self.shape.views(flat), self.shape.views(out)
        folded = self._fold(views)
        dqkv = torch.empty_like(folded.qkv)
        loss = flat.new_zeros(flat.shape[0])
        scale = 1.0 / (tokens.shape[1] * self._length)
        for number, part in enumerate(torch.split(tokens, micro, dim=1)):
            # The first pass overwrites, which spares setting the gradient to zero.
            beta = 1.0 if number else 0.0
            final, layers = self._trunk(flat, views, folded, part[..., :-1], keep=True)
            losses, dlogits, weighted = self._head(views, final, part[..., 1:].flatten(1))
            loss.add_(losses, alpha=scale)
            grads.unembedding.baddbmm_(dlogits.mT, weighted, beta=beta, alpha=scale)
            df = torch.baddbmm(weighted, dlogits, views.unembedding, beta=0, alpha=scale)
            del dlogits, weighted
            dw = torch.linalg.vecdot(df, final.n, dim=1).unsqueeze(1)
            grads.norm.add_(dw) if number else grads.norm.copy_(dw)
            dx = torch.zeros_like(df)
            self._normalise_backward(df.mul_(views.norm), final, dx)
            for index in reversed(range(self.shape.layers)):
                self._layer_backward(index, layers.pop(), views, folded, grads, dqkv, dx, beta)
            if not self.shape.tied and not number:
                grads.embedding.zero_()
            self._scatter(out, part[..., :-1], dx)
        self._unfold(views, grads, dqkv)
        return loss

    def _rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where each token's embedding lies in [R * elements / hidden, hidden]; shape [R, M]."""
        rows = self.shape.elements // self.shape.hidden
        first = torch.arange(tokens.shape[0], device=tokens.device) * rows
        return (tokens + first.view(-1, 1, 1)).flatten(1)

    def _scatter(self, out: torch.Tensor, tokens: torch.Tensor, dx: torch.Tensor) -> None:
        # Unlike `index_add_` this adds in the same order each time, on CUDA as well.
        table = out.view(-1, self.shape.hidden)
        table.index_put_((self._rows(tokens).flatten(),), dx.flatten(0, 1), accumulate=True)

    def _trunk(
        self,
        flat: torch.Tensor,
        views: Views,
        folded: _Folded,
        tokens: torch.Tensor,
        *,
        keep: bool,
    ) -> tuple[_Norm, list[_Layer]]:
        """Everything before the head; the layers' memories only if ``keep``."""
        x = embedding(self._rows(tokens), flat.view(-1, self.shape.hidden))
        layers: list[_Layer] = []
        for index in range(self.shape.layers):
            layer = self._layer(index, views, folded, x)
            if keep:
                layers.append(layer)
        return self._normalise(x), layers

    def _layer(self, index: int, views: Views, folded: _Folded, x: torch.Tensor) -> _Layer:
        """One layer; ``x``, [R, M, hidden], becomes its output."""
        wide = self.shape.intermediate
        attention_norm = self._normalise(x)
        qkv = torch.bmm(attention_norm.n, folded.qkv[:, index].mT)
        o, memory = self._attention.forward(qkv.view(-1, self._length, self.shape.qkv))
        o = o.view(*x.shape[:2], -1)
        x.baddbmm_(o, views.out[:, index].mT)
        forward_norm = self._normalise(x)
        gate_up = torch.bmm(forward_norm.n, folded.gate_up[:, index].mT)
        gate = silu(gate_up[..., :wide])
        product = gate * gate_up[..., wide:]
        x.baddbmm_(product, views.down[:, index].mT)
        return _Layer(attention_norm, memory, o, forward_norm, gate_up, gate, product)

    def _layer_backward(
        self,
        index: int,
        layer: _Layer,
        views: Views,
        folded: _Folded,
        grads: Views,
        dqkv: torch.Tensor,
        dx: torch.Tensor,
        beta: float,
    ) -> None:
        """``dx``, the gradient of the layer's output, becomes that of its input."""
        wide = self.shape.intermediate
        grads.down[:, index].baddbmm_(dx.mT, layer.product, beta=beta)
        ds = torch.bmm(dx, views.down[:, index])
        dgu = torch.empty_like(layer.gate_up)
        torch.mul(ds, layer.gate, out=dgu[..., wide:])
        ds.mul_(layer.gate_up[..., wide:])
        torch.ops.aten.silu_backward.grad_input(
            ds, layer.gate_up[..., :wide], grad_input=dgu[..., :wide]
        )
        grads.gate_up[:, index].baddbmm_(dgu.mT, layer.forward_norm.n, beta=beta)
        self._normalise_backward(torch.bmm(dgu, folded.gate_up[:, index]), layer.forward_norm, dx)
        grads.out[:, index].baddbmm_(dx.mT, layer.o, beta=beta)
        do = torch.bmm(dx, views.out[:, index]).view(-1, self._length, layer.o.shape[2])
        dy = self._attention.backward(do, layer.attention).view(*dx.shape[:2], -1)
        dqkv[:, index].baddbmm_(dy.mT, layer.attention_norm.n, beta=beta)
        self._normalise_backward(torch.bmm(dy, folded.qkv[:, index]), layer.attention_norm, dx)

    def _head(
        self, views: Views, final: _Norm, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Summed loss of each replica, [R]; its gradient by the logits; what went into the head.

        With the softmax p and the largest logit z_j, log sum exp z = z_j - log p_j: one
        exponential per logit gives the gradient p - 1[target] and the loss, and p_j, at least
        1 / vocabulary, never underflows as p[target] may.
        """
        weighted = final.n * views.norm
        logits = torch.bmm(weighted, views.unembedding.mT)
        p = logits.softmax(-1)
        where = targets.unsqueeze(2)
        losses = logits.amax(-1) - p.amax(-1).log() - logits.gather(2, where).squeeze(2)
        p.scatter_add_(2, where, p.new_full((), -1.0).expand(where.shape))
        return losses.sum(1), p, weighted

    def _normalise(self, x: torch.Tensor) -> _Norm:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = torch.addcmul(self._epsilon, norm, norm, value=1 / self.shape.hidden).rsqrt_()
        return _Norm(x * r, r)

    def _normalise_backward(self, dn: torch.Tensor, norm: _Norm, dx: torch.Tensor) -> None:
        """dx += r * (dn - n * mean(dn * n)); ``dn`` is used up."""
        dot = torch.linalg.vecdot(dn, norm.n).unsqueeze(-1)
        dn.addcmul_(norm.n, dot, value=-1 / self.shape.hidden)
        dx.addcmul_(dn, norm.r)

    def _fold(self, views: Views) -> _Folded:
        shape = self.shape
        qkv = torch.empty(views.qkv.shape, device=views.qkv.device)
        weight = views.norms[:, :, :1]
        pairs = self._by_pairs(views.qkv)
        torch.mul(pairs, weight.unsqueeze(3).unsqueeze(3), out=self._by_neighbours(qkv))
        torch.mul(views.qkv[:, :, shape.turned :], weight, out=qkv[:, :, shape.turned :])
        return _Folded(qkv, views.gate_up * views.norms[:, :, 1:])

    def _unfold(self, views: Views, grads: Views, dqkv: torch.Tensor) -> None:
        """From the gradients of folded matrices to those of matrices and norms' weights."""
        turned = self.shape.turned
        self._by_pairs(grads.qkv).copy_(self._by_neighbours(dqkv))
        grads.qkv[:, :, turned:].copy_(dqkv[:, :, turned:])
        for index, name in enumerate(("qkv", "gate_up")):
            grad: torch.Tensor = getattr(grads, name)
            torch.sum(grad * getattr(views, name), dim=2, out=grads.norms[:, :, index])
            grad.mul_(views.norms[:, :, index : index + 1])

    def _by_pairs(self, qkv: torch.Tensor) -> torch.Tensor:
        """Rows of queries and keys as `transformers` has them, as a view [R, L, heads, head/2, 2, hidden]."""
        turned = qkv[:, :, : self.shape.turned]
        return torch.unflatten(turned, 2, (-1, 2, self.shape.head // 2)).transpose(3, 4)

    def _by_neighbours(self, qkv: torch.Tensor) -> torch.Tensor:
        """The same rows in the rotary order, as a view of the same shape."""
        turned = qkv[:, :, : self.shape.turned]
        return torch.unflatten(turned, 2, (-1, self.shape.head // 2, 2))
