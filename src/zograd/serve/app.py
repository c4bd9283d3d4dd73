"""The interface of a server: its paths, what they take, and its pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

import zograd
from zograd.api.trials import FeedbackError
from zograd.errors import needs
from zograd.serve.board import Board
from zograd.serve.guard import Application, Guard, Limits
from zograd.serve.storage import StorageError

try:
    from fastapi import Depends, FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from fastapi.security import HTTPBearer
except ImportError:
    raise needs("zograd serve", "fastapi", "serve") from None

MOST = 1000
"""Trials, and answers, of one request."""

PAGES = {
    "/": ("compare.html", "text/html"),
    "/compare.js": ("compare.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
Id = Annotated[int, Field(ge=0, lt=2**63, description="Number of a trial.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Wanted(_Body):
    n: Annotated[int, Field(ge=1, le=MOST, description="How many trials, at most.")] = 1


class Answered(_Body):
    """A value, or a failure."""

    id: Id
    value: Annotated[float | None, Field(description="Value of the function there; left out with failed.")] = None
    failed: Annotated[bool, Field(description="The trial could not be evaluated.")] = False

    @model_validator(mode="after")
    def one_of_both(self) -> Answered:
        if (self.value is None) != self.failed:
            raise ValueError("give a value, or failed: true")
        return self


class Answers(_Body):
    answers: Annotated[list[Answered], Field(min_length=1, max_length=MOST)]


class Compared(_Body):
    winner: Id
    loser: Id
    tie: Annotated[bool, Field(description="Both are equally good.")] = False


class Ranked(_Body):
    order: Annotated[
        list[Id | Annotated[list[Id], Field(min_length=1, max_length=MOST)]],
        Field(min_length=1, max_length=MOST, description="From the best to the worst; a list holds equally good ones."),
    ]


class Given(BaseModel):
    """A trial: x in the form of x0; trials of a group belong together; a rival is what it is compared with."""

    id: int
    x: Any
    group: int
    rival: int | None


class Trials(BaseModel):
    """wait: seconds until a trial is free again; null where none is missing, or where none gets free by itself. done:
    the search has ended."""

    trials: list[Given]
    wait: float | None
    done: bool
    message: str | None


class Told(BaseModel):
    """counted, or why not: repeated (there was an answer, which is kept), late (its step is over), unknown (no such
    trial). kept: the value that counted, null for a failure or where none is known."""

    id: int
    status: Literal["counted", "repeated", "late", "unknown"]
    kept: float | None = None


class Receipts(BaseModel):
    receipts: list[Told]


class State(BaseModel):
    """x: the point to use now. feedback: what the method reads, values, the order of a group, or that of pairs."""

    method: str
    feedback: Literal["values", "order", "pairs"]
    maximize: bool
    evaluations: int
    answers: int
    steps: int
    unanswered: int
    free: int
    done: bool
    message: str | None
    x: Any


class Interface:
    """The functions behind the paths. They run in threads; the board has one lock."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def trials(self, wanted: Wanted) -> Any:
        """Up to n open trials. Nobody else gets them until their lease ends."""
        return self.board.trials(wanted.n)

    def pair(self) -> Any:
        """Two trials to be compared, or none; for methods that compare."""
        return self.board.pair()

    def answers(self, told: Answers) -> Any:
        """Values of trials, in any order. What is counted is on the disk when the reply comes."""
        values = [(a.id, math.nan if a.value is None else a.value) for a in told.answers]
        return {"receipts": self.board.report(values)}

    def comparisons(self, told: Compared) -> Any:
        """Which of two rivals is better."""
        return {"receipts": [self.board.prefer(told.winner, told.loser, told.tie)]}

    def rankings(self, told: Ranked) -> Any:
        """An order of trials; for methods that rank or compare."""
        return {"receipts": self.board.rank(told.order)}

    def state(self) -> Any:
        """Where the search stands, and the point to use."""
        return self.board.state()


def application(board: Board, limits: Limits | None = None) -> Application:
    """The server as an ASGI application."""
    app = FastAPI(
        title="zograd serve", version=zograd.__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        description="Points to evaluate go out, answers come in. Every request has the header Authorization: Bearer "
        "TOKEN.",
    )  # fmt: skip
    interface = Interface(board)
    routes: tuple[tuple[str, str, Callable[..., Any], Any], ...] = (
        ("POST", "/v1/trials", interface.trials, Trials),
        ("POST", "/v1/pair", interface.pair, Trials),
        ("POST", "/v1/answers", interface.answers, Receipts),
        ("POST", "/v1/comparisons", interface.comparisons, Receipts),
        ("POST", "/v1/rankings", interface.rankings, Receipts),
        ("GET", "/v1/state", interface.state, State),
    )
    bearer = Depends(HTTPBearer(auto_error=False, description="The token that `zograd serve` prints."))
    for verb, path, function, model in routes:
        app.add_api_route(path, function, methods=[verb], response_model=model, dependencies=[bearer])
    for path, (name, kind) in PAGES.items():
        text = files("zograd.serve").joinpath("static", name).read_text(encoding="utf-8")
        app.add_api_route(path, partial(_page, text, kind), methods=["GET"], include_in_schema=False)
    for error, status in ((FeedbackError, 409), (StorageError, 503), (ValueError, 422)):
        app.add_exception_handler(error, partial(_failed, status))
    app.add_exception_handler(RequestValidationError, _invalid)
    return Guard(app, board.token, limits or Limits(), frozenset({*PAGES, "/openapi.json"}))


async def _page(text: str, kind: str) -> Any:
    return Response(text, media_type=kind)


async def _failed(status: int, request: Any, error: Exception) -> Any:
    return JSONResponse({"detail": str(error)}, status)


async def _invalid(request: Any, error: Any) -> Any:
    """What was wrong and where, without what was sent: that need not be JSON."""
    problems: list[Mapping[str, Any]] = error.errors()
    shown = [f"{'.'.join(map(str, p['loc'][1:]))}: {p['msg']}".removeprefix(": ") for p in problems[:5]]
    return JSONResponse({"detail": "; ".join(shown)}, 422)
