"""A run on disk: `run.json`, `tape.zo`, `metrics.jsonl` and, for methods with d-sized slots, `state.safetensors`.

The tape alone gives the weights back from the base model; `run.json` says which base model that is, tensor by tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zograd import __version__
from zograd.noise import NOISE_VERSION
from zograd.run import Record, Run
from zograd.stores.base import tensor_bytes
from zograd.stores.offload import Offloaded, Pages
from zograd.tape import TAPE_VERSION, Tape, TapeWriter


class RunError(ValueError):
    """A run directory that cannot be used as asked: the message names the file and what to do."""


def identity(model: nn.Module, pages: Offloaded | None = None) -> list[dict[str, Any]]:
    """Name, shape, dtype and SHA-256 of each tensor: what a tape's base model is recognised by. Reads every weight.

    pages: of offloaded weights, which are then read piece by piece.
    """
    offloaded: Offloaded = pages if pages is not None else Pages()

    @cache  # tied weights are hashed once
    def digest(t: Tensor) -> str:
        h = hashlib.sha256()
        if t in offloaded:
            for start, stop in offloaded.walk(t):
                h.update(tensor_bytes(t.view(-1)[start:stop]))
        else:
            h.update(tensor_bytes(t))
        return h.hexdigest()

    return [
        {
            "name": name,
            "shape": list(t.shape),
            "dtype": str(t.dtype).removeprefix("torch."),
            "sha256": digest(t),
        }
        for key, value in model.state_dict(keep_vars=True).items()
        for name, t in plain_tensors(key, value)
    ]


def plain_tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A tensor by its name, or the tensors that one of another kind (quantized, for instance) is made of."""
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    for part in value.__tensor_flatten__()[0]:
        yield from plain_tensors(f"{name}.{part}", getattr(value, part))


def check_identity(expected: list[dict[str, Any]], found: list[dict[str, Any]], what: str) -> None:
    """Raise RunError naming the first tensor of the model `what` (identity `found`) that is not the recorded one."""
    by_name = {entry["name"]: entry for entry in found}
    for entry in expected:
        name = entry["name"]
        if name not in by_name:
            raise RunError(
                f"{what} has no tensor {name!r}, which the run was started from; use the recorded base model"
            )
        for key in ("shape", "dtype", "sha256"):
            if by_name[name][key] != entry[key]:
                raise RunError(
                    f"{what} is not the base model of this run: tensor {name!r} has {key} {by_name[name][key]}, the "
                    f"run was started from {entry[key]}. Use the recorded base model and dtype."
                )


def check_free(root: Path) -> None:
    """Raise RunError when the folder holds a run already."""
    if (root / "run.json").exists() or (root / "tape.zo").exists():
        raise RunError(f"{root} already holds a run; go on with --resume, or choose another --out")


def restarted(root: Path) -> RunDirectory | None:
    """The run in the folder, when it is what torchrun is at, and was starting this process again to go on with.

    A folder in which the run had not come to a tape is emptied: it starts anew.
    """
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None or not (root / "run.json").exists():
        return None
    directory = RunDirectory.open(root)
    anonymous = launch == "none"  # torchrun's default name of a job, where it keeps no rendezvous
    if directory.meta.get("launch") != launch or (anonymous and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"):
        return None
    if not directory.tape_path.exists() or not directory.tape_path.stat().st_size:
        directory.tape_path.unlink(missing_ok=True)
        (root / "run.json").unlink()
        return None
    return directory


class RunDirectory:
    """Files of one run. Make one with `create` or `open`."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta
        self.writer: TapeWriter | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any], model: list[dict[str, Any]], **more: Any
    ) -> RunDirectory:
        """A fresh run; refuses a folder that already holds one."""
        root = Path(path)
        check_free(root)
        root.mkdir(parents=True, exist_ok=True)
        meta = {
            "zograd": __version__,
            "tape_version": TAPE_VERSION,
            "noise_version": NOISE_VERSION,
            "python": platform.python_version(),
            "packages": _versions("torch", "transformers", "peft", "numpy"),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": dict(settings),
            "model": model,
            "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
            **more,
        }
        run = cls(root, meta)
        run.save_meta()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """An existing run; RunError when there is none or run.json does not parse."""
        root = Path(path)
        try:
            meta = json.loads((root / "run.json").read_text())
        except FileNotFoundError:
            raise RunError(f"{root} holds no run (no run.json in it); check the path") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise RunError(f"{root / 'run.json'} does not parse ({e}); restore it from a copy") from e
        return cls(root, meta)

    def save_meta(self) -> None:
        """Write run.json through a temporary file: a killed process leaves the old one or the new one."""
        atomic_write(self.path / "run.json", json.dumps(self.meta, indent=1).encode())

    @property
    def tape_path(self) -> Path:
        return self.path / "tape.zo"

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin the tape."""
        self.writer = TapeWriter(self.tape_path, header)

    def tape(self) -> Tape:
        """The tape as it is on disk."""
        if not self.tape_path.exists():
            raise RunError(f"{self.path} has no tape.zo; the run was never started: remove the folder and start again")
        return Tape(self.tape_path)

    def resume(self, run: Run[Any], tape: Tape, since: int | None = None) -> None:
        """Bring `run`, which stands at the base model, to the end of the tape, and go on with writing it."""
        done = self._load_state(run, tape.steps)
        run.replay((record for record in tape.records if record.step >= done), since=since)
        self._continue(tape)

    def _continue(self, tape: Tape) -> None:
        self._trim_metrics(tape.steps)
        self.writer = TapeWriter(self.tape_path, tape)

    def append(self, record: Record) -> None:
        assert self.writer is not None
        self.writer.append(record)

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a") as f:
            f.write(json.dumps(dict(line)) + "\n")

    def _trim_metrics(self, steps: int) -> None:
        """Drop lines of steps that the tape does not have, and a torn last line."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines, _ = read_metrics(self.path)
            kept = [line for line in lines if line.get("step", 0) <= steps]
            atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    # ---- d-sized state: a shortcut over replaying from the first step ---------------------------------------------

    def save_state(self, run: Run[Any]) -> None:
        """Write weights and slots, when the method has slots; without, a replay costs little more than reading them.

        The tape is forced to the disk in any case.
        """
        if self.writer is not None:
            self.writer.sync()
        if not run.method.slots:
            return
        from safetensors.torch import save_file

        tensors = {k: v.detach().cpu().contiguous() for k, v in run.store.state_dict().items()}
        state = run.state_dict()
        if any(not isinstance(v, int | float) for v in state["state"].values()):
            return
        target = self.path / "state.safetensors"
        temporary = target.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"run": json.dumps(state)})
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, target)

    def _load_state(self, run: Run[Any], steps: int) -> int:
        """Load the state unless it is ahead of the tape (after a power loss): then the tape alone is replayed."""
        target = self.path / "state.safetensors"
        if not target.exists():
            return 0
        from safetensors import safe_open

        with safe_open(target, "pt") as f:
            state = json.loads(f.metadata()["run"])
            if state["step"] > steps:
                return 0
            run.store.load_state_dict({k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118
        run.load_state_dict(state)
        return int(state["step"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class Follower(RunDirectory):
    """The run directory of another process: nothing is written, and what is read may not be there."""

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any], model: list[dict[str, Any]], **more: Any
    ) -> Follower:
        return cls(Path(path), {"settings": dict(settings), "model": model, **more})

    def save_meta(self) -> None:
        pass

    def start(self, header: Mapping[str, Any]) -> None:
        pass

    def append(self, record: Record) -> None:
        pass

    def log(self, line: Mapping[str, Any]) -> None:
        pass

    def save_state(self, run: Run[Any]) -> None:
        pass

    def _continue(self, tape: Tape) -> None:
        pass


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics.jsonl (none when there is no such file), and how many lines do not parse."""
    try:
        texts = (run / "metrics.jsonl").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    lines = []
    for text in texts:
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines, len(texts) - len(lines)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old contents or the new ones, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
