"""Multiple choice: each example is scored on its own choices, in training, evaluation and prediction."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zograd.hub import Example, Task, TaskError
from zograd.llm import loading
from zograd.llm.build import set_up
from zograd.llm.evaluate import evaluate
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.scoring.metrics import MetricError, losses_of, metric_of, metrics_of
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.llm.tuned import Tuned

EXAMPLES = [
    Example("the movie was", 1, choices=(" bad", " very good", " no")),
    Example("It was", 0, choices=(" great", " good maybe very bad")),
    Example("yes , the good was", 3, choices=(" a", " bad bad", " no", " great", " very"), also=(" very",)),
]


def task_of(examples: list[Example]) -> Task:
    return Task(
        "choices", "{question}", (), {"train": examples, "validation": (), "test": ()}, "here", "", kind="choice"
    )


def by_hand(model: Any, tokenizer: Any, e: Example) -> list[float]:
    """The mean log-probability of the tokens of each choice, from the logits of a forward of its own."""
    found = []
    for choice in e.choices:
        ids, start = tokenizer.encode(e.prompt + choice), len(tokenizer.encode(e.prompt))
        logp = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        found.append(float(torch.stack([logp[k - 1, ids[k]] for k in range(start, len(ids))]).mean()))
    return found


@torch.no_grad()
def test_scores_and_losses_are_those_of_single_forwards(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    scorer = Scorer(model, tokenizer, task_of(EXAMPLES))
    scores, losses = scorer.scores(EXAMPLES), scorer.losses(EXAMPLES)
    assert scores.shape == (3, 5)
    for e, row, loss in zip(EXAMPLES, scores, losses, strict=True):
        expected = torch.tensor(by_hand(model, tokenizer, e))
        assert torch.allclose(row[: len(e.choices)], expected, atol=1e-4)
        assert bool((row[len(e.choices) :] == -torch.inf).all())
        right = torch.log_softmax(expected, 0)[torch.tensor(e.right)].exp().sum()
        assert float(loss) == pytest.approx(-float(right.log()), abs=1e-4)
    assert torch.allclose(scorer.scores(EXAMPLES, 2), torch.cat([scores, scores]), atol=1e-5)
    assert float(scorer.loss(EXAMPLES)) == pytest.approx(float(losses.mean()), abs=1e-5)
    assert torch.allclose(scorer.all_scores(EXAMPLES), scores, atol=1e-5)
    found = scorer.evaluate(EXAMPLES, interval=True)
    hits = [e.right[int(row.argmax())] for e, row in zip(EXAMPLES, scores, strict=True)]
    assert (found.metric, found.value, found.calibrated) == ("accuracy", pytest.approx(sum(hits) / 3), None)
    terms = scorer.terms(EXAMPLES)
    assert float(sum(t.values.sum() for t in terms)) == pytest.approx(float(losses.mean()), abs=1e-5)


def test_metrics_of_choices() -> None:
    """Padding is no score that is not finite; any right choice counts."""
    inf = torch.inf
    scores = torch.tensor([[0.0, 1.0, -inf], [2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    labels = torch.tensor([[1, 0, -1], [0, 0, 1], [0, 1, 1]])
    found = metrics_of(scores, labels)
    assert (found.not_finite, found.value, found.accuracy) == (0, pytest.approx(1 / 3), pytest.approx(1 / 3))
    expected = [
        float(F.cross_entropy(scores[:1, :2], torch.tensor([0]))),
        float(F.cross_entropy(scores[1:2], torch.tensor([2]))),
        float(-torch.log_softmax(scores[2], 0)[1:].logsumexp(0)),
    ]
    assert losses_of(scores, labels).tolist() == pytest.approx(expected)
    assert metrics_of(torch.tensor([[0.0, -inf, -inf]]), labels[:1]).not_finite == 1
    own = metric_of(lambda labels, said: float((labels == said).sum()), "choice", 0)
    assert metrics_of(scores, labels, metric=own).value == 1.0
    with pytest.raises(MetricError, match="is not for multiple choice: choose accuracy or loss"):
        metric_of("macro-f1", "choice", 0)


@pytest.fixture
def copa(tmp_path: Path) -> Path:
    """A folder in COPA's format, in which the choice with "good" is right."""
    rng, folder = random.Random(0), tmp_path / "COPA"
    folder.mkdir()
    for name, count in (("train", 24), ("val", 12)):
        lines = []
        for k in range(count):
            label, words = rng.randrange(2), rng.choice(["it was very", "the movie was", "this was a"])
            choices = [f"{words} {'good' if side == label else 'bad'}." for side in range(2)]
            lines.append({
                "premise": f"The movie {name} {k} was {rng.choice(['great', 'new', 'old', 'very funny', 'long'])}.",
                "choice1": choices[0], "choice2": choices[1], "question": rng.choice(["cause", "effect"]),
                "label": label, "idx": k,
            })  # fmt: skip
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def settings(model: Path, task: Path | str, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": str(task), "method": "zo_sgd", "dtype": "float32", "threads": 1, "batch_size": 24,
        "steps": 4, "lr": 1e-2, "mu": 1e-2,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


def test_copa_is_learned_evaluated_and_predicted(tiny_model: Path, tmp_path: Path, copa: Path) -> None:
    done = train(settings(tiny_model, f"copa:{copa}", method="backprop", steps=12, lr=2e-2, mu=None, layers=1),
                 tmp_path / "run", quiet=True)  # fmt: skip
    assert done["metric_after"] == 1.0 > done["metric_before"]
    again = evaluate(None, None, tmp_path / "run", split="validation")
    assert (again["metric"], again["value"]) == ("accuracy", done["metric_after"])
    other = evaluate(None, f"copa:{copa / 'val.jsonl'}", tmp_path / "run")
    assert (other["value"], other["examples"]) == (1.0, 12)
    tuned = Tuned(tmp_path / "run")
    (said,) = tuned.predict([{"premise": "The movie was old because", "choices": ["it was bad", "it was good"]}])
    assert (said.prompt, said.label) == ("The movie was old because", "it was good")
    assert sum(said.probabilities.values()) == pytest.approx(1)
    (same,) = tuned.predict(['{"premise": "The movie was old because", "choices": ["it was bad", "it was good"]}'])
    assert same == said
    with pytest.raises(SettingsError, match="here each has its own choices"):
        tuned.predict([{"premise": "a", "choices": ["b", "c"]}] * 2, calibrate=True)
    with pytest.raises(TaskError, match="an input has the columns premise, choices"):
        tuned.predict(["a text"])


def test_a_run_predicts_from_the_column_in_which_its_data_has_the_choices(tiny_model: Path, tmp_path: Path) -> None:
    lines = [{"question": f"It was {k}", "options": ["bad", "good"], "answer": k % 2} for k in range(24)]
    file = tmp_path / "quiz.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    columns = {"records": "choice", "completion_column": "options"}
    train(settings(tiny_model, file, steps=1, batch_size=4, **columns), tmp_path / "run", quiet=True)
    tuned = Tuned(tmp_path / "run")
    (said,) = tuned.predict([{"question": "The movie was", "options": ["very bad", "good"]}])
    assert set(said.probabilities) == {"very bad", "good"}
    with pytest.raises(TaskError, match="an input has the columns question, options"):
        tuned.predict(["a text"])
    (tmp_path / "run" / "run.json").write_text(
        (tmp_path / "run" / "run.json").read_text(encoding="utf-8").replace('"choices": "options"', '"old": ""'),
        encoding="utf-8",
    )  # as an earlier release wrote it
    assert Tuned(tmp_path / "run").predict([{"question": "The movie was", "options": ["very bad", "good"]}]) == [said]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"method": "fzoo", "mu": None},
        {"method": "residual", "mu": None, "layers": 2},
        {"method": "node_perturbation", "mu": 0.1, "layers": 2},
        {"objective": "accuracy", "method": "rank"},
        {"layers": 1, "cache_prefix": True},
    ],
)
def test_methods_of_every_kind_train_on_choices(
    tiny_model: Path, tmp_path: Path, copa: Path, more: dict[str, Any]
) -> None:
    done = train(settings(tiny_model, f"copa:{copa}", **more), tmp_path / "run", quiet=True)
    assert (done["steps"], done["refused"]) == (4, 0)
    assert evaluate(None, None, tmp_path / "run", split="validation")["value"] == done["metric_after"]


def test_stored_states_give_the_same_losses(tiny_model: Path, tmp_path: Path, copa: Path) -> None:
    s = settings(tiny_model, f"copa:{copa}", layers=1)
    cached = set_up(s, tmp_path / "a")
    plain = set_up(s.model_copy(update={"cache_prefix": False}), tmp_path / "b")
    assert cached.scorer.prefix is not None
    batch = cached.batches[0]
    assert float(cached.scorer.loss(batch)) == pytest.approx(float(plain.scorer.loss(batch)), abs=1e-5)


def test_answers_of_an_accuracy_are_choices(tiny_model: Path, tmp_path: Path, copa: Path) -> None:
    work = set_up(settings(tiny_model, f"copa:{copa}", objective="accuracy"), tmp_path)
    examples = work.held_out
    right = [e.right[int(row.argmax())] for e, row in zip(examples, work.scorer.scores(examples), strict=True)]
    assert work.scorer.losses(examples).tolist() == [1.0 - float(r) for r in right]


def test_long_prompts_are_cut_and_choices_stay(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    long = Example("good " * 200 + "was", 0, spans=((0, 1000),), choices=(" bad", " very good"))
    with pytest.raises(TaskError, match="cut such examples with --truncate"):
        Scorer(model, tokenizer, task_of([long])).scores([long])
    scorer = Scorer(model, tokenizer, task_of([long]), max_length=20, truncate="left")
    tails = [s.ids[s.scored_from :] for s in scorer.encode(long)]
    assert [tokenizer.decode(t) for t in tails] == ["bad", "very good"]
    assert max(len(s.ids) for s in scorer.encode(long)) <= 20


@torch.no_grad()
def test_encoders_with_a_decoder_score_choices(tiny_model: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                     decoder_start_token_id=0, pad_token_id=0)
        ).eval()  # fmt: skip
    scores = scorer_of(model, tokenizer, task_of(EXAMPLES)).scores(EXAMPLES)
    e = EXAMPLES[0]
    answer = tokenizer.encode(e.choices[1])
    logits = model(
        input_ids=torch.tensor([tokenizer.encode(e.prompt)]), decoder_input_ids=torch.tensor([[0, *answer[:-1]]])
    ).logits[0]
    expected = torch.log_softmax(logits, -1)[torch.arange(len(answer)), answer].mean()
    assert float(scores[0, 1]) == pytest.approx(float(expected), abs=1e-4)


def test_choices_behind_a_prompt_need_no_question(tiny_model: Path, tmp_path: Path) -> None:
    """A prompt is scored as it is written; what to write otherwise names a column that is there."""
    file = tmp_path / "quiz.jsonl"
    rows = [
        {"prompt": f"It was {word} {k}", "choices": [" good", " bad"], "answer": k % 2, "split": split}
        for k, (word, split) in enumerate(product(("great", "old", "very", "new"), ("train", "validation")))
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    train(settings(tiny_model, file, steps=1, batch_size=4), tmp_path / "run", quiet=True)
    (said,) = Tuned(tmp_path / "run").predict([{"prompt": "It was long", "choices": [" good", " bad"]}])
    assert said.prompt == "It was long"
    file.write_text("\n".join(json.dumps({"asked": row.pop("prompt"), **row}) for row in rows))
    with pytest.raises(TaskError, match=r"no column 'question'; its columns are asked,.* such as '\{asked\}'"):
        train(settings(tiny_model, file), tmp_path / "other", quiet=True)
