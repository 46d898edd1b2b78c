"""Whether a signal was sent to us or to our whole process group, as `kill %1` and timeout(1) do.

The command is in the same group and must hear of everything just once. The kernel does not say whom a signal
was for; but a process that does nothing but collect signals has it only if the group was meant.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from fastmesh.host.launch.kernel import die_with_parent
from fastmesh.host.launch.processes import fork

_FIRST_FD = 3


class Witness:
    """The process and our line to it. Start it while signals are blocked. `pid` is 0 after it was reaped."""

    def __init__(self, label: str) -> None:
        ours, theirs = socket.socketpair()
        parent = os.getpid()

        def watch() -> int:
            from fastmesh._core import set_title

            # Nothing else: what listens must not outlive those that are meant to.
            line = theirs.detach()
            os.closerange(_FIRST_FD, line)
            os.closerange(line + 1, os.sysconf("SC_OPEN_MAX"))
            set_title(f"fastmesh: witness ({label})")
            die_with_parent(signal.SIGKILL, parent)
            while asked := os.read(line, 1):
                os.write(line, b"1" if signal.sigtimedwait({asked[0]}, 0) else b"0")
            return 0

        self.pid = fork(watch)
        theirs.close()
        self._line = ours

    def has_seen(self, number: int) -> bool:
        """Whether it has had this signal since it was asked last."""
        with contextlib.suppress(OSError):
            # kill(2) to a group holds a lock until all have theirs; this needs it, too: then it is over.
            os.setpgid(0, os.getpgrp())
        try:
            self._line.send(bytes([number]))
            return self._line.recv(1) == b"1"
        except OSError:
            return False
