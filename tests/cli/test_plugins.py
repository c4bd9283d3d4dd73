"""A user's own method, task and law reach the command line by a file or by an installed package, and no other way."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_cli import Finished, process
from test_cli import zograd as in_process

from zograd import plugins
from zograd.hub.named_tasks import NAMED_TASKS, REGISTERED
from zograd.methods import menu

PLUGIN = '''"""A method, a task and a law that zograd does not have."""

from dataclasses import dataclass

from zograd import Method, estimators, laws, methods, rules
from zograd.hub import register_task


@methods.register_law
@dataclass(frozen=True)
class Doubtful(laws.Law):
    fixed_norm: bool = True

    def __call__(self, draw):
        return laws.Rademacher()(draw.number(draw.j + 1000))


@methods.entry(source="this file", extra_memory="none", formula="x <- x - lr D v")
def my_method(lr=1e-3, mu=1e-3, law=laws.Rademacher()):
    """Central differences, by somebody else."""
    return Method(estimators.Central(), law, rules.SGD(), mu=mu, lr=lr, name="my_method")


@register_task(classes=("bad", "good"), label_words=(" terrible", " great"), template="{text} It was")
def verdicts():
    for k in range(40):
        split = ("train", "train", "validation", "test")[k % 4]
        yield {"text": f"very {'good' if k % 3 else 'bad'}", "label": str(int(k % 3 > 0)), "split": split}
'''


@contextmanager
def fresh(path: Path | None) -> Iterator[None]:
    """Inside, no plugin has been run yet; path: a folder of installed packages. Afterwards nothing is left of any."""
    registries = (menu.MENU, menu.LAWS, NAMED_TASKS, REGISTERED, plugins._files, plugins._packages)
    before, modules = [dict(r) for r in registries], set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        if path is not None:
            patch.syspath_prepend(str(path))
        try:
            yield
        finally:
            for registry, entries in zip(registries, before, strict=True):
                registry.clear()
                registry.update(entries)  # type: ignore[arg-type]
            for name in set(sys.modules) - modules:
                if "plugin" in name:
                    del sys.modules[name]


def zograd(*arguments: object, path: Path | None = None) -> Finished:
    """The command as in a process of its own."""
    with fresh(path):
        return in_process(*arguments)


def train(model: Path, out: Path, *more: object, run: Callable[..., Finished] = zograd) -> Finished:
    return run(
        "train", "--model", model, "--out", out, "--task", "verdicts", "--method", "my_method", "--steps", 2,
        "--batch-size", 2, "--dtype", "float32", "--threads", 1, "--json", *more,
    )  # fmt: skip


def refused(result: Finished, code: int = 2) -> str:
    """The one sentence of a command that ended in this code."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "my.py"
    file.write_text(PLUGIN)
    return file


@pytest.fixture(scope="module")
def trained(tiny_model: Path, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the user's method, with the user's law, on the user's task."""
    run = tmp_path_factory.mktemp("run") / "run"
    done = train(tiny_model, run, "--plugin", plugin, "--set", "law=doubtful")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["steps"], summary["evaluations"], summary["eval_examples"]) == (2, 4, 10)
    return run


def test_a_run_of_a_plugin_records_it_and_replays(trained: Path, plugin: Path, tmp_path: Path) -> None:
    meta = json.loads((trained / "run.json").read_text())
    (recorded,) = meta["plugins"]
    assert recorded["path"] == str(plugin)
    assert len(recorded["sha256"]) == 64
    assert meta["settings"]["set"] == {"law": "doubtful"}
    done = zograd("replay", trained, "--plugin", plugin, "--out", tmp_path / "weights", "--json", "--threads", 1)
    assert json.loads(done.stdout)["sha256"] == meta["result"]["sha256"], done.stderr
    done = zograd("eval", "--run", trained, "--plugin", plugin, "--json", "--threads", 1)
    assert json.loads(done.stdout)["examples"] == 10, done.stderr
    assert json.loads(done.stdout)["trained_on"] == 10  # there are few different texts


def test_a_plugin_of_a_run_is_never_run_unasked(trained: Path, plugin: Path, tmp_path: Path) -> None:
    """The path in run.json is somebody's word."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    meta = json.loads((run / "run.json").read_text())
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    meta["plugins"][0]["path"] = str(evil)
    (run / "run.json").write_text(json.dumps(meta))
    for command in (
        ["replay", run, "--out", tmp_path / "w"],
        ["eval", "--run", run],
        ["train", "--resume", "--out", run],
    ):
        assert f"add --plugin {evil}" in refused(zograd(*command))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "w").exists()
    evil.unlink()
    assert "which is no longer there" in refused(zograd("replay", run, "--out", tmp_path / "w"))


def test_a_plugin_that_changed_is_named(trained: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "my.py"
    shutil.copytree(trained, run)
    other.write_text(PLUGIN + "\n# changed\n")
    said = refused(zograd("train", "--resume", "--out", run, "--steps", 4, "--plugin", other))
    assert "is not the one that the run" in said
    assert "begin another run" in said
    done = zograd("replay", run, "--plugin", other, "--out", tmp_path / "weights", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "zograd: warning: the plugin" in done.stderr
    assert "the result may differ" in done.stderr


def test_the_run_of_a_plugin_is_resumed(trained: Path, plugin: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    done = zograd("train", "--resume", "--out", run, "--steps", 4, "--plugin", plugin, "--threads", 1, "--json")
    assert json.loads(done.stdout)["steps"] == 4, done.stderr


def test_looking_around_shows_what_a_plugin_adds(plugin: Path) -> None:
    assert "my_method" in zograd("methods", "--plugin", plugin).stdout
    assert json.loads(zograd("methods", "my_method", "--plugin", plugin, "--json").stdout)["source"] == "this file"
    (line,) = [x for x in zograd("tasks", "--plugin", plugin).stdout.splitlines() if x.startswith("verdicts")]
    assert "2 classes" in line
    assert "my_method" not in zograd("methods").stdout


BAD = {
    "no such file": (None, "cannot read the plugin"),
    "a method that there is": (PLUGIN.replace("my_method", "mezo"), "there are two methods 'mezo', in zograd.methods."),
    "a task that there is": (PLUGIN.replace("verdicts", "mr"), "There are two tasks named 'mr'"),
    "a law that there is": (PLUGIN.replace("Doubtful", "Sphere"), "there are two laws 'sphere'"),
    "code that raises": ("1 / 0\n", "does not run: ZeroDivisionError: division by zero"),
    "no Python": ("def (\n", "does not run: SyntaxError"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_plugin_that_does_not_work_is_one_sentence(case: str, tmp_path: Path) -> None:
    text, says = BAD[case]
    file = tmp_path / "bad.py"
    if text is not None:
        file.write_text(text)
    said = refused(zograd("methods", "--plugin", file))
    assert says in said
    assert str(file) in said


def installed(folder: Path, text: str) -> Path:
    """A folder of packages, in which one has an entry point of zograd."""
    (folder / "fake_plugin.py").write_text(text)
    about = folder / "fake_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[zograd.plugins]\nfake = fake_plugin\n")
    return folder


@pytest.mark.slow
def test_an_installed_package_is_found(tiny_model: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    installed(packages, PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]))
        done = train(tiny_model, tmp_path / "run", run=process)
    assert done.returncode == 0, done.stderr
    (recorded,) = json.loads((tmp_path / "run" / "run.json").read_text())["plugins"]
    assert recorded == {"package": "fake-plugin 1.0", "entry_point": "fake_plugin"}
    replayed = zograd("replay", tmp_path / "run", "--out", tmp_path / "w", "--json", "--threads", 1, path=packages)
    assert json.loads(replayed.stdout)["sha256"] == json.loads(done.stdout)["sha256"], replayed.stderr
    without = zograd("replay", tmp_path / "run", "--out", tmp_path / "w2")
    assert without.returncode != 0
    assert "the plugin package fake-plugin 1.0, which is not installed" in without.stderr


def test_an_installed_package_that_does_not_work_is_left_out_with_a_warning(tmp_path: Path) -> None:
    installed(tmp_path, PLUGIN.replace("my_method", "mezo"))
    done = zograd("methods", path=tmp_path)
    assert done.returncode == 0
    assert "the installed plugin fake (fake_plugin) is left out: there are two methods 'mezo'" in done.stderr


def test_two_plugins_of_one_name_and_one_that_changes_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "nothing.py", tmp_path / "b" / "nothing.py"
    for file in (first, second):
        file.parent.mkdir()
        file.write_text("")
    with fresh(None):
        plugins.load([first])
        plugins.load([first])  # nothing is run twice
        with pytest.raises(plugins.PluginError, match="have the same name; rename one"):
            plugins.load([second])
        first.write_text("x = 1\n")
        with pytest.raises(plugins.PluginError, match="was changed after this process had run it"):
            plugins.load([first])


def test_a_list_of_plugins_that_is_none_is_named(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    meta = json.loads((run / "run.json").read_text())
    for wrong in ("my.py", [3], [{"path": 3}]):
        (run / "run.json").write_text(json.dumps({**meta, "plugins": wrong}))
        assert "'plugins' is no list of plugins" in refused(zograd("eval", "--run", run), 1)
