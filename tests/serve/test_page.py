"""The pages of `zograd serve` in a real browser: a person compares two candidates, gives values, reads the docs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from zograd.serve.board import Board
from zograd.serve.server import serving
from zograd.serve.setup import Setup

if sys.platform == "win32":
    pytest.skip("the browser is driven by a pipe of Unix", allow_module_level=True)

from tools.site_check import BROWSERS, PATIENCE, Browser, complaint

pytestmark = pytest.mark.slow
NASTY = "<img src=x onerror=alert(1)>"


class Page:
    """A tab at an address."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url
        browser.events.clear()
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            browser.call(f"{domain}.enable", self.session)
        browser.call("Page.navigate", self.session, url=url)

    def run(self, code: str) -> Any:
        return self.browser.call("Runtime.evaluate", self.session, expression=code, returnByValue=True)["result"].get(
            "value"
        )

    def shows(self, text: str) -> str:
        """The text of the page, once it has this in it."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            seen = " ".join(str(self.run("document.body && document.body.innerText")).split())
            if text in seen:
                return seen
            time.sleep(0.05)
        raise AssertionError(f"{self.url} does not show {text!r} but {seen!r}")

    def asks(self, text: str) -> None:
        """Wait for buttons that can be pressed, beside this text."""
        self.shows(text)
        end = time.monotonic() + PATIENCE
        while not self.run("document.querySelector('#answers button:not(:disabled)') !== null"):
            assert time.monotonic() < end, f"{self.url} asks nothing"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        return [line for event in self.browser.events if (line := complaint(event, self.url)) is not None]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser; install one of {', '.join(BROWSERS)}")
    found = Browser(program, str(tmp_path_factory.mktemp("profile")))
    yield found
    found.process.terminate()
    found.process.wait()
    for end in (found.out, found.into):
        os.close(end)


def test_a_person_compares_two_candidates(browser: Browser, tmp_path: Path) -> None:
    """By buttons and by keys, until the budget ends; the run is that of the same comparisons in Python."""
    x0 = {"grams": 18.0, NASTY: [27.0, 92.0]}
    setup = Setup(x0, "preference", {"n": 1, "lr": 0.3, "mu": 0.5}, budget=6, seed=2)
    board, twin = Board(tmp_path / "a.sqlite", setup), setup.loop()
    with serving(board) as address:
        page = Page(browser, address)
        page.shows("0 answers, 0 steps of preference")
        text = page.shows("A is better")
        assert "Which is better?" in text
        assert NASTY + "[1]" in text  # as text, not as HTML
        page.run("document.querySelectorAll('#answers button')[0].click()")
        twin.prefer(0, 1)
        page.asks("2 answers, 1 steps")
        page.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: '3'}))")
        twin.prefer(3, 2)
        page.asks("4 answers, 2 steps")
        page.run("document.querySelectorAll('#answers button')[1].click()")
        twin.prefer(4, 5, tie=True)
        page.shows("Finished: budget used.")
        assert board.loop.source.x.tobytes() == twin.source.x.tobytes()
        assert page.complaints() == []
        page = Page(browser, address.replace("token=", "token=wrong"))
        page.shows("the token is missing or wrong")
    board.close()


def test_a_person_gives_values(browser: Browser, tmp_path: Path) -> None:
    board = Board(tmp_path / "a.sqlite", Setup([1.0, 2.0], "rank", {"n": 2}, maximize=True))
    with serving(board) as address:
        page = Page(browser, address)
        assert "larger numbers are better" in page.shows("Trial 0")
        page.run("document.querySelector('#answers button').click()")
        page.shows("Enter a number first.")
        page.run("document.getElementById('value').value = '2.5'; document.querySelector('#answers button').click()")
        page.shows("Trial 1")
        page.run("document.querySelectorAll('#answers button')[1].click()")
        page.shows("2 answers, 1 steps")
        assert next(board.storage.answers()).value == 2.5
        assert board.loop.records[0].refused
        assert page.complaints() == []
    board.close()


def test_the_interface_is_shown(browser: Browser, tmp_path: Path) -> None:
    board = Board(tmp_path / "a.sqlite", Setup([1.0, 2.0]))
    with serving(board) as address:
        page = Page(browser, address.replace("/#", "/docs#"))
        text = page.shows("GET /v1/state")
        assert "POST /v1/answers Values of trials, in any order." in text
        assert page.complaints() == []
    board.close()
