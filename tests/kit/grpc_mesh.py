"""Two sidecars and an edge for gRPC: the ways to a service that a call can take.

Application -> outbound listener of svc-a -> mutual TLS -> inbound listener of svc-b -> service; and client ->
edge listener -> service. Behind both are the services of `kit.grpc_peers` and `raw`, an address at which a
test starts a scripted server. Nothing in the configuration says gRPC: requests tell that themselves.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kit.grpc_peers import Peers
from kit.grpc_scenarios import SCENARIOS
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.sidecars import address_of, inbound, outbound

Host = tuple[str, int]
WAYS = ("mesh", "edge")
NAMES = {"grpcio": "svc-b", "grpc-js": "svc-js"}  # of the services, by their language


@contextlib.contextmanager
def grpc_mesh(directory: Path, pki: Pki, peers: Peers) -> Iterator[GrpcMesh]:
    """A running `GrpcMesh`, which must end well."""
    mesh = GrpcMesh(directory, pki, peers)
    try:
        yield mesh.start(peers)
        mesh.a.stop()
        mesh.b.stop()
    finally:
        mesh.a.kill()
        mesh.b.kill()


class GrpcMesh:
    """The running sidecars. Services as named by :authority on the outbound listener:

    svc-b, svc-js, svc-raw   over the mesh: grpcio, grpc-js, the scripted server
    three                    three scripted servers, at `three`
    pair                     two, at `pair`
    nowhere, refusing        no endpoint; one at which nobody listens
    forbidden, strangers     denied here; denied by the sidecar of svc-b
    """

    def __init__(self, directory: Path, pki: Pki, peers: Peers) -> None:
        self.raw: Host = ("127.0.0.1", free_port())
        self.three: list[Host] = [("127.0.0.1", free_port()) for _ in range(3)]
        self.pair: list[Host] = [("127.0.0.1", free_port()) for _ in range(2)]
        ports = {
            "svc-b": peers.service("grpcio").port,
            "svc-js": peers.service("grpc-js").port,
            "svc-raw": self.raw[1],
            "strangers": self.raw[1],
        }
        sidecars = {name: inbound(pki, port) for name, port in ports.items()}
        sidecars["strangers"]["listeners"][0]["allow"] = [{"from": ["svc-x"]}]
        theirs = sidecars["svc-b"]
        theirs["services"] = {name: {"endpoints": [f"127.0.0.1:{port}"]} for name, port in ports.items()}
        theirs["listeners"] = [
            {**one["listeners"][0], "name": name, "to": name} for name, one in sidecars.items()
        ]

        ours = outbound(pki, 1)
        self.outbound = address_of(ours)
        ours["services"] = {
            name: {
                "endpoints": [one["listeners"][0]["bind"]],
                "tls": "mesh",
                "spiffe_id": "spiffe://mesh.local/svc-b",
            }
            for name, one in sidecars.items()
        } | {
            "three": {"endpoints": [f"{host}:{port}" for host, port in self.three]},
            "pair": {"endpoints": [f"{host}:{port}" for host, port in self.pair]},
            "nowhere": {"endpoints": []},
            "refusing": {"endpoints": [f"127.0.0.1:{free_port()}"]},
            "forbidden": {"endpoints": [f"{self.raw[0]}:{self.raw[1]}"], "deny": [{"methods": ["POST"]}]},
        }
        self.edge: dict[str, Host] = {}
        for name in ("svc-b", "svc-js", "svc-raw"):
            self.edge[name] = ("127.0.0.1", free_port())
            ours["listeners"].append(
                {"name": f"edge-{name}", "bind": f"127.0.0.1:{self.edge[name][1]}", "to": f"app-{name}"}
            )
            ours["services"][f"app-{name}"] = {"endpoints": [f"127.0.0.1:{ports[name]}"]}
        self.b = Fastmesh(theirs, directory)
        self.a = Fastmesh(ours, directory)

    def start(self, peers: Peers) -> GrpcMesh:
        """Both sidecars, and a call by every way: where that fails, no other need wait for its end."""
        self.b.start()
        self.a.start()
        scenario = replace(SCENARIOS["unary"], recorded=False)
        for way, (language, name) in itertools.product(WAYS, NAMES.items()):
            host, port = self.way(way, name)
            service, client = peers.service(language), peers.client(language)
            (call,) = client.observe(scenario, f"{host}:{port}", service, name)["calls"]
            assert call["code"] == "OK", f"no call passes the {way} to {name}: {call}"
        return self

    def way(self, way: str, service: str) -> Host:
        """Where a client begins on one of WAYS to a service."""
        return self.outbound if way == "mesh" else self.edge[service]
