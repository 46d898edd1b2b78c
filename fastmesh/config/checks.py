"""What no single setting can tell: the checks between settings, each reported at the line it is about.

They run on whatever the walk could make of the file, also when there were errors, so that one run shows
everything. A value that is `INVALID` was reported already and is never reported again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fastmesh.config.dns_checks import check_dns
from fastmesh.config.errors import nearest, plain, shown
from fastmesh.config.health_checks import check_health
from fastmesh.config.intercept_checks import check_intercept
from fastmesh.config.invalid import INVALID, Report
from fastmesh.config.positions import Where
from fastmesh.config.roles import leading_to, listener_tls, opaque, service_tls
from fastmesh.config.rule_checks import check_rules
from fastmesh.config.schema import Config, Listener, Service
from fastmesh.config.transparent_checks import check_transparent
from fastmesh.config.values import MAX_UNIX_PATH, Address, alternatives

_TLS_BY_ROLE: Final = {
    "edge": ("none", "terminate", "passthrough"),
    "outbound": ("none", "terminate", "passthrough"),
    "inbound": ("mesh", "permissive", "none", "terminate", "passthrough"),
}
_WHY_NO_TLS: Final = {
    "edge": "clients outside the mesh have no identity",
    "outbound": "the application calls in plaintext",
}
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def check(config: Config, base: Path, report: Report) -> None:
    """Report everything that is wrong between the settings; `base` is the directory of the file."""
    _Checks(config, base, report).run()


def located(base: Path, path: str) -> str:
    """A path of the file as an absolute one."""
    return str(base / path)


class _Checks:
    def __init__(self, config: Config, base: Path, report: Report) -> None:
        self.config = config
        self.base = base
        self.report = report
        self.listeners = list(_valid(config.listeners))
        services = {} if config.services is INVALID else config.services
        self.services: dict[str, Service] = {k: v for k, v in services.items() if v is not INVALID}

    def run(self) -> None:
        self.identity()
        self.spiffe_ids()
        self.unique_names()
        self.unique_binds()
        for index, listener in self.listeners:
            where = ("listeners", index)
            self.role(where, listener)
            self.tls(where, listener)
            self.http(where, listener)
            self.target(where, listener.to, (*where, "to"))
            for pattern, to in _pairs(listener.sni):
                self.target(where, to, (*where, "sni", pattern))
            self.loops(listener)
        for name, service in self.services.items():
            self.service_tls(("services", name, "tls"), service)
            self.service_http(("services", name), name, service)
            check_health(("services", name), service, self.report)
            for index, address in self.endpoints(name):
                self.endpoint(("services", name, "endpoints", index), address)
        check_rules(self.listeners, self.services, self.report)
        check_intercept(self.config, self.listeners, self.report)
        check_transparent(self.config, self.listeners, self.services, self.report)
        check_dns(self.config, self.services, self.report)

    def identity(self) -> None:
        keys = ("workload", "trust_domain", "pki")
        missing = tuple(f"`{key}`" for key in keys if getattr(self.config, key) is None)
        if not missing:
            return
        needed = f"needs an identity, expected {alternatives(missing, 'and')} at the top of the file"
        for index, listener in self.listeners:
            tls = listener_tls(listener)
            if tls in ("mesh", "permissive"):
                implied = "" if listener.tls else f" (the default with role: {listener.role})"
                self.report(("listeners", index, "tls"), f"tls: {tls}{implied} {needed}")
        for name, service in self.services.items():
            if service_tls(service) == "mesh":
                self.report(("services", name, "tls"), f"tls: mesh {needed}")

    def spiffe_ids(self) -> None:
        domain, own = self.config.trust_domain, self.config.spiffe_id
        if own is None or domain is None or INVALID in (own, domain):
            pass
        elif not own.startswith(f"spiffe://{domain}/"):
            message = f"{shown(own)} is not of trust_domain {shown(domain)}, expected spiffe://{domain}/…"
            self.report(("spiffe_id",), message)
        for name, service in self.services.items():
            if service.spiffe_id is not None and service_tls(service) in ("none", "tls"):
                message = "spiffe_id without TLS, expected tls: mesh: nothing is proven in plaintext"
                self.report(("services", name, "spiffe_id"), message)

    def unique_names(self) -> None:
        first: dict[str, int] = {}
        for index, listener in self.listeners:
            name = listener.name
            if name is INVALID:
                continue
            if name in first:
                message = f"two listeners named {shown(name)}, expected a name of its own"
                self.report(("listeners", index, "name"), message)
            first.setdefault(name, index)

    def unique_binds(self) -> None:
        taken: dict[tuple[str, int], str] = {}
        admin = self.config.admin
        if admin is not None and admin is not INVALID:
            if admin.path is not None:
                self.report(("admin",), f"{shown(str(admin))} is a Unix socket, expected host:port or off")
            elif (key := self.key(admin)) is not None:
                taken[key] = "`admin`"
        dns = self.config.dns
        if dns is not None and dns is not INVALID and dns.listen is not INVALID:
            key = self.key(dns.listen)
            if key is not None and key in taken:
                self.report(
                    ("dns", "listen"),
                    f"{shown(str(dns.listen))} is the address of `admin` too, expected one of its own",
                )
            elif key is not None:
                taken[key] = "`dns`"
        for index, listener in self.listeners:
            bind = listener.bind
            if bind is INVALID:
                continue
            where = ("listeners", index, "bind")
            self.socket_path(where, bind)
            key = self.key(bind)
            if key is None:
                continue
            if key in taken:
                self.report(
                    where, f"{shown(str(bind))} is the address of {taken[key]} too, expected one of its own"
                )
            name = f"number {index + 1}" if listener.name is INVALID else shown(listener.name)
            taken.setdefault(key, f"listener {name}")

    def role(self, where: Where, listener: Listener) -> None:
        role, tls = listener.role, listener_tls(listener)
        if role is INVALID:
            return
        if tls is not INVALID and tls not in _TLS_BY_ROLE[role]:
            message = f"tls: {tls} with role: {role}, expected none ({_WHY_NO_TLS[role]}) or role: inbound"
            self.report((*where, "tls"), message)
        if listener.to is not None or tls == "passthrough" or listener.transparent is True:
            return
        if role != "outbound":
            self.report(where, f"role: {role} without 'to', expected the service that it goes to")
        elif listener.protocol == "tcp":
            message = "protocol: tcp without 'to', expected the service that it goes to (only HTTP names one)"
            self.report(where, message)

    def tls(self, where: Where, listener: Listener) -> None:
        """What `tls` needs, and what is of no use beside it."""
        tls, mode = listener.tls, listener_tls(listener)
        if mode is INVALID:
            return
        if tls is not None and tls.mode is not None:
            for key in ("certificates", "client_ca", "alpn"):
                if getattr(tls, key) is not None:
                    message = f"{key} beside mode: {mode}, expected it without mode (TLS by names ends here)"
                    self.report((*where, "tls", key), message)
        elif tls is not None and tls.certificates is None:
            self.report((*where, "tls"), "TLS that ends here without certificates, expected at least one")
        if mode == "passthrough":
            if listener.to is None and listener.sni is None:
                message = "tls: passthrough without 'sni' and 'to', expected where connections go"
                self.report((*where, "tls"), message)
            if listener.protocol == "http":
                message = (
                    "protocol: http with tls: passthrough, expected tcp or auto (nobody sees what is inside)"
                )
                self.report((*where, "protocol"), message)
        elif listener.sni is not None:
            self.report((*where, "sni"), f"sni with tls: {mode}, expected tls: passthrough")

    def service_tls(self, where: Where, service: Service) -> None:
        tls = service.tls
        if tls is None or tls is INVALID or tls.mode is INVALID:
            return
        keys = ("server_name", "ca", "certificate", "key", "alpn")
        if tls.mode is not None:
            for key in keys:
                if getattr(tls, key) is not None:
                    message = f"{key} beside mode: {tls.mode}, expected it without mode (ordinary TLS)"
                    self.report((*where, key), message)
            return
        if tls.server_name is None:
            self.report(where, "ordinary TLS without server_name, expected whom the certificate must be for")
        for one, other in (("certificate", "key"), ("key", "certificate")):
            if getattr(tls, one) is not None and getattr(tls, other) is None:
                self.report((*where, one), f"{one} without {other}, expected both or neither")

    def http(self, where: Where, listener: Listener) -> None:
        """Settings that are about HTTP, where none comes; protocols that are offered and not spoken."""
        if INVALID in (listener.protocol, listener_tls(listener)):
            return
        http2 = listener.http2
        if opaque(listener):
            what = "protocol: tcp" if listener.protocol == "tcp" else "tls: passthrough"
            for key, given in (("http2", http2 is not None), ("grpc_web", listener.grpc_web is True)):
                if given:
                    self.report((*where, key), f"{key} with {what}, expected it where HTTP comes in")
            return
        off = http2 is not None and http2 is not INVALID and http2.enabled is False
        alpn = None if listener.tls is None else listener.tls.alpn
        if off and alpn is not None and alpn is not INVALID and "h2" in alpn:
            message = "alpn has h2 beside http2: {enabled: false}, expected http/1.1 alone"
            self.report((*where, "tls", "alpn"), message)

    def service_http(self, where: Where, name: str, service: Service) -> None:
        """`protocol`, and what must agree with it."""
        protocol = service.protocol
        if protocol is INVALID or protocol == "auto":
            return
        leading = leading_to([listener for _, listener in self.listeners], name)
        if leading and all(map(opaque, leading)) and protocol != "tcp":
            message = (
                f"protocol: {protocol} where only opaque bytes go, expected auto (they stay as they are)"
            )
            self.report((*where, "protocol"), message)
        if protocol in ("http1", "tcp") and service.http2 is not None:
            message = f"http2 with protocol: {protocol}, expected protocol: auto or http2"
            self.report((*where, "http2"), message)
        if protocol == "tcp":
            return
        spoken = "h2" if protocol == "http2" else "http/1.1"
        alpn = None if service.tls is None or service.tls is INVALID else service.tls.alpn
        if alpn is not None and any(one != spoken for _, one in _valid(alpn)):
            message = f"alpn beside protocol: {protocol}, expected {spoken} alone"
            self.report((*where, "tls", "alpn"), message)

    def target(self, where: Where, to: str | None, place: Where) -> None:
        services = self.config.services
        if to is None or INVALID in (to, services) or to in services:
            return
        near = nearest(to, services)
        if near:
            wanted = shown(near)
        elif services:
            wanted = alternatives(tuple(plain(name) for name in list(services)[:10]))
        else:
            wanted = "a service of that name under `services`"
        self.report(place, f"unknown service {shown(to)}, expected {wanted}")

    def loops(self, listener: Listener) -> None:
        """A service that a listener leads to must not have that listener as its endpoint."""
        if INVALID in (listener.bind, listener.to, listener.name) or self.key(listener.bind) is None:
            return
        own = {self.key(listener.bind)}
        if listener.bind.host in _WILDCARDS:
            own.add((_WILDCARDS[listener.bind.host], listener.bind.port))
        if listener.role == "inbound" and listener.transparent is True and listener.to is None:
            return  # it leads to the application alone
        passes = listener_tls(listener) == "passthrough"
        named = [to for _, to in _pairs(listener.sni)] + ([listener.to] if listener.to is not None else [])
        for name in dict.fromkeys(named) if named or passes else self.services:
            for index, address in self.endpoints(name):
                if self.key(address) in own:
                    what = f"{shown(str(address))} is the address of listener {shown(listener.name)}"
                    wanted = "expected where the service itself listens"
                    where = ("services", name, "endpoints", index)
                    self.report(where, f"{what} that leads here, {wanted}")

    def endpoint(self, where: Where, address: Address) -> None:
        self.socket_path(where, address)
        if address.path is None and not address.port and not address.keeps_port:
            self.report(where, f"{shown(str(address))} has port 0, expected the port of the service")
        if address.host in _WILDCARDS:
            one = Address(_WILDCARDS[address.host], address.port)
            self.report(
                where, f"{shown(str(address))} is no address to connect to, expected one such as {one}"
            )

    def endpoints(self, name: str) -> Iterator[tuple[int, Address]]:
        if name in self.services:
            for index, endpoint in _valid(self.services[name].endpoints):
                if endpoint.address is not INVALID:
                    yield index, endpoint.address

    def socket_path(self, where: Where, address: Address) -> None:
        if address.path is None:
            return
        length = len(os.fsencode(located(self.base, address.path)))
        if length > MAX_UNIX_PATH:
            self.report(where, f"the socket path is {length} bytes long, expected at most {MAX_UNIX_PATH}")

    def key(self, address: Address) -> tuple[str, int] | None:
        """What two equal addresses have in common; None when the system chooses the port."""
        if address.path is not None:
            return os.path.normpath(located(self.base, address.path)), -1
        return (address.host, address.port) if address.port else None


def _valid(items: Any) -> Iterator[tuple[int, Any]]:
    """The entries of a list that were not refused, with their index."""
    if items is not INVALID:
        yield from ((index, item) for index, item in enumerate(items) if item is not INVALID)


def _pairs(items: Any) -> Iterator[tuple[str, Any]]:
    """The entries of a mapping that were not refused."""
    if items is not None and items is not INVALID:
        yield from ((key, item) for key, item in items.items() if item is not INVALID)
