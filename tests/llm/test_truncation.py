"""Examples that are too long lose text of their longest columns, and nothing of their template or their words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zograd.hub import Example, Task, TaskError, load_task
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.scoring.truncation import GAP, SIDES, capped, cut, fitting, shortened
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train

LONG = " ".join(["good", "bad", "very"] * 30)
PAIR: dict[str, Any] = {
    "prompt_template": "It {long} was {short} very good", "label_words": {"0": " terrible", "1": " great"},
}  # fmt: skip


@given(st.text(alphabet="ab \n", max_size=60), st.integers(0, 70), st.sampled_from(SIDES))
def test_a_text_is_shortened_between_words(text: str, most: int, side: str) -> None:
    found = shortened(text, most, side)
    assert len(found) <= (most + len(GAP) if side == "middle" else most) or found == text
    if len(text) <= most:
        assert found == text
    words, kept = text.split(), found.split()
    if side == "left":
        assert text.endswith(found)
    elif side == "right":
        assert text.startswith(found)
    if len(text) > most and all(len(word) <= most // 2 for word in words):
        assert set(kept) <= {*words, "..."}


def long_pair(label: int = 0) -> tuple[Task, Example]:
    task = load_task([{"long": LONG, "short": "very bad", "label": label}], **PAIR)
    (example,) = [e for part in task.splits.values() for e in part]
    return task, example


@pytest.mark.parametrize("side", SIDES)
def test_the_longest_column_is_cut_as_little_as_is_needed(tiny_model: Path, side: str) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    task, example = long_pair()
    scorer = Scorer(model, tokenizer, task, max_length=40, truncate=side)
    (sequence,) = scorer.encode(example)
    assert 38 <= len(sequence.ids) <= 40
    text = tokenizer.decode(sequence.ids)
    assert text.startswith("It ")
    assert text.endswith("was very bad very good")
    words = LONG.split()
    kept = text.removeprefix("It ").removesuffix(" was very bad very good").split()
    if side == "left":
        assert kept == words[-len(kept) :]
    elif side == "right":
        assert kept == words[: len(kept)]
    else:
        at = next(k for k, (a, b) in enumerate(zip(kept, words, strict=False)) if a != b)
        assert kept[:at] == words[:at]
        assert kept[-at + 1 :] == words[-at + 1 :]
    assert scorer.cut == {example}
    assert scorer.said(1) == f"1 of 1 examples have more than 40 tokens: their longest parts are cut ({side})"


def test_columns_of_one_length_are_cut_alike() -> None:
    example = Example("a aaaaaaaa b bbbbbbbb c", 0, spans=((2, 10), (13, 21)))
    found = fitting(example, "right", lambda e: len(e.prompt) <= 15)
    assert found is not None
    assert (found.prompt, found.spans) == ("a aaaa b bbbb c", ((2, 6), (9, 13)))
    assert fitting(example, "right", lambda e: len(e.prompt) < 5) is None
    assert capped(example, 100, "left") == example


def test_turns_before_the_last_are_cut() -> None:
    chat = (("user", "one two three"), ("assistant", "yes"), ("user", "x"), ("assistant", "one two three four"))
    found = capped(Example("", -1, "", chat), 7, "right")
    assert found.chat == (("user", "one two"), *chat[1:])


def test_without_its_columns_it_may_still_be_too_long(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    task, example = long_pair()
    with pytest.raises(TaskError, match=r"has more than 3 tokens even without its columns; raise --max-length, or"):
        Scorer(model, tokenizer, task, max_length=3, truncate="left").encode(example)
    with pytest.raises(TaskError, match=r"has 96 tokens, but the model takes 40: cut such examples with --truncate"):
        Scorer(model, tokenizer, task, max_length=40).encode(example)


def test_completions_keep_their_beginning_and_texts_their_side(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")

    def only(record: dict[str, Any], side: str) -> tuple[str, int]:
        task = load_task([record])
        (example,) = [e for part in task.splits.values() for e in part]
        (found,) = Scorer(model, tokenizer, task, max_length=10, truncate=side).encode(example)
        assert len(found.ids) == 10
        return tokenizer.decode(found.ids), found.scored_from

    words = LONG.split()
    assert only({"prompt": LONG, "completion": " yes no"}, "left") == (" ".join([*words[-8:], "yes", "no"]), 8)
    assert only({"prompt": "yes", "completion": " " + LONG}, "left") == (" ".join(["yes", *words[:9]]), 1)
    assert only({"prompt": LONG, "completion": " " + LONG}, "right") == (" ".join([*words[:5], *words[:5]]), 5)
    # The prompt keeps something, also where the completion alone just fits.
    nine = " " + " ".join(words[:9])
    assert only({"prompt": LONG, "completion": nine}, "right") == (" ".join([words[0], *words[:9]]), 1)
    assert only({"text": LONG}, "left") == (" ".join(words[-10:]), 1)
    assert only({"text": LONG}, "right") == (" ".join(words[:10]), 1)
    assert only({"text": LONG}, "middle") == (" ".join([*words[:5], *words[-5:]]), 1)


def test_token_ids() -> None:
    ids = tuple(range(6))
    assert {side: cut(ids, 3, side) for side in SIDES} == {"left": (3, 4, 5), "middle": (0, 1, 5), "right": (0, 1, 2)}
    assert cut(ids, 6, "left") == ids


def test_a_run_with_long_examples(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--max-length alone cuts on the right, for all that scores the run; its eval counts what it cuts."""
    rows = [{"long": f"{LONG} {i}" if i % 2 else f"good {i}", "short": "bad", "label": i % 2} for i in range(120)]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "model": str(tiny_model),
        "task": str(path),
        "steps": 1,
        "batch_size": 4,
        "dtype": "float32",
        "threads": 1,
    }
    s = TrainSettings.model_validate({**PAIR, **common, "method": "zo_sgd", "lr": 1e-3, "max_length": 20})
    result = train(s, tmp_path / "run", quiet=True)
    assert "of 111 examples have more than 20 tokens: their longest parts are cut (right)" in capsys.readouterr().err
    found = evaluate(None, None, tmp_path / "run", split="validation")
    assert found["loss"] == result["eval_loss_after"]
    longer = evaluate(None, None, tmp_path / "run", split="validation", max_length=100)
    assert longer["loss"] != found["loss"]
    assert (found["truncated"] > 0, longer["truncated"]) == (True, 0)
    with pytest.raises(TaskError, match="tokens, but the model takes 128: cut such"):
        train(s.model_copy(update={"max_length": None, "prompt_template": "{long} {long}"}), tmp_path / "b", quiet=True)
