"""Runs that look lost and are not: objectives below 0, perfect ones, prompts that are cut, settings given twice."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.families import family
from tests.hf.test_hf_trainer import trained
from zograd.core.tape import Tape
from zograd.hub import Task, TaskError, load_task
from zograd.llm import generation, loading
from zograd.llm.loop import DivergenceError
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.scoring.metrics import metric_of
from zograd.llm.scoring.rewards import AnyScript, f1, same, word_accuracy
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    """A file whose records are in turn for training and held out."""
    splits = ("train", "validation")
    path.write_text("".join(json.dumps({**row, "split": splits[k % 2]}) + "\n" for k, row in enumerate(rows)))
    return str(path)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    rows = [{"text": f"it {k} was", "label": ["good", "bad"][k // 2 % 2]} for k in range(24)]
    return table(tmp_path / "reviews.jsonl", rows)


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_rewards.py").write_text(
        "def five(prompt, answer, wanted):\n    return 5.0 + (answer == wanted)\n"
        "def far(prompt, answer, wanted):\n    return -50.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def settings(model: Path, data: str, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": data, "method": "rank", "set": {"n": 4}, "dtype": "float32",
        "threads": 1, "batch_size": 4, "steps": 14, "lr": 1e-3, "mu": 0.03, "layers": 1,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


def labels(data: str) -> Task:
    return load_task(data)


# ---- runs that have not run away -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rewards")
@pytest.mark.parametrize("baseline", [True, False])
def test_an_objective_below_0_has_not_run_away(tiny_model: Path, reviews: str, tmp_path: Path, baseline: bool) -> None:
    s = settings(tiny_model, reviews, objective="hostile_rewards:five", baseline=baseline)
    done = train(s, tmp_path / "run", quiet=True)
    assert done["steps"] == 14
    assert done["loss_first"] < -5


@pytest.mark.usefixtures("rewards")
@pytest.mark.filterwarnings("ignore:no answer changed")
def test_a_resumed_objective_below_0_has_not_run_away(tiny_model: Path, reviews: str, tmp_path: Path) -> None:
    s = settings(tiny_model, reviews, objective="hostile_rewards:five", baseline=False, steps=5)
    train(s, tmp_path / "run", quiet=True)
    again = s.model_copy(update={"steps": 20})
    assert train(again, tmp_path / "run", resume=True, quiet=True)["steps"] == 20


@pytest.mark.usefixtures("rewards")
def test_an_objective_is_compared_with_its_own_first_loss(tiny_model: Path, reviews: str, tmp_path: Path) -> None:
    """Minus a reward of -50 is far above the held-out loss of 0.7, and what it was in the first step."""
    s = settings(tiny_model, reviews, objective="hostile_rewards:far", steps=12)
    with pytest.warns(UserWarning, match="no answer changed hostile_rewards:far"):
        done = train(s, tmp_path / "run", quiet=True)
    assert done["eval_loss_before"] < 1
    assert done["loss_last"] == 50.0


def test_a_loss_that_runs_away_is_told_as_before(tiny_model: Path, tmp_path: Path) -> None:
    s = settings(tiny_model, "mr", method="zo_sgd", set={}, lr=0.2, mu=1e-2, steps=40, max_failures=3, layers=None)
    with pytest.raises(DivergenceError, match=r"the loss has run away: .* before the first step"):
        train(s, tmp_path / "run", quiet=True)


# ---- nothing left to lower -------------------------------------------------------------------------------------------


def one_class(model: Path, tmp_path: Path, good: bool) -> str:
    """Examples that a model answers all right, or all wrong."""
    loaded, tokenizer = loading.load(str(model), dtype="float32")
    texts = [f"{w} it {k} was" for k in range(20) for w in ("no", "yes")]
    file = table(tmp_path / "any.jsonl", [{"text": text, "label": "aabb"[k % 4]} for k, text in enumerate(texts)])
    task = load_task(file, label_words="a= good,b= bad", prompt_template="{text}")
    examples = [e for part in task.splits.values() for e in part]
    said = scorer_of(loaded, tokenizer, task).scores(examples).argmax(1)
    kept = int(said.mode().values)
    label = "ab"[kept if good else 1 - kept]
    texts = [e.prompt for e, k in zip(examples, said.tolist(), strict=True) if k == kept]
    return table(tmp_path / "rows.jsonl", [{"text": text, "label": label} for text in texts])


@pytest.mark.filterwarnings("ignore:none of the")
@pytest.mark.parametrize("method", ["zo_sgd", "rank"])
def test_a_perfect_objective_is_a_result(tiny_model: Path, tmp_path: Path, method: str) -> None:
    """Without a warning: 0 is the best loss that there is."""
    s = settings(
        tiny_model, one_class(tiny_model, tmp_path, good=True), method=method, objective="accuracy", lr=1e-8, mu=1e-4,
        set={"n": 4} if method == "rank" else {}, label_words="a= good,b= bad", prompt_template="{text}",
    )  # fmt: skip
    done = train(s, tmp_path / "run", quiet=True)
    assert (done["steps"], done["loss_last"], done["metric_after"]) == (14, 0.0, 1.0)


@pytest.mark.filterwarnings("ignore:none of the")
def test_an_objective_in_steps_is_warned_of_once(tiny_model: Path, tmp_path: Path) -> None:
    s = settings(
        tiny_model, one_class(tiny_model, tmp_path, good=False), objective="accuracy", lr=1e-8, mu=1e-4, steps=9,
        max_failures=3, label_words="a= good,b= bad", prompt_template="{text}",
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"no answer changed accuracy .* a larger --mu, such as 0.03") as told:
        done = train(s, tmp_path / "run", quiet=True)
    assert len([w for w in told if "no answer changed" in str(w.message)]) == 1
    assert (done["steps"], done["metric_after"]) == (9, 0.0)


@pytest.mark.filterwarnings("ignore:the loss did not read")
def test_a_loss_that_no_weight_changes_still_ends_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after --resume, which counts the flat steps of the tape."""
    monkeypatch.setattr(Scorer, "copy_losses", lambda self, batch, copies, most=64: torch.full((copies,), 0.5))
    s = settings(tiny_model, "mr", method="zo_sgd", set={}, steps=3, max_failures=9)
    train(s, tmp_path / "run", quiet=True)
    with pytest.raises(DivergenceError, match=r"the loss was 0.5 at every point of 9 steps in a row"):
        train(s.model_copy(update={"steps": 30}), tmp_path / "run", resume=True, quiet=True)
    assert Tape(tmp_path / "run" / "tape.zo").steps == 9


@pytest.mark.filterwarnings("ignore:the loss did not read")
def test_a_loss_of_0_is_no_failure(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "copy_losses", lambda self, batch, copies, most=64: torch.zeros(copies))
    s = settings(tiny_model, "mr", method="zo_sgd", set={}, steps=8, max_failures=3)
    assert train(s, tmp_path / "run", quiet=True)["steps"] == 8


# ---- answers to prompts that are cut ---------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """Prompts of 100 tokens, of which a model of 128 cannot write 32 answers tokens more."""
    rows = [{"prompt": f"yes {'it was ' * 49}{w}", "completion": " great good"} for w in ("bad", "good", "very", "no")]
    return table(tmp_path / "questions.jsonl", rows)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the prompts that are answered."""
    seen: list[int] = []
    padded = generation._padded

    def spy(rows: Any, pad: int, *, left: bool) -> Any:
        seen.extend(map(len, rows))
        return padded(rows, pad, left=left)

    monkeypatch.setattr(generation, "_padded", spy)
    return seen


@pytest.mark.parametrize("more", [{"metric": "f1"}, {"objective": "f1"}, {"objective": "prefers:hostile_rewards:five"}])
@pytest.mark.usefixtures("rewards")
def test_a_prompt_without_room_for_an_answer_is_told_before_the_run(
    tiny_model: Path, questions: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    s = settings(tiny_model, questions, baseline=False, **more)
    with pytest.raises(TaskError, match=r"has 100 tokens, and with --answer-tokens 32 it is longer than the 128"):
        train(s, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [{"metric": "f1"}, {"objective": "f1"}])
def test_answers_are_to_the_prompt_that_is_trained_on(
    tiny_model: Path, questions: str, tmp_path: Path, asked: list[int], more: dict[str, Any]
) -> None:
    s = settings(tiny_model, questions, max_length=32, truncate="left", steps=1, **more)
    train(s, tmp_path / "run", quiet=True)
    assert asked
    assert 20 < max(asked) <= 30
    asked.clear()
    s = settings(tiny_model, questions, truncate="left", steps=1, **more)  # cut for the answer alone
    train(s, tmp_path / "again", quiet=True)
    assert 90 < max(asked) <= 96


def test_an_answer_longer_than_a_decoder_writes_is_told(tiny_model: Path, questions: str) -> None:
    _, tokenizer = loading.load(str(tiny_model), dtype="float32")
    task = load_task(questions)
    metric = metric_of("f1", "completion", 0)
    scorer = scorer_of(bart(tokenizer), tokenizer, task, metric=metric, answer_tokens=200)
    with pytest.raises(TaskError, match="--answer-tokens 200 is more than the 128 that the decoder writes"):
        scorer.evaluate(task.splits["validation"])


# ---- scores of models of other kinds ---------------------------------------------------------------------------------


def bart(tokenizer: Any, forced: int | None = None) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128,
            pad_token_id=0, bos_token_id=3, eos_token_id=2, decoder_start_token_id=2, init_std=0.5,
        )  # fmt: skip
        model = BartForConditionalGeneration(config).eval()
    model.generation_config.forced_bos_token_id = forced
    return model


@torch.no_grad()
@pytest.mark.parametrize("forced", [None, 3])
def test_a_word_is_scored_where_the_decoder_writes_it(tiny_model: Path, reviews: str, forced: int | None) -> None:
    """Behind the token that it writes first in any case: the score is that of what `generate` writes."""
    _, tokenizer = loading.load(str(tiny_model), dtype="float32")
    model, task = bart(tokenizer, forced), labels(reviews)
    scorer, e = scorer_of(model, tokenizer, task), task.splits["train"][0]
    ids = torch.tensor([tokenizer.encode(e.prompt)])
    front = [2] if forced is None else [2, forced]
    logits = model(input_ids=ids, decoder_input_ids=torch.tensor([front])).logits[0, -1]
    words = [tokenizer.encode(w.strip()) for w in scorer.label_words]
    assert torch.allclose(scorer.scores([e])[0], logits[[w for (w,) in words]])
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    written = model.generate(input_ids=ids, max_new_tokens=len(front), do_sample=False)[0].tolist()
    assert written == [*front, int(logits.argmax())]


@torch.no_grad()
@pytest.mark.parametrize("forced", [None, 3])
def test_a_completion_begins_behind_the_forced_token(tiny_model: Path, questions: str, forced: int | None) -> None:
    """A tokenizer that puts that token in front (BART's) has it once in the decoder, and it is not learned."""
    _, tokenizer = loading.load(str(tiny_model), dtype="float32")
    model, task = bart(tokenizer, forced), load_task(questions)
    scorer, e = scorer_of(model, tokenizer, task), task.splits["train"][0]
    words = tokenizer.encode(e.completion)
    logp = model(
        input_ids=torch.tensor([tokenizer.encode(e.prompt)]),
        decoder_input_ids=torch.tensor([[2, *([] if forced is None else [forced]), *words[:-1]]]),
    ).logits.log_softmax(-1)[0, -len(words) :]
    expected = logp.gather(1, torch.tensor(words)[:, None]).mean()
    assert torch.allclose(scorer.scores([e])[0, 0], expected, atol=1e-5)
    with_front = e.__class__(e.prompt, -1, completion="great good")
    scorer.tokenizer = Fronted(tokenizer, 3)
    (sequence,) = scorer._sequences(with_front)
    assert sequence.ids[sequence.scored_from :] == tuple(words if forced else [3, *words])


class Fronted:
    """A tokenizer that puts a token in front of a text, as BART's does."""

    def __init__(self, tokenizer: Any, front: int) -> None:
        self.tokenizer, self.front = tokenizer, front

    def encode(self, text: str, **options: Any) -> list[int]:
        return [self.front, *self.tokenizer.encode(text)]

    def __call__(self, *, text_target: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text_target)}


def test_an_answer_is_split_as_a_target(tiny_model: Path, questions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marian's tokenizer splits targets by a model of their own; T5's starts with no forced token."""
    _, tokenizer = loading.load(str(tiny_model), dtype="float32")
    task = load_task(questions)
    asked: list[str] = []
    whole = type(tokenizer).__call__

    def spy(self: Any, *texts: Any, text_target: str | None = None, **options: Any) -> Any:
        asked.extend([] if text_target is None else [text_target])
        return whole(self, *texts, text_target=text_target, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", spy)
    scorer = scorer_of(family("t5", len(tokenizer), "AutoModelForSeq2SeqLM"), tokenizer, task)
    e = task.splits["train"][0]
    scorer.encode(e)
    assert asked == [e.completion]
    assert scorer.front == (0,)


def roberta(tokenizer: Any, padding: int, auto: Any = RobertaForMaskedLM) -> Any:
    return auto(
        RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=66, pad_token_id=padding,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_positions_begin_behind_that_of_the_padding(tiny_model: Path, tmp_path: Path, padding: int) -> None:
    """As many tokens as RoBERTa has positions for; more are refused or cut, and do not fall out of its table."""
    _, tokenizer = loading.load(str(tiny_model), dtype="float32")
    tokenizer.add_special_tokens({"mask_token": "<unk>"})
    tokenizer.model_max_length = 10**30
    model, room = roberta(tokenizer, padding), 66 - padding - 1

    def task(words: int) -> Task:
        rows = [{"text": "very " * (words - 2) + w, "label": w} for w in ("good", "bad")] * 2
        file = table(tmp_path / f"{words}.jsonl", rows)
        return load_task(file, label_words={"good": "good", "bad": "bad"}, prompt_template="{text}")

    whole = task(room)
    scorer = scorer_of(model, tokenizer, whole)
    assert scorer.limit == room
    assert max(scorer.lengths(whole.splits["train"])) == room
    assert torch.isfinite(scorer.scores(list(whole.splits["train"]))).all()
    longer = task(room + 1)
    with pytest.raises(TaskError, match=rf"has {room + 1} tokens, but the model takes {room}"):
        scorer_of(model, tokenizer, longer).evaluate(longer.splits["train"])
    cut = scorer_of(model, tokenizer, longer, truncate="left")
    cut.evaluate(longer.splits["train"])
    assert len(cut.cut) == len(set(longer.splits["train"]))


@torch.no_grad()
@pytest.mark.parametrize("words", [None, "0= bad,1= good", "1= good,0= bad"])
@pytest.mark.parametrize("truth", [False, True])
def test_labels_that_are_numbers_are_those_of_a_head(
    tiny_model: Path, tmp_path: Path, words: str | None, truth: bool
) -> None:
    """Whatever the order of the label words: a head with the names LABEL_0 and LABEL_1 means 0 and 1."""
    _, tokenizer = loading.load(str(tiny_model), dtype="float32")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=128, num_labels=2,
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
    texts = [f"{w} it was {v}" for w in ("good", "bad", "very", "no") for v in ("yes", "no", "great")]
    logits = torch.stack([model(torch.tensor([tokenizer.encode(t)])).logits[0] for t in texts])
    gaps = (logits[:, 1] - logits[:, 0]).sort().values
    model.classifier.bias -= torch.tensor([0.0, float(gaps[5:7].mean())])
    said = [int(model(torch.tensor([tokenizer.encode(t)])).logits.argmax()) for t in texts]
    assert 0 < sum(said) < len(said)
    rows = [{"text": t, "label": bool(k) if truth else k} for t, k in zip(texts, said, strict=True)]
    file = table(tmp_path / "rows.jsonl", rows)
    if truth and words is not None:
        words = words.replace("0=", "false=").replace("1=", "true=")
    task = load_task(file, label_words=words, prompt_template="{text}")
    assert scorer_of(model, tokenizer, task).evaluate(task.splits["train"]).value == 1.0


def test_f1_says_of_which_class_it_is(tiny_model: Path, reviews: str, tmp_path: Path) -> None:
    done = train(settings(tiny_model, reviews, metric="f1", steps=1), tmp_path / "run", quiet=True)
    assert done["f1_of"] == labels(reviews).classes[1]
    assert done["metric_after"] == done["classes"][1]["f1"]


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "other"), [("lr", 1e-3, 0.5), ("lr", "auto", 0.5), ("mu", 0.01, 0.5), ("weight_decay", 0.1, 0.2)]
)
def test_a_setting_with_two_values_is_refused(
    tiny_model: Path, reviews: str, tmp_path: Path, name: str, value: Any, other: float
) -> None:
    given = {"method": "zo_sgd", "steps": 1, name: value}
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(SettingsError, match=rf"{option} {value} and --set {name}={other} give one setting two values"):
        train(settings(tiny_model, reviews, **given, set={name: other}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    if value != "auto":
        train(settings(tiny_model, reviews, **given, set={name: value}), tmp_path / "run", quiet=True)


def test_more_parts_than_examples_are_refused_before_the_run(tiny_model: Path, reviews: str, tmp_path: Path) -> None:
    common = {"method": "zo_sgd", "set": {}, "steps": 1, "batch_size": 16}
    with pytest.raises(SettingsError, match=r"a batch of 12 examples cannot be cut into 16 parts"):
        train(settings(tiny_model, reviews, **common, shards=16), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    assert train(settings(tiny_model, reviews, **common, shards=12), tmp_path / "run", quiet=True)["steps"] == 1


@pytest.mark.filterwarnings("ignore:points are evaluated one at a time")
def test_settings_that_nothing_reads_are_named(tiny_model: Path, reviews: str, questions: str, tmp_path: Path) -> None:
    s = settings(tiny_model, reviews, objective="accuracy", steps=1, answer_temperature=1.0, answer_tokens=3, eos=False)
    with pytest.warns(UserWarning, match="does nothing here") as told:
        train(s, tmp_path / "labels", quiet=True)
    said = " ".join(str(w.message) for w in told)
    for option in ("--answer-temperature", "--answer-tokens", "--no-eos"):
        assert f"{option} does nothing here" in said
    _, tokenizer = loading.load(str(tiny_model), dtype="float32")
    t5 = tmp_path / "t5"
    family("t5", len(tokenizer), "AutoModelForSeq2SeqLM").save_pretrained(t5)
    tokenizer.save_pretrained(t5)
    common: dict[str, Any] = {"method": "zo_sgd", "set": {}, "steps": 1, "layers": None}
    with pytest.warns(UserWarning, match="--no-eos does nothing here: it is for models that continue a text"):
        train(settings(t5, questions, **common, eos=False), tmp_path / "pairs", quiet=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(settings(tiny_model, questions, **common, eos=False), tmp_path / "causal", quiet=True)


# ---- words of any script ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u201chi\u201d", "hi"), ("it\u2019s", "it's"), ("\u2018hi\u2019 \u2014 you\u2026", "Hi, you"), ("'hi'", "hi"),
        ("\u00ab\u0434\u0430\u00bb", "\u0434\u0430"), ("\u4f60\u597d\u3002", "\u4f60\u597d"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)  # fmt: skip
def test_marks_of_any_script_are_no_errors_of_words(one: str, other: str) -> None:
    assert word_accuracy("", one, other) == word_accuracy("", other, one) == 1.0
    assert word_accuracy("", "its", "it's") == 0.0


def test_the_same_words_in_any_quotes() -> None:
    assert same("", "\u201cThe House\u201d\u2026", "house") == 1.0
    assert f1("", "\u00ab\u0434\u0430\u00bb, \u043d\u0435\u0442", "\u0434\u0430") == pytest.approx(2 / 3)


def test_rouge_reads_words_of_any_script() -> None:
    split = AnyScript().tokenize
    assert split("Don't stop_2!") == ["don", "t", "stop", "2"]  # as the tokenizer of rouge-score has it
    assert split("\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440") == [
        "\u043f\u0440\u0438\u0432\u0435\u0442",
        "\u043c\u0438\u0440",
    ]
    assert split("\u4f60\u597d") == ["\u4f60", "\u597d"]
    assert split("\u0939\u093f\u0928\u094d\u0926\u0940") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940"
    ]  # signs of vowels stay


# ---- in a Trainer ----------------------------------------------------------------------------------------------------


def test_a_trainer_at_loss_0_is_warned_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the loss was 0 at every point of 10 steps in a row") as told:
        trained(tmp_path, method="zo_sgd", lr=1e-3, max_steps=14, compute_loss_func=lambda *a, **k: torch.tensor(0.0))
    assert len([w for w in told if "the loss was 0" in str(w.message)]) == 1
    with pytest.raises(DivergenceError, match="the same value everywhere"):
        trained(tmp_path, method="zo_sgd", lr=1e-3, max_steps=14, compute_loss_func=lambda *a, **k: torch.tensor(0.5))
