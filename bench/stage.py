"""Puts a topology on the stage: the backend, the proxies in front of it, each checked with a real request.

plain   client -> proxy -> backend
mesh    client -> proxy (out, svc-a) -> mutual TLS 1.3 -> proxy (in, svc-b) -> backend
in      client -> mutual TLS 1.3 -> proxy (in, svc-b) -> backend
handshake   the same, with a new connection for each request
h2      the same as `in`, the client speaks HTTP/2

With HTTP/2 on every side, plaintext at both ends:

grpc    client -> proxy (h2-out, svc-a) -> mutual TLS 1.3 -> proxy (h2-in, svc-b) -> backend
grpc-stream, slow-stream   the same
h2-streams   client -> mutual TLS 1.3 -> proxy (h2-in, svc-b) -> backend

Each proxy in a network of its own (bench.redirect), dialled by the address of a service:

transparent       client -> (redirect) -> proxy (transparent) -> backend
transparent-tcp   client -> (redirect) -> proxy (opaque) -> backend

The backend is nginx (HTTP/1.1); nghttpd for `grpc`; bench/stream_serve.c for streams.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench import h2
from bench.machine import Cpus, free_port
from bench.network import Network
from bench.pki import Identity
from bench.processes import Processes
from bench.programs import program
from bench.proxies import (
    DIRECT,
    LISTEN,
    REDIRECTED,
    SERVICE,
    Hop,
    Proxy,
    Role,
    Topology,
    Unavailable,
)
from bench.proxies.nginx import BODY, accepted, backend, large_body

# From the client's side to the backend's.
HOPS: Final[dict[Topology, tuple[Role, ...]]] = {
    "plain": ("plain",),
    "mesh": ("out", "in"),
    "in": ("in",),
    "handshake": ("in",),
    "h2": ("in",),
    "h2-streams": ("h2-in",),
    "grpc": ("h2-out", "h2-in"),
    "grpc-stream": ("h2-out", "h2-in"),
    "slow-stream": ("h2-out", "h2-in"),
    "transparent": ("transparent",),
    "transparent-tcp": ("opaque",),
}
Backend = Literal["nginx", "nghttpd", "stream_serve"]
BACKENDS: Final[dict[Topology, Backend]] = {
    "grpc": "nghttpd",
    "grpc-stream": "stream_serve",
    "slow-stream": "stream_serve",
    "h2-streams": "stream_serve",
}
LOOPBACK: Final = "127.0.0.1"
ANY: Final = "0.0.0.0"
HOST: Final = "svc-b"  # the Host of every request: what fastmesh's outbound listener routes by
READY_SECONDS: Final = 20.0
NGHTTPD: Final = "nghttpd"
STREAMS: Final = 1000  # at once on a connection to nghttpd: its default of 100 would bound small pools


@dataclass(frozen=True)
class Ground:
    """What all measurements stand on: the backend, a directory for files, and who runs on which CPU."""

    port: int
    backend: Processes
    directory: Path
    cpus: Cpus
    kind: Backend = "nginx"
    network: Network | None = None  # where all of it is; None: with the bench

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """This thread is where the backend is, and what it starts stays there."""
        return self.network.inside() if self.network else contextlib.nullcontext()

    def accepted(self) -> int:
        """How many connections the backend has accepted; 0 of one that does not count them."""
        if self.kind != "nginx":
            return 0
        return accepted(fetch(self.port, "/accepted").decode())


@dataclass(frozen=True)
class Actor:
    """A proxy in a topology: where clients connect, and the processes that count as its cost."""

    proxy: Proxy
    topology: Topology
    port: int
    processes: list[Processes]
    ready_seconds: float
    ground: Ground
    address: str = LOOPBACK

    @property
    def name(self) -> str:
        return self.proxy.name

    def alive(self) -> bool:
        return all(group.alive() for group in self.processes)

    def words(self) -> str:
        return " | ".join(filter(None, (group.words() for group in self.processes)))


@contextlib.contextmanager
def run_backend(
    directory: Path, cpus: Cpus, connections: int, kind: Backend = "nginx", address: str = LOOPBACK
) -> Iterator[Ground]:
    """Start the program that answers. Raises Unavailable if it is not installed or does not answer."""
    place = _place(directory, "backend")
    port = free_port()
    if kind == "nginx":
        argv = backend(place, address, port, connections)
    elif kind == "nghttpd":
        argv = _nghttpd(place, port)
    else:
        argv = [str(program("stream_serve")), str(port)]
    with Processes("backend", argv, cpus.load, place / "log") as processes:
        _wait(port, [processes], None, "backend", http2=kind != "nginx")
        yield Ground(port, processes, directory, cpus, kind)


def _nghttpd(place: Path, port: int) -> list[str]:
    """Answers as a gRPC server would: a small body and trailers."""
    if not shutil.which(NGHTTPD):
        raise Unavailable("nghttpd is not installed (Debian: nghttp2-server)")
    root = place / "root"
    root.mkdir()
    (root / "index.html").write_bytes(BODY)
    (root / "large").write_bytes(large_body())
    options = ["--no-tls", "-a", "127.0.0.1", "-m", str(STREAMS), "-d", str(root)]
    return [NGHTTPD, *options, "--trailer", "grpc-status: 0", str(port)]


@contextlib.contextmanager
def run_proxy(
    proxy: Proxy, topology: Topology, ground: Ground, connections: int, *, pinned: bool = True
) -> Iterator[Actor]:
    """Start a proxy in a topology and wait for its first answer. Raises Unavailable, with what it printed."""
    cpus = ground.cpus.proxy if pinned else ground.cpus.all
    with contextlib.ExitStack() as stack:
        processes: list[Processes] = []
        upstream = ground.port
        began = time.monotonic()
        for role in reversed(HOPS[topology]):
            place = _place(ground.directory, f"{proxy.name}-{topology}-{role}")
            listen = LISTEN if ground.network else free_port()
            argv = proxy.argv(Hop(role, listen, upstream, connections), place)
            began = time.monotonic()  # making a PKI or writing a file is not its start
            group = Processes(f"{proxy.name} {role}", argv, cpus, place / "log")
            processes.append(stack.enter_context(group))
            upstream = listen
        identity = proxy.identity("svc-a") if HOPS[topology][0] in ("in", "h2-in") else None
        http2 = speaks_http2(topology)
        redirected = topology in REDIRECTED and proxy.name != DIRECT
        address, port = (SERVICE, ground.port) if redirected else (LOOPBACK, upstream)
        _wait(port, processes, identity, proxy.name, http2=http2, address=address)
        actor = Actor(proxy, topology, port, processes, time.monotonic() - began, ground, address)
        if ground.kind != "stream_serve":  # whose load compares every byte by itself
            try:
                large = fetch(port, "/large", identity, http2=http2, address=address)
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"a body of 1 MiB does not come through: {error}") from error
            if large != large_body():
                raise Unavailable("a body of 1 MiB comes through changed")
        yield actor


def speaks_http2(topology: Topology) -> bool:
    """Whether the clients of a topology do."""
    return topology == "h2" or topology in BACKENDS


def client_context(identity: Identity, *protocols: str) -> ssl.SSLContext:
    """TLS 1.3 as a mesh client would: own certificate, the peer's checked against the bundle; its ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name is a SPIFFE id, not a host
    context.load_verify_locations(identity.bundle)
    context.load_cert_chain(identity.certificate, identity.key)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def connect_http2(port: int, context: ssl.SSLContext | None) -> h2.Connection:
    """An HTTP/2 connection as a client of the mesh would make it. Raises OSError."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not context:
        return h2.Connection(connection, HOST, "http")
    secured = context.wrap_socket(connection)
    if secured.selected_alpn_protocol() != "h2":
        secured.close()
        raise OSError(f"not HTTP/2 but {secured.selected_alpn_protocol()}")
    return h2.Connection(secured, HOST, "https")


def fetch(
    port: int,
    path: str,
    identity: Identity | None = None,
    *,
    http2: bool = False,
    address: str = LOOPBACK,
) -> bytes:
    """One GET on a new connection; raises OSError or http.client.HTTPException, also for a status but 200.

    `address` is that of plaintext HTTP/1.1.
    """
    if http2:
        context = client_context(identity, "h2") if identity else None
        with contextlib.closing(connect_http2(port, context)) as client:
            return client.get(path)
    if identity:
        context = client_context(identity)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=5, context=context
        )
    else:
        connection = http.client.HTTPConnection(address, port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Host": HOST})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}: {body[:200]!r}")
        return body


def _place(directory: Path, name: str) -> Path:
    """A new directory: a proxy may be started several times in a run."""
    for number in range(10_000):
        place = directory / f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            place.mkdir()
            return place
    raise RuntimeError(f"too many starts of {name}")


def _wait(
    port: int,
    processes: list[Processes],
    identity: Identity | None,
    name: str,
    *,
    http2: bool,
    address: str = LOOPBACK,
) -> None:
    """Until the first right answer. A refused connection or a 503 of a proxy that warms up is asked again."""
    end = time.monotonic() + READY_SECONDS
    last: Exception | None = None
    while time.monotonic() < end:
        for group in processes:
            if not group.alive():
                raise Unavailable(f"{group.name} ended: {group.words()}")
        try:
            body = fetch(port, "/", identity, http2=http2, address=address)
        except (OSError, http.client.HTTPException) as error:
            last = error
            time.sleep(0.002)
            continue
        if body != BODY:
            raise Unavailable(f"{name} answered {body[:60]!r}")
        return
    printed = " | ".join(group.words() for group in processes)
    raise Unavailable(f"{name} gave no answer within {READY_SECONDS:.0f} s: {last}; it printed: {printed}")
