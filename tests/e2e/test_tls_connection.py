"""A TLS connection between its handshake and its end: key updates, and ends that are not proper.

The peer here drives our own TLS codec by hand, so that it decides which bytes go out together.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest
from kit.fixtures import Serve, Serving
from kit.pki import Identity, Pki, client_context, server_context
from kit.ports import free_port
from kit.upstream import ServerConn
from kit.wire import Closed, connect, connect_tls, request, response

from fastmesh import _tls as tls


class Peer:
    """A client of a mesh listener over a plain socket."""

    def __init__(self, address: tuple[str, int], identity: Identity, receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(address)
        self.sock.settimeout(20)
        self._context = tls.Context(
            False,
            identity.certificate.read_bytes(),
            identity.key.read_bytes(),
            identity.bundle.read_bytes(),
            b"mesh.local",
            None,
            b"\x08http/1.1",
        )
        self.tls = tls.Connection(tls.Engine(own_records=False), self._context, False)
        done, out = self.tls.handshake()
        while True:
            self.sock.sendall(out)
            if done:
                assert done == 1, done
                return
            done, out = self.tls.handshake(self.sock.recv(65536))

    def sealed(self, data: bytes) -> bytes:
        """`data` as records, not sent."""
        result, out = self.tls.write(data)
        assert result == len(data)
        return bytes(out)

    def read(self, wanted: bytes) -> bytes:
        """Plaintext until `wanted` is in it; AssertionError if the connection breaks."""
        got, data = b"", b""
        while wanted not in got:
            result, plain, _ = self.tls.read(data)
            assert result >= 0, f"the stream broke with {result} after {got!r}"
            got += plain
            if result == 0:
                data = self.sock.recv(65536)
                assert data, f"closed after {got!r}"
            else:
                data = b""
        return got

    def close(self) -> None:
        self.sock.close()


def sidecar(serve: Serve, pki: Pki, endpoint: int, **listener: object) -> tuple[str, int]:
    port = free_port()
    serve(
        {
            "workload": "svc-b",
            "trust_domain": "mesh.local",
            "pki": str(pki.path),
            "listeners": [
                {
                    "name": "in",
                    "role": "inbound",
                    "bind": f"127.0.0.1:{port}",
                    "tls": "mesh",
                    "to": "app",
                    **listener,
                }
            ],
            "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
        }
    )
    return ("127.0.0.1", port)


def test_key_update_of_a_connection_that_ends_goes_to_nobody_else(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    """All connections write into one sink: what one has left there at its end must not go out on the next."""

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(Closed, ConnectionError):
            while True:
                head = conn.read_request_head()
                if head.method == "POST":  # an answer that begins before the request's end
                    conn.send(response(None, headers=[("Transfer-Encoding", "chunked")]), b"5\r\nearly\r\n")
                    conn.read_to_end()
                    return
                conn.send(response(b"fine"))

    app = upstream(script)
    address = sidecar(serve, pki, app.address[1], protocol="http")
    identity = pki.identity("svc-a")
    bystander = Peer(address, identity)
    for _ in range(3):
        bystander.sock.sendall(bystander.sealed(request()))
        bystander.read(b"fine")
        other = Peer(address, identity)
        other.sock.sendall(other.sealed(request("POST", headers=[("Transfer-Encoding", "chunked")])))
        other.read(b"early")
        # In one piece: requests for new keys, the first of which is answered when the second is read, and
        # what ends the connection.
        updates = other.tls.key_update(True) + other.tls.key_update(True)
        other.sock.sendall(updates + other.sealed(b"no chunk\r\n"))
        with contextlib.suppress(ConnectionError):
            while other.sock.recv(65536):
                pass
        other.close()
    bystander.sock.sendall(bystander.sealed(request()))
    bystander.read(b"fine")
    bystander.close()


def test_peer_that_asks_for_keys_and_reads_nothing_is_cut(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Each key update is answered. Whoever does not take the answers must not have them kept without end."""
    app = upstream()
    address = sidecar(serve, pki, app.address[1], protocol="http")
    peer = Peer(address, pki.identity("svc-a"), receive_buffer=4096)
    sent = 0
    try:
        while sent < 24 << 20:
            data = b"".join(peer.tls.key_update(True) for _ in range(1000))
            peer.sock.sendall(data)
            sent += len(data)
    except ConnectionError:
        return
    finally:
        peer.close()
    pytest.fail(f"{sent} bytes of key updates were answered to a peer that reads nothing")


@pytest.mark.parametrize("proper", [True, False], ids=["close_notify", "cut"])
def test_end_of_a_tunnels_client_is_proper_only_with_close_notify(
    serve: Serve, upstream: Serving, pki: Pki, proper: bool
) -> None:
    """A cut by a third party, or by a sidecar that was killed, must not pass for the end of the data."""
    ends: list[str] = []
    told = threading.Event()

    def script(conn: ServerConn) -> None:
        try:
            assert conn.read_exact(7) == b"all of "
            conn.read_to_end()
            ends.append("end")
        except ConnectionError:
            ends.append("reset")
        told.set()

    app = upstream(script)
    address = sidecar(serve, pki, app.address[1], protocol="tcp")
    peer = Peer(address, pki.identity("svc-a"))
    peer.sock.sendall(peer.sealed(b"all of "))
    app.wait_connections(1)
    if proper:
        peer.sock.sendall(peer.tls.close_notify())
    else:
        peer.sock.shutdown(socket.SHUT_WR)
    assert told.wait(20)
    assert ends == ["end" if proper else "reset"]
    peer.close()


def test_end_of_a_tunnels_endpoint_without_close_notify_is_a_reset(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    def cut(conn: ServerConn) -> None:
        plain = conn.sock.dup()
        conn.sock = server_context(pki.identity("svc-b")).wrap_socket(conn.sock, server_side=True)
        conn.send(b"half of it")
        conn.read_exact(2)
        plain.shutdown(socket.SHUT_WR)  # FIN beneath TLS
        with contextlib.suppress(OSError):
            plain.recv(1)
        plain.close()

    server = upstream(cut)
    port = free_port()
    serve(
        {
            "workload": "svc-a",
            "trust_domain": "mesh.local",
            "pki": str(pki.path),
            "listeners": [{"name": "out", "bind": f"127.0.0.1:{port}", "protocol": "tcp", "to": "svc-b"}],
            "services": {"svc-b": {"endpoints": [f"127.0.0.1:{server.address[1]}"], "tls": "mesh"}},
        }
    )
    with connect(("127.0.0.1", port)) as client:
        assert client.read_exact(10) == b"half of it"
        client.send(b"ok")
        with pytest.raises(ConnectionResetError):
            client.read_to_end()
    server.tolerate(OSError)


def test_close_notify_waits_for_room(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """The end reaches a slow reader as an end, however full its socket was when everything else had gone."""
    sizes = [1 << 20, (1 << 20) + 1, 4_000_000, 6_000_001]

    def script(conn: ServerConn) -> None:
        size = int(conn.read_exact(8))
        conn.send(bytes(size))

    app = upstream(script)
    address = sidecar(serve, pki, app.address[1], protocol="tcp")
    context = client_context(pki.identity("svc-a"))
    for size in sizes:
        with connect_tls(address, context) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            client.sock.suppress_ragged_eofs = False  # an end without close_notify is an error
            client.send(b"%08d" % size)
            app.wait_open(0)
            assert len(client.read_to_end()) == size
