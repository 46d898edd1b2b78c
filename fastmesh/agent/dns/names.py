"""What the resolver knows: the names of services, and the virtual addresses that lead back to names.

Its zones are the domain with everything under it, the reverse names of the virtual networks, and every
service's bare name: the name itself and nothing under it, because `shop` may be a service here and a
top-level domain elsewhere. What is in none of them is none of its business. Which address a service has is
decided in `config.virtual`; a name has the same one for as long as there is a service of that name.

Names are tuples of labels in lower case: a label may hold a dot, and text could not tell.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

Labels = tuple[bytes, ...]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_NAME: Final = 253  # characters, less the dot at the end (RFC 1035, 2.3.4)
_REVERSE: Final[dict[Labels, tuple[int, int]]] = {
    # base: IP version, bits that a label stands for
    (b"in-addr", b"arpa"): (4, 8),
    (b"ip6", b"arpa"): (6, 4),
}


class Entry(NamedTuple):
    """What is known of a name in a zone of ours. The zone is the last `depth` labels of it."""

    depth: int
    exists: bool
    addresses: tuple[Address, ...] = ()
    target: str | None = None  # of PTR


class Names:
    """Names of one snapshot; immutable."""

    def __init__(self, dns: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> None:
        self.ttl: int = dns["ttl_s"]
        self.domain = labels_of(dns["domain"])
        self._networks = [ipaddress.ip_network(text) for text in dns["networks"]]
        self._entries: dict[Labels, Entry] = {}
        # Names of the domain that exist because there are names under them (RFC 8020).
        self._inner: set[Labels] = {self.domain}
        self._targets: dict[Address, str] = {}
        depth = len(self.domain)
        for service in services:
            name = service["name"]
            if name not in dns["answers"]:  # one that nobody wrote down and nobody can call
                continue
            addresses = tuple(map(ipaddress.ip_address, dns["answers"][name]))
            bare = labels_of(name)
            self._entries[bare] = Entry(len(bare), True, addresses)
            full = f"{name}.{dns['domain']}"
            if len(full) <= MAX_NAME:
                self._entries[bare + self.domain] = Entry(depth, True, addresses)
                self._inner |= {bare[start:] + self.domain for start in range(1, len(bare))}
            for text in service["virtual"]:
                self._targets[ipaddress.ip_address(text)] = full if len(full) <= MAX_NAME else name
        self.services = len(dns["answers"])

    def look_up(self, labels: Labels) -> Entry | None:
        """What is known of a name, in lower case; None: it is of no zone of ours."""
        found = self._entries.get(labels)
        if found is not None:
            return found
        depth = len(self.domain)
        if labels[-depth:] == self.domain:
            return Entry(depth, labels in self._inner)
        return self._reverse(labels)

    def _reverse(self, labels: Labels) -> Entry | None:
        version, bits = _REVERSE.get(labels[-2:], (0, 0))
        if not version:
            return None
        rest = list(labels[:-2])
        value = length = 0
        width = 32 if version == 4 else 128
        while rest and length < width and (part := _part(rest[-1], bits)) is not None:
            rest.pop()
            value = value << bits | part
            length += bits
        start = value << (width - length)
        for network in self._networks:
            if network.version != version or length < network.prefixlen:
                continue
            address = (ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address)(start)
            if address in network:
                depth = 2 + -(-network.prefixlen // bits)
                if rest:
                    return Entry(depth, False)
                target = self._targets.get(address) if length == width else None
                return Entry(depth, target is not None or length < width, target=target)
        return None


def labels_of(name: str) -> Labels:
    """The labels of a name of the configuration."""
    return tuple(name.encode("ascii").split(b"."))


def _part(label: bytes, bits: int) -> int | None:
    """The number that a label of a reverse name stands for, if it is written as such."""
    if bits == 4:
        return int(label, 16) if len(label) == 1 and label in b"0123456789abcdef" else None
    if not label.isdigit() or len(label) > 3 or (label[:1] == b"0" and label != b"0"):
        return None
    number = int(label)
    return number if number < 256 else None
