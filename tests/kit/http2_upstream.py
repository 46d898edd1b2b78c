"""The HTTP/1.1 server behind a proxy that is shown the HTTP/2 corpus: it records what it gets."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import select
import socket
import threading
from collections.abc import Iterator

from kit.http2_case import Case
from kit.limits import DEADLINE
from kit.upstream import ServerConn, Upstream
from kit.wire import Address, Closed, Request, response

SMALL = b"an answer of the corpus' upstream\n"
BIG = bytes(100_000)
AFTER = "/?after"  # the request that shows that a connection still serves


class CorpusUpstream:
    """By path: /big answers with 100,000 bytes, /stall reads
    no body, /hold does not answer until the connection ends, /trailers sends some, /interim a 103 first. An
    upgrade to websocket is made: it sends back what it gets until that ends with "bye". Anything else gets a
    short answer, CONNECT a 405."""

    def __init__(self, address: Address) -> None:
        self.heads: list[Request] = []
        self.whole: list[Request] = []
        self._lock = threading.Lock()
        self.server = Upstream(address, self._script)

    def mark(self) -> int:
        with self._lock:
            return len(self.heads)

    def complaint(self, case: Case, mark: int) -> str:
        """What is wrong with the requests that came since `mark`, or nothing."""
        with self._lock:
            heads = [one for one in self.heads[mark:] if _path(one.target) != AFTER]
            whole = [one for one in heads if any(one is other for other in self.whole)]
        shown = [one.raw + one.body[:40] for one in heads]
        if (case.upstream == "none" and heads) or (case.upstream == "cut" and whole):
            return f"upstream {case.upstream}, but it got {shown}"
        lines = [f"{name.lower()}: {value}" for one in heads for name, value in one.fields]
        lines += [f"{one.method} {_path(one.target)} {one.version}" for one in heads]
        lines += [f"trailer {name.lower()}: {value}" for one in whole for name, value in one.trailers]
        for line in case.sees:
            if line not in lines:
                return f"upstream should have seen {line!r}, but it got {shown}"
        for text in case.never:
            if any(text.encode("latin-1") in one.raw for one in heads):
                return f"upstream should never have seen {text!r}, but it got {shown}"
        if case.body is not None and case.body.encode("latin-1") not in [one.body for one in whole]:
            return f"upstream should have got the body {case.body[:80]!r}, but it got {shown}"
        return ""

    def _script(self, conn: ServerConn) -> None:
        with contextlib.suppress(Closed, ConnectionError):
            while conn.buffer or conn.fill():
                request = conn.read_request_head()
                with self._lock:
                    self.heads.append(request)
                path = _path(request.target)
                if path == "/stall":
                    # It would take megabytes before it stalls.
                    conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
                    _until_hung_up(conn.sock)
                    return
                conn.read_request_body(request)
                with self._lock:
                    self.whole.append(request)
                for part in self._answer(request):
                    conn.send(part)
                if path == "/hold":
                    conn.fill()
                    return
                if request.get("upgrade") == "websocket":
                    heard = b""
                    while not heard.endswith(b"bye") and conn.fill():
                        data = conn.take(len(conn.buffer))
                        conn.send(data)
                        heard = (heard + data)[-3:]
                    return

    def _answer(self, request: Request) -> Iterator[bytes]:
        path = _path(request.target).partition("?")[0]
        if request.method == "CONNECT":
            yield response(b"", "405 Method Not Allowed")
            return
        answer = response(BIG if path == "/big" else SMALL)
        if path == "/hold":
            return
        if request.get("upgrade") == "websocket":
            yield _switch(request)
            return
        if path == "/interim":
            yield b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
        if path == "/trailers":
            head = response(None, headers=[("Transfer-Encoding", "chunked")])
            answer = head + b"5\r\nhello\r\n0\r\nX-End: yes\r\n\r\n"
        yield answer if request.method != "HEAD" else answer[: answer.index(b"\r\n\r\n") + 4]

    def check(self) -> None:
        """Raise what a script has raised."""
        self.server.check()

    def close(self) -> None:
        self.server.close()


def _path(target: str) -> str:
    """Without what some proxies put in front of it: the absolute form of a target."""
    scheme, found, rest = target.partition("://")
    return "/" + rest.partition("/")[2] if found and scheme in ("http", "https") else target


def _until_hung_up(sock: socket.socket) -> None:
    """Until the peer, or whoever stops the server, ends the connection; nothing is read."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    assert poll.poll(DEADLINE * 1000), "nobody has hung up"


def _switch(request: Request) -> bytes:
    """101 to a request for a websocket (RFC 6455 section 4.2.2)."""
    key = (request.get("sec-websocket-key") or "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    fields = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept)]
    return response(None, "101 Switching Protocols", fields)
