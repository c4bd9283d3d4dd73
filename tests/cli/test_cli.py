"""The command line as its users meet it: exit codes, one JSON line, one clear sentence for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from typer.testing import CliRunner

from zograd import methods
from zograd.cli import app

Finished: TypeAlias = subprocess.CompletedProcess[str]


def process(*arguments: object) -> Finished:
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "zograd", *map(str, arguments)], capture_output=True, text=True)


def zograd(*arguments: object) -> Finished:
    """The command in this process, which saves the seconds that it takes to load torch and transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception  # a traceback, which no user may see
    return Finished(list(arguments), done.exit_code, done.stdout, done.stderr)


def run_train(model: Path, out: Path, *more: object, run: Callable[..., Finished] = zograd) -> Finished:
    return run(
        "train", "--model", model, "--out", out, "--task", "mr", "--steps", 2, "--train-examples", 8,
        "--eval-examples", 8, "--batch-size", 2, "--dtype", "float32", "--threads", 1, *more,
    )  # fmt: skip


def modules_of(code: str) -> set[str]:
    """The modules that a Python process has loaded after `code`."""
    shown = "print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{shown}"], check=True, capture_output=True, text=True
    )
    return set(done.stdout.splitlines()[-1].split())


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_help_fits_one_screen_and_imports_no_torch() -> None:
    text = process("--help").stdout
    assert len(text.splitlines()) <= 50
    code = "sys.argv = ['zograd', '--help']\nfrom zograd.cli import main\ntry: main()\nexcept SystemExit: pass"
    modules = modules_of(code)
    assert not packages(modules) & {"torch", "numpy", "transformers", "pydantic", "yaml", "scipy", "safetensors"}
    assert len(modules) < 400  # 313 with typer 0.12 to 0.21, most of them of typer and rich


def test_import_zograd_imports_little_beside_torch() -> None:
    names = "AskTell, Method, Run, Store, Tape, ZOOptimizer, methods, minimize"
    new = modules_of(f"import torch; from zograd import {names}") - modules_of("import torch")
    assert not packages(new) & {"transformers", "peft", "pydantic", "typer", "rich", "yaml", "sklearn", "matplotlib"}
    others = {name for name in new if name.partition(".")[0] not in {"zograd", "scipy"}}  # a result is SciPy's
    assert len(others) < 100


@pytest.mark.parametrize(
    "command",
    ["quickstart", "train", "eval", "predict", "generate", "replay", "pack", "plan", "methods", "models", "tasks",
     "fetch", "report", "serve", "bench step", "bench memory", "bench exact", "protect", "compress", "robustness",
     "examples", "figures"],
)  # fmt: skip
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = zograd(*command.split(), "--help")
    assert result.returncode == 0
    assert f"Example: zograd {command}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("command", "option"),
    [("eval", "--calibration"), ("plan", "--seconds 600"), ("train", "--seconds 600"),
     ("train", "--train lora --balance"),
     ("train", "--train polar"), ("train", "--lr-schedule refined:runs/a"), ("train", "--protect mr.safetensors"),
     ("robustness", "--kind numbers")],
)  # fmt: skip
def test_an_option_that_is_a_method_of_its_own_has_an_example(command: str, option: str) -> None:
    help_text = " ".join(zograd(command, "--help").stdout.split())
    examples = help_text[: help_text.index("Options")].split("Example: ")[1:]
    assert any(option in example for example in examples)


def test_methods_json_is_complete() -> None:
    everything = json.loads(zograd("methods", "--json").stdout)["methods"]
    assert [e["name"] for e in everything] == methods.names(blocks=True)
    one = json.loads(zograd("methods", "fzoo", "--json").stdout)
    keys = {"name", "law", "estimator", "space", "rule", "defaults", "evaluations_per_step", "extra_memory", "source"}
    assert keys <= one.keys()
    assert one["evaluations_per_step"] == 9


def test_train_eval_replay_and_resume_print_one_json_line(tiny_model: Path, tmp_path: Path) -> None:
    trained = run_train(
        tiny_model, tmp_path / "run", "--json", "--method", "fzoo", "--set", "n=2", "--lr", "1e-3", run=process
    )
    assert trained.returncode == 0, trained.stderr
    (line,) = trained.stdout.splitlines()
    summary = json.loads(line)
    keys = {
        "steps", "evaluations", "loss_first", "loss_last", "metric", "metric_before", "metric_after", "peak_bytes",
        "inference_peak_bytes", "seconds", "run",
    }  # fmt: skip
    assert keys <= summary.keys()
    assert summary["steps"] == 2
    assert summary["evaluations"] == 6
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert files == {"run.json", "tape.zo", "metrics.jsonl"}

    more = zograd("train", "--out", tmp_path / "run", "--resume", "--steps", 4, "--json", "--threads", 1)
    assert json.loads(more.stdout)["steps"] == 4, more.stderr

    replayed = zograd("replay", tmp_path / "run", "--out", tmp_path / "weights", "--json", "--threads", 1)
    assert json.loads(replayed.stdout)["sha256"] == json.loads(more.stdout)["sha256"]
    evaluated = zograd(
        "eval", "--run", tmp_path / "run", "--examples", 8, "--split", "validation", "--json", "--threads", 1
    )
    assert {"metric", "value", "calibrated", "majority", "examples", "loss"} <= json.loads(evaluated.stdout).keys()


def test_own_data_and_a_config_file(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    rows = [{"text": f"very {'good ' * (k % 7)}{k}", "label": str(k % 2)} for k in range(60)]
    data.write_text("\n".join(map(json.dumps, rows)))
    config = tmp_path / "run.yaml"
    config.write_text("method: zo_sign\nset: {n: 2}\nlr: 1.0e-4\n")
    result = run_train(
        tiny_model, tmp_path / "run", "--task", data, "--prompt-template", "{text} It was", "--label-words",
        "0= terrible,1= great", "--config", config, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert stored["method"] == "zo_sign"
    assert stored["set"] == {"n": 2}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"prompt": f"It was {k}", "completion": " very good"}) for k in range(40)))
    result = run_train(tiny_model, tmp_path / "pairs", "--task", pairs, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["metric"] == "loss"


BAD = {  # 2: no file and no machine could make the command right
    "no such model": (["--model", "/nowhere/model"], "/nowhere/model", 1),
    "no such task": (["--task", "nonsense"], "mr", 2),
    "missing file": (["--task", "/nowhere/data.jsonl"], "/nowhere/data.jsonl", 1),
    "unknown method": (["--method", "adamw"], "the menu has zo_sgd", 2),
    "unknown method setting": (["--method", "fzoo", "--set", "q=3"], "fzoo has no setting 'q'", 2),
    "malformed setting": (["--set", "n"], "write key=value", 2),
    "method without a default": (["--method", "frank_wolfe"], "needs set", 2),
    "pattern that matches nothing": (["--train", "nonsense"], "selects no parameter", 1),
    "unknown dtype": (["--dtype", "float8"], "there is no dtype 'float8'", 2),
    "negative steps": (["--steps", "-1"], "steps", 2),
    "zero batch": (["--batch-size", "0"], "batch_size", 2),
    "unknown schedule": (["--lr-schedule", "wavy"], "lr_schedule", 2),
    "resume of nothing": (["--resume"], "holds no run", 1),
    "missing config": (["--config", "/nowhere/c.yaml"], "cannot read the config", 2),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_changes_nothing(tiny_model: Path, tmp_path: Path, case: str) -> None:
    arguments, expected, code = BAD[case]
    result = run_train(tiny_model, tmp_path / "run", *arguments)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("zograd: "), result.stderr
    assert expected in last
    assert not (tmp_path / "run").exists()


FILES = {
    "an empty file": ("", "holds no records"),
    "a missing column": ('{"body": "x", "label": "0"}\n', "text"),
    "a label that has no word": ('{"text": "x", "label": "0"}\n{"text": "y", "label": "7"}\n', "7"),
    "a line that is no JSON": ('{"text": "x", "label": "0"}\n{oops\n', "2"),
    "a prompt longer than the context": ('{"text": "' + "very " * 300 + '", "label": "0"}\n', "the model takes 128"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_data_is_named(tiny_model: Path, tmp_path: Path, case: str) -> None:
    text, expected = FILES[case]
    rows = "".join(json.dumps({"text": f"good {k}", "label": str(k % 2)}) + "\n" for k in range(40))
    data = tmp_path / "data.jsonl"
    data.write_text(text if case in ("an empty file", "a missing column") else text + rows)
    result = run_train(
        tiny_model, tmp_path / "run", "--task", data, "--prompt-template", "{text} It was", "--label-words",
        "0= terrible,1= great", "--train-examples", "100", "--eval-examples", "100",
    )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert expected in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_parse_is_named(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"not a safetensors file")
    result = run_train(broken, tmp_path / "run")
    assert result.returncode == 1
    assert "cannot load a model" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_tape_of_another_version_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    assert run_train(tiny_model, tmp_path / "run").returncode == 0
    tape = tmp_path / "run" / "tape.zo"
    data = bytearray(tape.read_bytes())
    data[6] = 9
    tape.write_bytes(data)
    result = zograd("replay", tmp_path / "run", "--out", tmp_path / "weights")
    assert result.returncode == 1
    assert "version 9; this zograd reads version 2" in result.stderr
    assert tape.read_bytes() == data
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    "command",
    ["train", "nonsense", "methods nonsense", "fetch nonsense", "plan --method nonsense", "plan --dtype float8",
     "train --out run --label-words x", "eval --task mr --dtype float8"],
)  # fmt: skip
def test_bad_usage_exits_with_2(command: str) -> None:
    result = zograd(*command.split())
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
