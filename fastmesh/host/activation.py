"""Socket activation: listening sockets that the service manager opened, sd_listen_fds(3).

A listener takes the sockets that carry its name (FileDescriptorName=), else those bound to its address;
several of one listener are dealt to the workers in turn, a single one is shared by all. Those called `@dns`,
which no listener can be called, are the resolver's: one for UDP, one for TCP, or both.
"""

from __future__ import annotations

import os
import socket

from fastmesh.host.sockets import FAMILIES, ListenError, address_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import Any

_FIRST_FD = 3
DNS = "@dns"


class Activation:
    """The sockets that a service manager passed (sd_listen_fds(3)), until listeners take them."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ, first: int = _FIRST_FD) -> None:
        """Takes the variables out of the environment: they are not meant for children."""
        pid = environ.pop("LISTEN_PID", "")
        count = environ.pop("LISTEN_FDS", "")
        self._names = environ.pop("LISTEN_FDNAMES", "").split(":")
        self._first = first
        self._count = int(count) if pid == str(os.getpid()) and count.isdecimal() else 0
        self._sockets: list[tuple[str, socket.socket]] = []

    def claim(self) -> None:
        """Take the descriptors over. Raises ListenError at the first that is no listening socket.

        That one may be ours, if the count is wrong: it stays as it was.
        """
        for number in range(self._count):
            name = self._names[number] if number < len(self._names) else ""
            self._sockets.append((name, _inherited(self._first + number, name)))

    def take_dns(self) -> list[socket.socket]:
        """The sockets meant for the resolver. Raises ListenError for one that it would not serve."""
        mine = [sock for given, sock in self._sockets if given == DNS]
        if len(mine) > len({sock.type for sock in mine}):
            raise ListenError(f"several sockets of one kind are called {DNS}, expected one a kind")
        self._sockets = [(given, sock) for given, sock in self._sockets if given != DNS]
        return mine

    def take(self, name: str, bind: Mapping[str, Any]) -> list[socket.socket]:
        """The sockets meant for a listener: those of its name, else those bound to its address."""
        mine = [sock for given, sock in self._sockets if given == name]
        mine = mine or [sock for _, sock in self._sockets if _bound_to(sock, bind)]
        for sock in mine:
            expected = FAMILIES[bind["family"]]
            if sock.family != expected:
                raise ListenError(
                    f"the socket passed for listener {name} is of family {sock.family.name}, "
                    f"the configuration says {address_text(bind)}"
                )
        self._sockets = [(given, sock) for given, sock in self._sockets if sock not in mine]
        return mine

    def close_rest(self) -> list[str]:
        """Close what no listener took; returns how each was called."""
        rest = [f"{name or 'no name'} ({sock.getsockname()!r})" for name, sock in self._sockets]
        for _, sock in self._sockets:
            sock.close()
        self._sockets = []
        return rest


def _inherited(fd: int, name: str) -> socket.socket:
    what = f"descriptor {fd} ({name or 'no name'}) in LISTEN_FDS"
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"{what}: {error.strerror}") from error
    try:
        listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if name == DNS and sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ListenError(f"{what} has no IP address")
        if not listens and (name != DNS or sock.type != socket.SOCK_DGRAM):
            raise ListenError(f"{what} is no listening stream socket")
    except BaseException:
        # Its number is not this object's to close.
        sock.detach()
        raise
    os.set_inheritable(fd, False)
    return sock


def _bound_to(sock: socket.socket, bind: Mapping[str, Any]) -> bool:
    if sock.family != FAMILIES[bind["family"]]:
        return False
    if sock.family == socket.AF_UNIX:
        return bool(sock.getsockname() == bind["path"])
    if sock.getsockname()[1] != bind["port"]:
        return False
    try:
        return socket.inet_pton(sock.family, sock.getsockname()[0]) == socket.inet_pton(
            sock.family, bind["host"]
        )
    except OSError:
        return False
