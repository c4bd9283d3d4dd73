"""Processors that a process may use: affinity, and quotas of both versions of control groups."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zograd import cores as module
from zograd.cores import cores, limit_threads, threads

BOUND = 8


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`cores` on a machine with eight processors and files of our own."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(BOUND)), raising=False)

    def tell(cgroup: str, **files: str) -> int:
        proc, groups = tmp_path / "proc", tmp_path / "groups"
        proc.mkdir(exist_ok=True)
        (proc / "cgroup").write_text(cgroup)
        for name, text in files.items():
            file = groups / name.replace("__", "/").replace("_", ".", 1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return cores(proc, groups)

    return tell


def test_without_files_the_affinity_counts(told: Callable[..., int], tmp_path: Path) -> None:
    assert cores(tmp_path / "none", tmp_path / "none") == BOUND
    assert told("0::/\n") == BOUND


@pytest.mark.parametrize(
    ("quota", "found"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", BOUND), ("", 8)]
)
def test_a_container_of_version_2_has_its_quota(told: Callable[..., int], quota: str, found: int) -> None:
    assert told("0::/\n", cpu_max=quota) == found


def test_the_smallest_quota_around_a_process_counts(told: Callable[..., int]) -> None:
    files = {"cpu_max": "max 100000", "pods__cpu_max": "300000 100000", "pods__one__cpu_max": "600000 100000"}
    assert told("0::/pods/one\n", **files) == 3


def test_a_container_of_version_1_has_its_quota(told: Callable[..., int], tmp_path: Path) -> None:
    folder = tmp_path / "groups" / "cpu,cpuacct" / "docker"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    for quota, found in (("-1", BOUND), ("400000", 4)):
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert told("4:cpu,cpuacct:/docker\n3:memory:/docker\n0::/\n") == found


def test_threads_are_no_more_than_processors_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert (threads(64), threads(1)) == (2, 1)
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    limit_threads()
    assert (os.environ["OMP_NUM_THREADS"], threads(16)) == ("16", 16)


def test_nothing_is_set_where_all_processors_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
