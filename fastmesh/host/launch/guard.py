"""Cleans up when `fastmesh run` is killed: nothing of the command and no rule may be left without a sidecar.

It is in a session of its own, so that what kills a group does not kill it, and sleeps until our pidfd wakes
it. The command itself dies with us by the kernel's hand, the sidecar is asked to end by it; what the guard
does is the rest: what the command has started, a sidecar that does not end, and the interception.
"""

from __future__ import annotations

import os
import select
import signal

from fastmesh.host.launch.processes import fork, kill_until_gone, marked, wait_until_gone
from fastmesh.host.process import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmesh.host.launch.takeover import Takeover

_KILL_S = 5.0
_SIDECAR_S = 5.0


class Guard:
    """The process. Start it while signals are blocked; `sidecars` are the marks of theirs.

    `pid` is 0 after it has been reaped.
    """

    def __init__(self, label: str, mark: str, sidecars: list[str], takeover: Takeover) -> None:
        us = os.pidfd_open(os.getpid())

        def watch() -> int:
            from fastmesh._core import set_title

            os.setsid()
            takeover.let_go()
            set_title(f"fastmesh: guard ({label})")
            poll = select.poll()
            poll.register(us, select.POLLIN)
            poll.poll()
            takeover.kill()
            left = kill_until_gone(lambda: marked(mark), _KILL_S)
            for sidecar in sidecars:
                if wait_until_gone(lambda name=sidecar: marked(name), _SIDECAR_S):  # type: ignore[misc]
                    kill_until_gone(lambda name=sidecar: marked(name), _KILL_S)  # type: ignore[misc]
            takeover.down(surely_up=True, left=left)
            if not left:
                say(
                    f"run ({label}) was killed; the command, its sidecar and the interception have been ended"
                )
            return 0

        try:
            self.pid = fork(watch)
        finally:
            os.close(us)

    def dismiss(self) -> None:
        """Everything has been cleaned up."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
