"""Pages of the built site in a headless Chromium without a network: `python tools/site_check.py build/site FOLDER`.

Fails if a page asks for something that is not there or not on this machine, logs an error, or does not show what it
should. Pictures of the pages go to FOLDER. The browser is driven by its debugging pipe, which needs no package.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 30.0
"""Seconds that a page has to show what it should, and the browser to answer."""


@dataclass(frozen=True)
class View:
    """A page as it is opened, and what has to be on it. served: by a server of this machine, otherwise as a file."""

    name: str
    path: str
    shows: str
    served: bool = True
    width: int = 1280
    height: int = 1600


VIEWS = (
    View("home", "index.html", "Train from forward evaluations alone"),
    View("reference", "reference/minimize.html", "evaluations of f, at most"),
    View("menu", "reference/methods.html", "Algorithm 1"),
    View("examples", "examples.html", "balanced_router"),
    View("example", "examples/balanced_router.html", "What it found"),
    View("search", "index.html?q=ZOOptimizer", "matching documents", height=900),
    View("search-in-files", "index.html?q=ZOOptimizer", "matching documents", served=False, height=900),
    View("phone", "start/black-box.html", "takes a function of a NumPy array", width=420, height=900),
)


class Browser:
    """A headless Chromium: commands go out, answers and events come in, each a line of JSON that ends in a zero."""

    def __init__(self, program: str, profile: str) -> None:
        (their_in, self.out), (self.into, their_out) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (their_in, their_out)]  # 3 and 4 are free then
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "browser", *command],
            pass_fds=theirs, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (their_in, their_out, *theirs):
            os.close(fd)
        self.buffer = b""
        self.sent = 0
        self.events: list[dict[str, Any]] = []

    def messages(self, end: float) -> Iterator[dict[str, Any]]:
        """What the browser says until `end`."""
        while True:
            message, found, rest = self.buffer.partition(b"\0")
            if found:
                self.buffer = rest
                yield json.loads(message)
            elif not select.select([self.into], [], [], max(end - time.monotonic(), 0))[0]:
                return
            elif data := os.read(self.into, 1 << 20):
                self.buffer += data
            else:
                raise RuntimeError("the browser ended")

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are kept."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        os.write(self.out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        for message in self.messages(time.monotonic() + PATIENCE):
            if message.get("id") == self.sent:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self.events.append(message)
        raise RuntimeError(f"{method}: no answer in {PATIENCE:g} s")

    def show(self, view: View, url: str, picture: Path) -> list[str]:
        """Open a page, take its picture, and say what is wrong with it."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable", page)
        size = {"width": view.width, "height": view.height, "deviceScaleFactor": 1, "mobile": view.width < 600}
        self.call("Emulation.setDeviceMetricsOverride", page, **size)
        self.call("Page.navigate", page, url=url)
        end, text = time.monotonic() + PATIENCE, ""
        while view.shows not in text and time.monotonic() < end:
            time.sleep(0.2)
            found = self.call("Runtime.evaluate", page, expression="document.body.innerText", returnByValue=True)
            text = " ".join(str(found["result"].get("value")).split())
        time.sleep(0.5)  # what fades in
        picture.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", page)["data"]))
        self.call("Target.closeTarget", targetId=target)
        wrong = [f"does not show {view.shows!r}"] if view.shows not in text else []
        return wrong + [line for event in self.events if (line := complaint(event, url)) is not None]


def complaint(event: dict[str, Any], page: str) -> str | None:
    """What an event of the browser says against a page, or None."""
    kind, told = event.get("method"), event.get("params", {})
    if kind == "Network.requestWillBeSent":
        url = told["request"]["url"]
        home = page.partition("//")[0] + "//" + page.partition("//")[2].partition("/")[0]
        return None if url.startswith((home, "data:", "blob:")) else f"asks for {url}, which is not on this machine"
    if kind == "Network.responseReceived" and told["response"]["status"] >= 400:
        return f"asks for {told['response']['url']}, which is not there"
    if kind == "Network.loadingFailed" and not told.get("canceled"):
        return f"something did not load: {told['errorText']}"
    if kind == "Runtime.exceptionThrown":
        return f"script failed: {told['exceptionDetails'].get('exception', {}).get('description', told)}"
    if kind == "Log.entryAdded" and told["entry"]["level"] == "error":
        return f"error: {told['entry']['text']} {told['entry'].get('url', '')}"
    return None


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(site: Path) -> Iterator[str]:
    """The address of the site on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def check(site: Path, pictures: Path, program: str) -> list[str]:
    """What is wrong with the site, a line each."""
    wrong = []
    with serving(site) as address, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for view in VIEWS:
                url = f"{address if view.served else site.resolve().as_uri()}/{view.path}"
                wrong += [f"{url}: {line}" for line in browser.show(view, url, pictures / f"{view.name}.png")]
        finally:
            browser.process.terminate()
            browser.process.wait()
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("pictures", type=Path)
    given = parser.parse_args()
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(f"there is no browser: install one of {', '.join(BROWSERS)}, such as Debian's package chromium")
    if not (given.site / "index.html").is_file():
        sys.exit(f"{given.site} holds no site; build it by `make docs`")
    given.pictures.mkdir(parents=True, exist_ok=True)
    wrong = check(given.site, given.pictures, program)
    print(f"{len(VIEWS)} pages opened, pictures in {given.pictures}; {len(wrong) or 'nothing'} wrong")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
