"""The learning rate over a run, from the text of --lr-schedule: a shape, a table of values, or an earlier run."""

from __future__ import annotations

from zograd.core.schedules import Schedule, Shape, Table
from zograd.runs.errors import RunError

SHAPES: tuple[Shape, ...] = ("constant", "linear", "cosine")
REFINED, TABLE = "refined:", "table:"
KNOTS = 64
"""Most values of a table that is made of a run. Its running median is that smooth."""


def checked(text: str) -> str:
    """The text, if it names a schedule; no file is read. Raises ValueError."""
    if text.startswith(REFINED) and len(text) > len(REFINED):
        return text
    if text.startswith(TABLE):
        Table(1.0, total=1, values=_values(text))
        return text
    if text not in SHAPES:
        raise ValueError(
            f"unknown schedule {text!r}: expected constant, linear, cosine, refined:RUN with the folder of an earlier "
            f"run, or table:1,0.5,0 with values of your own"
        )
    return text


def settled(text: str) -> str:
    """The same schedule without a file: `refined:RUN` as a table. Raises RunError for a run that says too little."""
    if not text.startswith(REFINED):
        return text
    from zograd.learning_rate import refined, slope_norms
    from zograd.learning_rate.refined import LEAST
    from zograd.runs.packed import opened

    path = text.removeprefix(REFINED)
    try:
        norms = slope_norms(record.vector for record in opened(path).tape().records)
        if len(norms) < LEAST:
            raise ValueError(f"a shape needs at least {LEAST} steps, and this run has {len(norms)}; name a longer one")
        table = refined(norms, knots=KNOTS if len(norms) > KNOTS else 0)
    except ValueError as e:
        raise RunError(f"--lr-schedule {text}: {e}") from e
    return TABLE + ",".join(f"{value:.4g}" for value in table.values)


def shaped(text: str, peak: float, total: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """The schedule that a text names."""
    text = settled(text)
    if text.startswith(TABLE):
        return Table(peak, total=max(total, warmup + 1), warmup=warmup, values=_values(text))
    shape = next(shape for shape in SHAPES if shape == checked(text))
    return Schedule(peak, shape, total, warmup, end)


def _values(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in text.removeprefix(TABLE).split(","))
    except ValueError as e:
        raise ValueError(f"lr_schedule {text!r}: a table is numbers between commas, such as table:1,0.5,0") from e
