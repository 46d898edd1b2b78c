"""Selection and exemption by cgroup (version 2), in the host's hierarchy or one mounted for the test."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.intercept import (
    OUT,
    PEER,
    Host,
    Hosts,
    accepted,
    beside,
    both_families,
    both_methods,
    configuration,
    destination,
    intercept,
    leave_alone,
    sh,
    take_over,
)

from fastmesh.host.intercept import InterceptError, Selection, cgroups
from fastmesh.host.intercept.selection import table_of

_counter = itertools.count()

# A process that goes into a cgroup, connects, and waits for the end of its input.
DIAL = """
import os, socket, sys
open(sys.argv[1], "w").write(str(os.getpid()))
with socket.create_connection((sys.argv[2], int(sys.argv[3])), 10) as sock:
    print(*sock.getsockname()[:2], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hierarchy(hosts: Hosts, tmp_path: Path) -> Iterator[Path]:
    """A cgroup of the test's own."""
    mounted = None
    points = cgroups.mounts()
    if not points:
        mounted = tmp_path / "cgroup"
        mounted.mkdir()
        sh(f"mount -t cgroup2 none {mounted}")
        points = [str(mounted)]
    top = Path(points[0], f"fm-intercept-{os.getpid()}-{next(_counter)}")
    top.mkdir()
    try:
        yield top
    finally:
        for directory in sorted((one for one in top.rglob("*") if one.is_dir()), reverse=True):
            directory.rmdir()
        top.rmdir()
        if mounted is not None:
            sh(f"umount {mounted}")


@contextlib.contextmanager
def dialled(host: Host, cgroup: Path, address: str, port: int) -> Iterator[tuple[str, int]]:
    """A connection of a process in a cgroup: its own address."""
    command = [sys.executable, "-c", DIAL, str(cgroup / "cgroup.procs"), address, str(port)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with host.inside(start) as process:
        assert process.stdout is not None
        host_text, port_text = process.stdout.readline().split()
        yield host_text, int(port_text)
        process.communicate()


def made(top: Path, name: str) -> Path:
    directory = top / name
    directory.mkdir()
    return directory


def relative(directory: Path) -> str:
    return cgroups.relative(str(directory))


@both_methods
@both_families
def test_selection(hosts: Hosts, hierarchy: Path, tmp_path: Path, method: str, family: int) -> None:
    """The cgroup and those below it; not those beside it."""
    app, peer = hosts
    mesh, other = made(hierarchy, "mesh"), made(hierarchy, "other")
    below = made(mesh, "below")
    before = app.state()
    take_over(configuration(tmp_path, f"{{method: {method}, outbound: {{}}}}"), app, cgroup=relative(mesh))
    with (
        app.listen(("127.0.0.1", "::1")[family], OUT, transparent=True) as proxy,
        peer.listen(PEER[family], 80) as server,
    ):
        for cgroup, listener in ((mesh, proxy), (below, proxy), (other, server), (hierarchy, server)):
            with dialled(app, cgroup, PEER[family], 80) as address:
                sock, source = accepted(listener)
                with sock:
                    assert source == address
                    if listener is proxy:
                        assert destination(sock, method) == (PEER[family], 80)
    # The directory names it, too.
    assert leave_alone(app, cgroup=str(mesh))
    assert app.state() == before


@both_methods
def test_exemption(hosts: Hosts, hierarchy: Path, tmp_path: Path, method: str) -> None:
    app, peer = hosts
    sidecar, other = made(hierarchy, "sidecar"), made(hierarchy, "other")
    take_over(
        configuration(
            tmp_path, f"{{method: {method}, outbound: {{}}, exempt_cgroups: ['{relative(sidecar)}']}}"
        ),
        app,
    )
    with app.listen("127.0.0.1", OUT, transparent=True) as proxy, peer.listen(PEER[0], 80) as server:
        for cgroup, listener in ((sidecar, server), (other, proxy)):
            with dialled(app, cgroup, PEER[0], 80) as address:
                sock, source = accepted(listener)
                sock.close()
                assert source == address


def test_two_cgroups_side_by_side(
    hosts: Hosts, closing: contextlib.ExitStack, hierarchy: Path, tmp_path: Path
) -> None:
    app, _ = hosts
    proxies = {
        name: closing.enter_context(beside(tmp_path, app, name, port, cgroup=relative(made(hierarchy, name))))
        for name, port in (("b", 15021), ("c", 15031))
    }
    for name, proxy in proxies.items():
        with dialled(app, hierarchy / name, PEER[0], 80) as address:
            sock, source = accepted(proxy)
            sock.close()
            assert source == address


def test_one_that_is_made_anew(hosts: Hosts, hierarchy: Path, tmp_path: Path) -> None:
    """Rules know a cgroup by its number, which a new one of the same name does not have."""
    app, _ = hosts
    mesh = made(hierarchy, "mesh")
    before = app.state()
    config = configuration(tmp_path, "{outbound: {}}")
    selection = ("--netns", app.name, "--cgroup", mesh)
    intercept("up", "-c", config, *selection)
    assert intercept("show", *selection).stderr == ""
    mesh.rmdir()
    warning = (
        f"warning: cgroup {relative(mesh)} was removed since `up`, and rules do not know one that is made "
        "anew; run `fastmesh intercept up` again\n"
    )
    assert intercept("show", *selection, check=False).stderr == warning
    with pytest.raises(InterceptError, match=r"^there is no cgroup .*/mesh below .*; make it first"):
        take_over(config, app, cgroup=str(mesh))
    mesh.mkdir()
    assert intercept("show", *selection, check=False).stderr == warning
    intercept("up", "-c", config, *selection)
    assert intercept("show", *selection).stderr == ""
    mesh.rmdir()
    intercept("down", *selection)
    assert app.state() == before


def test_no_hierarchy(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = hosts
    before = app.state()
    config = configuration(tmp_path, "{outbound: {}}")
    monkeypatch.setattr(cgroups, "mounts", list)
    with pytest.raises(
        InterceptError, match=r"^no cgroup hierarchy of version 2 is mounted here; mount it \("
    ):
        take_over(config, app, cgroup="mesh")
    assert app.state() == before


def test_exempt_and_selected(hosts: Hosts, hierarchy: Path, tmp_path: Path) -> None:
    app, _ = hosts
    path = relative(hierarchy)
    config = configuration(tmp_path, f"{{outbound: {{}}, exempt_cgroups: ['{path}']}}")
    for one in (path, f"{path}/below"):
        with pytest.raises(
            InterceptError, match=r"is one of exempt_cgroups in .*: nothing would be taken; select"
        ):
            take_over(config, app, cgroup=one)


def test_everybody_is_no_cgroup(hosts: Hosts, tmp_path: Path) -> None:
    with pytest.raises(
        InterceptError, match="the root of the cgroup hierarchy is everybody; leave --cgroup out"
    ):
        take_over(configuration(tmp_path, "{outbound: {}}"), hosts[0], cgroup="/")


def test_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "mounts", lambda: ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"])
    for text, wanted in (
        ("a/b", "a/b"),
        ("/a/b/", "a/b"),
        ("/sys/fs/cgroup/a/b", "a/b"),
        ("/sys/fs/cgroup/unified//a/b", "a/b"),
    ):
        assert cgroups.relative(text) == wanted
        assert table_of(Selection(cgroup=text)) == table_of(Selection(cgroup="a/b"))
    assert [cgroups.level(path) for path in ("a", "a/b/c")] == [1, 3]


@pytest.mark.parametrize("path", ["./x", "a/../x", "../x", 'a"; flush ruleset; "', "a b", "a;b", "a\nb"])
def test_no_path_of_a_cgroup(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Rules would never match, or say something else."""
    monkeypatch.setattr(cgroups, "mounts", lambda: ["/sys/fs/cgroup"])
    for text in (path, f"/sys/fs/cgroup/{path}"):
        with pytest.raises(InterceptError, match="is no cgroup, expected a cgroup"):
            table_of(Selection(cgroup=text))
