"""Who is measured behind a redirect stands in a network of its own: backend, rules, then the proxy.

    client -> SERVICE:PORT -> (redirect) -> proxy -> backend, which listens there and on loopback

`fastmesh intercept up` makes the rules, the same for all: what is dialled, but for loopback, goes to the
port of the proxy, and what is sent with the mark goes on. The floor, nginx and HAProxy are told where the
backend is (on loopback); Envoy and fastmesh ask the kernel where the connection was going. `floor-direct` is
dialled where it listens, without rules and so without tracked connections: what the redirect itself costs.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.network import Network, own_network
from bench.proxies import DIRECT, LISTEN, SERVICE, Proxy, Topology, Unavailable
from bench.proxies.fastmesh import BINARY
from bench.stage import ANY, Actor, Ground, run_backend, run_proxy

SECONDS: Final = 20.0
RULES: Final = f"""\
admin: off
listeners:
  - {{name: outbound, role: outbound, bind: "127.0.0.1:{LISTEN}", transparent: true}}
intercept: {{outbound: {{}}}}
"""


@contextlib.contextmanager
def run_redirected(proxy: Proxy, topology: Topology, ground: Ground, connections: int) -> Iterator[Actor]:
    """`run_proxy`, in a network of its own. Raises Unavailable."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(own_network())
        with network.inside():
            backend = run_backend(ground.directory, ground.cpus, 2 * connections + 1024, address=ANY)
            own = replace(stack.enter_context(backend), network=network)
            if proxy.name != DIRECT:
                take_over(network, own)
            actor = stack.enter_context(run_proxy(proxy, topology, own, connections))
        yield actor


def take_over(network: Network, ground: Ground) -> None:
    """The rules, proven: nobody listens yet where they lead to, so nothing may get through."""
    if not BINARY.exists():
        raise Unavailable(f"{BINARY} does not exist (make build)")
    file = ground.directory / "intercept.yaml"
    file.write_text(RULES)
    _up(file, network)
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection((SERVICE, ground.port), timeout=SECONDS).close()
        raise Unavailable("the rules are in force, and connections go around the proxy")


def _up(file: Path, network: Network) -> None:
    command = [str(BINARY), "intercept", "up", "-c", str(file), "--netns", network.path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"fastmesh intercept up: not done within {SECONDS:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"fastmesh intercept up: {done.stderr.strip()}")
