"""What a mutual-TLS handshake with one request costs: `python -m bench.handshake [COUNT]`.

Topology `in` (client -> mutual TLS 1.3 -> proxy -> backend), one client that connects again and again: first
with full handshakes, then with resumed ones. Printed is the CPU of the proxy's processes for each, in µs.
"""

from __future__ import annotations

import socket
import ssl
import sys
import tempfile
from pathlib import Path

from bench import machine, pki
from bench.processes import cpu
from bench.proxies import Unavailable, everyone
from bench.stage import HOST, Actor, client_context, run_backend, run_proxy

REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()


def handshake(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """One connection with one request; the session that came with it."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, session=session) as sock,
    ):
        if sock.session_reused != (session is not None):
            raise Unavailable("sessions are not resumed as asked")
        sock.sendall(REQUEST)
        while sock.recv(65536):
            pass
        return sock.session


def cost(actor: Actor, count: int, *, resumed: bool) -> float:
    """µs of the proxy's CPU for each handshake."""
    identity = actor.proxy.identity("svc-a")
    assert identity is not None
    context = client_context(identity)
    session = handshake(actor.port, context, None) if resumed else None
    for _ in range(50):
        handshake(actor.port, context, session)
    before = cpu(actor.processes)
    for _ in range(count):
        handshake(actor.port, context, session)
    after = cpu(actor.processes)
    return (after.seconds - before.seconds) / count * 1e6


def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fastmesh-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # nginx changes its user
        proxies = everyone(pki.make(directory / "pki"))
        print("| proxy | full, µs | resumed, µs |\n|---|---|---|")
        with run_backend(directory, machine.choose_cpus(), 64) as ground:
            for which in ("haproxy", "nginx", "fastmesh"):
                try:
                    with run_proxy(proxies[which], "in", ground, 64) as actor:
                        full = cost(actor, count, resumed=False)
                        print(
                            f"| {which} | {full:.0f} | {cost(actor, count, resumed=True):.0f} |", flush=True
                        )
                except Unavailable as error:
                    print(f"| {which} | {error} | |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
