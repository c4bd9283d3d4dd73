"""Pools of processes as executors: an evaluation whose process died or hangs is lost, and the others go on."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

WATCHED = 0.5
"""Seconds between two checks of the workers of a pool."""

STUCK = 5.0
"""Seconds after the death of a process, during which nothing moves, after which a pool is taken for broken."""

UNSEEN = 20.0
"""Seconds after the death of a process, after which an evaluation that no other process began is lost with it."""


class EvaluationLost(RuntimeError):
    """An evaluation whose process died. The pool goes on."""


class EvaluationTimeout(EvaluationLost, TimeoutError):
    """An evaluation that took longer than it may."""


def worker_ended(code: int | None) -> EvaluationLost:
    """The error of an evaluation whose process ended with this exit code."""
    how = "ended" if code is None else f"ended with exit code {code}"
    return EvaluationLost(
        f"a worker of the pool {how} and took its evaluation with it; a negative code is a signal; -9 mostly means "
        f"lack of memory"
    )


class Pool(Protocol):
    """The part of a pool that `from_pool` needs."""

    def apply_async(
        self, func: Callable[..., Any], args: Iterable[Any] = ..., kwds: Any = ..., callback: Any = ...,
        error_callback: Any = ...,
    ) -> Any: ...  # fmt: skip


@dataclass(frozen=True)
class Marked:
    """A function that notes in a file which process runs it, before it runs."""

    function: Callable[..., Any]
    mark: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with (
            suppress(OSError),
            open(self.mark, "x", encoding="utf-8") as f,
        ):  # a mark that cannot be made is one that is missing
            f.write(f"{os.getpid()}\n")
        return self.function(*args, **kwargs)


class Marks:
    """Which process evaluates what: a folder with a small file for each evaluation under way."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="zograd-"))
        weakref.finalize(self, shutil.rmtree, self.folder, True)

    def path(self, number: int) -> str:
        return str(self.folder / str(number))

    def process(self, number: int) -> int | None:
        """The process that has begun this evaluation, None before."""
        try:
            written = Path(self.path(number)).read_text(encoding="utf-8")
        except OSError:
            return None
        return int(written) if written.endswith("\n") else None

    def remove(self, number: int) -> None:
        Path(self.path(number)).unlink(missing_ok=True)


class PoolExecutor(Executor):
    """A pool with `apply_async` as an executor. The caller, who made the pool, also closes it.

    `multiprocessing.Pool` replaces a process that died, and the result of its evaluation never arrives. Here that
    evaluation raises EvaluationLost. Where a process died with a lock of the pool, all evaluations raise
    BrokenProcessPool.
    """

    def __init__(self, pool: Pool, timeout: float | None = None) -> None:
        self.pool, self.timeout = pool, timeout
        self.open: dict[int, PoolFuture] = {}
        self.begun = 0
        self.why: str | None = None  # it is broken for ever
        self.planned = getattr(pool, "_maxtasksperchild", None) is not None  # the pool replaces processes itself
        self.workers: set[Any] = set(_processes(pool))
        self.marks = Marks() if self.workers else None
        self.dead: dict[int, tuple[int | None, float]] = {}  # process: (exit code, when that was seen)
        self.explained: set[int] = set()  # dead processes whose evaluation is known
        self.moved = time.monotonic()
        self.look()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.why is not None:
            raise BrokenProcessPool(self.why)
        future = PoolFuture(self, self.begun)
        future.set_running_or_notify_cancel()
        call = fn if self.marks is None else Marked(fn, self.marks.path(self.begun))
        self.begun += 1
        self.open[future.number] = future
        try:
            self.pool.apply_async(call, args, kwargs, callback=future.arrived, error_callback=future.failed)
        except BaseException:
            future.ended()
            raise
        return future

    def look(self) -> None:
        """See which processes died, and give up what they evaluated."""
        now = time.monotonic()
        self.workers.update(_processes(self.pool))
        for worker in list(self.workers):
            if (code := worker.exitcode) is not None:
                self.workers.discard(worker)
                if not (code == 0 and self.planned):
                    self.dead[worker.pid] = (code, now)
        handler = getattr(self.pool, "_result_handler", None)
        if handler is not None and not handler.is_alive():
            self.breaks("the pool returns no more results: it was closed, or a result could not be unpickled")
        if self.marks is not None:
            self.give_up(self.marks, {worker.pid for worker in self.workers}, now)

    def give_up(self, marks: Marks, alive: set[int], now: float) -> None:
        """The evaluations of dead processes are lost, after another look: their results may be under way."""
        unseen: list[PoolFuture] = []
        for pid in alive & self.dead.keys():  # it began between two looks, and was taken for one that had ended
            del self.dead[pid]
        for future in list(self.open.values()):
            process = marks.process(future.number)
            if process is None:
                unseen.append(future)
            elif process not in alive:
                self.explained.add(process)
                code, since = self.dead.setdefault(process, (None, now))
                grace = UNSEEN if code is None and self.planned else WATCHED  # replaced on purpose: the result arrives
                if now - since >= grace:
                    future.lost(code)
        for process in self.dead.keys() - self.explained:  # it died before it could say what it evaluates, if anything
            code, since = self.dead[process]
            waiting = [f for f in unseen if f.since < since and not f.done()]
            if now - since >= UNSEEN and waiting and not _waits(self.pool):
                self.explained.add(process)
                waiting[0].lost(code)
        lock = _stuck(self.pool) if self.dead else None
        if lock is None:
            self.moved = now
        elif now - self.moved >= STUCK:
            lock.release()  # its holder is dead; without this, the pool could not even be closed
            self.breaks(
                "a process of the pool died while it held the lock of the queue, for which all others wait. Make a "
                "new pool"
            )

    def breaks(self, why: str) -> None:
        """Nothing will arrive any more."""
        self.why = self.why or why
        for future in list(self.open.values()):
            future.failed(BrokenProcessPool(self.why))


class PoolFuture(Future[Any]):
    """A future that looks after the processes of its pool while a caller waits for it."""

    def __init__(self, executor: PoolExecutor, number: int) -> None:
        super().__init__()
        self.executor, self.number, self.since = executor, number, time.monotonic()

    def arrived(self, value: Any) -> None:
        if not self.done():
            self.set_result(value)
        self.ended()

    def failed(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)
        self.ended()

    def lost(self, code: int | None) -> None:
        self.failed(worker_ended(code))

    def ended(self) -> None:
        self.executor.open.pop(self.number, None)
        self.executor.moved = time.monotonic()
        if self.executor.marks is not None:
            self.executor.marks.remove(self.number)

    def result(self, timeout: float | None = None) -> Any:
        """The result; EvaluationLost or BrokenProcessPool if it cannot arrive, TimeoutError after the timeout."""
        limit = self.executor.timeout if timeout is None else timeout
        end = math.inf if limit is None else time.monotonic() + limit
        while True:
            try:
                return super().result(min(WATCHED, max(end - time.monotonic(), 0.0)))
            except TimeoutError:
                if self.done():  # the evaluation itself raised TimeoutError
                    return super().result()
                if time.monotonic() >= end:
                    raise EvaluationTimeout(f"an evaluation in the pool took longer than timeout={limit:g} s") from None
                self.executor.look()


def from_pool(pool: Pool, *, timeout: float | None = None) -> Executor:
    """An executor for a pool with the interface of `multiprocessing.Pool` (ray.util.multiprocessing, pathos, billiard).

    timeout: seconds that a caller waits for an evaluation before it raises TimeoutError; None: no limit.

    A result raises EvaluationLost if its process dies (killed for lack of memory, or ended by the loss); the pool has
    replaced the process, and the other results arrive. For `minimize` that is a failed evaluation. All results raise
    BrokenProcessPool if a process died with a lock for which the others wait.
    Raises ValueError for timeout <= 0.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout} must be > 0, in seconds, or None")
    return PoolExecutor(pool, timeout)


def _processes(pool: Pool) -> list[Any]:
    """The processes of a pool on this machine; a thread has no exit code of its own."""
    return [w for w in getattr(pool, "_pool", None) or () if hasattr(w, "pid") and hasattr(w, "exitcode")]


def _waits(pool: Pool) -> bool:
    """Whether an evaluation lies in the queue, taken by no process."""
    reader = getattr(getattr(pool, "_inqueue", None), "_reader", None)
    return bool(reader is not None and reader.poll())


def _stuck(pool: Pool) -> Any:
    """The lock that somebody holds while evaluations wait to be taken, or to give results back; None: there is none."""
    taking, giving = (getattr(getattr(pool, *q), *lock) for q, lock in _LOCKS)
    if taking is not None and _waits(pool) and _held(taking):
        return taking
    return giving if giving is not None and _held(giving) else None


_LOCKS = ((("_inqueue", None), ("_rlock", None)), (("_outqueue", None), ("_wlock", None)))


def _held(lock: Any) -> bool:
    if lock.acquire(block=False):
        lock.release()
        return False
    return True
