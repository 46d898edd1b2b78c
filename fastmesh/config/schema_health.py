"""The part of the schema that is about active health checks."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from fastmesh.config.schema_types import SECOND, Duration, GrpcService, RequestPath, Section

MIN_INTERVAL: Final = 100
MAX_CHECKED: Final = 16384  # endpoints of all services: each has a byte in the memory that workers share


class HealthCheck(Section, frozen=True, kw_only=True):
    """the health check

    Every endpoint is asked how it is, by `path` or by `grpc`. One that is not well gets no requests, unless
    none is well.
    """

    path: Annotated[
        RequestPath | None,
        Meta(
            description="Ask by HTTP, `GET` of this path: any 2xx is healthy. In HTTP/1.1, or in HTTP/2 with "
            "`protocol: http2`.",
            examples=["/healthz"],
        ),
    ] = None
    grpc: Annotated[
        GrpcService | None,
        Meta(
            description="Ask by gRPC's health protocol (`grpc.health.v1.Health/Check`) for this service, "
            '`""` for the whole server: only `SERVING` is healthy.',
            examples=["shop.Orders"],
        ),
    ] = None
    interval: Annotated[
        Duration,
        Meta(
            ge=1,
            description="From one check of an endpoint to the next, give or take a tenth. At least `100ms`.",
        ),
    ] = 5 * SECOND
    timeout: Annotated[
        Duration, Meta(ge=1, description="How long a check may take, connecting included.")
    ] = 1 * SECOND
    healthy: Annotated[
        int,
        Meta(ge=1, le=100, description="Good checks in a row after which an unhealthy endpoint is healthy."),
    ] = 2
    unhealthy: Annotated[
        int,
        Meta(ge=1, le=100, description="Bad checks in a row after which a healthy endpoint is unhealthy."),
    ] = 3
