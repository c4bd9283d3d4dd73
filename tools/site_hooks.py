"""Hooks of mkdocs: pages that were written for a reader of the repository become pages of the site."""

from __future__ import annotations

import re
import runpy
from html import escape
from pathlib import Path
from posixpath import join, normpath
from typing import Any

GALLERIES = {"Examples": "examples", "Figures": "figures"}
"""Entry of the navigation -> the list of a gallery; the page of each script is added below it."""

OUTSIDE = re.compile(r"\[([^\]\n]+)\]\(((?:\.\./)+[^)\s#]+|(?:src|tests|tools|benchmarks)/[^)\s#]+)(?:#[^)\s]*)?\)")
"""A link whose target may lie outside of docs/."""


def on_config(config: Any) -> Any:
    """The navigation with the pages of the scripts below the list of their gallery."""
    config["nav"] = with_scripts(config["nav"], Path(config["docs_dir"]))
    return config


def with_scripts(nav: list[Any], docs: Path) -> list[Any]:
    """The navigation, in which the entry of a gallery holds its list and the page of each script."""
    found = []
    for entry in nav:
        ((title, pages),) = entry.items()
        kind = GALLERIES.get(title)
        if kind is not None:
            scripts = sorted(p.stem for p in (docs / kind).glob("*.md"))
            pages = [{"All": pages}, *({name: f"{kind}/{name}.md"} for name in scripts)]
        found.append({title: pages})
    return found


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files of the repository that are no pages become names that show the file on hover.

    The page on architecture gets the table of all files, as `make files` prints it.
    """
    if page.file.src_uri == "architecture.md":
        markdown += "\n" + runpy.run_path(str(Path(__file__).with_name("files.py")))["table"]()
    folder = page.file.src_uri.rpartition("/")[0]

    def named(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = normpath(join(folder, target))
        if files.get_file_from_path(path) is not None:
            return match.group(0)
        repository = normpath(join("docs", path))
        return f'<code title="{escape(repository)}">{escape(text.strip("`"))}</code>'

    return OUTSIDE.sub(named, markdown)
