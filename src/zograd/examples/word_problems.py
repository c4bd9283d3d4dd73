"""Optimization problems in words: exact answers, a parser that is always right, and a small model that is not.

Rows      59
Paper     Yang et al. 2024, arXiv 2407.09887 (OptiBench and ReSocratic)
Formula   model -> numbers -> text; answer by HiGHS; right where |answer - given| <= 1e-3 |answer|
Evidence  each text read back gives its model; a second solver: enumeration, the dual linear program, or SLSQP
Extent    five kinds of templates, no free text; no claim on modelling: a model of 135M weights solves none of them
Needs     demo
Seconds   45
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.word_problems import KINDS, Item, confirm, items, numeric_answer, parse, solve, write


# %% Backwards: the formal model comes first, so the answer is exact; the text is told from it and read back.
def exact(found: list[Item]) -> tuple[int, float, int]:
    """(texts that give their model back, largest relative gap of two solvers, answers right from the text alone)."""
    gaps = [abs(confirm(item.model) - item.answer) / abs(item.answer) for item in found]
    read = [parse(item.text) for item in found]
    same = sum(model == item.model for model, item in zip(read, found, strict=True))
    told = [f"The answer is {solve(model):.6g}." for model in read]
    right = sum(numeric_answer(i.prompt, t, i.completion) for i, t in zip(found, told, strict=True))
    return same, max(gaps), int(right)


# %% Cheap guesses: the share of answers that a number of the text, or the mean of the kind, happens to be.
def guesses(found: list[Item]) -> dict[str, float]:
    mean = {kind: np.mean([i.answer for i in found if i.model.kind == kind]) for kind in KINDS}
    said = {
        "the first number of the text": lambda i: i.text,
        "the mean answer of its kind": lambda i: f"{mean[i.model.kind]:.6g}",
    }
    return {
        name: float(np.mean([numeric_answer(i.prompt, say(i), i.completion) for i in found]))
        for name, say in said.items()
    }


# %% The bundled language model: two solved problems of the same kind are shown, then it writes a number.
def by_a_model(found: list[Item], shown: list[Item]) -> list[str]:
    from zograd.llm.tuned import Tuned

    prompts = []
    for item in found:
        like = [s for s in shown if s.model.kind == item.model.kind][:2]
        prompts.append("\n\n".join([*(s.prompt + s.completion for s in like), item.prompt]))
    answers = Tuned("smollm2-135m").generate(prompts, max_new_tokens=8, stop=["\n"])
    return [answer.text for answer in answers]


def run(seed: int = 0, quick: bool = False) -> Finding:
    number, asked = (100, 0) if quick else (500, 50)
    found = items(number, seed)
    same, gap, right = exact(found)
    numbers: dict[str, float] = {
        "problems": number, "texts that give their model back": same, "largest gap of two solvers": gap,
        "right answers, parser and solver": right,
    }  # fmt: skip
    numbers |= {f"share right, {name}": share for name, share in guesses(found).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problems.jsonl"
        write(path, found)
        numbers["lines of the task file"] = len(path.read_text(encoding="utf-8").splitlines())
    if asked:
        answers = by_a_model(found[:asked], items(10, seed + 1))
        scores = [numeric_answer(i.prompt, a, i.completion) for i, a in zip(found, answers, strict=False)]
        numbers["share right, SmolLM2-135M with two solved problems"] = float(np.mean(scores))
        numbers["share of its answers that begin with a number"] = float(
            np.mean([a.strip()[:1].isdigit() for a in answers])
        )
    model = numbers.get("share right, SmolLM2-135M with two solved problems", 0.0)
    sizes = {kind: sorted(i.answer for i in found if i.model.kind == kind) for kind in KINDS}
    figure = Figure("Answers of each kind", "share of the problems", "optimal value", tuple(
        Line(kind, np.linspace(0, 1, len(values)), values) for kind, values in sizes.items()
    ), log="y")  # fmt: skip
    claims = (
        Claim("each text gives its formal model back", same == number),
        Claim("two solvers agree to 1e-6 on each problem", gap < 1e-6),
        Claim("parser and solver answer each text rightly", right == number),
        Claim("no guess is right in more than 5 % of the problems", max(guesses(found).values()) < 0.05),
        Claim(
            "the bundled model is right in at most 10 %: it writes numbers, and does not optimize", model <= 0.10, True
        ),
    )
    return Finding(numbers, claims, (figure,))
