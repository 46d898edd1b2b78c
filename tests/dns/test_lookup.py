"""Host names of the configuration, where this sidecar is a resolver itself: it must not ask itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.flags
import dns.rdatatype
import pytest
from kit.dns import Asked, NameServer
from kit.fixtures import Serve
from kit.intercept import APP, MISSING, PEER, Host, intercept, two_hosts
from kit.limits import wait_until
from kit.ports import free_port

from fastmesh.config.lookup import Direct, lookup_of
from fastmesh.config.schema import Config
from fastmesh.config.schema_dns import Dns
from fastmesh.config.values import parse_address

Start = Callable[..., NameServer]


def knows(**names: list[str]) -> Callable[[Asked], list[bytes]]:
    """A script that knows these names and no others."""

    def script(asked: Asked) -> list[bytes]:
        found = names.get(asked.name.removesuffix(".").replace(".", "_").replace("-", "_"))
        if found is None:
            return [asked.reply(rcode=3)]
        kind = dns.rdatatype.to_text(asked.message.question[0].rdtype)
        some = [one for one in found if (":" in one) == (kind == "AAAA")]
        return [asked.reply(*some, kind=kind)]

    return script


@pytest.fixture
def direct(tmp_path: Path) -> Callable[..., Direct]:
    """Look names up with files of the test's own."""

    def make(
        upstream: str | None, *, resolv: str = "", hosts: str = "", listen: str = "127.0.0.1:53"
    ) -> Direct:
        (tmp_path / "resolv.conf").write_text(resolv)
        (tmp_path / "hosts").write_text(hosts)
        settings = Dns(listen=parse_address(listen), upstream=upstream and parse_address(upstream))
        return Direct(settings, 0, hosts=tmp_path / "hosts", resolv_conf=tmp_path / "resolv.conf")

    return make


def test_by_dns(direct: Any, name_server: Start) -> None:
    script = knows(db_example=["192.0.2.7", "192.0.2.6", "2001:db8::6"], web_corp_example=["192.0.2.9"])
    server = name_server(script)
    look_up = direct(server.text, resolv="nameserver 192.0.2.53\nsearch corp.example\noptions ndots:2\n")
    assert sorted(look_up("db.example")) == ["192.0.2.6", "192.0.2.7", "2001:db8::6"]
    assert look_up("web") == ["192.0.2.9"]
    assert "web.corp.example." in server.names()
    with pytest.raises(OSError, match=rf"^{re.escape(server.text)} knows no address of it$"):
        look_up("nowhere.example")


def test_sorted_and_without_those_of_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["fe80::1%eth0", "2001:db8::1", "192.0.2.10", "192.0.2.9"]
    monkeypatch.setattr("fastmesh.config.lookup.by_system", lambda _: found)
    look_up = lookup_of(Config(listeners=[]))
    assert look_up("db") == ["192.0.2.9", "192.0.2.10", "2001:db8::1"]
    assert look_up("2001:DB8::0:2") == ["2001:db8::2"]
    del found[1:]
    with pytest.raises(OSError, match=r"^it has no address$"):
        look_up("db")


def test_one_version_is_enough(direct: Any, name_server: Start) -> None:
    def script(asked: Asked) -> list[bytes]:
        kind = dns.rdatatype.to_text(asked.message.question[0].rdtype)
        return [asked.reply("192.0.2.1", kind="A")] if kind == "A" else [asked.reply(rcode=2)]

    assert direct(name_server(script).text)("db.example") == ["192.0.2.1"]


def test_a_long_answer(direct: Any, name_server: Start) -> None:
    many = [f"192.0.2.{number}" for number in range(1, 100)]

    def script(asked: Asked) -> list[bytes]:
        if asked.transport == "udp":
            return [asked.reply(flags=dns.flags.TC)]
        return knows(db_example=many)(asked)

    server = name_server(script)
    assert sorted(direct(server.text)("db.example")) == sorted(many)
    assert server.names("tcp") == ["db.example."] * 2


def test_the_file_of_hosts_comes_first(direct: Any, name_server: Start) -> None:
    server = name_server()
    look_up = direct(
        server.text, hosts="# 192.0.2.1 db\n10.1.1.1 DB db.mesh # 10.1.1.2 db\n\nfd00::1 db\nwrong db\n"
    )
    assert look_up("db") == ["10.1.1.1", "fd00::1"]
    assert look_up("db.mesh") == ["10.1.1.1"]
    assert look_up("localhost") == look_up("a.localhost.") == ["127.0.0.1", "::1"]
    with pytest.raises(OSError, match=r"^it is one of 'mesh', whose names only this sidecar answers$"):
        look_up("orders.mesh")
    assert server.asked == []


def test_nobody_to_ask(direct: Any) -> None:
    """Ourselves are not asked, and not waited for."""
    for resolv in ("", "nameserver 127.0.0.1\n", "search x\n"):
        with pytest.raises(OSError, match=r"names no name server but this sidecar: say in dns\.upstream"):
            direct(None, resolv=resolv)("db.example")
    silent = f"127.0.0.1:{free_port()}"
    with pytest.raises(OSError, match=f"^{silent} cannot say$"):
        direct(silent)("db.example")


def test_a_name_server_that_says_nothing(
    direct: Any, name_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmesh.config.lookup.LIFETIME_S", 0.2)
    server = name_server(lambda _: [])
    with pytest.raises(OSError, match=f"^no answer from {server.text}$"):
        direct(server.text)("db.example")


def test_each_name_server_has_its_turn(
    direct: Any, name_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long /etc/resolv.conf would have us wait for the first one."""
    monkeypatch.setattr("fastmesh.config.lookup.LIFETIME_S", 0.6)
    silent, well = name_server(lambda _: []), name_server(knows(db_example=["192.0.2.1"]))
    monkeypatch.setattr("fastmesh.config.lookup._PORT", well.port)
    look_up = direct(None, resolv=f"nameserver 127.0.0.2\nnameserver {well.host}\noptions timeout:5\n")
    monkeypatch.setattr("fastmesh.config.lookup._marked", _leading_to({"127.0.0.2": silent.port}))
    assert look_up("db.example") == ["192.0.2.1"]
    assert silent.names()


def _leading_to(ports: dict[str, int]) -> Any:
    """Name servers of which some are at other ports of this host."""
    from fastmesh.config.lookup import _marked as marked

    def lead(servers: list[tuple[str, int]], mark: int) -> Any:
        return marked([("127.0.0.1", ports.get(host, port)) for host, port in servers], mark)

    return lead


@pytest.mark.parametrize("line", ["nameserver router", "nameserver", "nameserver 192.0.2.256", "\x07\xff"])
def test_a_line_that_nobody_understands(direct: Any, line: str) -> None:
    """The other name servers are asked all the same."""
    look_up = direct(None, resolv=f"{line}\nnameserver 127.0.0.9\n")
    with pytest.raises(OSError, match=r"^127\.0\.0\.9:53 cannot say$"):
        look_up("db.example")


@pytest.mark.parametrize("domain", ["a..b", "a" * 64])
def test_domains_that_are_none(direct: Any, domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"resolv\.conf has a domain that cannot be in DNS \(A DNS label is "):
        direct(None, resolv=f"nameserver 127.0.0.9\nsearch {domain}\n")("db.example")
    monkeypatch.setattr("socket.gethostname", lambda: domain)
    with pytest.raises(OSError, match=r"^this host is called 'a.*', which cannot be in DNS \(A DNS "):
        direct("127.0.0.9:53")("db.example")


# where everybody's port 53 leads to the sidecar


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.parametrize("method", ["redirect", "tproxy"])
def test_everybody_is_taken_over(serve: Serve, tmp_path: Path, method: str) -> None:
    """A start with rules in force: the sidecar's own questions reach the name server, though a service has
    the very name that is asked for. Everybody else's reach the sidecar."""
    with two_hosts() as (app, peer):
        server = _name_server(peer, knows(db_example=["10.77.0.2"]))
        config = {
            "admin": "127.0.0.1:15000",
            "intercept": {"method": method, "outbound": {}},
            "dns": {"listen": "127.0.0.1:15053", "upstream": f"{PEER[0]}:53"},
            "listeners": [
                {"name": "out", "role": "outbound", "bind": "127.0.0.1:15001", "transparent": True}
            ],
            "services": {"db.example": {"endpoints": ["db.example:9000"]}},
        }
        try:
            _check(app, serve, config, tmp_path, server)
        finally:
            server.close()


def _check(app: Host, serve: Serve, config: dict[str, Any], tmp_path: Path, server: NameServer) -> None:
    import yaml

    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(config))
    intercept("up", "-c", path, "--netns", app.name)
    proxy = app.inside(lambda: serve(config))
    wait_until(lambda: "DNS for 1 service is answered" in proxy.stderr(), "the resolver")
    assert server.names() == ["db.example."] * 2
    assert {one.source[0] for one in server.asked} == {APP[0]}
    asked = app.sh("dig +short +time=5 @192.0.2.99 db.example").split()
    assert len(asked) == 1
    assert asked[0].startswith("240.77.")
    assert server.names() == ["db.example."] * 2
    # A reload, while our own resolver answers.
    services = {**config["services"], "other": {"endpoints": ["db.example:9001"]}}
    app.inside(lambda: proxy.reload(services=services))
    assert server.names() == ["db.example."] * 4


def _name_server(host: Host, script: Any) -> NameServer:
    """On port 53 of the other host."""
    made: list[NameServer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit.dns.free_port", lambda: 53)
        made.append(host.inside(lambda: NameServer(script, PEER[0])))
    return made[0]
