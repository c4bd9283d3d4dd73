"""The README's Python runs as it stands (tests/test_pages.py runs its commands too)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_python_of_the_readme_runs() -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile("\n".join(snippets), str(README), "exec"), names)
    result = names["res"]
    assert result.success  # type: ignore[attr-defined]
    assert result.fun < 1e-6  # type: ignore[attr-defined]
    assert float(names["loss"]) > 0  # type: ignore[arg-type]


def test_every_command_line_of_the_readme_names_methods_that_exist() -> None:
    from zograd import methods

    used = set(re.findall(r"--method (\w+)", README.read_text(encoding="utf-8")))
    assert used
    assert used <= set(methods.names())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_says_what_plan_says(error: Exception) -> None:
    from zograd.cli import explain

    assert "`zograd plan` says what fits" in explain(error)


def test_a_full_disk_says_that_the_run_is_intact() -> None:
    from zograd.cli import explain

    assert "free some space and run the command again; a training goes on with --resume" in explain(
        OSError(28, "No space left on device", "tape.zo")
    )
