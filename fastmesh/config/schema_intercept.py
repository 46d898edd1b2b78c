"""The part of the schema that is about taking over the traffic of applications."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from fastmesh.config.schema_types import Port, Section


class Inbound(Section, frozen=True, kw_only=True):
    """the inbound interception

    What arrives for the application.
    """

    ports: Annotated[
        list[Port],
        Meta(
            min_length=1,
            max_length=256,
            description="The ports that the application listens on.",
            examples=[[8080]],
        ),
    ]


class Intercept(Section, frozen=True, kw_only=True):
    """the interception

    Which traffic is taken over without the application's help.
    """

    method: Annotated[
        Literal["redirect", "tproxy"],
        Meta(
            description="`redirect`: by address translation. `tproxy`: connections arrive as they are, with "
            "the client's address; listening needs CAP_NET_ADMIN."
        ),
    ] = "redirect"
    inbound: Annotated[Inbound | None, Meta(description="What arrives. Left out: nothing is taken.")] = None
    mark: Annotated[
        int,
        Meta(
            ge=1,
            le=0xFFFFFFFF,
            description="The mark (SO_MARK) of our own connections, by which they are told from the "
            "application's. Setting it needs CAP_NET_ADMIN; without that nothing is marked.",
        ),
    ] = 0x0FA5
