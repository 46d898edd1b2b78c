"""Bytes on a socket, read with deadlines: `Conn` for both ends, and the messages it understands.

The reader here is deliberately plain and forgiving: it splits what arrives, the tests judge it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kit.limits import DEADLINE

Address = tuple[str, int] | str  # (host, port), or the path of a Unix socket


@dataclass
class Head:
    """A start line and its fields, in order and as received."""

    line: str
    fields: list[tuple[str, str]]
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        lines = raw.decode("latin-1").split("\r\n")
        assert lines[-2:] == ["", ""], raw
        fields = []
        for line in lines[1:-2]:
            name, colon, value = line.partition(":")
            assert colon, f"not a field line: {line!r} in {raw!r}"
            fields.append((name, value.strip(" \t")))
        return cls(lines[0], fields, raw)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The values of a field joined as RFC 9110 section 5.3 allows, None if it is absent."""
        values = self.all(name)
        return ", ".join(values) if values else None

    def names(self) -> set[str]:
        return {key.lower() for key, _ in self.fields}

    def tokens(self, name: str) -> list[str]:
        return [token.strip().lower() for token in (self.get(name) or "").split(",") if token.strip()]


@dataclass
class Request(Head):
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    chunked: bool = False

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    @property
    def version(self) -> str:
        return self.line.split(" ")[2]


@dataclass
class Response(Head):
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    chunked: bool = False
    interim: list[Head] = field(default_factory=list)

    @property
    def version(self) -> str:
        return self.line.split(" ")[0]

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    @property
    def reason(self) -> str | None:
        """The value of x-fastmesh-reason: set only on answers that the proxy made itself."""
        return self.get("x-fastmesh-reason")


class Closed(AssertionError):
    """The peer closed where more was expected."""


class Conn:
    """One TCP or Unix connection with a read buffer; every wait ends in an AssertionError at the deadline."""

    def __init__(self, sock: socket.socket, index: int = 0) -> None:
        self.sock = sock
        self.index = index
        self.buffer = bytearray()
        self.received = 0
        sock.settimeout(DEADLINE)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Conn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def local_port(self) -> int:
        return int(self.sock.getsockname()[1])

    # writing

    def send(self, *parts: bytes | str) -> None:
        self.sock.sendall(
            b"".join(part.encode("latin-1") if isinstance(part, str) else part for part in parts)
        )

    def shutdown(self) -> None:
        """Half-close: our side is done sending."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    @contextlib.contextmanager
    def sending(self, data: bytes, *, end: bool = False) -> Iterator[None]:
        """Send `data` (`end`: and half-close) while the block reads. What goes wrong with that is raised at
        the end of the block, if the block itself has nothing to raise."""
        failed: list[BaseException] = []

        def send() -> None:
            try:
                self.send(data)
                if end:
                    self.shutdown()
            except BaseException as error:
                failed.append(error)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            yield
        except BaseException:
            # Nobody reads any more: a sender that waits for that has to give up.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            sender.join()
            raise
        sender.join()
        for error in failed:
            raise error

    # reading

    def fill(self, limit: int = 1 << 18) -> bool:
        """Receive once; False at the end of the stream."""
        try:
            data = self.sock.recv(limit)
        except TimeoutError:
            got = bytes(self.buffer[:200])
            raise AssertionError(
                f"nothing arrived for {self.sock.gettimeout()} s; in the buffer: {got!r}"
            ) from None
        self.buffer += data
        self.received += len(data)
        return bool(data)

    def take(self, count: int) -> bytes:
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def read_exact(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self.fill():
                raise Closed(
                    f"closed after {len(self.buffer)} of {count} bytes: {bytes(self.buffer[:200])!r}"
                )
        return self.take(count)

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        start = 0
        while (at := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark) + 1)
            if not self.fill():
                raise Closed(f"closed before {mark!r}: {bytes(self.buffer[:400])!r}")
        return self.take(at + len(mark))

    def read_to_end(self) -> bytes:
        """Everything until the peer's FIN (a reset is an error)."""
        while self.fill():
            pass
        return self.take(len(self.buffer))

    def read_head(self) -> Head:
        return Head.parse(self.read_until(b"\r\n\r\n"))

    def expect_close(self, reset_ok: bool = True) -> None:
        """The peer closes, and not one byte comes before that."""
        try:
            while self.fill():
                pass
        except ConnectionError:
            if not reset_ok:
                raise
        assert not self.buffer, f"more came before the close: {bytes(self.buffer[:400])!r}"

    def closed(self) -> bool:
        """True if the peer has closed by now; never waits, and consumes nothing of what has come."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def pending(self) -> bytes:
        """What has come by now; never waits."""
        with contextlib.suppress(BlockingIOError):
            self.buffer += self.sock.recv(1 << 18, socket.MSG_DONTWAIT)
        return bytes(self.buffer)

    def expect_quiet(self, seconds: float = 0.1) -> None:
        """Nothing comes and nobody closes for `seconds`."""
        assert not self.buffer, bytes(self.buffer[:400])
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            data = self.sock.recv(4096)
        except TimeoutError:
            return
        finally:
            self.sock.settimeout(before)
        raise AssertionError(f"expected silence, got {data!r}")

    # messages

    def _read_chunked(self) -> tuple[bytes, list[tuple[str, str]]]:
        body = bytearray()
        while True:
            size = int(self.read_until(b"\r\n").split(b";")[0], 16)
            if size == 0:
                break
            body += self.read_exact(size)
            end = self.read_exact(2)
            assert end == b"\r\n", end
        trailers = []
        while (line := self.read_until(b"\r\n")) != b"\r\n":
            name, _, value = line[:-2].decode("latin-1").partition(":")
            trailers.append((name, value.strip(" \t")))
        return bytes(body), trailers

    def _read_body(self, message: Request | Response) -> None:
        if "chunked" in message.tokens("transfer-encoding"):
            message.chunked = True
            message.body, message.trailers = self._read_chunked()
        elif (length := message.get("content-length")) is not None:
            message.body = self.read_exact(int(length))
        elif isinstance(message, Response):
            message.body = self.read_to_end()

    def read_request_head(self) -> Request:
        head = self.read_head()
        return Request(head.line, head.fields, head.raw)

    def read_request_body(self, request: Request) -> Request:
        self._read_body(request)
        return request

    def read_request(self) -> Request:
        return self.read_request_body(self.read_request_head())

    def read_response_head(self) -> Response:
        """The next head, also an interim one."""
        head = self.read_head()
        return Response(head.line, head.fields, head.raw)

    def read_response(self, method: str = "GET") -> Response:
        """The final response to a request of `method` (RFC 9112 section 6.3); 1xx go to `interim`."""
        interim: list[Head] = []
        while True:
            response = self.read_response_head()
            if response.status >= 200 or response.status == 101:
                break
            interim.append(response)
        response.interim = interim
        bodiless = method == "HEAD" or response.status in (101, 204, 304)
        if not bodiless and not (method == "CONNECT" and response.status < 300):
            self._read_body(response)
        return response


def connect(address: Address, source: Address | None = None, timeout: float | None = None) -> Conn:
    """A client connection to a TCP address or a Unix path."""
    if isinstance(address, str):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.settimeout(timeout or DEADLINE)
        if source is not None:
            sock.bind(source)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return Conn(sock)


def request(
    method: str = "GET",
    target: str = "/",
    headers: Iterable[tuple[str, str]] = (),
    *,
    body: bytes | None = None,
    host: str | None = "test",
    version: str = "HTTP/1.1",
) -> bytes:
    """The bytes of a request; a body gets its Content-Length."""
    lines = [f"{method} {target} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def response(
    body: bytes | None = b"ok",
    status: str = "200 OK",
    headers: Iterable[tuple[str, str]] = (),
    version: str = "HTTP/1.1",
) -> bytes:
    """The bytes of a response; a body gets its Content-Length."""
    lines = [f"{version} {status}", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*parts: bytes, trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A chunked body."""
    out = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    out += b"0\r\n" + b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in trailers)
    return out + b"\r\n"


def connect_tls(address: Address, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Conn:
    """A TLS client connection, the handshake done; the SSLSocket is `conn.sock`."""
    plain = connect(address)
    try:
        plain.sock = context.wrap_socket(plain.sock, server_hostname=None, session=session)
    except BaseException:
        plain.close()
        raise
    return plain
