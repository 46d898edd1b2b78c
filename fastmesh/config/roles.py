"""What a listener's role implies where the file does not say."""

from __future__ import annotations

from collections.abc import Iterable

from fastmesh.config.schema import Listener


def listener_tls(listener: Listener) -> str:
    """The TLS mode of a listener: as written, or what its role implies."""
    return listener.tls or ("mesh" if listener.role == "inbound" else "none")


def leading_to(listeners: Iterable[Listener], service: str) -> list[Listener]:
    """The listeners whose requests or connections can go to a service."""
    return [one for one in listeners if one.to == service or (one.to is None and one.role == "outbound")]


def client_cert(listener: Listener) -> str:
    """The mode of X-Forwarded-Client-Cert, `auto` resolved."""
    mode = listener.forwarded.client_cert
    if mode == "auto":
        return "set" if listener_tls(listener) in ("mesh", "permissive") else "remove"
    return mode
