"""Hooks of mkdocs: pages that were written for a reader of the repository become pages of the site."""

from __future__ import annotations

import re
import runpy
from html import escape
from pathlib import Path
from posixpath import join, normpath
from typing import Any

OUTSIDE = re.compile(r"\[([^\]\n]+)\]\(((?:\.\./)+[^)\s#]+|(?:src|tests|tools|benchmarks)/[^)\s#]+)(?:#[^)\s]*)?\)")
"""A link whose target may lie outside of docs/."""


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
