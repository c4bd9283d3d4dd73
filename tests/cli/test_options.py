"""Every setting of a run is an option of the command line, described once; a measurement is a command by its name."""

from __future__ import annotations

import ast
import inspect
import re
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import zograd.distributed
import zograd.llm.train
from zograd.cli import app
from zograd.cli.bench import MEASUREMENTS
from zograd.llm.settings import SettingsError, TrainSettings, accepts, parse

FIELDS = list(TrainSettings.model_fields)
SOURCES = Path(__file__).parents[2] / "src" / "zograd"
DONE = {
    "metric": "loss", "metric_before": 1.0, "metric_after": 1.0, "steps": 1, "evaluations": 2, "seconds": 1.0,
    "peak_bytes": 1, "inference_peak_bytes": 1, "interrupted": False, "stopped_by": None, "run": "x",
    "start_seconds": 1.0, "process_peak_bytes": 1,
}  # fmt: skip


def help_of(*command: str) -> str:
    """The help without frames, on lines as long as it likes."""
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainSettings]:
    """The settings that `zograd train` would train with."""
    seen: list[TrainSettings] = []

    def train(settings: TrainSettings, *_: Any, **__: Any) -> dict[str, Any]:
        seen.append(settings)
        return DONE

    monkeypatch.setattr(zograd.llm.train, "train", train)
    monkeypatch.setattr(zograd.distributed, "joined", lambda *_: nullcontext(SimpleNamespace(rank=0)))
    return seen


def option(name: str) -> str:
    return f"--{(TrainSettings.model_fields[name].alias or name).replace('_', '-')}"


def typed(name: str) -> list[str]:
    """An option with a value that is not the default."""
    field = TrainSettings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    if field.annotation is bool:
        return [f"--no-{option(name)[2:]}" if default else option(name)]
    samples = {"integer": "7", "number": "0.5", "text": "x", "name,...": "a,b", "label=word,...": "0= a,1= b"}
    form = accepts(name)
    value = "n=3" if form == "key=value" else samples.get(form) or next(v for v in form.split("|") if v != str(default))
    return [option(name), samples.get(value, value)]


@pytest.mark.parametrize("name", FIELDS)
def test_each_option_reaches_its_setting(name: str, trained: list[TrainSettings]) -> None:
    arguments = typed(name)
    result = CliRunner().invoke(app, ["train", "--out", "run", *arguments])
    assert result.exit_code == 0, result.output
    (settings,) = trained
    assert settings.model_fields_set == {name}
    default = TrainSettings.model_fields[name].get_default(call_default_factory=True)
    assert getattr(settings, name) != default
    if len(arguments) == 2 and name != "method_settings":
        assert getattr(settings, name) == getattr(parse({option(name)[2:].replace("-", "_"): arguments[1]}), name)


def test_the_help_shows_every_setting_with_its_default() -> None:
    text = help_of("train")
    for name, field in TrainSettings.model_fields.items():
        assert re.search(rf"{option(name)}\b", text), name
        assert field.description, name
        assert field.description in text, name
    for shown in ("[smollm2-135m]", "[1000]", "[all]", "[on]", "[the method's; 2^-7 for lora]", "[0]"):
        assert shown in text, shown
    for panel in ("Model", "Data", "Method", "What is trained", "Machine", "Evaluation and saving"):
        assert f" {panel} " in text, panel


def test_options_of_other_commands_are_the_same_settings() -> None:
    for command in ("eval", "plan"):
        text = help_of(command)
        for name in ("model", "dtype", "quantized", "device"):
            assert str(TrainSettings.model_fields[name].description) in text
    assert "[trec, or the run's]" in help_of("eval")
    assert "[auto]" in help_of("plan")


def test_options_win_over_the_config_and_none_takes_a_limit_away(tmp_path: Path, trained: list[TrainSettings]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("quantized: true\nlr: 1e-3\ntrain_examples: 5\nset: {n: 2, q: 1}\n")
    arguments = ["--config", str(config), "--no-quantized", "--train-examples", "none", "--set", "n=4"]
    result = CliRunner().invoke(app, ["train", "--out", "run", *arguments])
    assert result.exit_code == 0, result.output
    (s,) = trained
    assert (s.quantized, s.lr, s.train_examples, s.method_settings) == (False, 1e-3, None, {"n": 4, "q": 1})


def test_a_template_that_is_typed_has_new_lines(tmp_path: Path, trained: list[TrainSettings]) -> None:
    """Within the quotes of a shell there is no other way; a config and Python have their own."""
    template = r"Review: {text}\nLabel\\n:"
    arguments = ["--prompt-template", template, "--label-words", r"a= x\n,b= y\, z| w"]
    assert CliRunner().invoke(app, ["train", "--out", "run", *arguments]).exit_code == 0
    assert trained[0].prompt_template == "Review: {text}\nLabel\\n:"
    assert trained[0].label_words == {"a": " x\n", "b": [" y, z", " w"]}
    assert parse({"prompt_template": template}).prompt_template == template


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "many"], "steps = 'many': expected an integer"),
        (["--lr", "fast"], "lr = 'fast': expected a number or auto"),
        (["--lr", "-1"], "lr = '-1': expected a number of at least 0"),
        (["--draw", "last"], "draw = 'last': expected stratified, random or first"),
        (["--compile", "maybe"], "compile = 'maybe': expected on, off or auto"),
        (["--text-column", "x", "--seed", "none"], "seed = 'none': expected an integer"),
        (["--label-words", "x"], "'x' is not of the form label=word"),
    ],
)
def test_a_value_that_does_not_fit_is_one_sentence(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["train", "--out", "run", *arguments])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("zograd: ")
    assert says in line


def test_plan_and_eval_refuse_what_they_do_not_know() -> None:
    result = CliRunner().invoke(app, ["plan", "--offload", "cpu"])
    assert result.exit_code == 2
    assert "use 'disk'" in result.stderr
    result = CliRunner().invoke(app, ["plan", "--method", "zo_adam", "--set", "moments=half"])
    assert result.exit_code == 2
    assert "method 'zo_adam': moments are 'full' (float32) or 'bfloat16', got 'half'" in result.stderr
    assert CliRunner().invoke(app, ["eval", "--steps", "3"]).exit_code == 2


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_summary_of_a_measurement_is_the_first_line_of_its_function(name: str) -> None:
    function = getattr(import_module(f"zograd.bench.{name}"), f"bench_{name}")
    doc = inspect.getdoc(function) or ""
    assert MEASUREMENTS[name] == doc.splitlines()[0]
    assert f"Example: zograd bench {name}" in help_of("bench", name)


def test_the_options_of_a_measurement_are_its_annotated_parameters() -> None:
    text = help_of("bench", "exact")
    assert "--queries" in text
    assert "Queries after which the weights are compared. [1000]" in text
    assert "--sizes" not in text, "only what has a help is an option"
    assert "-n" in help_of("bench", "directions")


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_the_package_does_not_import_the_benchmarks() -> None:
    """They are not in the wheel."""
    files = list(SOURCES.rglob("*.py"))
    assert len(files) > 100
    assert not [str(file) for file in files if "benchmarks" in imported(file)]


def test_no_file_of_the_command_line_is_long() -> None:
    assert not [f.name for f in (SOURCES / "cli").glob("*.py") if len(f.read_text(encoding="utf-8").splitlines()) > 400]


BAD = {"integer": "1.5", "number": "a lot", "on|off": "perhaps"}


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_value_of_every_setting_is_one_plain_sentence(name: str) -> None:
    """No setting shows what pydantic says of its types."""
    form = accepts(name)
    if form in ("text", "FILE", "name,...", "key=value", "label=word,..."):
        return  # any text is one; what it names is looked up later
    with pytest.raises(SettingsError) as error:
        parse({TrainSettings.model_fields[name].alias or name: BAD.get(form, "perhaps not")})
    text = str(error.value)
    assert ": expected " in text
    assert not re.search(r"\b(input|valid|literal|bool|float|pydantic|type)\b", text.lower())
