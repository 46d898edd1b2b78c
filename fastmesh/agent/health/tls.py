"""How checks speak TLS: for each service as the data plane would, with the same keys and the same trust.

Contexts are made from a snapshot before its keys are cut out (`State.take_snapshot`), so that they are those
that the workers have, never a pair that is just being replaced on the disk. A key passes through a memfd,
because `ssl` reads files only; it stays in OpenSSL's memory and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Mapping
from typing import Any, cast

from fastmesh.agent.health.words import AnswerError
from fastmesh.host.endpoints import checked


class CheckTls:
    """The TLS of one service. `error`: why it cannot be spoken, empty if it can."""

    def __init__(self, service: Mapping[str, Any], identity: Mapping[str, Any] | None, made_of: str) -> None:
        self.made_of = made_of
        self.error = ""
        self.server_name = ""
        self._spiffe_id = ""
        self._revoked: frozenset[int] = frozenset()
        self._h2 = speaks_http2(service)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.set_alpn_protocols(["h2" if self._h2 else "http/1.1"])
        try:
            if service["tls"] == "mesh":
                self._mesh(service["spiffe_id"], identity or {})
            else:
                self._public(service["tls_context"])
        except (OSError, ValueError, LookupError) as error:
            self.error = f"its TLS cannot be set up: {error}"

    def _mesh(self, spiffe_id: str, identity: Mapping[str, Any]) -> None:
        """Mutual TLS 1.3; the peer must prove just this identity, by the roots of its own trust domain."""
        self._spiffe_id = spiffe_id
        domain = spiffe_id.split("/")[2]
        own = domain == identity["spiffe_id"].split("/")[2]
        bundle = identity["bundle"] if own else identity["federated"].get(domain)
        if bundle is None:
            raise ValueError(f"the trust domain {domain} is not federated")
        if own:
            self._revoked = frozenset(int(serial, 16) for serial in identity["revoked"])
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.check_hostname = False  # who it is says its SPIFFE ID: `refusal`
        self.context.load_verify_locations(cadata=bundle)
        _load(self.context, identity["certificate"], identity["key"])

    def _public(self, settings: Mapping[str, Any]) -> None:
        """Ordinary TLS, by the name of the server."""
        self.server_name = settings["server_name"]
        self.context.hostname_checks_common_name = False
        if settings["min_version"] == "1.3":
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        else:
            self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.get("ca"):
            self.context.load_verify_locations(cadata=settings["ca"])
        else:
            self.context.set_default_verify_paths()
        if settings.get("certificate"):
            _load(self.context, settings["certificate"], settings["key"])

    def judge(self, connection: ssl.SSLObject) -> None:
        """Look at a finished handshake. Raises AnswerError if this is not whom we wanted to speak with."""
        if self._spiffe_id:
            shown = connection.getpeercert() or {}
            names = cast("tuple[tuple[str, str], ...]", shown.get("subjectAltName", ()))
            ids = [value for kind, value in names if kind == "URI"]
            if ids != [self._spiffe_id]:  # X.509-SVID, 2: exactly one
                proven = ", ".join(ids) or "none"
                raise AnswerError(f"it proved the identity {proven}, expected {self._spiffe_id}")
            if int(str(shown["serialNumber"]), 16) in self._revoked:
                raise AnswerError("its certificate is revoked")
        if self._h2 and connection.selected_alpn_protocol() != "h2":
            raise AnswerError("it does not agree to HTTP/2 (ALPN)")


def speaks_http2(service: Mapping[str, Any]) -> bool:
    """Whether a service is checked in HTTP/2."""
    return service["protocol"] == "http2" or service["health_check"]["grpc"] is not None


def check_tls(snapshot: Mapping[str, Any], before: Mapping[str, CheckTls]) -> dict[str, CheckTls]:
    """The TLS of the services whose checks need it, by name. What is made of the same stays the same: its
    keys need not be in the snapshot any more.
    """
    found: dict[str, CheckTls] = {}
    for service, _ in checked(snapshot):
        name = service["name"]
        if service["tls"] == "none" or name in found:
            continue
        identity = snapshot["identity"] if service["tls"] == "mesh" else None
        made_of = _digest(service, identity)
        known = before.get(name)
        same = known is not None and known.made_of == made_of
        found[name] = known if known is not None and same else CheckTls(service, identity, made_of)
    return found


def _digest(service: Mapping[str, Any], identity: Mapping[str, Any] | None) -> str:
    """What two contexts of the same content have in common: a certificate is for one key."""
    block = identity or service["tls_context"]
    content = {key: value for key, value in block.items() if key != "key"}
    parts = (content, service["tls"], service["spiffe_id"], speaks_http2(service))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    fd = os.memfd_create("fastmesh-check", os.MFD_CLOEXEC)
    try:
        with open(fd, "w", closefd=False) as file:
            file.write(f"{certificate}\n{key}\n")
        # The password keeps OpenSSL from asking for one at a terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
    finally:
        os.close(fd)
