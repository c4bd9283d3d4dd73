"""Objectives without a derivative: accuracy, what the model writes, and a reward of the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zograd.hub import Example, load_task
from zograd.llm.build import set_up
from zograd.llm.evaluate import evaluate
from zograd.llm.generation import generate
from zograd.llm.scoring.objectives import ObjectiveError, f1, objective_of, same
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train


def settings(model: Path, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": "mr", "method": "zo_sgd", "dtype": "float32", "threads": 1, "batch_size": 16,
        "steps": 4, "train_examples": 16, "eval_examples": 16, "lr": 1e-2, "mu": 1e-2,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Prompts with the words that are wanted behind them."""
    prompts = ("It was", "very bad , it was", "the good was", "no maybe")
    lines = [
        {"prompt": f"{front} {p}", "completion": " great good", "split": split}
        for front, split in (("yes", "train"), ("no", "train"), ("good", "validation"), ("bad", "test"))
        for p in prompts
    ]  # fmt: skip
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_rewards_of_texts() -> None:
    assert same("", "The House.", "house") == 1.0
    assert same("", "houses", "house") == 0.0
    assert f1("", "the red house", "a house") == pytest.approx(2 / 3)
    assert f1("", "x x", "x") == pytest.approx(2 / 3)
    assert f1("", "", "") == 1.0
    assert f1("", "", "word") == 0.0


def test_losses_of_accuracy_are_the_wrong_answers(tiny_model: Path, tmp_path: Path) -> None:
    work = set_up(settings(tiny_model, objective="accuracy"), tmp_path)
    scorer, examples = work.scorer, list(load_task("mr").splits["train"][:12])
    labels = torch.tensor([e.label for e in examples])
    wrong = (scorer.scores(examples).argmax(1) != labels).float()
    assert torch.equal(scorer.losses(examples), wrong)
    assert torch.equal(scorer.losses(examples, 2), torch.cat([wrong, wrong]))
    assert float(scorer.loss(examples)) == pytest.approx(float(wrong.mean()))
    assert scorer.evaluate(examples).loss > 0.3  # what is reported is as before
    assert scorer.evaluate(examples).value == pytest.approx(1 - float(wrong.mean()))


def test_accuracy_alone_is_learned(tiny_model: Path, tmp_path: Path) -> None:
    s = settings(
        tiny_model, objective="accuracy", layers=1, method="rank", batch_size=32, train_examples=32, steps=32, lr=0.1,
        mu=0.03, set={"n": 8},
    )  # fmt: skip
    done = train(s, tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"] - 0.1
    assert 0 <= done["loss_last"] <= 1


def test_what_the_model_writes_is_rewarded(
    tiny_model: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are minus the rewards of what `generate` gives; training raises them; evaluations report their mean."""
    (tmp_path / "my_rewards.py").write_text(
        "def vowels(prompt, answer, wanted):\n"
        "    assert wanted == 'great good'\n"
        "    return sum(c in 'aeiou' for c in answer) / (1 + len(answer))\n"
    )
    monkeypatch.chdir(tmp_path)
    s = settings(
        tiny_model, task=str(answers), objective="my_rewards:vowels", answer_tokens=3, batch_size=8, steps=20, mu=0.1,
        lr=0.1, layers=1, method="rank", set={"n": 4},
    )  # fmt: skip
    work = set_up(s, tmp_path / "look")
    scorer, examples = work.scorer, [*work.batches[0]]
    assert scorer.prefix is None
    written = [g.text.strip() for g in generate(scorer.model, scorer.tokenizer, examples, max_new_tokens=3)]
    rewards = [sum(c in "aeiou" for c in text) / (1 + len(text)) for text in written]
    assert scorer.losses(examples).tolist() == pytest.approx([-r for r in rewards])
    done = train(s, tmp_path / "run", quiet=True)
    assert done["metric"] == "my_rewards:vowels"
    assert done["loss_last"] < done["loss_first"]
    with pytest.raises(SettingsError, match="give --objective my_rewards:vowels again"):
        train(TrainSettings(steps=21), tmp_path / "run", resume=True, quiet=True)
    assert train(s.model_copy(update={"steps": 21}), tmp_path / "run", resume=True, quiet=True)["steps"] == 21
    assert evaluate(None, None, tmp_path / "run", split="train")["metric"] == "loss"  # run.json alone runs no code


def test_a_run_is_scored_by_its_objective(tiny_model: Path, answers: Path, tmp_path: Path) -> None:
    s = settings(tiny_model, task=str(answers), objective="f1", answer_tokens=2, batch_size=4, steps=1)
    done = train(s, tmp_path / "run", quiet=True)
    assert done["metric"] == "f1"
    again = evaluate(None, None, tmp_path / "run", split="validation")
    assert (again["metric"], again["value"]) == ("f1", pytest.approx(done["metric_after"]))


def test_node_perturbation_learns_from_right_and_wrong(tiny_model: Path, tmp_path: Path) -> None:
    s = settings(tiny_model, objective="accuracy", method="node_perturbation", mu=0.3, lr=1e-3, layers=1)
    done = train(s, tmp_path / "run", quiet=True)
    assert 0 <= done["loss_last"] <= 1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"objective": "accuracy", "method": "residual", "mu": None}, "residual needs the derivative of a loss"),
        ({"objective": "accuracy", "method": "backprop", "mu": None}, "backprop needs the derivative of a loss"),
        ({"objective": "f1"}, "objective = 'f1' is for answers that are written: choose one of loss, accuracy"),
        ({"objective": "bleu"}, "objective = 'bleu' is not known: choose one of loss, accuracy"),
        ({"objective": "nowhere:f"}, "objective = 'nowhere:f' cannot be imported"),
        ({"objective": "json:nothing"}, "objective = 'json:nothing' cannot be imported"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path, more: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        train(settings(tiny_model, **more), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_answers_that_are_written_need_methods_by_values(tiny_model: Path, answers: Path, tmp_path: Path) -> None:
    s = settings(tiny_model, task=str(answers), objective="f1", method="node_perturbation")
    with pytest.raises(SettingsError, match="looks into one forward of each example"):
        train(s, tmp_path / "run", quiet=True)


def test_without_a_method_one_by_values_is_chosen(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s = TrainSettings(
        model=str(tiny_model), task="mr", objective="accuracy", steps=1, train_examples=8, eval_examples=8
    )
    train(s, tmp_path / "run")
    assert "training by zo_sgd, because the objective accuracy has no derivative" in capsys.readouterr().err


def test_a_reward_that_fails_says_how_it_is_called(tiny_model: Path, tmp_path: Path) -> None:
    found = objective_of(lambda prompt, answer, wanted: 1 / 0, "classification")
    assert found is not None
    scorer = set_up(settings(tiny_model), tmp_path).scorer
    with pytest.raises(
        ObjectiveError, match=r"ZeroDivisionError.*called with prompt, answer and the answer in the data"
    ):
        found.rewards(scorer, [Example("It was", 1)])
