"""`zograd examples` and `zograd figures`: scripts that show one thing each, and check what they claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zograd.cli.output import Debug, Json, app, conclude, emit, guarded, say

Name = Annotated[str | None, typer.Argument(help="A script; without one, all are listed.", show_default=False)]
Quick = Annotated[bool, typer.Option("--quick", help="The same code with smaller numbers, in seconds.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
Out = Annotated[Path | None, typer.Option(help="Write NAME.png into this folder.", show_default=False)]
Page = Annotated[
    bool, typer.Option("--page", help="Write the pages of the site, in ./docs; without a name, from earlier runs.")
]

Every = Annotated[
    bool, typer.Option("--all", help="Run every script, one after the other, also those that take minutes.")
]


def register() -> None:
    app.command()(guarded(examples))
    app.command()(guarded(figures))


def examples(
    name: Name = None,
    every: Every = False,
    quick: Quick = False,
    seed: Seed = 0,
    out: Out = None,
    page: Page = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Examples of methods at work: list them, or run one and check its claims.

    Example: zograd examples balanced_router
    """
    from zograd.examples import GALLERY

    show(GALLERY, "examples", name, every, quick, seed, out, page, json)


def figures(
    name: Name = None,
    every: Every = False,
    quick: Quick = False,
    seed: Seed = 0,
    out: Out = None,
    page: Page = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Figures of the papers, computed anew: list them, or make one and check its numbers.

    Those with a language model take minutes; a run without a name lists the seconds of each.

    Example: zograd figures dap_plane --out pictures
    """
    from zograd.figures import GALLERY

    show(GALLERY, "figures", name, every, quick, seed, out, page, json)


def show(
    gallery: Any,
    kind: str,
    name: str | None,
    every: bool,
    quick: bool,
    seed: int,
    out: Path | None,
    page: bool,
    json: bool,
) -> None:
    """List the scripts of a gallery, or run one or all of them."""
    from zograd.errors import UsageError

    docs = Path("docs")
    if every and name is not None:
        raise UsageError(f"--all runs every script, and {name!r} names one; leave one of them out")
    if page and not (docs / kind / "introduction.txt").is_file():
        raise UsageError(f"--page writes into docs/{kind} of a checkout of zograd; there is none in {Path.cwd()}")
    if page and quick:
        raise UsageError("--page shows a full run; leave --quick out")
    try:
        if every:
            run_all(gallery, kind, quick, seed, out, docs if page else None, json)
        elif name is None:
            listing(gallery, kind, json)
        else:
            result = run(gallery, kind, name, quick, seed, out, docs if page else None)
            conclude(result, json, as_text(result))
    finally:  # the list tells of the pages that are there, also when another script failed
        if page:
            from zograd.gallery.page import write_index

            write_index(gallery, kind, docs, docs / kind / "introduction.txt")


def listing(gallery: Any, kind: str, json: bool) -> None:
    from dataclasses import asdict

    entries = [asdict(gallery.about(name)) for name in gallery.names()]
    width = max(len(e["name"]) for e in entries)
    lines = [
        f"{e['name']:<{width}}  {e['seconds']:>3g} s  {'[' + ','.join(e['needs']) + ']' if e['needs'] else '':<8} "
        f"{e['title']}"
        for e in entries
    ]
    emit({kind: entries}, json, "\n".join(lines))


def run_all(gallery: Any, kind: str, quick: bool, seed: int, out: Path | None, docs: Path | None, json: bool) -> None:
    """Run every script, the shortest first. What fails in one does not keep the others from running."""
    results = []
    for name in sorted(gallery.names(), key=lambda name: gallery.about(name).seconds):
        try:
            results.append(run(gallery, kind, name, quick, seed, out, docs))
        except ImportError as e:  # an extra that is missing
            results.append({"name": name, "failure": str(e)})
        if not json:
            print(f"{'FAILS ' if results[-1]['failure'] else 'holds '} {name}", flush=True)
    failed = [f"{r['name']}: {r['failure']}" for r in results if r["failure"]]
    failure = f"{len(failed)} of {len(results)} {kind} fail: {'; '.join(failed)}" if failed else None
    text = f"{len(results) - len(failed)} of {len(results)} {kind} hold their claims"
    conclude({kind: results, "failure": failure}, json, text)


def run(
    gallery: Any, kind: str, name: str, quick: bool, seed: int, out: Path | None, docs: Path | None
) -> dict[str, Any]:
    """Run one script, write its picture and its page where they are asked for, and say what it found."""
    about = gallery.about(name)
    say(f"zograd: {about.title} ({'quick' if quick else f'about {about.seconds:g} s'})")
    ran = gallery.run(name, seed=seed, quick=quick)
    files = []
    if out is not None and ran.finding.figures:
        from zograd.gallery.drawing import png

        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.png").write_bytes(png(ran.finding.figures))
        files = [str(out / f"{name}.png")]
    if docs is not None and not ran.failure:  # what failed keeps its old page, and its numbers are printed
        from zograd.gallery.page import write

        write(ran, kind, docs)
    judged = ran.judged
    return {
        "name": name,
        "seed": seed,
        "quick": quick,
        "seconds": round(ran.seconds, 2),
        "numbers": dict(ran.finding.numbers),
        "claims": [{"text": c.text, "holds": c.holds if c in judged else None} for c in ran.finding.claims],
        "files": files,
        "failure": ran.failure,
    }


def as_text(result: dict[str, Any]) -> str:
    width = max(map(len, result["numbers"]), default=0)
    marks = {True: "holds ", False: "FAILS ", None: "needs the full run "}
    return "\n".join([
        *(f"{name:<{width}}  {value:.6g}" for name, value in result["numbers"].items()),
        "",
        *(f"{marks[claim['holds']]} {claim['text']}" for claim in result["claims"]),
        *(f"written: {file}" for file in result["files"]),
    ])  # fmt: skip
