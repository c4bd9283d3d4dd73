"""`make mutants`: break the code in known ways, one at a time, and see whether the tests notice.

Each `Mutant` is one change of one file that is a fault, with the tests that have to fail by it. They are run on a copy
of the project: first unchanged, where they have to pass, then with each mutant, where at least one has to fail. What no
test notices is printed, and the exit code is 1.

    python tools/mutants.py            # all of them, some minutes
    python tools/mutants.py rounding   # those whose name contains a word
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("src", "tests", "benchmarks", "tools", "docs", "README.md", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """In `file`, `old` (which stands there once) becomes `new`; `tests` are arguments of pytest that must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "the rounding key is taken from the domain of directions",
        "src/zograd/run.py",
        "record.step, OfStep.ROUNDING",
        "record.step, OfStep.DIRECTION",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "scores for a mask are drawn with the keys of the run",
        "src/zograd/laws/scores.py",
        "law(Draw(own, k, j,",
        "law(Draw(seed, k, j,",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "diagnostics draw with the keys of the run",
        "src/zograd/diagnostics/problem.py",
        "law(Draw(own, k, 0,",
        "law(Draw(seed, k, 0,",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "a basis vector of the same name replaces another",
        "src/zograd/vector.py",
        "    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):\n",
        "    if False:\n",
        ("tests/core/test_keys.py",),
    ),
    Mutant(
        "the bound on conformal moves is twice as large",
        "src/zograd/spaces/orthant.py",
        "min(1.0, self.rho / size)",
        "min(1.0, 2 * self.rho / size)",
        ("tests/core/test_spaces.py::test_a_conformal_move_on_the_orthant_is_cut_to_length_rho",),
    ),
    Mutant(
        "of equal elements the l1 ball takes the last block's",
        "src/zograd/sets/balls.py",
        "abs(value) > abs(found[0]) else found",
        "abs(value) >= abs(found[0]) else found",
        ("tests/core/test_sets.py::test_of_equal_minimisers_the_documented_one_is_taken_however_the_leaf_is_cut",),
    ),
    Mutant(
        "a box takes its lower bound where the gradient is 0",
        "src/zograd/sets/penalties.py",
        "masked_fill_(g > 0, self.low)",
        "masked_fill_(g >= 0, self.low)",
        ("tests/core/test_sets.py::test_of_equal_minimisers_the_documented_one_is_taken_however_the_leaf_is_cut",),
    ),
)


def copy_of_the_project(folder: Path) -> Path:
    """The files that tests need, with the compiled loops that are built here."""
    for name in COPIED:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    return folder


def mutated(text: str, mutant: Mutant) -> str:
    """The text of the file with the fault in it. ValueError when the place is not there, or not once."""
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: {mutant.file} has {text.count(mutant.old)} places that read {mutant.old!r}, "
            f"expected one; write the change for the code as it is now"
        )
    return text.replace(mutant.old, mutant.new)


def run_tests(folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """pytest on the copy, up to the first failure."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--durations=0",
               "-m", "not slow and not gpu", *tests]  # fmt: skip
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if all(word in m.name for word in words)]
    if not chosen:
        print(f"no mutant is named {' '.join(words)!r}; there are: " + "; ".join(m.name for m in MUTANTS))
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_the_project(Path(temporary))
        tests = tuple(dict.fromkeys(test for m in chosen for test in m.tests))
        done = run_tests(folder, tests)
        if done.returncode:
            print(done.stdout[-4000:])
            print("these tests fail on the code as it is, so they can tell nothing about mutants")
            return 1
        survived = []
        for m in chosen:
            file, start = folder / m.file, time.perf_counter()
            before = file.read_text(encoding="utf-8")
            file.write_text(mutated(before, m), encoding="utf-8")
            code = run_tests(folder, m.tests).returncode
            file.write_text(before, encoding="utf-8")
            noticed = code == 1  # 2 and above: no test ran
            survived += [] if noticed else [m.name]
            word = "noticed" if noticed else f"NOT NOTICED (pytest ended with {code})"
            print(f"{word:<12}{time.perf_counter() - start:>6.0f} s  {m.name}", flush=True)
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} mutants noticed" + "".join(f"\n  not: {s}" for s in survived)
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
