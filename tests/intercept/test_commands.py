"""`fastmesh intercept` as people use it: what it says, what it refuses, and that nothing is half done."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kit.intercept import IN, OUT, Host, Hosts, both_methods, configuration, intercept, leave_alone, take_over
from kit.proxy import FASTMESH

from fastmesh.config import load
from fastmesh.host.intercept import (
    InterceptError,
    Selection,
    apply,
    namespace,
    programs,
    routes,
    rules_in_force,
)

ALL = "outbound: {exclude_ports: [22]}, inbound: {ports: [8080]}"


def refused(*arguments: object, code: int = 1, **options: object) -> str:
    """What a command says that cannot be done."""
    done = intercept(*arguments, check=False, **options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return done.stderr


@both_methods
def test_up_show_down(hosts: Hosts, tmp_path: Path, method: str) -> None:
    app, _ = hosts
    before = app.state()
    config = configuration(tmp_path, f"{{method: {method}, {ALL}}}")
    netns = ("--netns", app.name)
    assert (
        intercept("up", "-c", config, *netns).stdout
        == f"traffic of everybody is taken over as {config} says\n"
    )
    state = app.state()
    again = intercept("up", "-c", config, *netns)
    assert again.stderr.splitlines() == [
        "note: it is in force already, and nothing has been changed",
        f'note: outgoing IPv6 is refused, for there is no listener for it; add one (bind: "[::1]:{OUT}")',
        f'note: incoming IPv6 is refused, for there is no listener for it; add one (bind: "[::]:{IN}")',
    ]
    assert app.state() == state
    shown = intercept("show", "-c", config, *netns)
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert (
        lines[0] == f"traffic of everybody in network namespace {app.name} is taken over for svc-a ({config})"
    )
    for line in (
        f"  outgoing  TCP to any port goes to 127.0.0.1:{OUT} and [::1]:{OUT}",
        "            not to port 22",
        f"  incoming  TCP from other hosts for port 8080 goes to port {IN}",
        "  never     what leaves from sockets with mark 0x0fa5",
        "  taken     connections since `up`: 0 outgoing, 0 incoming",
    ):
        assert line in lines
    config.unlink()
    assert intercept("down", *netns).stdout == "traffic of everybody is left alone\n"
    assert app.state() == before
    assert intercept("down", *netns).stdout == "traffic of everybody is left alone: nothing was in force\n"
    nothing = "nothing is in force; `fastmesh intercept up` takes traffic over\n"
    assert refused("show", *netns) == nothing
    assert app.state() == before


@both_methods
def test_changed_by_hand(hosts: Hosts, tmp_path: Path, method: str) -> None:
    app, _ = hosts
    config = configuration(tmp_path, f"{{method: {method}, {ALL}}}")
    take_over(config, app)
    whole = app.sh("nft list ruleset")
    changes = [
        "flush chain inet fastmesh outgoing",
        "insert rule inet fastmesh outgoing tcp dport 81 return",
        "add rule inet fastmesh incoming accept",
        "add chain inet fastmesh mine",
        "delete chain inet fastmesh outgoing",
        "flush chain inet fastmesh about",
        "flush table inet fastmesh",
    ]
    for change in changes:
        app.sh(f"nft {change}")
        assert warnings(app) == [
            "rules were changed by hand since `up` (`nft list table inet fastmesh` shows them); run "
            "`fastmesh intercept up` again to restore them"
        ]
        assert take_over(config, app) == ["rules had been changed by hand since `up`: they are restored"]
        assert uncounted(app.sh("nft list ruleset")) == uncounted(whole)
    app.sh("nft delete table inet fastmesh")
    assert take_over(config, app) == []
    assert uncounted(app.sh("nft list ruleset")) == uncounted(whole)


def warnings(host: Host) -> list[str]:
    """What `show` warns of."""
    shown = intercept("show", "--netns", host.name, check=False)
    assert shown.returncode == 1
    return [line.removeprefix("warning: ") for line in shown.stderr.splitlines()]


def uncounted(text: str) -> list[str]:
    return [line.partition("counter ")[0] for line in text.splitlines()]


def test_routes_changed_by_hand(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    before = app.state()
    config = configuration(tmp_path, f"{{method: tproxy, {ALL}}}")
    take_over(config, app)

    def rules() -> list[list[str]]:
        return [sorted(app.sh(f"ip {family} rule").splitlines()) for family in ("-4", "-6")]

    whole = rules()
    table = app.sh("ip -4 rule").partition("fwmark ")[2].split()[2]
    for change in (
        f"-4 rule del lookup {table}",
        f"-6 route flush table {table}",
        f"-4 rule add from 10.9.9.9 lookup {table}",
    ):
        app.sh(f"ip {change}")
        warning = "policy routes that tproxy needs are missing or changed; run `fastmesh intercept up` again"
        assert warnings(app) == [f"{warning} to restore them"]
        assert take_over(config, app) == [
            "policy routes had been changed by hand since `up`: they are restored"
        ]
        assert rules() == whole
    # Only the table went.
    app.sh("nft delete table inet fastmesh")
    assert warnings(app) == [
        "policy routes of an `up` are left, whose rules somebody has removed; run `fastmesh intercept down` "
        "with the same options to remove them, or `up` again to restore all"
    ]
    take_over(config, app)
    # One that is there as it should be is not even touched: packets are on their way.
    app.sh(f"ip -4 rule add from 10.9.9.9 lookup {table}")
    with pytest.MonkeyPatch.context() as patch:
        done = []
        ip = routes._ip

        def noted(place: Any, family: int, *arguments: str, may_fail: bool = False) -> str:
            done.append(arguments[:2])
            return ip(place, family, *arguments, may_fail=may_fail)

        patch.setattr(routes, "_ip", noted)
        take_over(config, app)
    assert [one for one in done if one[0] == "rule"] == [("rule", "del")]
    leave_alone(app)
    assert app.state() == before


def test_the_configuration_has_changed(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    before = app.state()
    config = configuration(tmp_path, "{method: tproxy, outbound: {}, inbound: {ports: [8080]}}")
    take_over(config, app)
    configuration(tmp_path, "{outbound: {ports: [80]}}")
    shown = intercept("show", "-c", config, "--netns", app.name, check=False)
    assert (
        shown.stderr == f"warning: {config} says something else by now; run `fastmesh intercept up` again\n"
    )
    remark = ["what was in force before for this selection has been replaced"]
    assert take_over(config, app) == remark
    # Routes of the other method are gone.
    assert app.sh("ip -4 rule").count("\n") == 3
    configuration(tmp_path, "{method: tproxy, outbound: {}}")
    assert take_over(config, app) == remark
    leave_alone(app)
    assert app.state() == before


def test_one_selection_has_one_sidecar(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    one = configuration(tmp_path, f"{{{ALL}}}", name="a")
    other = configuration(tmp_path, "{outbound: {}}", name="b", out=15021, inside=15026)
    take_over(one, app)
    state = app.state()
    netns = ("--netns", app.name)
    assert refused("up", "-c", other, *netns) == (
        f"error: traffic of everybody in network namespace {app.name} is taken over already for svc-a "
        f"({one}): one selection has one sidecar; run `fastmesh intercept down` for it first, or select by "
        "another user, cgroup or namespace\n"
    )
    assert refused("down", "-c", other, *netns) == (
        f"error: traffic of everybody in network namespace {app.name} is taken over for svc-a ({one}), not "
        f"for {other}; give that file with -c, or none to remove it whosever it is\n"
    )
    assert app.state() == state
    intercept("up", "-c", other, *netns, "--uid", "nobody")
    intercept("down", "-c", one, *netns)
    assert rules_in_force(Selection(netns=app.name)) is None
    plan = rules_in_force(Selection(netns=app.name, uid=65534))
    assert plan is not None
    assert plan.workload == "svc-b"


def test_a_port_that_is_taken(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, "{outbound: {}}")
    before = app.state()
    with app.listen("127.0.0.1", OUT):
        said = refused("up", "-c", config, "--netns", app.name)
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert said == (
        f"error: port {OUT} in network namespace {app.name} is taken by process {name} ({os.getpid()}), "
        "which is no sidecar and would get the traffic; stop it, or give the listener another port\n"
    )
    assert app.state() == before


def test_no_such_namespace(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, "{outbound: {}}")
    gone = "if it has vanished, its rules went with it and nothing is left to remove"
    assert gone in refused("up", "-c", config, "--netns", "fm-intercept-nowhere")
    assert gone in refused("down", "--netns", "4194305")
    # A name that is left over without its namespace.
    left = Path("/run/netns", f"{app.name}-left")
    left.touch()
    try:
        assert "has vanished: its file is there, but no namespace behind it" in refused(
            "show", "--netns", left.name
        )
    finally:
        left.unlink()


def test_a_namespace_by_its_process(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, "{outbound: {}}")
    with subprocess.Popen(["ip", "netns", "exec", app.name, "cat"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        # `ip` becomes cat once it is there.
        path = Path(f"/proc/{process.pid}/comm")
        while path.read_text() != "cat\n":
            assert process.poll() is None
        intercept("up", "-c", config, "--netns", process.pid)
        process.stdin.close()
    assert rules_in_force(Selection(netns=app.name)) is not None
    leave_alone(app)


def test_programs_that_are_missing(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = hosts
    config = load(configuration(tmp_path, "{method: tproxy, outbound: {}}"))
    before = app.state()
    from fastmesh.host.intercept import up

    found = programs.find
    for missing, package in (("nft", "nftables"), ("ip", "iproute2")):
        monkeypatch.setattr(programs, "find", lambda name, no=missing: None if name == no else found(name))
        with pytest.raises(InterceptError, match=rf"no program {missing} here.*apt-get install {package}\)$"):
            up(config, Selection(netns=app.name))
        monkeypatch.setattr(programs, "find", found)
        assert app.state() == before


def test_an_ip_that_is_not_iproute2s(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """redirect needs none of it, and tproxy says so."""
    app, _ = hosts
    before = app.state()
    from fastmesh.host.intercept import routes

    other, found = tmp_path / "ip", programs.find
    other.write_text("#!/bin/sh\necho 'BusyBox multi-call binary.' >&2\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setattr(programs, "find", lambda name: str(other) if name == "ip" else found(name))
    take_over(configuration(tmp_path, "{method: redirect, outbound: {}}"), app)
    (one,) = namespace.inside(app.name, apply.read_all)
    assert one.state == "same"
    leave_alone(app)
    assert app.state() == before
    assert not namespace.inside(app.name, lambda place: routes.are_left(place, "fastmesh"))
    with pytest.raises(InterceptError, match=r"BusyBox's, which cannot tell .*: install iproute2$"):
        take_over(configuration(tmp_path, "{method: tproxy, outbound: {}}"), app)
    assert app.state() == before


def test_routes_that_cannot_be_looked_at(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `up` that fails has changed nothing."""
    app, _ = hosts
    before = app.state()
    from fastmesh.host.intercept import routes

    def fail(*_: object) -> bool:
        raise InterceptError("ip did not end")

    config = configuration(tmp_path, "{method: redirect, outbound: {}}")
    with monkeypatch.context() as patch, pytest.raises(InterceptError, match="ip did not end"):
        patch.setattr(routes, "remove", fail)
        take_over(config, app)
    assert app.state() == before


def test_without_privilege(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, "{outbound: {}}")
    before = app.state()
    code = "from fastmesh.cli import main; main()"
    drop = "import ctypes; [ctypes.CDLL(None).prctl(24, n, 0, 0, 0) for n in (12, 21)]"
    for arguments in (("up", "-c", config), ("down",), ("show",), ("check", "-c", config)):
        inner = f"import os, sys; {drop}; os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
        command = [sys.executable, "-c", inner, code, "intercept", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "error: not permitted: this needs CAP_NET_ADMIN; run it as root, or give the container "
            "NET_ADMIN\n"
        )
    assert app.state() == before


def test_loopback_is_down(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    app.sh("ip link set lo down")
    said = refused("up", "-c", configuration(tmp_path, "{outbound: {}}"), "--netns", app.name)
    assert said.endswith("is down, and traffic is handed over on it; run `ip link set lo up` there\n")


def test_bad_usage(tmp_path: Path) -> None:
    config = configuration(tmp_path, "{outbound: {}}")
    assert "there is no user no-such-user on this host" in refused(
        "up", "-c", config, "--uid", "no-such-user"
    )
    said = refused("up", "-c", config, "--uid", "4294967295")
    assert said == "error: 4294967295 is no user; give a name, or a number up to 4294967294\n"
    assert "111… is no user; give a name" in refused("up", "-c", config, "--uid", "1" * 5000)
    other = configuration(tmp_path, "{outbound: {exclude_uids: [no-such-user]}}", name="b")
    assert f"(intercept.outbound.exclude_uids in {other})" in refused("up", "-c", other)
    assert "two selections" in refused("up", "-c", config, "--uid", 1, "--cgroup", "a")
    assert "does not exist" in refused("up", "-c", tmp_path / "nothing.yaml", code=2)
    config.write_text("listeners: []\n")
    assert "an empty list" in refused("check", "-c", config, code=2)


def test_a_rule_that_the_kernel_refuses(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The routes that were made for it go again."""
    app, _ = hosts
    config = configuration(tmp_path, f"{{method: tproxy, {ALL}}}")
    before = app.state()
    from fastmesh.host.intercept import nft, ruleset

    transaction = ruleset.transaction
    monkeypatch.setattr(
        ruleset, "transaction", lambda plan: f"{transaction(plan)}add rule inet fastmesh no-chain return\n"
    )
    with pytest.raises(InterceptError, match="the kernel has not all that the rules need"):
        take_over(config, app)
    assert app.state() == before
    monkeypatch.setattr(nft, "load", lambda place, text, dry=False, load=nft.load: dry or load(place, text))
    with pytest.raises(InterceptError, match="the kernel has not all that the rules need"):
        take_over(config, app)
    assert app.state() == before


def test_an_error_when_the_rules_are_in_force(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are rules with their routes, or neither."""
    app, _ = hosts
    before = app.state()
    config = configuration(tmp_path, f"{{method: tproxy, {ALL}}}")
    from fastmesh.host.intercept import nft

    def late(place: namespace.Place, text: str, dry: bool = False, load: Any = nft.load) -> None:
        load(place, text, dry=dry)
        if "chain about" in text and not dry:
            raise InterceptError("it did not end")

    with monkeypatch.context() as patch, pytest.raises(InterceptError, match="it did not end"):
        patch.setattr(nft, "load", late)
        take_over(config, app)
    assert app.state() == before
    redirect = configuration(tmp_path, f"{{method: redirect, {ALL}}}", name="redirect")
    take_over(redirect, app)
    redirect.write_text(config.read_text())
    with monkeypatch.context() as patch, pytest.raises(InterceptError, match="it did not end"):
        patch.setattr(nft, "load", late)
        take_over(redirect, app)
    found = namespace.inside(app.name, apply.read_all)
    assert [(one.plan and one.plan.method, one.routed) for one in found] == [("tproxy", True)]
    leave_alone(app)
    assert app.state() == before


def test_nobody_else_can_hold_the_lock(hosts: Hosts, tmp_path: Path) -> None:
    """A network namespace's own file is anybody's to open, and to lock for ever."""
    config = configuration(tmp_path, "{outbound: {}}")
    with Path(f"/run/netns/{hosts[0].name}").open("rb") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        take_over(config, hosts[0])
        leave_alone(hosts[0])
    copies: list[int] = []

    def outlived(place: namespace.Place) -> None:
        copies.append(os.dup(place.lock))
        raise InterceptError("it did not end")

    with pytest.raises(InterceptError, match="it did not end"):
        namespace.inside(hosts[0].name, outlived)
    with os.fdopen(copies[0]) as lock:
        found = os.fstat(lock.fileno())
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)
        # The copy holds it on, as a program does that outlives us.
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InterceptError, match="at work in network"):
            patch.setattr(namespace, "PATIENCE", 0.1)
            namespace.inside(hosts[0].name, lambda _: None)


@pytest.mark.parametrize("run", ["mount -t tmpfs fm-run /run", "mount -o remount,bind,ro /run"])
def test_a_root_that_cannot_be_written(hosts: Hosts, tmp_path: Path, run: str) -> None:
    """As in a container: locks are kept in /run, or else on the namespace itself."""
    app, _ = hosts
    before = app.state()
    config = configuration(tmp_path, f"{{method: tproxy, {ALL}}}")
    for what in (f"up -c {config}", "down"):
        script = f"mount --bind /run /run; mount -o remount,bind,ro /; {run}; {FASTMESH} intercept {what}"
        done = subprocess.run(
            ["ip", "netns", "exec", app.name, "bash", "-ec", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("inet fastmesh" in app.sh("nft list tables")) == (what != "down")
    assert app.state() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away, as root can")
def test_locks_that_somebody_else_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = tmp_path / "locks"
    monkeypatch.setattr(namespace, "LOCKS", str(locks))
    namespace.inside(None, lambda _: None)
    assert stat.S_IMODE(locks.stat().st_mode) == 0o700
    locks.chmod(0o777)
    with pytest.raises(InterceptError, match="is not root's alone to write"):
        namespace.inside(None, lambda _: None)
    locks.chmod(0o700)
    os.chown(locks, 65534, 65534)
    with pytest.raises(InterceptError, match="is not root's alone to write"):
        namespace.inside(None, lambda _: None)
    monkeypatch.setattr(namespace, "LOCKS", str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(locks)
    with pytest.raises(InterceptError, match="where locks are kept, cannot be used"):
        namespace.inside(None, lambda _: None)


@pytest.mark.skipif(os.geteuid() != 0, reason="the lock of others is the namespace's own file")
def test_a_lock_is_one_also_while_its_file_comes_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = tmp_path / "locks"
    monkeypatch.setattr(namespace, "LOCKS", str(locks))
    inside, most = [0], [0]

    def work(_: namespace.Place) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        os.sched_yield()
        inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(namespace.inside, None, work) for _ in range(400)]:
            done.result()
    assert most == [1]
    assert not list(locks.iterdir()), "nothing is left of them"


def test_programs_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found first by PATH is not run as root: the usual directories come first, no relative ones."""
    for name in ("sh", "fm-only-here"):
        (tmp_path / name).write_text("#!/bin/false\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for path, wanted in ((f".::{tmp_path.name}", None), (str(tmp_path), f"{tmp_path}/fm-only-here")):
        monkeypatch.setenv("PATH", path)
        assert str(programs.find("sh")).startswith(("/usr/bin/", "/bin/"))
        assert programs.find("fm-only-here") == wanted
