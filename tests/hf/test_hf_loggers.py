"""Trackers of `report_to`, offline: what a forward-only Trainer logs arrives there. Skipped where none is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hf.helpers import Forward, arguments, llama, losses, rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the trackers among themselves


def of_tensorboard(folder: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(file))
    read.Reload()
    return [event.value for event in read.Scalars(f"train/{name}")]


def of_wandb(folder: Path, name: str) -> list[float]:
    """The last value: files of a run that never was online are not for people."""
    import wandb

    return [float(wandb.run.summary[f"train/{name}"])]


def of_mlflow(folder: Path, name: str) -> list[float]:
    import mlflow

    client = mlflow.MlflowClient()
    runs = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    (run,) = runs
    return [point.value for point in client.get_metric_history(run.info.run_id, name)]


def of_trackio(folder: Path, name: str) -> list[float]:
    import trackio

    (run,) = trackio.Api().runs("forward-only")
    lines = trackio.SQLiteStorage.get_logs("forward-only", run.name)
    return [float(line[f"train/{name}"]) for line in lines if f"train/{name}" in line]


TRACKERS: dict[str, Callable[[Path, str], list[float]]] = {
    "tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio,
}  # fmt: skip


@pytest.mark.parametrize("name", TRACKERS)
def test_losses_and_evaluations_reach_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable, value in {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "WANDB_PROJECT": "forward-only",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "board"), "HF_HUB_OFFLINE": "1", "TRACKIO_PROJECT": "forward-only",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    try:
        importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    more: dict[str, Any] = {"project": "forward-only"} if name == "trackio" else {}
    args = arguments(tmp_path / "run", report_to=name, logging_steps=2, **more)
    trainer = Forward(model=llama(), args=args, train_dataset=rows(), method="fzoo", lr=1e-3)
    trainer.train()
    logged = [line["evaluations"] for line in trainer.state.log_history if "evaluations" in line]
    for key, expected in (("loss", losses(trainer)), ("evaluations", logged)):
        found = TRACKERS[name](tmp_path, key)
        assert found == pytest.approx(expected[-len(found) :])
        assert found
