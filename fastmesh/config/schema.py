"""The configuration, declared once: every setting with its type, default, bounds and meaning.

The loader, the JSON Schema and the reference page are all derived from these classes and those of the
modules `schema_*` beside this one; nothing about a setting is written down anywhere else. A field's type
says how its text is read (`schema_types.py`, `values.py`), its `Meta` what it means and which bounds hold
(`ge`, `le`, `min_length`; durations in milliseconds). A field without a default is required. Checks that need
more than one setting stand in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fastmesh.config.schema_dns import Dns
from fastmesh.config.schema_health import HealthCheck
from fastmesh.config.schema_intercept import Intercept
from fastmesh.config.schema_rules import ALLOW, DENY, MODE, RULE_LIST, Rule
from fastmesh.config.schema_tls import ListenerTls, ServiceTls
from fastmesh.config.schema_types import (
    HOUR,
    MINUTE,
    SECOND,
    Duration,
    EndpointLocation,
    HostPattern,
    ListenerName,
    Location,
    Path,
    Percent,
    PortName,
    Section,
    ServiceName,
    SpiffeId,
    TrustDomain,
    Workload,
)
from fastmesh.config.values import Address

MAX_WORKERS: Final = 256
MAX_SERVICES: Final = 1024  # rows of the counters that all workers share


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
    client_cert: Annotated[
        Literal["auto", "set", "append", "keep", "remove"],
        Meta(
            description="`X-Forwarded-Client-Cert` (Envoy's syntax: By, Hash, URI), the proven identity of "
            "the caller. `set`: what came in is removed, and ours is set if there is an identity. `append`: "
            "ours behind what came in. `keep`: what came in, untouched. `remove`. `auto`: `set` where `tls` "
            "is `mesh` or `permissive`, otherwise `remove`."
        ),
    ] = "auto"


_PING: Final = (
    "How long an HTTP/2 connection may bring nothing until it is asked for a sign of life (PING, RFC 9113, "
    "6.7). `0s`: it is not asked."
)
_PING_TIMEOUT: Final = "How long the answer to that may take; then the connection is closed."


class ListenerHttp2(Section, frozen=True, kw_only=True):
    """the HTTP/2 settings of a listener

    HTTP/2 with clients: where they agree on it by ALPN, and in plaintext where they begin with it.
    """

    enabled: Annotated[bool, Meta(description="`false`: HTTP/1.1 is all that is spoken.")] = True
    max_concurrent_streams: Annotated[
        int,
        Meta(
            ge=1,
            le=65535,
            description="Requests that a client may have open at once on one connection (RFC 9113, 5.1.2).",
        ),
    ] = 1000
    ping_interval: Annotated[Duration, Meta(ge=0, description=_PING)] = 30 * SECOND
    ping_timeout: Annotated[Duration, Meta(ge=1, description=_PING_TIMEOUT)] = 10 * SECOND


class ServiceHttp2(Section, frozen=True, kw_only=True):
    """the HTTP/2 settings of a service

    HTTP/2 with endpoints.
    """

    ping_interval: Annotated[Duration, Meta(ge=0, description=_PING)] = 30 * SECOND
    ping_timeout: Annotated[Duration, Meta(ge=1, description=_PING_TIMEOUT)] = 10 * SECOND


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
            "`to` it is always HTTP, because only HTTP names a service, unless the listener is transparent."
        ),
    ] = "auto"
    transparent: Annotated[
        bool,
        Meta(
            description="Connections come by interception, and where the client wanted to go decides. "
            "`outbound`: the service that has this destination among its `addresses`, else among its "
            "endpoints; where several have it, Host or the name in the TLS hello; else `unknown`. `inbound`: "
            "the application on the same port at loopback; what is made to this address itself goes to `to`, "
            "whose rules stand on this listener, or to the only port of `intercept.inbound`."
        ),
    ] = False
    unknown: Annotated[
        Literal["passthrough", "reject"],
        Meta(
            description="Outbound and transparent: a destination that no service has. `passthrough`: opaque "
            "bytes to the destination itself. `reject`: closed, `unknown_destination`."
        ),
    ] = "passthrough"
    ports: Annotated[
        dict[PortName, Literal["http", "tcp", "auto"]] | None,
        Meta(
            min_length=1,
            max_length=256,
            description="Transparent: the protocol by the port that the client wanted, instead of "
            "`protocol`.",
        ),
    ] = None
    to: Annotated[
        ServiceName | None,
        Meta(
            description="The service that everything goes to. Left out on an outbound listener: the "
            "request's Host names the service.",
            examples=["web"],
        ),
    ] = None
    tls: Annotated[
        ListenerTls | None,
        Meta(
            extra={"short": "mode"},
            description="How TLS is spoken with clients. Left out: `mesh` on an inbound listener, otherwise "
            "`none`.",
        ),
    ] = None
    http2: Annotated[
        ListenerHttp2 | None, Meta(description="HTTP/2 with clients. Left out: it is spoken, as below.")
    ] = None
    grpc_web: Annotated[
        bool,
        Meta(
            description="Translate gRPC-Web, which browsers speak, into gRPC for the service, and the answer "
            "back."
        ),
    ] = False
    sni: Annotated[
        dict[HostPattern, ServiceName] | None,
        Meta(
            min_length=1,
            max_length=1024,
            description="With `tls: passthrough`: the service for the name that a client asks for, exact or "
            "`*.suffix`. What is not here goes to `to`; without that it is closed.",
        ),
    ] = None
    allow: Annotated[list[Rule] | None, RULE_LIST, Meta(description=ALLOW)] = None
    deny: Annotated[list[Rule] | None, RULE_LIST, Meta(description=DENY)] = None
    mode: Annotated[Literal["enforce", "audit"] | None, Meta(description=MODE)] = None
    normalize_paths: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Bring the path of requests into normal form (RFC 3986, 6.2.2: `/a/../b`, `//b` and "
            "`/%62` become `/b`), for rules and for the upstream, and refuse with 400 `bad_target` what "
            "readers may take for different paths. `auto`: where rules have `paths`. `off`: never rewrite; "
            "where rules have `paths`, what is not in normal form is refused."
        ),
    ] = "auto"
    encoded_slashes: Annotated[
        Literal["refuse", "keep"],
        Meta(
            description="What becomes of `%2F` and `%5C` where paths are normalised: 400 `bad_target`, or "
            "they stay as they are, for an upstream that tells them from `/`."
        ),
    ] = "refuse"
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
    max_connection_age: Annotated[
        Duration | None,
        Meta(
            ge=1,
            description="How old a connection may get: then the next answer says `Connection: close`, and an "
            "idle connection is closed. Left out: as old as the certificates that it was made with. Opaque "
            "(TCP or upgraded) connections are never cut for their age; with this setting they end with "
            "their certificates, without it they go on.",
            examples=["1h"],
        ),
    ] = None
    max_connections: Annotated[
        int | None,
        Meta(
            ge=1,
            le=10_000_000,
            description="Connections open at once, for each worker. Left out: no limit.",
            examples=[10000],
        ),
    ] = None
    max_handshakes: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="TLS handshakes under way at once, for each worker; one more is closed at once "
            "(`tls_busy`).",
        ),
    ] = 512
    handshakes_per_source: Annotated[
        int | None,
        Meta(
            ge=1,
            le=100_000,
            description="TLS handshakes that one address (IPv6: one /64) may begin in a second, for each "
            "worker; one more is closed at once (`tls_rate`). Left out: no limit, because a balancer or NAT "
            "in front makes many clients one address.",
            examples=[50],
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
        EndpointLocation,
        Meta(
            description="`host:port`, `[::1]:port` or `unix:/path`. A host name is resolved when the "
            "configuration is loaded; every address it has becomes an endpoint. An IP address without a "
            "port (`10.0.0.2`, `[fd00::2]`) is connected to on the port that the client wanted, where only "
            "transparent listeners lead.",
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
    addresses: Annotated[
        list[Location] | None,
        Meta(
            min_length=1,
            max_length=1024,
            description="What applications dial to reach the service, where their connections come by "
            "interception. Its endpoints' addresses lead there too, unless they are here of another service.",
            examples=[["10.77.0.2:80"]],
        ),
    ] = None
    tls: Annotated[
        ServiceTls | None,
        Meta(
            extra={"short": "mode"},
            description="How TLS is spoken with the endpoints. Left out: plaintext.",
        ),
    ] = None
    spiffe_id: Annotated[
        SpiffeId | None,
        Meta(
            description="With `tls: mesh`: the identity that the peer must prove instead of "
            "`spiffe://TRUST_DOMAIN/NAME`.",
            examples=["spiffe://mesh.local/ns/shop/sa/cart"],
        ),
    ] = None
    protocol: Annotated[
        Literal["auto", "http1", "http2", "tcp"],
        Meta(
            description="The HTTP that endpoints are spoken to in. `auto`: with TLS what they agree on by "
            "ALPN, HTTP/2 before HTTP/1.1; in plaintext HTTP/1.1, but HTTP/2 for gRPC. `http1`: HTTP/1.1. "
            "`http2`: HTTP/2, in plaintext too (prior knowledge, RFC 9113, 3.3). `tcp`: no HTTP, opaque "
            "bytes; nothing is told from the first of them."
        ),
    ] = "auto"
    mesh_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="HTTP/2 connections to one endpoint, for each worker; requests share them. There are "
            "more only where an endpoint allows too few requests at once on one.",
        ),
    ] = 1
    http2: Annotated[ServiceHttp2 | None, Meta(description="HTTP/2 with endpoints. Left out: as below.")] = (
        None
    )
    health_check: Annotated[
        HealthCheck | None,
        Meta(
            description="How endpoints are asked whether they are well. Left out: they are not asked, and "
            "all of them get requests.",
        ),
    ] = None
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
    allow: Annotated[
        list[Rule] | None, RULE_LIST, Meta(description=f"{ALLOW} Asked after the listener's rules.")
    ] = None
    deny: Annotated[list[Rule] | None, RULE_LIST, Meta(description=DENY)] = None
    mode: Annotated[Literal["enforce", "audit"] | None, Meta(description=MODE)] = None


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
    spiffe_id: Annotated[
        SpiffeId | None,
        Meta(
            description="The identity that the certificate of this workload must have instead of "
            "`spiffe://TRUST_DOMAIN/WORKLOAD`: one issued with `certs issue --spiffe`.",
            examples=["spiffe://mesh.local/ns/shop/sa/cart"],
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
    intercept: Annotated[
        Intercept | None,
        Meta(
            description="Which traffic `fastmesh intercept up` leads through this proxy. Left out: none, and "
            "applications call it by its address."
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
            description="Where `/metrics`, `/healthz`, `/readyz`, `/services` and `/config` are served; "
            "`off` for nowhere. They have no authentication: keep them on loopback. Left out: this address "
            "if it is free.",
            extra={"off": True},
        ),
    ] = Address("127.0.0.1", 15000)
    telemetry: Annotated[Telemetry, Meta(description="The access log.")] = Telemetry()
    dns: Annotated[Dns | None, Meta(description="The sidecar's own resolver. Left out: there is none.")] = (
        None
    )
