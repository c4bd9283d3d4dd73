"""Twenty hospitals over noisy links: consensus without dual variables on the clients, then federation by scalars.

Rows      41
Paper     RERCE-Fed, arXiv 2409.13451; its update with a single global is not public, and the form here is ours
Formula   w+ = (I - r N) w + r N (2 g - g'), N = (A + r I)^-1, upload w+ + g + (b - N^-1 w+) / r, the server broadcasts
          the mean; scalars: each client answers (f(w + mu v) - f(w - mu v)) / (2 mu), clipped to C, with noise s
Evidence  the minimum by a linear system; the same rounds with dual variables; zero-concentrated privacy in closed form
Extent    weighted least squares of 10 coefficients, in one process
Needs     bench
Seconds   7
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_breast_cancer

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line

CLIENTS, D, R, CLIP, DELTA = 20, 10, 1.0, 0.25, 1e-5
Array = np.ndarray


# %% The hospitals: quantiles of one feature, so their data differ. Each has A and b of its weighted least squares.
def hospitals() -> tuple[Array, Array]:
    x, y = load_breast_cancer(return_X_y=True)
    x = (x[:, :D] - x[:, :D].mean(0)) / x[:, :D].std(0)
    weights = np.where(y == 1, 1.0, 1.5)
    parts = np.array_split(np.argsort(x[:, 4]), CLIENTS)
    a = [x[p].T @ (weights[p, None] * x[p]) / len(p) + 0.3 * np.eye(D) for p in parts]
    b = [x[p].T @ (weights[p] * (2.0 * y[p] - 1)) / len(p) for p in parts]
    return np.array(a), np.array(b)


# %% Rounds of consensus. `rule` says what a client computes from the last two globals that it received.
def rounds(rule: str, noise: float, share: float, steps: int, seed: int) -> Array:
    """|w - w*| / |w*| at the server after each round, with noise on both links, and a share of clients who upload."""
    a, b = hospitals()
    truth = np.linalg.solve(a.mean(0), b.mean(0))
    rng, n = np.random.default_rng(seed), np.linalg.inv(a + R * np.eye(D))
    w, z, last = np.zeros((CLIENTS, D)), np.zeros((CLIENTS, D)), np.zeros((CLIENTS, D))
    z = b.copy()  # so that w = 0 solves the first local problem at g' = 0, in both forms
    uploads, server, errors = np.zeros((CLIENTS, D)), np.zeros(D), []
    apply = lambda m, v: np.einsum("kij,kj->ki", m, v)  # noqa: E731
    for _ in range(steps):
        g = server + noise * rng.standard_normal((CLIENTS, D))
        if rule == "dual":
            z = z + R * (w - g)
            w = apply(n, b - z + R * g)
            sent = w + z / R
        else:
            seen = 2 * g - last if rule == "two globals" else g
            w = w - R * apply(n, w) + R * apply(n, seen)
            sent = w + g + (b - apply(a, w) - R * w) / R
        last = g
        there = sent + noise * rng.standard_normal((CLIENTS, D))
        speaks = rng.random(CLIENTS) < share
        uploads[speaks] = there[speaks]
        server = uploads.mean(0)
        errors.append(float(np.linalg.norm(server - truth) / np.linalg.norm(truth)))
    return np.array(errors)


# %% Scalars. Directions come from a seed that all know, so a client sends one number a step, as two losses of 8 bytes.
def scalars(clip: float, noise: float, steps: int, seed: int) -> Array:
    """Relative errors of a run that moves by the mean of clipped slopes with noise of deviation `noise` each."""
    a, b = hospitals()
    truth = np.linalg.solve(a.mean(0), b.mean(0))
    rng, errors = np.random.default_rng(seed), []
    lr = zo.schedules.linear(0.1, steps, end=0.02)
    loop = zo.AskTell(np.zeros(D), zo.methods.zo_sgd(lr=lr, mu=0.1), seed=seed)
    for _ in range(steps):
        plus, minus = loop.ask()
        f = [0.5 * np.einsum("i,kij,j->k", p, a, p) - b @ p for p in (plus, minus)]
        slopes = np.clip((f[0] - f[1]) / 0.2, -clip, clip) + noise * rng.standard_normal(CLIENTS)
        loop.tell([0.1 * float(slopes.mean()), -0.1 * float(slopes.mean())])
        errors.append(float(np.linalg.norm(loop.x - truth) / np.linalg.norm(truth)))
    return np.array(errors)


def epsilon(noise: float, steps: int) -> float:
    """eps at DELTA of what a client sends: rho = steps (2 C)^2 / (2 s^2), eps = rho + 2 sqrt(rho log(1 / DELTA))."""
    rho = steps * 2 * CLIP**2 / noise**2
    return float(rho + 2 * np.sqrt(rho * np.log(1 / DELTA)))


def run(seed: int = 0, quick: bool = False) -> Finding:
    steps, long = (300, 400) if quick else (1500, 3000)
    numbers: dict[str, float] = {}
    exact = {rule: rounds(rule, 0.0, 1.0, steps, seed) for rule in ("dual", "two globals", "one global")}
    apart = float(np.abs(rounds("dual", 0.03, 0.3, 50, seed) - rounds("two globals", 0.03, 0.3, 50, seed)).max())
    numbers |= {f"error without noise, {rule}": round(float(e[-1]), 9) for rule, e in exact.items()}
    steady: dict[tuple[str, float, float], float] = {}
    for rule in ("two globals", "one global"):
        for noise in (0.03, 0.1):
            for share in (1.0, 0.3):
                found = np.sqrt(np.mean(rounds(rule, noise, share, steps, seed)[steps // 2 :] ** 2))
                steady[rule, noise, share] = numbers[f"error, {rule}, noise {noise}, share {share}"] = float(found)
    worse = min(steady["one global", s, p] / steady["two globals", s, p] for s in (0.03, 0.1) for p in (1.0, 0.3))
    numbers["least ratio of one global to two"] = worse
    kinds = {"not clipped": (np.inf, 0.0), "clipped": (CLIP, 0.0), "noise 1": (CLIP, 1.0), "noise 4": (CLIP, 4.0)}
    curves = {kind: scalars(clip, noise, long, seed) for kind, (clip, noise) in kinds.items()}
    for kind, errors in curves.items():
        numbers[f"error of scalars, {kind}"] = float(errors[-1])
        if kinds[kind][1]:
            numbers[f"epsilon at delta {DELTA}, {kind}"] = epsilon(kinds[kind][1], long)
    claims = (
        Claim("without dual variables the rounds are those with them, to 1e-9, under noise too", apart < 1e-9),
        Claim("without noise both reach the minimum", max(exact["dual"][-1], exact["two globals"][-1]) < 1e-6),
        Claim("under noise one global is the worse form, in all four settings", worse > 1.0),
        Claim("scalars come within 2 % of the minimum", curves["not clipped"][-1] < 0.02, full_only=True),
        Claim("clipped they do not, since the hospitals differ", curves["clipped"][-1] > 0.05),
        Claim("their error grows with the noise that privacy asks for", curves["noise 4"][-1] > curves["clipped"][-1]),
    )
    sent = 16.0 * np.arange(1, long + 1)
    full = 8.0 * D * np.arange(1, steps + 1)
    lines = [Line(f"scalars, {kind}", sent.tolist(), e.tolist()) for kind, e in curves.items()]
    noisy = rounds("two globals", 0.03, 1.0, steps, seed)
    lines.append(Line("consensus, noise 0.03", full.tolist(), noisy.tolist()))
    figure = Figure("Error against what a client sends", "bytes", "relative error", tuple(lines), log="xy")
    return Finding(numbers, claims, (figure,))
