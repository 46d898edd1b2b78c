"""Three hosts, real commands: what applications say to each other, what passes between, who gets nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.fixtures import Serving
from kit.intercept import MISSING, both_methods, intercept
from kit.pki import Pki
from kit.sniffer import Sniffer, plaintext, tls_records
from kit.three_hosts import (
    IN,
    LOOPBACK,
    SVC_B,
    A,
    B,
    Hosts,
    at,
    delays,
    execute,
    mesh,
    shown,
    three_hosts,
)
from kit.upstream import Script, ServerConn, answering
from kit.wire import connect, response

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
QUESTION, ANSWER = b"how-many-are-left-of-4711", b"there-are-forty-two-of-them"
# What applications dial, and where the other sidecar is: in both versions of IP.
SERVICES = {
    f"svc-b{family}": {
        "addresses": [at(B[family], 80)],
        "endpoints": [at(B[family], IN)],
        "tls": "mesh",
        "spiffe_id": SVC_B,
    }
    for family in (4, 6)
}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as all_three:
        yield all_three


class Shop:
    """The application in B: answers, and remembers who called from where."""

    def __init__(self, hosts: Hosts, upstream: Serving) -> None:
        self.callers: dict[int, list[str]] = {4: [], 6: []}
        with hosts.b.inside():
            self.servers = {
                family: upstream(self._script(family), address=(LOOPBACK[family], 8080)) for family in (4, 6)
            }

    def _script(self, family: int) -> Script:
        def script(conn: ServerConn) -> None:
            self.callers[family].append(conn.sock.getpeername()[0])
            for request in conn:
                assert request.body == QUESTION
                conn.send(response(ANSWER, headers=[("x-answer", ANSWER.decode())]))

        return script


def curl(hosts: Hosts, family: int) -> str:
    """As it would be typed there."""
    target = f"http://{at(B[family], 80)}/"
    return execute(hosts.a, "curl", "-sS", "--fail", "-d", QUESTION.decode(), target).stdout


@both_methods
def test_curl(hosts: Hosts, pki: Pki, upstream: Serving, tmp_path: Path, method: str) -> None:
    shop = Shop(hosts, upstream)
    with (
        Sniffer(hosts.switch) as sniffer,
        mesh(hosts, pki, tmp_path, method, services=SERVICES, ports=[8080]),
    ):
        for family in (4, 6):

            def call(family: int = family) -> None:
                assert curl(hosts, family) == ANSWER.decode()

            shown(method, f"curl IPv{family}", delays(call))
            streams = sniffer.streams()
            ours = [one for one in streams if {one.source[0], one.to[0]} == {A[family], B[family]}]
            there = [one for one in ours if one.to == (B[family], IN)]
            assert there, "nothing passed between the hosts"
            for one in ours:
                assert IN in (one.source[1], one.to[1]), "around the sidecar"
                assert "application_data" in tls_records(one.data())
            assert len(ours) == 2 * len(there)
        for one in sniffer.streams():
            tls_records(one.data())
        assert not sniffer.others
        words = (QUESTION, ANSWER, b"x-answer", b"POST", b"HTTP/1.1", b"200 OK", b"curl/")
        for frame in sniffer.frames:
            assert not plaintext(frame, *words)
        print(f"{method}: {len(sniffer.frames)} frames in {len(sniffer.streams())} streams, only TLS")
    for family in (4, 6):
        server = shop.servers[family]
        assert len(server.requests) == 4, f"IPv{family}"
        for request in server.requests:
            assert request.line == "POST / HTTP/1.1"
            assert request.get("host") == at(B[family], 80).removesuffix(":80")
            identity = request.get("x-forwarded-client-cert") or ""
            assert "URI=spiffe://mesh.local/svc-a" in identity
            assert (request.get("x-forwarded-for") or "").rpartition(", ")[2].strip("[]") == A[family]
        # With tproxy the application sees who calls by the connection itself, too.
        assert set(shop.callers[family]) == {A[family] if method == "tproxy" else LOOPBACK[family]}
        print(f"{method} IPv{family}: the application saw {shop.callers[family]}, {identity}")


@both_methods
def test_a_host_without_our_certificates_gets_nothing(  # noqa: PLR0917
    hosts: Hosts, pki: Pki, other_pki: Pki, upstream: Serving, tmp_path: Path, method: str
) -> None:
    shop = Shop(hosts, upstream)
    stranger = other_pki.identity("svc-a")
    with mesh(hosts, pki, tmp_path, method, services=SERVICES, ports=[8080]) as made:
        attempts = 0
        for family in (4, 6):
            for port in (8080, IN):
                for scheme, options in (
                    ("http", []),
                    ("https", ["-k"]),
                    ("https", ["-k", "--cert", stranger.certificate, "--key", stranger.key]),
                ):
                    target = f"{scheme}://{at(B[family], port)}/"
                    line = ["curl", "-sS", "-i", "--max-time", "10", *options, target]
                    done = execute(hosts.c, *line, check=False)
                    assert done.returncode not in (0, 28), f"{target} {options}: {done}"
                    assert done.stdout == "", target
                    attempts += 1
        assert made.sum("b", "reasons_total", reason="tls_not_tls") == 4
        assert made.sum("b", "tls_failed_total", side="downstream") >= 8
        for family in (4, 6):
            assert not shop.servers[family].connections
            assert curl(hosts, family) == ANSWER.decode()
        print(f"{method}: {attempts} attempts of C came to nothing")


@both_methods
@pytest.mark.parametrize("which", ["a", "b"])
def test_check_with_a_sidecar(hosts: Hosts, pki: Pki, tmp_path: Path, method: str, which: str) -> None:
    with mesh(hosts, pki, tmp_path, method, services=SERVICES, ports=[8080]) as made:
        sidecar, host = {"a": (made.a, hosts.a), "b": (made.b, hosts.b)}[which]
        for _ in range(2):
            lines = intercept("check", "-c", sidecar.path, "--netns", host.name).stdout.splitlines()
            print("\n".join(lines))
            assert all(line.startswith("ok   ") for line in lines)
            assert len(lines) == 6
            assert sum(", the listener of process " in line for line in lines) == 4


@both_methods
def test_virtual_addresses(hosts: Hosts, pki: Pki, upstream: Serving, tmp_path: Path, method: str) -> None:
    """Two services on one port, told apart by the addresses that their names have; by name, and by curl."""
    names = {"orders": 8081, "stock": 8082}
    with hosts.b.inside():
        for name, port in names.items():
            upstream(answering(name.encode()), address=("127.0.0.1", port))
    services = {
        name: {"endpoints": [at(B[4], port)], "tls": "mesh", "spiffe_id": SVC_B}
        for name, port in names.items()
    }
    resolver = {"listen": "127.0.0.1:15053", "upstream": f"{A[4]}:9"}
    nameserver = tmp_path / "resolv.conf"
    nameserver.write_text(f"nameserver {B[4]}\n")
    with mesh(
        hosts, pki, tmp_path, method, services=services, ports=list(names.values()), dns=resolver
    ) as made:
        found: dict[str, dict[int, str]] = {}
        for name in names:
            # No name server is there: the question is redirected to the sidecar's.
            found[name] = {
                family: execute(hosts.a, "dig", f"@{B[4]}", "+short", f"{name}.mesh", kind).stdout.strip()
                for family, kind in ((4, "A"), (6, "AAAA"))
            }
            assert re.fullmatch(r"240\.77\.\d+\.\d+", found[name][4])
            assert found[name][6].startswith("fd77:6d65:7368:0:")
        print(found)
        assert len({address for each in found.values() for address in each.values()}) == 4
        for name in names:
            for family in (4, 6):
                with hosts.a.inside(), connect((found[name][family], 5432)) as client:
                    client.send(b"GET / HTTP/1.1\r\nhost: whatever\r\n\r\n")
                    assert client.read_response().body == name.encode()
            unaware = (
                f"mount --bind {nameserver} /etc/resolv.conf && exec curl -sS --fail http://{name}.mesh:5432/"
            )
            assert hosts.a.run("sh", "-c", unaware) == name
            assert made.sum("a", "requests_total", service=name, code="2xx") == 3
