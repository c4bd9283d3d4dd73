"""The pages of the site and the README as programs: their blocks, and what runs them.

A block of Python runs in the namespace of its page; a block of shell runs line by line. A block with a title is a file
of that name, which later blocks use; `text title="prints"` is what the Python before it prints. A block after a comment
`<!-- not run: REASON -->` is not run.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S
)
TITLE = re.compile(r'title="([^"]+)"')
SHOWN = {"text", "json", "yaml", "toml", "csv"}
"""Languages of blocks that are no code."""

ALIAS = "smollm2-135m"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    code: str
    line: int
    reason: str | None = None
    """Why it is not run."""


@dataclass(frozen=True)
class Small:
    """What stands in for the real model where commands are run at a small size: folders of a model and of its GGUF."""

    model: Path
    gguf: Path


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in FENCE.finditer(text):
        title = TITLE.search(match["options"])
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"], title and title[1], match["code"], line, match["reason"]))  # type: ignore[arg-type]
    return found


def source(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def run(page: Path, small: Small | None) -> None:
    """Run a page in the current folder; with `small`, its commands at a small size."""
    module = types.ModuleType("page")  # dataclasses look theirs up
    sys.modules["page"] = module
    printed = ""
    for block in blocks(source(page)):
        where = f"{page.name}, line {block.line}"
        if block.reason is not None:
            continue
        if block.title == "prints":
            agree = doctest.OutputChecker().check_output(
                block.code, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            )
            assert agree, f"{where}: the page shows\n{block.code}\nbut its code prints\n{printed}"
        elif block.title is not None and "." in block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(shrunk_text(block.code, small), encoding="utf-8")
        elif block.language == "python":
            padded = "\n" * (block.line - 1) + shrunk_text(block.code, small)  # tracebacks show the line of the page
            with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of libraries among themselves
                exec(compile(padded, str(page), "exec"), module.__dict__)
            printed = out.getvalue()
        elif block.language == "bash":
            for command in commands(block.code):
                run_command(command, where, small)
        else:
            assert block.language in SHOWN, f"{where}: a block of {block.language!r} is neither run nor text"


def commands(code: str) -> list[list[str]]:
    """The words of each command of a block of shell, without comments."""
    joined = code.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def run_command(words: list[str], where: str, small: Small | None) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(words[1:]) <= set(targets), f"{where}: the Makefile has no {words[1:]}"
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = {
            name for word in words for part in re.findall(r"zograd\[([\w,]+)\]", word) for name in part.split(",")
        }
        assert words[1] == "install", f"{where}: {words}"
        assert wanted <= set(extras), f"{where}: pyproject.toml has no extra {wanted - set(extras)}"
    elif words[0] == "zograd":
        with without_plugins():
            done = zograd(shrunk(words[1:], small))
        assert done[0] == 0, f"{where}: {words} ended with {done[0]}\n{done[1]}"
    elif words[0] == "torchrun" and small is not None:
        program = words[next(k for k, word in enumerate(words) if word.endswith(".py") or word == "-m") :]
        with alone():
            if program[0] == "-m":
                run_command(program[1:], where, small)
            else:
                runpy.run_path(program[0], run_name="__main__")
    else:
        python = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
        assert words[0] in python, f"{where}: nothing here runs {words[0]!r}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        ended = subprocess.run([*python[words[0]], *words[1:]], capture_output=True, text=True, env=environment)
        assert ended.returncode == 0, f"{where}: {words} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}"


@contextlib.contextmanager
def without_plugins() -> Iterator[None]:
    """Afterwards the menu is as before, and a plugin of the same name can be run again."""
    from zograd import plugins
    from zograd.methods.menu import MENU

    before, ran, modules = dict(MENU), dict(plugins._files), set(sys.modules)
    try:
        yield
    finally:
        for registry, entries in ((MENU, before), (plugins._files, ran)):
            registry.clear()
            registry.update(entries)  # type: ignore[arg-type]
        for name in set(sys.modules) - modules:
            if name.startswith("zograd_plugin_"):
                del sys.modules[name]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What torchrun tells a process that is the only one: at the small size, its programs run in this process."""
    told = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    before = dict(os.environ)
    os.environ.update(told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def zograd(arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of the command line, run in this process."""
    from typer.testing import CliRunner

    from zograd.cli import app

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def shrunk_text(code: str, small: Small | None) -> str:
    """Python with the small model in the place of the real one."""
    return code if small is None else code.replace(f'"{ALIAS}"', repr(str(small.model)))


SMALL = {
    "--steps": "4",
    "--to": "2",
    "--average": "2",
    "--batch-size": "4",
    "--layers": "2",
    "--train-examples": "12",
    "--eval-examples": "12",
    "--examples": "12",
    "--calibration": "12",
    "--rounds": "1",
    "--seq-len": "8",
}
"""The most that options of a command may ask for at the small size."""
READING = ("eval", "compress", "robustness")
LOADING = ("train", "plan", "protect", *READING)
"""Commands that read examples with a model, and all that load one."""


def shrunk(arguments: list[str], small: Small | None) -> list[str]:
    """A command of zograd with the small model, few steps and few examples of a task that it knows."""
    if small is None or not arguments or "--help" in arguments:
        return arguments
    name = arguments[0]
    words = list(arguments)
    model = str(small.gguf if "--quantized" in words else small.model)
    for k in range(len(words)):
        if words[k] == ALIAS:
            words[k] = model
        elif words[k] in ("trec", "sms"):  # the small model knows the words of mr
            words[k] = "mr"
        elif k and words[k - 1] in SMALL:
            words[k] = str(min(int(words[k]), int(SMALL[words[k - 1]])))
    if name == "train" and "--resume" not in words:
        for option in ("--train-examples", "--eval-examples", "--batch-size", "--steps"):
            words += [option, SMALL[option]] if option not in words else []
        words += ["--dtype", "float32"] if "--dtype" not in words and "--quantized" not in words else []
    if name in READING:
        words += ["--examples", SMALL["--examples"]] if "--examples" not in words else []
    fresh = "--resume" not in words and "--run" not in words
    if name in LOADING and fresh:
        words += ["--model", model] if "--model" not in words else []
        words += ["--task", "mr"] if "--task" not in words and name != "plan" else []
    return words
