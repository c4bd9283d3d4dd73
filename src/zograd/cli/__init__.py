"""The command line. Nothing heavy is imported until a command runs, so that `--help` answers at once.

Files: output.py (results, messages, exit codes), options.py (options made from settings and from functions), train.py,
weights.py, evaluate.py, answer.py, models.py, serve.py, gallery.py and bench.py (the commands).
"""

from __future__ import annotations

from zograd.cli import answer, bench, evaluate, gallery, models, serve, train, weights
from zograd.cli.output import app, explain
from zograd.cores import limit_threads

__all__ = ["app", "explain", "main"]

train.register()
weights.register()
evaluate.register()
answer.register()
models.register()
serve.register()
gallery.register()
bench.register()


def main() -> None:
    """The entry point `zograd`."""
    limit_threads()
    app()
