"""A process reward at test time: samples that keep their right digits solve as many sums as any adaptation.

Rows      14
Paper     research programme (inference-time training with a process reward); REINFORCE is Williams 1992
Formula   h <- GRU(digits, h + d); rank: d <- d + lr sum_k w_(k) v_(k) over 8 points d + mu v_k, with common uniform
          numbers or their own; REINFORCE: lr mean sum_t (G_t - mean of the others) grad_d log p_t, G_t hits from t on
Evidence  best of 64, and REINFORCE with derivatives, at equal samples; the exact gradient by enumeration in the tests
Extent    a GRU of 19,850 weights and sums of numbers; the reward is an exact verifier, which texts seldom have
Needs     nothing more
Seconds   45
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line
from zograd.llm.scoring.metrics import wilson

HIDDEN, TAUGHT, NOTHING, SAMPLES, STEP, MU = 64, 2, 10, 64, 8, 0.3
RATES = {"rank": (0.1, 0.3, 1.0), "rank, own numbers": (0.1, 0.3, 1.0), "REINFORCE": (0.3, 1.0, 3.0)}


# %% The policy reads two digits, lowest first, and its last answer, and writes a digit of the sum. d shifts its state.
class Policy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = torch.nn.Embedding(11, 32), torch.nn.GRUCell(32, HIDDEN)
        self.out = torch.nn.Linear(HIDDEN, 10)

    def walk(self, prompts: Tensor, d: Tensor | float, u: Tensor, given: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        """prompts: (n, length, 2), d: (n, 64), u: uniform numbers. Digits and log p of them, (n, length).

        The first `count` digits are those `given`, the others are drawn by the inverse of their distribution function.
        """
        h, x = torch.zeros(len(prompts), HIDDEN), torch.full((len(prompts),), NOTHING)
        said, logs = [], []
        for t in range(prompts.shape[1]):
            h = self.cell(self.embed(prompts[:, t]).sum(1) + self.embed(x), h + d)
            logp = torch.log_softmax(self.out(h), 1)
            new = (u[:, t, None] > logp.detach().exp().cumsum(1)).sum(1).clamp(max=9)
            said.append(x := torch.where(t < count, given[:, t], new))
            logs.append(logp.gather(1, x[:, None])[:, 0])
        return torch.stack(said, 1), torch.stack(logs, 1)


def sums(number: int, low: int, high: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of numbers in [low, high) as digits: prompts (number, length, 2), and the digits of their sums."""
    a, b = torch.randint(low, high, (2, number), generator=torch.Generator().manual_seed(seed))
    digits = [torch.stack([n // 10**i % 10 for i in range(length)], 1) for n in (a, b, a + b)]
    return torch.stack(digits[:2], 2), digits[2]


def taught(seed: int, steps: int) -> Policy:
    """A policy that learned sums of two-digit numbers, by Adam on cross-entropy."""
    torch.manual_seed(seed)
    policy = Policy()
    opt = torch.optim.Adam(policy.parameters(), 3e-3)
    for step in range(steps):
        prompts, right = sums(128, 0, 10**TAUGHT, TAUGHT + 1, 10**6 * (seed + 1) + step)
        logs = policy.walk(prompts, 0.0, torch.zeros(right.shape), right, torch.tensor(TAUGHT + 1))[1]
        opt.zero_grad()
        (-logs.sum(1).mean()).backward()
        opt.step()
    return policy.requires_grad_(False)


# %% Ways to spend 64 samples a prompt. Each gives (8, prompts): whether a sample so far was right in every digit.
def best_of(policy: Policy, prompts: Tensor, right: Tensor, seed: int, keep: bool = False) -> Tensor:
    """Independent samples; keep: each begins with the longest right beginning of those before it."""
    luck, begun, found = torch.Generator().manual_seed(seed), torch.zeros(len(prompts), dtype=torch.long), []
    for _ in range(SAMPLES):
        said, _ = policy.walk(prompts, 0.0, torch.rand(right.shape, generator=luck), right, begun)
        ahead = (said == right).long().cumprod(1).sum(1)
        begun = torch.maximum(begun, ahead) if keep else begun
        found.append(ahead == right.shape[1])
    return torch.stack(found).cummax(0).values[STEP - 1 :: STEP]


def adapted(policy: Policy, prompts: Tensor, right: Tensor, seed: int, how: str, lr: float) -> Tensor:
    """how: "rank", whose 8 points a step share their uniform numbers, "rank, own numbers", or "REINFORCE"."""
    (number, length), luck = right.shape, torch.Generator().manual_seed(seed)
    each, wanted = prompts.repeat_interleave(STEP, 0), right.repeat_interleave(STEP, 0)
    method, zero = zo.methods.rank(lr=lr, mu=MU, n=STEP), np.zeros(HIDDEN, np.float32)
    loops = [zo.AskTell(zero, method, seed=10**4 * seed + k, maximize=True) for k in range(number)]
    d, found = torch.zeros(number, HIDDEN), []
    for _ in range(SAMPLES // STEP):
        u = torch.rand(number, 1 if how == "rank" else STEP, length, generator=luck)
        u = u.expand(number, STEP, length).reshape(-1, length)
        if how == "REINFORCE":
            slope, hits = reinforce(policy, each, d, wanted, u)
            d = d + lr * slope
        else:
            points = torch.from_numpy(np.concatenate([np.stack(loop.ask()) for loop in loops]))
            hits = policy.walk(each, points, u, wanted, torch.tensor(0))[0] == wanted
            for loop, shares in zip(loops, hits.double().mean(1).reshape(number, STEP).tolist(), strict=True):
                loop.tell(shares)
        found.append(hits.all(1).reshape(number, STEP).any(1))
    return torch.stack(found).cummax(0).values


def reinforce(policy: Policy, each: Tensor, d: Tensor, wanted: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Of the expected share of right digits: its slope in d, (prompts, 64), without bias; and the right digits."""
    d = d.clone().requires_grad_()
    said, logs = policy.walk(each, d.repeat_interleave(len(each) // len(d), 0), u, wanted, torch.tensor(0))
    gain = (said == wanted).double().flip(1).cumsum(1).flip(1).reshape(len(d), -1, said.shape[1]) / said.shape[1]
    others = (gain.sum(1, keepdim=True) - gain) / (gain.shape[1] - 1)
    (slope,) = torch.autograd.grad((logs.reshape(gain.shape) * (gain - others)).sum() / gain.shape[1], d)
    return slope, said == wanted


# %% Sums of three and of five digits, of a policy that learned two. Rates are chosen on another policy and its prompts.
def run(seed: int = 0, quick: bool = False) -> Finding:
    number, seeds, lengths, steps = (30, 1, (5,), 250) if quick else (200, 3, (3, 5), 400)
    ways: dict[str, Callable[..., Tensor]] = {"best of 64": best_of, "right digits kept": partial(best_of, keep=True)}
    other, *policies = (taught(seed + s, steps) for s in (1000, *range(seeds)))
    numbers, figures, ends = dict[str, float](), [], {}
    for length in lengths:
        lines = []
        asked = partial(sums, number, 10 ** (length - 1), 10**length, length + 1)
        for how, rates in RATES.items():
            tried = {lr: float(adapted(other, *asked(9), 9, how, lr)[-1].float().mean()) for lr in rates}
            numbers[f"{length} digits, {how}: rate"] = best_rate = max(rates, key=lambda lr: tried[lr])
            ways[how] = partial(adapted, how=how, lr=best_rate)
        for name, way in ways.items():
            solved = torch.cat([way(p, *asked(100 + s), 100 + s) for s, p in enumerate(policies)], 1).float().mean(1)
            low, high = wilson(last := float(solved[-1]), seeds * number)
            numbers |= {f"{length} digits, {name}: share solved": last, f"{length} digits, {name}: 95 %, from": low,
                        f"{length} digits, {name}: 95 %, to": high}  # fmt: skip
            ends[length, name] = low, last, high
            lines.append(Line(name, range(STEP, SAMPLES + 1, STEP), solved.tolist()))
        figures.append(Figure(f"Sums of {length} digits", "samples a prompt", "share solved", tuple(lines)))
    best, kept, _, own, slopes = (ends[lengths[-1], name] for name in ways)
    claims = (
        Claim("five digits: samples that keep their right digits solve more than best of 64", kept[1] > best[1]),
        Claim("five digits: no adaptation is ahead of them, intervals apart", kept[2] > max(own[0], slopes[0])),
        Claim("five digits: rank with own numbers is ahead of best of 64, intervals apart", own[0] > best[2], True),
        Claim("five digits: REINFORCE, which needs derivatives, solves more than rank", slopes[1] > own[1], True),
        Claim("rank with common numbers in a step solves no more than with own ones",
              all(ends[n, "rank"][1] <= ends[n, "rank, own numbers"][1] for n in lengths), True),
        Claim("three digits: best of 64 is within 3 points of every other way",
              all(v[1] < ends[n, "best of 64"][1] + 0.03 for (n, _), v in ends.items() if n == 3), True),
    )  # fmt: skip
    return Finding(numbers, claims, tuple(figures))
