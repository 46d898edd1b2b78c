"""The part of the schema that is about the sidecar's own resolver."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fastmesh.config.schema_types import SECOND, Cidr, DnsDomain, Duration, Location, Section


class Dns(Section, frozen=True, kw_only=True):
    """the DNS settings

    A resolver on the sidecar: it answers the names of services with their addresses, and asks others for
    everything else.
    """

    listen: Annotated[
        Location,
        Meta(
            description="Where it answers, by UDP and by TCP: one address of this host. Its clients need no "
            "leave: keep it on loopback. Below port 1024 it needs CAP_NET_BIND_SERVICE.",
            examples=["127.0.0.1:15053"],
        ),
    ]
    upstream: Annotated[
        Location | None,
        Meta(
            description="The name server that is asked for what is not of the mesh, by its IP address. Left "
            "out: those of `/etc/resolv.conf`, in their order.",
            examples=["192.0.2.53:53"],
        ),
    ] = None
    domain: Annotated[
        DnsDomain,
        Meta(description="Services are found as `NAME` and as `NAME.` with this behind it."),
    ] = "mesh"
    virtual: Annotated[
        Cidr,
        Meta(
            description="The IPv4 network of virtual addresses: each service has one of its own, and always "
            "the same. Nothing else on the network may use it."
        ),
    ] = "240.77.0.0/16"
    virtual6: Annotated[
        Cidr,
        Meta(description="The IPv6 network of virtual addresses, likewise."),
    ] = "fd77:6d65:7368::/64"
    ttl: Annotated[
        Duration,
        Meta(ge=0, description="How long an answer about a service may be kept, in whole seconds."),
    ] = 5 * SECOND
