"""Folders of weights are whole or not there: a full disk leaves nothing that blocks the next try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zograd.files import whole_folder, write_tensors
from zograd.laws import Memory, Scores


def test_a_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"
    with whole_folder(out) as new:
        (new / "config.json").write_text("{}")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["config.json"]
    assert [p.name for p in out.parent.iterdir()] == ["model"]


def test_an_empty_folder_gives_way(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with whole_folder(tmp_path / "model") as new:
        (new / "a").write_text("a")
    assert (tmp_path / "model" / "a").read_text() == "a"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_stays_of_one_that_failed(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "model") as new:
            (new / "config.json").write_text("")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_current_folder_and_links_are_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with whole_folder(Path(".")) as new:
        (new / "a").write_text("a")
    assert (tmp_path / "a").exists()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "link") as new:
        (new / "b").write_text("b")
    assert (tmp_path / "real" / "b").exists()


@pytest.mark.parametrize("saved", [Scores({"w": torch.ones(2)}).save, Memory({"w": torch.eye(2)}).save])
def test_others_may_read_saved_tensors_as_they_may_any_new_file(tmp_path: Path, saved: Callable[[Path], None]) -> None:
    saved(tmp_path / "[tensors].bin")
    (tmp_path / "text").write_text("")
    assert (tmp_path / "[tensors].bin").stat().st_mode == (tmp_path / "text").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_tensors_that_cannot_be_written_leave_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"x": torch.ones(2)})
    before = file.read_bytes()
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(file, dict.fromkeys("xy", torch.ones(3)))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
