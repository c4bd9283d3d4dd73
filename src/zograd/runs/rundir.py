"""A run on disk: `run.json`, `tape.zo`, `metrics.jsonl` and, for methods with d-sized slots, `state.safetensors`.

Base model and tape give the weights back; `run.json` names the base model, tensor by tensor. The settings are also in
the header of the tape, so files of different runs cannot be mixed up. A process that writes in the folder holds the
lock of its tape.
"""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zograd import __version__
from zograd.core.run import Record, Run
from zograd.core.tape import TAPE_VERSION, Tape, TapeWriter, never_began
from zograd.files import atomic_write, write_tensors
from zograd.jsons import dumps
from zograd.locks import FileLock
from zograd.noise import NOISE_VERSION
from zograd.runs.errors import RunError
from zograd.runs.folder import began, check_free, locked, read_metrics
from zograd.runs.identity import base_digest
from zograd.runs.state import digest, read_state

CHANGEABLE = ("model", "steps", "seconds", "parallel", "timeout", "eval_every", "save_every", "max_failures")
"""Settings that --resume may change, since no bit of a run depends on them: the base model may lie elsewhere now. In
some runs bits depend on `steps`, `seconds` or `eval_every` nevertheless: see `fixed` of `RunDirectory.tape`."""


def restarted(root: Path) -> RunDirectory | None:
    """The run in the folder, if torchrun has restarted this process to continue it; otherwise None.

    A folder in which the run had not begun its tape is emptied, and the run starts again: None.
    """
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None or not (root / "run.json").exists():
        return None
    directory = RunDirectory.open(root)
    anonymous = launch == "none"  # torchrun's default name of a job, where it keeps no rendezvous
    if directory.meta.get("launch") != launch or (anonymous and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"):
        return None
    directory.lock = locked(root)
    if not directory.tape_path.exists() or never_began(directory.tape_path):
        for name in ("tape.zo", "run.json", "metrics.jsonl", "state.safetensors"):
            (root / name).unlink(missing_ok=True)
        directory.close()
        return None
    return directory


def _read_meta(file: Path) -> dict[str, Any]:
    """The contents of a run.json. Raises RunError if it does not parse or has another structure."""
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise RunError(f"{file} does not parse ({str(e)[:80]}); restore it from a copy") from e
    return check_meta(meta, file)


def check_meta(meta: Any, file: Path) -> dict[str, Any]:
    """The description of a run. Raises RunError, which names the file that holds it, for another structure."""
    if not (isinstance(meta, dict) and isinstance(meta.get("settings"), dict) and isinstance(meta.get("model"), list)):
        raise RunError(f"{file} has no settings and model of a run; restore it from a copy")
    for key, kind in {"metrics_before": dict, "result": dict, "data": dict, "compile": dict, "trained": list}.items():
        if not isinstance(meta.get(key, kind()), kind):
            raise RunError(
                f"{file}: {key!r} is {type(meta[key]).__name__}, not {kind.__name__}; restore it from a copy"
            )
    for entry in meta["model"]:
        if not (isinstance(entry, dict) and {"name", "shape", "dtype", "sha256"} <= entry.keys()):
            raise RunError(f"{file}: 'model' names no tensors of a base model; restore it from a copy")
        if not isinstance(entry["name"], str):
            raise RunError(f"{file}: 'model' names a tensor {str(entry['name'])[:40]}; restore it from a copy")
    found: dict[str, Any] = meta
    return found


class RunDirectory:
    """The files of one run: made by `create`, or opened by `open`.

    path: the folder. meta: the contents of run.json. lock: held by the process that writes the run.
    """

    def __init__(self, path: Path, meta: dict[str, Any], lock: FileLock | None = None) -> None:
        self.path, self.meta, self.lock = path, meta, lock
        self.writer: TapeWriter | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any], model: list[dict[str, Any]], **more: Any
    ) -> RunDirectory:
        """A new run. Raises RunError if the folder holds one, LockedError if another process writes one there."""
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
        run = cls(root, meta, locked(root))
        try:
            check_free(root)  # again under the lock: another process may have begun since
            for name in ("tape.zo", "metrics.jsonl"):  # of a run without a step
                (root / name).unlink(missing_ok=True)
            run.save_meta()
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, write: bool = False) -> RunDirectory:
        """An existing run. Raises RunError if there is none, or if its run.json is damaged.

        write: open it to continue it, under the lock of the folder. Raises LockedError if another process writes it.
        """
        root = Path(path)
        if root.is_file():
            raise RunError(f"{root} is a file, and here belongs the folder of a run; check the path")
        if not (root / "run.json").exists():
            raise RunError(f"{root} holds no run (it has no run.json); check the path")
        run = cls(root, {}, locked(root) if write else None)
        try:
            run.meta = _read_meta(root / "run.json")
        except BaseException:
            run.close()
            raise
        return run

    def save_meta(self) -> None:
        """Write run.json through a temporary file: a killed process leaves the old one or the new one."""
        atomic_write(self.path / "run.json", dumps(self.meta, indent=1).encode())

    @property
    def scratch(self) -> Path:
        """The folder in which working copies of offloaded weights may lie."""
        return self.path

    def attachment(self, name: str) -> bytes | None:
        """The contents of another file of the run; None without it."""
        file = self.path / name
        return file.read_bytes() if file.exists() else None

    @property
    def tape_path(self) -> Path:
        """The tape, which may not exist yet."""
        return self.path / "tape.zo"

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin the tape."""
        self.writer = TapeWriter(self.tape_path, header, lock=self.lock)

    def tape(self, *, salvage: bool = False, fixed: Collection[str] = ()) -> Tape:
        """The tape as it is on the disk. Raises RunError without a tape, and if run.json is that of another run.

        salvage: of a damaged tape, the steps before the damage, with a warning; otherwise TapeError.
        fixed: names in `CHANGEABLE` that this run may not change.
        """
        if not self.tape_path.exists() or never_began(self.tape_path):
            if began(self.path):
                raise RunError(
                    f"{self.tape_path} has lost steps that the other files of the run record; restore it from a copy, "
                    f"or start again in another folder"
                )
            raise RunError(
                f"{self.path} has no tape.zo: the run ended before its first step; start it again without --resume"
            )
        tape = Tape(self.tape_path, salvage=salvage)
        self.check_header(tape.header, fixed)
        return tape

    def check_header(self, header: Mapping[str, Any], fixed: Collection[str] = ()) -> None:
        """Raise RunError that names the first setting, model or data in which tape and run.json differ."""
        there, here = header.get("settings"), self.meta["settings"]
        if not isinstance(there, dict):
            raise RunError(
                f"{self.tape_path} has no settings in its header: it is not a tape of this run; restore it from a copy"
            )
        free = {*CHANGEABLE} - set(fixed)  # the model is compared by its weights
        both = [(key, here.get(key), there.get(key)) for key in (*there, *here) if key not in free]
        both += [(key, here.get(key), header[key]) for key in ("seed", "method") if key in header]
        mine = {
            "trained": self.meta.get("trained"),
            "base": self.meta.get("base") or base_digest(self.meta["model"]),
            "data": self.meta.get("data", {}).get("sha256"),
        }
        both += [(key, value, header[key]) for key, value in mine.items() if key in header]
        for key, a, b in both:
            if a != b:
                raise RunError(
                    f"{self.path / 'run.json'} says {key} = {_short(a)}, and its tape was recorded with {key} = "
                    f"{_short(b)}: one of the two was edited, or belongs to another run; restore it from a copy"
                )

    def resume(self, run: Run[Any], tape: Tape, since: int | None = None) -> None:
        """Bring `run` from the base model to the end of the tape, and continue to write that tape.

        Where the tape does not give the moves back (`Estimator.replays`), the run continues from its state, and the
        steps of the tape behind it are cut off, to be taken again. since: see `Run.replay`.
        """
        done = self.load_state(run, tape)
        if not run.method.estimator.replays and done < tape.steps:
            tape = tape.cut(done)
        run.replay((record for record in tape.records if record.step >= done), since=since)
        self._continue(tape)

    def _continue(self, tape: Tape) -> None:
        self._trim_metrics(tape.steps)
        self.writer = TapeWriter(self.tape_path, tape, lock=self.lock)

    def append(self, record: Record) -> None:
        """Append a step to the tape."""
        assert self.writer is not None
        self.writer.append(record)

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(dumps(line) + "\n")

    def _trim_metrics(self, steps: int) -> None:
        """Drop lines of steps that are not on the tape, and a torn last line."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines, _ = read_metrics(self.path)
            kept = [line for line in lines if isinstance(k := line.get("step", 0), int) and k <= steps]
            atomic_write(path, "".join(dumps(line) + "\n" for line in kept).encode())

    # ---- d-sized state: a shortcut over replaying from the first step ---------------------------------------------

    @property
    def state_path(self) -> Path:
        """The file of weights and slots, for methods with slots."""
        return self.path / "state.safetensors"

    def save_state(self, run: Run[Any]) -> None:
        """Write weights and slots, if the method has slots or its tape does not replay. A replay costs little else.

        The tape is forced to the disk in any case. The state stores the checksum of the tape up to its step and a
        digest of its own contents; `resume` loads it only if both are right.
        """
        if self.writer is not None:
            self.writer.sync()
        if self.writer is None or (run.method.estimator.replays and not run.method.slots):
            return
        tensors = {k: v.detach().cpu().contiguous() for k, v in run.store.state_dict().items()}
        state = run.state_dict()
        if any(not isinstance(v, int | float) for v in state["state"].values()):
            return
        about = {"run": json.dumps(state), "tape": str(self.writer.crc)}
        write_tensors(self.state_path, tensors, about | {"sha256": digest(about, tensors)})

    def load_state(self, run: Run[Any], tape: Tape) -> int:
        """Load the state; its step. 0 with a warning if it does not fit the tape: then the tape alone is replayed."""
        if not self.state_path.exists():
            return 0
        try:
            state, tensors = read_state(self.state_path, tape)
            if state.keys() != run.state_dict().keys():
                raise ValueError("another release wrote it")
            run.store.load_state_dict(tensors)
        except (OSError, ValueError) as e:
            warnings.warn(
                f"{self.state_path} is ignored ({' '.join(str(e).split())[:200]}): "
                + (
                    "the run is replayed from its tape, which has every step"
                    if run.method.estimator.replays
                    else "the run starts again from the base model"
                ),
                stacklevel=4,
            )
            return 0
        run.load_state_dict(state)
        return int(state["step"])

    def close(self) -> None:
        """Close the tape and release the lock of the folder."""
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            if self.lock is not None:
                self.lock.close()


def _short(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Follower(RunDirectory):
    """The run directory of rank 0, seen from another process: writes nothing, and reads no files."""

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


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
