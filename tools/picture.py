"""The output of a command as a picture for the site.

    zograd quickstart | python tools/picture.py docs/assets/quickstart.svg

The first line of the picture is the command, given by --command. The SVG uses fonts of the reader's machine.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def as_svg(command: str, output: str) -> str:
    """The command and what it printed, as a terminal shows them."""
    console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold green"))
    for line in output.rstrip("\n").splitlines():
        console.print(Text(line, style="bold" if "trained by " in line else ""))
    svg = console.export_svg(title="zograd", unique_id="picture")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # they would come from the network
    lines = [line.rstrip() for line in svg.splitlines() if line.strip() and "<!--" not in line]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--command", default="zograd quickstart")
    given = parser.parse_args()
    given.svg.write_text(as_svg(given.command, sys.stdin.read()), encoding="utf-8")


if __name__ == "__main__":
    main()
