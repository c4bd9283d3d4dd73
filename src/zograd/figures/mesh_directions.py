"""Laws of directions on an adaptive mesh: the error of a Poisson solver, steered through weights on simplices.

Rows      3, 5, 8
Paper     Ma and Huang, ICLR 2025, arXiv 2510.19975, Figure 4; arXiv 2601.08039, Figure 3
Formula   min over the mesh of |u_h - u| / |u|; one learning rate for all laws; the mesh on a product of simplices
Evidence  the error against quadratic elements on a finer mesh; validity of every final mesh
Extent    one equation and mesh of 10 x 10 cells, three seeds, one learning rate; no order of laws is claimed
Needs     pde
Seconds   58
"""

from __future__ import annotations

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line
from zograd.problems import problem_named

LAWS = {
    "signs": (zo.estimators.Central(1), zo.laws.Rademacher()),
    "Gaussian": (zo.estimators.Central(1), zo.laws.Gaussian()),
    "sphere": (zo.estimators.Central(1), zo.laws.Sphere()),
    "DAP, pilot of 4": (zo.estimators.Aligned(4, "pilot"), zo.laws.Sphere()),
}


# %% One run: evaluations and the error of the mesh, 20 times over the budget.
def course(name: str, lr: float, budget: int, seed: int) -> tuple[list[int], list[float], bool]:
    view = problem_named("mesh-poisson").curved
    estimator, law = LAWS[name]
    spent, values = [0], [view.value(view.x0)]
    method = zo.Method(estimator, law, zo.rules.SGD(), space=view.space, lr=lr, mu=view.mu)
    last = view.x0

    def seen(now: object) -> None:
        nonlocal last
        last = np.asarray(now.x)  # type: ignore[attr-defined]
        if now.nfev >= spent[-1] + budget // 20:  # type: ignore[attr-defined]
            spent.append(now.nfev)  # type: ignore[attr-defined]
            values.append(view.value(last.reshape(view.x0.shape)))

    zo.minimize(view.value, view.x0, method, budget=budget, seed=seed, callback=seen)
    return spent, values, view.inside(last.reshape(view.x0.shape))


def run(seed: int = 0, quick: bool = False) -> Finding:
    budget, seeds, names = (60, 1, list(LAWS)[:2]) if quick else (800, 3, list(LAWS))
    numbers: dict[str, float] = {}
    lines, valid, ends = [], [], {}
    for name in names:
        courses = [course(name, RATE, budget, seed + s) for s in range(seeds)]
        valid += [inside for _, _, inside in courses]
        ends[name] = sorted(values[-1] for _, values, _ in courses)
        numbers[f"error at the end, {name}: median"] = float(np.median(ends[name]))
        numbers[f"error at the end, {name}: least"] = ends[name][0]
        numbers[f"error at the end, {name}: largest"] = ends[name][-1]
        spent = courses[0][0]
        all_values = [np.interp(spent, s, v) for s, v, _ in courses]
        lines.append(Line(name, spent, np.median(all_values, 0), np.min(all_values, 0), np.max(all_values, 0)))
    start = float(lines[0].y[0])
    numbers["error at the start"] = start
    pairs = [ends[name] for name in names if "DAP" not in name]
    overlap = max(found[0] for found in pairs) < min(found[-1] for found in pairs)
    last = ends[names[-1]][0]
    claims = (
        Claim("every final mesh is valid", all(valid)),
        Claim("each law lowers the error of the uniform mesh", all(found[-1] < start for found in ends.values())),
        Claim("by a quarter or more", all(found[-1] < 0.75 * start for found in ends.values()), full_only=True),
        Claim("signs, Gaussian and sphere, one pair a step, lie within each other's spread", overlap, full_only=True),
        Claim("DAP with a pilot of 4 is behind at equal evaluations", last > max(f[-1] for f in pairs), full_only=True),
    )
    return Finding(numbers, claims, (Figure("Error of the mesh", "evaluations", "relative error", tuple(lines)),))


RATE = 3.0
"""One learning rate for all laws, in units of the space: of half decades, the largest that is stable for signs."""
