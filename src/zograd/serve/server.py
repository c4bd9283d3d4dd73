"""A server on a port: uvicorn with a socket that is bound before the address is printed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zograd.errors import UsageError, needs
from zograd.serve.app import application
from zograd.serve.board import Board
from zograd.serve.guard import Limits

try:
    import uvicorn
except ImportError:
    raise needs("zograd serve", "uvicorn", "serve") from None

CONNECTIONS = 500
"""Connections at once; further ones are answered with 503."""


def bound(host: str, port: int) -> socket.socket:
    """A socket on that address; port 0 is any free one. Raises UsageError where it is taken, or is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(CONNECTIONS)  # who reads the address may connect at once: the server answers when it has begun
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}; take another --port") from None
    except OverflowError:
        listening.close()
        raise UsageError(f"--port {port} is no port; take one from 0 to 65535, 0 for a free one") from None
    return listening


def address(listening: socket.socket, token: str) -> str:
    """The page of the server; the part after # stays in the browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/#token={token}"


def server(board: Board, limits: Limits | None = None) -> Any:
    """A uvicorn server for the board; `run(sockets=[...])` works until SIGINT, SIGTERM or `should_exit`."""
    config = uvicorn.Config(
        application(board, limits), http="h11", ws="none", lifespan="off", log_level="warning", access_log=False,
        limit_concurrency=CONNECTIONS, timeout_keep_alive=30, timeout_graceful_shutdown=5, server_header=False,
    )  # fmt: skip
    return uvicorn.Server(config)


@contextmanager
def serving(board: Board, *, host: str = "127.0.0.1", port: int = 0, limits: Limits | None = None) -> Iterator[str]:
    """A server in a thread of this process; its address, as it is printed. For notebooks and tests."""
    listening = bound(host, port)
    running = server(board, limits)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not running.started and thread.is_alive():
            time.sleep(0.01)
        yield address(listening, board.token)
    finally:
        running.should_exit = True
        thread.join()
        listening.close()
