"""A model that exists only for these tests: one wheel with one member, and a recipe that writes two files."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from zograd.hub import convert
from zograd.hub.registry import REGISTRY, Entry, Wheel


@dataclass
class Toy:
    """`wheels` is the folder with the wheel, `cache` the cache; `built` counts the runs of the recipe."""

    wheels: Path
    cache: Path
    wheel: Path
    built: int = 0

    @property
    def folder(self) -> Path:
        return self.cache / "models" / "toy"

    def leftovers(self) -> list[str]:
        """Everything in the cache but lock files."""
        if not self.folder.parent.exists():
            return []
        return sorted(p.name for p in self.folder.parent.iterdir() if not p.name.endswith(".lock"))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    path = wheels / "toy_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_pkg/weights.bin", b"w" * 1000)
        archive.writestr("toy_pkg/__init__.py", "raise SystemExit('must never run')")
        archive.writestr("toy_pkg-1.0.dist-info/LICENSE", "Do as you like.")
        archive.writestr("toy_pkg-1.0.dist-info/licenses/LICENSE", "Do as you like.")
    cache = tmp_path / "cache"
    world = Toy(wheels, cache, path)

    def recipe(opened: Sequence[zipfile.ZipFile], folder: Path) -> None:
        world.built += 1
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(opened[0].read("toy_pkg/weights.bin"))

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = Entry(
        name="toy",
        kind="causal-lm",
        licence="Do as you like",
        wheels=(Wheel("toy-pkg==1.0", path.name, digest, path.stat().st_size),),
        recipe="toy",
        weights="model.safetensors",
        source="this test",
        params=1000,
    )
    monkeypatch.setitem(convert.RECIPES, "toy", recipe)
    monkeypatch.setitem(REGISTRY, "toy", entry)
    monkeypatch.setenv("ZOGRAD_CACHE", str(cache))
    monkeypatch.setenv("ZOGRAD_WHEELS", str(wheels))
    return world
