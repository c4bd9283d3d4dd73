"""`zograd serve`: real clients against a real uvicorn; what it counts, keeps and refuses."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import resource
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("requests", reason="the extra test is not installed")

import requests

from zograd.errors import UsageError
from zograd.locks import LockedError
from zograd.serve.board import Board
from zograd.serve.client import Client, ServerError
from zograd.serve.guard import AT_ONCE, Limits
from zograd.serve.server import serving
from zograd.serve.setup import Setup
from zograd.serve.storage import StorageError

X0 = {"grams": 18.0, "seconds": [27.0, 92.0]}
RANKED = Setup(X0, "rank", {"n": 6, "lr": 0.3, "mu": 0.5}, seed=3)
PAIRS = Setup(X0, "preference", {"n": 2, "lr": 0.3, "mu": 0.5}, seed=3)


def f(x: dict[str, Any]) -> float:
    return float((x["grams"] - 16.5) ** 2 + (x["seconds"][0] - 30) ** 2 + (x["seconds"][1] - 94) ** 2)


@contextmanager
def served(path: Path, setup: Setup | None = None, limits: Limits | None = None) -> Iterator[tuple[Client, Board]]:
    board = Board(path, setup)
    try:
        with serving(board, limits=limits or Limits(rate=1e6)) as address:
            yield Client(address, patience=10.0), board
    finally:
        board.close()


def offline(setup: Setup, steps: int) -> Any:
    loop = setup.loop()
    while len(loop.records) < steps:
        loop.tell([f(x) for x in loop.ask()])
    return loop


def post(client: Client, path: str, body: Any = None, token: str | None = None, **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {client.token if token is None else token}"}
    return requests.post(client.base + path, json=body, headers=headers, timeout=30, **more)


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_workers_make_the_run_of_ask_and_tell(tmp_path: Path) -> None:
    """Three at once, in any order: the bits of the same loop in one process."""
    with served(tmp_path / "a.sqlite", RANKED) as (client, board):
        workers = [threading.Thread(target=client.work, args=(f,), kwargs={"most": 20, "pause": 0.01}) for _ in "abc"]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        state = client.state()
        assert (state["evaluations"], state["steps"], state["answers"]) == (60, 10, 60)
        assert (state["method"], state["feedback"], state["done"]) == ("rank", "order", False)
        expected = offline(RANKED, 10).recommend()
        assert state["x"] == {"grams": float(expected["grams"]), "seconds": expected["seconds"].tolist()}
        assert board.loop.recommend()["grams"].tobytes() == expected["grams"].tobytes()


def test_each_answer_counts_once_and_the_receipt_says_what_was_kept(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, _):
        given = client.trials(4)
        assert [t["id"] for t in given] == [0, 1, 2, 3]
        assert [t["id"] for t in client.trials(100)] == [4, 5]
        assert client.trials() == []
        assert 0 < client.call("/v1/trials", {"n": 1})["wait"] <= 600
        assert client.report(0, 5.0) == {"id": 0, "status": "counted", "kept": None}
        assert client.report(0, 6.0) == {"id": 0, "status": "repeated", "kept": 5.0}
        assert client.report(99, 6.0) == {"id": 99, "status": "unknown", "kept": None}
        twice = {"answers": [{"id": 1, "value": 7.0}, {"id": 1, "value": 8.0}, {"id": 2, "failed": True}]}
        receipts = client.call("/v1/answers", twice)["receipts"]
        assert [(r["status"], r["kept"]) for r in receipts] == [("counted", None), ("repeated", 7.0), ("counted", None)]
        client.report(3, math.nan)
        assert client.call("/v1/answers", {"answers": [{"id": i, "value": 1.0} for i in (4, 5)]})
        assert client.report(1, 6.0) == {"id": 1, "status": "late", "kept": 7.0}
        assert client.state()["x"] != {"grams": 18.0, "seconds": [27.0, 92.0]}  # failures rank last, the step is made
        assert client.state()["steps"] == 1


def test_orders_and_comparisons(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, board):
        for _ in range(3):
            given = sorted(client.trials(6), key=lambda t: f(t["x"]))
            assert {r["status"] for r in client.rank([t["id"] for t in given])} == {"counted"}
        np.testing.assert_array_equal(board.loop.source.x, offline(RANKED, 3).source.x)
        with pytest.raises(ServerError, match=r"ranks its 6 points together.* \(409\)"):
            client.prefer(18, 19)
    with served(tmp_path / "b.sqlite", PAIRS) as (client, board):
        for _ in range(6):
            a, b = sorted(client.call("/v1/pair", {})["trials"], key=lambda t: f(t["x"]))
            assert (a["rival"], b["rival"]) == (b["id"], a["id"])
            assert client.prefer(a["id"], b["id"])["status"] == "counted"
        assert client.prefer(a["id"], b["id"])["status"] == "late"
        np.testing.assert_array_equal(board.loop.source.x, offline(PAIRS, 3).source.x)
        with pytest.raises(ServerError, match=r"no rivals: the method compares 12 with 13 \(422\)"):
            client.prefer(12, 14)
    with served(tmp_path / "c.sqlite", Setup([1.0, 2.0])) as (client, _):
        with pytest.raises(ServerError, match=r"zo_sgd computes with the values .* \(409\)"):
            client.rank([0, 1])
        with pytest.raises(ServerError, match="409"):
            client.call("/v1/pair", {})


def test_a_search_ends_and_f_may_fail(tmp_path: Path) -> None:
    setup = Setup([3.0, 4.0], "lbfgs", budget=200, maximize=True, bounds=[[-5, 5]])

    def negative(x: list[float]) -> float:
        if x[0] > 2.9999 and x[1] > 4.0:
            raise RuntimeError("solver diverged")
        return -sum((v - 1) ** 2 for v in x)

    with served(tmp_path / "a.sqlite", setup) as (client, _):
        assert client.work(negative, pause=0.01) <= 200
        state = client.state()
        assert state["done"]
        np.testing.assert_allclose(state["x"], [1.0, 1.0], atol=1e-5)
        assert client.call("/v1/trials", {"n": 1})["message"] == state["message"]


# ---- what is on the disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [RANKED, PAIRS, Setup([3.0, 4.0], "lbfgs", maximize=True)], ids=lambda s: s.method)
def test_a_server_goes_on_where_the_last_one_stopped(setup: Setup, tmp_path: Path) -> None:
    path, rng = tmp_path / "a.sqlite", np.random.default_rng(0)
    with served(path, setup) as (client, board):
        for k in range(33):
            if setup is PAIRS and k % 2:
                a, b = (t["id"] for t in client.call("/v1/pair", {})["trials"])
                assert client.prefer(b, a, tie=k % 3 == 0)["status"] == "counted"
            elif setup is not PAIRS or board.loop.unanswered:
                for number in board.loop.unanswered[:2]:
                    client.report(number, float(rng.random()) if k % 5 else None)
        open_then, x, token = board.loop.unanswered, client.state()["x"], client.token
        answers = board.storage.count
    with served(path) as (client, board):
        assert (client.state()["x"], client.token, board.restored) == (x, token, answers)
        assert board.loop.unanswered == open_then
        assert client.report(0, 1.0)["status"] == "late"
    with served(path, setup) as (client, _):
        assert client.state()["x"] == x
    assert path.stat().st_mode & 0o077 == 0  # it holds the token


def test_one_server_at_a_time_and_one_run_a_database(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with served(path, RANKED) as (_, board):
        with pytest.raises(LockedError, match=r"a\.sqlite is being written by this process itself"):
            Board(path)
        db = board.storage._db
        told = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert told == ["wal", 2]  # 2: FULL, the log is synchronized at each commit
    with pytest.raises(UsageError, match="holds a run with method='rank', not 'preference'; leave the option out"):
        Board(path, PAIRS)
    with pytest.raises(UsageError, match="there is no database"):
        Board(tmp_path / "none.sqlite")
    with pytest.raises(ValueError, match="there is no method 'teapot'"):
        Board(tmp_path / "none.sqlite", Setup([1.0], "teapot"))
    assert not (tmp_path / "none.sqlite").exists()
    for content in (b"not a database at all, but long enough to be read as one" * 20, None):
        other = tmp_path / "other.sqlite"
        if content is None:
            other.unlink()
            with sqlite3.connect(other) as db:
                db.execute("CREATE TABLE coffee (x)")
            db.close()
        else:
            other.write_bytes(content)
        with pytest.raises(UsageError, match="is no database of zograd serve"):
            Board(other, RANKED)
        assert not other.with_name("other.sqlite.lock").exists()


def test_every_name_of_a_database_has_one_lock(tmp_path: Path) -> None:
    """A symbolic link had a lock of its own, so that two servers wrote to one database; of hard links that stays so."""
    path, link, far = tmp_path / "a.sqlite", tmp_path / "link.sqlite", tmp_path / "far" / "b.sqlite"
    far.parent.mkdir()
    link.symlink_to("a.sqlite")
    far.symlink_to(link)
    with served(link, RANKED) as (client, board):  # it makes the file to which the link leads
        for name in (path, link, far, tmp_path / "far" / ".." / "a.sqlite"):
            with pytest.raises(LockedError, match="is being written by this process itself"):
                Board(name)
        assert client.report(0, 1.0)["status"] == "counted"
    assert [p.name for p in tmp_path.iterdir() if p.is_file() and not p.is_symlink()] == ["a.sqlite"]
    with served(far) as (_, board):
        assert board.restored == 1
    os.link(path, tmp_path / "hard.sqlite")
    for name in (path, link, tmp_path / "hard.sqlite"):
        with pytest.raises(UsageError, match=r"sqlite has 2 names \(hard links\), and another server could hold it"):
            Board(name)
    (tmp_path / "hard.sqlite").unlink()
    with served(path) as (_, board):
        assert board.restored == 1


def test_a_file_that_was_there_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """With its logs, also those of a server that was killed; a file of something else keeps its mode and its bytes."""
    path = tmp_path / "a.sqlite"
    path.touch(0o644)

    def modes() -> set[int]:
        return {p.stat().st_mode & 0o077 for p in tmp_path.glob("a.sqlite*") if p.suffix != ".lock"}

    with served(path, RANKED) as (client, _):
        client.report(0, 1.0)
        assert {p.name for p in tmp_path.iterdir()} >= {"a.sqlite-wal", "a.sqlite-shm"}
        assert modes() == {0}
        left = {name: (tmp_path / name).read_bytes() for name in ("a.sqlite", "a.sqlite-wal", "a.sqlite-shm")}
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o666)
    with served(path) as (_, board):
        assert board.restored == 1
        assert modes() == {0}
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE coffee (x)")
    db.close()
    other.chmod(0o644)
    before = other.read_bytes()
    with pytest.raises(UsageError, match="is no database of zograd serve"):
        Board(other, RANKED)
    assert (other.stat().st_mode & 0o777, other.read_bytes()) == (0o644, before)


def test_a_mode_that_cannot_be_changed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sqlite"
    path.touch(0o644)

    def chmod(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("zograd.serve.storage.os.chmod", chmod)
    with pytest.warns(UserWarning, match=r"a\.sqlite holds the token, and others may read it: .*take a --db that is"):
        Board(path, RANKED).close()


def test_a_lease_without_an_end_goes_on_after_a_restart(tmp_path: Path) -> None:
    path, setup = tmp_path / "a.sqlite", Setup([1.0, 2.0], "rank", {"n": 4}, lease=math.inf)
    with served(path, setup) as (client, _):
        assert len(client.trials(9)) == 4
        assert client.call("/v1/trials", {"n": 1}) == {"trials": [], "wait": None, "done": False, "message": None}
        assert client.report(0, 1.0)["status"] == "counted"
    for again in (None, setup):
        with served(path, again) as (client, board):
            assert (board.setup.lease, board.loop.desk.lease) == (math.inf, math.inf)
            assert [t["id"] for t in client.trials(9)] == [1, 2, 3]  # whoever had them, the server does not know
    with pytest.raises(UsageError, match="holds a run with lease=inf, not 600"):
        Board(path, Setup([1.0, 2.0], "rank", {"n": 4}))


def test_answers_of_another_run_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with served(path, RANKED):
        pass
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO answers VALUES (1000, 1.0, 0, 0.0)")
    db.close()
    with pytest.raises(UsageError, match="has 1 answers, of which only 0 belong to its run"):
        Board(path)


def test_what_cannot_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, board):
        client.patience = 0.2
        db = board.storage._db

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(db, name)

            def executemany(self, *_: Any) -> None:
                raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(board.storage, "_db", Full())
        reply = post(client, "/v1/answers", {"answers": [{"id": 0, "value": 1.0}]})
        assert (reply.status_code, "disk is full" in reply.json()["detail"]) == (503, True)
        with pytest.raises(ConnectionError, match="disk is full"):
            client.report(1, 1.0)
        assert board.loop.unanswered == [0, 1, 2, 3, 4, 5]
        monkeypatch.undo()
        assert client.report(0, 1.0)["status"] == "counted"
        with pytest.raises(StorageError, match="could not be written"):
            board.storage.write(list(board.storage.answers()))
        assert board.storage.count == 1


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_only_the_token_lets_in(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, _):
        for token in ("", "x", client.token[:-1], client.token + "x", client.token.upper()):
            reply = post(client, "/v1/trials", {}, token)
            assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
        for headers in ({}, {"Authorization": client.token}, {"Authorization": f"Basic {client.token}"}):
            assert requests.get(client.base + "/v1/state", headers=headers, timeout=30).status_code == 401
        assert requests.get(client.base + "/nowhere", timeout=30).status_code == 401
        lower = {"Authorization": f"bearer  {client.token}"}
        assert requests.get(client.base + "/v1/state", headers=lower, timeout=30).status_code == 200
        assert client.trials()[0]["id"] == 0  # none was given out before


TOKENS = [" secret", "a+b", "p&q", "x%41y", "a=b", "a#b", "schl\u00fcssel", "\u65e5", "a\n", "a b", '"']


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_that_an_address_would_change_is_refused(token: str, tmp_path: Path) -> None:
    """Such a token locked out the page, or everybody. One of an earlier version asks for another one."""
    path = tmp_path / "a.sqlite"
    with pytest.raises(UsageError, match=r"token \(--token or ZOGRAD_TOKEN\) has the character .* A to Z and a to z"):
        Board(path, RANKED, token)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"token of the address has the character .*copy the whole address"):
        Client(f"http://127.0.0.1:8765/#token={token}")
    Board(path, RANKED).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE about SET value=? WHERE key='token'", (token,))
    db.close()
    with pytest.raises(UsageError, match=r"a\.sqlite holds has the character .*; give another one by --token"):
        Board(path)
    for given in ("Aa0._~-", None):
        board = Board(path, None, given)
        with serving(board) as address:
            assert address.endswith("#token=Aa0._~-")
            assert Client(address).state()["method"] == "rank"
        board.close()


@pytest.mark.parametrize("rate", [0.5, 5.0, 10.0])
def test_a_page_and_what_it_asks_for_pass_at_any_rate(rate: float, tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED, Limits(rate=rate)) as (client, _):
        for page in (("/", "/compare.js", "/style.css"), ("/docs", "/docs.js", "/style.css", "/openapi.json")):
            assert [requests.get(client.base + path, timeout=30).status_code for path in page] == [200] * len(page)
        assert [post(client, "/v1/trials", {}).status_code for _ in range(6)] == [200] * 6


def test_pages_take_no_body(tmp_path: Path) -> None:
    """A stranger's body to a page was read to its end."""
    with served(tmp_path / "a.sqlite", RANKED) as (client, _):
        host, port = client.base.removeprefix("http://").split(":")
        for path, token in itertools.product(("/", "/openapi.json"), ("wrong", client.token)):
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
            for length in ("Content-Length: 900000", "Transfer-Encoding: chunked"):
                with socket.create_connection((host, int(port)), timeout=30) as wire:
                    wire.sendall(f"{head}{length}\r\n\r\n".encode())  # the answer comes before a byte of the body
                    told = everything(wire)
                assert b" 413 " in told
                assert b"a page takes no body" in told
        assert requests.get(client.base, headers={"Content-Length": "0"}, timeout=30).status_code == 200


def test_pages_need_no_token_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, _):
        for path in ("/", "/compare.js", "/docs", "/docs.js", "/style.css", "/openapi.json"):
            reply = requests.get(client.base + path, timeout=30)
            assert reply.status_code == 200
            assert client.token not in reply.text
            assert "http://" not in reply.text
            assert "https://" not in reply.text
            assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
            assert reply.headers["Cache-Control"] == "no-store"
        told = requests.get(client.base + "/openapi.json", timeout=30).json()
        names = ("trials", "pair", "answers", "comparisons", "rankings", "state")
        assert set(told["paths"]) == {f"/v1/{name}" for name in names}
        assert "bearer" in json.dumps(told["components"]["securitySchemes"])


def test_a_large_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """1 GB, announced and in chunks without an end: 413, and the memory of the process does not grow by it."""
    with served(tmp_path / "a.sqlite", RANKED, Limits(body=10_000, rate=1e6)) as (client, _):
        host, port = client.base.removeprefix("http://").split(":")
        head = f"POST /v1/answers HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {client.token}\r\n"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with socket.create_connection((host, int(port)), timeout=30) as wire:
            wire.sendall(f"{head}Content-Length: 1000000000\r\n\r\n".encode())
            reply = everything(wire)
        assert b" 413 " in reply
        assert b"larger than 10000 bytes" in reply
        with socket.create_connection((host, int(port)), timeout=30) as wire:
            wire.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            sent = chunks(wire, 1_000_000_000)
        assert sent < 100_000_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
        assert post(client, "/v1/answers", {"answers": [{"id": 0, "value": 1.0}] * 500}).status_code == 413
        assert post(client, "/v1/answers", {"answers": [{"id": 0, "value": 1.0}] * 5}).status_code == 200
        with socket.create_connection((host, int(port)), timeout=30) as wire:  # without the token no byte of it counts
            wire.sendall(b"POST /v1/answers HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
            assert b" 401 " in everything(wire)


def chunks(wire: socket.socket, most: int) -> int:
    """Bytes that could be sent in chunks before the other side ended the connection."""
    sent, piece = 0, b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    with contextlib.suppress(ConnectionError):
        while sent < most:
            wire.sendall(piece)
            sent += len(piece)
    return sent


def test_a_body_that_does_not_come_ends_the_request(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED, Limits(patience=0.2)) as (client, _):
        host, port = client.base.removeprefix("http://").split(":")
        head = f"POST /v1/answers HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {client.token}\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as wire:
            wire.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert b" 408 " in everything(wire)


def test_a_thousand_requests_a_second_are_bounded(tmp_path: Path) -> None:
    """No more than the burst and the rate pass; strangers take nothing from those who have the token."""
    limits = Limits(rate=20.0)
    with served(tmp_path / "a.sqlite", RANKED, limits) as (client, _):
        started = time.monotonic()
        strangers = flood(client, "wrong", 300)
        known = flood(client, client.token, 1000)
        spent = time.monotonic() - started
        assert strangers[401] + strangers[429] == 300
        assert 0 < strangers[401] <= AT_ONCE + 0.1 * limits.rate * spent
        assert known[200] + known[429] == 1000
        assert 2 * limits.rate <= known[200] <= 2 * limits.rate + limits.rate * spent
        assert post(client, "/v1/trials", {}).headers.get("Retry-After") in ("1", None)
        assert client.report(0, 1.0)["status"] == "counted"  # the client waits and tries again


def flood(client: Client, token: str, n: int) -> Counter[int]:
    """Statuses of n requests that are sent at once on one connection."""
    host, port = client.base.removeprefix("http://").split(":")
    request = f"GET /v1/state HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        wire.sendall(f"{request}\r\n".encode() * (n - 1) + f"{request}Connection: close\r\n\r\n".encode())
        return Counter(int(code) for code in re.findall(rb"HTTP/1.1 (\d+) ", everything(wire)))


def everything(wire: socket.socket) -> bytes:
    """What comes until the connection ends."""
    told = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := wire.recv(1 << 16):
            told += piece
    return told


HOSTILE = [
    b"", b"{", b"[]", b"null", b"NaN", b'{"answers": []}', b'{"answers": [{"id": 0}]}', b"\xff\xfe\x00",
    b'{"answers": [{"id": 0, "value": NaN}]}', b'{"answers": [{"id": 0, "value": Infinity}]}',
    b'{"answers": [{"id": 0, "value": 1e999}]}', b'{"answers": [{"id": 0, "value": "1; DROP TABLE answers"}]}',
    b'{"answers": [{"id": 0, "value": 1.0, "failed": true}]}', b'{"answers": [{"id": -1, "value": 1.0}]}',
    b'{"answers": [{"id": 9223372036854775808, "value": 1.0}]}', b'{"answers": [{"id": 0.5, "value": 1.0}]}',
    b'{"answers": [{"id": 0, "value": 1.0, "more": 1}]}', b'{"answers": {"id": 0}}', b"[" * 100_000,
    b'{"answers": [{"id": 0, "value": ' + b"9" * 6000 + b"}]}", b'{"answers": [' + b'{"id": 0, "value": 1},' * 2000,
]  # fmt: skip


def test_no_body_is_an_error_of_the_server(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, board):
        headers = {"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"}
        for path, body in itertools.product(("/v1/answers", "/v1/comparisons", "/v1/rankings"), HOSTILE):
            reply = requests.post(client.base + path, data=body, headers=headers, timeout=30)
            assert 400 <= reply.status_code < 500, (path, body[:60], reply.text)
            assert reply.json()["detail"]
        for body, says in (
            ({"n": 0}, "n: Input should be greater than or equal to 1"),
            ({"n": 10**9}, "less than or equal to 1000"),
            ({"m": 1}, "m: Extra inputs are not permitted"),
        ):
            assert says in post(client, "/v1/trials", body).json()["detail"]
        assert post(client, "/v1/answers", {"answers": [{"id": 0}]}).json()["detail"].endswith("or failed: true")
        odd = requests.request("BREW", client.base + "/v1/state", headers=headers, timeout=30)
        assert odd.status_code == 405
        assert board.loop.unanswered == [0, 1, 2, 3, 4, 5]


# ---- the client ------------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_told(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, board):
        ids = np.array([t["id"] for t in client.trials(6)])
        for number, value in zip(ids, (np.float32(1.5), np.float64(2.5), np.int64(3), np.array(4.5)), strict=False):
            assert client.report(number, value)["status"] == "counted"
        client.report(ids[4], np.float32("nan"))
        kept = {a.id: a.value for a in board.storage.answers()}
        assert [kept[k] for k in range(4)] == [1.5, 2.5, 3.0, 4.5]
        assert math.isnan(kept[4])
        client.report(ids[5], True)
        new = np.array([t["id"] for t in client.trials(6)])
        assert {r["status"] for r in client.rank(new[np.argsort([3, 1, 2, 6, 5, 4])])} == {"counted"}
        with pytest.raises(TypeError, match=r"complex is no number; convert it by int\(\) or float\(\)"):
            client.call("/v1/answers", {"answers": [{"id": 0, "value": 1j}]})
    with served(tmp_path / "b.sqlite", PAIRS) as (client, _):
        a, b = (np.int64(t["id"]) for t in client.call("/v1/pair", {})["trials"])
        assert client.prefer(a, b, tie=np.bool_(True))["status"] == "counted"


def test_the_client_waits_for_a_server_that_is_away(tmp_path: Path) -> None:
    with served(tmp_path / "a.sqlite", RANKED) as (client, board):
        address = f"{client.base}/#token={client.token}"
        port = int(client.base.rpartition(":")[2])
    late = Client(address, patience=20.0)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(late.state()))
    asking.start()
    time.sleep(0.3)
    board = Board(tmp_path / "a.sqlite")
    with serving(board, port=port):
        asking.join()
    board.close()
    assert found[0]["method"] == "rank"
    with pytest.raises(ConnectionError):
        Client(address, patience=0.1).state()
    with served(tmp_path / "b.sqlite", RANKED) as (client, _), pytest.raises(ServerError, match=r"token .* \(401\)"):
        Client(client.base, patience=0.1).state()
