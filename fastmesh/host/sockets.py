"""Listening sockets: bound once, owned by the supervisor, kept open as long as the listener exists.

A TCP listener has one socket per worker slot (SO_REUSEPORT), so that the kernel spreads connections and a
successor takes over the accept queue of the worker it replaces. A Unix listener has one socket that all
workers share. A socket that the service manager opened is used instead of binding (see `activation`); its
path is never unlinked.

Errors are `ListenError`: the address, what is wrong, and what to do about it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from fastmesh.host.activation import Activation

FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}
# Accept connections to addresses that are not this host's (tproxy). <linux/in.h>, <linux/in6.h>.
_TRANSPARENT = {socket.AF_INET: (socket.IPPROTO_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}
# sun_path of sockaddr_un, less its NUL.
_MAX_PATH = 107
_DEFAULT_BACKLOG = 4096


class ListenError(Exception):
    """A listener that cannot be had; the text names the address and the remedy."""


def address_text(bind: Mapping[str, Any]) -> str:
    """`127.0.0.1:80`, `[::1]:80` or `unix:/path`, as a configuration writes it."""
    if bind["family"] == "unix":
        return f"unix:{bind['path']}"
    if bind["family"] == "inet6":
        return f"[{bind['host']}]:{bind['port']}"
    return f"{bind['host']}:{bind['port']}"


def backlog() -> int:
    """What listen(2) is asked for: as much as this host allows."""
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _DEFAULT_BACKLOG


class Listener:
    """The sockets of one listener. `bind` is what the configuration asked for, `address` what it got; its
    `number` never changes while it is open. With `transparent` in `bind` they accept connections to any
    address (tproxy).
    """

    def __init__(self, name: str, bind: Mapping[str, Any]) -> None:
        self.name = name
        self.bind = dict(bind)
        self.role = ""
        self.number = 0
        self.sockets: list[socket.socket] = []
        self.activated = False
        self._file: tuple[int, int] | None = None

    @property
    def address(self) -> str:
        if self.bind["family"] == "unix":
            return address_text(self.bind)
        return address_text(self.bind | {"port": self.sockets[0].getsockname()[1]})

    def socket_of(self, slot: int) -> socket.socket:
        """The socket that the worker of this slot accepts from."""
        return self.sockets[slot % len(self.sockets)]

    def open(self, slots: int) -> None:
        """Bind and listen, for `slots` workers. Raises ListenError, with nothing left open."""
        try:
            if self.bind["family"] == "unix":
                self._open_unix()
            else:
                self._open_ip(slots)
        except BaseException:
            self.close()
            raise

    def adopt(self, sockets: list[socket.socket]) -> None:
        """Use sockets that someone else bound. Raises ListenError, and leaves them open."""
        self.sockets = sockets
        self.activated = True
        for sock in sockets:
            self._make_transparent(sock)
            _prepare(sock)

    def close(self) -> None:
        """Close every socket, and unlink the path of a Unix socket if it is still ours."""
        for sock in self.sockets:
            sock.close()
        self.sockets = []
        if self._file is None:
            return
        try:
            found = os.stat(self.bind["path"], follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._file:
                os.unlink(self.bind["path"])
        except OSError:
            pass
        self._file = None

    def _open_ip(self, slots: int) -> None:
        family = FAMILIES[self.bind["family"]]
        port = self.bind["port"]
        try:
            if port:
                # With SO_REUSEPORT the kernel lets a second fastmesh of the same user bind the same port, and
                # take half of its connections: a first bind without it finds out.
                with _ip_socket(family) as probe:
                    probe.bind((self.bind["host"], port))
            for _ in range(slots):
                sock = _ip_socket(family)
                self.sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self._make_transparent(sock)
                sock.bind((self.bind["host"], port))
                port = sock.getsockname()[1]
            # Only when every slot has its port: nobody may connect to a start that then fails.
            for sock in self.sockets:
                sock.listen(backlog())
                _prepare(sock)
        except OSError as error:
            raise ListenError(self._explain(error)) from error

    def _make_transparent(self, sock: socket.socket) -> None:
        if not self.bind.get("transparent"):
            return
        try:
            sock.setsockopt(*_TRANSPARENT[sock.family], 1)
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno == errno.EPERM:
                why = "not permitted: `intercept.method: tproxy` needs root or CAP_NET_ADMIN; give it, or "
                why += "use `method: redirect`"
            raise ListenError(f"{self._what()}: {why}") from error

    def _open_unix(self) -> None:
        path = self.bind["path"]
        if len(os.fsencode(path)) > _MAX_PATH:
            raise ListenError(
                f"{self._what()}: the path is longer than the {_MAX_PATH} bytes that a Unix socket may have"
            )
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sockets.append(sock)
            try:
                sock.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                self._remove_stale(path)
                sock.bind(path)
            made = os.stat(path, follow_symlinks=False)
            self._file = (made.st_dev, made.st_ino)
            sock.listen(backlog())
            _prepare(sock)
        except OSError as error:
            raise ListenError(self._explain(error)) from error

    def _remove_stale(self, path: str) -> None:
        """Unlink a socket that nobody listens on any more. Raises ListenError if it is anything else."""
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise ListenError(f"{self._what()}: a file that is no socket has this path; move it away")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
                return
            except BlockingIOError:
                pass  # its accept queue is full: somebody is there
        raise ListenError(
            f"{self._what()}: another process listens there (ss -xlp names it); stop it or change `bind`"
        )

    def _what(self) -> str:
        return f"cannot listen on {address_text(self.bind)} (listener {self.name})"

    def _explain(self, error: OSError) -> str:
        port = self.bind["port"]
        remedies = {
            errno.EADDRINUSE: "another socket has this address "
            + f"(ss -ltnp 'sport = :{port}' names it); stop it or change `bind`",
            errno.EADDRNOTAVAIL: "this host has no such address (ip addr lists them)",
            errno.EAFNOSUPPORT: "this host does not have this address family",
            errno.ENOENT: "the directory does not exist",
            errno.EACCES: "not permitted: "
            + (
                "the directory must be writable"
                if self.bind["family"] == "unix"
                else "ports below 1024 need root, CAP_NET_BIND_SERVICE, or a lower "
                "net.ipv4.ip_unprivileged_port_start"
            ),
        }
        reason = remedies.get(error.errno or 0, error.strerror or str(error))
        return f"{self._what()}: {reason}"


def _ip_socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # [::]:80 and 0.0.0.0:80 are two listeners, whatever net.ipv6.bindv6only says.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _prepare(sock: socket.socket) -> None:
    """For accepting: non-blocking, and with what accepted sockets inherit."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class ListenerSet:
    """The listeners of the snapshot in use. It only grows: a worker that runs gives up no listener."""

    def __init__(self, activation: Activation) -> None:
        # Workers that will accept: known with the first snapshot.
        self.slots = 1
        self._activation = activation
        self._listeners: dict[str, Listener] = {}
        # How many have been opened: each has a number below it.
        self.opened = 0

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._listeners.values())

    def extend(self, wanted: Iterable[Mapping[str, Any]]) -> list[Listener]:
        """Open those of `wanted`, all listeners of a snapshot, that are new, and return them.

        Raises ListenError, and then nothing has changed, if one cannot be opened, or if one that is open is
        not wanted any more or wanted elsewhere.
        """
        wanted = list(wanted)
        roles = {conf["name"]: conf.get("role", "") for conf in wanted}
        binds = {conf["name"]: conf["bind"] for conf in wanted}
        changes = []
        for listener in self:
            bind = binds.pop(listener.name, None)
            if bind is None:
                changes.append(f"{listener.name} is gone")
            elif bind != listener.bind:
                where = f"from {listener.address} to {address_text(bind)}"
                if bool(bind.get("transparent")) != bool(listener.bind.get("transparent")):
                    where = "to another `intercept.method`"
                changes.append(f"{listener.name} has moved {where}")
        if changes:
            what = "listeners can only be added while the proxy runs"
            raise ListenError(f"{what}, and {', '.join(changes)}: restart it for that")
        added: list[Listener] = []
        try:
            for name, bind in binds.items():
                listener = Listener(name, bind)
                added.append(listener)
                passed = self._activation.take(name, bind)
                if passed:
                    listener.adopt(passed)
                else:
                    listener.open(self.slots)
        except ListenError:
            for listener in added:
                listener.close()
            raise
        for listener in added:
            listener.number = self.opened
            self.opened += 1
        self._listeners |= {listener.name: listener for listener in added}
        for listener in self:
            listener.role = roles[listener.name]
        return added

    def withdraw(self) -> None:
        """Close the inbound ones of ours; they stay known, and are not opened again."""
        for listener in self:
            if listener.role == "inbound":
                listener.close()

    def close(self) -> None:
        """Close all of ours, and free the paths of Unix sockets."""
        for listener in self:
            listener.close()
        self._listeners = {}
