"""Node perturbation: slopes of each example along noise on the outputs of layers or blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from zograd import noise
from zograd.blockwise.calls import Call, observe, record, requiring
from zograd.blockwise.sources import FRONT, NO_ENDS, Batch, Blockwise, Ends, Residual
from zograd.blockwise.ways import states_of, with_states
from zograd.stores import Leaf

At: TypeAlias = Literal["layers", "blocks"]


@dataclass(frozen=True)
class Terms:
    """What the loss of one forward sums up, and which tokens each term depends on.

    values: float32 [n]; their sum over the forwards of a batch is its mean loss. owners: int64 [n], the example of each
    term. columns: int64 [n], the last column of the forward that it depends on.
    cells: int64 [rows, width], the example of each token, -1 for padding.
    """

    values: Tensor
    owners: Tensor
    columns: Tensor
    cells: Tensor

    def slopes(self, other: Terms, mu: float) -> Tensor:
        """float32 [rows, width]: (L(+mu) - L(-mu)) / 2 mu of the terms that a token can change, 0 for padding.

        self and other: at +mu and -mu. A token of a causal model changes the terms of its own example, at its own
        column and behind it.
        """
        examples, width = int(self.cells.max()) + 1, self.cells.shape[1]
        at = self.owners * width + self.columns
        changes = torch.zeros(examples * width, device=self.values.device)
        changes.index_add_(0, at, (self.values - other.values) / (2.0 * mu))
        return behind(changes.view(examples, width), self.cells)


def behind(values: Tensor, owners: Tensor) -> Tensor:
    """float32 [rows, width]: the sum at and behind the column of each token of what its owner has there; 0 for padding.

    values: [owners, width]. owners: int64 [rows, width], the owner of each token, -1 for padding.
    """
    sums = values.flip(1).cumsum(1).flip(1)
    columns = torch.arange(sums.shape[1], device=sums.device)
    return torch.where(owners >= 0, sums[owners.clamp(min=0), columns], 0.0)


@dataclass
class _Draw:
    """One draw of noise: its key, and the slopes along it, [rows, width] for each forward."""

    key: int
    slopes: list[Tensor]


@dataclass
class _Seen:
    """What a lookup was asked for in a forward: its ids, and where they count (`Lookup.used`); None: for each row."""

    ids: Tensor
    used: Tensor | None


class Nodes(Residual):
    """g = d/dW sum_i <c_i xi_i, y_i(W)>, c_i = (L_i(y + mu xi) - L_i(y - mu xi)) / 2 mu, the input of y held fixed.

    y: the outputs of every layer with trained weights (at="layers"), or of every block (at="blocks", and the chain rule
    inside of it). xi: independent signs for each output, example and position. E[c_i xi_i] = dL_i/dy_i + O(mu^2), and
    the chain rule from y to the weights W of y itself needs no other layer; so g is unbiased to O(mu^2). Its variance
    counts outputs times positions in place of weights, and each example has its own slope. For losses that are sums
    over tokens, a slope counts those at and behind its own position (`Terms.slopes`).

    A trained embedding in front of the blocks (`Ends.lookup`: a soft prompt, a prefix of keys and values) has noise on
    what it returns for each example, where that counts; its estimate costs nothing beside the forwards. There mu is a
    share of the root mean square of its weights, whose size differs much. With D weights and gradients g_i of B
    examples, of mean g, the mean squared error is about D / B^2 sum_i |g_i|^2; that of one direction of the weights is
    D |g|^2, which is more where the examples agree, and less where they cancel out.

    Williams 1992 (node perturbation); Ren, Kornblith, Liao and Hinton, ICLR 2023, arXiv 2210.03310 (activity-perturbed
    forward gradient).

    draws: pairs of forwards, whose estimates are averaged.
    center: whether residual feedback is the center: H + shrink (c_i - <H_i, xi_i>) xi_i in place of c_i xi_i, with
    H = dL/dh_L and the inner product over all blocks of an example. Unbiased with shrink = 1, residual feedback with
    shrink = 0. At blocks alone.

    Raises ValueError for a front without its lookup, or with center, as H is not known there; and, before a weight
    moves, where a node runs several times in one forward: one noise on all of its outputs would bias the estimate.

    Costs 2 draws forwards (one more with center), and then a forward and the products of each trained layer, or the
    derivative of a block. Memory: the states between two blocks, and the activations of one block.
    """

    reaches_front = True

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        leaves: Sequence[Leaf],
        ends: Ends = NO_ENDS,
        *,
        mu: float = 1e-2,
        at: At = "layers",
        draws: int = 1,
        center: bool = False,
        shrink: float = 1.0,
    ) -> None:
        super().__init__(blocks, leaves, Ends((), ends.front))
        self.mu, self.draws, self.center, self.shrink = mu, draws, center, shrink
        self.adds = center
        trained = {id(leaf.tensor) for leaf in leaves}
        self.nodes: dict[int, list[tuple[int, nn.Module]]] = {}
        """The perturbed modules of each block that has trained weights, with their numbers."""
        count = 0
        for number in sorted(n for n in self.leaves if n != FRONT):
            found = [blocks[number]] if at == "blocks" else layers_of(blocks[number], trained)
            self.nodes[number] = list(enumerate(found, count))
            count += len(found)
        self.lookup = ends.lookup if FRONT in self.leaves else None
        if FRONT in self.leaves:
            if self.lookup is None or [id(t) for t in self.front] != [id(self.lookup.module.weight)]:
                raise ValueError(
                    f"node perturbation reaches one embedding in front of the blocks, given as ends.lookup; got "
                    f"front={list(ends.front)}"
                )
            if center:
                raise ValueError("residual feedback is not known in front of the blocks; leave center out")
        self._lookup_node = count
        self._looked_up: list[_Seen] = []
        self._cells: list[Tensor] = []
        self._drawn: list[_Draw] = []

    @property
    def visits(self) -> range:
        return range(self.start, self.stop)

    def observe(self, batch: Batch, key: int) -> list[float]:
        self._drawn, self._looked_up, losses = [], [], []
        calls: list[Call] = []
        if self.center:
            loss, calls = record(batch.loss, self.blocks, self.first, around=batch.around)
            losses.append(loss)
        for draw in range(self.draws):
            one = noise.fold(key, draw)
            sides: list[list[Terms]] = []
            for mu in (self.mu, -self.mu):
                with self._perturbed(one, mu):
                    terms, seen = self._forwards(batch)
                if len(seen) != len(terms):
                    raise ValueError(
                        f"the blocks of the model ran {len(seen)} times in {len(terms)} forwards, and their gradients "
                        f"are those of one run: use a method that needs values alone, such as zo_sgd"
                    )
                calls = calls or seen
                sides.append(terms)
                losses.append(sum(float(t.values.sum()) for t in terms))
            slopes = [plus.slopes(minus, self.mu) for plus, minus in zip(*sides, strict=True)]
            if self.center:
                slopes = [s - self._seen_by_center(one, k, plus, calls[k]) for k, (s, plus) in enumerate(
                    zip(slopes, sides[0], strict=True))]  # fmt: skip
            self._drawn.append(_Draw(one, slopes))
            self._cells = [plus.cells for plus in sides[0]]
        self.begin(calls)
        return losses

    def _forwards(self, batch: Batch) -> tuple[list[Terms], list[Call]]:
        """What `observe` gives; where no block is visited, its calls are empty."""
        if self.nodes:
            return observe(batch.terms, self.blocks, self.first, around=batch.around)
        with torch.no_grad():
            terms = batch.terms()
        return terms, [Call() for _ in terms]

    def begin(self, calls: Sequence[Call], key: int = 0) -> None:
        if self.nodes:
            super().begin(calls, key)
        else:
            Blockwise.begin(self, calls, key)

    def end(self) -> None:
        super().end()
        self._drawn, self._looked_up, self._cells = [], [], []

    def _seen_by_center(self, key: int, k: int, terms: Terms, call: Call) -> Tensor:
        """[rows, width]: <H_i, xi_i> of the example of each token, over all of its positions and all blocks."""
        found = torch.zeros(int(terms.cells.max()) + 1, device=call.behind.device)
        inside = terms.cells >= 0
        for number in self.nodes:
            for node, _ in self.nodes[number]:
                product = (call.behind.float() * signs(key, node, k, call.behind)).sum(-1)
                found.index_add_(0, terms.cells[inside], product[inside])
        return torch.where(inside, found[terms.cells.clamp(min=0)], 0.0)

    @contextmanager
    def _perturbed(self, key: int, mu: float) -> Iterator[None]:
        """Inside, every node returns y + mu xi. The noise is that of the node and of the number of the forward."""
        count = -1
        looked_up = -1  # the forward in which the lookup ran last
        ran: set[int] = set()

        def begins(*_: Any) -> None:
            nonlocal count
            count += 1
            ran.clear()

        def add(node: int) -> Callable[..., Any]:
            def hook(module: nn.Module, _: Any, output: Any) -> Any:
                if node in ran:
                    raise ValueError(
                        f"a trained {type(module).__name__} of the model runs several times in one forward, and node "
                        f"perturbation gives each output one noise: train other layers (--train), or use residual, "
                        f"backprop or zo_sgd"
                    )
                ran.add(node)
                y = states_of(output)
                return with_states(output, y + (mu * signs(key, node, count, y)).to(y.dtype))

            return hook

        size = 1.0 if self.lookup is None else _size(self.lookup.module.weight)

        def look_up(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            nonlocal looked_up
            if looked_up == count + 1:
                raise ValueError(
                    f"a trained {type(module).__name__} in front of the blocks runs several times in one forward, and "
                    f"node perturbation gives each output one noise: use zo_sgd"
                )
            looked_up = count + 1  # it runs in front of the block at which a forward is counted
            if self.lookup is not None and len(self._looked_up) == looked_up:
                used = self.lookup.used
                self._looked_up.append(_Seen(args[0], None if used is None else used()))
            return y + (mu * size * signs(key, self._lookup_node, looked_up, y)).to(y.dtype)

        with ExitStack() as stack:
            stack.callback(self.blocks[self.first].register_forward_pre_hook(begins).remove)
            if self.lookup is not None:
                stack.callback(self.lookup.module.register_forward_hook(look_up).remove)
            for nodes in self.nodes.values():
                for node, module in nodes:
                    stack.callback(module.register_forward_hook(add(node)).remove)
            yield

    def _visit(self, block: nn.Module, number: int, trained: Sequence[Tensor]) -> None:
        nodes = self.nodes.get(number, [])
        for k, call in enumerate(self.calls):
            with requiring(trained), cut(nodes) as outputs:
                with torch.set_grad_enabled(bool(trained)):
                    after = call.run(block, number, self._states[k])
                if trained:
                    signals = [self._signal(node, k, call, y) for node, y in outputs]
                    ys = [y for _, y in outputs]
                    self._add(number, torch.autograd.grad(ys, trained, signals, materialize_grads=True))
            self._states[k] = after.detach()

    def _visit_front(self) -> None:
        for k in range(len(self.calls)):
            self._add(FRONT, [self._of_lookup(k, weight) for weight in self.front])

    def _of_lookup(self, k: int, weight: Tensor) -> Tensor:
        """The estimate of d/dW of what one forward looked up: for each row of W, the sum of its signals."""
        seen = self._looked_up[k]
        total = torch.zeros(*seen.ids.shape, weight.shape[1], device=weight.device)
        for draw in self._drawn:
            slopes = draw.slopes[k]
            if seen.used is None:  # in front of each row: all of its example follows
                first = (self._cells[k] >= 0).int().argmax(1, keepdim=True)
                slopes = slopes.gather(1, first).expand(seen.ids.shape)
            else:
                slopes = torch.where(seen.used, slopes, 0.0)
            total += signs(draw.key, self._lookup_node, k, total) * slopes[..., None]
        total /= self.draws * _size(weight)
        found = torch.zeros(weight.shape, device=weight.device)
        return found.index_add_(0, seen.ids.reshape(-1), total.view(-1, weight.shape[1]))

    def _signal(self, node: int, k: int, call: Call, y: Tensor) -> Tensor:
        """The estimate of dL/dy, in the shape and the dtype of y."""
        total = torch.zeros(y.shape, device=y.device)
        for draw in self._drawn:
            slopes = draw.slopes[k]
            if y.numel() // y.shape[-1] != slopes.numel():
                raise ValueError(
                    f"a trained layer gives {y.numel() // y.shape[-1]} rows for {slopes.numel()} tokens, and which "
                    f"example a row belongs to is not known; use at='blocks'"
                )
            total += signs(draw.key, node, k, y) * slopes.reshape(*y.shape[:-1], 1)
        total *= (self.shrink if self.center else 1.0) / self.draws
        return (total + call.behind if self.center else total).to(y.dtype)


def _size(weight: Tensor) -> float:
    """The root mean square of a tensor, or 1 where that is 0: the unit of mu on what is looked up in it."""
    return float(weight.detach().float().square().mean().sqrt()) or 1.0


def signs(key: int, node: int, forward: int, like: Tensor) -> Tensor:
    """float32 signs of the shape of `like`: the noise on the output of a node in one of the forwards of a batch."""
    return noise.signs(noise.fold(key, forward), [(node, 0, like.numel())], like.device).view(like.shape)


def layers_of(block: nn.Module, trained: set[int]) -> list[nn.Module]:
    """The modules of a block that own trained tensors (identities), in order; an adapter with what it wraps."""
    wrappers = [name for name, module in block.named_modules() if hasattr(module, "base_layer")]
    found: dict[str, nn.Module] = {}
    for name, module in block.named_modules():
        if any(id(p) in trained for p in module.parameters(recurse=False)):
            outer = next((w for w in wrappers if name.startswith(w + ".")), name)
            found[outer] = block.get_submodule(outer)
    return list(found.values())


@contextmanager
def cut(nodes: Sequence[tuple[int, nn.Module]]) -> Iterator[list[tuple[int, Tensor]]]:
    """Inside, autograd sees each node alone: no graph leads into it or out of it. Yields (number, output).

    Derivatives are taken inside too: a block with checkpoints runs again for them, and has to be cut in the same way.
    """
    outputs: list[tuple[int, Tensor]] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(_detached, args)), {name: _detached(value) for name, value in kwargs.items()}

    def leave(node: int) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            y = states_of(output)
            if y.requires_grad:
                outputs.append((node, y))
            return with_states(output, y.detach())

        return hook

    with ExitStack() as stack:
        for node, module in nodes:
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave(node)).remove)
        yield outputs


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
