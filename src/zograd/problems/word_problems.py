"""Optimization problems in words: drawn as a formal model, told as a text, read back from it, solved by HiGHS."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CLOSE = 1e-3
"""Relative error up to which an answer counts as right."""


@dataclass(frozen=True)
class Model:
    """min c x + 1/2 sum_i q_i x_i^2 over x >= 0 with A x <= b, E x = e; x is binary where `binary` says so.

    sign: -1 where the text asks for a largest value, whose c is negated; the answer is sign times the minimum.
    """

    kind: str
    c: tuple[float, ...]
    q: tuple[float, ...] = ()
    a: tuple[tuple[float, ...], ...] = ()
    b: tuple[float, ...] = ()
    e: tuple[tuple[float, ...], ...] = ()
    of: tuple[float, ...] = ()
    binary: bool = False
    sign: int = 1


@dataclass(frozen=True)
class Item:
    """A problem in words, its formal model, and its optimal value."""

    text: str
    model: Model
    answer: float

    @property
    def prompt(self) -> str:
        return f"{self.text}\nAnswer:"

    @property
    def completion(self) -> str:
        return f" {self.answer:.6g}"


def solve(model: Model) -> float:
    """The optimal value: by HiGHS (`scipy.optimize.milp`), with quadratic costs by bisection on the multiplier.

    Raises ValueError where there is no solution.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if model.q:
        return model.sign * _spread(model)
    rows = [LinearConstraint(np.array(model.a), ub=np.array(model.b))] if model.a else []
    rows += [LinearConstraint(np.array(model.e), np.array(model.of), np.array(model.of))] if model.e else []
    kinds, most = np.full(len(model.c), int(model.binary)), 1.0 if model.binary else np.inf
    found = milp(np.array(model.c), integrality=kinds, bounds=Bounds(0, most), constraints=rows)
    if not found.success:
        raise ValueError(f"the {model.kind} problem has no solution: {found.message}")
    return float(model.sign * found.fun)


def _spread(model: Model) -> float:
    """min c x + 1/2 q x^2 with sum x = total, x >= 0: x_i = (lam - c_i)+ / q_i, lam by bisection."""
    c, q, total = np.array(model.c), np.array(model.q), model.of[0]
    low, high = float(c.min()), float(c.max() + q.max() * total)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(np.maximum(0, middle - c) / q) < total else (low, middle)
    x = np.maximum(0, high - c) / q
    return float(c @ x + 0.5 * q @ (x * x))


def confirm(model: Model) -> float:
    """The optimal value by another way than `solve`: enumeration, the dual linear program, or SLSQP."""
    from scipy.optimize import linprog, minimize

    c = np.array(model.c)
    if model.q:
        q, total = np.array(model.q), model.of[0]
        found = minimize(
            lambda x: c @ x + 0.5 * q @ (x * x), np.full(len(c), total / len(c)), jac=lambda x: c + q * x,
            bounds=[(0, None)] * len(c), method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
            constraints={"type": "eq", "fun": lambda x: x.sum() - total, "jac": lambda x: np.ones(len(c))},
        )  # fmt: skip
        return float(model.sign * found.fun)
    if model.kind == "assignment":
        side = round(len(c) ** 0.5)
        table = c.reshape(side, side)
        orders = itertools.permutations(range(side))
        return float(model.sign * min(sum(table[i, j] for i, j in enumerate(order)) for order in orders))
    if model.binary:
        choices = np.array(list(itertools.product((0, 1), repeat=len(c))))
        fits = np.all(choices @ np.array(model.a).T <= np.array(model.b) + 1e-9, axis=1)
        return float(model.sign * (choices[fits] @ c).min())
    # max -b y + e z over y >= 0, z free, with -A^T y + E^T z <= c
    a, e = (np.array(m).reshape(-1, len(c)) for m in (model.a, model.e))
    dual = linprog(
        np.r_[np.array(model.b), -np.array(model.of)], A_ub=np.hstack([-a.T, e.T]), b_ub=c,
        bounds=[(0, None)] * len(a) + [(None, None)] * len(e), method="highs-ipm",
    )  # fmt: skip
    return float(-model.sign * dual.fun)


# ---- five kinds: a model is drawn, told, and read back from the text -------------------------------------------------


def _numbers(text: str) -> list[float]:
    """The numbers of a text, in order."""
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text)]


def _named(words: Sequence[str], rng: np.random.Generator, number: int) -> list[str]:
    return [words[k] for k in rng.permutation(len(words))[:number]]


THINGS = ("a lamp", "a tent", "a radio", "a camera", "a kettle", "a drone", "a scarf", "a helmet")
FOODS = ("oats", "rice", "beans", "lentils", "milk", "eggs", "spinach")
TOWNS = ("Arden", "Bray", "Corby", "Dunmore", "Elgin", "Fowey", "Gorran")
PEOPLE = ("Ana", "Ben", "Chloe", "Dan", "Eva", "Finn")
PLANTS = ("the north plant", "the south plant", "the old plant", "the harbour plant", "the hill plant")


def _knapsack(rng: np.random.Generator) -> tuple[str, Model]:
    n = int(rng.integers(4, 7))
    weight, value = rng.integers(2, 12, n), rng.integers(5, 60, n)
    limit = int(max(weight.max(), round(0.5 * weight.sum())))
    things = ", ".join(
        f"{name} weighs {w} kg and is worth {v} euros"
        for name, w, v in zip(_named(THINGS, rng, n), weight, value, strict=True)
    )
    text = f"A hiker carries at most {limit} kg. Of the things on the table, {things}. Each can be taken once. What is "
    text += "the largest total worth in euros that the hiker can carry?"
    return text, _knapsack_of(limit, weight, value)


def _knapsack_of(limit: float, weight: Any, value: Any) -> Model:
    rows = (tuple(map(float, weight)),)
    return Model("knapsack", tuple(-float(v) for v in value), a=rows, b=(float(limit),), binary=True, sign=-1)


def _read_knapsack(text: str) -> Model:
    limit, *rest = _numbers(text)
    return _knapsack_of(limit, rest[::2], rest[1::2])


def _diet(rng: np.random.Generator) -> tuple[str, Model]:
    n = int(rng.integers(3, 5))
    price, protein, iron = rng.integers(10, 60, n) / 10, rng.integers(2, 20, n), rng.integers(1, 9, n)
    need = [int(rng.integers(40, 90)), int(rng.integers(12, 40))]
    foods = "; ".join(
        f"{name} costs {p:.1f} euros a portion, with {g} g of protein and {m} mg of iron"
        for name, p, g, m in zip(_named(FOODS, rng, n), price, protein, iron, strict=True)
    )
    text = f"A kitchen may buy any amount of each food: {foods}. A day needs at least {need[0]} g of protein and "
    text += f"{need[1]} mg of iron. What is the least cost in euros?"
    return text, _diet_of(price, protein, iron, need)


def _diet_of(price: Any, protein: Any, iron: Any, need: Any) -> Model:
    rows = tuple(tuple(-float(x) for x in row) for row in (protein, iron))
    return Model("diet", tuple(map(float, price)), a=rows, b=tuple(-float(x) for x in need))


def _read_diet(text: str) -> Model:
    *rest, protein, iron = _numbers(text)
    return _diet_of(rest[::3], rest[1::3], rest[2::3], (protein, iron))


def _transport(rng: np.random.Generator) -> tuple[str, Model]:
    shops = 3
    cost = rng.integers(2, 20, (2, shops))
    demand = rng.integers(10, 40, shops)
    first = int(rng.integers(demand.sum() // 3, demand.sum()))
    supply = [first, int(demand.sum() - first + rng.integers(5, 20))]
    towns = _named(TOWNS, rng, shops + 2)
    parts = " ".join(
        f"From {town} a crate costs {', '.join(f'{c} euros to {to}' for c, to in zip(row, towns[2:], strict=True))}."
        for town, row in zip(towns, cost, strict=False)
    )
    wants = ", ".join(f"{to} needs {d} crates" for to, d in zip(towns[2:], demand, strict=True))
    text = f"The depot in {towns[0]} holds {supply[0]} crates and the one in {towns[1]} holds {supply[1]}. {wants}. "
    text += f"{parts} What is the least cost in euros of serving all shops?"
    return text, _transport_of(supply, demand, cost)


def _transport_of(supply: Any, demand: Any, cost: Any) -> Model:
    c = np.asarray(cost, float)
    depots, shops = c.shape
    out = np.kron(np.eye(depots), np.ones(shops))
    into = np.tile(np.eye(shops), depots)
    return Model("transport", _row(c), a=_rows(out), b=_row(supply), e=_rows(into), of=_row(demand))


def _read_transport(text: str) -> Model:
    found = _numbers(text)
    return _transport_of(found[:2], found[2:5], np.reshape(found[5:], (2, 3)))


def _assignment(rng: np.random.Generator) -> tuple[str, Model]:
    n = int(rng.integers(3, 5))
    hours = rng.integers(1, 20, (n, n))
    parts = " ".join(
        f"{name} needs {', '.join(f'{h} hours for job {j + 1}' for j, h in enumerate(row))}."
        for name, row in zip(_named(PEOPLE, rng, n), hours, strict=True)
    )
    text = f"Each person does one job, and each job is done by one person. {parts} What is the least total number of "
    text += "hours?"
    return text, _assignment_of(hours)


def _assignment_of(hours: Any) -> Model:
    c = np.asarray(hours, float)
    n = len(c)
    e = np.vstack([np.kron(np.eye(n), np.ones(n)), np.tile(np.eye(n), n)])
    return Model("assignment", _row(c), e=_rows(e), of=(1.0,) * (2 * n), binary=True)


def _read_assignment(text: str) -> Model:
    hours = [float(h) for h in re.findall(r"(\d+) hours for job", text)]
    n = round(len(hours) ** 0.5)
    return _assignment_of(np.reshape(hours, (n, n)))


def _generation(rng: np.random.Generator) -> tuple[str, Model]:
    n = int(rng.integers(2, 5))
    slope, bend, total = rng.integers(1, 10, n), rng.integers(1, 6, n), int(rng.integers(8, 40))
    parts = "; ".join(
        f"in {name}, x units cost {a} x + {b} x^2 / 2 euros"
        for name, a, b in zip(_named(PLANTS, rng, n), slope, bend, strict=True)
    )
    text = f"A firm makes {total} units, in any split: {parts}. What is the least cost in euros?"
    return text, _generation_of(total, slope, bend)


def _generation_of(total: float, slope: Any, bend: Any) -> Model:
    return Model("generation", _row(slope), q=_row(bend), e=((1.0,) * len(slope),), of=(float(total),))


def _read_generation(text: str) -> Model:
    parts = re.findall(r"cost (\d+) x \+ (\d+) x\^2", text)
    return _generation_of(_numbers(text)[0], [int(a) for a, _ in parts], [int(b) for _, b in parts])


def _row(values: Any) -> tuple[float, ...]:
    return tuple(map(float, np.ravel(values)))


def _rows(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(_row(row) for row in matrix)


KINDS: dict[str, tuple[Callable[[np.random.Generator], tuple[str, Model]], Callable[[str], Model], str]] = {
    "knapsack": (_knapsack, _read_knapsack, "A hiker"),
    "diet": (_diet, _read_diet, "A kitchen"),
    "transport": (_transport, _read_transport, "The depot"),
    "assignment": (_assignment, _read_assignment, "Each person"),
    "generation": (_generation, _read_generation, "A firm"),
}
"""Kind -> how it is drawn, how it is read from a text, and how its text begins."""


def items(number: int, seed: int = 0) -> list[Item]:
    """`number` problems, the five kinds in turn, with answers.

    >>> item = items(1)[0]
    >>> item.model.kind, item.answer == solve(parse(item.text))
    ('knapsack', True)
    """
    rng, found = np.random.default_rng(seed), []
    for k in range(number):
        text, model = list(KINDS.values())[k % len(KINDS)][0](rng)
        found.append(Item(text, model, solve(model)))
    return found


def parse(text: str) -> Model:
    """The formal model of a text of `items`. Raises ValueError for another text."""
    for _, read, begins in KINDS.values():
        if text.startswith(begins):
            return read(text)
    raise ValueError(f"the text begins with {text[:30]!r}, as none of the {len(KINDS)} kinds of problem does")


def write(path: str | Path, found: Sequence[Item]) -> None:
    """Problems as JSON lines with `prompt` and `completion`: a file for `zograd train --task`."""
    lines = [json.dumps({"prompt": item.prompt, "completion": item.completion}) for item in found]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def numeric_answer(prompt: str, answer: str, wanted: str) -> float:
    """1 where the first number of an answer is the wanted one up to a relative error of 1e-3, else 0.

    For `zograd train --objective zograd.problems.word_problems:numeric_answer`.

    >>> numeric_answer("", " 12.5 euros.", "12.500001"), numeric_answer("", "about 13", "12.5")
    (1.0, 0.0)
    """
    found, right = _numbers(answer), _numbers(wanted)
    if not found or not right:
        return 0.0
    return float(abs(found[0] - right[0]) <= CLOSE * max(abs(right[0]), 1e-12))
