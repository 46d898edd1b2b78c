"""A network namespace whose only way out is the sidecar.

There is nothing in it but the loopback interface. The sidecar stays outside and listens inside: a listening
socket belongs to the namespace in which it was made, whoever accepts from it. So the command reaches the
sidecar and nothing else, and the sidecar reaches what it always reaches: no pair of interfaces, no address
translation, no forwarding, nothing in the host's own rules, and nothing that needs root. What comes in for
the application takes the same way back: a gate, a second small proxy that runs inside and listens outside, on
the loopback address at which the sidecar looks for the application.

Without root the namespace is made in a user namespace, in which we are root; the command is put into one
more, in which it is who it was, and owns nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess

from fastmesh.host.activation import DNS
from fastmesh.host.launch.processes import fork
from fastmesh.host.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWUSER,
    bind_mount,
    enter,
    private_mounts,
    unshare,
)
from fastmesh.host.process import say
from fastmesh.host.sockets import Listener, ListenError

# The command's own addresses. Nobody else is there to see them.
_OWN4 = "169.254.77.1"
_OWN6 = "fd77:6d65:7368:ffff::1"
_ROUTES = (
    ("ip", "link", "set", "lo", "up"),
    ("ip", "address", "add", f"{_OWN4}/32", "dev", "lo"),
    ("ip", "route", "add", "default", "dev", "lo", "src", _OWN4),
)
# Not on hosts without IPv6.
_ROUTES6 = (
    ("ip", "-6", "address", "add", f"{_OWN6}/128", "dev", "lo", "nodad"),
    ("ip", "-6", "route", "add", "default", "dev", "lo", "src", _OWN6),
)
RESOLV_CONF = "/etc/resolv.conf"
# Where `ip` is looked for first, whatever PATH says.
_USUAL = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
_REFUSALS = (errno.EPERM, errno.ENOSPC, errno.EUSERS, errno.EINVAL, errno.EACCES)


class IsolationError(Exception):
    """The namespace cannot be had; the text says what to do about it."""


class Namespace:
    """The namespace, and the sockets in it, with their names: listening ones, for which `inside` gives names
    and addresses, and the resolver's at `names`."""

    def __init__(self, inside: list[tuple[str, str, int]], names: tuple[str, int] | None = None) -> None:
        self.sockets: list[tuple[str, socket.socket]] = []
        self._names = names
        self._rootless = os.geteuid() != 0
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._user = self._net = -1
        ours, theirs = socket.socketpair()
        self._line = ours
        pid = fork(lambda: self._make(theirs, inside))
        theirs.close()
        try:
            self._take(pid, inside)
        finally:
            # It ends when nobody listens to it.
            ours.close()
            os.waitpid(pid, 0)

    def _make(self, line: socket.socket, inside: list[tuple[str, str, int]]) -> int:
        """In a child: make it, tell, and stay until it has been taken hold of."""
        self._line.close()
        try:
            if self._rootless:
                self._unshare_user()
            unshare(CLONE_NEWNET)
            _furnish()
            sockets = [_listen(*one) for one in inside]
            if self._names is not None:
                sockets += [_listen(DNS, *self._names), _datagrams(*self._names)]
        except (OSError, IsolationError, ListenError) as error:
            line.send(f"error {_why(error, self._rootless)}".encode())
            return 1
        socket.send_fds(line, [b"made"], [sock.fileno() for sock in sockets])
        line.recv(1)
        return 0

    def _take(self, pid: int, inside: list[tuple[str, str, int]]) -> None:
        names = [name for name, _, _ in inside] + ([] if self._names is None else [DNS, DNS])
        said, fds, _, _ = socket.recv_fds(self._line, 4096, len(names) + 1)
        for fd in fds:
            os.set_inheritable(fd, False)
        text = said.decode(errors="replace")
        if text != "made":
            raise IsolationError(text.removeprefix("error ") or "the network namespace could not be made")
        self.sockets = [(name, socket.socket(fileno=fd)) for name, fd in zip(names, fds, strict=True)]
        self._net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if self._rootless:
            self._user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)

    def _unshare_user(self) -> None:
        """A user namespace in which we are root."""
        unshare(CLONE_NEWUSER)
        _map(0, self._uid, 0, self._gid)

    def enter(self) -> None:
        """Be in it; without root: as its root."""
        if self._rootless:
            enter(self._user, CLONE_NEWUSER)
        enter(self._net, CLONE_NEWNET)

    def enter_as_ourselves(self, shown: str = "") -> None:
        """Be in it, as the user that we are outside, who has no say about it. `shown`: the file that is
        /etc/resolv.conf in there."""
        self.enter()
        if shown:
            try:
                private_mounts()
                bind_mount(shown, os.path.realpath(RESOLV_CONF))
            except OSError as error:
                why = (error.strerror or "").lower()
                say(f"run: {RESOLV_CONF} cannot be replaced for the command: {why}")
        if self._rootless:
            unshare(CLONE_NEWUSER)
            _map(self._uid, 0, self._gid, 0)

    def close(self) -> None:
        for _, sock in self.sockets:
            sock.close()
        for fd in (self._user, self._net):
            if fd >= 0:
                os.close(fd)
        self.sockets, self._user, self._net = [], -1, -1


def _map(uid: int, outer_uid: int, gid: int, outer_gid: int) -> None:
    """Who we are in the user namespace that we have just made (user_namespaces(7))."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _furnish() -> None:
    """The loopback interface, and a way to everywhere that leads to it: there the sidecar takes over."""
    own = [one for one in os.environ.get("PATH", "").split(":") if one.startswith("/")]
    environment = {**os.environ, "PATH": ":".join([*_USUAL, *own])}
    for commands, needed in ((_ROUTES, True), (_ROUTES6, False)):
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            except FileNotFoundError:
                raise IsolationError("the program `ip` is missing; install iproute2") from None
            if done.returncode:
                if needed:
                    raise IsolationError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
                break


def _listen(name: str, host: str, port: int) -> socket.socket:
    family = "inet6" if ":" in host else "inet"
    listener = Listener(name, {"family": family, "host": host, "port": port, "path": None})
    listener.open(1)
    return listener.sockets[0]


def _datagrams(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


def resolv_conf(name_server: str) -> str:
    """What /etc/resolv.conf says here, with another name server."""
    try:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file.read().splitlines() if not line.startswith("nameserver")]
    except OSError:
        lines = []
    return "\n".join([*lines, f"nameserver {name_server}", ""])


def listening_outside(host: str, port: int) -> socket.socket:
    """A socket of the gate's, at which the sidecar finds the application. Raises ListenError."""
    return _listen(f"port-{port}", host, port)


def _why(error: Exception, rootless: bool) -> str:
    if rootless and isinstance(error, OSError) and error.errno in _REFUSALS:
        return (
            f"this kernel gives users no namespaces of their own ({(error.strerror or '').lower()}; sysctl "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone and "
            "kernel.apparmor_restrict_unprivileged_userns decide that): run this as root, or with --explicit "
            "alone"
        )
    if isinstance(error, OSError):
        return f"the network namespace cannot be made: {error.strerror}; it needs CAP_SYS_ADMIN"
    return str(error)
