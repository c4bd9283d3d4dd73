"""Sums in words: exact answers read from the text again, and choices that a change leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.hub import load_task
from zograd.hub.perturb import NUMBERS, Sentences, WithoutQuestion, text_of
from zograd.llm.robustness import measure
from zograd.llm.settings import SettingsError
from zograd.problems.story_sums import TEMPLATES, story_sums, write

READ: list[Callable[..., int]] = [
    lambda x, y: x + y, lambda x, y: x + y, lambda x, y, z: x + y + z, lambda x, y: x - y, lambda x, y, z: x - y - z,
    lambda x, y: x - y, lambda x, y: x + (x + y), lambda x, y, z: x - y + z, lambda x, y: x * y,
    lambda x, y, z: x * y + z, lambda x, y: x * y - y, lambda x, y: 2 * x * y, lambda x, y: x // y,
    lambda x, y: x // y, lambda x, y: x + y, lambda x, y, z: x * y + z, lambda x, y: x - y, lambda x, y: x * y,
    lambda x, y, z: x + y + z, lambda x: x + 2 * x,
]  # fmt: skip
"""What each story says, as arithmetic on the numbers that stand in it, in their order."""


def test_answers_are_those_of_the_numbers_in_the_text() -> None:
    stories = story_sums(20 * 30, seed=3)
    assert len(TEMPLATES) == len(READ) == 20
    for k, story in enumerate(stories):
        assert story.answer == READ[k % 20](*story.numbers), story.text
        if k % 20 in (12, 13):
            assert story.numbers[0] % story.numbers[1] == 0, "it divides without a rest"


def test_one_choice_of_four_is_right_and_its_place_and_size_say_little() -> None:
    stories = story_sums(400, seed=1)
    assert all(len({*s.choices}) == len(s.choices) == 4 and s.answer in s.choices for s in stories)
    assert all(choice > 0 for s in stories for choice in s.choices)
    places = np.bincount([s.choices.index(s.answer) for s in stories], minlength=4)
    assert np.all(np.abs(places - 100) < 4 * np.sqrt(400 * 0.25 * 0.75))
    for extreme in (min, max):
        assert np.mean([extreme(s.choices) == s.answer for s in stories]) < 0.3
    assert story_sums(40, seed=1) == stories[:40] != story_sums(40, seed=2)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    write(path, story_sums(100))
    return path


def test_a_change_keeps_the_story_its_choices_and_which_is_right(file: Path) -> None:
    rng = np.random.default_rng(0)
    for example in load_task(file).splits["test"]:
        a, b = text_of(example)
        story = example.prompt[a:b]
        longer, shorter = Sentences(NUMBERS)(example, 3, rng), WithoutQuestion()(example, 1, rng)
        assert longer is not None
        assert shorter is not None
        assert longer.prompt[slice(*text_of(longer))].endswith(f" {story}")
        assert "?" in story
        assert "?" not in shorter.prompt
        for new in (longer, shorter):
            assert (new.choices, new.label, new.also) == (example.choices, example.label, example.also)


def test_the_command_takes_multiple_choice(tiny_model: Path, file: Path) -> None:
    words = ["robustness", "--model", str(tiny_model), "--task", str(file), "--examples", "8", "--dtype", "float32"]
    done = CliRunner().invoke(app, [*words, "--kind", "numbers", "--strengths", "2", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["kind"] for row in rows] == ["sentences", "numbers", "no question"]
    assert all(row["examples"] == 8 for row in rows)
    done = CliRunner().invoke(app, [*words, "--kind", "words", "--candidates", "2", "--json"])
    assert done.exit_code == 0, done.output


def test_a_task_without_a_right_choice_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"prompt": "a", "completion": "b", "split": "test"}\n' * 3)
    with pytest.raises(SettingsError, match=r"has no classes and no choices, .* use a task of classification or of"):
        measure(str(tiny_model), tmp_path / "text.jsonl", kind="numbers")
