"""TCP sockets of this network namespace as the kernel lists them, and whose they are (proc(5),
/proc/net/tcp).
"""

from __future__ import annotations

import ipaddress
import os
from typing import Final

import msgspec

LISTENING: Final = 0x0A


class Socket(msgspec.Struct, frozen=True):
    """One TCP socket; IPv4 in IPv6 is shown as IPv4."""

    host: str
    port: int
    peer: tuple[str, int]
    state: int
    inode: int


def sockets() -> list[Socket]:
    """All TCP sockets of the network namespace of this thread."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue  # no IPv6 here
        for line in lines:
            parts = line.split()
            host, port = _address(parts[1])
            found.append(Socket(host, port, _address(parts[2]), int(parts[3], 16), int(parts[9])))
    return found


def owner(inodes: set[int]) -> tuple[str, int] | None:
    """The name and number of a process that has one of these sockets; None if none is found."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for one in descriptors:
            try:
                if os.readlink(f"/proc/{pid}/fd/{one}") in wanted:
                    return _name(pid), pid
            except OSError:
                continue  # closed meanwhile
    return None


def _name(pid: int) -> str:
    """What a process calls itself, in short."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").split("\0")
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            comm = file.read().strip()
    except OSError:
        return "that has just ended"
    return words[0] if words[0].startswith("fastmesh") else comm


def _address(text: str) -> tuple[str, int]:
    """An address as it stands there: words of 32 bits in the order of this machine (little endian)."""
    digits, _, port = text.partition(":")
    words = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port, 16)
