"""How the processes of torchrun find each other, at the start and after a restart."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from zograd.distributed.peers import Peers, PeersError

TIMEOUT = 300.0
"""Seconds after which a process that does not answer is considered lost."""


@contextmanager
def joined(device: str = "cpu", timeout: float = TIMEOUT) -> Iterator[Peers]:
    """The processes that torchrun started, as `Peers`; without torchrun, this process alone.

    device: the device of the model. With "cuda" each process uses the GPU of its local rank and losses travel over
        nccl; over gloo if there are fewer GPUs than processes, and on other devices.
    timeout: seconds after which an exchange raises PeersError. Choose it larger than the time by which one process may
        lag behind another: its evaluations in a step, a held-out evaluation, a replay of the tape.

    Raises ValueError for timeout <= 0, PeersError if some processes do not arrive in time.

        with joined() as peers:
            train(settings, "runs/a", peers=peers)
    """
    if not timeout > 0:
        raise ValueError(f"timeout={timeout} must be > 0, in seconds")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Peers()
        return
    backend = "gloo"
    if device.startswith("cuda"):
        gpus = torch.cuda.device_count()
        if gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
            backend = "nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % max(gpus, 1))
    span = timedelta(seconds=timeout)
    torchrun: Any = dist
    store, rank, world = next(torchrun.rendezvous("env://", timeout=span))
    store = torchrun.PrefixStore(meeting(store, rank, world, timeout), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=span)
    try:
        yield Peers(dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def meeting(store: Any, rank: int, world: int, timeout: float) -> str:
    """A name that all living processes agree on and that no earlier process has used.

    torchrun keeps one store for all restarts of its processes (torch 2.13), in which restarted processes would find the
    addresses of dead ones. So each process writes a hello with a name of its own, and rank 0 answers every hello with
    the name of the meeting until all ranks have read it. An answer to a dead process does no harm.
    """
    mine, until = uuid.uuid4().hex, time.monotonic() + timeout
    if rank:
        store.set(f"zograd/hello/{rank}", mine)
        store.wait([f"zograd/answer/{mine}"], timedelta(seconds=timeout))
        name: str = store.get(f"zograd/answer/{mine}").decode()
        store.set(f"zograd/here/{name}/{rank}", "")
        return name
    missing, answered = set(range(1, world)), set()
    while missing:
        for other in sorted(missing):
            if store.check([f"zograd/hello/{other}"]):
                hello = store.get(f"zograd/hello/{other}").decode()
                if hello not in answered:
                    store.set(f"zograd/answer/{hello}", mine)
                    answered.add(hello)
            if store.check([f"zograd/here/{mine}/{other}"]):
                missing.discard(other)
        if missing and time.monotonic() > until:
            raise PeersError(f"ranks {sorted(missing)} did not join within {timeout:g} s")
        time.sleep(0.005)
    return mine
