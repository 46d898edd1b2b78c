"""What a service manager is told: sd_notify(3) over $NOTIFY_SOCKET, with the watchdog's keep-alive.

Telling never fails and never blocks: without a manager, or with one that does not listen, nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Notifier:
    """Takes the manager's variables out of the environment, so that no child talks in our name.

    `watchdog_s` is the interval at which `alive` must be called, half of what the manager allows, or None.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        # "@" stands for the NUL of an abstract address; vsock and others are of no use on one host.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self.watchdog_s: float | None = None
        if address[:1] not in ("/", "@"):
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        if watchdog_us.isdecimal() and int(watchdog_us) and watchdog_pid in ("", str(os.getpid())):
            self.watchdog_s = int(watchdog_us) / 2_000_000

    def ready(self, status: str) -> None:
        """The start, or a reload, is complete."""
        self._tell(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def reloading(self) -> None:
        # Type=notify-reload wants to know when the reload began, on the monotonic clock.
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def withdrawn(self, status: str) -> None:
        """Inbound listeners accept no more. Service managers leave out what begins with X_."""
        self._tell(f"X_FASTMESH_WITHDRAWN=1\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        self._tell(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def failed(self, text: str) -> None:
        """The start failed: the reason, for the manager's status line."""
        self._tell(f"STATUS={text}")

    def _tell(self, state: str) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.sendto(state.encode(), self._address)
