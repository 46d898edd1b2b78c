"""A scripted upstream: a raw server whose every connection runs a function of the test.

A script is `def script(conn: ServerConn) -> None`; it reads what it expects and sends what it likes. What
it raises is kept and makes `Upstream.check()` (called by the fixtures) fail the test.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from kit.limits import DEADLINE
from kit.wire import Address, Closed, Conn, Request, response


class ServerConn(Conn):
    """The server's end of a connection; requests that are read through it are recorded."""

    def __init__(self, sock: socket.socket, index: int, upstream: Upstream) -> None:
        super().__init__(sock, index)
        self.upstream = upstream

    def read_request_head(self) -> Request:
        request = super().read_request_head()
        self.upstream.record(request)
        return request

    def __iter__(self) -> Requests:
        """The requests of a keep-alive connection until the peer closes it between two of them."""
        return Requests(self)


class Requests:
    def __init__(self, conn: ServerConn) -> None:
        self.conn = conn

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Request:
        if not self.conn.buffer:
            try:
                more = self.conn.fill()
            except ConnectionError:
                more = False
            if not more:
                raise StopIteration
        return self.conn.read_request()


Script = Callable[[ServerConn], None]


def answering(
    body: bytes | None = b"ok",
    status: str = "200 OK",
    headers: Iterable[tuple[str, str]] = (),
) -> Script:
    """A script that gives every request the same answer and keeps the connection."""
    data = response(body, status, tuple(headers))

    def script(conn: ServerConn) -> None:
        for request in conn:
            head_only = request.method == "HEAD"
            conn.send(data[: data.index(b"\r\n\r\n") + 4] if head_only else data)

    return script


def echo(conn: ServerConn) -> None:
    """Answer every request with its own body."""
    for request in conn:
        conn.send(response(request.body, headers=[("x-target", request.target)]))


def once(data: bytes) -> Script:
    """A script that answers one request with `data` and closes."""

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(data)

    return script


class Upstream:
    """A listening server; the n-th connection runs the n-th script, the last script serves the rest."""

    def __init__(self, address: Address, *scripts: Script, backlog: int = 1024) -> None:
        self.address = address
        self.scripts = scripts or (answering(),)
        self.requests: list[Request] = []
        self.connections: list[ServerConn] = []
        self.errors: list[BaseException] = []
        self._open = 0
        self._changed = threading.Condition()
        self._stopping = False
        if isinstance(address, str):
            self._listener = socket.socket(socket.AF_UNIX)
        else:
            self._listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(address)
        self._listener.listen(backlog)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        if kind is None:
            self.check()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                if self._stopping:
                    sock.close()
                    return
                conn = ServerConn(sock, len(self.connections), self)
                self.connections.append(conn)
                self._open += 1
                self._changed.notify_all()
            threading.Thread(target=self._run, args=(conn,), daemon=True).start()

    def _run(self, conn: ServerConn) -> None:
        script = self.scripts[min(conn.index, len(self.scripts) - 1)]
        try:
            script(conn)
        except BaseException as error:
            if not self._stopping:
                self.errors.append(error)
        finally:
            with contextlib.suppress(OSError):
                conn.close()
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def record(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, DEADLINE):
                raise AssertionError(
                    f"waited in vain for {what}: {len(self.connections)} connections, {self._open} open, "
                    f"{len(self.requests)} requests, errors {self.errors}"
                )

    def wait_connections(self, count: int) -> None:
        """Until `count` connections have been accepted in all."""
        self._wait(lambda: len(self.connections) >= count, f"{count} connections")

    def wait_requests(self, count: int) -> None:
        """Until `count` request heads have been read in all."""
        self._wait(lambda: len(self.requests) >= count, f"{count} requests")

    def wait_open(self, count: int) -> None:
        """Until exactly `count` connections still run their script."""
        self._wait(lambda: self._open == count, f"{count} open connections")

    def check(self) -> None:
        """Raise the first error of a script. A peer that went away in the middle counts as one."""
        for error in self.errors:
            raise AssertionError(f"the upstream's script failed: {error!r}") from error

    def tolerate(self, *kinds: type[BaseException]) -> None:
        """Forget errors that a test provokes (`ConnectionError`, `Closed`)."""
        self.errors = [
            error for error in self.errors if not isinstance(error, kinds or (ConnectionError, Closed))
        ]

    def stop_listening(self) -> None:
        """New connections are refused from now on; open ones go on."""
        # A plain close() leaves accept() blocked in the kernel with the socket alive: shut it down first.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        with self._changed:
            self._stopping = True
        self.stop_listening()
        self._acceptor.join(DEADLINE)
        for conn in self.connections:
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RDWR)
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, DEADLINE)
        if isinstance(self.address, str):
            Path(self.address).unlink(missing_ok=True)
