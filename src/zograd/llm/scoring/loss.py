"""Token losses over a vocabulary without all logits in memory: log-sum-exp over tiles of the output matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zograd.kernels import log_sum_exp_
from zograd.lens.lens import linear_rows, tile_elements
from zograd.llm import loading
from zograd.llm.scoring import head as heads


def token_losses(model: Any, hidden: Tensor, targets: Tensor, copies: int = 1) -> Tensor:
    """float32 [N]: -log softmax(W h + b)[target] for hidden states [N, d] and targets [N]; 0 for negative targets.

    The vocabulary is read tile by tile: log sum_j exp l_j = m + log s with m <- max(m, max_j l_j) and
    s <- s e^(m_old - m) + sum_j e^(l_j - m). Memory: the logits of one tile, [N, tile].

    For a model whose logits are not W h + b (`llm/scoring/head.py`), the model's own logits are computed for a few rows
    at a time.

    copies: the hidden states are this many copies of one batch, copy after copy.

    Where hidden states require a gradient, the losses have one, in the output matrix too if it requires one. It costs a
    second pass over the tiles.
    """
    base = loading.plain_model(model)
    if not heads.linear_head(base) or hasattr(base.get_output_embeddings(), "lookup"):
        wanted = targets.view(copies, -1)
        found, start = [], 0
        for part in heads.in_parts(base, hidden, copies):
            own = heads.logits(base, part, copies=copies)
            stop = start + len(part) // copies
            here = wanted[:, start:stop].flatten()
            found.append(F.cross_entropy(own, here.clamp(min=-1), ignore_index=-1, reduction="none").view(copies, -1))
            start = stop
        return torch.cat(found, 1).flatten()
    if torch.is_grad_enabled() and hidden.requires_grad:
        head = base.get_output_embeddings()
        of: Any = (hidden, base, targets, head.weight, head.bias)
        differentiable: Tensor = _TokenLosses.apply(*of)  # type: ignore[no-untyped-call]
        return differentiable
    losses, _ = _over_tiles(base, hidden, targets)
    return losses


def _tiles(base: Any, hidden: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, logits [N, stop - start]) of tiles of the vocabulary, for a linear head."""
    head, cap = base.get_output_embeddings(), heads.cap_of(base)
    weight, bias, hidden = head.weight, head.bias, heads.fitting(head, hidden)
    rows, columns = weight.shape
    size = max(1, tile_elements(weight.device) // columns)
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        logits = linear_rows(hidden, weight, start, stop)
        if bias is not None:
            logits = logits + bias[start:stop]
        if cap:
            logits = torch.tanh(logits.float() / cap) * cap
        yield start, stop, logits


def _over_tiles(base: Any, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N] each: the losses, and log sum_j e^l_j."""
    top = torch.full((hidden.shape[0],), -torch.inf, device=hidden.device)
    total = torch.zeros_like(top)
    picked = torch.zeros_like(top)
    for start, stop, logits in _tiles(base, hidden):
        here = (targets >= start) & (targets < stop)
        column = torch.where(here, targets - start, 0)
        picked = torch.where(here, logits.gather(1, column[:, None])[:, 0].float(), picked)
        log_sum_exp_(top, total, logits)
    log_sum = top + total.log()
    return torch.where(targets >= 0, log_sum - picked, 0.0), log_sum


class _TokenLosses(torch.autograd.Function):
    """The losses with their derivatives, tile by tile again. With P = softmax - one at the target, [N, vocabulary]:
    P W in the hidden states H, and where they are wanted P^T H in the output matrix W and the sum of rows of P in its
    bias. Behind a cap c the derivative of a logit l is 1 - (l / c)^2.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: Any, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        losses, log_sum = _over_tiles(base, hidden, targets)
        ctx.base = base
        ctx.save_for_backward(hidden, targets, log_sum)
        return losses

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (of_losses,) = outputs
        hidden, targets, log_sum = ctx.saved_tensors
        head, cap = ctx.base.get_output_embeddings(), heads.cap_of(ctx.base)
        weight, found = head.weight.detach(), torch.zeros(hidden.shape, device=hidden.device)
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[3] else None
        of_bias = torch.empty_like(head.bias) if ctx.needs_input_grad[4] else None
        of_losses = torch.where(targets >= 0, of_losses, 0.0)
        for start, stop, logits in _tiles(ctx.base, hidden):
            part = torch.exp(logits.float() - log_sum[:, None])
            here = ((targets >= start) & (targets < stop)).nonzero()[:, 0]
            part[here, targets[here] - start] -= 1.0
            part.mul_(of_losses[:, None])
            if cap:
                part.mul_(1.0 - (logits / cap).square())
            part = part.to(weight.dtype)
            found += part @ weight[start:stop]
            if of_weight is not None:
                of_weight[start:stop] = part.T @ hidden.to(weight.dtype)
            if of_bias is not None:
                of_bias[start:stop] = part.sum(0)
        return found.to(hidden.dtype), None, None, of_weight, of_bias


def causal_losses(model: Any, ids: Tensor, labels: Tensor | None = None, *, copies: int = 1, **inputs: Any) -> Tensor:
    """float32 [copies]: mean next-token loss of a causal language model on each of `copies` copies of a batch.

    Equal to `model(input_ids=ids, labels=labels).loss`, up to rounding.

    ids: int64 [B, T]. labels: int64 [B, T], negative ones do not count; None: the ids.
    inputs: further inputs of the model (attention_mask); they are repeated for each copy.

    Memory: the logits of one tile of the vocabulary. For `zograd.batched`:

        batched(lambda n: causal_losses(model, ids, copies=n))
    """
    base = loading.plain_model(model)
    backbone = heads.backbone_of(base)
    labels = ids if labels is None else labels
    repeated = {
        name: torch.cat([value] * copies) if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    hidden = backbone(input_ids=ids.repeat(copies, 1), use_cache=False, **repeated).last_hidden_state[:, :-1]
    targets = labels[:, 1:].repeat(copies, 1)
    losses = token_losses(model, hidden.flatten(0, 1), targets.flatten(), copies)
    return losses.view(copies, -1).sum(1) / (targets[: len(ids)] >= 0).sum()
