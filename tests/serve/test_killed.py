"""kill -9 of `zograd serve` while many clients tell at once: no acknowledged answer is lost, none counts twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from zograd.serve.board import Board
from zograd.serve.client import Client
from zograd.serve.server import bound

CLIENTS = 50


def start(path: Path, port: int, *more: str) -> tuple[subprocess.Popen[str], str]:
    """A server of its own process, and its address."""
    command = [sys.executable, "-m", "zograd", "serve", "--db", str(path), "--port", str(port), "--rate", "1e5", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> None:
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_no_answer_is_lost_and_none_counts_twice(kills: int, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    listening = bound("127.0.0.1", 0)
    port = listening.getsockname()[1]
    listening.close()
    new = ("--x0", "1,2,3", "--method", "rank", "--set", "n=60", "--set", "lr=0.1", "--lease", "1", "--seed", "4")
    process, address = start(path, port, *new)
    told: list[tuple[int, float]] = []  # acknowledged as counted
    stop, lock = threading.Event(), threading.Lock()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        client, k = Client(address, patience=120.0), 0
        try:
            while not stop.is_set():
                trials = client.trials(1)
                for trial in trials:
                    k += 1
                    value = number + k / 1024  # nobody else tells this value
                    receipt = client.report(trial["id"], value)
                    if receipt["status"] == "counted" or receipt["kept"] == value:  # or: the reply had been lost
                        with lock:
                            told.append((trial["id"], value))
                if not trials:
                    time.sleep(0.05)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(1, kills + 1):
            while len(told) < 80 * round_ and not errors:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            ended(process)
            process, again = start(path, port)
            assert again == address  # the same token
        while len(told) < 80 * (kills + 1) and not errors:
            time.sleep(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        process.kill()
        ended(process)
    assert errors == []
    assert max(Counter(number for number, _ in told).values()) == 1
    board = Board(path)
    kept = {a.id: a.value for a in board.storage.answers()}
    assert [(number, value) for number, value in told if kept.get(number) != value] == []
    assert board.loop.evaluations == 60 * len(board.loop.records)  # each answer once, in whole steps
    assert board.restored == len(kept) == board.loop.evaluations + 60 - len(board.loop.unanswered)
    loop: Any = board.setup.loop()
    for record in range(len(board.loop.records)):
        loop.ask()
        loop.tell([kept[60 * record + i] for i in range(60)])
        if record == 0:
            assert loop.records[0].vector == board.loop.records[0].vector
    assert board.loop.records
    board.close()
