"""The command `zograd serve`: what it prints, takes over from the database, and refuses."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from tests.pages import zograd
from zograd.errors import UsageError
from zograd.serve.board import Board
from zograd.serve.client import Client
from zograd.serve.server import bound
from zograd.serve.setup import Setup


def test_it_prints_its_address_and_ends_by_a_signal(tmp_path: Path) -> None:
    x0, bounds = '{"a": 1.0, "b": [2.0, 3.0]}', '{"b": [0, 5]}'
    command = [
        sys.executable, "-m", "zograd", "serve", "--db", str(tmp_path / "a.sqlite"), "--x0", x0, "--bounds", bounds,
        "--method", "rank", "--set", "n=4", "--port", "0", "--token", "secret", "--json", "--budget", "8", "--maximize",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert (told["token"], told["answers"]) == ("secret", 0)
        client = Client(told["url"])
        assert client.state()["method"] == "rank"
        assert len(client.trials(100)) == 4
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert "rank, 0 answers in" in said
    board = Board(tmp_path / "a.sqlite")
    assert board.token == "secret"
    assert (board.setup.budget, board.setup.maximize, board.setup.seed) == (8, True, 0)
    low = board.loop.source.problem.lower
    assert low is not None
    np.testing.assert_array_equal(low, [-np.inf, 0, 0])
    board.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no database none.sqlite; say what is searched, by --x0"),
        (["--method", "rank"], "--method describes a new run, which needs --x0"),
        (["--x0", "{"], "--x0 is no JSON"),
        (["--x0", "1,2", "--bounds", "[[0"], "--bounds is no JSON"),
        (["--x0", "1,2", "--bounds", '{"a": [0, 1]}'], "bounds name 'a', but x0 has no names"),
        (["--x0", "1,2", "--bounds", "[[3, 4]]"], "is outside of its bounds"),
        (["--x0", "1,2", "--method", "teapot"], "there is no method 'teapot'"),
        (["--x0", "1,2", "--method", "rank", "--set", "beta=1"], "method 'rank' has no option 'beta'; it has lr, mu"),
        (["--x0", "1,2", "--method", "cma", "--set", "n=1"], "method 'cma' has no option 'n'"),
        (["--x0", "1,2", "--rate", "0"], "--rate 0 and --max-body"),
        (["--x0", "1,2", "--lease", "nan"], "lease=nan must be >= 0"),
        (["--x0", "1,2", "--token", "a+b"], "the token (--token or ZOGRAD_TOKEN) has the character '+'"),
        (["--x0", "1,nan"], "--x0 is no JSON|NaN or infinite"),
        (["--x0", "1,2", "--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = zograd(["serve", "--db", "none.sqlite", *arguments])
    assert code in (1, 2)
    assert any(part in output for part in says.split("|")), output
    assert len(output.strip().splitlines()) <= 2


def test_a_token_of_the_environment_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOGRAD_TOKEN", "schl\u00fcssel")
    code, output = zograd(["serve", "--db", "none.sqlite", "--x0", "1,2"])
    assert code in (1, 2)
    assert "ZOGRAD_TOKEN) has the character '\u00fc'" in " ".join(output.split())
    assert not (tmp_path / "none.sqlite").exists()


def test_a_setup_is_the_arguments_of_asktell(tmp_path: Path) -> None:
    setup = Setup({"a": 1.0, "b": [2.0, 3.0]}, "rank", {"n": 4}, {"b": [0, 5]}, 40, True, 5.0, 7)
    again = Setup.loads(setup.dumps())
    assert again == setup
    assert setup.differs(again) is None
    assert setup.differs(Setup.loads(setup.dumps().replace('"seed": 7', '"seed": 8'))) == "seed"
    loop = setup.loop()
    assert (loop.run.method.name, loop.run.method.estimator.n, loop.budget, loop.seed) == ("rank", 4, 40, 7)
    assert loop.run.method.lr == Setup([1.0], "rank").loop().run.method.lr  # that of minimize, not the menu's
    assert (loop.maximize, loop.desk.lease) == (True, 5.0)
    with pytest.raises(UsageError, match="bounds name 'c', but x0 has a, b"):
        Setup({"a": 1.0, "b": 2.0}, bounds={"c": [0, 1]}).loop()


def test_the_address_may_be_used_as_soon_as_it_is_printed() -> None:
    """The socket was bound and did not listen yet: a script that read the address was refused."""
    with closing(bound("127.0.0.1", 0)) as listening:
        socket.create_connection(listening.getsockname(), timeout=5).close()
    with pytest.raises(UsageError, match="--port 99999 is no port"):
        bound("127.0.0.1", 99999)
