"""Configurations of the two sidecars of a call, as in mesh-a.yaml and mesh-b.yaml, on free ports."""

from __future__ import annotations

from typing import Any

from kit.pki import Pki
from kit.ports import free_port


def inbound(pki: Pki, endpoint: int, host: str = "127.0.0.1", **listener: Any) -> dict[str, Any]:
    """The sidecar of svc-b."""
    own = {"name": "inbound", "role": "inbound", "bind": f"{host}:{free_port()}", "tls": "mesh", "to": "app"}
    return {
        "workload": "svc-b",
        "trust_domain": "mesh.local",
        "pki": str(pki.path),
        "listeners": [own | listener],
        "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
    }


def outbound(pki: Pki, endpoint: int, workload: str = "svc-a", **service: Any) -> dict[str, Any]:
    """The sidecar of svc-a."""
    return {
        "workload": workload,
        "trust_domain": "mesh.local",
        "pki": str(pki.path),
        "listeners": [{"name": "outbound", "role": "outbound", "bind": f"127.0.0.1:{free_port()}"}],
        "services": {"svc-b": {"endpoints": [f"127.0.0.1:{endpoint}"], "tls": "mesh", **service}},
    }


def address_of(config: dict[str, Any]) -> tuple[str, int]:
    """Where the first listener of a configuration listens."""
    host, _, port = config["listeners"][0]["bind"].rpartition(":")
    return host.strip("[]"), int(port)
