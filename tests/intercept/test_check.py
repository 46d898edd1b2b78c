"""`fastmesh intercept check`: it proves what works, and finds what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit.intercept import IN, OUT, Host, Hosts, both_methods, configuration, intercept, take_over
from kit.limits import wait_until
from kit.proxy import FASTMESH

from fastmesh.config import load
from fastmesh.host.intercept import Selection
from fastmesh.host.intercept.probe import Finding, check

SETGID, SETUID, SYS_ADMIN = 6, 7, 21
ALL = "outbound: {}, inbound: {ports: [8080]}"
NO_SIDECAR = (
    "the sidecar does not run: a listener of this check took its place, and until `fastmesh serve` runs "
    "connections are refused"
)


def checked(config: Path, host: Host, uid: int | None = None) -> tuple[list[str], list[str]]:
    """What is fine, and what is not."""
    before = host.state()
    found: list[Finding] = check(load(config), Selection(netns=host.name, uid=uid))
    assert host.state() == before
    return [one.text for one in found if one.fine], [one.text for one in found if not one.fine]


@contextmanager
def listening(host: Host, *, transparent: bool = False, families: str = "46") -> Iterator[None]:
    """Somebody listens where the sidecar should."""
    with ExitStack() as stack:
        for family in families:
            out, inside = {"4": ("127.0.0.1", "0.0.0.0"), "6": ("::1", "::")}[family]
            stack.enter_context(host.listen(out, OUT, transparent=transparent))
            stack.enter_context(host.listen(inside, IN, transparent=transparent))
        yield


@both_methods
@pytest.mark.parametrize("uid", [None, 4711])
def test_without_a_sidecar(hosts: Hosts, tmp_path: Path, method: str, uid: int | None) -> None:
    """The check takes its place, and sees where connections were going."""
    config = configuration(tmp_path, f"{{method: {method}, {ALL}}}")
    take_over(config, hosts[0], uid=uid)
    fine, wrong = checked(config, hosts[0], uid)
    assert wrong == [NO_SIDECAR]
    assert fine == [
        f"{'nft' if method == 'redirect' else 'nft, ip'} and the kernel have what {method} needs",
        "rules are in force, as `up` made them",
        f"outgoing IPv4: a connection to 192.0.2.2:80 arrived at 127.0.0.1:{OUT}, with its destination",
        f"incoming IPv4: a connection to 192.0.2.1:8080 arrived at 0.0.0.0:{IN}, with its destination",
        f"outgoing IPv6: a connection to [2001:db8:fa5::2]:80 arrived at [::1]:{OUT}, with its destination",
        f"incoming IPv6: a connection to [2001:db8:fa5::1]:8080 arrived at [::]:{IN}, with its destination",
    ]


@both_methods
def test_with_a_listener(hosts: Hosts, tmp_path: Path, method: str) -> None:
    config = configuration(tmp_path, f"{{method: {method}, {ALL}}}")
    take_over(config, hosts[0])
    with listening(hosts[0], transparent=method == "tproxy"):
        fine, wrong = checked(config, hosts[0])
        assert wrong == []
        assert len(fine) == 6
        assert all(", the listener of process " in text for text in fine[2:])
        assert intercept("check", "-c", config, "--netns", hosts[0].name).stdout.count("ok   ") == 6


def without(*numbers: int, host: Host, config: Path) -> list[str]:
    """The command line of a check without these capabilities (capabilities(7))."""
    drop = f"import ctypes; [ctypes.CDLL(None).prctl(24, n, 0, 0, 0) for n in {numbers}]"
    inner = f"import os, sys; {drop}; os.execv(sys.argv[1], sys.argv[1:])"
    command = ["ip", "netns", "exec", host.name, sys.executable, "-c", inner, str(FASTMESH)]
    return [*command, "intercept", "check", "-c", str(config)]


def unprivileged(config: Path, host: Host, *numbers: int) -> tuple[int, list[str]]:
    """The exit code of such a check, and what it says."""
    before = host.state()
    command = without(*numbers, host=host, config=config)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert host.state() == before
    return done.returncode, done.stdout.splitlines()


@both_methods
def test_without_a_second_host(hosts: Hosts, tmp_path: Path, method: str) -> None:
    """What goes out is proven all the same; what comes in is not, and that is said."""
    config = configuration(tmp_path, f"{{method: {method}, {ALL}}}")
    take_over(config, hosts[0])
    with listening(hosts[0], transparent=method == "tproxy"):
        code, said = unprivileged(config, hosts[0], SYS_ADMIN)
    assert code == 6
    assert [line.split()[0] for line in said] == ["ok", "ok", "ok", "????", "ok", "????"]
    assert said[2].startswith(
        f"ok   outgoing IPv4: a connection to 192.0.2.1:80 arrived at 127.0.0.1:{OUT}, the listener of"
    )
    assert said[3].startswith(
        "???? incoming IPv4 is not proven: a second host cannot be made (operation not permitted); run this "
        f"as root (CAP_SYS_ADMIN). Connections would arrive at 0.0.0.0:{IN}, the listener of process "
    )
    assert said[3].endswith(
        "; 0 were taken since `up`: call port 8080 from elsewhere, and see whether `fastmesh intercept show` "
        "counts one more"
    )
    code, said = unprivileged(config, hosts[0], SYS_ADMIN)
    assert code == 1
    assert said[3] == f"FAIL incoming IPv4: nobody listens at 0.0.0.0:{IN}, so connections are refused"
    assert said[-1] == f"FAIL {NO_SIDECAR}"


def test_without_a_second_host_it_finds_what_is_wrong(hosts: Hosts, tmp_path: Path) -> None:
    config = configuration(tmp_path, "{outbound: {}}")
    take_over(config, hosts[0])
    hosts[0].sh("nft insert rule inet fastmesh outgoing ip daddr 192.0.2.0/24 return")
    with listening(hosts[0]):
        code, said = unprivileged(config, hosts[0], SYS_ADMIN)
    assert code == 1
    assert said[1].startswith("FAIL rules were changed by hand since `up`")
    assert said[2].startswith(
        "FAIL outgoing IPv4: a connection to 192.0.2.1:80 was not taken over (connection refused)"
    )


def test_killed_without_a_second_host(hosts: Hosts, tmp_path: Path) -> None:
    """The kernel takes the addresses back by itself: they would be in the way of every later check."""
    config = configuration(tmp_path, "{outbound: {}}")
    take_over(config, hosts[0])
    hosts[0].sh("nft add chain inet fastmesh stuck { type filter hook input priority 0 ; }")
    hosts[0].sh("nft add rule inet fastmesh stuck iif lo tcp dport 15001 drop")
    process = subprocess.Popen(without(SYS_ADMIN, host=hosts[0], config=config), stdout=subprocess.DEVNULL)

    def addresses() -> list[dict[str, Any]]:
        (lo,) = json.loads(hosts[0].sh("ip -j address show dev lo"))
        return [one for one in lo["addr_info"] if one["local"] in ("192.0.2.1", "2001:db8:fa5::1")]

    try:
        wait_until(lambda: len(addresses()) == 2, "addresses of the check's own")
    finally:
        process.kill()
        process.wait()
    lives = [one["valid_life_time"] for one in addresses()]
    assert len(lives) == 2
    assert max(lives) <= 120


def test_a_user_that_the_check_cannot_become(hosts: Hosts, tmp_path: Path) -> None:
    config = configuration(tmp_path, "{outbound: {exclude_uids: [0]}}")
    take_over(config, hosts[0])
    with listening(hosts[0]):
        code, said = unprivileged(config, hosts[0], SYS_ADMIN, SETUID, SETGID)
    assert code == 6
    assert all(
        line.endswith("cannot be made (operation not permitted), so that is not proven; run this as root")
        for line in said[2:]
    )


def test_a_listener_that_is_not_transparent(hosts: Hosts, tmp_path: Path) -> None:
    config = configuration(tmp_path, f"{{method: tproxy, {ALL}}}")
    take_over(config, hosts[0])
    with listening(hosts[0]):
        _, wrong = checked(config, hosts[0])
    assert len(wrong) == 4
    assert all(
        "was taken over and did not arrive" in text and "must be transparent (IP_TRANSPARENT" in text
        for text in wrong
    )


def test_a_listener_for_ipv4_alone(hosts: Hosts, tmp_path: Path) -> None:
    config = configuration(tmp_path, f"{{{ALL}}}")
    take_over(config, hosts[0])
    with listening(hosts[0], families="4"):
        fine, wrong = checked(config, hosts[0])
    assert len(fine) == 4
    assert [text.rpartition("; ")[2] for text in wrong] == [
        f'give it a transparent listener there (bind: "[{host}]:{port}")'
        for host, port in (("::1", OUT), ("::", IN))
    ]


def test_rules_of_others_come_first(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, f"{{{ALL}}}")
    take_over(config, app)
    app.sh("nft add table inet other")
    app.sh("nft add chain inet other o { type nat hook output priority -150 ; }")
    app.sh("nft add rule inet other o tcp dport 80 redirect to :81")
    _, wrong = checked(config, app)
    assert len(wrong) == 3
    assert all(
        f"IPv{family}" in text and "was not taken over" in text
        for family, text in zip("46", wrong[:2], strict=True)
    )


def test_a_firewall(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, f"{{{ALL}}}")
    take_over(config, app)
    app.sh("nft add table inet other")
    app.sh("nft add chain inet other i { type filter hook input priority 0 ; }")
    app.sh(f"nft add rule inet other i tcp dport {IN} reject with tcp reset")
    _, wrong = checked(config, app)
    assert [text.partition(":")[0] for text in wrong[:-1]] == ["incoming IPv4", "incoming IPv6"]
    assert all(f"look for a firewall that keeps it from port {IN}" in text for text in wrong[:-1])


def test_nothing_is_in_force(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, f"{{{ALL}}}")
    done = intercept("check", "-c", config, "--netns", app.name, check=False)
    assert done.returncode == 1
    assert done.stdout == (
        "ok   nft and the kernel have what redirect needs\n"
        f"FAIL no rules are in force in network namespace {app.name}; run `fastmesh intercept up`\n"
    )
    other = configuration(tmp_path, f"{{{ALL}}}", name="b")
    take_over(other, app)
    _, wrong = checked(config, app)
    assert wrong == [f"the rules in force are for svc-b ({other}), not for {config}"]


def test_changed_by_hand(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    config = configuration(tmp_path, "{outbound: {}}")
    take_over(config, app)
    app.sh("nft insert rule inet fastmesh outgoing ip daddr 192.0.2.0/24 return")
    _, wrong = checked(config, app)
    assert wrong[0].startswith("rules were changed by hand since `up`")
    assert wrong[1].startswith(
        "outgoing IPv4: a connection to 192.0.2.2:80 was not taken over (connection refused)"
    )
    assert len(wrong) == 3


def test_exclusions_are_walked_around(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    exclude = "exclude_cidrs: [192.0.2.0/24, '2001:db8::/32'], exclude_ports: [80, 443], exclude_uids: [0]"
    config = configuration(tmp_path, f"{{outbound: {{{exclude}}}}}")
    take_over(config, app)
    fine, wrong = checked(config, app)
    assert wrong == [NO_SIDECAR]
    assert fine[2:] == [
        f"outgoing IPv4: a connection to 198.51.100.2:8080 arrived at 127.0.0.1:{OUT}, with its destination",
        f"outgoing IPv6: a connection to [3fff:fa5::2]:8080 arrived at [::1]:{OUT}, with its destination",
    ]


def test_without_ipv6(hosts: Hosts, tmp_path: Path) -> None:
    app, _ = hosts
    app.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    config = configuration(tmp_path, f"{{method: tproxy, {ALL}}}")
    before = app.state()
    take_over(config, app)
    fine, wrong = checked(config, app)
    assert (len(fine), wrong) == (4, [NO_SIDECAR])
    intercept("down", "--netns", app.name)
    assert app.state() == before
