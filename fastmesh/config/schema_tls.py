"""The part of the schema that is about TLS, with clients and with endpoints."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from fastmesh.config.schema_types import Path, Section, ServerName

Alpn = Literal["h2", "http/1.1"]
_ALPN: Final = "Protocols that are agreed on by ALPN (RFC 7301), the preferred one first. Left out: "
_MIN_VERSION: Final = "The oldest version of TLS that is spoken."


class Certificate(Section, frozen=True, kw_only=True):
    """a certificate

    A certificate and its key, in PEM. They are read again when they change.
    """

    certificate: Annotated[
        Path,
        Meta(
            description="The certificate, then its issuers. Clients get it for the DNS names in it.",
            examples=["shop.pem"],
        ),
    ]
    key: Annotated[Path, Meta(description="Its private key, not encrypted.", examples=["shop.key"])]


class ListenerTls(Section, frozen=True, kw_only=True):
    """the TLS settings of a listener

    A word, or ordinary TLS that ends here: `certificates` and what belongs to them.
    """

    mode: Annotated[
        Literal["none", "mesh", "permissive", "passthrough"] | None,
        Meta(
            description="`mesh`: mutual TLS 1.3, the caller must prove a SPIFFE identity. `permissive`: "
            "plaintext is accepted too. `passthrough`: TLS goes unopened to the service that `sni` or `to` "
            "says. `none`: plaintext. Left out: `mesh` on an inbound listener, otherwise `none`; with "
            "`certificates`, TLS by names ends here."
        ),
    ] = None
    certificates: Annotated[
        list[Certificate] | None,
        Meta(
            min_length=1,
            max_length=1024,
            description="What clients are shown: the first certificate for just the name they ask for (SNI), "
            "else one for `*.` above it, else the first of the list.",
        ),
    ] = None
    client_ca: Annotated[
        Path | None,
        Meta(
            description="The roots of clients, in PEM: every client must show a certificate that leads to "
            "one. It gives no SPIFFE identity. Left out: clients are not asked for one.",
            examples=["clients.pem"],
        ),
    ] = None
    alpn: Annotated[
        list[Alpn] | None,
        Meta(
            min_length=1,
            max_length=2,
            description=f"{_ALPN}`h2` and `http/1.1` where only HTTP is spoken (`http/1.1` alone without "
            "`http2`), none otherwise.",
        ),
    ] = None
    min_version: Annotated[Literal["1.2", "1.3"], Meta(description=_MIN_VERSION)] = "1.2"


class ServiceTls(Section, frozen=True, kw_only=True):
    """the TLS settings of a service

    A word, or ordinary TLS: `server_name` and what belongs to it.
    """

    mode: Annotated[
        Literal["none", "mesh"] | None,
        Meta(
            description="`mesh`: mutual TLS 1.3, and the peer must prove `spiffe://TRUST_DOMAIN/NAME` of "
            "this service. `none`, or left out without `server_name`: plaintext."
        ),
    ] = None
    server_name: Annotated[
        ServerName | None,
        Meta(
            description="Whom the server's certificate must be for (RFC 6125), and whom we ask for: a host "
            "name or an IP address.",
            examples=["api.example.com"],
        ),
    ] = None
    ca: Annotated[
        Path | None,
        Meta(
            description="The roots to trust, in PEM. Left out: those of the system.", examples=["partner.pem"]
        ),
    ] = None
    certificate: Annotated[
        Path | None,
        Meta(description="What we show to a server that asks: certificate, then issuers. Needs `key`."),
    ] = None
    key: Annotated[Path | None, Meta(description="Its private key, not encrypted.")] = None
    alpn: Annotated[
        list[Alpn] | None,
        Meta(
            min_length=1,
            max_length=2,
            description=f"{_ALPN}what `protocol` says; with `auto`, `h2` and `http/1.1` where only HTTP gets "
            "here, none otherwise.",
        ),
    ] = None
    min_version: Annotated[Literal["1.2", "1.3"], Meta(description=_MIN_VERSION)] = "1.2"
