"""Socket activation: listening sockets that the service manager opened, sd_listen_fds(3).

A listener takes the sockets that carry its name (FileDescriptorName=), else those bound to its address;
several of one listener are dealt to the workers in turn, a single one is shared by all.
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


class Activation:
    """The sockets that a service manager passed (sd_listen_fds(3)), until listeners take them."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ, first: int = _FIRST_FD) -> None:
        """Takes the variables out of the environment: they are not meant for children."""
        pid = environ.pop("LISTEN_PID", "")
        count = environ.pop("LISTEN_FDS", "")
        names = environ.pop("LISTEN_FDNAMES", "").split(":")
        self._passed: list[tuple[str, int]] = []
        self._sockets: list[tuple[str, socket.socket]] = []
        if pid == str(os.getpid()) and count.isdecimal():
            names += [""] * int(count)
            self._passed = [(names[number], first + number) for number in range(int(count))]

    def claim(self) -> None:
        """Take the descriptors over. Raises ListenError for what is no listening socket."""
        self._sockets = [(name, _inherited(fd, name)) for name, fd in self._passed]

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
    try:
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"descriptor {fd} ({name or 'no name'}) in LISTEN_FDS: {error.strerror}") from error
    if not listening or sock.type != socket.SOCK_STREAM:
        raise ListenError(
            f"descriptor {fd} ({name or 'no name'}) in LISTEN_FDS is no listening stream socket"
        )
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
