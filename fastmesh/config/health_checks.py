"""What must hold between the settings of a health check, and between them and those of its service."""

from __future__ import annotations

from fastmesh.config.invalid import INVALID, Report
from fastmesh.config.positions import Where
from fastmesh.config.schema import Service
from fastmesh.config.schema_health import MIN_INTERVAL
from fastmesh.config.values import format_duration


def check_health(where: Where, service: Service, report: Report) -> None:
    """Report what is wrong with the health check of a service, which stands at `where`."""
    check = service.health_check
    if check is None or check is INVALID:
        return
    here = (*where, "health_check")
    if check.path is None and check.grpc is None:
        report(here, "a health check without 'path' and 'grpc', expected what is asked: one of them")
    elif check.path is not None and check.grpc is not None:
        report((*here, "grpc"), "grpc beside path, expected one of them")
    if check.interval is not INVALID and check.interval < MIN_INTERVAL:
        text, least = format_duration(check.interval), format_duration(MIN_INTERVAL)
        report((*here, "interval"), f"interval: {text}, expected at least {least}")
    if check.grpc is None:
        return
    if service.protocol == "http1":
        report((*here, "grpc"), "grpc with protocol: http1, expected auto or http2 (gRPC needs HTTP/2)")
    alpn = None if service.tls is None or service.tls is INVALID else service.tls.alpn
    if alpn is not None and alpn is not INVALID and INVALID not in alpn and "h2" not in alpn:
        report((*here, "grpc"), "grpc with tls.alpn without h2, expected h2 in it (gRPC needs HTTP/2)")
