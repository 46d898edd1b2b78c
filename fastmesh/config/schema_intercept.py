"""The part of the schema that is about interception: whose traffic goes through the proxy unasked."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fastmesh.config import intercept_values as values
from fastmesh.config.schema_types import Cidr, ListenerName, Port, Section

User = Annotated[str, Meta(extra={"kind": values.USER})]
Interface = Annotated[str, Meta(extra={"kind": values.INTERFACE})]
Cgroup = Annotated[str, Meta(extra={"kind": values.CGROUP})]
Mark = Annotated[int, Meta(extra={"kind": values.MARK})]

DEFAULT_MARK: Final = 0x0FA5
_MOST: Final = Meta(max_length=256)
_LISTENER: Final = (
    "The listener that it goes to. Left out: the one with `transparent` and this role; there may be two, one "
    "for IPv4 and one for IPv6."
)


class InterceptOutbound(Section, frozen=True, kw_only=True):
    """the outgoing interception

    TCP connections that the application makes, except to loopback addresses (127.0.0.0/8, ::1) and to those
    of one link (fe80::/10). An empty mapping (`{}`) takes all others.
    """

    ports: Annotated[
        list[Port] | None,
        Meta(
            min_length=1,
            max_length=256,
            description="Take connections to these ports only. Left out: to all.",
            examples=[[80, 443]],
        ),
    ] = None
    exclude_ports: Annotated[
        list[Port], _MOST, Meta(description="Connections to these ports are not taken.", examples=[[22]])
    ] = msgspec.field(default_factory=list)
    exclude_cidrs: Annotated[
        list[Cidr],
        _MOST,
        Meta(description="Connections to these addresses are not taken.", examples=[["169.254.0.0/16"]]),
    ] = msgspec.field(default_factory=list)
    exclude_uids: Annotated[
        list[User],
        _MOST,
        Meta(description="Connections of these users are not taken.", examples=[["backup", 1001]]),
    ] = msgspec.field(default_factory=list)
    exclude_interfaces: Annotated[
        list[Interface],
        _MOST,
        Meta(
            description="Connections that leave through these interfaces are not taken.",
            examples=[["docker0", "veth*"]],
        ),
    ] = msgspec.field(default_factory=list)
    listener: Annotated[ListenerName | None, Meta(description=_LISTENER)] = None


class InterceptInbound(Section, frozen=True, kw_only=True):
    """the incoming interception

    TCP connections that come in from elsewhere for the application's ports, not those over loopback.
    """

    ports: Annotated[
        list[Port],
        Meta(
            min_length=1,
            max_length=256,
            description="The ports of the application: none that this proxy listens on.",
            examples=[[8080]],
        ),
    ]
    exclude_cidrs: Annotated[
        list[Cidr], _MOST, Meta(description="Connections from these addresses are not taken.")
    ] = msgspec.field(default_factory=list)
    exclude_interfaces: Annotated[
        list[Interface], _MOST, Meta(description="Connections that arrive at these interfaces are not taken.")
    ] = msgspec.field(default_factory=list)
    listener: Annotated[ListenerName | None, Meta(description=_LISTENER)] = None


class Intercept(Section, frozen=True, kw_only=True):
    """the interception

    Traffic that goes through the proxy without the application's help, once `fastmesh intercept up` has been
    run. What the proxy itself sends never comes back to it: its sockets carry `mark`, or it runs as one of
    `exempt_uids`, or in one of `exempt_cgroups`.
    """

    method: Annotated[
        Literal["redirect", "tproxy"],
        Meta(
            description="`redirect`: the destination is rewritten (NAT). `tproxy`: it is not, and the "
            "application sees the addresses of its callers; needs policy routes, which `up` sets too."
        ),
    ] = "redirect"
    outbound: Annotated[
        InterceptOutbound | None, Meta(description="Take outgoing traffic. Left out: none of it.")
    ] = None
    inbound: Annotated[
        InterceptInbound | None, Meta(description="Take incoming traffic. Left out: none of it.")
    ] = None
    mark: Annotated[
        Mark, Meta(description="What the proxy's own sockets carry (`SO_MARK`): they are never taken.")
    ] = DEFAULT_MARK
    exempt_uids: Annotated[
        list[User],
        _MOST,
        Meta(
            description="Users whose outgoing traffic is never taken: the proxy's own, when it runs without "
            "CAP_NET_ADMIN and cannot mark its sockets.",
            examples=[["fastmesh"]],
        ),
    ] = msgspec.field(default_factory=list)
    exempt_cgroups: Annotated[
        list[Cgroup],
        _MOST,
        Meta(
            description="Cgroups (version 2) whose outgoing traffic is never taken: below the root of the "
            "hierarchy, or as directories.",
            examples=[["system.slice/fastmesh.service"]],
        ),
    ] = msgspec.field(default_factory=list)
