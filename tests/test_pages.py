"""The code of the README and of every page of the site runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import pages
from tests.pages import DOCS, ROOT, Block, Small, blocks, commands, source
from tests.quantized.conftest import write

WITH_CODE = sorted(page for page in (*DOCS.rglob("*.md"), ROOT / "README.md") if "```" in source(page))

TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))

NOT_RUN = 23
"""Blocks that are not run, on all pages together but those of the gallery, which has its own tests. Each says why."""


@pytest.fixture(scope="session")
def small(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tiny_model, write(tiny_model, tmp_path_factory.mktemp("gguf"), "Q4_1"))


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


SLOW = ("several-processes.md",)
"""Pages that start a dozen processes."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.name in SLOW else page for page in WITH_CODE],
    ids=names,
)
def test_the_code_of_a_page_runs(page: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run at a small size: a tiny model, few steps and examples, one process in the place of several."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOGRAD_CACHE", str(tmp_path / "no cache"))  # nothing fetches the real model
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pages.run(page, small)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("page", [p for p in TUTORIALS if "```bash" in source(p)], ids=names)
def test_a_tutorial_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real model, and several processes; about half an hour in all."""
    monkeypatch.chdir(tmp_path)
    pages.run(page, None)


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left = [block for page in WITH_CODE for block in blocks(source(page)) if block.reason is not None]
    assert sum("the tests of the gallery run" not in str(block.reason) for block in left) == NOT_RUN
    assert all(len(block.reason.split()) >= 4 for block in left if block.reason)


@pytest.mark.parametrize("page", WITH_CODE, ids=names)
def test_no_fence_escapes(page: Path) -> None:
    """Fences stand at the left margin and are closed, so that `blocks` sees each of them."""
    text = source(page)
    assert text.count("```") == 2 * len(blocks(text))


def test_blocks_are_told_apart() -> None:
    text = '<!-- not run: two machines -->\n```bash\na\n```\n\n```text title="prints"\nb\n```\n\n```python\nc\n```\n'
    assert blocks(text) == [
        Block("bash", None, "a\n", 3, "two machines"),
        Block("text", "prints", "b\n", 7),
        Block("python", None, "c\n", 11),
    ]


def test_commands_are_words_without_comments() -> None:
    assert commands('zograd eval --run "a b" \\\n    --json   # the test split\n\n# nothing\nmake test\n') == [
        ["zograd", "eval", "--run", "a b", "--json"],
        ["make", "test"],
    ]


def page(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "page.md"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```python\nx = 1\nassert x > 2, x\n```\n", "^1"),
        ('```python\nprint("one")\n```\n\n```text title="prints"\ntwo\n```\n', "but its code prints\none"),
        ("```bash\nzograd methods no_such_method\n```\n", "line 2: .* ended with 2"),
        ("```bash\nzograd train --no-such-option 3\n```\n", "ended with 2"),
        ("```bash\nrm -rf /\n```\n", "nothing here runs 'rm'"),
        ("```bash\nmake coffee\n```\n", "the Makefile has no"),
        ('```bash\npip install "zograd[tea]"\n```\n', "no extra {'tea'}"),
        ("```ruby\nputs 1\n```\n", "neither run nor text"),
    ],
)
def test_a_block_that_is_wrong_fails(tmp_path: Path, small: Small, text: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        pages.run(page(tmp_path, text), small)


@pytest.mark.parametrize("page", WITH_CODE, ids=names)
def test_lines_of_code_fit_on_the_page(page: Path) -> None:
    """84 characters; what programs print may be longer."""
    code = [block for block in blocks(source(page)) if block.language in ("python", "bash")]
    assert [line for block in code for line in block.code.splitlines() if len(line) > 84] == []
