"""gRPC through the mesh is gRPC: real clients and services see what they see without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from kit.grpc_compare import compare
from kit.grpc_mesh import NAMES, GrpcMesh, grpc_mesh
from kit.grpc_peers import LANGUAGES, PAIRS, Peers, triples
from kit.grpc_scenarios import FEW, SCENARIOS
from kit.limits import thinned, wait_steady
from kit.pki import Pki

# One pair of client and service shows all that there is to see, the others and the shorter way a part of it.
THROUGH_THE_MESH = triples(SCENARIOS, [("grpcio", "grpcio")]) + triples(FEW, PAIRS[1:])
THROUGH_THE_EDGE = triples(FEW, [(one, one) for one in LANGUAGES])


@pytest.fixture(scope="module")
def mesh(grpc_peers: Peers, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcMesh]:
    with grpc_mesh(tmp_path_factory.mktemp("grpc-mesh"), pki, grpc_peers) as running:
        yield running


def same(mesh: GrpcMesh, peers: Peers, way: str, triple: tuple[str, str, str]) -> None:
    """A scenario by one of the ways against the same without it."""
    name, client, service = triple
    authority = NAMES[service]
    host, port = mesh.way(way, authority)
    direct = peers.direct(client, service, name, authority)
    compare(SCENARIOS[name], direct, peers.through(client, service, name, authority, f"{host}:{port}"))


@pytest.mark.parametrize(("name", "client", "service"), thinned(THROUGH_THE_MESH))
def test_the_mesh_does_not_show(
    mesh: GrpcMesh, grpc_peers: Peers, name: str, client: str, service: str
) -> None:
    same(mesh, grpc_peers, "mesh", (name, client, service))


@pytest.mark.parametrize(("name", "client", "service"), thinned(THROUGH_THE_EDGE))
def test_the_edge_does_not_show(
    mesh: GrpcMesh, grpc_peers: Peers, name: str, client: str, service: str
) -> None:
    same(mesh, grpc_peers, "edge", (name, client, service))


@pytest.mark.parametrize("client", LANGUAGES)
@pytest.mark.parametrize(
    ("authority", "code"),
    [
        ("nobody-here", "UNIMPLEMENTED"),
        ("nowhere", "UNAVAILABLE"),
        ("refusing", "UNAVAILABLE"),
        ("forbidden", "PERMISSION_DENIED"),
        ("strangers", "PERMISSION_DENIED"),
    ],
)
def test_errors_of_the_mesh_are_errors_of_grpc(
    mesh: GrpcMesh, grpc_peers: Peers, authority: str, code: str, client: str
) -> None:
    """To a client as to a library: a code, and words."""
    host, port = mesh.outbound
    for name in ("unary", "bidi"):
        scenario = replace(SCENARIOS[name], recorded=False)
        seen = grpc_peers.client(client).observe(
            scenario, f"{host}:{port}", grpc_peers.service("grpcio"), authority
        )
        (call,) = seen["calls"]
        assert call["code"] == code, call
        assert call["details"], call
        assert set(call["events"]) == {"end"}, call


def test_the_ways_are_what_they_are_called(mesh: GrpcMesh, grpc_peers: Peers) -> None:
    """The sidecar of svc-b counts calls that went over the mesh, and no others."""
    counted = wait_steady(lambda: mesh.b.metrics().sum("requests_total"), "the count of calls before")
    for way in ("edge", "edge", "mesh"):
        same(mesh, grpc_peers, way, ("unary", "grpcio", "grpcio"))
    mesh.b.wait_metric("one call more", lambda m: m.sum("requests_total") == counted + 1)
