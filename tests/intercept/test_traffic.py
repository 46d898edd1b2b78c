"""Real connections between real network stacks: which ones arrive at the proxy, and with what."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kit.intercept import (
    APP,
    IN,
    LOOPBACK,
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
    take_over,
    talk,
)
from kit.limits import DEADLINE

from fastmesh.host.intercept import Plan, apply
from fastmesh.host.intercept.plan import make_plan

MARK = 0x0FA5


class Scene:
    """Two hosts, rules in force on the first one, a proxy there that listens for both directions."""

    def __init__(
        self, hosts: Hosts, closing: contextlib.ExitStack, config: Path, *, method: str, family: int
    ) -> None:
        self.app, self.peer = hosts
        self.closing, self.method, self.family = closing, method, family
        self.config = config
        transparent = method == "tproxy"
        any_address = ("0.0.0.0", "::")[family]
        self.out = closing.enter_context(self.app.listen(LOOPBACK[family], OUT, transparent=transparent))
        self.inward = closing.enter_context(self.app.listen(any_address, IN, transparent=transparent))
        take_over(config, self.app)

    def dial(self, host: Host, address: str, port: int, **how: object) -> socket.socket:
        return self.closing.enter_context(host.dial(address, port, **how))  # type: ignore[arg-type]

    def listen(self, host: Host, address: str, port: int) -> socket.socket:
        return self.closing.enter_context(host.listen(address, port))

    def accepted(self, listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        sock, peer = accepted(listener)
        return self.closing.enter_context(sock), peer

    def taken(self, port: int = 80, **how: object) -> socket.socket:
        """A connection of the application to the peer arrives at the proxy, from end to end."""
        client = self.dial(self.app, PEER[self.family], port, **how)
        server, source = self.accepted(self.out)
        assert destination(server, self.method) == (PEER[self.family], port)
        assert source == client.getsockname()[:2]
        talk(client, server)
        return client

    def direct(self, port: int = 80, address: str | None = None, **how: object) -> None:
        """A connection of the application to the peer arrives there."""
        listener = self.listen(self.peer, PEER[self.family] if address is None else address, port)
        client = self.dial(self.app, PEER[self.family] if address is None else address, port, **how)
        server, source = self.accepted(listener)
        assert source == client.getsockname()[:2]
        talk(client, server)
        listener.close()


@pytest.fixture
def scene(
    hosts: Hosts, closing: contextlib.ExitStack, tmp_path: Path, request: pytest.FixtureRequest
) -> Scene:
    method, family, more = request.param
    config = configuration(tmp_path, f"{{method: {method}, {more}}}")
    return Scene(hosts, closing, config, method=method, family=family)


def scenes(more: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "scene",
        [(method, family, more) for method in ("redirect", "tproxy") for family in (0, 1)],
        indirect=True,
        ids=lambda value: f"{value[0]}-ipv{'46'[value[1]]}",
    )


@scenes("outbound: {}")
def test_outgoing(scene: Scene) -> None:
    scene.taken(80)
    scene.taken(65535)


@scenes("outbound: {}")
def test_a_megabyte_each_way(scene: Scene) -> None:
    client = scene.dial(scene.app, PEER[scene.family], 80)
    server, _ = scene.accepted(scene.out)
    data = bytes(range(256)) * 4096
    for sender, receiver in ((client, server), (server, client)):
        sender.setblocking(False)
        sent, got = 0, bytearray()
        while len(got) < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += sender.send(data[sent : sent + 65536])
            receiver.settimeout(15)
            got += receiver.recv(65536)
        sender.settimeout(15)
        assert got == data


@scenes("outbound: {}")
def test_own_traffic_is_not_taken(scene: Scene) -> None:
    scene.direct(mark=MARK)
    scene.taken(mark=7)


@scenes("outbound: {}, mark: 0x77, exempt_uids: [4711, 4712]")
def test_other_mark_and_users(scene: Scene) -> None:
    scene.direct(mark=0x77)
    scene.direct(uid=4712)
    scene.taken(mark=MARK)
    scene.taken(uid=4713)


@scenes(
    "outbound: {exclude_ports: [22, 25], exclude_uids: [4711], exclude_cidrs: [10.77.9.0/24, 'fd77:9::/32']}"
)
def test_exclusions(scene: Scene) -> None:
    other = ("10.77.9.2", "fd77:9::2")[scene.family]
    scene.peer.sh(
        f"ip addr add {other}/{(32, 128)[scene.family]} dev lo" + (" nodad" if scene.family else "")
    )
    scene.direct(25)
    scene.direct(uid=4711)
    scene.direct(address=other)
    scene.taken(80)
    scene.taken(23, uid=4712)


@scenes("outbound: {ports: [80, 443]}")
def test_these_ports_only(scene: Scene) -> None:
    scene.taken(443)
    scene.direct(444)


@scenes("outbound: {exclude_interfaces: ['et*']}")
def test_interfaces(scene: Scene) -> None:
    scene.direct()


@scenes("outbound: {}, inbound: {ports: [8080]}")
def test_loopback_is_not_taken(scene: Scene) -> None:
    """An application that calls itself, by whatever name, and the proxy that calls the application."""
    listener = scene.listen(scene.app, ("0.0.0.0", "::")[scene.family], 8080)
    for address in (
        LOOPBACK[scene.family],
        ("127.9.9.9", "::1")[scene.family],
        ("0.0.0.0", "::")[scene.family],
    ):
        for mark in (0, MARK):
            client = scene.dial(scene.app, address, 8080, mark=mark)
            talk(client, scene.accepted(listener)[0])


@scenes("outbound: {}")
def test_groups_are_not_taken(scene: Scene) -> None:
    """The kernel itself says that there is no such connection."""
    scene.app.sh("ip -6 route add multicast ff02::/16 dev eth0 table local")
    for address in (("224.0.0.1", "255.255.255.255", "10.77.0.255"), ("ff02::1%eth0", "ff02::1:2%eth0"))[
        scene.family
    ]:
        with pytest.raises(OSError, match=r"unreachable|denied|not available|Invalid"):
            scene.dial(scene.app, address, 80)
    assert "0 outgoing" in intercept("show", "--netns", scene.app.name).stdout


@both_methods
def test_addresses_of_a_link(
    hosts: Hosts, closing: contextlib.ExitStack, tmp_path: Path, method: str
) -> None:
    """Which link it is, the proxy would not know. What comes in from one must not go around it."""
    config = configuration(tmp_path, f"{{method: {method}, outbound: {{}}, inbound: {{ports: [8080]}}}}")
    scene = Scene(hosts, closing, config, method=method, family=1)
    for host, address in ((scene.app, "fe80::a"), (scene.peer, "fe80::b")):
        host.sh(f"ip addr add {address}/64 dev eth0 nodad")
    listener = scene.listen(scene.peer, "::", 80)
    client = scene.dial(scene.app, "fe80::b%eth0", 80)
    server, source = scene.accepted(listener)
    assert source[0].partition("%")[0] == "fe80::a"
    talk(client, server)
    client = scene.dial(scene.peer, "fe80::a%eth0", 8080)
    server, source = scene.accepted(scene.inward)
    assert source[0].partition("%")[0] == "fe80::b"
    talk(client, server)


@both_methods
def test_addresses_of_a_link_in_ipv4(
    hosts: Hosts, closing: contextlib.ExitStack, tmp_path: Path, method: str
) -> None:
    """They have no scope, and are taken unless they are excluded."""
    config = configuration(tmp_path, f"{{method: {method}, outbound: {{}}}}")
    scene = Scene(hosts, closing, config, method=method, family=0)
    scene.dial(scene.app, "169.254.7.7", 80)
    server, _ = scene.accepted(scene.out)
    assert destination(server, method) == ("169.254.7.7", 80)
    configuration(tmp_path, f"{{method: {method}, outbound: {{exclude_cidrs: [169.254.0.0/16]}}}}")
    take_over(config, scene.app)
    scene.peer.sh("ip addr add 169.254.7.7/32 dev lo")
    scene.direct(address="169.254.7.7")


@scenes("outbound: {}, inbound: {ports: [8080]}")
def test_own_address(scene: Scene) -> None:
    """What an application says to its own host by another address than loopback's is for the proxy to decide;
    what the proxy passes on from there is not taken again."""
    listener = scene.listen(scene.app, APP[scene.family], 8080)
    scene.dial(scene.app, APP[scene.family], 8080)
    server, _ = scene.accepted(scene.out)
    assert destination(server, scene.method) == (APP[scene.family], 8080)
    client = scene.dial(scene.app, APP[scene.family], 8080, mark=MARK)
    talk(client, scene.accepted(listener)[0])


@scenes("outbound: {}")
def test_without_the_proxy_it_is_refused(scene: Scene) -> None:
    listener = scene.listen(scene.peer, PEER[scene.family], 80)
    scene.out.close()
    with pytest.raises(ConnectionRefusedError):
        scene.dial(scene.app, PEER[scene.family], 80)
    listener.close()


@scenes("inbound: {ports: [8080, 8081]}")
def test_incoming(scene: Scene) -> None:
    for port in (8080, 8081):
        client = scene.dial(scene.peer, APP[scene.family], port)
        server, source = scene.accepted(scene.inward)
        assert destination(server, scene.method) == (APP[scene.family], port)
        assert source == client.getsockname()[:2]
        talk(client, server)
    listener = scene.listen(scene.app, APP[scene.family], 8082)
    client = scene.dial(scene.peer, APP[scene.family], 8082)
    talk(client, scene.accepted(listener)[0])


@scenes("inbound: {ports: [8080]}")
def test_outgoing_is_left_alone(scene: Scene) -> None:
    scene.direct(8080)


@scenes("inbound: {ports: [8080], exclude_cidrs: [10.77.0.2, 'fd77::2/128']}")
def test_incoming_from_excluded_addresses(scene: Scene) -> None:
    listener = scene.listen(scene.app, APP[scene.family], 8080)
    client = scene.dial(scene.peer, APP[scene.family], 8080)
    talk(client, scene.accepted(listener)[0])


@scenes("inbound: {ports: [8080], exclude_interfaces: [eth0]}")
def test_incoming_through_excluded_interfaces(scene: Scene) -> None:
    listener = scene.listen(scene.app, APP[scene.family], 8080)
    client = scene.dial(scene.peer, APP[scene.family], 8080)
    talk(client, scene.accepted(listener)[0])


@scenes("inbound: {ports: [8080]}")
def test_what_passes_through_is_not_taken(scene: Scene) -> None:
    """The host is a router for somebody else's port 8080."""
    third = Host(f"{scene.app.name}-t")
    scene.closing.callback(third.delete)
    ours, theirs = (("10.78.0.1", "10.78.0.2"), ("fd78::1", "fd78::2"))[scene.family]
    bits, nodad = ((24, ""), (64, " nodad"))[scene.family]
    scene.app.sh(f"ip link add eth1 type veth peer name eth0 netns {third.name}")
    scene.app.sh(f"ip addr add {ours}/{bits} dev eth1{nodad}")
    scene.app.sh("ip link set eth1 up")
    third.sh(f"ip addr add {theirs}/{bits} dev eth0{nodad}")
    third.sh("ip link set eth0 up")
    option = ("-4", "-6")[scene.family]
    third.sh(f"ip {option} route add default via {ours}")
    scene.peer.sh(
        f"ip {option} route add {ours}/{bits} via {APP[scene.family]}".replace(f"{ours}/", f"{ours[:-1]}0/")
    )
    key = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")[scene.family]
    scene.app.sh(f"sysctl -qw {key}=1")
    listener = scene.listen(third, theirs, 8080)
    client = scene.dial(scene.peer, theirs, 8080)
    talk(client, scene.accepted(listener)[0])


@scenes("outbound: {}, inbound: {ports: [8080]}")
def test_connections_from_before_go_on(scene: Scene) -> None:
    leave_alone(scene.app)
    there = scene.listen(scene.peer, PEER[scene.family], 80)
    here = scene.listen(scene.app, APP[scene.family], 8080)
    pairs = []
    for host, address, port, listener in (
        (scene.app, PEER[scene.family], 80, there),
        (scene.peer, APP[scene.family], 8080, here),
    ):
        client = scene.dial(host, address, port)
        pairs.append((client, scene.accepted(listener)[0]))
    take_over(scene.config, scene.app)
    for client, server in pairs:
        talk(client, server)
    scene.taken()


@scenes("outbound: {}, inbound: {ports: [8080]}")
def test_connections_outlive_another_up(scene: Scene) -> None:
    client = scene.dial(scene.app, PEER[scene.family], 80)
    server, _ = scene.accepted(scene.out)
    text = scene.config.read_text()
    scene.config.write_text(text.replace("outbound: {}", "outbound: {exclude_ports: [22]}"))
    take_over(scene.config, scene.app)
    talk(client, server)
    scene.direct(22)


@both_families
def test_the_application_sees_its_caller(
    hosts: Hosts, closing: contextlib.ExitStack, tmp_path: Path, family: int
) -> None:
    """tproxy: the proxy calls the application on loopback with the address of who called."""
    config = configuration(tmp_path, "{method: tproxy, outbound: {}, inbound: {ports: [8080]}}")
    scene = Scene(hosts, closing, config, method="tproxy", family=family)
    listener = scene.listen(scene.app, LOOPBACK[family], 8080)
    client = scene.dial(scene.peer, APP[family], 8080)
    server, source = scene.accepted(scene.inward)
    onward = scene.dial(scene.app, LOOPBACK[family], 8080, source=source[0], mark=MARK)
    application, seen = scene.accepted(listener)
    assert seen[0] == PEER[family]
    talk(onward, application)
    talk(client, server)


@scenes("outbound: {}")
def test_names_go_to_the_resolver(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions by UDP and by TCP, to a name server elsewhere or on loopback; the resolver's own go on."""
    resolver = (LOOPBACK[scene.family], 15053)
    text = ("127.0.0.1:15053", "[::1]:15053")[scene.family]
    key = ("names4", "names6")[scene.family]

    def plan(*given: Any) -> Plan:
        return msgspec.structs.replace(make_plan(*given), **{key: text})

    monkeypatch.setattr(apply, "make_plan", plan)
    take_over(scene.config, scene.app)
    answering, elsewhere = (
        scene.closing.enter_context(host.inside(lambda at=address: udp(at)))
        for host, address in ((scene.app, resolver), (scene.peer, (PEER[scene.family], 53)))
    )
    for server, mark, target in (
        (answering, 0, PEER[scene.family]),
        (answering, 0, LOOPBACK[scene.family]),
        (elsewhere, MARK, PEER[scene.family]),
    ):
        with scene.app.inside(lambda to=(target, 53), mark=mark: udp(None, to, mark)) as asking:
            asking.send(b"question")
            question, asker = server.recvfrom(100)
            assert question == b"question"
            server.sendto(b"answer", asker)
            assert asking.recv(100) == b"answer"
    listener = scene.listen(scene.app, *resolver)
    client = scene.dial(scene.app, PEER[scene.family], 53)
    talk(client, scene.accepted(listener)[0])
    scene.taken(80)


def udp(own: tuple[str, int] | None, peer: tuple[str, int] | None = None, mark: int = 0) -> socket.socket:
    """A socket with an address of its own, or one to a peer."""
    host = (own or peer or ("", 0))[0]
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(DEADLINE)
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if own is not None:
        sock.bind(own)
    if peer is not None:
        sock.connect(peer)
    return sock


@scenes("outbound: {}")
def test_one_user(scene: Scene) -> None:
    leave_alone(scene.app)
    take_over(scene.config, scene.app, uid=4711)
    scene.taken(uid=4711)
    scene.direct()
    scene.direct(uid=4712)
    leave_alone(scene.app, uid=4711)
    scene.direct(uid=4711)


@both_methods
def test_two_selections_side_by_side(
    hosts: Hosts, closing: contextlib.ExitStack, tmp_path: Path, method: str
) -> None:
    """One user's sidecar, another's, and one for everybody else, in the same namespace."""
    app, _ = hosts
    listeners = {}
    for name, port, uid in (("b", 15021, None), ("c", 15031, 4711), ("d", 15041, 4712)):
        listeners[name] = closing.enter_context(beside(tmp_path, app, name, port, method=method, uid=uid))
    for uid, name in ((4711, "c"), (4712, "d"), (0, "b"), (4713, "b")):
        client = closing.enter_context(app.dial(PEER[0], 80, uid=uid))
        server, source = accepted(listeners[name])
        with server:
            assert source == client.getsockname()
            assert destination(server, method) == (PEER[0], 80)
            talk(client, server)
    shown = intercept("show", "--netns", app.name).stdout
    assert shown.count("is taken over for svc-") == 3
    leave_alone(app, uid=4711)
    closing.enter_context(app.dial(PEER[0], 80, uid=4711))
    server, _ = accepted(listeners["b"])
    server.close()


@both_methods
def test_methods_side_by_side(
    hosts: Hosts, closing: contextlib.ExitStack, tmp_path: Path, method: str
) -> None:
    """The more precise selection has its connections, whatever the methods."""
    app, _ = hosts
    other = {"redirect": "tproxy", "tproxy": "redirect"}[method]
    listeners = {}
    for name, port, how, uid in (("b", 15021, other, None), ("c", 15031, method, 4711)):
        listeners[name] = closing.enter_context(beside(tmp_path, app, name, port, method=how, uid=uid))
    for uid, name, how in ((4711, "c", method), (0, "b", other)):
        client = closing.enter_context(app.dial(PEER[0], 80, uid=uid))
        server, _ = accepted(listeners[name])
        with server:
            assert destination(server, how) == (PEER[0], 80)
            talk(client, server)
