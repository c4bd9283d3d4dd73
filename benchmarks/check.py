"""`make bench-check`: are the compiled loops, and a step, as fast as they were on this kind of processor?

Each case is a ratio: the CPU time of our way over that of a reference, which takes turns with it in one process and one
thread. The median of the rounds counts, and the best of three tries. A table is printed with the bound of each case for
this processor; the exit code is 1 when a ratio is above its bound. No test depends on these times.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd import kernels, laws, methods
from zograd.core.run import Run
from zograd.noise import Kind, Term, backend, combine
from zograd.oracles import batched, sequential
from zograd.stores import Store

TRIES = 3

BOUNDS: dict[str, dict[str, float]] = {
    "intel-avx512": {  # Xeon of records.md: the bounds that the test suite had
        "sign float32": 2.0,
        "sign bfloat16": 2.0,
        "normal float32": 4.0,
        "normal bfloat16": 4.0,
        "log-sum-exp float32": 1.1,
        "side branch float32": 1.0,
        "side branch bfloat16": 0.8,
        "step, signs one at a time": 1.6,
        "step, signs batched": 1.6,
        "step, rank one batched": 1.6,
    },
}
"""The largest ratio of each case, by `processor()`. A processor that is not here has the bounds of "other"."""
BOUNDS["amd-avx512"] = BOUNDS["intel-avx512"] | {
    "sign float32": 2.2,
    "sign bfloat16": 2.5,
    "normal float32": 5.5,
    "normal bfloat16": 6.5,
}  # Zen 4: 1.5, 1.7, 3.4 to 4.4, 4.7 were measured
BOUNDS["other"] = {name: 1.5 * bound for name, bound in BOUNDS["amd-avx512"].items()}


@dataclass(frozen=True)
class Case:
    """Our `way`, and the `reference` that its time is divided by."""

    name: str
    way: Callable[[], object]
    reference: Callable[[], object]
    rounds: int = 9


def processor() -> str:
    """The vendor and whether there is AVX-512, as in "amd-avx512"; "other" where /proc/cpuinfo does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "other"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vendor = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(fields.get("vendor_id", ""))
    wide = "avx512f" in fields.get("flags", "").split()
    return f"{vendor}-{'avx512' if wide else 'avx2'}" if vendor else "other"


# ---- the cases -------------------------------------------------------------------------------------------------------


def cases(*, elements: int = 1 << 24, rows: int = 256, blocks: int = 18) -> Iterator[Case]:
    """All cases, one at a time, so that the memory of one is free for the next.

    elements of a pass of noise, rows of a log-sum-exp, and blocks of the model of a step; smaller ones for a dry run.
    """
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.full((elements,), 0.02).to(dtype)
        for kind in Kind:
            yield Case(f"{kind.name.lower()} {named(dtype)}", noise_pass(x, kind), adding(x), rounds=5)
    logits = torch.randn(rows, 4096, generator=torch.Generator().manual_seed(0))
    top, total = torch.full((rows,), -torch.inf), torch.zeros(rows)
    yield Case(
        "log-sum-exp float32",
        lambda: kernels.log_sum_exp_(top, total, logits),
        lambda: torch.logsumexp(logits.float(), 1),
    )
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = sides(dtype)
        yield Case(f"side branch {named(dtype)}", ours, theirs)
    for name, law, together in (
        ("signs one at a time", laws.Rademacher(), 1),
        ("signs batched", laws.Rademacher(), 2),
        ("rank one batched", laws.RankOne(), 2),
    ):
        step, forwards = step_and_forwards(law, together, blocks)
        step()  # the first step compares both ways of evaluation
        yield Case(f"step, {name}", step, forwards, rounds=5)


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def noise_pass(x: Tensor, kind: Kind) -> Callable[[], object]:
    term = Term(kind, 7, 2.0**-20)
    return lambda: combine(x, x, terms=[term])


def adding(x: Tensor) -> Callable[[], object]:
    return lambda: x.add_(2.0**-20)


def sides(dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """y + c (x v) u for the two sides of a pair, by the compiled kernel and by products of torch."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 128, d, generator=generator).to(dtype) for d in (768, 1024))
    u, v = (torch.randn(1, d, generator=generator).sign() for d in (1024, 768))
    pair = [[((c,), kernels.Factors(u, v))] for c in (2.0**-10, -(2.0**-10))]
    theirs = y.clone()

    def by_torch() -> Tensor:
        for k, (((c,), _),) in enumerate(pair):
            t = (x[k].float() @ v.T).mul_(c)
            if dtype == torch.float32:
                theirs[k].addmm_(t, u)
            else:
                theirs[k].copy_(theirs[k].float().addmm_(t, u))
        return theirs

    return lambda: kernels.add_sides_(y, x, pair), by_torch


class Perceptrons(nn.Module):
    """Residual blocks x + W2 gelu(W1 x), an embedding in front and its transpose behind: 10.5 million weights."""

    def __init__(self, vocabulary: int = 4096, width: int = 256, blocks: int = 18) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.up = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(4 * width, width, bias=False) for _ in range(blocks))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.gelu(up(F.rms_norm(x, x.shape[-1:]))))
        logits = F.linear(x[:, :-1], self.embedding.weight)
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1).mean(1)


def step_and_forwards(law: laws.Law, together: int, blocks: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of `zo_sgd` on `Perceptrons`, and the two forwards that it cannot do without."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Perceptrons(blocks=blocks)
    ids = torch.randint(0, 4096, (8, 32), generator=torch.Generator().manual_seed(0))
    run = Run(Store(dict(model.named_parameters())), methods.make("zo_sgd", lr=1e-9, law=law), 0)

    def losses(copies: int) -> Tensor:
        return model(ids.repeat(copies, 1)).view(copies, -1).mean(1)

    oracle = batched(losses, 2) if together == 2 else sequential(lambda: losses(1).sum())

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(2):
            losses(1)

    return lambda: run.step(oracle), forwards


# ---- measuring -------------------------------------------------------------------------------------------------------


def ratio(case: Case) -> float:
    """Median over rounds of CPU time of the way over that of the reference, in turns, after a warm-up of each."""
    ratios = []
    for number in range(case.rounds + 1):
        spent = {}
        for run in (case.way, case.reference) if number % 2 else (case.reference, case.way):
            start = time.thread_time()
            run()
            spent[run] = time.thread_time() - start
        ratios.append(spent[case.way] / spent[case.reference])
    return statistics.median(ratios[1:])


def best(case: Case, bound: float, tries: int = TRIES) -> float:
    """The least ratio of up to `tries` tries; the first at the bound or below ends them."""
    least = float("inf")
    for _ in range(tries):
        least = min(least, ratio(case))
        if least <= bound:
            break
    return least


def read(found: Mapping[str, float], kind: str) -> tuple[str, bool]:
    """The table for people, and whether all ratios are within the bounds of processors of this kind."""
    bounds = BOUNDS.get(kind, BOUNDS["other"])
    lines = [f"{'case':<28}{'ratio':>8}{'bound':>8}"]
    for name, value in found.items():
        verdict = "ok" if value <= bounds[name] else "SLOWER"
        lines.append(f"{name:<28}{value:>8.2f}{bounds[name]:>8.2f}  {verdict}")
    slow = [name for name, value in found.items() if value > bounds[name]]
    lines.append(
        f"{len(slow)} of {len(found)} above their bound: {', '.join(slow)}. On a busy machine, run it again."
        if slow
        else f"All {len(found)} within the bounds of {kind}."
    )
    return "\n".join(lines), not slow


def main() -> int:
    if backend() != "native":
        print("The compiled loops were not built, so there is nothing to time: install with a C++ compiler.")
        return 1
    torch.set_num_threads(1)
    kind = processor()
    bounds = BOUNDS.get(kind, BOUNDS["other"])
    found = {case.name: best(case, bounds[case.name]) for case in cases()}
    text, good = read(found, kind)
    print(text)
    print(json.dumps({"processor": kind, "torch": torch.__version__, "ratios": found, "ok": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
