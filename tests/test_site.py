"""The site: its pages, links, figures and public names, and that it builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import zograd as zo
from tests.pages import DOCS, ROOT, blocks, source
from tools import site_check, site_hooks

PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
REFERENCE = {page.stem: source(page) for page in (DOCS / "reference").glob("*.md")}
LINK = re.compile(r"(?<![!\\])\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)", re.S)


def nav() -> list[str]:
    """The pages of the navigation, in order."""
    text = (ROOT / "mkdocs.yml").read_text()

    def pages(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        items = part if isinstance(part, list) else part.values()  # type: ignore[attr-defined]
        return [page for item in items for page in pages(item)]

    return pages(site_hooks.with_scripts(yaml.safe_load(text)["nav"], DOCS))


def test_the_navigation_names_each_page_once() -> None:
    assert sorted(nav()) == PAGES


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", source(ROOT / page), flags=re.S)
    for link in (target for found in LINK.findall(text) for target in found if target):
        path = link.partition("#")[0]
        if path and "://" not in path:
            assert ((ROOT / page).parent / path).exists(), f"{page}: {link}"


def documented() -> dict[str, str]:
    """Public name -> text of the page of the reference that documents it."""
    found = {}
    for text in REFERENCE.values():
        for name in re.findall(r"^::: zograd\.(\w+)$", text, re.M):
            found[name] = text
    return found


@pytest.mark.parametrize("name", sorted(set(zo.__all__) - {"__version__", "stores", "tape", "vector"}))
def test_every_public_name_has_a_page_with_an_example(name: str) -> None:
    """The public names of the modules `tape`, `vector` and `stores` are names of `zograd` itself."""
    assert name in documented(), f"no page of docs/reference has a line `::: zograd.{name}`"
    code = "\n".join(block.code for block in blocks(documented()[name]) if block.language == "python")
    assert re.search(rf"\bzo\.{name}\b", code), f"the page of zograd.{name} has no example that uses it"


TYPES = {
    "Attack", "Ball", "BatchCurvature", "Calibration", "Check", "Controller", "Curvatures", "Draw", "Estimator",
    "Extent", "Law", "Levels", "LinearMinimizer", "Measurement", "MirrorMap", "Mixture", "Moments", "NoiseFloor",
    "Penalty", "Place", "Problem", "Projection", "Prox", "Restricted", "Robustness", "Rule", "Space",
    "SpaceReport", "Spread", "Trial", "Tried", "Unit",
}  # fmt: skip
"""Public names that nobody makes by hand: base classes, and what functions return."""


@pytest.mark.parametrize("module", ["diagnostics", "estimators", "laws", "learning_rate", "rules", "sets", "spaces"])
def test_every_part_has_an_example(module: str) -> None:
    """On its page, or as a doctest of its own: then a new part needs no second file."""
    code = "\n".join(block.code for block in blocks(REFERENCE[module]) if block.language == "python")
    used = set(re.findall(rf"\bzo\.{module}\.(\w+)", code)) | set(re.findall(r"\bzo\.(\w+)", code))
    home = getattr(zo, module)
    lacking = set(home.__all__) - TYPES - used
    assert {name for name in lacking if ">>>" not in (getattr(home, name).__doc__ or "")} == set()


@pytest.mark.parametrize("name", sorted(documented()))
def test_nothing_is_documented_that_is_not_there(name: str) -> None:
    assert hasattr(zo, name)


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_the_figures_of_choose_are_those_that_were_measured() -> None:
    measured = (DOCS / "methods.md").read_text()
    _, _, table = measured.partition("## Best for what\n\n")
    best = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.split("\n\n")[0].splitlines()[2:]]
    rows = re.findall(
        r"^\|[^|]+\| `([\w-]+)` \| `(\w+)` ([^|]+) \| ([^|]+) \|$", (DOCS / "choose.md").read_text(), re.M
    )
    assert len(rows) >= 10
    for problem, method, value, mezo in rows:
        told = f"**{method}** {value}"
        found = [row for row in best if row[0].startswith(f"{problem},") and row[1] == told]
        assert found, f"{problem}: {told} is not in docs/methods.md"
        assert mezo == "not run" or found[0][4].partition(",")[0] == mezo, f"{problem}: mezo {mezo}"


def test_the_costs_of_choose_are_those_of_the_menu() -> None:
    _, _, table = (DOCS / "choose.md").read_text().partition("## What a method costs")
    slots = {"none": 0, "one slot": 1, "four numbers a column of each matrix": 1, "two slots": 2}
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\d+) \| ([\w ]+) \|$", table, re.M)
    assert len(rows) >= 5
    for names, evaluations, state in rows:
        for name in re.findall(r"\w+", names):
            told = zo.methods.describe(name)
            assert (told["evaluations_per_step"], len(told["slots"])) == (int(evaluations), slots[state]), name


def test_the_picture_shows_the_figures_of_the_text() -> None:
    picture = re.sub(r"&#160;|\s+", " ", (DOCS / "assets" / "quickstart.svg").read_text())
    assert [figure for figure in ("26.6 %", "37.8 %", "87.0 %") if figure not in picture] == []
    assert set(re.findall(r"https?://[\w.]+", picture)) == {"http://www.w3.org"}
    for page in (ROOT / "README.md", DOCS / "index.md"):
        assert "87.0, 86.2, 86.6, 86.0 and 86.0 %" in source(page)


# ---- building --------------------------------------------------------------------------------------------------------


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loads = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?(https?:[^\s\">]+)|<link\b[^>]*\bhref=\"?(https?:[^\s\">]+)"
    )
    for page in PAGES:
        html = (tmp_path / page).with_suffix(".html").read_text(encoding="utf-8")
        assert loads.findall(html) == [], page
    menu = (tmp_path / "reference" / "methods.html").read_text(encoding="utf-8")
    missing = [name for name in zo.methods.names() if f'id="zograd.methods.{name}"' not in menu]
    assert missing == []


def test_links_out_of_the_docs_become_names() -> None:
    known = {"log.md", "assets/a.png"}
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in known else None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="coverage.md"))
    text = "[`test_a`](../tests/core/test_a.py) [log](log.md) [web](https://a.b/c)"
    assert site_hooks.on_page_markdown(text, page, None, files) == (
        '<code title="tests/core/test_a.py">test_a</code> [log](log.md) [web](https://a.b/c)'
    )


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="the extra docs is not installed")
    from tools.site_docstrings import as_markdown

    text = "x <- x - lr <m, s>_k, `a_b` stays.\n\n    f(x) < 1\n\nn: directions. mu: the\n    radius.\nThat is *all*."
    assert as_markdown(text, {"n", "mu"}) == (
        "x &lt;- x - lr &lt;m, s&gt;\\_k, `a_b` stays.\n\n    f(x) < 1\n\n- `n`: directions.\n- `mu`: the\n  radius.\n"
        "  That is \\*all\\*."
    )


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (("Network.requestWillBeSent", {"request": {"url": "http://127.0.0.1:8/a.css"}}), None),
        (("Network.requestWillBeSent", {"request": {"url": "https://fonts.com/a"}}), "not on this machine"),
        (("Network.responseReceived", {"response": {"url": "http://127.0.0.1:8/a", "status": 200}}), None),
        (("Network.responseReceived", {"response": {"url": "http://127.0.0.1:8/a", "status": 404}}), "not there"),
        (("Network.loadingFailed", {"errorText": "net::ERR_FAILED"}), "ERR_FAILED"),
        (("Runtime.exceptionThrown", {"exceptionDetails": {"exception": {"description": "x is not defined"}}}), "x is"),
        (("Log.entryAdded", {"entry": {"level": "error", "text": "blocked"}}), "blocked"),
        (("Page.loadEventFired", {}), None),
    ],
)
def test_what_a_browser_complains_about(event: tuple[str, dict[str, object]], says: str | None) -> None:
    line = site_check.complaint({"method": event[0], "params": event[1]}, "http://127.0.0.1:8/index.html")
    assert line is None if says is None else says in str(line)
