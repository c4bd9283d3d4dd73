"""The ways on which a loss depends on the blocks of a model, beside the states behind the last one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn


def states_of(output: Any) -> Tensor:
    """The hidden states in what a block returns: the first entry of a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_states(output: Any, states: Tensor) -> Any:
    """What a block returned, with these hidden states in it."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


class Ways:
    """Watches forwards under autograd whose blocks run without a graph.

    In the blocks, all that a module returns is marked as a tensor that requires grad: what the loss keeps of it, such
    as the hidden states of an earlier block, the attentions or the logits of a router, is then a leaf of its graph.
    Nothing is kept alive here.

    trained: the tensors of the blocks. They require grad outside of the blocks alone, where a penalty reads them.
    """

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self.trained = trained
        self._inside = False
        self.returned: list[dict[int, tuple[int | str, ReferenceType[Tensor]]]] = []
        """For each forward, by the identity of a tensor: the number of its block, or the name of a module inside of it,
        or -1 for what entered the first block."""

    def enter(self, states: Tensor) -> None:
        """A forward enters the first block."""
        self.returned.append({id(states): (-1, ref(states))})
        self._inside = True
        self._require(False)
        torch.set_grad_enabled(False)

    def leave(self) -> None:
        """A forward leaves the last block."""
        self._inside = False
        torch.set_grad_enabled(True)
        self._require(True)

    def _require(self, on: bool) -> None:
        for tensor in self.trained:
            tensor.requires_grad_(on)

    @contextmanager
    def hooks(self, blocks: Sequence[nn.Module], first: int) -> Iterator[None]:
        """Inside, these blocks and their modules are watched."""
        with ExitStack() as stack:
            for number in range(first, len(blocks)):
                for name, module in blocks[number].named_modules():
                    what = f"{name} of block {number}" if name else number
                    stack.callback(module.register_forward_hook(self._seen_from(what)).remove)
            yield

    def _seen_from(self, what: int | str) -> Any:
        def seen(_: nn.Module, __: Any, output: Any) -> None:
            if not self._inside:  # a forward that is passed over
                return
            of_block = isinstance(what, int)
            for k, tensor in enumerate(output if isinstance(output, tuple | list) else (output,)):
                if not isinstance(tensor, Tensor) or isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
                    continue
                at = self.returned[-1].get(id(tensor))
                known = at is not None and at[1]() is tensor and (isinstance(at[0], int) or not of_block)
                if not known:
                    name = what if k == 0 or not of_block else f"entry {k} of what block {what} returns"
                    self.returned[-1][id(tensor)] = (name, ref(tensor.requires_grad_()))

        return seen

    def kept(self) -> list[tuple[int, int | str, Tensor]]:
        """(forward, what, tensor) for all that somebody keeps."""
        return [
            (k, what, tensor)
            for k, seen in enumerate(self.returned)
            for what, of in seen.values()
            if (tensor := of()) is not None
        ]

    def end(self) -> None:
        """What is kept requires no grad any more: some modules return buffers that they keep."""
        for _, _, tensor in self.kept():
            tensor.requires_grad_(False)
