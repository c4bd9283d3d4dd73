"""Not a test file: run by test_noise_triton.py in a process of its own, with Triton's interpreter switched on.

Steps whose noise comes from the Triton kernels, on CPU tensors: the weights have the bits of the compiled kernels, and
the number of launches of a step does not grow with the number of layers. One line a case, then "done".
"""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from zograd import Run, Store, methods, noise
from zograd.noise import device
from zograd.oracles import batched, sequential

STEPS = 2
LAYERS = (1, 5)


def model_of(layers: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(layers)]
    return nn.Sequential(*blocks).to(dtype).requires_grad_(False)


def trained(layers: int, dtype: torch.dtype, copies: int, rounding: Any, triton: bool) -> tuple[str, list[int]]:
    """(digest of the weights after some steps, launches of each step)."""
    model = model_of(layers, dtype)
    store = Store(dict(model.named_parameters()), rounding=rounding)
    run = Run(store, methods.make("zo_sgd", lr=1e-2, mu=2.0**-6, n=2), 7)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(dtype)

    def loss() -> Tensor:
        return model(x).float().square().mean()

    def losses(n: int) -> Tensor:
        return model(x.repeat(n, 1)).float().square().view(n, -1).mean(1)

    oracle = sequential(loss) if copies == 1 else batched(losses, copies)
    launches: list[int] = []
    launch = device.Pass.launch

    def counted(whole: device.Pass) -> None:
        launches[-1] += len(whole._groups)
        launch(whole)

    with ExitStack() as stack:
        if triton:
            stack.enter_context(patch.object(noise, "_engine", lambda _: device))
            stack.enter_context(patch.object(device.Pass, "launch", counted))
        stack.enter_context(store.deferring())  # as in training
        for _ in range(STEPS):
            launches.append(0)
            run.step(oracle)
    return store.digest(), launches


def steps_have_the_bits_and_few_launches() -> None:
    cases = [(torch.float32, "stochastic"), (torch.bfloat16, "stochastic"), (torch.bfloat16, "split")]
    for dtype, rounding in cases:
        for copies in (1, 2):
            counts = []
            for layers in LAYERS:
                expected, none = trained(layers, dtype, copies, rounding, triton=False)
                digest, launches = trained(layers, dtype, copies, rounding, triton=True)
                assert digest == expected, (dtype, rounding, copies, layers)
                assert not any(none)
                counts.append(launches[-1])
            assert counts[0] == counts[1] > 0, (dtype, rounding, copies, counts)
            print("steps", dtype, rounding, copies, *counts)


if __name__ == "__main__":
    assert device.kernels().combine_kernel.__class__.__name__ == "InterpretedFunction", "the interpreter is not on"
    steps_have_the_bits_and_few_launches()
    print("done")
