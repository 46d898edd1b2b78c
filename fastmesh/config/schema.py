"""The configuration, declared once: every setting with its type, default, bounds and meaning.

The loader, the JSON Schema and the reference page are all derived from these classes; nothing about a
setting is written down anywhere else. A field's type says how its text is read (`values.py`), its
`Meta` what it means and which bounds hold (`ge`, `le`, `min_length`; durations in milliseconds).
A field without a default is required. Checks that need more than one setting stand in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fastmesh.config import values
from fastmesh.config.values import Address

MAX_WORKERS: Final = 256
MAX_SERVICES: Final = 1024  # rows of the counters that all workers share
SECOND: Final = 1000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE

Duration = Annotated[int, Meta(extra={"kind": values.DURATION})]
Percent = Annotated[float, Meta(extra={"kind": values.PERCENT})]
Path = Annotated[str, Meta(extra={"kind": values.PATH})]
Location = Annotated[Address, Meta(extra={"kind": values.ADDRESS})]
ListenerName = Annotated[str, Meta(extra={"kind": values.LISTENER_NAME})]
ServiceName = Annotated[str, Meta(extra={"kind": values.SERVICE_NAME})]
Workload = Annotated[str, Meta(extra={"kind": values.WORKLOAD})]
TrustDomain = Annotated[str, Meta(extra={"kind": values.TRUST_DOMAIN})]
From = Annotated[str, Meta(extra={"kind": values.FROM})]
Method = Annotated[str, Meta(extra={"kind": values.METHOD})]
PathPattern = Annotated[str, Meta(extra={"kind": values.PATH_PATTERN})]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping of the file. The first line of a subclass's docstring names it in messages and pages."""


class AllowRule(Section, frozen=True, kw_only=True):
    """an allow rule

    A request is allowed when one rule allows it: who calls, with which method, which path.
    """

    from_: Annotated[
        list[From],
        Meta(
            min_length=1,
            description="Who may call: workload names of the own trust domain or whole SPIFFE IDs. A `*` at "
            "the end makes a prefix; `*` alone is anybody with an identity.",
            examples=[["svc-a", "spiffe://mesh.local/ns/shop/*"]],
        ),
    ] = msgspec.field(name="from")
    methods: Annotated[
        list[Method] | None,
        Meta(min_length=1, description="HTTP methods. Left out: all.", examples=[["GET", "POST"]]),
    ] = None
    paths: Annotated[
        list[PathPattern] | None,
        Meta(
            min_length=1,
            description="Request paths, exact, or prefixes that end in `*`. Left out: all.",
            examples=[["/health", "/api/*"]],
        ),
    ] = None


class Forwarded(Section, frozen=True, kw_only=True):
    """the forwarded settings

    What the upstream is told about where a request came from.
    """

    x_forwarded: Annotated[
        Literal["append", "replace", "keep", "remove"],
        Meta(
            description="`X-Forwarded-For` and `-Proto`: append the caller to what came in, replace what "
            "came in (for an edge that trusts nobody in front of it), keep it untouched, or remove it."
        ),
    ] = "append"
    forwarded: Annotated[
        Literal["auto", "append", "replace", "remove", "keep"],
        Meta(
            description="`Forwarded` (RFC 7239), likewise; `auto` appends only when the request carries one."
        ),
    ] = "auto"
    via: Annotated[bool, Meta(description="Add `Via` (RFC 9110, 7.6.3) to requests and answers.")] = True


class Listener(Section, frozen=True, kw_only=True):
    """a listener

    An address that accepts connections, and what becomes of them.
    """

    name: Annotated[
        ListenerName,
        Meta(
            description="Names the listener in logs, metrics and errors. Unique in the file.",
            examples=["edge"],
        ),
    ]
    bind: Annotated[
        Location,
        Meta(
            description="Where to listen: `host:port`, `[::1]:port` or `unix:/path`. Port 0 lets the system "
            "choose.",
            examples=["127.0.0.1:8080"],
        ),
    ]
    role: Annotated[
        Literal["edge", "outbound", "inbound"],
        Meta(
            description="`edge`: from clients outside the mesh. `outbound`: from the application into the "
            "mesh. `inbound`: from the mesh to the application."
        ),
    ] = "edge"
    protocol: Annotated[
        Literal["http", "tcp", "auto"],
        Meta(
            description="What arrives: HTTP, opaque bytes, or `auto` to tell from the first bytes. Without "
            "`to` it is always HTTP, because only HTTP names a service."
        ),
    ] = "auto"
    to: Annotated[
        ServiceName | None,
        Meta(
            description="The service that everything goes to. Left out on an outbound listener: the "
            "request's Host names the service.",
            examples=["web"],
        ),
    ] = None
    tls: Annotated[
        Literal["none", "mesh", "permissive"] | None,
        Meta(
            description="`mesh`: mutual TLS 1.3, the caller must prove a SPIFFE identity. `permissive`: "
            "plaintext is accepted too. `none`: plaintext. Left out: `mesh` on an inbound listener, "
            "otherwise `none`."
        ),
    ] = None
    allow: Annotated[
        list[AllowRule] | None,
        Meta(
            min_length=1,
            max_length=64,
            description="Who may do what, in at most 64 rules. Left out: everybody may. Once given, what no "
            "rule allows is answered with 403 (TCP: closed). Needs `tls: mesh` or `permissive`.",
        ),
    ] = None
    header_timeout: Annotated[
        Duration, Meta(ge=1, description="How long a request's head may take to arrive; then 408.")
    ] = 10 * SECOND
    idle_timeout: Annotated[
        Duration, Meta(ge=1, description="How long a kept-alive connection may wait for its next request.")
    ] = 60 * SECOND
    stream_idle_timeout: Annotated[
        Duration, Meta(ge=1, description="How long a request or answer in progress may stand still.")
    ] = 5 * MINUTE
    tcp_idle_timeout: Annotated[
        Duration,
        Meta(ge=1, description="How long an opaque (TCP or upgraded) connection may be silent both ways."),
    ] = 1 * HOUR
    max_connections: Annotated[
        int | None,
        Meta(
            ge=1,
            le=10_000_000,
            description="Connections open at once, for each worker. Left out: no limit.",
            examples=[10000],
        ),
    ] = None
    forwarded: Annotated[Forwarded, Meta(description="What the upstream is told about the caller.")] = (
        Forwarded()
    )


class Endpoint(Section, frozen=True, kw_only=True):
    """an endpoint

    One address of a service. A plain text is short for its `address`.
    """

    address: Annotated[
        Location,
        Meta(
            description="`host:port`, `[::1]:port` or `unix:/path`. A host name is resolved when the "
            "configuration is loaded; every address it has becomes an endpoint.",
            examples=["127.0.0.1:9000"],
        ),
    ]


class Pool(Section, frozen=True, kw_only=True):
    """the pool settings

    Connections to an endpoint that are kept for the next request.
    """

    idle_max: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Idle connections kept, per endpoint and worker. 0: none.")
    ] = 1024
    idle_timeout: Annotated[
        Duration,
        Meta(
            ge=1,
            description="How long one is kept. Below what servers usually wait (60 s), so that we close "
            "first and no request meets a connection that is being closed.",
        ),
    ] = 55 * SECOND


class Service(Section, frozen=True, kw_only=True):
    """a service

    Somewhere requests can go: a name and its endpoints.
    """

    endpoints: Annotated[
        list[Annotated[Endpoint, Meta(extra={"short": "address"})]],
        Meta(
            description="Where the service runs; requests take turns. An empty list answers 503 "
            "`no_endpoint`.",
            examples=[["127.0.0.1:9000", "127.0.0.1:9001"]],
        ),
    ]
    tls: Annotated[
        Literal["none", "mesh"],
        Meta(
            description="`mesh`: mutual TLS 1.3, and the peer must prove `spiffe://TRUST_DOMAIN/NAME` of "
            "this service. `none`: plaintext."
        ),
    ] = "none"
    connect_timeout: Annotated[
        Duration,
        Meta(ge=1, description="How long connecting to one endpoint may take; then the next is tried."),
    ] = 1 * SECOND
    response_timeout: Annotated[
        Duration,
        Meta(
            ge=1, description="How long the head of the answer may take once the request is sent; then 504."
        ),
    ] = 60 * SECOND
    reuse_retry: Annotated[
        Literal["replayable", "idempotent", "off"],
        Meta(
            description="Which requests are sent once more, on a fresh connection, when a kept connection "
            "ends before the first byte of the answer (the endpoint may have closed it just then). "
            "`replayable`: every one that is still whole in the buffer. `idempotent`: of those, only `GET`, "
            "`HEAD`, `PUT`, `DELETE`, `OPTIONS` and `TRACE`. `off`: none."
        ),
    ] = "replayable"
    pool: Annotated[Pool, Meta(description="Connections kept for reuse.")] = Pool()


class AccessLog(Section, frozen=True, kw_only=True):
    """the access log

    One record for every request or opaque connection that ended.
    """

    path: Annotated[
        Path,
        Meta(
            description="The file to append to, relative to the configuration file.", examples=["access.log"]
        ),
    ]
    format: Annotated[Literal["json"], Meta(description="`json`: one object a line.")] = "json"
    sample: Annotated[Percent, Meta(description="The share of records that is written.")] = 1.0


class Telemetry(Section, frozen=True, kw_only=True):
    """the telemetry settings

    What the proxy tells about the traffic, beside its metrics.
    """

    access_log: Annotated[
        AccessLog | None, Meta(description="The access log. Left out: none is written.")
    ] = None


class Config(Section, frozen=True, kw_only=True):
    """the configuration

    A file with only `listeners` and `services` is complete: no identity, no TLS.
    """

    listeners: Annotated[list[Listener], Meta(min_length=1, description="Where connections are accepted.")]
    services: Annotated[
        dict[ServiceName, Service],
        Meta(max_length=MAX_SERVICES, description="Where requests go, by name."),
    ] = msgspec.field(default_factory=dict)
    workload: Annotated[
        Workload | None,
        Meta(
            description="The name of the workload that this proxy stands for: its identity is "
            "`spiffe://TRUST_DOMAIN/WORKLOAD`. Needed by `tls: mesh` and `permissive`.",
            examples=["svc-a"],
        ),
    ] = None
    trust_domain: Annotated[
        TrustDomain | None,
        Meta(description="The trust domain of the mesh. Needed like `workload`.", examples=["mesh.local"]),
    ] = None
    pki: Annotated[
        Path | None,
        Meta(
            description="The directory that `fastmesh certs` writes, relative to this file. Needed like "
            "`workload`.",
            examples=["pki"],
        ),
    ] = None
    workers: Annotated[
        int | None,
        Meta(
            ge=1,
            le=MAX_WORKERS,
            description="Worker processes. Left out: one for each CPU this process may use, the cgroup's "
            "quota respected.",
            examples=[2],
        ),
    ] = None
    drain: Annotated[
        Duration,
        Meta(ge=0, description="How long exchanges may take to finish when the proxy stops."),
    ] = 30 * SECOND
    admin: Annotated[
        Location | None,
        Meta(
            description="Where `/metrics`, `/healthz`, `/readyz` and `/config` are served; `off` for "
            "nowhere. They have no authentication: keep them on loopback. Left out: this address if it is "
            "free.",
            extra={"off": True},
        ),
    ] = Address("127.0.0.1", 15000)
    telemetry: Annotated[Telemetry, Meta(description="The access log.")] = Telemetry()
