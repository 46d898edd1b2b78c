"""What the experiment with sockmap stands on: a cgroup of its own, `bench/sockmap.c` in it, and its cost.

sockmap moves work out of the proxy: into the sender's system call, or into kernel threads. So the cost is
that of everybody who takes part, load and backend too: the run time of the cgroup (`cpu.stat`) that all of
them are in, and of the kernel's workers and softirq threads.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.machine import free_port
from bench.pki import Identity
from bench.processes import Processes
from bench.programs import program
from bench.proxies import Hop, Topology, Unavailable
from bench.proxies import fastmesh as fastmesh_proxy
from bench.proxies.fastmesh import Fastmesh

Who = Literal["BOTH", "APPS"]
"""Whose bytes go past TCP on the hop: everybody's, or only those that applications send."""

KERNEL_THREADS: Final = ("kworker/", "ksoftirqd/")
NAME: Final = "fastmesh-bench"
SECONDS: Final = 20.0  # for one connection


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of CPU: of all that were ever in a group, and of each of the kernel's threads."""

    group: int
    threads: dict[int, int]

    def since(self, before: Cost) -> float:
        """Seconds. A kernel thread that has ended meanwhile is left out."""
        spent = sum(now - before.threads.get(pid, 0) for pid, now in self.threads.items())
        return (self.group - before.group + spent) / 1e9


class Group:
    """A cgroup (v2) that this process and its children are in while `with` lasts."""

    def __init__(self) -> None:
        self.path = _mount() / f"{NAME}-{os.getpid()}"
        self._before = _mount()

    def __enter__(self) -> Group:
        inside = Path("/proc/self/cgroup").read_text().splitlines()
        unified = next((line[3:] for line in inside if line.startswith("0::")), "/")
        self._before = _mount() / unified.lstrip("/")
        try:
            self.path.mkdir()
            (self.path / "cgroup.procs").write_text("0")
        except OSError as error:
            raise Unavailable(f"a cgroup cannot be made: {error}; this bench needs root") from error
        return self

    def __exit__(self, *_: object) -> None:
        (self._before / "cgroup.procs").write_text("0")
        with contextlib.suppress(OSError):  # somebody is still in it; an empty one costs nothing
            self.path.rmdir()

    def cost(self) -> Cost:
        fields = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return Cost(int(fields["usage_usec"]) * 1000, _kernel_threads())


def _mount() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise Unavailable("no cgroup v2 is mounted")


def _kernel_threads() -> dict[int, int]:
    found = {}
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if comm.read_text().startswith(KERNEL_THREADS):
                found[int(comm.parent.name)] = int(comm.with_name("schedstat").read_text().split()[0])
    return found


@contextlib.contextmanager
def attached(group: Group, who: Who, front: int, back: int) -> Iterator[None]:
    """While it lasts, new connections of the group on these ports go past TCP. Raises Unavailable."""
    argv = [str(program("sockmap")), "hop", str(group.path), who, str(front), str(back)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as hop:
        assert hop.stdout and hop.stderr
        try:
            if hop.stdout.readline() != "attached\n":
                raise Unavailable(f"sockmap cannot be used here: {hop.stderr.read().strip()}")
            yield
        finally:
            hop.kill()


class SockmapTunnel:
    """Opaque TCP, moved by the program of `bench/sockmap.c`."""

    name = "sockmap"
    topologies: Final[frozenset[Topology]] = frozenset(("plain",))

    def version(self) -> str:
        program("sockmap")
        return "sockmap.c"

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        return [str(program("sockmap")), "tunnel", str(hop.listen), str(hop.upstream)]

    def identity(self, workload: str) -> Identity:
        raise Unavailable("no TLS")


class FastmeshTunnel(Fastmesh):
    """fastmesh's `plain` with `protocol: tcp`: opaque bytes, moved with splice(2)."""

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        argv = super().argv(hop, directory)
        file = Path(argv[-1])
        text = file.read_text()
        assert fastmesh_proxy.ROLES["plain"].count("protocol: http\n") == 1
        text = text.replace("protocol: http\n", "protocol: tcp\n").replace("    idle_timeout: 1h\n", "", 1)
        file.write_text(text)
        return argv


@dataclass(frozen=True)
class Tunnel:
    port: int
    processes: Processes


@contextlib.contextmanager
def tunnel_to(listener: socket.socket, directory: Path) -> Iterator[Tunnel]:
    """A tunnel with an sk_skb program in front of a listening socket. Raises Unavailable."""
    port = free_port()
    argv = SockmapTunnel().argv(Hop("plain", port, listener.getsockname()[1], 1), directory)
    with Processes("sockmap", argv, frozenset(os.sched_getaffinity(0)), directory / "log") as processes:
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), SECONDS).close()
                break
            if not processes.alive():
                raise Unavailable(f"sockmap cannot be used here: {processes.words()}")
        listener.accept()[0].close()
        yield Tunnel(port, processes)


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.settimeout(SECONDS)
    return listener


def connect(port: int, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A client of a port, and the socket that `listener` got for it."""
    client = socket.create_connection(("127.0.0.1", port), SECONDS)
    server, _ = listener.accept()
    server.settimeout(SECONDS)
    return client, server
