"""Row 59: optimization problems in words, against hand-made ones, a second solver, and `zograd train`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zograd.problems.word_problems import KINDS, Model, confirm, items, numeric_answer, parse, solve, write


def test_each_text_gives_its_model_back_and_two_solvers_agree() -> None:
    found = items(100, seed=7)
    assert {item.model.kind for item in found} == set(KINDS)
    assert len({item.text for item in found}) == 100
    for item in found:
        assert parse(item.text) == item.model
        assert confirm(item.model) == pytest.approx(item.answer, rel=1e-6)


def test_a_changed_text_has_another_model_and_another_answer() -> None:
    text = items(1)[0].text
    more = text.replace("at most 14 kg", "at most 3 kg")
    assert more != text
    assert solve(parse(more)) < solve(parse(text))


KNAPSACK = """A hiker carries at most 5 kg. Of the things on the table, a tent weighs 4 kg and is worth 9 euros, a lamp
weighs 3 kg and is worth 6 euros, a radio weighs 2 kg and is worth 5 euros. Each can be taken once."""
DIET = """A kitchen may buy any amount of each food: rice costs 2.0 euros a portion, with 10 g of protein and 1 mg of
iron; beans costs 3.0 euros a portion, with 5 g of protein and 10 mg of iron. A day needs at least 20 g of protein and
2 mg of iron."""
GENERATION = """A firm makes 6 units, in any split: in a, x units cost 2 x + 1 x^2 / 2 euros; in b, x units cost
2 x + 2 x^2 / 2 euros."""
ASSIGNMENT = """Each person does one job, and each job is done by one person. Ana needs 1 hours for job 1, 5 hours for
job 2. Ben needs 2 hours for job 1, 9 hours for job 2."""
TRANSPORT = """The depot in A holds 5 crates and the one in B holds 9. X needs 4 crates, Y needs 3 crates, Z needs 2
crates. From A a crate costs 1 euros to X, 2 euros to Y, 3 euros to Z. From B a crate costs 2 euros to X, 2 euros to Y,
9 euros to Z."""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (KNAPSACK, 11.0),  # lamp and radio
        (DIET, 4.0),  # two portions of rice
        (GENERATION, 24.0),  # 4 and 2 units
        (ASSIGNMENT, 7.0),
        (TRANSPORT, 3 * 1 + 2 * 3 + 1 * 2 + 3 * 2.0),  # A gives X three crates and Z two
    ],
)
def test_answers_by_hand(text: str, answer: float) -> None:
    model = parse(text.replace("\n", " "))
    assert solve(model) == pytest.approx(answer)
    assert confirm(model) == pytest.approx(answer, rel=1e-6)


def test_what_has_no_solution_or_no_kind_is_refused() -> None:
    transport = next(item.model for item in items(5) if item.model.kind == "transport")
    with pytest.raises(ValueError, match="the transport problem has no solution"):
        solve(replace(transport, b=(1.0, 1.0)))
    with pytest.raises(ValueError, match="as none of the 5 kinds"):
        parse("Once upon a time")
    assert solve(Model("diet", (1.0,), a=((-1.0,),), b=(-2.0,))) == 2.0


def test_a_number_is_right_within_a_thousandth() -> None:
    assert numeric_answer("", "461", " 461") == 1.0
    assert numeric_answer("", " 461.4 euros", " 461") == 1.0
    assert numeric_answer("", " 462", " 461") == 0.0
    assert numeric_answer("", "I do not know", " 461") == 0.0
    assert numeric_answer("", "-461", " 461") == 0.0


def test_a_file_of_problems_trains_a_model(tiny_model: Path, tmp_path: Path) -> None:
    """`zograd train --task FILE`, with the loss and with the share of right numbers as objective."""
    from zograd.llm.settings import TrainSettings
    from zograd.llm.train import train

    file = tmp_path / "problems.jsonl"
    write(file, sorted(items(300), key=lambda item: len(item.text))[:20])  # the tiny model takes 128 tokens
    assert set(json.loads(file.read_text().splitlines()[0])) == {"prompt", "completion"}
    given = {"model": str(tiny_model), "task": str(file), "method": "rank", "steps": 1, "batch_size": 2}
    given |= {"train_examples": 4, "eval_examples": 4, "dtype": "float32"}
    by_loss = train(TrainSettings(**given), tmp_path / "a", quiet=True)
    assert by_loss["steps"] == 1
    objective = "zograd.problems.word_problems:numeric_answer"
    by_answer = train(TrainSettings(**given, objective=objective), tmp_path / "b", quiet=True)
    assert by_answer["steps"] == 1
