"""Who evaluates f: this process, a map, an executor, or processes of our own that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from zograd.api.constraints import Evaluated
from zograd.core import keys
from zograd.core.keys import Part
from zograd.cores import cores
from zograd.distributed.executors import from_pool
from zograd.distributed.pools import WATCHED, EvaluationLost, EvaluationTimeout, Marked, Marks, worker_ended
from zograd.errors import needs
from zograd.noise import fold
from zograd.oracles import as_number, reseed_host

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of f."""

Results: TypeAlias = "Generator[float | Failure, None, None]"

LOST = ("KilledWorker", "WorkerCrashedError", "WorkerLostError", "RayActorError")
"""Errors by which dask, ray and billiard say that the process of an evaluation died."""


@dataclass(frozen=True)
class Failure:
    """An evaluation without a value. lost: its process died or took too long; otherwise f raised `error`."""

    error: Exception
    lost: bool = False
    broken: bool = False
    """Whether what evaluates is broken for ever."""


class Evaluator(Protocol):
    """Values of f, in the order of the calls; what f raises becomes a `Failure`, whatever else passes through."""

    def __call__(self, calls: Iterable[Call]) -> Results: ...

    def skip(self, evaluations: int) -> None:
        """So many evaluations have their values from elsewhere, and are counted as made."""

    def close(self) -> None:
        """Let go of processes of our own."""


class _Uncounted:
    """An evaluator to which the number of an evaluation does not matter."""

    def skip(self, evaluations: int) -> None:
        """Nothing is counted."""


@dataclass(frozen=True)
class Bound:
    """f with its last arguments, where there are some. It can be pickled where f can."""

    f: Callable[..., Any]
    args: tuple[Any, ...]

    def __call__(self, *first: Any, **named: Any) -> Any:
        return self.f(*first, *self.args, **named)


@dataclass(frozen=True)
class Valued:
    """f with constraints, whose pair (value, c) becomes one `Evaluated`."""

    f: Callable[..., Any]

    def __call__(self, *args: Any, **named: Any) -> Evaluated:
        return Evaluated(*self.f(*args, **named))


def as_value(value: Any) -> float:
    """A value of f as a float. TypeError for what is no single number, and for True and False."""
    if type(value) is float or isinstance(value, Evaluated):
        return value
    kind = value.dtype if isinstance(value, np.ndarray | torch.Tensor) else None
    if isinstance(value, bool | np.bool_) or kind in (np.bool_, torch.bool):
        raise TypeError(f"the loss must return one number, got the bool {value!r}; return a float, such as 1.0 or 0.0")
    return as_number(value)


def evaluator(f: Callable[..., Any], workers: Any, timeout: float | None, seed: int) -> Evaluator:
    """The evaluator that `workers` and `timeout` of `minimize` ask for. Raises TypeError and ValueError."""
    if not callable(f):
        raise TypeError(f"f={f!r} is no function; pass a callable that takes x and returns a number")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout} must be > 0, in seconds, or None")
    if workers is None or (isinstance(workers, int | np.integer) and not isinstance(workers, bool)):
        number = 1 if workers is None else int(workers)
        if number == 0 or number < -1:
            raise ValueError(f"workers={number} must be a number of processes, or -1 for one per core")
        if number == -1:
            number = cores()
        return Here(f) if number == 1 and timeout is None else Processes(f, number, timeout, seed)
    if timeout is not None:
        raise TypeError(
            "timeout= needs processes that may be killed: pass workers=8, a number, with it; for a pool of your own "
            "from_pool(pool, timeout=...)"
        )
    whats: tuple[Any, ...] = (workers, getattr(workers, "__self__", None))  # the second one of pool.map
    for what in whats:
        if isinstance(what, Executor) or (hasattr(what, "submit") and not isinstance(what, type)):
            return OnExecutor(f, what)
        if hasattr(what, "apply_async"):
            return OnExecutor(f, from_pool(what))
    if callable(workers):
        return Mapped(f, workers)
    raise TypeError(
        f"workers={workers!r} is none; pass a number of processes, an executor of concurrent.futures, a pool, or a "
        f"callable like map"
    )


@dataclass(frozen=True)
class Here(_Uncounted):
    """One evaluation after the other, in this process."""

    f: Callable[..., Any]

    def __call__(self, calls: Iterable[Call]) -> Results:
        for args, named in calls:
            try:
                value: float | Failure = as_value(self.f(*args, **named))
            except Exception as error:
                value = Failure(error)
            del args  # the next point may take its memory
            yield value

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass(frozen=True)
class OnExecutor(_Uncounted):
    """All calls of a request at once, on an executor of the caller."""

    f: Callable[..., Any]
    executor: Executor

    def __call__(self, calls: Iterable[Call]) -> Results:
        futures: list[Any] = []
        late: Exception | None = None
        for args, named in calls:
            try:
                futures.append(None if late else self.executor.submit(self.f, *args, **named))
            except BrokenExecutor as error:
                late = error
                futures.append(None)
        try:
            for future in futures:
                try:
                    if future is None:
                        assert late is not None
                        raise late
                    value: float | Failure = as_value(future.result())
                except BrokenExecutor as error:
                    value = Failure(error, lost=True, broken=True)
                except (EvaluationLost, CancelledError) as error:
                    value = Failure(error, lost=True)
                except Exception as error:
                    value = Failure(error, lost=type(error).__name__ in LOST)
                yield value
        finally:
            for future in futures:
                if future is not None:
                    future.cancel()

    def close(self) -> None:
        """The executor is the caller's."""


@dataclass(frozen=True)
class Mapped(_Uncounted):
    """All calls of a request through `mapping(function, iterable)`, which gives the results in order."""

    f: Callable[..., Any]
    mapping: Callable[[Callable[[Call], Any], list[Call]], Iterable[Any]]

    def __call__(self, calls: Iterable[Call]) -> Results:
        asked = list(calls)
        given = 0
        try:
            for value in self.mapping(Caught(self.f, os.getpid()), asked):
                given += 1
                yield value
        except BrokenExecutor as error:
            yield from [Failure(error, lost=True, broken=True)] * (len(asked) - given)
            return
        if given != len(asked):
            raise TypeError(f"workers gave {given} results for {len(asked)} points; pass a callable like map")

    def close(self) -> None:
        """The map is the caller's."""


@dataclass(frozen=True)
class Caught:
    """f of one call, with what it raises as a `Failure`: a map would lose the other values by an exception."""

    f: Callable[..., Any]
    home: int
    """The process that asks; others pickle what they return."""

    def __call__(self, call: Call) -> float | Failure:
        args, named = call
        try:
            return as_value(self.f(*args, **named))
        except Exception as error:
            return Failure(error if os.getpid() == self.home else _portable(error))


def _portable(error: Exception) -> Exception:
    """The exception itself where it survives pickling, otherwise a RuntimeError that names it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Processes:
    """Processes of our own, from the package pebble; the one that dies or takes too long is replaced.

    They are forked where the system forks, so f may be any function; elsewhere cloudpickle carries it. In each, torch
    has one thread. The random state of torch, NumPy and Python is set before each evaluation, from the seed and the
    number of the evaluation: values do not depend on who evaluates what.
    """

    def __init__(self, f: Callable[..., Any], workers: int, timeout: float | None, seed: int) -> None:
        try:
            import cloudpickle
            import pebble
        except ImportError:
            what = "timeout=" if workers == 1 else f"workers={workers}"
            raise needs(what, "pebble and cloudpickle", "blackbox") from None
        self.pebble, self.dumps = pebble, cloudpickle.dumps
        self.workers, self.timeout, self.seed = workers, timeout, keys.seed_of(seed, Part.WORKERS)
        forks = "fork" in multiprocessing.get_all_start_methods() and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self.context = multiprocessing.get_context("fork" if forks else "spawn")
        self.start = (f if forks else cloudpickle.dumps(f), forks)
        self.marks = Marks()
        self.begun = 0
        self.pool: Any = None

    def __call__(self, calls: Iterable[Call]) -> Results:
        todo = iter(calls)
        window: deque[_Task] = deque()
        try:
            while True:
                while len(window) < 4 * self.workers and (call := next(todo, None)) is not None:
                    task = _Task(self.begun, self.dumps(call))
                    self.begun += 1
                    window.append(task)
                    self.schedule(task)
                if not window:
                    return
                value = self.waited(window)
                self.marks.remove(window.popleft().number)
                yield value
        finally:
            for task in window:
                task.future.cancel()

    def skip(self, evaluations: int) -> None:
        """The next evaluation has the random state of one that comes so many later."""
        self.begun += evaluations

    def schedule(self, task: _Task) -> None:
        """Give a task to the pool, to a new one where there is none or where it is broken."""
        call = Marked(_evaluate, self.marks.path(task.number))
        arguments = (fold(self.seed, task.number), task.call)
        with suppress(RuntimeError):  # it broke just now
            task.future = self.running().schedule(call, args=arguments, timeout=self.timeout)
            return
        self.close()
        task.future = self.running().schedule(call, args=arguments, timeout=self.timeout)

    def running(self) -> Any:
        """A pool that is not broken."""
        if self.pool is None or not self.pool.active:
            self.close()
            self.pool = self.pebble.ProcessPool(
                self.workers, initializer=_begin, initargs=self.start, context=self.context
            )
        return self.pool

    def waited(self, window: deque[_Task]) -> float | Failure:
        """The value of the first task. Where the pool broke, what had not arrived is evaluated again, once."""
        task = window[0]
        while True:
            try:
                found: float | Failure = task.future.result(WATCHED)
                return found
            except TimeoutError:
                if task.future.done():
                    if task.future.cancelled() or not isinstance(task.future.exception(), TimeoutError):
                        continue  # it has ended between the last look and this one
                    return Failure(EvaluationTimeout(f"f took longer than timeout={self.timeout:g} s"), lost=True)
                if self.died(task):
                    return Failure(worker_ended(None), lost=True)
                if self.pool.active:
                    continue
            except self.pebble.ProcessExpired as error:
                return Failure(worker_ended(error.exitcode), lost=True)
            except Exception:  # the pool is broken: a process that had nothing to do was killed, perhaps
                if self.pool.active and task.again:
                    raise
            if task.again:
                return Failure(EvaluationLost("the processes of the pool ended twice"), lost=True)
            for other in window:
                if not self.ended(other):
                    self.marks.remove(other.number)
                    other.again = True
                    self.schedule(other)

    def ended(self, task: _Task) -> bool:
        """Whether a task has a value, or was lost by itself and not with the pool."""
        if not task.future.done():
            return False
        error = task.future.exception()
        return error is None or isinstance(error, self.pebble.ProcessExpired | TimeoutError)

    def died(self, task: _Task) -> bool:
        """Whether the process of a task is gone, unseen by the pool."""
        process = self.marks.process(task.number)
        if process is None or process in {child.pid for child in multiprocessing.active_children()}:
            task.gone = None
            return False
        task.gone = task.gone or time.monotonic()
        return time.monotonic() - task.gone > 2.0

    def close(self) -> None:
        if self.pool is not None:
            pool, self.pool = self.pool, None
            with suppress(RuntimeError):
                pool.stop()
                pool.join()


@dataclass
class _Task:
    """An evaluation under way: its number in the run, the pickled arguments, and its future."""

    number: int
    call: bytes
    future: Any = None
    again: bool = False
    gone: float | None = None


_F: Any = None
"""f, in a process of `Processes`."""


def _begin(f: Any, forked: bool) -> None:
    """The first thing in a process."""
    global _F
    torch.set_num_threads(1)
    _F = f if forked else pickle.loads(f)


def _evaluate(key: int, call: bytes) -> float | Failure:
    """f in a process of `Processes`."""
    reseed_host(key)
    return Caught(_F, home=0)(pickle.loads(call))
