"""The comparison of gRPC calls compares: a service equals itself, and what a proxy changes is found.

nginx's grpc_pass stands for a proxy that others wrote. What it is known to add is named here; beyond that
every scenario is the same through it, so that a difference through the mesh is the mesh's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from kit.grpc_compare import compare, difference
from kit.grpc_peers import LANGUAGES, Peers, triples
from kit.grpc_scenarios import FEW, SCENARIOS
from kit.limits import SANITIZED
from kit.nginx import Nginx

pytestmark = pytest.mark.skipif(SANITIZED, reason="runs none of our compiled code")

CONFIG = """
daemon off; master_process off; worker_processes 1;
pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 64k;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} http2;
    ignore_invalid_headers off;
    location / {{ grpc_pass grpc://{service}; grpc_set_header Host $host; grpc_buffer_size 64k; }}
  }}
}}
"""

BY_NGINX = ("host", "server", "date", "content-length")


@pytest.fixture(scope="module")
def grpc_pass(grpc_peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of proxies, by the language of the service behind them."""
    servers = [
        Nginx(tmp_path_factory.mktemp("grpc"), config=CONFIG, service=grpc_peers.service(language).address)
        for language in LANGUAGES
    ]
    yield dict(zip(LANGUAGES, (server.address for server in servers), strict=True))
    for server in servers:
        server.stop()


def without(observation: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    observation = copy.deepcopy(observation)
    for call in observation["calls"]:
        for fields in (call["initial"], call["trailing"], (call.get("service") or {}).get("metadata", [])):
            fields[:] = [pair for pair in fields if pair[0] not in keys]
    return observation


@pytest.mark.parametrize(("name", "client", "service"), triples(FEW, [(one, one) for one in LANGUAGES]))
def test_a_proxy_that_others_wrote(
    grpc_peers: Peers, grpc_pass: dict[str, str], name: str, client: str, service: str
) -> None:
    direct = grpc_peers.direct(client, service, name, "svc-b")
    proxied = grpc_peers.through(client, service, name, "svc-b", grpc_pass[service])
    compare(SCENARIOS[name], without(direct, BY_NGINX), without(proxied, BY_NGINX))


def test_what_it_adds_is_found(grpc_peers: Peers, grpc_pass: dict[str, str]) -> None:
    direct = grpc_peers.direct("grpcio", "grpcio", "unary", "svc-b")
    proxied = grpc_peers.through("grpcio", "grpcio", "unary", "svc-b", grpc_pass["grpcio"])
    found = difference(SCENARIOS["unary"], direct, proxied)
    assert "+calls[0].initial[1] = ['server', 'nginx/" in found
    with pytest.raises(AssertionError, match="unary is another call through the proxy"):
        compare(SCENARIOS["unary"], direct, proxied)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("", "code", "INTERNAL"),
        ("", "details", "another"),
        ("", "events", ["hello", "hello"]),
        ("", "trailing", [["x-more", "1"]]),
        ("service", "messages", []),
        ("service", "authority", "127.0.0.1:80"),
        ("service", "deadline", 7.0),
        ("service", "cancelled", True),
        ("service", "metadata", []),
    ],
)
def test_whatever_differs_is_a_difference(grpc_peers: Peers, where: str, key: str, value: Any) -> None:
    direct = grpc_peers.direct("grpcio", "grpcio", "unary", "svc-b")
    assert not difference(SCENARIOS["unary"], direct, direct)
    other = copy.deepcopy(direct)
    (other["calls"][0][where] if where else other["calls"][0])[key] = value
    assert key in difference(SCENARIOS["unary"], direct, other)


def test_two_failures_prove_nothing(grpc_peers: Peers) -> None:
    """Equal observations of something else than the scenario are no success."""
    hung = copy.deepcopy(grpc_peers.direct("grpcio", "grpcio", "unary", "svc-b"))
    hung["calls"][0]["code"] = "CANCELLED"
    with pytest.raises(AssertionError, match="CANCELLED"):
        compare(SCENARIOS["unary"], hung, hung)
    unseen = copy.deepcopy(grpc_peers.direct("grpcio", "grpcio", "unary", "svc-b"))
    unseen["calls"][0]["service"] = None
    with pytest.raises(AssertionError, match="never saw"):
        compare(SCENARIOS["unary"], unseen, unseen)
