"""Residual feedback by forward passes alone: slopes of each token along noise inside of one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from zograd import noise
from zograd.blockwise.calls import requiring
from zograd.blockwise.nodes import behind, cut, layers_of, signs
from zograd.blockwise.sources import NO_ENDS, Batch, Ends, Residual
from zograd.blockwise.ways import states_of, with_states
from zograd.stores import Leaf

Path: TypeAlias = Literal["adds", "stays", "spreads"]
"""How the output of a layer at a token reaches the output of its block: it is added to it, or it changes that token
alone, or tokens behind it too."""

PROBE = 2.0**-4
"""Size of the probe for that, as a share of the root mean square of the layer's outputs."""


class ResidualByValues(Residual):
    """g = d/dW sum_t <e_t, y_t(W)>, with e an estimate of d<H, F_l>/dy by evaluations of the block alone.

    As `Residual`, each block is trained on its own objective <H, F_l(h_l; W_l)>, H = dL/dh_L. y: the outputs of a layer
    with trained weights. Three kinds of layers, found by a probe at the first step:

        y is added to the block's output as it is           e_t = H_t, exactly
        y_t changes the block's output at the token t       e_t = s_t xi_t
        y_t changes it at t and behind t (attention)        e_t = sum_{t' >= t} s_t' xi_t
        s_t = <H_t, F(y + mu r xi)_t - F(y - mu r xi)_t> / (2 mu r)

    xi: independent signs for each layer, token and output. r: the root mean square of the layer's outputs, so that mu
    has no unit. E[e] is the derivative to O(mu^2). Tokens in front of t do not feel y_t in a causal model; sums stay
    within a sequence.

    draws: pairs of evaluations, whose estimates are averaged. Costs, beside the forward that is recorded, a forward of
    each block, 2 draws more of it, and the products of its trained layers. No graph leads through a block. Memory: what
    enters the trained layers of one block.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        leaves: Sequence[Leaf],
        ends: Ends = NO_ENDS,
        *,
        mu: float = 1e-2,
        draws: int = 1,
    ) -> None:
        super().__init__(blocks, leaves, ends)
        self.mu, self.draws = mu, draws
        trained = {id(leaf.tensor) for leaf in leaves}
        numbers = (number for number in sorted(self.leaves) if number < len(blocks))
        self.nodes = {number: layers_of(blocks[number], trained) for number in numbers}
        self._paths: dict[int, dict[int, Path]] = {}

    def observe(self, batch: Batch, key: int) -> list[float]:
        owners: list[Tensor | None] = []

        def around() -> Any:
            owners.append(batch.owners())
            return batch.around()

        loss, calls = self.recorded(batch.loss, around)
        for call, owner in zip(calls, owners, strict=True):
            call.owners = owner
        self.begin(calls, key)
        return [loss]

    def _visit(self, block: nn.Module, number: int, trained: Sequence[Tensor]) -> None:
        nodes = list(enumerate(self.nodes.get(number, [])))
        for k, call in enumerate(self.calls):
            with requiring(trained), cut(nodes) as outputs:
                with torch.set_grad_enabled(bool(trained)):
                    after = call.run(block, number, self._states[k]).detach()
                if trained:
                    ys = dict(outputs)
                    if len(ys) < len(outputs):
                        raise ValueError(
                            "a trained layer runs twice in a forward of its block, and its two outputs would get one "
                            "noise; use method 'residual'"
                        )
                    self._add(number, self._estimates(block, number, k, after, ys, trained))
            self._states[k] = after

    def _estimates(
        self, block: nn.Module, number: int, k: int, after: Tensor, ys: dict[int, Tensor], trained: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The estimate of d<H, F>/d trained, of one call. ys: the output of each layer."""
        call, signal = self.calls[k], self.calls[k].behind_all(number).float()
        for y in ys.values():
            if y.shape[:-1] != after.shape[:-1]:
                raise ValueError(
                    f"a trained layer gives rows of shape {tuple(y.shape[:-1])} for tokens of shape "
                    f"{tuple(after.shape[:-1])}, and which token a row belongs to is not known; use method 'residual'"
                )
        sizes = {node: float(y.detach().float().square().mean().sqrt()) or 1.0 for node, y in ys.items()}
        paths = self._paths_of(block, number, k, after, ys, sizes)
        moved = [node for node in ys if paths[node] != "adds"]
        found = {node: torch.zeros(y.shape, device=y.device) if node in moved else signal for node, y in ys.items()}
        for draw in range(self.draws) if moved else ():
            key = noise.fold(noise.fold(self.key, number), draw)
            xi = {node: signs(key, node, k, ys[node]) for node in moved}
            plus, minus = (
                self._run(block, number, k, {node: mu * sizes[node] * xi[node] for node in moved}).float()
                for mu in (self.mu, -self.mu)
            )
            slopes = ((plus - minus) * signal).sum(-1) / (2 * self.mu * self.draws)
            sums = sums_behind(slopes, call.owners)
            for node in moved:
                slope = slopes if paths[node] == "stays" else sums
                found[node] += xi[node] * (slope / sizes[node]).unsqueeze(-1)
        signals = [found[node].to(y.dtype) for node, y in ys.items()]
        return torch.autograd.grad(list(ys.values()), trained, signals, materialize_grads=True)

    @torch.no_grad()
    def _run(self, block: nn.Module, number: int, k: int, added: Mapping[int, Tensor]) -> Tensor:
        """The states behind the block, with something added to the outputs of its layers."""

        def adds(more: Tensor) -> Callable[..., Any]:
            return lambda _, __, y: with_states(y, (states_of(y).float() + more).to(states_of(y).dtype))

        with ExitStack() as stack:
            for node, more in added.items():
                stack.callback(self.nodes[number][node].register_forward_hook(adds(more)).remove)
            return self.calls[k].run(block, number, self._states[k])

    def _paths_of(
        self, block: nn.Module, number: int, k: int, after: Tensor, ys: dict[int, Tensor], sizes: dict[int, float]
    ) -> dict[int, Path]:
        """The path of each layer, by an evaluation of the block with its output moved at every second token."""
        if number in self._paths:
            return self._paths[number]
        paths: dict[int, Path] = {}
        for node, y in ys.items():
            probe = PROBE * sizes[node] * signs(number, node, 0, y)
            probe[:, 1::2] = 0.0
            change = self._run(block, number, k, {node: probe}).float() - after.float()
            near = 0.02 * PROBE * sizes[node]
            if change.shape == probe.shape and bool(((change - probe).abs() <= near).all()):
                paths[node] = "adds"
            else:
                paths[node] = "spreads" if bool(change[:, 1::2].any()) else "stays"
        if after.shape[1] > 1:
            self._paths[number] = paths
        return paths


def sums_behind(values: Tensor, owners: Tensor | None) -> Tensor:
    """[rows, width]: the sum of the values at and behind each token of its sequence; 0 for padding.

    owners: int64 [rows, width], the sequence of each token, -1 for padding; None: each row is one sequence.
    """
    rows, width = values.shape
    columns = torch.arange(width, device=values.device)
    if owners is None:
        owners = torch.arange(rows, device=values.device)[:, None].expand(rows, width)
    inside = owners >= 0
    own = torch.zeros((int(owners.max()) + 1) * width, device=values.device)
    own.index_add_(0, (owners * width + columns)[inside], values[inside])
    return behind(own.view(-1, width), owners)
