"""Options of commands, made from what they set: fields of `TrainSettings`, or parameters of a function.

A setting is described once, where it is defined. Making options imports that place, so `later` makes them when the
command is called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from zograd.cli.output import STYLE, Debug, Json, conclude, failures, guarded

Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        help="Python file with methods, tasks or laws of your own; it is run. Repeatable.",
        metavar="FILE",
    ),
]
Command = Callable[..., None]


def later(group: typer.Typer, name: str, summary: str, build: Callable[[], Command]) -> None:
    """Register a command that `build` makes when it is called; help of the group needs its summary only."""

    class Later(TyperCommand):
        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
            with failures(debug="--debug" in args):
                made = typer.main.get_command(single(name, build()))
            return made.make_context(info_name, args, parent, **extra)

    group.command(name, cls=Later, help=summary)(lambda: None)


def single(name: str, function: Command) -> typer.Typer:
    """An application of one command."""
    app = typer.Typer(**STYLE)
    app.command(name)(guarded(function))
    return app


def script(function: Callable[..., dict[str, Any]], text: Callable[[dict[str, Any]], str] | None = None) -> typer.Typer:
    """An application that calls one function, for `python -m`; see `from_function`."""
    return single(function.__name__, from_function(function, text))


def escaped(text: str) -> str:
    """A help text in which rich shows brackets as they stand."""
    return text.replace("[", r"\[")


def flowing(doc: str) -> str:
    """A docstring whose paragraphs are one line each, so that they fill the width of the terminal; lists stay lists."""
    paragraphs = doc.split("\n\n")
    return "\n\n".join(p if "\n " in p else p.replace("\n", " ") for p in paragraphs)


def with_parameters(call: Command, parameters: Sequence[inspect.Parameter], doc: str) -> Command:
    """`call` as typer is to see it."""
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = escaped(flowing(doc))
    return call


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters, with their annotations evaluated; all to be passed by name."""
    hints = get_type_hints(function, include_extras=True)
    found = inspect.signature(function).parameters.values()
    return [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in found if p.name in hints]


# ---- from the settings of a run --------------------------------------------------------------------------------------


def with_settings(function: Command, names: Sequence[str] = (), defaults: Mapping[str, str] | None = None) -> Command:
    """The command with an option for each of these settings (none named: all of them).

    Those that were given arrive as the argument `given`, as a config would hold them. defaults: what the help shows in
    place of the setting's own default.
    """
    from zograd.llm.settings import TrainSettings, parse_assignments

    fields = {name: TrainSettings.model_fields[name] for name in names or TrainSettings.model_fields}
    keys = {field.alias or name: name for name, field in fields.items()}

    @wraps(function)
    def call(**values: Any) -> None:
        given = {key: values.pop(key) for key in keys}
        given = {key: _read(keys[key], value) for key, value in given.items() if value is not None and value != []}
        if "set" in given:
            given["set"] = parse_assignments(given["set"])
        function(given=given, **values)

    own = [p for p in parameters_of(function) if p.name != "given"]
    made = [_setting(key, name, (defaults or {}).get(name)) for key, name in keys.items()]
    return with_parameters(call, [*own, *made], inspect.getdoc(function) or "")


def _setting(key: str, name: str, default: str | None) -> inspect.Parameter:
    """The option of one setting."""
    from zograd.llm.settings import TrainSettings, accepts

    field = TrainSettings.model_fields[name]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    start = field.get_default(call_default_factory=True)
    shown = default or (extra.get("unset") if start is None else _shown(start))
    flag, several = field.annotation is bool, isinstance(start, dict)
    option = f"--{key.replace('_', '-')}"
    kind: Any = bool | None if flag else list[str] | None if several else str | None
    how = typer.Option(
        f"{option}/--no-{option[2:]}" if flag else option,
        help=escaped(" ".join(filter(None, [field.description, f"[{shown}]" if shown else ""]))),
        metavar=None if flag else accepts(name),
        rich_help_panel=str(extra.get("group")),
        show_default=False,
    )
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, how])


def _shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | dict):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(name: str, value: Any) -> Any:
    """What was typed. A shell has no new line inside quotes."""
    return with_new_lines(value) if name == "prompt_template" else value


def with_new_lines(text: str) -> str:
    r"""A text with a new line in place of \n, a tab in place of \t, and one backslash in place of two.

    >>> with_new_lines(r"{text}\nLabel: \\n")
    '{text}\nLabel: \\n'
    """
    return re.sub(r"\\([nt\\])", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)


# ---- from the parameters of a function -------------------------------------------------------------------------------


def from_function(
    function: Callable[..., dict[str, Any]], text: Callable[[dict[str, Any]], str] | None = None
) -> Command:
    """A command that calls a function and prints the dictionary it returns, as `text` makes it for people.

    Its options are the parameters annotated as Annotated[type, help]; their defaults and its help are the function's
    own. A function that takes a method or a law also loads plugins.
    """
    options = [p for p in parameters_of(function) if get_origin(p.annotation) is Annotated]
    menu = any(p.name in ("method", "law") for p in options)

    @wraps(function)
    def call(json: bool, debug: bool, plugin: list[Path] | None = None, **given: Any) -> None:
        if menu:
            from zograd import plugins

            plugins.load(plugin or ())
        result = function(**given)
        conclude(result, json, None if text is None else text(result))

    extra = [("plugin", Plugins, None)] if menu else []
    own = [*extra, ("json", Json, False), ("debug", Debug, False)]
    common = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, a, d in own]
    return with_parameters(call, [*map(_option, options), *common], inspect.getdoc(function) or "")


def _option(p: inspect.Parameter) -> inspect.Parameter:
    """The option of one parameter."""
    kind, help = get_args(p.annotation)[:2]
    kinds = [k for k in (get_args(kind) if get_origin(kind) not in (None, Literal) else [kind]) if k is not type(None)]
    choices = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else ()
    taken: Any = str if choices or str in kinds else kinds[0]
    flag = f"--{p.name.replace('_', '-')}"
    shown = "" if p.default in (None, False, p.empty) else f" [{_shown(p.default)}]"
    how = typer.Option(
        *(["-" + p.name, flag] if len(p.name) == 1 else [flag]),
        help=escaped(help + shown),
        metavar="|".join(choices) or None,
        show_default=False,
    )
    wanted = taken if p.default is not None else taken | None
    return p.replace(annotation=Annotated[wanted, how])
