"""One forward through the blocks of a model: what entered them, and the derivative of the loss behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from zograd.blockwise.ways import Ways, states_of, with_states

Around: TypeAlias = Callable[[], AbstractContextManager[Any]]
Seen = TypeVar("Seen")


@dataclass
class Call:
    """What a forward of part of a batch has shown.

    inputs: the hidden states [rows, width, d] that entered a block, by its number; only those that are kept.
    arguments: what a block was called with besides, by its number: masks, positions. around: makes the context in which
    the forward ran, for parts of a block that are replaced in it.
    output: the hidden states behind the last block. signal: dL/d output, of the same shape. between: the same for the
    states behind earlier blocks, by number, where the loss depends on them on other ways than through the next block;
    for those that enter the first one, -1.
    direct: dL/d of trained tensors that the loss depends on outside of the blocks, by number, for all forwards of a
    loss; in the first call of them.
    front: the states that enter the first block, with their graph, where tensors in front of it are trained.
    owners: the sequence of each token, int64 [rows, width], -1 for padding; None where each row is one sequence.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    arguments: dict[int, tuple[tuple[Any, ...], Mapping[str, Any]]] = field(default_factory=dict)
    around: Around = nullcontext
    output: Tensor | None = None
    signal: Tensor | None = None
    between: dict[int, Tensor] = field(default_factory=dict)
    direct: dict[int, Tensor] = field(default_factory=dict)
    front: Tensor | None = None
    owners: Tensor | None = None

    @property
    def behind(self) -> Tensor:
        """The signal, which a call has once it was recorded."""
        assert self.signal is not None
        return self.signal

    def behind_all(self, number: int) -> Tensor:
        """The sum of dL/dh over the states h behind this block and all later ones, each by its own way to the loss."""
        return sum((self.between[k] for k in sorted(self.between) if k >= number), self.behind)

    def step_back(self, number: int, signal: Tensor) -> Tensor:
        """dL/dh of the states h behind this block, all ways together. signal: that through the next block."""
        own = self.between.pop(number, None)
        return signal if own is None else signal + own

    def before(self, front: Sequence[Tensor], signal: Tensor) -> list[Tensor]:
        """d<signal, h_0>/d front for the states h_0 that entered the first block; then their graph is let go."""
        if self.front is None:
            return [torch.zeros_like(tensor) for tensor in front]
        with requiring(front):
            found = torch.autograd.grad(self.front, front, signal.to(self.front.dtype), materialize_grads=True)
        self.front = None
        return list(found)

    def run(self, block: nn.Module, number: int, hidden: Tensor) -> Tensor:
        """The hidden states behind a block."""
        args, kwargs = self.arguments[number]
        with self.around():
            return states_of(block(hidden, *args, **kwargs))


@contextmanager
def _watched(
    blocks: Sequence[nn.Module],
    first: int,
    keep: Collection[int],
    around: Callable[[], Around],
    graph: bool = True,
    ways: Ways | None = None,
) -> Iterator[list[Call]]:
    """Inside, each forward of the model adds a `Call`. graph: behind the last block, one for autograd begins.

    With a graph, forwards under `torch.no_grad` are passed over: those of a reference model, or for numbers to show.
    ways: is told when a forward enters the first block and leaves the last one.
    """
    calls: list[Call] = []
    passed_over = True

    def enters(number: int) -> Callable[..., Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal passed_over
            if number == first:
                passed_over = graph and not torch.is_grad_enabled()
            if passed_over:
                return None
            rest = dict(kwargs)
            hidden = args[0] if args else rest.pop("hidden_states")
            if number == first:
                calls.append(Call(around=around()))
            calls[-1].arguments[number] = (args[1:], rest)
            if number == first or number in keep:
                calls[-1].inputs[number] = hidden.detach()
            if number > first:
                return None
            if hidden.requires_grad:
                calls[-1].front, hidden = hidden, hidden.detach().requires_grad_(ways is not None)
            if ways is not None:
                ways.enter(hidden)
            if calls[-1].front is None:
                return None
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        return enter

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal passed_over
        if passed_over:
            return output
        passed_over = True
        if ways is not None:
            ways.leave()
        states = states_of(output).detach().requires_grad_(graph)
        calls[-1].output = states
        return with_states(output, states)

    with ExitStack() as stack:
        if ways is not None:
            stack.enter_context(ways.hooks(blocks, first))
        for number in range(first, len(blocks)):
            stack.callback(blocks[number].register_forward_pre_hook(enters(number), with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(leave).remove)
        yield calls


def record(
    loss: Callable[[], Tensor],
    blocks: Sequence[nn.Module],
    first: int = 0,
    *,
    keep: Collection[int] = (),
    around: Callable[[], Around] = lambda: nullcontext,
    tail: Mapping[int, Tensor] = MappingProxyType({}),
    front: Sequence[Tensor] = (),
    inner: Mapping[int, Tensor] | None = None,
) -> tuple[float, list[Call]]:
    """(loss, a `Call` for each forward of the model in it), with the derivative of the loss behind the last block.

    loss: computes the loss of a batch by one forward of the model or several, and gives a scalar. No parameter of the
    model may require a gradient, so that no graph is kept in front of the last block's output.
    first: the first block with trained weights; what enters it is kept. keep: the numbers of others of which it is.
    around: tells, when a forward enters that block, the context that it runs in. tail: trained tensors behind the last
    block (the last norm, a head of classes) by any number, whose derivatives are taken too; 0 for one that is not
    there.
    front: trained tensors in front of the first block (embeddings), whose graph is kept for `Call.before`.
    inner: all other trained tensors by any number, for a loss that may depend on the blocks on other ways too: on these
    tensors themselves (a penalty), or on states behind earlier blocks (`Ways`). None: it does not.

    Costs one forward, and the derivative of what stands behind the last block: norm, rows of the output matrix, loss;
    with a loss that depends on the tensors of `inner`, memory for their derivatives.
    Raises TypeError for a loss without a derivative there, and for one that depends on something else that a block
    computes (attentions, the logits of a router).
    """
    ways = None if inner is None else Ways(list(inner.values()))
    own = inner or {}
    with requiring([*tail.values(), *front, *own.values()]):
        with _watched(blocks, first, keep, around, ways=ways) as entered, torch.enable_grad():
            value = loss()
        calls = [call for call in entered if call.output is not None]  # others stopped on their way
        if not (calls and isinstance(value, Tensor) and value.requires_grad):
            raise TypeError(
                "the loss has no derivative in the hidden states behind the last block: it is a metric, or computed "
                "under no_grad. Use a method that needs values of the loss alone, such as 'zo_sgd'"
            )
        kept = [] if ways is None else [(entered[k], what, t) for k, what, t in ways.kept() if t.requires_grad]
        wanted: Any = [*(call.output for call in calls), *tail.values(), *own.values(), *(t for _, _, t in kept)]
        found = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=bool(own and front))
    of_states, of_tail, of_own, of_kept = parted(found, len(calls), len(tail), len(own))
    for call, signal in zip(calls, of_states, strict=True):
        assert call.output is not None
        call.signal = torch.zeros_like(call.output) if signal is None else signal
        call.output = None
    for (index, tensor), gradient in zip(tail.items(), of_tail, strict=True):
        calls[0].direct[index] = torch.zeros_like(tensor) if gradient is None else gradient
    calls[0].direct |= {k: gradient for k, gradient in zip(own, of_own, strict=True) if gradient is not None}
    if ways is not None:
        ways.end()
    for (call, what, _), gradient in zip(kept, of_kept, strict=True):
        if gradient is None or not bool(gradient.any()):
            continue
        if isinstance(what, str):
            raise TypeError(
                f"the loss depends on what {what} computes (attentions, or the logits of a router, for example), whose "
                f"derivative is not that of the states behind a block. Leave it out of the loss, or use a method that "
                f"needs values of the loss alone, such as 'zo_sgd'"
            )
        if what == len(blocks) - 1:
            call.signal = call.behind + gradient
        else:
            call.between[what] = gradient
    return float(value.detach()), calls


def parted(values: Sequence[Seen], *sizes: int) -> list[Sequence[Seen]]:
    """The first values, the next ones, and so on, so many of each; at the end the rest."""
    found, start = [], 0
    for size in sizes:
        found.append(values[start : start + size])
        start += size
    return [*found, values[start:]]


@contextmanager
def requiring(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, these tensors require grad; afterwards those that did before."""
    before = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor, required in zip(tensors, before, strict=True):
            tensor.requires_grad_(required)


@torch.no_grad()
def observe(
    evaluate: Callable[[], Seen],
    blocks: Sequence[nn.Module],
    first: int = 0,
    *,
    around: Callable[[], Around] = lambda: nullcontext,
) -> tuple[Seen, list[Call]]:
    """(what `evaluate` gives, a `Call` for each forward of the model in it), without a derivative: see `record`."""
    with _watched(blocks, first, (), around, graph=False) as entered:
        value = evaluate()
    calls = [call for call in entered if call.output is not None]
    for call in calls:
        call.output = None
    return value, calls


def derivative(
    block: nn.Module, call: Call, number: int, hidden: Tensor, signal: Tensor, trained: Sequence[Tensor], *,
    of_input: bool = False,
) -> tuple[Tensor, list[Tensor], Tensor | None]:  # fmt: skip
    """(states behind the block, d<signal, states>/d trained, d<signal, states>/d hidden or None).

    Costs a forward and a backward of this block, whose activations are freed afterwards; where neither is wanted, a
    forward.
    """
    hidden = hidden.detach().requires_grad_(of_input)
    wanted = [*trained, hidden] if of_input else list(trained)
    found: list[Tensor] = []
    with requiring(trained):
        with torch.set_grad_enabled(bool(wanted)):
            output = call.run(block, number, hidden)
        if wanted:  # zeros where the block does not use a tensor
            found = list(torch.autograd.grad(output, wanted, signal.to(output.dtype), materialize_grads=True))
    return output.detach(), found[: len(trained)], found[-1] if of_input else None


@torch.no_grad()
def adds_to_its_input(block: nn.Module, call: Call, number: int) -> bool:
    """Whether a block adds to the stream: with the outputs of all its matrices set to 0, it returns its input.

    A norm behind the sum (post-norm) changes the input, and the answer is no. Numbers that are not finite do not tell,
    and the answer is yes. Costs one forward of the block.
    """

    def nothing(_: nn.Module, __: Any, output: Any) -> Any:
        return output * 0 if isinstance(output, Tensor) else output

    with ExitStack() as stack:
        for module in block.modules():
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if any(tensor.ndim >= 2 for tensor in own):
                stack.callback(module.register_forward_hook(nothing).remove)
        hidden = call.inputs[number]
        found = call.run(block, number, hidden)
        return torch.equal(found, hidden) or not bool(found.isfinite().all())
