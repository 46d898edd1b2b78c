"""The agent's process, as the supervisor keeps it: started with the shared counters and the admin socket."""

from __future__ import annotations

from fastmesh.host.channel import Channel, Frame, snapshot_bytes, snapshot_frame
from fastmesh.host.children import Child
from fastmesh.host.process import say, spawn
from fastmesh.host.sockets import Listener, ListenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from fastmesh.host.run import Run


class Agent(Child):
    """`command` is its command line; behind it come the numbers of its descriptors. `dns`: sockets that were
    passed for its resolver."""

    def __init__(self, run: Run, command: list[str]) -> None:
        super().__init__("agent")
        self.admin: Listener | None = None
        self.dns: list[socket.socket] = []
        self._run = run
        self._command = command

    def start(self) -> None:
        """Raises OSError."""
        ours, theirs = Channel.pair()
        fds = [theirs.fileno(), self._run.area.fd]
        if self.admin:
            fds += [sock.fileno() for sock in self.admin.sockets]
        dns = [sock.fileno() for sock in self.dns]
        try:
            pid = spawn([*self._command, *map(str, fds), *(f"dns={fd}" for fd in dns)], fds + dns)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.started(pid, ours)

    def begin(self) -> None:
        """Have it read the configuration for the first time."""
        self.send({"type": "start", **self._run.source()})

    def restore(self) -> None:
        """Tell it which snapshot is in use."""
        snapshot = snapshot_bytes(Frame(self._run.frame, []))
        self.send(snapshot_frame(snapshot, "resume", **self._run.source()), key="resume")

    def open_admin(self) -> None:
        """Open its API's socket and hand it over. Raises ListenError where the configuration names it."""
        admin = self._run.snapshot["admin"]
        if not admin:
            return
        family = "inet6" if ":" in admin["host"] else "inet"
        bind = {"family": family, "host": admin["host"], "port": admin["port"], "path": None}
        listener = Listener("admin", bind)
        passed = self._run.activation.take("admin", bind)
        try:
            if passed:
                listener.adopt(passed)
            else:
                listener.open(1)
        except ListenError as error:
            if admin["explicit"]:
                raise
            say(f"no admin API: {error}")
            return
        self.admin = listener
        self.send({"type": "admin"}, descriptors=[sock.fileno() for sock in listener.sockets])
