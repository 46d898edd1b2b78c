"""Puts a topology on the stage: the backend, the proxies in front of it, each checked with a real request.

plain   client -> proxy -> backend
mesh    client -> proxy (out, svc-a) -> mutual TLS 1.3 -> proxy (in, svc-b) -> backend
in      client -> mutual TLS 1.3 -> proxy (in, svc-b) -> backend
handshake   the same, with a new connection for each request
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.machine import Cpus, free_port
from bench.pki import Identity
from bench.processes import Processes
from bench.proxies import Hop, Proxy, Role, Unavailable
from bench.proxies.nginx import BODY, backend, large_body

Topology = Literal["plain", "mesh", "in", "handshake"]
# From the client's side to the backend's.
HOPS: Final[dict[Topology, tuple[Role, ...]]] = {
    "plain": ("plain",),
    "mesh": ("out", "in"),
    "in": ("in",),
    "handshake": ("in",),
}
HOST: Final = "svc-b"  # the Host of every request: what fastmesh's outbound listener routes by
READY_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Actor:
    """A proxy in a topology: where clients connect, and the processes that count as its cost."""

    proxy: Proxy
    topology: Topology
    port: int
    processes: list[Processes]
    ready_seconds: float

    @property
    def name(self) -> str:
        return self.proxy.name

    def alive(self) -> bool:
        return all(group.alive() for group in self.processes)

    def words(self) -> str:
        return " | ".join(filter(None, (group.words() for group in self.processes)))


@dataclass(frozen=True)
class Ground:
    """What all measurements stand on: the backend, a directory for files, and who runs on which CPU."""

    port: int
    backend: Processes
    directory: Path
    cpus: Cpus


@contextlib.contextmanager
def run_backend(directory: Path, cpus: Cpus, connections: int) -> Iterator[Ground]:
    """Start the nginx that answers."""
    place = _place(directory, "backend")
    port = free_port()
    with Processes("backend", backend(place, port, connections), cpus.load, place / "log") as processes:
        _wait(port, [processes], None, "backend")
        yield Ground(port, processes, directory, cpus)


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
            listen = free_port()
            argv = proxy.argv(Hop(role, listen, upstream, connections), place)
            began = time.monotonic()  # making a PKI or writing a file is not its start
            group = Processes(f"{proxy.name} {role}", argv, cpus, place / "log")
            processes.append(stack.enter_context(group))
            upstream = listen
        identity = proxy.identity("svc-a") if HOPS[topology][0] == "in" else None
        _wait(upstream, processes, identity, proxy.name)
        actor = Actor(proxy, topology, upstream, processes, time.monotonic() - began)
        try:
            large = fetch(actor.port, "/large", identity)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"a body of 1 MiB does not come through: {error}") from error
        if large != large_body():
            raise Unavailable("a body of 1 MiB comes through changed")
        yield actor


def client_context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.3 as a mesh client would: own certificate, the peer's checked against the bundle."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name is a SPIFFE id, not a host
    context.load_verify_locations(identity.bundle)
    context.load_cert_chain(identity.certificate, identity.key)
    return context


def fetch(port: int, path: str, identity: Identity | None = None) -> bytes:
    """One GET on a new connection; raises OSError or http.client.HTTPException, also for a status but 200."""
    if identity:
        context = client_context(identity)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=5, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
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


def _wait(port: int, processes: list[Processes], identity: Identity | None, name: str) -> None:
    """Until the first right answer. A refused connection or a 503 of a proxy that warms up is asked again."""
    end = time.monotonic() + READY_SECONDS
    last: Exception | None = None
    while time.monotonic() < end:
        for group in processes:
            if not group.alive():
                raise Unavailable(f"{group.name} ended: {group.words()}")
        try:
            body = fetch(port, "/", identity)
        except (OSError, http.client.HTTPException) as error:
            last = error
            time.sleep(0.002)
            continue
        if body != BODY:
            raise Unavailable(f"{name} answered {body[:60]!r}")
        return
    printed = " | ".join(group.words() for group in processes)
    raise Unavailable(f"{name} gave no answer within {READY_SECONDS:.0f} s: {last}; it printed: {printed}")
