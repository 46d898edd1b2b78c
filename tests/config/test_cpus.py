"""Counting CPUs: affinity, and quotas of both versions of cgroups, seen from a host and from a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastmesh.config import usable_cpus


class Host:
    """A /proc/self and a cgroup file system in a directory."""

    def __init__(self, base: Path) -> None:
        self.proc = base / "proc"
        self.mount = base / "sys fs" / "cgroup"
        self.proc.mkdir()
        self.mount.mkdir(parents=True)

    def v2(self, group: str, root: str = "/") -> None:
        (self.proc / "cgroup").write_text(f"0::{group}\n")
        self.mounts(f"30 23 0:26 {root} {self.escaped} rw,nosuid - cgroup2 cgroup rw,nsdelegate")

    def v1(self, group: str, root: str = "/") -> None:
        (self.proc / "cgroup").write_text(f"5:memory:/m\n4:cpu,cpuacct:{group}\n0::/\n")
        self.mounts(
            f"31 23 0:27 {root} {self.escaped} rw shared:9 - cgroup cgroup rw,cpu,cpuacct",
            "32 23 0:28 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory",
        )

    def mounts(self, *lines: str) -> None:
        (self.proc / "mountinfo").write_text(
            "\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *lines]) + "\n"
        )

    @property
    def escaped(self) -> str:
        return str(self.mount).replace(" ", r"\040")

    def write(self, name: str, text: str) -> None:
        path = self.mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cpus(self) -> int:
        return usable_cpus(self.proc)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return Host(tmp_path)


def test_affinity_alone(host: Host) -> None:
    assert host.cpus() == 8


def test_here() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("9900000 100000", 8),
    ],
)
def test_v2(host: Host, quota: str, cpus: int) -> None:
    host.v2("/a/b")
    host.write("a/b/cpu.max", quota + "\n")
    assert host.cpus() == cpus


def test_v2_of_an_ancestor(host: Host) -> None:
    host.v2("/a/b")
    host.write("a/cpu.max", "300000 100000\n")
    host.write("a/b/cpu.max", "max 100000\n")
    assert host.cpus() == 3


def test_v2_in_a_container(host: Host) -> None:
    host.v2("/")
    host.write("cpu.max", "200000 100000\n")
    assert host.cpus() == 2


def test_v1(host: Host) -> None:
    host.v1("/a")
    host.write("a/cpu.cfs_quota_us", "250000\n")
    host.write("a/cpu.cfs_period_us", "100000\n")
    assert host.cpus() == 3


def test_v1_without_a_quota(host: Host) -> None:
    host.v1("/a")
    host.write("a/cpu.cfs_quota_us", "-1\n")
    host.write("a/cpu.cfs_period_us", "100000\n")
    assert host.cpus() == 8


@pytest.mark.parametrize("group", ["/docker/abc", "/docker/abc/inner"])
def test_v1_in_a_container(host: Host, group: str) -> None:
    """The mount shows the container's subtree, /proc/self/cgroup the path on the host."""
    host.v1(group, root="/docker/abc")
    host.write("cpu.cfs_quota_us", "100000\n")
    host.write("cpu.cfs_period_us", "100000\n")
    assert host.cpus() == 1


def test_a_path_outside_of_the_mount(host: Host) -> None:
    host.v2("/../../other")
    host.write("cpu.max", "400000 100000\n")
    assert host.cpus() == 4


@pytest.mark.parametrize("text", ["", "x", "1 0", "-5", "max", "\n\n"])
def test_nonsense_is_no_quota(host: Host, text: str) -> None:
    host.v2("/a")
    host.write("a/cpu.max", text)
    assert host.cpus() == 8


def test_proc_is_nonsense(host: Host) -> None:
    host.mounts("30 23", " - ", "30 23 0:26 / /x rw - cgroup2")
    (host.proc / "cgroup").write_text("garbage\n::\n")
    assert host.cpus() == 8
