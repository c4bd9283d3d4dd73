"""Changed examples: what changes and what stays, the search for a word, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.diagnostics import one_word, robustness
from zograd.hub import Example
from zograd.hub.perturb import NUMBERS, PLAIN, Sentences, WithoutQuestion, WordSwap, content_words, text_of, with_text
from zograd.llm import loading
from zograd.llm.robustness import measure, neighbours
from zograd.llm.settings import SettingsError

TEXT = "A quiet film. Does it reach the heart of Paris in 3 acts? It drags."
EXAMPLE = Example(f"Review: {TEXT}\nMood:", 1, spans=((8, 8 + len(TEXT)),))
RNG = np.random.default_rng(0)


def near(word: str) -> tuple[str, ...]:
    return {"quiet": ("silent", "calm"), "film": ("movie",), "heart": ("core", "soul", "chest")}.get(word, ())


def test_only_words_that_carry_meaning_are_swapped() -> None:
    words = [TEXT[a:b] for a, b in content_words(TEXT)]
    assert words == ["quiet", "film", "reach", "heart", "acts", "drags"]


def test_a_swap_changes_words_for_their_candidates_and_nothing_else() -> None:
    for strength in (1, 2, 3, 9):
        new = WordSwap(near)(EXAMPLE, strength, RNG)
        assert new is not None
        before, after = EXAMPLE.prompt.split(), new.prompt.split()
        changed = [(a.strip("."), b.strip(".")) for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) == min(strength, 3)
        assert all(b in near(a) for a, b in changed)
        a, b = new.spans[0]
        assert new.prompt[:a] == "Review: " and new.prompt[b:] == "\nMood:"  # noqa: PT018
        assert new.label == EXAMPLE.label
    assert WordSwap(lambda word: ())(EXAMPLE, 1, RNG) is None


def test_sentences_come_in_front_and_the_question_goes() -> None:
    new = Sentences(NUMBERS)(EXAMPLE, 3, RNG)
    assert new is not None
    a, b = text_of(new)
    assert new.prompt[a:b].endswith(f" {TEXT}")
    assert sum(sentence in NUMBERS for sentence in [s.strip() + "." for s in new.prompt[a:b].split(".")]) == 3
    assert all(any(c.isdigit() for c in s) for s in NUMBERS)
    assert not any(c.isdigit() for s in PLAIN for c in s)
    rest = WithoutQuestion()(EXAMPLE, 1, RNG)
    assert rest is not None
    assert rest.prompt == "Review: A quiet film. It drags.\nMood:"
    assert WithoutQuestion()(with_text(EXAMPLE, "How far is it ?"), 1, RNG) is None
    assert WithoutQuestion()(with_text(EXAMPLE, "No question."), 1, RNG) is None


def bag(weights: dict[str, float]) -> Any:
    """A reader whose score of class 1 is the sum of the weights of the words."""

    def score(examples: Any) -> np.ndarray:
        totals = [sum(weights.get(w.strip(".?"), 0.0) for w in e.prompt.split()) for e in examples]
        return np.array([[0.0, t] for t in totals])

    return score


def test_the_search_finds_a_word_exactly_where_one_of_all_swaps_is_wrong() -> None:
    """Against enumeration of every swap, for 200 random readers; it never needs more evaluations than that."""
    rng, found = np.random.default_rng(0), 0
    names = ["quiet", "film", "heart", "silent", "calm", "movie", "core", "soul", "chest", "reach"]
    for _ in range(200):
        score = bag(dict(zip(names, rng.normal(size=len(names)), strict=True)))
        every = [with_text(EXAMPLE, TEXT[:i] + w + TEXT[j:]) for i, j in content_words(TEXT) for w in near(TEXT[i:j])]
        wrong = [e for e in every if np.argmax(score([e])[0]) != 1]
        attack = one_word(score, EXAMPLE, near)
        if np.argmax(score([EXAMPLE])[0]) != 1:
            assert attack.found is None
            assert attack.evaluations == 1
            continue
        assert (attack.found is None) == (not wrong)
        assert attack.exhausted
        assert attack.evaluations <= 1 + 3 + len(every)
        found += attack.found is not None
        assert attack.found is None or attack.found in wrong
    assert 10 < found < 150
    assert not one_word(bag({"quiet": 1.0}), EXAMPLE, near, most=4).exhausted


def test_a_row_has_the_paired_test_and_the_interval() -> None:
    examples = [Example(f"x{k}", k % 2) for k in range(40)]
    labels = [e.label for e in examples]
    flips = {e.prompt for e in examples[:9]}

    def score(asked: Any) -> np.ndarray:
        told = [int(e.prompt.strip("!")[1:]) % 2 ^ (e.prompt.endswith("!") and e.prompt[:-1] in flips) for e in asked]
        return np.eye(2)[told]

    perturb = lambda e, strength, rng: None if e.prompt == "x39" else Example(f"{e.prompt}!", e.label)  # noqa: E731
    (row,) = robustness(score, examples, labels, {"mark": perturb}, (1,))
    assert (row.examples, row.before, row.after) == (39, 1.0, 30 / 39)
    assert row.drop == pytest.approx(9 / 39)
    assert row.p == pytest.approx(2 * 0.5**9)
    assert row.significant
    assert row.low < row.after < row.high
    assert row.low == pytest.approx(binomtest(30, 39).proportion_ci(method="wilson").low)
    with pytest.raises(ValueError, match="0 examples"):
        robustness(score, [], [], {}, (1,))


def test_near_words_are_those_of_the_nearest_embeddings(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    found = neighbours(model, tokenizer, 5)("good")
    table = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach(), dim=1)
    ids = [tokenizer.convert_tokens_to_ids(w) for w in ("good", *found)]
    cosines = (table[ids[1:]] @ table[ids[0]]).tolist()
    assert len(found) == 5
    assert cosines == sorted(cosines, reverse=True)
    assert all(w.islower() and w[:4] != "good" for w in found)
    assert neighbours(model, tokenizer, 5)("unheardofword") == ()


@pytest.mark.parametrize("kind", ["words", "numbers"])
def test_the_command(tiny_model: Path, kind: str) -> None:
    words = ["robustness", "--model", str(tiny_model), "--task", "mr", "--kind", kind, "--examples", "6"]
    more = ["--candidates", "2", "--dtype", "float32"]
    done = CliRunner().invoke(app, [*words, *more, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["evaluations"] > 0
    kinds = [row["kind"] for row in result["rows"]]
    if kind == "words":
        assert kinds == ["one word, searched", "one word, at random"]
        searched, random = result["rows"]
        assert searched["before"] == random["before"]
        assert searched["after"] <= searched["before"]
    else:
        assert kinds[:6] == ["sentences"] * 3 + ["numbers"] * 3
    shown = CliRunner().invoke(app, [*words, *more])
    assert "p < 0.05" in shown.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "letters"}, "--kind letters: choose words or numbers"),
        ({"kind": "words", "examples": 0}, "--examples 0: at least 1"),
        ({"kind": "numbers", "strengths": (0,)}, "--strengths 0: at least 1"),
    ],
)
def test_bad_input_is_refused(tiny_model: Path, more: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        measure(str(tiny_model), "mr", **more)


@pytest.mark.slow
@pytest.mark.model
def test_one_word_fools_the_bundled_model() -> None:
    """trec, 20 questions: the search makes right answers wrong, at least as many as random swaps do.

    Without training few answers are right, so the paired test cannot tell what was lost from luck.
    """
    searched, random = measure("smollm2-135m", "trec", kind="words", examples=20, candidates=5)["rows"]
    print(searched, random)
    assert searched["after"] <= random["after"]
    fooled = round(20 * searched["drop"])
    assert fooled > 0
    assert searched["p"] == pytest.approx(min(1.0, 2 * 0.5**fooled))
