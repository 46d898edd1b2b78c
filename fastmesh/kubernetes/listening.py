"""A listening socket with a bound on what it has accepted.

The HTTP server counts a connection when its handshake is over; before that it would cost a descriptor and a
TLS object each, as many as anybody opens.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from typing import Any


class Bounded(socket.socket):
    """Takes over a listening socket. Of what it accepts, `most` connections are open at a time; one more is
    closed unheard."""

    __slots__ = ("_accepted", "_most")

    def __init__(self, listening: socket.socket, most: int) -> None:
        super().__init__(fileno=listening.detach())
        self._most = most
        self._accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises ConnectionAbortedError where there is one too many: asyncio goes on after that."""
        connection, source = super().accept()
        if sum(one.fileno() >= 0 for one in self._accepted) >= self._most:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        self._accepted.add(connection)
        return connection, source
