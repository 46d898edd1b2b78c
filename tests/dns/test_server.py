"""The server over real sockets, in a thread of the test: both transports, bounds, what clients may do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from kit.dns import Asked, NameServer, answer, ask, found, free_dns_port, silence
from kit.limits import DEADLINE, wait_until

from fastmesh.agent.dns import server as module
from fastmesh.agent.dns.answer import MAX_UDP
from fastmesh.agent.dns.forward import Forwarder, Server
from fastmesh.agent.dns.names import Names
from fastmesh.agent.dns.server import DnsServer
from fastmesh.agent.dns.words import Counts

Start = Callable[..., NameServer]
DNS = {"ttl_s": 5, "domain": "mesh", "networks": ["240.77.0.0/16", "fd77:6d65:7368::/64"]}


def names_of(**answers: list[str]) -> Names:
    rows = [{"name": name, "virtual": ["240.77.0.1", "fd77:6d65:7368::1"]} for name in answers]
    return Names({**DNS, "answers": answers}, rows)


class Serving:
    """A server in a thread that has a loop of its own."""

    def __init__(self, *upstreams: NameServer, host: str = "127.0.0.1", **options: Any) -> None:
        self.port = free_dns_port()
        self.host = host
        self.counts = Counts()
        servers = [Server(one.host, one.port) for one in upstreams]
        options = {"tries": (0.2, 0.2), "total": 2.0} | options
        self.forwarder = Forwarder(lambda: servers, self.counts, **options)
        self.said: list[str] = []
        names = names_of(web=["240.77.0.1"], many=[f"10.0.0.{number}" for number in range(1, 251)])
        where = Server(host, self.port)
        self.server = DnsServer(where, names, self.forwarder, self.counts, self.said.append)
        self.loop = asyncio.new_event_loop()
        self.errors: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> Serving:
        self._thread.start()
        self.do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.server.stop())
        left = self.do(self._left())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        self.loop.close()
        assert not self.errors, self.errors
        assert not left, left
        assert self.counts.in_flight == 0

    async def _start(self) -> None:
        self.server.start()

    async def _left(self) -> list[Any]:
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE)

    def ask(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        return ask(self.port, name, kind, host=self.host, **options)

    def counted(self) -> dict[tuple[str, str], int]:
        return {key: count for key, count in self.counts.queries.items() if count}

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), DEADLINE)

    def datagrams(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(DEADLINE)
        sock.connect((self.host, self.port))
        return sock


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_transports_and_families(name_server: Start, host: str, tcp: bool) -> None:
    transport = "tcp" if tcp else "udp"
    with Serving(name_server(), host=host) as serving:
        assert found(serving.ask("WEB.mesh", tcp=tcp)) == ["240.77.0.1"]
        assert found(serving.ask("example.com", tcp=tcp)) == ["192.0.2.1"]
        assert serving.ask("nobody.mesh", tcp=tcp).rcode() == dns.rcode.NXDOMAIN
        assert serving.counted() == {
            (transport, "answered"): 1,
            (transport, "forwarded"): 1,
            (transport, "unknown"): 1,
        }


def test_names_of_the_mesh_are_never_asked_of_others(name_server: Start) -> None:
    upstream = name_server()
    with Serving(upstream) as serving:
        for name in ("web", "web.mesh", "nobody.mesh", "mesh", "a.web.mesh", "9.9.77.240.in-addr.arpa"):
            for kind in ("A", "TXT", "PTR", "ANY", "AXFR"):
                serving.ask(name, kind)
        serving.ask("example.com")
    assert upstream.names() == ["example.com."]


def test_the_case_comes_back_as_it_was(name_server: Start) -> None:
    with Serving(name_server()) as serving:
        for name in ("wEb.MeSh", "eXample.COM"):
            response = serving.ask(name)
            labels = response.question[0].name.labels
            assert b".".join(labels).decode() == f"{name}."
            assert response.answer[0].name.labels == labels


def large(asked: Asked) -> Iterable[bytes]:
    if asked.transport == "udp":
        yield asked.reply(flags=dns.flags.TC)
    else:
        yield asked.reply(*(f"10.0.0.{number}" for number in range(1, 201)))


def test_a_large_answer(name_server: Start) -> None:
    """Asked for by TCP, cut for a client by UDP, whole for one by TCP."""
    upstream = name_server(large)
    with Serving(upstream) as serving:
        cut = serving.ask("large.example", use_edns=0, payload=4096)
        assert cut.flags & dns.flags.TC
        assert not cut.answer
        assert len(found(serving.ask("large.example", tcp=True))) == 200


def test_one_that_fits_the_client_is_whole(name_server: Start) -> None:
    def medium(asked: Asked) -> Iterable[bytes]:
        yield asked.reply(*(f"10.0.0.{number}" for number in range(1, 61)))

    with Serving(name_server(medium)) as serving:
        assert len(found(serving.ask("medium.example", use_edns=0, payload=MAX_UDP))) == 60
        cut = serving.ask("medium.example")
        assert cut.flags & dns.flags.TC


def test_nobody_answers(name_server: Start) -> None:
    with Serving(name_server(silence)) as serving:
        for tcp in (False, True):
            assert serving.ask("example.com", tcp=tcp).rcode() == dns.rcode.SERVFAIL
        assert serving.counted() == {("udp", "failed"): 1, ("tcp", "failed"): 1}


def test_mesh_names_are_answered_while_others_wait(name_server: Start) -> None:
    with Serving(name_server(silence), tries=(30.0,), total=30.0) as serving, serving.datagrams() as sock:
        sock.send(dns.message.make_query("example.com", "A").to_wire())
        assert found(serving.ask("web")) == ["240.77.0.1"]
        wait_until(lambda: serving.counts.in_flight == 1, "the query that waits")
    # And the end of the server is the end of what waits.


# bounds


def test_more_queries_than_may_wait(name_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IN_FLIGHT", 5)
    upstream = name_server(silence)
    with Serving(upstream, tries=(30.0,), total=30.0) as serving, serving.datagrams() as sock:
        for number in range(20):
            sock.send(dns.message.make_query(f"{number}.example", "A").to_wire())
        refused = [dns.message.from_wire(sock.recv(4096)) for _ in range(15)]
        assert {one.rcode() for one in refused} == {dns.rcode.SERVFAIL}
        assert serving.counts.in_flight == 5
        assert serving.counted() == {("udp", "busy"): 15}
        # By TCP as well, and the mesh's own names as ever.
        assert serving.ask("more.example", tcp=True).rcode() == dns.rcode.SERVFAIL
        assert found(serving.ask("web")) == ["240.77.0.1"]
        wait_until(lambda: len(upstream.asked) == 5, "five to have gone out")


def test_a_flood_of_datagrams(name_server: Start) -> None:
    """Of garbage, responses and questions: what is asked meanwhile is answered, and nothing is left over."""
    query = dns.message.make_query("example.com", "A").to_wire()
    flood = [os.urandom(40), query[:2] + b"\x80" + query[3:], query, query[:20], b""]
    with Serving(name_server()) as serving, serving.datagrams() as sock:
        for number in range(3000):
            sock.send(flood[number % len(flood)])
            if number % 500 == 0:
                insist(serving)
        assert serving.counts.in_flight <= module.MAX_IN_FLIGHT
        wait_until(lambda: not serving.counts.in_flight, "the end of the flood")
        insist(serving)


def insist(serving: Serving) -> None:
    """Ask until there is an answer, as resolvers do: what finds the socket's buffer full is dropped."""

    def answered() -> bool:
        with contextlib.suppress(dns.exception.Timeout):
            return found(serving.ask("web", timeout=0.2)) == ["240.77.0.1"]
        return False

    wait_until(answered, "an answer")


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    with Serving() as serving, contextlib.ExitStack() as stack:
        held = [stack.enter_context(serving.connect()) for _ in range(3)]
        wait_until(lambda: serving.server._connections == 3, "three connections")
        with serving.connect() as fourth:
            assert closed(fourth)
        held[0].close()
        wait_until(lambda: serving.server._connections == 2, "a free place")
        assert found(serving.ask("web", tcp=True)) == ["240.77.0.1"]


def closed(sock: socket.socket) -> bool:
    """Whether the other side ends the connection."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.1)
    with Serving() as serving, serving.connect() as silent, serving.connect() as half:
        half.sendall(b"\0\x20half")
        assert closed(silent)
        assert closed(half)


def test_one_that_takes_no_answers_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_S", 0.1)
    query = dns.message.make_query("many", "A").to_wire()
    with Serving() as serving, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE)
        sock.connect((serving.host, serving.port))
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                sock.sendall(struct.pack("!H", len(query)) + query)
        wait_until(lambda: serving.server._connections == 0, "the end of the connection")


def exact(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        assert more, "closed"
        data += more
    return data


def message(sock: socket.socket) -> dns.message.Message:
    (length,) = struct.unpack("!H", exact(sock, 2))
    return dns.message.from_wire(exact(sock, length))


def test_pipelined_queries_are_answered_when_their_answers_are_there(name_server: Start) -> None:
    """RFC 7766, 6.2.1.1: a slow one does not hold up those behind it."""

    def slow(asked: Asked) -> Iterable[bytes]:
        return answer(asked) if asked.name != "slow.example." else ()

    queries = [dns.message.make_query(name, "A") for name in ("slow.example", "fast.example", "web.mesh")]
    with Serving(name_server(slow)) as serving, serving.connect() as sock:
        wires = [query.to_wire() for query in queries]
        sock.sendall(b"".join(struct.pack("!H", len(wire)) + wire for wire in wires))
        got = {response.id: response for response in (message(sock) for _ in queries)}
        assert [got[query.id].rcode() for query in queries] == [dns.rcode.SERVFAIL, 0, 0]
        assert list(got)[-1] == queries[0].id


def test_many_pipelined_queries(name_server: Start) -> None:
    queries = [dns.message.make_query(f"{number}.example", "A", id=number) for number in range(100)]
    with Serving(name_server()) as serving, serving.connect() as sock:
        for query in queries:
            wire = query.to_wire()
            sock.sendall(struct.pack("!H", len(wire)) + wire)
        assert sorted(message(sock).id for _ in queries) == list(range(100))


def test_a_client_that_has_said_all_is_still_answered(name_server: Start) -> None:
    wire = dns.message.make_query("example.com", "A").to_wire()
    with Serving(name_server()) as serving, serving.connect() as sock:
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        sock.shutdown(socket.SHUT_WR)
        assert found(message(sock)) == ["192.0.2.1"]
        assert closed(sock)


def test_a_byte_at_a_time(name_server: Start) -> None:
    wire = dns.message.make_query("web", "A").to_wire()
    with Serving() as serving, serving.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in struct.pack("!H", len(wire)) + wire:
            sock.sendall(bytes([byte]))
        assert found(message(sock)) == ["240.77.0.1"]


@pytest.mark.parametrize("data", [b"\0\0", b"\0\x05hello", b"\0\x0c" + b"\0\0\x80" + b"\0" * 9])
def test_what_gets_no_answer_ends_a_connection(data: bytes) -> None:
    with Serving() as serving, serving.connect() as sock:
        sock.sendall(data)
        assert closed(sock)


def test_a_query_that_is_too_long_ends_a_connection_before_it_is_there() -> None:
    with Serving() as serving, serving.connect() as sock:
        sock.sendall(struct.pack("!H", 4097))
        assert closed(sock)
        assert serving.counted() == {("tcp", "malformed"): 1}


def test_a_client_that_has_gone(name_server: Start) -> None:
    wire = dns.message.make_query("example.com", "A").to_wire()
    with Serving(name_server(silence)) as serving:
        with serving.connect() as sock, serving.datagrams() as other:
            sock.sendall(struct.pack("!H", len(wire)) + wire)
            other.send(wire)
            wait_until(lambda: serving.counts.in_flight == 2, "both to wait")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: serving.counts.in_flight == 0, "both to end")


def test_a_query_of_its_own_that_comes_back_goes_no_further() -> None:
    """Something leads our question to the name server back to us, as a redirection of port 53 would."""
    with Serving() as serving:
        serving.forwarder._servers = lambda: [Server(serving.host, serving.port)]
        assert serving.ask("example.com").rcode() == dns.rcode.SERVFAIL
        assert serving.counted() == {("udp", "failed"): 1, ("udp", "loop"): 2}
        (line,) = serving.said
        assert line.startswith("warning: what DNS asks name servers comes back to it")


def test_out_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection can be taken: it is tried again a little later, not in a busy loop."""
    monkeypatch.setattr(module, "PAUSE_S", 0.05)
    with Serving() as serving:
        listening = serving.server._tcp
        assert listening is not None
        calls: list[float] = []

        class Full:
            def accept(self) -> Any:
                calls.append(serving.loop.time())
                if len(calls) < 4:
                    raise OSError(errno.EMFILE, "Too many open files")
                return listening.accept()

            def fileno(self) -> int:
                return listening.fileno()

            def close(self) -> None:
                listening.close()

        async def replace() -> None:
            serving.loop.remove_reader(listening)
            full: Any = Full()
            serving.server._tcp = full
            serving.loop.add_reader(full, serving.server._on_connections, full)

        serving.do(replace())
        assert found(serving.ask("web", tcp=True)) == ["240.77.0.1"]
        assert calls[3] - calls[0] >= 0.14


# addresses that cannot be had


def start_at(host: str, port: int) -> str:
    """Why a server cannot start there."""
    names = names_of()

    async def start() -> None:
        server = DnsServer(Server(host, port), names, Forwarder(list, Counts()), Counts(), print)
        try:
            server.start()
        except OSError:
            raise
        await server.stop()

    with pytest.raises(OSError) as caught:
        asyncio.run(start())
    return str(caught.value)


@pytest.fixture
def port() -> Iterator[int]:
    yield free_dns_port()


def test_taken_by_udp(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        assert start_at("127.0.0.1", port) == (
            f"cannot listen on 127.0.0.1:{port} by UDP: another socket has this address "
            f"(ss -lunp 'sport = :{port}' names it); stop it or change `dns.listen`"
        )


def test_taken_by_tcp(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        assert f"by TCP: another socket has this address (ss -ltnp 'sport = :{port}'" in start_at(
            "127.0.0.1", port
        )


def test_an_address_of_another_host(port: int) -> None:
    assert "this host has no such address" in start_at("192.0.2.1", port)
    assert start_at("2001:db8::1", port).startswith(f"cannot listen on [2001:db8::1]:{port} by UDP: ")


def test_not_permitted(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    assert "ports below 1024 need root, CAP_NET_BIND_SERVICE, or a lower" in start_at("127.0.0.1", port)
