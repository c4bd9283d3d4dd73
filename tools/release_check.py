"""`make release-check`: would what is about to be published install and run?

Copies the files that git tracks, builds the sdist and from it the wheel, compares their contents with the repository,
lets twine read their metadata, and installs them into three fresh environments: the wheel and the sdist without a
compiler, the sdist with one. In each, zograd is imported, its commands answer, and a problem is minimized; the answers
must be the same numbers. Some minutes; the environments share one installation of torch.

    python tools/release_check.py                             # all of it
    python -I tools/release_check.py --installed [--kernels]  # only the last part, for the zograd that this Python has
"""

from __future__ import annotations

import argparse
import ctypes
import email
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tarfile import TarFile

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
LIBRARIES = {".so", ".pyd", ".dylib"}
NOT_PUBLISHED = (".ci/", ".gitignore")
"""Tracked files that the sdist does without."""


# ---- what the archives hold ------------------------------------------------------------------------------------------


def wrong_in_sdist(tracked: Iterable[str], names: Iterable[str]) -> list[str]:
    """What the sdist lacks or has too much, a sentence each. names: its files, without the folder at the top."""
    wanted = {name for name in tracked if not name.startswith(NOT_PUBLISHED)}
    made = {"PKG-INFO", "setup.cfg"}
    found = {name for name in names if name not in made and ".egg-info/" not in name}
    return [
        *(f"the sdist lacks {name}: name it in MANIFEST.in" for name in sorted(wanted - found)),
        *(f"the sdist holds {name}, which git does not track" for name in sorted(found - wanted)),
    ]


def wrong_in_wheel(tracked: Iterable[str], names: Iterable[str]) -> list[str]:
    """What the wheel lacks or has too much, a sentence each: it holds the package, its kernels and its metadata."""
    wanted = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    found = {name for name in names if ".dist-info/" not in name}
    kernels = {name for name in found if Path(name).suffix in LIBRARIES}
    sources = {str(Path(name).parent) for name in wanted if name.endswith("/_native.cpp")}
    return [
        *(f"the wheel lacks {name}: see package-data in pyproject.toml" for name in sorted(wanted - found)),
        *(f"the wheel holds {name}" for name in sorted(found - wanted - kernels)),
        *(f"the wheel has no compiled {p}/_native" for p in sorted(sources - {str(Path(k).parent) for k in kernels})),
    ]


# ---- in an environment -----------------------------------------------------------------------------------------------


def installed(kernels: bool) -> dict[str, object]:
    """Use the zograd that this interpreter has; what it found. Raises where anything fails.

    kernels: whether the compiled kernels have to be there; otherwise they must not.
    """
    import numpy as np

    import zograd as zo

    home = Path(zo.__file__).parent
    if home.is_relative_to(ROOT):
        raise RuntimeError(f"{home} is the repository, not an installation; run this in another environment")
    built = [path for path in home.rglob("_native*") if path.suffix in LIBRARIES]
    for path in built:
        ctypes.CDLL(str(path))
    wanted = len(list(home.rglob("_native.cpp"))) if kernels else 0
    if len(built) != wanted:
        raise RuntimeError(f"{home} has {len(built)} compiled kernels, and {wanted} were expected")
    program = shutil.which("zograd", path=str(Path(sys.executable).parent))
    if program is None:
        raise RuntimeError(f"there is no command zograd beside {sys.executable}")
    for arguments, word in ((["--help"], "quickstart"), (["methods"], "mezo"), (["tasks"], "trec")):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, encoding="utf-8", errors="replace")
        if done.returncode or word not in done.stdout:
            raise RuntimeError(f"zograd {' '.join(arguments)} gave {done.returncode}:\n{done.stdout}{done.stderr}")
    examples = zo.hub.load_task("mr").splits["test"]
    scales = np.linspace(1, 10, 20)
    result = zo.minimize(lambda x: 0.5 * float(x @ (scales * x)), np.ones(20), method="mezo", budget=400, seed=0)
    if not result.fun < 0.5 * scales.sum():
        raise RuntimeError(f"minimize ended at {result.fun}, not below its start")
    return {"version": zo.__version__, "examples": len(examples), "x": [value.hex() for value in result.x.tolist()]}


# ---- the whole check -------------------------------------------------------------------------------------------------


def run(*command: object, env: dict[str, str], cwd: Path) -> str:
    """What a command prints; the end of it all, with its output, where it fails."""
    done = subprocess.run(
        [str(part) for part in command], env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


class Check:
    """The steps, in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began = folder, time.monotonic()
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CC", "CXX"}
        self.env = {key: value for key, value in os.environ.items() if key not in hidden}
        listed = run("git", "ls-files", "-z", env=self.env, cwd=ROOT)
        self.tracked = [name for name in listed.split("\0") if name and (ROOT / name).exists()]

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def build(self) -> tuple[Path, Path]:
        """(sdist, wheel), the wheel built from the sdist; both hold what they should."""
        tree, dist = self.folder / "tree", self.folder / "dist"
        for name in self.tracked:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
        run(sys.executable, "-m", "build", "--outdir", dist, tree, env=self.env, cwd=self.folder)
        (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
        self.say(
            f"built {sdist.name} ({sdist.stat().st_size >> 10} KiB), {wheel.name} ({wheel.stat().st_size >> 10} KiB)"
        )
        with TarFile.open(sdist) as opened:
            names = [member.name.partition("/")[2] for member in opened if member.isfile()]
        wrong = wrong_in_sdist(self.tracked, names) + wrong_in_wheel(self.tracked, zipfile.ZipFile(wheel).namelist())
        if wrong:
            raise SystemExit("\n".join(wrong))
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, env=self.env, cwd=self.folder)
        for platform in ("linux", "macos", "windows"):
            options = ("--print-build-identifiers", "--platform", platform)
            run(sys.executable, "-m", "cibuildwheel", *options, tree, env=self.env, cwd=self.folder)
        self.say("contents as in git; twine check --strict passed; cibuildwheel knows its options")
        return sdist, wheel

    def environment(self, name: str, shared: Path | None = None) -> Path:
        """The Python of a fresh environment, which also sees the packages of another one, `shared`."""
        run(sys.executable, "-m", "venv", self.folder / name, env=self.env, cwd=self.folder)
        python = self.folder / name / SCRIPTS / ("python.exe" if os.name == "nt" else "python")
        if shared is not None:
            (self.packages(python) / "shared.pth").write_text(f"{self.packages(shared)}\n")
        return python

    def packages(self, python: Path) -> Path:
        """Where an environment has its packages."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        return Path(run(python, "-c", code, env=self.env, cwd=self.folder).strip())

    def install(self, python: Path, *what: object, env: dict[str, str] | None = None) -> None:
        pip = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
        run(*pip, *what, env=self.env | (env or {}), cwd=self.folder)

    def all(self) -> None:
        sdist, wheel = self.build()
        with zipfile.ZipFile(wheel) as opened:
            (name,) = (n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(opened.read(name))
        # Nothing but what the metadata require: a dependency that is not declared is missing in each environment.
        shared = self.environment("shared")
        self.install(shared, *(r for r in metadata.get_all("Requires-Dist", ()) if "extra ==" not in r))
        self.say("installed the dependencies")
        answers = {}
        for title, archive, compiler, kernels in (
            ("wheel, no compiler", wheel, False, True),
            ("sdist, no compiler", sdist, False, False),
            ("sdist, with a compiler", sdist, True, True),
        ):
            python = self.environment(title.replace(",", "").replace(" ", "-"), shared)
            # Compilers are looked up on the PATH. pip would keep the wheel that it builds of an sdist, for the next.
            hidden = {} if compiler else {"PATH": str(python.parent)}
            self.install(python, archive, env={"PIP_NO_CACHE_DIR": "1"} | hidden)
            run(python, "-m", "pip", "check", env=self.env, cwd=self.folder)
            options = ["--kernels"] if kernels else []
            printed = run(python, "-I", __file__, "--installed", *options, env=self.env, cwd=self.folder)
            answers[title] = json.loads(printed.splitlines()[-1])
            self.say(f"{title}: works {'with' if kernels else 'without'} compiled kernels")
        first = next(iter(answers.values()))
        if first["version"] != metadata["Version"] or any(answer != first for answer in answers.values()):
            raise SystemExit(f"the environments differ:\n{json.dumps(answers, indent=1)}")
        self.say(f"zograd {first['version']} is fit to be published: the same numbers in all three environments")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build, check and install sdist and wheel in fresh environments.")
    parser.add_argument("--installed", action="store_true", help="only use the zograd that this Python has installed")
    parser.add_argument("--kernels", action="store_true", help="with --installed: the compiled kernels must be there")
    given = parser.parse_args()
    if given.installed:
        print(json.dumps(installed(given.kernels)))
        return
    with tempfile.TemporaryDirectory(prefix="zograd-release-") as folder:
        Check(Path(folder)).all()


if __name__ == "__main__":
    main()
