"""A forward-only Trainer under torchrun: losses travel, weights do not, and all processes end with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def ended(folder: Path, method: str, lr: str, ranks: int) -> list[dict[str, Any]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    script = str(Path(__file__).with_name("hf_processes.py"))
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launcher, script, str(folder), method, lr],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("found-*.json"))]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "lr"), [("zo_sgd", "auto"), ("fzoo", "1e-3"), ("residual", "1e-3")])
def test_two_processes_end_with_the_same_bits(tmp_path: Path, method: str, lr: str) -> None:
    """Also after a resumption; and each step has the mean loss of the rows that one process would have taken."""
    two, one = ended(tmp_path / "two", method, lr, 2), ended(tmp_path / "one", method, lr, 1)
    assert sorted((found["rank"], found["resume"]) for found in two) == [(0, False), (0, True), (1, False), (1, True)]
    assert len({found["digest"] for found in two}) == 1
    assert {found["wrapped"] for found in two} == {"LlamaForCausalLM"}  # no DDP
    assert two[0]["losses"][0] == pytest.approx(one[0]["losses"][0], rel=1e-5)
    assert two[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-2)
