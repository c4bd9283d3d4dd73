"""The loop that zograd is compared with: MeZO as published (Malladi et al. 2023, arXiv 2305.17333, Algorithm 1).

    PerturbParameters(theta, eps, s):  reset the generator with seed s;  for each theta_i: z ~ N(0, 1), theta_i += eps z

    s <- random seed
    PerturbParameters(theta, +eps, s);   l+ <- L(theta)
    PerturbParameters(theta, -2 eps, s); l- <- L(theta)
    PerturbParameters(theta, +eps, s)
    g <- (l+ - l-) / (2 eps)
    reset the generator with seed s;  for each theta_i: z ~ N(0, 1), theta_i -= lr g z

It is written the plain way, as such loops are found in practice: one `torch.normal` tensor a parameter in the dtype of
the parameter, out-of-place arithmetic, and a new tensor put in the place of the old one. What that costs a step:

* four draws of every weight's noise from torch's generator, which on a CPU runs in one thread;
* eight reads and writes of temporaries and weights in each of the four passes;
* memory: the noise, two temporaries and the new tensor of the largest parameter at a time;
* exactness: +1, -2, +1 is rounded three times, so that weights do not return to where they were. In bfloat16 the error
  of an idle loop (lr = 0) grows like a random walk, to a tenth of the weights within a thousand steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def perturb_(parameters: Sequence[Tensor], scale: float, mu: float, seed: int) -> None:
    """theta_i <- theta_i + scale z_i mu, with z from torch's global generator after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0.0, std=1.0, size=p.shape, device=p.device, dtype=p.dtype)
        p.data = p.data + scale * z * mu


def update_(parameters: Sequence[Tensor], lr: float, slope: float, seed: int) -> None:
    """theta_i <- theta_i - lr slope z_i, with the z of `perturb_`."""
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0.0, std=1.0, size=p.shape, device=p.device, dtype=p.dtype)
        p.data = p.data - lr * (slope * z)


def cycle_(parameters: Sequence[Tensor], mu: float, seed: int) -> None:
    """The three moves of a step that is to change nothing: +mu z, -2 mu z, +mu z."""
    for scale in (1.0, -2.0, 1.0):
        perturb_(parameters, scale, mu, seed)


@torch.no_grad()
def mezo_step(
    parameters: Sequence[Tensor], loss: Callable[[], float], *, mu: float = 1e-3, lr: float = 1e-6, seed: int = 0
) -> float:
    """One step of Algorithm 1; returns the slope (l+ - l-) / (2 mu). Reseeds torch's global generator."""
    perturb_(parameters, 1.0, mu, seed)
    plus = loss()
    perturb_(parameters, -2.0, mu, seed)
    minus = loss()
    perturb_(parameters, 1.0, mu, seed)
    slope = (plus - minus) / (2 * mu)
    update_(parameters, lr, slope, seed)
    return slope
