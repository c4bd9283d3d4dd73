"""Plugins: Python files and installed packages that add a user's own methods, tasks and laws.

`zograd train --plugin FILE` runs a file before anything else. An installed package is run by the commands that need the
menu, when it has an entry point in the group `zograd.plugins`. A plugin registers what it defines: a method by
`zograd.methods.entry`, a task by `zograd.hub.register_task`, a law by `zograd.methods.register_law`.

A plugin is code. So the path in a run.json is never run: `check` asks for it again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from zograd.errors import UsageError

GROUP = "zograd.plugins"

_files: dict[Path, str] = {}
"""SHA-256 of each file that was run."""
_packages: dict[str, EntryPoint] = {}


class PluginError(UsageError):
    """A plugin that cannot be read or run, or is not the one that a run was trained with."""


def load(files: Iterable[str | Path] = ()) -> None:
    """Run the plugins of installed packages, then these files; each is run once in a process."""
    for point in entry_points(group=GROUP):
        if point.value not in _packages:
            _packages[point.value] = point
            try:
                point.load()
            except Exception as e:
                warnings.warn(f"the installed plugin {point.name} ({point.value}) is left out: {e}", stacklevel=2)
    for file in files:
        _run(Path(file))


def _run(file: Path) -> None:
    path = file.resolve()
    try:
        source = path.read_bytes()
    except OSError as e:
        raise PluginError(f"cannot read the plugin {file}: {e.strerror}") from None
    digest = hashlib.sha256(source).hexdigest()
    if _files.get(path, digest) != digest:
        raise PluginError(f"the plugin {file} was changed after this process had run it; start the process again")
    if path in _files:
        return
    name = "zograd_plugin_" + re.sub(r"\W", "_", path.stem)
    if name in sys.modules:
        other = next((str(p) for p in _files if p.stem == path.stem), name)
        raise PluginError(f"the plugins {other} and {file} have the same name; rename one")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"the plugin {file} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as e:
        del sys.modules[name]
        kind = "" if isinstance(e, UsageError) else f"{type(e).__name__}: "
        raise PluginError(f"the plugin {file} does not run: {kind}{e}") from e
    _files[path] = digest


def recorded() -> list[dict[str, str]]:
    """The plugins that this process has run, for run.json."""
    files = [{"path": str(path), "sha256": digest} for path, digest in _files.items()]
    return files + [{"package": _package(point), "entry_point": value} for value, point in _packages.items()]


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.name


def check(run: str | Path, *, resume: bool = False) -> None:
    """Compare the plugins of this process with those that a run, in a folder or packed, was trained with.

    Raises PluginError for a file that was not given again. A file that has changed is a warning, or a PluginError with
    `resume`, since the run would go on as another one. A package that is not installed is a warning.
    """
    from zograd.runs.errors import RunError
    from zograd.runs.packed import opened

    found = opened(run).meta.get("plugins", [])
    if not isinstance(found, list) or not all(isinstance(p, dict) and _is_text(p) for p in found):
        raise RunError(f"{Path(run) / 'run.json'}: 'plugins' is no list of plugins; restore it from a copy")
    for plugin in found:
        if "path" in plugin:
            _check_file(run, Path(plugin["path"]), plugin.get("sha256", ""), resume)
        elif plugin.get("entry_point") not in _packages:
            warnings.warn(
                f"the run {run} was trained with the plugin package {plugin.get('package')}, which is not installed",
                stacklevel=2,
            )


def _is_text(plugin: dict[Any, Any]) -> bool:
    return all(isinstance(value, str) for value in plugin.values())


def _check_file(run: str | Path, path: Path, digest: str, resume: bool) -> None:
    if digest in _files.values():
        return
    given = next((p for p in _files if p.name == path.name), None)
    if given is None:
        if not path.exists():
            raise PluginError(
                f"the run {run} was trained with the plugin {path} (SHA-256 {digest}), which is no longer there; bring "
                f"it back and pass it with --plugin"
            )
        raise PluginError(
            f"the run {run} was trained with the plugin {path}; a plugin is code and is not run unless you ask for it, "
            f"so check the file and add --plugin {path}"
        )
    changed = f"the plugin {given} is not the one that the run {run} was trained with (SHA-256 {digest})"
    if resume:
        raise PluginError(f"{changed}; bring it back as it was, or begin another run in another --out")
    warnings.warn(f"{changed}; the result may differ", stacklevel=3)
