"""A worker without its processes: a snapshot for it, and a thread that it runs in."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastmesh._core import RUN_CONTROL, Worker
from kit.limits import DEADLINE
from kit.pki import Identity


def snapshot(
    number: int,
    listeners: dict[str, str],
    endpoint: int | None,
    identity: Identity | None = None,
    role: str = "edge",
) -> bytes:
    """Listeners by name with the service they lead to; with an identity they ask for one, as inbound ones."""
    names = sorted(set(listeners.values()))
    timeouts = {f"{name}_timeout_ms": 20_000 for name in ("header", "idle", "stream_idle", "tcp_idle")}
    document: dict[str, Any] = {
        "format": 1,
        "number": number,
        "identity": identity
        and {
            "spiffe_id": "spiffe://mesh.local/svc-b",
            "certificate": identity.certificate.read_text(),
            "key": identity.key.read_text(),
            "bundle": identity.bundle.read_text(),
        },
        "trust_domain": "mesh.local",
        "drain_ms": 1000,
        "access_log": None,
        "listeners": [
            {
                "name": name,
                "role": "inbound" if identity else role,
                "protocol": "http",
                "tls": "mesh" if identity else "none",
                "service": names.index(service),
                "allow": None,
                **timeouts,
                "max_connections": 0,
                "forwarded": {"x_forwarded": "append", "forwarded": "auto", "via": True},
            }
            for name, service in listeners.items()
        ],
        "services": [
            {
                "name": name,
                "slot": slot,
                "tls": "none",
                "spiffe_id": None,
                "endpoints": []
                if endpoint is None
                else [{"family": "inet", "host": "127.0.0.1", "port": endpoint, "path": None}],
                "connect_timeout_ms": 1000,
                "response_timeout_ms": 10_000,
                "pool_idle_max": 8,
                "pool_idle_timeout_ms": 10_000,
            }
            for slot, name in enumerate(names)
        ],
    }
    return json.dumps(document).encode()


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    """Serve in a thread; stopped when the block ends."""
    control = os.eventfd(0, os.EFD_CLOEXEC)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(worker.run(control)), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(control, 1)
        thread.join(DEADLINE)
        os.close(control)
    assert results == [RUN_CONTROL]
