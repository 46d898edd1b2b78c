"""A checked configuration into the snapshot that workers run: resolved, flat, immutable, numbered.

What depends on the machine happens here and nowhere earlier: host names are resolved, the identity is read
from the PKI directory, CPUs are counted. Equal inputs give equal snapshots (`digest`), so that nothing is
applied twice. The result is plain JSON data; its secrets are what stands as `key`
beside a `certificate`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from fastmesh.config.checks import located
from fastmesh.config.cpus import usable_cpus
from fastmesh.config.dns_checks import virtual_networks, within
from fastmesh.config.errors import ConfigError, ConfigErrors, shown
from fastmesh.config.loader import Loaded
from fastmesh.config.lookup import lookup_of
from fastmesh.config.positions import Where
from fastmesh.config.roles import client_cert, listener_tls, service_tls, speaks_http2
from fastmesh.config.rule_checks import LISTS, conditions, rule_name
from fastmesh.config.schema import (
    MAX_SERVICES,
    Config,
    Listener,
    ListenerHttp2,
    Service,
    ServiceHttp2,
)
from fastmesh.config.schema_health import MAX_CHECKED, HealthCheck
from fastmesh.config.schema_rules import MAX_RULES, HeaderMatch, PathMatch, Rule
from fastmesh.config.tls_files import TlsFiles
from fastmesh.config.transparent import (
    by_tproxy,
    made_service,
    made_services,
    mark,
    settled_protocol,
    transparent,
)
from fastmesh.config.values import UNAUTHENTICATED, Address, parse_host_pattern
from fastmesh.config.virtual import Pair, answered, networks, virtual_addresses
from fastmesh.host.endpoints import checked, key_of
from fastmesh.host.secrets import redacted

FORMAT: Final = 1


def make_snapshot(
    loaded: Loaded,
    number: int = 1,
    workers: int | None = None,
    slots: Mapping[str, int] | None = None,
    *,
    rule_slots: Mapping[str, int] | None = None,
    health_slots: Mapping[str, int] | None = None,
    virtual: Mapping[str, Sequence[str]] | None = None,
    identity: bool = True,
) -> dict[str, Any]:
    """The snapshot of a configuration, as JSON data.

    `workers` overrides the file (the command line does). `slots` are the counter rows that services had in
    the snapshot before, by name: they keep them, so that counters survive a reload; `rule_slots` are those of
    rules, by `listener/NAME/RULE` or `service/NAME/RULE`, `health_slots` the bytes of checked endpoints, by
    `NAME/ADDRESS`, and `virtual` the virtual addresses that services had. Without `identity` none is read.

    Raises `ConfigErrors` when a host name cannot be resolved or too many endpoints are checked,
    `fastmesh.certs.store.PkiError` when the identity cannot be loaded.
    """
    config = loaded.config
    resolver = _Resolver(loaded)
    files = TlsFiles(loaded)
    made = made_services(config)
    names = [*config.services, *made]
    rows = _assign_slots(names, slots or {}, MAX_SERVICES)
    addresses = virtual_addresses(config, virtual)
    rules = _assign_slots(list(_rule_keys(config)), rule_slots or {}, MAX_RULES)
    listeners = [
        _listener(config, resolver, listener, ("listeners", index), names)
        | (files.listener(config, listener, ("listeners", index)) if identity else {})
        | _rules(config, "listener", listener.name, listener, rules)
        for index, listener in enumerate(config.listeners)
    ]
    services = [
        _service(config, resolver, name, service, rows[name])
        | {"virtual": list(addresses.get(name, ()))}
        | (files.service(config, name, service, ("services", name)) if identity else {})
        | _rules(config, "service", name, service, rules)
        for name, service in config.services.items()
    ] + [made_service(config, name, rows[name]) for name in made]
    for service in services:
        if service.get("virtual"):
            service.setdefault("addresses", []).extend(map(_any_port, service["virtual"]))
    admin = _admin(config, resolver, explicit=loaded.positions.key(("admin",)) is not None)
    dns = _dns(config, resolver, addresses)
    errors = [*resolver.errors, *files.errors, *_health(loaded, services, health_slots or {})]
    if errors:
        raise ConfigErrors(errors)
    body: dict[str, Any] = {
        "format": FORMAT,
        "source": loaded.path.name,
        "workload": config.workload,
        "trust_domain": config.trust_domain,
        "identity": _identity(loaded) if identity else None,
        "workers": workers or config.workers or usable_cpus(),
        "drain_ms": config.drain,
        "admin": admin,
        "access_log": _access_log(loaded),
        **mark(config),
        "dns": dns,
        "listeners": listeners,
        "services": services,
    }
    return {"number": number, "digest": digest_of(body), **body}


def _any_port(host: str) -> dict[str, Any]:
    """All ports of an address that applications dial."""
    family = "inet6" if ":" in host else "inet"
    return {"family": family, "host": host, "port": 0, "path": None, "keep_port": True}


def needs_identity(config: Config) -> bool:
    """Whether anything in the configuration speaks mutual TLS."""
    return any(listener_tls(listener) in ("mesh", "permissive") for listener in config.listeners) or any(
        service_tls(service) == "mesh" for service in config.services.values()
    )


def _assign_slots(names: list[str], before: Mapping[str, int], size: int) -> dict[str, int]:
    """A row for each name: its own from before, else one that nobody had, else one that is free again."""
    kept = {name: before[name] for name in names if name in before}
    used = set(kept.values())
    fresh = [row for row in range(size) if row not in used]
    taken = set(before.values())
    fresh.sort(key=lambda row: row in taken)
    free = iter(fresh)
    return {name: kept[name] if name in kept else next(free) for name in names}


def digest_of(body: Mapping[str, Any]) -> str:
    """What two snapshots of the same content have in common, with their keys or without; `number` and
    `digest` are no content."""
    content = {key: value for key, value in body.items() if key not in ("number", "digest")}
    with redacted(content):
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def _identity(loaded: Loaded) -> dict[str, Any] | None:
    config = loaded.config
    if not needs_identity(config):
        return None
    assert config.pki is not None and config.workload is not None  # checks.py
    directory = loaded.path.parent / config.pki
    return identity_of(directory, config.workload, config.trust_domain, config.spiffe_id)


def identity_of(
    pki: Path, workload: str, trust_domain: str | None, spiffe_id: str | None = None
) -> dict[str, Any]:
    """The identity of a snapshot: proven, whole, and with the place it came from. Raises PkiError."""
    from fastmesh.certs.store import load_identity  # brings in `ssl`: only those who need it pay

    identity = load_identity(pki, workload, trust_domain=trust_domain, spiffe_id=spiffe_id)
    found = {
        "certificate": identity.certificate,
        "key": identity.key,
        "bundle": identity.bundle,
        "pki": str(pki),
        "workload": workload,
        "spiffe_id": identity.spiffe_id,
        "not_before": identity.not_before,
        "not_after": identity.not_after,
        "issuer_not_before": identity.issuer_not_before,
        "issuer_not_after": identity.issuer_not_after,
        "root_not_before": identity.root_not_before,
        "root_not_after": identity.root_not_after,
        "federated": dict(identity.federated),
        "revoked": list(identity.revoked),
    }
    # By those who will use it, too: what they refuse must not become the snapshot that they start with.
    from fastmesh._core import identity_error
    from fastmesh.certs.errors import PkiError

    domain = identity.spiffe_id.split("/")[2]
    if (error := identity_error(found, domain)) is not None:
        raise PkiError(f"the identity in {pki / 'workloads' / workload} cannot be used: {error}")
    return found


def _admin(config: Config, resolver: _Resolver, explicit: bool) -> dict[str, Any] | None:
    if config.admin is None:
        return None
    address = resolver.one(config.admin, ("admin",))
    return {"host": address["host"], "port": address["port"], "explicit": explicit}


def _dns(config: Config, resolver: _Resolver, virtual: Mapping[str, Pair]) -> dict[str, Any] | None:
    dns = config.dns
    if dns is None:
        return None
    listen = resolver.one(dns.listen, ("dns", "listen"))
    upstream = dns.upstream
    # What tells the kernel that a packet is ours, and not for the sidecar to take.
    return {
        "listen": {"host": listen["host"], "port": listen["port"]},
        "upstream": None if upstream is None else {"host": upstream.host, "port": upstream.port},
        "domain": dns.domain,
        "ttl_s": dns.ttl // 1000,
        "networks": [str(network) for network in networks(dns)],
        "mark": config.intercept.mark if config.intercept else 0,
        "answers": answered(config, virtual),
    }


def _access_log(loaded: Loaded) -> dict[str, Any] | None:
    log = loaded.config.telemetry.access_log
    if log is None:
        return None
    return {"path": located(loaded.path.parent, log.path), "format": log.format, "sample": log.sample}


def _listener(
    config: Config, resolver: _Resolver, listener: Listener, where: Where, names: list[str]
) -> dict[str, Any]:
    return {
        "name": listener.name,
        "role": listener.role,
        "bind": resolver.one(listener.bind, (*where, "bind")) | by_tproxy(config, listener),
        "protocol": settled_protocol(config, listener),
        "tls": listener_tls(listener),
        "service": -1 if listener.to is None else names.index(listener.to),
        "sni": [
            {"name": parse_host_pattern(name), "service": names.index(service)}
            for name, service in (listener.sni or {}).items()
        ],
        "http2": _listener_http2(listener),
        "grpc_web": listener.grpc_web,
        "normalize_paths": listener.normalize_paths,
        "encoded_slashes": listener.encoded_slashes,
        "header_timeout_ms": listener.header_timeout,
        "idle_timeout_ms": listener.idle_timeout,
        "stream_idle_timeout_ms": listener.stream_idle_timeout,
        "tcp_idle_timeout_ms": listener.tcp_idle_timeout,
        "max_connection_age_ms": listener.max_connection_age or 0,
        "max_connections": listener.max_connections or 0,
        "handshakes": {"max": listener.max_handshakes, "per_source": listener.handshakes_per_source or 0},
        "forwarded": {
            "x_forwarded": listener.forwarded.x_forwarded,
            "forwarded": listener.forwarded.forwarded,
            "via": listener.forwarded.via,
            "client_cert": client_cert(listener),
        },
        **transparent(config, listener, names),
    }


def _listener_http2(listener: Listener) -> dict[str, Any]:
    http2 = listener.http2 or ListenerHttp2()
    return {
        "enabled": speaks_http2(listener),
        "max_concurrent_streams": http2.max_concurrent_streams,
        **_pings(http2),
    }


def _health(
    loaded: Loaded, services: list[dict[str, Any]], before: Mapping[str, int]
) -> Iterator[ConfigError]:
    """Give every checked endpoint its byte; the error if there are too many."""
    keys = [key_of(*one) for one in checked({"services": services})]
    if len(keys) > MAX_CHECKED:
        place = loaded.positions.of(("services", keys[MAX_CHECKED].partition("/")[0], "health_check"))
        what = f"{len(keys)} endpoints with health checks, expected at most {MAX_CHECKED}"
        yield ConfigError(loaded.name, *place, what)
        return
    slots = _assign_slots(keys, before, MAX_CHECKED)
    for service, endpoint in checked({"services": services}):
        endpoint["health"] = slots[key_of(service, endpoint)]


def _health_check(config: Config, check: HealthCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    return {
        **mark(config),
        "path": check.path,
        "grpc": check.grpc,
        "interval_ms": check.interval,
        "timeout_ms": check.timeout,
        "healthy": check.healthy,
        "unhealthy": check.unhealthy,
    }


def _pings(http2: ListenerHttp2 | ServiceHttp2) -> dict[str, Any]:
    return {"ping_interval_ms": http2.ping_interval, "ping_timeout_ms": http2.ping_timeout}


def _rule_keys(config: Config) -> Iterator[str]:
    owners: list[tuple[str, str, Listener | Service]] = [
        *(("listener", listener.name, listener) for listener in config.listeners),
        *(("service", name, service) for name, service in config.services.items()),
    ]
    for kind, name, owner in owners:
        if owner.allow is not None or owner.deny is not None:
            yield f"{kind}/{name}/default"
            for which in LISTS:
                for index, rule in enumerate(getattr(owner, which) or ()):
                    yield f"{kind}/{name}/{rule_name(which, index, rule)}"


def _rules(
    config: Config, kind: str, name: str, owner: Listener | Service, rows: Mapping[str, int]
) -> dict[str, Any]:
    out: dict[str, Any] = dict.fromkeys(LISTS)
    for which in LISTS:
        rules: list[Rule] | None = getattr(owner, which)
        if rules is not None:
            names = [rule_name(which, index, rule) for index, rule in enumerate(rules)]
            out[which] = [
                {"name": own, "slot": rows[f"{kind}/{name}/{own}"], **_rule(config, rule)}
                for own, rule in zip(names, rules, strict=True)
            ]
    out["mode"] = owner.mode or "enforce"
    out["rule_slot"] = rows.get(f"{kind}/{name}/default")
    return out


def _rule(config: Config, rule: Rule) -> dict[str, Any]:
    return {
        key: _condition(config, key.removeprefix("not_"), value) for key, value in conditions(rule).items()
    }


def _condition(config: Config, key: str, value: Any) -> list[Any]:
    if key == "from":
        return [_caller(config, one) for one in value]
    if key == "paths":
        return [_path(one) for one in value]
    if key == "headers":
        return [{"name": name, **_header(one)} for name, one in value.items()]
    return list(value)


def _caller(config: Config, text: str) -> str:
    whole = text in ("*", UNAUTHENTICATED) or text.startswith("spiffe:")
    return text if whole else spiffe_id(config, text)


def _path(match: PathMatch) -> dict[str, str]:
    if match.regex is not None:
        return {"regex": match.regex}
    assert match.path is not None  # rule_checks.py
    return {"prefix": match.path[:-1]} if match.path.endswith("*") else {"exact": match.path}


def _header(match: HeaderMatch) -> dict[str, str | bool]:
    return {key: value for key, value in msgspec.structs.asdict(match).items() if value is not None}


def spiffe_id(config: Config, workload: str) -> str:
    """The SPIFFE ID of a workload of the own trust domain."""
    return f"spiffe://{config.trust_domain}/{workload}"


def _service(config: Config, resolver: _Resolver, name: str, service: Service, slot: int) -> dict[str, Any]:
    endpoints: list[dict[str, Any]] = []
    for index, endpoint in enumerate(service.endpoints):
        where = ("services", name, "endpoints", index)
        endpoints.extend(one for one in resolver.all(endpoint.address, where) if one not in endpoints)
    addresses: list[dict[str, Any]] = []
    for index, address in enumerate(service.addresses or ()):
        where = ("services", name, "addresses", index)
        addresses.extend(one for one in resolver.all(address, where) if one not in addresses)
    more: dict[str, Any] = {"addresses": addresses} if addresses else {}
    return {
        "name": name,
        "slot": slot,
        "tls": service_tls(service),
        "spiffe_id": (service.spiffe_id or spiffe_id(config, name))
        if service_tls(service) == "mesh"
        else None,
        "endpoints": endpoints,
        "protocol": service.protocol,
        "mesh_connections": service.mesh_connections,
        "http2": _pings(service.http2 or ServiceHttp2()),
        "health_check": _health_check(config, service.health_check),
        "connect_timeout_ms": service.connect_timeout,
        "response_timeout_ms": service.response_timeout,
        "pool_idle_max": service.pool.idle_max,
        "pool_idle_timeout_ms": service.pool.idle_timeout,
        "reuse_retry": service.reuse_retry,
        **more,
    }


class _Resolver:
    """Addresses of the file into addresses of the system; every name is looked up once."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.errors: list[ConfigError] = []
        self.known: dict[str, list[str]] = {}
        self.virtual = virtual_networks(loaded.config)
        self.look_up = lookup_of(loaded.config)

    def all(self, address: Address, where: Where) -> list[dict[str, Any]]:
        """Every address, IPv4 before IPv6, in an order that does not change with the name server's."""
        if address.path is not None:
            path = located(self.loaded.path.parent, address.path)
            return [{"family": "unix", "host": None, "port": 0, "path": path}]
        kept = {"keep_port": True} if address.keeps_port else {}
        if address.host not in self.known:
            try:
                self.known[address.host] = self.look_up(address.host)
            except OSError as error:
                place = self.loaded.positions.of(where)
                what = f"host name {shown(address.host)} cannot be resolved ({error.strerror or error})"
                self.errors.append(
                    ConfigError(
                        self.loaded.name, *place, f"{what}, expected a name that the system can look up"
                    )
                )
                return []
            for host in self.known[address.host]:
                if within(host, self.virtual) is not None:
                    place = self.loaded.positions.of(where)
                    # The system asks this sidecar, or another one, and a service has that name.
                    what = f"host name {shown(address.host)} is the virtual address {host} to this system"
                    wanted = "expected an IP address, or a name that no service has"
                    self.errors.append(ConfigError(self.loaded.name, *place, f"{what}, {wanted}"))
        return [
            {"family": "inet6" if ":" in host else "inet", "host": host, "port": address.port, "path": None}
            | kept
            for host in self.known[address.host]
        ]

    def one(self, address: Address, where: Where) -> dict[str, Any]:
        """The first address: what a listener binds. Empty when there is an error."""
        found = self.all(address, where)
        return found[0] if found else {"host": None, "port": 0}
