"""The stages of a command: each is shown with its time, and those that take long with a progress bar."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any


@contextmanager
def importing() -> Iterator[None]:
    """Inside, the garbage collector waits. For imports of large libraries: what they make stays.

    Otherwise it visits all of it again and again: 0.8 to 1.5 of the 6 CPU seconds that torch and transformers take.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


class _OpenLine:
    """A stream whose last line is not complete: what is written to it next begins a line of its own."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.open = stream, True

    def write(self, text: str) -> int:
        if self.open and text:
            self.open = False
            self._stream.write("\n")
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Stages:
    """Shows on stderr what is done, before the first step or before an answer, and how long it took.

    quiet: show nothing. since: `time.perf_counter()` when the start began; None: now.
    """

    def __init__(self, quiet: bool = False, since: float | None = None) -> None:
        self.quiet = quiet
        self.since = time.perf_counter() if since is None else since

    @property
    def seconds(self) -> float:
        """Time since the start began."""
        return time.perf_counter() - self.since

    @contextmanager
    def stage(self, what: str, since: float | None = None) -> Iterator[None]:
        """Shows "zograd: what ..." at once, and the seconds inside of the block at its end."""
        since = time.perf_counter() if since is None else since
        self._write(f"zograd: {what} ...")
        line: Any = _OpenLine(sys.stderr)
        try:
            with nullcontext() if self.quiet else redirect_stderr(line):
                yield
        except BaseException:
            self._write("\n" if line.open else "")
            raise
        again = "" if line.open else f"zograd: {what} ..."
        self._write(f"{again} {time.perf_counter() - since:.1f} s\n")

    @contextmanager
    def counted(self, what: str, total: int, unit: str = "examples") -> Iterator[Callable[[float], object]]:
        """Shows a bar, and a line each ten seconds where stderr is no terminal. Yields what moves it by a count."""
        from tqdm import tqdm

        left = "{desc}: {percentage:3.0f}%|{bar}| of {total} {unit} [{elapsed}<{remaining}]"
        with tqdm(
            total=total, desc=f"zograd: {what}", unit=unit, file=sys.stderr, disable=self.quiet, dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0, bar_format=left,
        ) as bar:  # fmt: skip
            yield bar.update

    def _write(self, text: str) -> None:
        if not self.quiet:
            print(text, end="", file=sys.stderr, flush=True)
