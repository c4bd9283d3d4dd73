"""Settings from a config and from --set are read alike: numbers are numbers, words are text, files are UTF-8."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zograd.llm.settings import SettingsError, parse, parse_assignments, read_config

SOURCES = Path(__file__).parents[2] / "src" / "zograd"

VALUES: list[tuple[str, Any]] = [
    ("1e-8", 1e-8), ("1E5", 1e5), ("-1e-3", -1e-3), ("1.5e+3", 1500.0), (".5", 0.5), ("5.", 5.0), ("0.05", 0.05),
    ("8", 8), ("+1", 1), ("-3", -3), ("012", 12), ("1_000", 1000), ("0x1f", 31), ("true", True), ("no", False),
    ("null", None), ("normal", "normal"), ("2**-6", "2**-6"), ("1:30", "1:30"), ("1.2.3", "1.2.3"), ("e5", "e5"),
    ("[1e-3, 2]", [1e-3, 2]), ("'1e-8 of it'", "1e-8 of it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES, ids=[text for text, _ in VALUES])
def test_a_config_and_set_read_the_same_value(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "c.yaml").write_text(f"set: {{x: {text}}}\ntop: {text}\n", encoding="utf-8")
    config = read_config(tmp_path / "c.yaml")
    for found in (config["top"], config["set"]["x"], parse_assignments([f"x={text}"])["x"]):
        assert found == value
        assert type(found) is type(value)


def test_numbers_reach_the_settings_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nmu: 1e-2\nset: {eps: 1e-8, beta1: '9e-1'}\n", encoding="utf-8")
    s = parse(read_config(tmp_path / "c.yaml"))
    assert (s.lr, s.mu, s.method_settings) == (1e-3, 1e-2, {"eps": 1e-8, "beta1": 0.9})
    (tmp_path / "c.toml").write_text('lr = 1e-3\nset = {eps = "1e-8"}\n', encoding="utf-8")
    assert parse(read_config(tmp_path / "c.toml")).method_settings == {"eps": 1e-8}


def test_label_words_of_a_config_are_text() -> None:
    assert parse({"label_words": {0: " bad", 1: 5}}).label_words == {"0": " bad", "1": "5"}
    assert parse({"label_words": {False: " a", True: " b"}}).label_words == {"false": " a", "true": " b"}
    assert parse({"label_words": [1, " two"]}).label_words == ["1", " two"]
    several = parse({"label_words": {0: [" bad", 3], 1: " good"}})
    assert several.label_words == {"0": [" bad", "3"], "1": " good"}
    assert parse(several.stored()).label_words == several.label_words
    for words in ({0: True, 1: False}, [True, False]):
        with pytest.raises(SettingsError, match=r"label_words = .* yes, no, on, off, .* write such a word in quotes"):
            parse({"label_words": words})


def test_a_set_that_does_not_parse_is_named() -> None:
    with pytest.raises(SettingsError, match=r"--set 'x=\[1' does not parse"):
        parse_assignments(["x=[1"])


# ---- UTF-8 ---------------------------------------------------------------------------------------------------------


def test_a_config_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "prompt_template: '{text} C’était'\nlabel_words: [très bien, 悪い]\n", encoding="utf-8"
    )
    code = f"from zograd.llm.settings import read_config; print(ascii(read_config({str(tmp_path / 'c.yaml')!r})))"
    plain = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain, check=True)
    assert ast.literal_eval(found.stdout) == read_config(tmp_path / "c.yaml")
    assert read_config(tmp_path / "c.yaml")["label_words"] == ["très bien", "悪い"]


def test_a_config_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("label_words: [très bien]\n".encode("cp1252"))
    with pytest.raises(SettingsError, match=r"c\.yaml is not UTF-8 text \(byte 16\); save it as UTF-8"):
        read_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfsteps: 3\n")  # as Windows saves it
    assert read_config(tmp_path / "c.yaml") == {"steps": 3}


def without_encoding(source: str) -> list[int]:
    """Lines that open a file as text in the encoding of the locale."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = ast.unparse(call.func).rpartition(".")[0]
        named = {keyword.arg for keyword in call.keywords}
        arguments = call.args[isinstance(call.func, ast.Name) :]  # of `open` itself, the first is the file
        texts = [c.value for a in arguments for c in ast.walk(a) if isinstance(c, ast.Constant)]
        mode = next((m for m in texts if isinstance(m, str) and m and set(m) <= set("rwxabt+")), "r")
        text = name in ("read_text", "write_text") or (name == "open" and "b" not in mode and owner in PATHS)
        if text and "encoding" not in named:
            found.append(call.lineno)
    return found


PATHS = {"", "file", "path", "self.path", "(target.parent / f'.{target.name}.lock')"}
"""What has an `open` for text files in this package; others are archives, runs, tensors."""


def test_every_text_file_is_read_and_written_as_utf_8() -> None:
    assert without_encoding("open('x')\npath.open('w')\nopen('x', 'rb')\nopen('x', encoding='utf-8')\n") == [1, 2]
    files = {str(file.relative_to(SOURCES)): file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py")}
    found = {name: lines for name, text in files.items() if (lines := without_encoding(text))}
    assert not found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"settings": {"steps": 2}, "tape_version": 2, "model": [{"name": "w"}]}',
            r"is the record of a run; copy what",
        ),
        ("", r"must hold keys and values, but it holds nothing"),
        ("steps: [" + "1, " * 500 + "1]", r"^steps = \[1, .{180,200}\.\.\.: expected an integer$"),
    ],
)
def test_a_config_that_is_something_else_gets_a_short_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=sentence):
        parse(read_config(file))
