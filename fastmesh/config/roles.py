"""What a listener's role implies where the file does not say."""

from __future__ import annotations

from collections.abc import Iterable

from fastmesh.config.invalid import INVALID
from fastmesh.config.schema import Listener, ListenerHttp2, Service


def listener_tls(listener: Listener) -> str:
    """The TLS mode of a listener: as written, or what its role implies."""
    tls = listener.tls
    if tls is None:
        return "mesh" if listener.role == "inbound" else "none"
    return tls if tls is INVALID else tls.mode or "terminate"


def service_tls(service: Service) -> str:
    """The TLS mode of a service: `tls` is ordinary TLS, by the server's name."""
    tls = service.tls
    if tls is None:
        return "none"
    return tls if tls is INVALID else tls.mode or "tls"


def http_only(listeners: Iterable[Listener]) -> bool:
    """Whether HTTP is all that comes in there (and there is such a listener)."""
    protocols = {
        "http" if one.to is None and not one.transparent and one.protocol == "auto" else one.protocol
        for one in listeners
    }
    return protocols == {"http"}


def protocol_of(listener: Listener) -> str:
    """What arrives at a listener: as written, but HTTP where only that can name a service."""
    by_host = listener.to is None and not listener.transparent and listener_tls(listener) != "passthrough"
    return "http" if by_host and listener.protocol == "auto" else listener.protocol


def opaque(listener: Listener) -> bool:
    """Whether nothing that comes in there is ever taken for HTTP."""
    return listener.protocol == "tcp" or listener_tls(listener) == "passthrough"


def speaks_http2(listener: Listener) -> bool:
    """Whether clients of the listener may speak HTTP/2 with us."""
    return not opaque(listener) and (listener.http2 or ListenerHttp2()).enabled


def listener_alpn(listener: Listener) -> list[str]:
    """What a listener with ordinary TLS agrees on, the preferred protocol first; none: it takes no notice."""
    if listener.tls is not None and listener.tls.alpn is not None:
        return list(listener.tls.alpn)
    if not http_only([listener]):
        return []
    return ["h2", "http/1.1"] if speaks_http2(listener) else ["http/1.1"]


def service_alpn(service: Service, leading: Iterable[Listener]) -> list[str]:
    """What a service with ordinary TLS is offered; `leading`: the listeners that lead to it."""
    if service.tls is not None and service.tls.alpn is not None:
        return list(service.tls.alpn)
    if service.protocol in ("auto", "tcp"):
        return ["h2", "http/1.1"] if service.protocol == "auto" and http_only(leading) else []
    return ["h2" if service.protocol == "http2" else "http/1.1"]


def leading_to(listeners: Iterable[Listener], service: str) -> list[Listener]:
    """The listeners whose requests or connections can go to a service."""
    return [
        one
        for one in listeners
        if one.to == service
        or (one.sni not in (None, INVALID) and service in one.sni.values())
        or (one.to is None and one.role == "outbound")
    ]


def client_cert(listener: Listener) -> str:
    """The mode of X-Forwarded-Client-Cert, `auto` resolved."""
    mode = listener.forwarded.client_cert
    if mode == "auto":
        return "set" if listener_tls(listener) in ("mesh", "permissive") else "remove"
    return mode
