"""What must hold between the settings of the resolver, and between them and the services."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final

from fastmesh.config.errors import shown
from fastmesh.config.invalid import INVALID, Report
from fastmesh.config.schema import Config, Service
from fastmesh.config.schema_dns import Dns
from fastmesh.config.values import Address, format_duration
from fastmesh.config.virtual import Network, is_ip, networks, room

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1:53", "::": "[::1]:53"}
# What no virtual address may be in: the host itself, one link, groups.
_SPECIAL: Final = tuple(
    map(
        ipaddress.ip_network,
        ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/8", "fe80::/10", "ff00::/8"),
    )
)


def check_dns(config: Config, services: Mapping[str, Service], report: Report) -> None:
    """Report what is wrong with `dns`; `services` are those that were not refused."""
    dns = config.dns
    if dns is None or dns is INVALID:
        return
    _listen(dns.listen, report)
    if dns.upstream is not None and dns.upstream is not INVALID:
        _upstream(dns.upstream, dns.listen, report)
    if dns.ttl is not INVALID and dns.ttl % 1000:
        what = f"ttl: {format_duration(dns.ttl)}, expected whole seconds"
        report(("dns", "ttl"), what)
    if dns.domain is not INVALID:
        _names(dns.domain, services, report)
    found = [
        network
        for key, version in (("virtual", 4), ("virtual6", 6))
        if (network := _network(dns, key, version, len(services), report)) is not None
    ]
    _outside(found, services, report)


def _listen(listen: Address, report: Report) -> None:
    if listen is INVALID:
        return
    where, text = ("dns", "listen"), shown(str(listen))
    if listen.path is not None:
        report(where, f"{text} is a Unix socket, expected host:port")
    elif listen.host in _WILDCARDS:
        one = _WILDCARDS[listen.host]
        report(where, f"{text} is every address, for the whole network to ask, expected one such as {one}")
    elif not listen.port:
        report(where, f"{text} has port 0, expected the port that is asked")


def _upstream(upstream: Address, listen: Address, report: Report) -> None:
    where, text = ("dns", "upstream"), shown(str(upstream))
    if upstream.path is not None or not is_ip(upstream.host):
        report(where, f"{text} is not the address of a name server, expected an IP address and a port")
    elif upstream.host in _WILDCARDS or not upstream.port:
        report(where, f"{text} is no address to connect to, expected one such as 192.0.2.53:53")
    elif upstream == listen:
        report(where, f"{text} is dns.listen too, expected another name server")


def _names(domain: str, services: Mapping[str, Service], report: Report) -> None:
    """`NAME.DOMAIN` must not be the name of another service."""
    for name in services:
        inner = name.removesuffix(f".{domain}")
        if inner != name and inner in services:
            what = f"{shown(name)} is service {shown(inner)} in the domain {shown(domain)} too"
            report(("services", name), f"{what}, expected another name or another dns.domain")


def _network(dns: Dns, key: str, version: int, services: int, report: Report) -> Network | None:
    text = getattr(dns, key)
    if text is INVALID:
        return None
    where = ("dns", key)
    network = ipaddress.ip_network(text)
    if network.version != version:
        report(where, f"{shown(text)} is IPv{network.version}, expected an IPv{version} network")
        return None
    for special in _SPECIAL:
        if special.version == version and network.overlaps(special):
            report(
                where, f"{shown(text)} overlaps {special}, which has a meaning of its own, expected another"
            )
            return None
    if room(network) < max(services, 1):
        what = f"{shown(text)} has {room(network)} addresses for {services} services"
        report(where, f"{what}, expected a larger network")
        return None
    return network


def _outside(virtual: Iterable[Network], services: Mapping[str, Service], report: Report) -> None:
    """Where a service really is can be no virtual address: it would lead back here, or to another one."""
    virtual = list(virtual)
    for name, service in services.items():
        endpoints = [] if service.endpoints is INVALID else service.endpoints
        found = {
            "endpoints": [one if one is INVALID else one.address for one in endpoints],
            "addresses": service.addresses or [],
        }
        for key, addresses in found.items():
            for index, address in enumerate(() if addresses is INVALID else addresses):
                network = None if address is INVALID else within(address.host, virtual)
                if network is not None:
                    what = f"{shown(str(address))} is in the network of virtual addresses {network}"
                    report(("services", name, key, index), f"{what}, expected where the service really is")


def within(host: str, virtual: Iterable[Network]) -> Network | None:
    """The network that an IP address is in."""
    if not is_ip(host):
        return None
    address = ipaddress.ip_address(host)
    return next((one for one in virtual if one.version == address.version and address in one), None)


def virtual_networks(config: Config) -> tuple[Network, ...]:
    """Those of a configuration without errors."""
    return networks(config.dns) if config.dns is not None else ()
