"""`fetch` downloads exactly the pinned files, completely or not at all, and only once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from zograd.hub import DEFAULT_MODEL, FetchError, ModelNotFoundError, cache, fetch, models, resolve_model
from zograd.hub.convert import RECIPES
from zograd.hub.registry import REGISTRY, RegistryEntry, Wheel


@dataclass
class Toy:
    """A model for these tests: its wheel in the folder `wheels`, the cache, and how often its recipe ran."""

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
    entry = RegistryEntry(
        name="toy",
        kind="causal-lm",
        licence="Do as you like",
        wheels=(Wheel("toy-pkg==1.0", path.name, digest, path.stat().st_size),),
        recipe="toy",
        weights="model.safetensors",
        source="this test",
        params=1000,
    )
    monkeypatch.setitem(RECIPES, "toy", recipe)
    monkeypatch.setitem(REGISTRY, "toy", entry)
    monkeypatch.setenv("ZOGRAD_CACHE", str(cache))
    monkeypatch.setenv("ZOGRAD_WHEELS", str(wheels))
    return world


def pip_stub(folder: Path, body: str) -> str:
    """An executable that stands for `python -m pip download ... -d DIR requirement`; `body` sees `args` and `into`."""
    path = folder / "fake-python"
    path.write_text(
        f"#!{sys.executable}\nimport pathlib, shutil, sys\nargs = sys.argv[1:]\n"
        f"into = pathlib.Path(args[args.index('-d') + 1])\n{body}\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def no_pip(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip that must not be called."""
    monkeypatch.setattr(sys, "executable", pip_stub(tmp_path, "sys.exit('pip was called')"))


@pytest.mark.usefixtures("no_pip")
def test_fetch_reads_the_folder_of_wheels_without_pip(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    fetched = fetch("toy")
    assert fetched.path == toy.folder
    assert fetched.sha256 == hashlib.sha256(b"w" * 1000).hexdigest()
    assert (fetched.name, fetched.licence, fetched.kind) == ("toy", "Do as you like", "causal-lm")
    assert sorted(p.name for p in toy.folder.iterdir()) == [
        "LICENSE",
        "config.json",
        "model.safetensors",
        "zograd.json",
    ]
    manifest = json.loads((toy.folder / "zograd.json").read_text())
    assert manifest["wheels"] == {toy.wheel.name: REGISTRY["toy"].wheels[0].sha256}
    assert manifest["licence"] == "Do as you like"
    assert manifest["conversion"] == 1
    assert toy.leftovers() == ["toy"]
    assert "Do as you like" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pip")
def test_the_second_fetch_needs_no_wheel_and_quiet_is_quiet(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    first = fetch("toy", quiet=True)
    shutil.rmtree(toy.wheels)
    assert fetch("toy", quiet=True) == first
    assert toy.built == 1
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_pip_is_asked_to_download_only(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = f"(into / 'seen').write_text(''); shutil.copy({str(toy.wheel)!r}, into)\n"
    body += f"open({str(tmp_path / 'args')!r}, 'w').write(' '.join(args))"
    monkeypatch.delenv("ZOGRAD_WHEELS")
    monkeypatch.setattr(sys, "executable", pip_stub(tmp_path, body))
    assert fetch("toy").path == toy.folder
    asked = (tmp_path / "args").read_text()
    assert asked.startswith("-m pip download --no-deps --only-binary :all: -d ")
    assert " toy-pkg==1.0" in asked


def test_a_failing_pip_gives_its_last_error_and_the_remedy(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZOGRAD_WHEELS", str(tmp_path))  # exists, but without the wheel
    body = "print('WARNING: x', file=sys.stderr); sys.exit('ERROR: No matching distribution found for toy-pkg==1.0')"
    monkeypatch.setattr(sys, "executable", pip_stub(tmp_path, body))
    with pytest.raises(FetchError) as caught:
        fetch("toy")
    message = str(caught.value)
    assert "No matching distribution found for toy-pkg==1.0" in message
    assert "WARNING" not in message
    assert "pip download --no-deps --only-binary :all: -d DIR toy-pkg==1.0" in message
    assert "ZOGRAD_WHEELS=DIR" in message
    assert toy.leftovers() == []


@pytest.mark.parametrize("executable", ["/nonexistent/python", None])
def test_pip_that_cannot_start(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, executable: str | None
) -> None:
    monkeypatch.delenv("ZOGRAD_WHEELS")
    stub = pip_stub(tmp_path, "")
    Path(stub).write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    monkeypatch.setattr(sys, "executable", executable or stub)
    with pytest.raises(FetchError, match=r"(?s)(No module named pip|Could not start pip).*ZOGRAD_WHEELS=DIR"):
        fetch("toy")
    assert toy.leftovers() == []


def test_pip_that_brings_another_file(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZOGRAD_WHEELS")
    monkeypatch.setattr(sys, "executable", pip_stub(tmp_path, "(into / 'other.whl').write_text('')"))
    with pytest.raises(FetchError, match=r"downloaded other\.whl"):
        fetch("toy")


@pytest.mark.usefixtures("no_pip")
def test_a_wheel_with_another_checksum_is_refused(toy: Toy) -> None:
    with toy.wheel.open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(FetchError, match=r"SHA-256 .* expected .* was not used"):
        fetch("toy")
    assert toy.built == 0
    assert toy.leftovers() == []


@pytest.mark.usefixtures("no_pip")
def test_a_failing_conversion_leaves_nothing_behind(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(wheels: object, folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    good = RECIPES["toy"]
    monkeypatch.setitem(RECIPES, "toy", fail)
    with pytest.raises(KeyboardInterrupt):
        fetch("toy")
    assert toy.leftovers() == []
    monkeypatch.setitem(RECIPES, "toy", good)
    assert fetch("toy").path == toy.folder


def damage_truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"w" * 10)


def damage_flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"v" * 1000)
    os.utime(path, ns=(1, 1))


def damage_remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "zograd.json").write_text('{"conversion": 1')


def damage_list_manifest(folder: Path) -> None:
    (folder / "zograd.json").write_text("[]")


def damage_old_version(folder: Path) -> None:
    manifest = json.loads((folder / "zograd.json").read_text())
    (folder / "zograd.json").write_text(json.dumps({**manifest, "conversion": 0}))


def damage_not_a_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_flip,
        damage_remove,
        damage_manifest,
        damage_list_manifest,
        damage_old_version,
        damage_not_a_folder,
    ],
)
def test_a_damaged_entry_is_rebuilt(toy: Toy, damage) -> None:
    first = fetch("toy")
    damage(toy.folder)
    assert not next(info for info in models() if info.name == "toy").cached
    assert fetch("toy") == first
    assert toy.built == 2
    assert (toy.folder / "model.safetensors").read_bytes() == b"w" * 1000
    assert toy.leftovers() == ["toy"]


@pytest.mark.usefixtures("no_pip")
def test_a_copied_cache_is_hashed_and_accepted(toy: Toy) -> None:
    fetch("toy")
    for path in toy.folder.iterdir():
        os.utime(path, ns=(1, 1))
    fetch("toy")
    assert toy.built == 1


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("locks", [True, False])
def test_concurrent_fetches_agree(toy: Toy, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    if not locks:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    fetched, errors = [], []
    start = threading.Barrier(6)

    def run() -> None:
        start.wait()
        try:
            fetched.append(fetch("toy", quiet=True))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(fetched)) == 1
    assert toy.leftovers() == ["toy"]
    if locks:
        assert toy.built == 1


@pytest.mark.usefixtures("no_pip")
def test_the_next_fetch_removes_what_a_killed_process_left(toy: Toy) -> None:
    dead = toy.folder.parent / ".toy.123.partial"
    dead.mkdir(parents=True)
    (dead / "half").write_text("half")
    fetch("toy")
    assert toy.leftovers() == ["toy"]


@pytest.mark.usefixtures("no_pip")
def test_terms_are_shown_even_when_quiet(toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(REGISTRY, "toy", dataclasses.replace(REGISTRY["toy"], terms="Terms: https://example.org"))
    fetch("toy", quiet=True)
    assert "Terms: https://example.org" in capsys.readouterr().err
    fetch("toy", quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("no_pip")
def test_a_missing_package_is_named_before_the_download(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", dataclasses.replace(REGISTRY["toy"], needs=("no_such_package",)))
    toy.wheel.unlink()
    with pytest.raises(FetchError, match=r"needs the package no_such_package: run `pip install 'zograd\[demo\]'`"):
        fetch("toy")


@pytest.mark.usefixtures("no_pip")
def test_a_cache_that_cannot_be_written(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOGRAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="ZOGRAD_CACHE"):
        fetch("toy")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(FetchError, match=r"'gpt-5'.*smollm2-135m.*boolq"):
        fetch("gpt-5")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOGRAD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_dir() == Path.home() / ".cache" / "zograd"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_dir() == Path("/xdg/zograd")
    monkeypatch.setenv("ZOGRAD_CACHE", "/own")
    assert cache.cache_dir() == Path("/own")


@pytest.mark.usefixtures("no_pip")
def test_models_says_what_is_cached(toy: Toy) -> None:
    before = {info.name: info for info in models()}
    assert next(iter(before)) == DEFAULT_MODEL
    assert "boolq" not in before
    assert not before["toy"].cached
    assert before["toy"].disk is None
    fetch("toy")
    after = {info.name: info for info in models()}
    assert after["toy"].cached
    assert after["toy"].disk == 1000 + len("{}") + len("Do as you like.")
    assert after["smollm2-135m"].params == 134_515_008
    assert after["smollm2-135m"].licence == "Apache-2.0"


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY)
def test_every_row_is_complete(entry) -> None:
    assert entry.recipe in RECIPES
    assert entry.licence
    assert entry.kind in {"causal-lm", "encoder", "vision", "speech", "data"}
    assert (entry.params is None) == (entry.kind == "data")
    for wheel in entry.wheels:
        assert len(wheel.sha256) == 64
        assert int(wheel.sha256, 16) > 0
        name, version = wheel.requirement.split("==")
        assert wheel.filename.startswith(f"{name.replace('-', '_')}-{version}-")
        assert wheel.size > 0


def test_terms_are_shown_for_gemma_alone() -> None:
    assert [entry.name for entry in REGISTRY.values() if entry.terms] == ["gemma3-270m"]
    assert DEFAULT_MODEL == "smollm2-135m"


@pytest.mark.usefixtures("no_pip")
def test_a_folder_that_is_named_as_an_alias_is_told_of(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"'toy' is the model of `zograd models`; .* is \./toy"):
        assert resolve_model("toy") == str(toy.folder)
    assert resolve_model("./toy") == "toy"


@pytest.mark.usefixtures("no_pip")
def test_resolve_model(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model("toy") == str(toy.folder)
    assert resolve_model(tmp_path) == str(tmp_path)
    assert resolve_model("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    monkeypatch.chdir(tmp_path)
    for nonsense in ("no-such-model", "./no/such", "/no/such/folder", "a/b/c", "boolq", ""):
        with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
            resolve_model(nonsense)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file"):
        resolve_model("file")


def test_the_hub_imports_no_heavy_library() -> None:
    program = (
        "import sys, zograd.hub as hub; hub.models(); hub.tasks(); hub.load_task('trec')\n"
        "print([m for m in ('torch', 'transformers', 'gguf', 'numpy', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
