"""How the command's traffic gets to its sidecar: by a cgroup, by a network namespace, or by its environment.

The only module of this package that knows `host.intercept`. What needs the configuration is done in a child
that ends: YAML and its like would stay in the memory of a process that lives as long as the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time

from fastmesh.host.cgroup_names import is_cgroup
from fastmesh.host.launch.isolation import IsolationError, Namespace, listening_outside, resolv_conf
from fastmesh.host.launch.kernel import die_with_parent
from fastmesh.host.launch.processes import fork
from fastmesh.host.launch.sidecar import Sidecar
from fastmesh.host.process import say
from fastmesh.host.sockets import ListenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from fastmesh.host.launch.plan import Plan

_LABEL = 64
_DNS_PORT = 53
_RUN = "/run"
_RMDIR_S = 2.0
_POLL_S = 0.01


class TakeoverError(Exception):
    """Traffic cannot be taken over; the text says what to do about it."""


class Takeover:
    """By the environment alone: the command is told where its proxy is (`Plan.environment`), and may listen.

    `prepare` comes first and `up` when the sidecar is ready; `enter` is called in the process that becomes
    the command; `kill` ends all that is where the command is, if that can be told; `down` comes last, after
    `up` or not (a copy of this object may not know: `surely_up`), and says itself what goes wrong. `left`
    could not be ended: their traffic stays taken over. The others raise TakeoverError, `enter` OSError.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @staticmethod
    def of(plan: Plan) -> Takeover:
        return {"explicit": Takeover, "cgroup": CgroupTakeover, "isolate": NamespaceTakeover}[plan.mode](plan)

    def prepare(self) -> None:
        pass

    def sidecars(self, mark: str) -> list[Sidecar]:
        """What has to run for the command, the sidecar first."""
        return [Sidecar("sidecar", self._arguments(), mark)]

    def _arguments(self) -> list[str]:
        workload = ["--workload", self.plan.workload] if self.plan.workload else []
        return [self.plan.config, *workload]

    def up(self) -> None:
        pass

    def enter(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def let_go(self) -> None:
        """Close all that is held open: this copy of the object is for `kill` and `down` only."""

    def down(self, *, surely_up: bool = False, left: Sequence[int] = ()) -> None:
        pass


class CgroupTakeover(Takeover):
    """By a cgroup of its own, below the one that we are in: its limits hold for the command, too."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._path = ""
        self._up = False

    def prepare(self) -> None:
        if os.geteuid() != 0:
            raise TakeoverError(
                "taking traffic over needs root (CAP_NET_ADMIN); without it, --explicit tells the command of "
                "its proxy by http_proxy, and --isolate puts it into a user namespace of its own"
            )
        path = os.path.join(_own_cgroup(), f"fastmesh-{plain_label(self.plan.label)}-{os.getpid()}")
        try:
            os.mkdir(path)
        except OSError as error:
            raise TakeoverError(
                f"the cgroup {path} cannot be made: {error.strerror}; or use --isolate"
            ) from error
        self._path = path

    def up(self) -> None:
        # Whatever becomes of the child: killed, it may have done it.
        self._up = True
        _in_child(self._install)

    def _install(self) -> None:
        from fastmesh.host.intercept import Selection, up

        up(_loaded(self.plan), Selection(cgroup=self._path))

    def _remove(self) -> None:
        from fastmesh.host.intercept import Selection
        from fastmesh.host.intercept.apply import down_of

        down_of(self.plan.config, Selection(cgroup=self._path))

    def enter(self) -> None:
        with open(f"{self._path}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")

    def kill(self) -> None:
        # Not in kernels before 5.14; then those that are found one by one must do.
        with contextlib.suppress(OSError), open(f"{self._path}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")

    def down(self, *, surely_up: bool = False, left: Sequence[int] = ()) -> None:
        if left:
            say(
                f"run: the interception of {self._path} stays, for what cannot be killed: "
                f"{', '.join(map(str, left))}; `fastmesh intercept down --cgroup {self._path}` removes it"
            )
            return
        if self._up or surely_up:
            try:
                _in_child(self._remove)
            except TakeoverError as error:
                say(f"run: the interception of {self._path} could not be removed: {error}")
        if self._path:
            self._remove_cgroup()

    def _remove_cgroup(self) -> None:
        """What has just been killed may be in it for a moment yet."""
        end = time.monotonic() + _RMDIR_S
        while True:
            try:
                os.rmdir(self._path)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if time.monotonic() > end:
                    say(f"run: the cgroup {self._path} cannot be removed: {error.strerror}")
                    return
            time.sleep(_POLL_S)


class NamespaceTakeover(Takeover):
    """By a network namespace of its own (`isolation`), where the sidecar listens too."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._namespace: Namespace | None = None
        self._outside: list[tuple[str, socket.socket]] = []
        self._directory = ""
        self._resolv_conf = ""

    def prepare(self) -> None:
        try:
            self._namespace = Namespace(self.plan.inside, self.plan.names)
            for host, port in self.plan.published:
                self._outside.append((gate_name(host, port), listening_outside(host, port)))
        except (IsolationError, ListenError) as error:
            raise TakeoverError(str(error)) from error
        if self.plan.names is None:
            if not self.plan.proxied:
                say(
                    "run: the command can look up no names, for the configuration has no `dns`; with `dns: "
                    "{listen: 127.0.0.1:15053}` its sidecar answers it"
                )
            return
        host, port = self.plan.names
        # Without rules nobody leads it from port 53 to another one.
        if not self.plan.proxied or port == _DNS_PORT:
            self._resolv_conf = self._file("resolv.conf", resolv_conf(host))

    def sidecars(self, mark: str) -> list[Sidecar]:
        assert self._namespace is not None
        found = [Sidecar("sidecar", self._arguments(), mark, self._namespace.sockets)]
        if self._outside:
            path = self._file("gate.yaml", gate_config(self.plan.published))
            notify = os.path.join(self._directory, "notify.sock")
            enter = self._namespace.enter
            found.append(Sidecar("gate", [path], mark, self._outside, enter=enter, notify=notify))
        return found

    def _file(self, name: str, text: str) -> str:
        """A file of the run's own; its path."""
        if not self._directory:
            self._directory = tempfile.mkdtemp(prefix="fastmesh-run-", dir=_temporary())
        path = os.path.join(self._directory, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        # Programs of the command may become other users.
        os.chmod(path, 0o644)
        return path

    def up(self) -> None:
        if not self.plan.proxied:
            _in_child(self._install)

    def _install(self) -> None:
        assert self._namespace is not None
        self._namespace.enter()
        from fastmesh.host.intercept import Selection, up

        up(_loaded(self.plan), Selection())

    def enter(self) -> None:
        assert self._namespace is not None
        self._namespace.enter_as_ourselves(self._resolv_conf)

    def let_go(self) -> None:
        if self._namespace is not None:
            self._namespace.close()
        for _, sock in self._outside:
            sock.close()

    def down(self, *, surely_up: bool = False, left: Sequence[int] = ()) -> None:
        """The rules go with the namespace, when its last process has gone."""
        self.let_go()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)


def _temporary() -> str:
    """A directory for files of a run. Raises TakeoverError."""
    try:
        return tempfile.gettempdir()
    except OSError:
        if os.access(_RUN, os.W_OK):
            return _RUN
    raise TakeoverError(
        f"no directory for temporary files can be written to; mount a tmpfs at /tmp or {_RUN}, or set TMPDIR"
    )


def gate_name(host: str, port: int) -> str:
    """The gate's listener for an address of the application's."""
    return f"port-{port}-v{6 if ':' in host else 4}"


def gate_config(published: list[tuple[str, int]]) -> str:
    """The gate's configuration: what comes in at an address goes to the same one inside."""
    listeners, services = [], {}
    for host, port in published:
        name, address = gate_name(host, port), f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # Its socket is passed to it, open.
        bind = "[::1]:0" if ":" in host else "127.0.0.1:0"
        listeners.append({"name": name, "bind": bind, "protocol": "tcp", "to": name})
        services[name] = {"endpoints": [address]}
    return json.dumps(
        {"admin": "off", "workers": 1, "drain": "1s", "listeners": listeners, "services": services}
    )


def _loaded(plan: Plan):  # type: ignore[no-untyped-def]
    from pathlib import Path

    from fastmesh.config import load

    return load(Path(plan.config), plan.workload)


def _in_child(work: Callable[[], None]) -> None:
    """Do it in a process that ends with it. Raises TakeoverError with what goes wrong there."""
    read, write = os.pipe2(os.O_CLOEXEC)

    parent = os.getpid()

    def attempt() -> int:
        # Whoever cleans up after us must not have it at work at the same time.
        die_with_parent(signal.SIGKILL, parent)
        os.close(read)
        try:
            work()
        except ImportError as error:
            os.write(write, f"this build cannot intercept: {error}".encode())
            return 1
        except Exception as error:
            # The module is there if its errors are.
            known = [
                getattr(sys.modules.get(module), name, None)
                for module, name in (
                    ("fastmesh.host.intercept", "InterceptError"),
                    ("fastmesh.config", "ConfigErrors"),
                )
            ]
            if not isinstance(error, tuple(kind for kind in known if kind)):
                raise
            os.write(write, str(error).encode()[:4000])
            return 1
        return 0

    try:
        pid = fork(attempt)
        os.close(write)
        write = -1
        with open(read, "rb", closefd=False) as pipe:
            text = pipe.read().decode(errors="replace")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
    if status:
        raise TakeoverError(text or "an error inside fastmesh, see above")


def plain_label(label: str) -> str:
    """A label as part of the name of a cgroup: it may come from a file of any name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", label)[:_LABEL]


def usable(path: str) -> str:
    """The cgroup that we are in, if rules can name those below it. Raises TakeoverError."""
    if path and not is_cgroup(path):
        raise TakeoverError(
            f"rules cannot name a cgroup below the one that this runs in ({path!r}); run it in one with a "
            "plain name, or use --isolate"
        )
    return path


def _own_cgroup() -> str:
    """The directory of our own cgroup v2."""
    mount = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.split()[0] == "cgroup2":
                mount = before.split()[4].encode().decode("unicode_escape")
    if mount is None:
        raise TakeoverError(
            "no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup does that); or use "
            "--isolate"
        )
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            number, _, path = line.rstrip("\n").split(":", 2)
            if number == "0":
                return mount + usable(path.rstrip("/"))
    raise TakeoverError("this process is in no cgroup v2; use --isolate")
