"""Objectives without a derivative: accuracy, what the model writes, and a reward of the user."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zograd.core.query import Query
from zograd.distributed import Peers
from zograd.hub import Example, Task, load_task
from zograd.llm import loading
from zograd.llm.build import set_up
from zograd.llm.evaluate import evaluate
from zograd.llm.generation import generate
from zograd.llm.oracle import BatchOracle
from zograd.llm.restore import restore
from zograd.llm.scoring import rewards
from zograd.llm.scoring.metrics import metric_of
from zograd.llm.scoring.objectives import Contest, Objective, ObjectiveError, objective_of
from zograd.llm.scoring.rewards import f1, same
from zograd.llm.scoring.scorer import Scorer
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


@pytest.mark.parametrize(("name", "module"), [("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge-l", "rouge_score")])
def test_a_reward_of_a_library_that_is_missing_is_said_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    for found in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, found)
    monkeypatch.setitem(sys.modules, module, None)
    rewards._sacrebleu.cache_clear()
    rewards._rouge.cache_clear()
    for asked in (lambda: objective_of(name, "completion"), lambda: metric_of(name, "completion", 0)):
        with pytest.raises(ImportError, match=r"needs the package .*pip install 'zograd\[text-metrics\]'"):
            asked()


def test_rewards_of_libraries_are_theirs_from_0_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """With objects in place of the libraries, which record how they are called; their scores go up to 100."""
    called: list[tuple[object, ...]] = []

    def score(*arguments: object) -> SimpleNamespace:
        called.append(arguments)
        return SimpleNamespace(score=25.0)

    class Scorer:
        def __init__(self, kinds: list[str], tokenizer: rewards.AnyScript) -> None:
            assert kinds == ["rougeL"]
            assert tokenizer.tokenize("Yes, no_1") == ["yes", "no", "1"]

        def score(self, wanted: str, answer: str) -> dict[str, SimpleNamespace]:
            called.append((wanted, answer))
            return {"rougeL": SimpleNamespace(fmeasure=0.5)}

    library = SimpleNamespace(sentence_bleu=score, sentence_chrf=score)
    monkeypatch.setitem(sys.modules, "sacrebleu", library)
    monkeypatch.setitem(sys.modules, "rouge_score", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", SimpleNamespace(RougeScorer=Scorer))
    rewards._sacrebleu.cache_clear()
    rewards._rouge.cache_clear()
    assert [rewards.OF_TEXTS[name]("p", "mine", "right") for name in ("bleu", "chrf", "rouge-l")] == [0.25, 0.25, 0.5]
    assert called == [("mine", ["right"]), ("mine", ["right"]), ("right", "mine")]
    assert metric_of("bleu", "completion", 0).written
    objective = objective_of("rouge-l", "completion", 8)
    assert (objective.name, objective.reward, objective.top) == ("rouge-l", rewards.rouge_l, 1.0)
    rewards._sacrebleu.cache_clear()
    rewards._rouge.cache_clear()


def test_the_libraries_score_the_same_text_with_1() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    for name in ("bleu", "chrf", "rouge-l"):
        assert rewards.OF_TEXTS[name]("", "the red house is big", "the red house is big") == pytest.approx(1.0)
        assert rewards.OF_TEXTS[name]("", "no", "the red house is big") < 0.1
    assert rewards.rouge_l("", "the red house", "a house") == pytest.approx(0.4)


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


def test_progress_of_an_evaluation_counts_answers_too(tiny_model: Path, answers: Path, tmp_path: Path) -> None:
    told: list[float] = []
    scorer = set_up(settings(tiny_model, task=str(answers), metric="f1", answer_tokens=3), tmp_path).scorer
    examples = (list(load_task(str(answers)).splits["train"]) * 3)[:20]
    scorer.evaluate(examples, progress=told.append)
    assert sum(told) == pytest.approx(20)
    assert told[-1] == pytest.approx(4 * 3 / 4)  # the last 4 of 20; a forward of 1 + 3 scores, 3 write


@pytest.mark.parametrize("metric", ["f1", "exact-match"])
def test_written_answers_are_a_metric_of_a_loss(tiny_model: Path, tmp_path: Path, metric: str) -> None:
    """The mean reward of what the model writes, with an interval; the best of several right answers counts."""
    lines = [
        {"prompt": f"{front} the good was", "completion": " great", "also": [" no", " very"], "split": "train"}
        for front in ("yes", "no", "good", "bad", "very", "maybe")
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = evaluate(str(tiny_model), str(tmp_path / "a.jsonl"), None, split="train", metric=metric, answer_tokens=2)
    task = load_task(tmp_path / "a.jsonl")
    examples = list(task.splits["train"])
    model, tokenizer = loading.load(str(tiny_model))
    reward = f1 if metric == "f1" else same
    values = [
        max(reward("", g.text, right) for right in (" great", " no", " very"))
        for g in generate(model, tokenizer, examples, max_new_tokens=2)
    ]
    assert (found["metric"], found["value"]) == (metric, pytest.approx(sum(values) / len(values)))
    assert found["low"] <= found["value"] <= found["high"]
    assert found["loss"] > 1


def test_the_best_of_several_answers_counts(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model))
    e = Example("the good was", -1, " nowhere")
    (written,) = generate(model, tokenizer, [e], max_new_tokens=3)
    task = Task("t", "{prompt}", (), {"train": [e]}, "here", "", kind="completion")
    judge = objective_of("exact-match", "completion", 3)
    assert judge is not None
    scorer = Scorer(model, tokenizer, task)
    also = replace(e, also=(" elsewhere", written.text))
    assert judge.rewards(scorer, [e, also]).tolist() == [0.0, 1.0]


class Dealt(Peers):
    """One of two processes, whose totals are its own part."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.world = rank, 2

    def total(self, own: torch.Tensor) -> torch.Tensor:
        return own


def test_answers_are_dealt_to_processes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes writes its share; their sum is what one process finds, to the last bit."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    examples = [Example(f"{'very ' * (k % 5)}good was", -1, " bad very no") for k in range(40)]
    task = Task("t", "{prompt}", (), {"train": examples}, "here", "", kind="completion")
    scorer = Scorer(model, tokenizer, task, metric=metric_of("f1", "completion", 0), answer_tokens=2)
    assert scorer.judge is not None
    asked: list[int] = []
    written = Objective.rewards

    def counted(self: Objective, scorer: Scorer, examples: Any, copies: int = 1) -> torch.Tensor:
        asked.append(len(examples))
        return written(self, scorer, examples, copies)

    monkeypatch.setattr(Objective, "rewards", counted)
    parts = [scorer._rewards(scorer.judge, examples, Dealt(rank)) for rank in (0, 1)]
    assert asked == [16, 8, 16]
    assert torch.equal(parts[0] + parts[1], scorer._rewards(scorer.judge, examples, None))
    assert all(bool((part == 0).any()) for part in parts)


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
        ({"objective": "meteor"}, "objective = 'meteor' is not known: choose one of loss, accuracy"),
        ({"objective": "bleu"}, "objective = 'bleu' is for answers that are written: choose one of loss, accuracy"),
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


# ---- a judge of two answers ------------------------------------------------------------------------------------------


def vowels_of(text: str) -> float:
    return sum(c in "aeiou" for c in text) / (1 + len(text))


JUDGE = (
    "def vowels(text):\n"
    "    return sum(c in 'aeiou' for c in text) / (1 + len(text))\n"
    "def more(prompt, first, second):\n"
    "    assert first != second, 'a tie that no judge sees'\n"
    "    a, b = vowels(first), vowels(second)\n"
    "    return 0.5 if a == b else a > b\n"
)


def judged(tiny_model: Path, answers: Path, **more: Any) -> TrainSettings:
    common = {
        "task": str(answers), "objective": "prefers:my_judge:more", "answer_tokens": 3, "batch_size": 4, "steps": 20,
        "mu": 0.1, "lr": 0.1, "layers": 1, "method": "rank", "set": {"n": 4},
    }  # fmt: skip
    return settings(tiny_model, **{**common, **more})


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_judge", raising=False)


def test_losses_are_shares_of_comparisons_lost() -> None:
    """Against enumeration of all pairs, with ties; a judge that always takes the first gains nothing."""
    numbers = Contest("more", lambda prompt, a, b: float(a) > float(b), 1.0, own=True)
    examples = [Example("a", -1), Example("b", -1)]
    answers = [["3", "1"], ["2", "1"], ["1", "5"]]
    expected = []
    for k in range(3):
        shares = [
            0.5 if answers[k][i] == answers[j][i] else float(answers[k][i] > answers[j][i])
            for i in range(2) for j in range(3) if j != k
        ]  # fmt: skip
        expected.append(1 - sum(shares) / 4)
    assert numbers.compared(examples, answers) == pytest.approx(expected)
    assert sum(expected) / 3 == pytest.approx(0.5)
    first = Contest("first", lambda prompt, a, b: True, 1.0, own=True)
    assert first.compared(examples, [["x", "x"], ["y", "y"]]) == [0.5, 0.5]
    scores = [first._of(prompt, "x", "y") for prompt in "abcdefgh"]  # against the data, the judge sees each side first
    assert {*scores} == {0.0, 1.0}
    assert [numbers._of(prompt, "3", "2") for prompt in "abcd"] == [1.0] * 4
    assert numbers._of("a", "2", "2") == 0.5
    with pytest.raises(ObjectiveError, match=r"returned 2\.0 for '2' and '3'; expected True"):
        replace(numbers, reward=lambda prompt, a, b: 2).compared(examples[:1], [["2"], ["3"]])
    with pytest.raises(ObjectiveError, match="called with prompt and two answers, and returns True where the first"):
        replace(numbers, reward=lambda prompt, a: True).compared(examples, answers)


def test_a_judge_of_two_answers_is_enough(tiny_model: Path, answers: Path, judge: None, tmp_path: Path) -> None:
    """A step sees comparisons of what its own points write; what they write gets better by the judge's measure."""
    s = judged(tiny_model, answers)
    work = set_up(s, tmp_path / "look")
    scorer, run, batch = work.scorer, work.prepared.run, [*work.batches[0]]
    queries = run.ask()
    run.abandon()
    written = []
    for query in queries:
        with run.store.at(query.at), torch.no_grad():
            found = generate(scorer.model, scorer.tokenizer, batch, max_new_tokens=3)
        written.append([vowels_of(g.text.strip()) for g in found])
    lost = [
        1 - sum(0.5 * (a == b) + (a > b) for o in written if o is not own for a, b in zip(own, o, strict=True)) / 12
        for own in written
    ]
    assert len({*lost}) > 1
    oracle = BatchOracle(scorer, work.prepared.settings, Peers())(batch)
    assert oracle(run.store, queries, 0) == pytest.approx(lost)

    def held(model: Any, tokenizer: Any) -> float:
        found = generate(model, tokenizer, work.held_out, max_new_tokens=3)
        return sum(vowels_of(g.text.strip()) for g in found)

    before = held(*loading.load(str(tiny_model), dtype="float32"))
    done = train(s, tmp_path / "run", quiet=True)
    p, _ = restore(tmp_path / "run")
    assert held(p.model, p.tokenizer) > before
    assert (done["metric"], done["loss_first"]) == ("prefers:my_judge:more", pytest.approx(0.5))


def test_points_that_draw_share_their_random_numbers(tiny_model: Path, answers: Path, judge: None) -> None:
    """With temperature, equal weights write equal answers in a step, and others in another step."""
    s = judged(tiny_model, answers, answer_temperature=1.0)
    work = set_up(s, Path("look"))
    oracle = BatchOracle(work.scorer, work.prepared.settings, Peers())([*work.batches[0]])
    seen: list[list[str]] = []
    compared = Contest.compared

    def watched(self: Contest, examples: Any, answers: Any) -> list[float]:
        seen.extend(answers)
        return compared(self, examples, answers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contest, "compared", watched)
        assert oracle(work.prepared.store, [Query(), Query()], 1) == [0.5, 0.5]
        oracle(work.prepared.store, [Query(), Query()], 2)
    assert seen[0] == seen[1] != seen[2] == seen[3]
    state = torch.get_rng_state()
    oracle(work.prepared.store, [Query(), Query()], 3)
    assert torch.equal(state, torch.get_rng_state())


def test_a_judge_of_labels(tiny_model: Path, tmp_path: Path, judge: None) -> None:
    """The answers to compare are names of classes; what is reported is the accuracy."""
    s = settings(tiny_model, objective="prefers:my_judge:more", method="rank", layers=1, mu=0.1, lr=0.1, steps=2)
    done = train(s, tmp_path / "run", quiet=True)
    assert (done["metric"], done["loss_first"]) == ("accuracy", pytest.approx(0.5))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"method": "node_perturbation", "set": {}}, "answers of several points are compared; use a method that needs"),
        ({"lr": "auto", "method": "zo_sgd"}, "--lr auto measures a curvature, which does not go with it"),
        ({"parallel": "directions"}, "--parallel directions parts the points"),
        ({"method": "zo_sam", "set": {}}, "zo_sam asks for 16 of up to 32 at first; use a method that asks for all"),
    ],
)
def test_what_cannot_compare_is_refused(
    tiny_model: Path, answers: Path, judge: None, tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        train(judged(tiny_model, answers, **more), tmp_path / "run", quiet=True)
