"""A run on disk: `run.json`, `tape.zo`, `metrics.jsonl` and, for methods with d-sized slots, `state.safetensors`.

The tape alone gives the weights back from the base model; `run.json` says which base model that is, tensor by tensor.
The settings stand in the header of the tape as well, so that the two files cannot be of different runs. Who writes in
the folder holds the lock of its tape.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zograd import __version__
from zograd.core.run import Record, Run
from zograd.core.tape import TAPE_VERSION, Tape, TapeWriter, never_began, writer_lock
from zograd.files import atomic_write, replace
from zograd.locks import FileLock
from zograd.noise import NOISE_VERSION
from zograd.offload.mapped import Offloaded, Pages
from zograd.stores.leaf import tensor_bytes

CHANGEABLE = ("steps", "parallel", "timeout", "eval_every", "save_every", "max_failures")
"""Settings on which no bit of a run depends, so that --resume may change them. Of some runs the number of steps and
`eval_every` fix bits nevertheless: see `fixed` of `RunDirectory.tape`."""


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


def base_digest(model: list[dict[str, Any]]) -> str:
    """One digest of an `identity`, for the header of the tape."""
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()


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


def began(root: Path) -> bool:
    """Whether the folder holds a run with a tape, or one that has lost it: what else is there tells of steps."""
    tape = root / "tape.zo"
    if tape.exists() and not never_began(tape):
        return True
    if not tape.exists() and not (root / "run.json").exists():
        return False
    logged = any(isinstance(k := line.get("step"), int) and k > 0 for line in read_metrics(root)[0])
    return logged or (root / "state.safetensors").exists()


def check_free(root: Path) -> None:
    """Raise RunError when the folder holds a run already. One that ended before its tape began does not count."""
    if began(root):
        raise RunError(f"{root} already holds a run; go on with --resume, or choose another --out")


def locked(root: Path) -> FileLock:
    """The lock of a run folder. Removes what killed processes have left there half written."""
    lock = writer_lock(root / "tape.zo", f"the run in {root}")
    for path in root.iterdir():
        if LEFTOVER.fullmatch(path.name) and not _alive(path.name):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return lock


SAVING = ".saving"
"""The folder inside of a run's where a state is written before it gets its name."""

LEFTOVER = re.compile(
    r"(run\.json|metrics\.jsonl|state)\.tmp|\.saving"
    r"|\.tmp[A-Za-z0-9]{6}"  # of safetensors, which wrote beside the state in earlier releases
    r"|weights\.(\d{1,9})\.safetensors(\.\d{1,9}\.tmp)?"  # working copies of --offload disk
)


def _alive(name: str) -> bool:
    """Whether a leftover is the working copy of another process that runs: a replay of the run holds no lock."""
    found = LEFTOVER.fullmatch(name)
    pid = int(found[2]) if found and found[2] else 0
    if pid in (0, os.getpid()) or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of somebody else
        pass
    return True


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
    directory.lock = locked(root)
    if not directory.tape_path.exists() or never_began(directory.tape_path):
        for name in ("tape.zo", "run.json", "metrics.jsonl", "state.safetensors"):
            (root / name).unlink(missing_ok=True)
        directory.close()
        return None
    return directory


def _read_meta(file: Path) -> dict[str, Any]:
    """What a run.json holds; RunError for one that does not parse, or has another shape."""
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise RunError(f"{file} does not parse ({str(e)[:80]}); restore it from a copy") from e
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
    """Files of one run. Make one with `create` or `open`."""

    def __init__(self, path: Path, meta: dict[str, Any], lock: FileLock | None = None) -> None:
        self.path, self.meta, self.lock = path, meta, lock
        self.writer: TapeWriter | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any], model: list[dict[str, Any]], **more: Any
    ) -> RunDirectory:
        """A fresh run; refuses a folder that already holds one. Raises LockedError where another is being written."""
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
            check_free(root)  # nobody can have begun since
            for name in ("tape.zo", "metrics.jsonl"):  # of a run that came to no step
                (root / name).unlink(missing_ok=True)
            run.save_meta()
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, write: bool = False) -> RunDirectory:
        """An existing run; RunError when there is none or run.json is none.

        write: to go on with it, under the lock of the folder. Raises LockedError when another process does.
        """
        root = Path(path)
        if not (root / "run.json").exists():
            raise RunError(f"{root} holds no run (no run.json in it); check the path")
        run = cls(root, {}, locked(root) if write else None)
        try:
            run.meta = _read_meta(root / "run.json")
        except BaseException:
            run.close()
            raise
        return run

    def save_meta(self) -> None:
        """Write run.json through a temporary file: a killed process leaves the old one or the new one."""
        atomic_write(self.path / "run.json", json.dumps(self.meta, indent=1).encode())

    @property
    def tape_path(self) -> Path:
        return self.path / "tape.zo"

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin the tape."""
        self.writer = TapeWriter(self.tape_path, header, lock=self.lock)

    def tape(self, *, salvage: bool = False, fixed: Collection[str] = ()) -> Tape:
        """The tape as it is on disk. Raises RunError where run.json is that of another run.

        fixed: those of `CHANGEABLE` that this run may not change.
        """
        if not self.tape_path.exists() or never_began(self.tape_path):
            if began(self.path):
                raise RunError(
                    f"{self.tape_path} has lost the steps of which the files beside it tell; restore it from a copy, "
                    f"or start again in another folder"
                )
            raise RunError(f"{self.path} has no tape.zo: the run came to no step; start it again without --resume")
        tape = Tape(self.tape_path, salvage=salvage)
        self.check_header(tape.header, fixed)
        return tape

    def check_header(self, header: Mapping[str, Any], fixed: Collection[str] = ()) -> None:
        """Raise RunError naming the first of what fixes the bits that the tape knows otherwise than run.json."""
        there, here = header.get("settings"), self.meta["settings"]
        if not isinstance(there, dict):
            raise RunError(f"{self.tape_path} names no settings: it is no tape of this run; restore it from a copy")
        free = {"model", *CHANGEABLE} - set(fixed)  # the model is compared by its weights
        both = [(key, here.get(key), there.get(key)) for key in (*there, *here) if key not in free]
        both += [(key, here.get(key), header[key]) for key in ("seed", "method") if key in header]
        mine = {
            "trained": self.meta.get("trained"),
            "base": base_digest(self.meta["model"]),
            "data": self.meta.get("data", {}).get("sha256"),
        }
        both += [(key, value, header[key]) for key, value in mine.items() if key in header]
        for key, a, b in both:
            if a != b:
                raise RunError(
                    f"{self.path / 'run.json'} says {key} = {_short(a)}, and its tape was recorded with {key} = "
                    f"{_short(b)}: one of the two was edited, or is of another run; restore it from a copy"
                )

    def resume(self, run: Run[Any], tape: Tape, since: int | None = None) -> None:
        """Bring `run`, which stands at the base model, to the end of the tape, and go on with writing it."""
        done = self._load_state(run, tape)
        run.replay((record for record in tape.records if record.step >= done), since=since)
        self._continue(tape)

    def _continue(self, tape: Tape) -> None:
        self._trim_metrics(tape.steps)
        self.writer = TapeWriter(self.tape_path, tape, lock=self.lock)

    def append(self, record: Record) -> None:
        assert self.writer is not None
        self.writer.append(record)

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(dict(line)) + "\n")

    def _trim_metrics(self, steps: int) -> None:
        """Drop lines of steps that the tape does not have, and a torn last line."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines, _ = read_metrics(self.path)
            kept = [line for line in lines if isinstance(k := line.get("step", 0), int) and k <= steps]
            atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    # ---- d-sized state: a shortcut over replaying from the first step ---------------------------------------------

    @property
    def state_path(self) -> Path:
        return self.path / "state.safetensors"

    def save_state(self, run: Run[Any]) -> None:
        """Write weights and slots, when the method has slots; without, a replay costs little more than reading them.

        The tape is forced to the disk in any case. With the state goes the checksum of the tape up to its step, and a
        digest of all that is stored: `resume` loads only what fits both.
        """
        if self.writer is not None:
            self.writer.sync()
        if not run.method.slots or self.writer is None:
            return
        tensors = {k: v.detach().cpu().contiguous() for k, v in run.store.state_dict().items()}
        state = run.state_dict()
        if any(not isinstance(v, int | float) for v in state["state"].values()):
            return
        about = {"run": json.dumps(state), "tape": str(self.writer.crc)}
        _write_state(self.state_path, tensors, about | {"sha256": _digest(about, tensors)})

    def _load_state(self, run: Run[Any], tape: Tape) -> int:
        """The step of the state that was loaded; 0 where it does not fit the tape, which has all of it anyway."""
        if not self.state_path.exists():
            return 0
        try:
            state, tensors = _read_state(self.state_path, tape)
            if state.keys() != run.state_dict().keys():
                raise ValueError("another release wrote it")
            run.store.load_state_dict(tensors)
        except (OSError, ValueError) as e:
            warnings.warn(
                f"{self.state_path} is left aside ({' '.join(str(e).split())[:200]}): the run is replayed from its "
                f"tape, which has every step",
                stacklevel=4,
            )
            return 0
        run.load_state_dict(state)
        return int(state["step"])

    def close(self) -> None:
        """Close the tape, and let others write in the folder."""
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            if self.lock is not None:
                self.lock.close()


def _digest(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over texts and tensors, with their names, dtypes and shapes."""
    h = hashlib.sha256(json.dumps([about["run"], about["tape"]]).encode())
    for name in sorted(tensors):
        t = tensors[name]
        h.update(json.dumps([name, str(t.dtype), list(t.shape)]).encode())
        h.update(tensor_bytes(t))
    return h.hexdigest()


def _write_state(target: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """A safetensors file that appears under its name when it is on the disk as a whole. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = target.parent / SAVING
    try:
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / target.name, metadata=about)
        replace(folder / target.name, target)
    except SafetensorError as e:  # safetensors hides the error of the system in its text
        found = re.search(r"os error (\d+)", str(e))
        raise OSError(int(found[1]) if found else 5, f"the state cannot be written ({e})", str(target)) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_state(source: Path, tape: Tape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The scalars and tensors of a state. Raises ValueError unless it is whole and of a step of this tape."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, "pt") as f:
            about = f.metadata() or {}
            state = json.loads(about.get("run", "null"))
            if not isinstance(state, dict) or "tape" not in about or "sha256" not in about:
                raise ValueError("it does not say of which tape it is")
            step = state.get("step")
            if not isinstance(step, int) or not 0 <= step <= tape.steps:
                raise ValueError(f"it is of step {str(step)[:20]}, and the tape ends at step {tape.steps}")
            if about["tape"] != str(tape.checksum(step)):
                raise ValueError(f"at step {step} it belongs to another tape")
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, RecursionError) as e:
        raise ValueError(f"it does not parse: {e}") from e
    if about["sha256"] != _digest(about, tensors):
        raise ValueError("its digest is another: a part of it was changed")
    return state, tensors


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
        texts = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    lines = []
    for text in texts:
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines, len(texts) - len(lines)


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
