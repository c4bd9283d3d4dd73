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


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": [  # without GPUs this starts its processes by torchrun only where it is told of several GPUs
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ],
}  # fmt: skip


def ended(folder: Path, method: str, lr: str, ranks: int, how: str = "torchrun") -> list[dict[str, Any]]:
    launcher = LAUNCHERS[how] if ranks > 1 else []
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


@pytest.mark.slow
def test_accelerate_launches_the_same_training(tmp_path: Path) -> None:
    """To the bit: the processes are those of torchrun, and no model is wrapped."""
    launched = ended(tmp_path / "a", "fzoo", "1e-3", 2, "accelerate")
    two = ended(tmp_path / "b", "fzoo", "1e-3", 2)
    assert sorted((found["rank"], found["resume"]) for found in launched) == [
        (0, False), (0, True), (1, False), (1, True),
    ]  # fmt: skip
    assert {found["digest"] for found in launched} == {found["digest"] for found in two}
    assert {found["wrapped"] for found in launched} == {"LlamaForCausalLM"}
