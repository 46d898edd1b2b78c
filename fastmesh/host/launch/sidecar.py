"""The sidecar of a run: `python -m fastmesh.host` in a session of its own, and its word on how it gets on.

It tells by sd_notify(3), to a socket that only listens to it. What it says on stderr goes where ours goes. It
is asked to end when we die, and then drains.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys

from fastmesh.host.children import Backoff
from fastmesh.host.launch.kernel import die_with_parent
from fastmesh.host.launch.processes import MARK, fork, send
from fastmesh.host.process import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CREDENTIALS = struct.Struct("=iII")
_FIRST_FD = 3
# Messages.
_AT_ONCE = 32
_EXIT_NOT_RUN = 127


class Sidecar:
    """`arguments` are those of `fastmesh.host`; `sockets` those that it shall serve on, with their names;
    `enter` puts it where it shall run, and `notify` is where it can tell from there.

    `pid` is 0 while it does not run. `sessions`: of all that have run. Who is in one is the sidecar's.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        mark: str,
        sockets: Sequence[tuple[str, socket.socket]] = (),
        *,
        enter: Callable[[], None] | None = None,
        notify: str = "",
    ) -> None:
        self.name = name
        self.mark = f"{mark}/{name.replace(' ', '-')}"
        self.pid = 0
        self.ready = False
        self.withdrawn = False
        self.sessions: set[int] = set()
        self.backoff = Backoff()
        self._arguments = arguments
        self._sockets = list(sockets)
        self._enter = enter
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.setblocking(False)
        # The kernel picks a name that nobody has (unix(7): autobind), in our network namespace.
        self._notify.bind(notify)

    def fileno(self) -> int:
        return self._notify.fileno()

    def start(self) -> None:
        """Raises OSError."""
        parent = os.getpid()
        self.pid = fork(lambda: self._execute(parent))
        self.ready = self.withdrawn = False
        self.sessions.add(self.pid)
        self.backoff.started()

    def _execute(self, parent: int) -> int:
        os.setsid()
        if self._enter is not None:
            self._enter()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        die_with_parent(signal.SIGTERM, parent)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        environment = dict(os.environ)
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"):
            environment.pop(name, None)
        address = self._notify.getsockname()
        environment["NOTIFY_SOCKET"] = address if isinstance(address, str) else "@" + address[1:].decode()
        # The directory that we are started in is no place to import modules from.
        environment["PYTHONSAFEPATH"] = "1"
        environment[MARK] = self.mark
        count = len(self._sockets)
        if count:
            environment["LISTEN_PID"] = str(os.getpid())
            environment["LISTEN_FDS"] = str(count)
            environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in self._sockets)
            # Out of the way first, as low as can be: there may not be many descriptors (ulimit -n).
            above = _FIRST_FD + count
            apart = [fcntl.fcntl(sock, fcntl.F_DUPFD, above) for _, sock in self._sockets]
            for index, fd in enumerate(apart):
                os.dup2(fd, _FIRST_FD + index)
        os.closerange(_FIRST_FD + count, os.sysconf("SC_OPEN_MAX"))
        try:
            os.execve(sys.executable, [sys.executable, "-m", "fastmesh.host", *self._arguments], environment)
        except OSError as error:
            say(f"cannot run {sys.executable}: {error.strerror}")
            return _EXIT_NOT_RUN

    def hear(self) -> None:
        """Take what it has told: some of it, anybody may write there without end."""
        for _ in range(_AT_ONCE):
            try:
                text, ancillary, _, _ = self._notify.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            if not any(_CREDENTIALS.unpack(data)[0] == self.pid for _, _, data in ancillary):
                continue
            lines = text.split(b"\n")
            self.ready = self.ready or b"READY=1" in lines
            self.withdrawn = self.withdrawn or b"X_FASTMESH_WITHDRAWN=1" in lines

    def let_go(self) -> None:
        """It is not started again: whoever waits at its sockets shall not wait for us."""
        for _, sock in self._sockets:
            sock.close()
        self._sockets = []

    def withdraw(self) -> None:
        """Inbound listeners accept no more; it tells when that is so."""
        self.signal(signal.SIGUSR2)

    def signal(self, number: int) -> None:
        if self.pid:
            send(self.pid, number)

    def gone(self) -> None:
        """It has been reaped."""
        self.pid = 0
        self.ready = self.withdrawn = False
