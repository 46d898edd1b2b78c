"""A name server that follows a script, and what it takes to ask one."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rdatatype
import dns.rrset

from kit.limits import DEADLINE
from kit.ports import free_port, release_port

# What is sent back to a query, as whole messages; by UDP there may be several.
Script = Callable[["Asked"], Iterable[bytes]]


class Asked:
    """A query that has come to the name server."""

    def __init__(self, wire: bytes, transport: str, source: tuple[Any, ...]) -> None:
        self.wire = wire
        self.transport = transport
        self.source = source
        self.message = dns.message.from_wire(wire, keyring=False)

    @property
    def name(self) -> str:
        return self.message.question[0].name.to_text()

    def reply(self, *texts: str, kind: str = "A", flags: int = 0, rcode: int = 0) -> bytes:
        """A response with these records."""
        response = dns.message.make_response(self.message, recursion_available=True)
        response.flags |= flags
        response.set_rcode(dns.rcode.Rcode(rcode))
        if texts:
            name = self.message.question[0].name
            response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, *texts))
        return response.to_wire(max_size=65535)


def answer(asked: Asked) -> Iterable[bytes]:
    """An address for every name."""
    kind = dns.rdatatype.to_text(asked.message.question[0].rdtype)
    yield asked.reply(*{"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}.get(kind, []), kind=kind)


def silence(asked: Asked) -> Iterable[bytes]:
    return ()


class NameServer:
    """By UDP and by TCP on one port of `host`; `asked` has what came."""

    def __init__(self, script: Script = answer, host: str = "127.0.0.1") -> None:
        self.script = script
        self.host = host
        self.port = free_port()
        self.asked: list[Asked] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((host, self.port))
        self._tcp = socket.create_server((host, self.port), family=family, backlog=64)
        self._wake, self._end = socket.socketpair()
        self._open: list[socket.socket] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """As a configuration names it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def names(self, transport: str | None = None) -> list[str]:
        return [one.name for one in self.asked if transport in (None, one.transport)]

    def _run(self) -> None:
        try:
            while True:
                ready, _, _ = select.select([self._end, self._udp, self._tcp, *self._open], [], [])
                if self._end in ready:
                    return
                for sock in ready:
                    if sock is self._udp:
                        wire, source = sock.recvfrom(65535)
                        for response in self._take(Asked(wire, "udp", source)):
                            sock.sendto(response, source)
                    elif sock is self._tcp:
                        self._open.append(sock.accept()[0])
                    else:
                        self._converse(sock)
        except BaseException as error:
            self._errors.append(error)

    def _converse(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE)
        with contextlib.suppress(OSError):
            head = sock.recv(2, socket.MSG_WAITALL)
            if len(head) == 2:
                wire = sock.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
                for response in self._take(Asked(wire, "tcp", sock.getpeername())):
                    sock.sendall(struct.pack("!H", len(response)) + response)
                return
        self._open.remove(sock)
        sock.close()

    def _take(self, asked: Asked) -> Iterable[bytes]:
        self.asked.append(asked)
        return self.script(asked)

    def close(self) -> None:
        self._wake.close()
        self._thread.join(DEADLINE)
        for sock in (self._end, self._udp, self._tcp, *self._open):
            sock.close()
        release_port(self.port)
        assert not self._errors, self._errors


def free_dns_port() -> int:
    """A port that is free by UDP, too."""
    while True:
        port = free_port()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def ask(
    port: int,
    name: str,
    kind: str = "A",
    *,
    tcp: bool = False,
    host: str = "127.0.0.1",
    timeout: float = DEADLINE,
    **options: Any,
) -> dns.message.Message:
    """The response to one question. Raises `dns.exception.Timeout` when there is none."""
    query = dns.message.make_query(name, kind, **options)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, host, timeout=timeout, port=port)


def found(response: dns.message.Message) -> list[str]:
    """The records of the answer, as text."""
    return sorted(record.to_text() for rrset in response.answer for record in rrset)
