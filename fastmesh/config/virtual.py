"""Virtual addresses: every service has one of each family, derived from its name and from nothing else.

Two services on one port can then be told apart by the address that an application dials, whatever the
protocol. An address is a hash of the name, so that every sidecar, after every start and in whatever order the
file names its services, finds the same one. Of two names that meet at one address, which in 240.77.0.0/16 is
one pair in 65,024, the first in alphabetical order has it, and the other one its next hash. What a name has
been given is not taken from it: `before` keeps the addresses of names that had one, in front of names that
are new. Only when a sidecar starts anew without that does the alphabet decide again between the two.

Pure: no clock, no file, no network.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fastmesh.config.schema import Config, Service
from fastmesh.config.schema_dns import Dns
from fastmesh.config.values import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Pair = tuple[str, str]  # IPv4, IPv6

# Hashes that a name tries. After so many the network is all but full, and any free address will do.
TRIES: Final = 64


def virtual_addresses(config: Config, before: Mapping[str, Sequence[str]] | None = None) -> dict[str, Pair]:
    """The virtual addresses of every service by its name, `(IPv4, IPv6)`; empty where there is no `dns`.

    `before` is what they were until now: it stays as far as it lies in the networks of the configuration.
    """
    if config.dns is None:
        return {}
    kept = before or {}
    columns = [
        assign(config.services, network, {name: pair[which] for name, pair in kept.items()})
        for which, network in enumerate(networks(config.dns))
    ]
    return {name: (columns[0][name], columns[1][name]) for name in config.services}


def networks(dns: Dns) -> tuple[Network, Network]:
    """The networks of virtual addresses: IPv4, IPv6."""
    return ipaddress.ip_network(dns.virtual), ipaddress.ip_network(dns.virtual6)


def room(network: Network) -> int:
    """How many services it has addresses for."""
    if _in_blocks(network):
        return network.num_addresses // 256 * 254
    return max(network.num_addresses - 2, 0)


def assign(names: Iterable[str], network: Network, before: Mapping[str, str]) -> dict[str, str]:
    """An address in the network for each name, in the order of the names. There must be room for them."""
    names = list(dict.fromkeys(names))
    size = room(network)
    taken: dict[int, str] = {}
    for name in sorted(names):
        if name in before and 0 <= (index := _index(network, before[name])) < size:
            taken.setdefault(index, name)
    waiting = sorted(set(names) - set(taken.values()))
    # Round by round: a name that is alone at its first hash has it, whoever else has to look further.
    for attempt in range(TRIES):
        waiting = [name for name in waiting if taken.setdefault(_hash(name, attempt) % size, name) != name]
    for name in waiting:
        index = _hash(name, 0) % size
        while index in taken:
            index = (index + 1) % size
        taken[index] = name
    found = {name: _address(network, index) for index, name in taken.items()}
    return {name: found[name] for name in names}


def _in_blocks(network: Network) -> bool:
    """Whether addresses that end in 0 or 255 are left out: people and programs take them for networks."""
    return network.version == 4 and network.prefixlen <= 24


def _address(network: Network, index: int) -> str:
    """The address of this number, counted from 0. Neither the first nor the last of a network is one."""
    if _in_blocks(network):
        block, index = divmod(index, 254)
        index += block * 256
    return str(network[index + 1])


def _index(network: Network, text: str) -> int:
    """The number of an address; -1 if it has none."""
    address = ipaddress.ip_address(text)
    if address.version != network.version or address not in network:
        return -1
    offset = int(address) - int(network.network_address)
    if not _in_blocks(network):
        return offset - 1
    block, last = divmod(offset, 256)
    return block * 254 + last - 1 if 1 <= last <= 254 else -1


def _hash(name: str, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{attempt}/{name}".encode()).digest()[:16], "big")


def answered(config: Config, virtual: Mapping[str, Pair]) -> dict[str, list[str]]:
    """What the resolver says where each service is, in the order of the names.

    That is its own `addresses`: they work without the mesh too. One that another service has as well tells
    nobody which of the two is meant, and is left out. Where none is left it is the virtual addresses.
    """
    own = {name: list(dict.fromkeys(_addresses(service))) for name, service in config.services.items()}
    owners = Counter(address for addresses in own.values() for address in addresses)
    found = {}
    for name, addresses in own.items():
        alone = dict.fromkeys(address.host for address in addresses if owners[address] == 1)
        found[name] = list(alone) or list(virtual[name])
    return found


def _addresses(service: Service) -> Iterator[Address]:
    for address in getattr(service, "addresses", None) or ():
        if address.path is None and is_ip(address.host):
            yield address


def is_ip(host: str) -> bool:
    """Whether this is an IP address, not a host name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
