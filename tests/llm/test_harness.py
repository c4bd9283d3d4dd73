"""Tasks of lm-evaluation-harness on a model or a run; what needs the library itself is skipped where it is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.hub import TaskError
from zograd.llm.harness import _name_in, harness, rows_of
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train

TASK = """task: films
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}} It was"
doc_to_choice: ["terrible", "great"]
doc_to_target: label
metric_list:
  - metric: acc
"""


def zograd(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_missing_library_is_said_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, err = zograd("--harness", "hellaswag", "--model", "smollm2-135m")
    assert (code, out) == (1, "")
    assert "--harness needs lm-evaluation-harness: pip install 'lm-eval[hf]'" in err
    assert "loading" not in err


@pytest.mark.parametrize("option", [
    ("--task", "mr"), ("--split", "test"), ("--calibration",), ("--metric", "mcc"), ("--prompt-template", "{text}"),
])  # fmt: skip
def test_options_of_our_own_tasks_do_not_go_with_it(option: tuple[str, ...]) -> None:
    code, _, err = zograd("--harness", "hellaswag", *option)
    assert code == 2
    assert f"{option[0]} does not go with --harness, whose tasks bring their data and prompts" in err


def test_rows_have_values_with_their_errors() -> None:
    found = {
        "results": {
            "a": {"alias": "a", "acc,none": 0.25, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
        },
        "n-samples": {"a": {"original": 9, "effective": 4}},
    }  # fmt: skip
    assert rows_of(found) == [
        {"task": "a", "metric": "acc", "filter": "none", "value": 0.25, "stderr": 0.1, "examples": 4},
        {"task": "a", "metric": "em", "filter": "strict", "value": 1.0, "stderr": None, "examples": 4},
    ]


def test_the_name_of_a_task_stands_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tag: x\ntask: 'mine'\ndoc_to_text: !function utils.text\n")
    (tmp_path / "b.yaml").write_text("tag: x\n")
    assert _name_in(str(tmp_path / "a.yaml")) == "mine"
    with pytest.raises(TaskError, match="has no line `task: NAME`"):
        _name_in(str(tmp_path / "b.yaml"))


def test_a_task_of_ones_own_on_a_model_and_on_a_run(tiny_model: Path, tmp_path: Path) -> None:
    """The harness counts what the model prefers, as `zograd eval` does with the same prompt and words."""
    pytest.importorskip("lm_eval")
    rows = [{"text": f"{w} film", "label": k % 2} for k, w in enumerate(["a good", "the bad", "no", "very great"] * 3)]
    data, file = tmp_path / "films.json", tmp_path / "films.yaml"
    data.write_text("\n".join(map(json.dumps, rows)))
    file.write_text(TASK.format(file=data))
    found = harness([str(file)], str(tiny_model), dtype="float32")
    (row,) = found["rows"]
    assert (row["task"], row["metric"], row["examples"], found["steps"]) == ("films", "acc", 12, None)
    ours = tmp_path / "films.jsonl"
    ours.write_text(data.read_text())
    words = {"0": " terrible", "1": " great"}
    from zograd.llm.evaluate import evaluate

    same = evaluate(str(tiny_model), str(ours), None, prompt_template="{text} It was", label_words=words, split="all")
    assert row["value"] == pytest.approx(same["value"])
    s = TrainSettings(model=str(tiny_model), task="mr", method="zo_sgd", steps=1, train="lora", train_examples=8)
    train(s.model_copy(update={"eval_examples": 8, "batch_size": 4}), tmp_path / "run", quiet=True)
    code, out, err = zograd("--harness", file, "--run", tmp_path / "run", "--examples", 4)
    assert code == 0, err
    assert out.splitlines()[1].split()[:2] == ["films", "acc"]
    assert out.splitlines()[1].split()[-1] == "4"
    with pytest.raises(TaskError, match="there is no such file"):
        harness([str(tmp_path / "gone.yaml")], str(tiny_model))


@pytest.mark.slow
def test_a_name_that_the_harness_does_not_know_is_refused(tiny_model: Path) -> None:
    """It reads its whole list of tasks for that."""
    pytest.importorskip("lm_eval")
    with pytest.raises(TaskError, match="--harness no_such_task: lm-eval has no such task"):
        harness(["no_such_task"], str(tiny_model))
