"""`zograd train` under torchrun: killed ranks restart, and the run ends with the bits of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zograd.core.tape import Tape
from zograd.distributed import PeersError
from zograd.distributed.joining import meeting
from zograd.llm.build import resolve
from zograd.llm.restore import replay
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError

SETTINGS: dict[str, Any] = {
    "task": "mr", "steps": 10, "batch_size": 4, "train_examples": 40, "eval_examples": 40, "lr": 1e-3, "mu": 1e-3,
    "dtype": "float32", "eval_every": 4, "threads": 1, "method": "mezo_momentum",
}  # fmt: skip


def torchrun(*arguments: str, restarts: int = 0, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*launcher, f"--max-restarts={restarts}", *arguments],
        capture_output=True, text=True, timeout=240, env=environment,
    )  # fmt: skip


def options(model: Path, out: Path, **more: Any) -> list[str]:
    given = {**SETTINGS, "model": str(model), "out": str(out), **more}
    return [
        "train",
        "--json",
        *(part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))),
    ]


@pytest.mark.slow  # three to five starts of two processes
@pytest.mark.parametrize("deaths", ["0@6", "1@4,0@8", "1@10"])
def test_killed_ranks_come_back_to_the_same_bits(tiny_model: Path, tmp_path: Path, deaths: str) -> None:
    """Rank@step is killed with SIGKILL; torchrun starts both again, they replay the tape and go on by themselves."""
    whole = train(TrainSettings(**SETTINGS, model=str(tiny_model), shards=2), tmp_path / "whole", quiet=True)
    script = str(Path(__file__).with_name("killed.py"))
    done = torchrun(
        script, deaths, str(tmp_path), "--", *options(tiny_model, tmp_path / "parts"), restarts=len(deaths.split(","))
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1  # of rank 0 alone
    summary = json.loads(lines[0])
    assert len(list(tmp_path.glob("life *"))) == len(deaths.split(","))
    last = int(deaths.rpartition("@")[2])
    assert summary["steps"] == 10
    assert summary["steps_this_time"] in (10 - last, 10 - last + 1)  # the other rank may have been writing
    assert summary["sha256"] == whole["sha256"]
    assert summary["metric_after"] == whole["metric_after"]
    assert summary["eval_loss_after"] == whole["eval_loss_after"]
    assert (summary["ranks"], summary["shards"], whole["ranks"], whole["shards"]) == (2, 2, 1, 2)
    assert summary["bytes_per_step"] == (24 if summary["steps_this_time"] else 0)
    assert (tmp_path / "parts" / "tape.zo").read_bytes() == (tmp_path / "whole" / "tape.zo").read_bytes()
    metrics = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in metrics]
    killed_in = {int(death.partition("@")[2]) for death in deaths.split(",")}
    assert steps == sorted(set(steps))
    assert set(range(11)) - set(steps) <= killed_in  # rank 0 logs a step when its evaluation is done
    replay(tmp_path / "parts", None, tmp_path / "replayed")
    replay(tmp_path / "whole", None, tmp_path / "expected")
    (a, b) = (load_file(tmp_path / name / "model.safetensors") for name in ("replayed", "expected"))
    assert all(a[key].equal(b[key]) for key in b)


@pytest.mark.slow
def test_a_folder_with_another_run_is_refused_even_after_a_restart(tiny_model: Path, tmp_path: Path) -> None:
    """torchrun starts again after the refusal; the run that was there stays as it is."""
    train(TrainSettings(**SETTINGS, model=str(tiny_model)), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "tape.zo").read_bytes()
    done = torchrun("-m", "zograd", *options(tiny_model, tmp_path / "run", steps=20), restarts=1)
    assert done.returncode != 0
    assert "already holds a run" in done.stderr
    assert (tmp_path / "run" / "tape.zo").read_bytes() == before


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_one_or_three(tiny_model: Path, tmp_path: Path) -> None:
    """The number of parts belongs to the run: whoever continues it evaluates the same parts."""
    whole = train(TrainSettings(**SETTINGS, model=str(tiny_model), shards=2), tmp_path / "whole", quiet=True)
    for ranks in (1, 3):
        out = tmp_path / f"ranks {ranks}"
        assert torchrun("-m", "zograd", *options(tiny_model, out, steps=4)).returncode == 0
        done = torchrun("-m", "zograd", *options(tiny_model, out), "--resume", ranks=ranks)
        summary = json.loads(done.stdout.strip().splitlines()[-1])
        assert (summary["ranks"], summary["shards"], summary["steps_this_time"]) == (ranks, 2, 6)
        assert summary["sha256"] == whole["sha256"]


def test_ranks_that_come_back_do_not_meet_the_dead() -> None:
    """A store in which earlier lives, whole and broken ones, have left their names: each life has its own."""
    store = torch.distributed.HashStore()
    store.set("zograd/hello/1", "a process that died before it was answered")
    names = []
    for world in (3, 3, 2):
        with ThreadPoolExecutor(world) as threads:
            lives = [threads.submit(meeting, store, rank, world, 20.0) for rank in reversed(range(world))]
            found = {life.result() for life in lives}
        assert len(found) == 1
        names += found
    assert len(set(names)) == 3
    with pytest.raises(PeersError, match=r"ranks \[1\] did not join within 0.1 s"):
        meeting(torch.distributed.HashStore(), 0, 2, 0.1)


def test_a_resumed_run_keeps_its_parts(tiny_model: Path, tmp_path: Path) -> None:
    s = TrainSettings(**SETTINGS, model=str(tiny_model), shards=2)
    whole = train(s, tmp_path / "whole", quiet=True)
    train(s.model_copy(update={"steps": 5}), tmp_path / "parts", quiet=True)
    resumed = train(s.model_copy(update={"shards": None}), tmp_path / "parts", resume=True, quiet=True)
    assert (resumed["shards"], resumed["sha256"]) == (2, whole["sha256"])
    assert Tape(tmp_path / "parts" / "tape.zo").header["settings"]["shards"] == 2


@pytest.mark.parametrize(
    ("parallel", "world", "shards"),
    [("data", 1, 1), ("data", 4, 4), ("directions", 4, 1), ("both", 4, 2), ("both", 2, 1), ("both", 3, 3)],
)
def test_parts_follow_from_the_ranks_at_the_start(parallel: Any, world: int, shards: int) -> None:
    """zo_sgd asks for two points: with both dealt, as few parts as keep all ranks busy."""
    assert resolve(TrainSettings(parallel=parallel, dtype="float32"), world).shards == shards


def test_more_parts_than_examples_are_refused() -> None:
    with pytest.raises(SettingsError, match="a batch of 4 cannot be cut into 8 parts"):
        resolve(TrainSettings(batch_size=4, dtype="float32"), 8)


def test_a_job_of_torchrun_goes_on_with_its_own_run_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarted under the same name, the run continues. Under another name or with other settings, it is refused."""
    s = TrainSettings(**{**SETTINGS, "steps": 6}, model=str(tiny_model))
    whole = train(s, tmp_path / "whole", quiet=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    train(s, tmp_path / "run", quiet=True)
    again = train(s, tmp_path / "run", quiet=True)
    assert (again["steps_this_time"], again["sha256"]) == (0, whole["sha256"])
    with pytest.raises(RunError, match="already holds a run"):
        train(s.model_copy(update={"seed": 1}), tmp_path / "run", quiet=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 2")
    with pytest.raises(RunError, match="already holds a run"):
        train(s, tmp_path / "run", quiet=True)


def test_a_job_that_had_not_come_to_a_tape_starts_anew(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = TrainSettings(**{**SETTINGS, "steps": 3}, model=str(tiny_model))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 1")
    whole = train(s, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "tape.zo").unlink()
    assert train(s, tmp_path / "run", quiet=True)["sha256"] == whole["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["residual", "node_perturbation", "forward_residual"])
def test_gradients_of_blocks_are_summed_over_the_processes(tiny_model: Path, tmp_path: Path, method: str) -> None:
    """Two ranks with a part of the batch each follow one process, to rounding (noise is drawn by rank); they resume."""
    given: dict[str, Any] = {**SETTINGS, "method": method, "mu": None, "lr": 3e-3, "save_every": 2, "steps": 6}
    whole = train(TrainSettings(**given, model=str(tiny_model)), tmp_path / "whole", quiet=True)
    given.pop("mu")
    short = options(tiny_model, tmp_path / "run", method=method, lr=3e-3, save_every=2, steps=6)
    at = short.index("--mu")
    del short[at : at + 2]
    done = torchrun("-m", "zograd", *short)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if method == "residual":
        losses = [[record.loss for record in Tape(tmp_path / name / "tape.zo").records] for name in ("whole", "run")]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert found["evaluations"] == whole["evaluations"]

    script = str(Path(__file__).with_name("killed.py"))
    parts = [str(tmp_path / "parts") if part == str(tmp_path / "run") else part for part in short]
    died = torchrun(script, "1@5", str(tmp_path), "--", *parts, restarts=1)
    assert died.returncode == 0, died.stderr[-2000:]
    assert (tmp_path / "life 0").exists()
    assert json.loads(died.stdout.splitlines()[-1])["sha256"] == found["sha256"]
