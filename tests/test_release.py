"""What a release and its checks say of themselves: versions, supported Pythons, hooks and workflows agree."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import zograd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
CITATION = ROOT / "CITATION.cff"
HOOKS = ROOT / ".pre-commit-config.yaml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def tool() -> Any:
    """tools/release_check.py."""
    spec = importlib.util.spec_from_file_location("release_check", ROOT / "tools" / "release_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(schema: str, *files: Path) -> str:
    """What a schema that check-jsonschema ships has against files; nothing where they fit."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout + done.stderr if done.returncode else ""


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the workflow, job) of all workflows."""
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            yield path.name, job


def commands() -> list[str]:
    """The lines that the workflows run."""
    return [line for _, job in jobs() for step in job["steps"] for line in step.get("run", "").splitlines()]


# ---- files of the repository fit their schemas -----------------------------------------------------------------------


def test_citation_is_valid_and_of_this_version() -> None:
    assert refused("citation-file-format", CITATION) == ""
    citation = yaml.safe_load(CITATION.read_text())
    assert citation["version"] == zograd.__version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_workflows_are_valid() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"docs", "tests", "wheels"}
    assert refused("github-workflows", *WORKFLOWS) == ""


@pytest.mark.parametrize(
    ("schema", "source", "fault"),
    [
        ("github-workflows", ROOT / ".github" / "workflows" / "tests.yml", ("runs-on:", "run-on:")),
        ("citation-file-format", CITATION, ("authors:", "writers:")),
    ],
)
def test_a_schema_sees_a_fault(schema: str, source: Path, fault: tuple[str, str], tmp_path: Path) -> None:
    spoilt = tmp_path / source.name
    spoilt.write_text(source.read_text().replace(*fault))
    assert refused(schema, spoilt)


# ---- one truth each --------------------------------------------------------------------------------------------------


def test_hooks_run_what_make_lint_runs() -> None:
    """The hook calls the recipe itself, so that the two cannot differ."""
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", str(HOOKS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (repo,) = yaml.safe_load(HOOKS.read_text())["repos"]
    (hook,) = repo["hooks"]
    assert repo["repo"] == "local"
    assert (hook["entry"], hook["language"], hook["pass_filenames"]) == ("make lint", "system", False)


def test_workflows_test_the_pythons_that_the_project_declares() -> None:
    """And newer ones, which are declared once the suite has passed on them."""
    prefix = "Programming Language :: Python :: "
    declared = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if re.fullmatch(rf"{prefix}3\.\d+", c)]
    matrices = [job["strategy"]["matrix"] for name, job in jobs() if name == "tests.yml" and "strategy" in job]
    (matrix,) = matrices
    assert declared
    assert [version for version in matrix["python"] if version in declared] == declared
    assert PROJECT["requires-python"] == f">={declared[0]}"
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    setups = [step["with"] for _, job in jobs() for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert {given["python-version"] for given in setups} <= {*declared, "${{ matrix.python }}"}


def test_workflows_install_through_the_constraints() -> None:
    installs = [line for line in commands() if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


def test_workflows_and_hooks_call_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    called = {word for line in [*commands(), "make lint"] for word in re.findall(r"^make ([\w-]+)", line)}
    assert {"docs", "lint", "release-check"} <= called
    site = ROOT / "mkdocs.yml"
    assert called - targets <= (set() if site.exists() else {"docs"})


# ---- what the archives hold ------------------------------------------------------------------------------------------

TRACKED = [".gitignore", "Makefile", "src/zograd/__init__.py", "src/zograd/noise/_native.cpp", "tests/test_release.py"]
SDIST = ["Makefile", "PKG-INFO", "setup.cfg", "src/zograd.egg-info/PKG-INFO", *TRACKED[2:]]
WHEEL = [
    "zograd/__init__.py", "zograd/noise/_native.cpp", "zograd/noise/_native.cpython-311-x86_64-linux-gnu.so",
    "zograd-0.1.dist-info/METADATA",
]  # fmt: skip


def test_whole_archives_pass() -> None:
    assert tool().wrong_in_sdist(TRACKED, SDIST) == []
    assert tool().wrong_in_wheel(TRACKED, WHEEL) == []


@pytest.mark.parametrize("name", ["Makefile", "src/zograd/noise/_native.cpp", "tests/test_release.py"])
def test_an_sdist_that_lacks_a_file_is_refused(name: str) -> None:
    (wrong,) = tool().wrong_in_sdist(TRACKED, [n for n in SDIST if n != name])
    assert name in wrong


def test_an_sdist_with_a_file_of_nobody_is_refused() -> None:
    (wrong,) = tool().wrong_in_sdist(TRACKED, [*SDIST, "runs/run.json"])
    assert "runs/run.json" in wrong


@pytest.mark.parametrize("name", WHEEL[:3])
def test_a_wheel_that_lacks_a_file_is_refused(name: str) -> None:
    (wrong,) = tool().wrong_in_wheel(TRACKED, [n for n in WHEEL if n != name])
    assert name.partition(".")[0] in wrong


@pytest.mark.parametrize("name", ["tests/test_release.py", "benchmarks/check.py"])
def test_a_wheel_with_tests_or_benchmarks_is_refused(name: str) -> None:
    (wrong,) = tool().wrong_in_wheel(TRACKED, [*WHEEL, name])
    assert name in wrong
