"""The supervisor: the small process that keeps a proxy alive. It decides; it moves no request.

It owns the listening sockets, the shared counters (`Area`) and every child. The boot story: the agent starts
and reads the configuration; its snapshot names the listeners; they are bound; a worker is forked for each
slot; when all of them are ready the proxy is. After that a child that dies is replaced, a worker on the same
sockets with the snapshot in use, the agent with "resume", so that neither needs the other to come back.

Invariants:
  - The loop blocks in poll only. A hung child can neither stop it nor make it grow (see `channel`).
  - Before the proxy is ready every failure ends it, with its own exit code; afterwards none does.
  - A snapshot reaches the workers only when all its listeners are open; else the one before stays in use.
  - SIGTERM and SIGINT drain; the second one ends at once. SIGHUP asks the agent to read the file again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import sys

from fastmesh._core import Area, set_title
from fastmesh.host import worker
from fastmesh.host.activation import Activation
from fastmesh.host.channel import Channel, ChannelError, Frame, snapshot_bytes, snapshot_frame
from fastmesh.host.children import Child, Slot
from fastmesh.host.exits import EXIT_BOOT, EXIT_CONFIG, EXIT_FAILURE, EXIT_LISTEN, EXIT_OK, EXIT_PKI
from fastmesh.host.notify import Notifier
from fastmesh.host.pidfile import PidFile
from fastmesh.host.process import fork, how_it_ended, say, spawn
from fastmesh.host.signals import SignalQueue
from fastmesh.host.sockets import Listener, ListenError, ListenerSet
from fastmesh.host.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# Rows of the shared counters. The configuration, which says how many workers there are, is read later by a
# process that already maps them; rows that nobody uses cost address space only.
MAX_WORKERS = 256
_BOOT_S = 30.0
_RELOAD_S = 30.0
# How long after its own deadline a worker may take to end, and the agent to write what it has.
_GRACE_S = 1.0
_AGENT_GRACE_S = 3.0
_STOP_S = 0.5
# Keys of session tickets: tickets of the one before are taken too, so one is worth an hour or two.
_TICKET_S = 3600.0


class StartError(Exception):
    """The start has failed: the exit code and the reason."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Supervisor:
    """One run of the proxy. `workers` overrides the configuration; `agent` is the agent's command line;
    session tickets get a new key every `ticket_interval` seconds.
    """

    def __init__(
        self,
        config: str,
        workers: int | None = None,
        pid_file: str | None = None,
        agent: list[str] | None = None,
        ticket_interval: float = _TICKET_S,
    ) -> None:
        self._config = config
        self._workers = workers
        self._pid_file = PidFile(pid_file) if pid_file else None
        self._agent_command = agent or [sys.executable, "-m", "fastmesh.agent"]
        self._ticket_interval = ticket_interval
        self._label = os.path.basename(config)
        self._signals = SignalQueue()
        self._notifier = Notifier()
        self._activation = Activation()
        self._listeners = ListenerSet(self._activation)
        self._area = Area.create(workers or MAX_WORKERS)
        # agent: it reads the file; boot: workers start; run; drain: exchanges end; stop: the agent ends
        self._phase = "agent"
        self._exit: int | None = None
        self._clean = True
        # The second signal has come: the agent gets no time beyond a moment, either.
        self._at_once = False
        self._timers = Timers()
        self._agent = Child("agent")
        self._slots: list[Slot] = []
        self._frame = b""
        self._snapshot: dict[str, Any] = {}
        # The newest snapshot number that all workers have taken or refused.
        self._settled = 0
        self._reloading = False
        # The newest snapshot that has a new identity and nothing else new: no answer to a reload.
        self._renewed = 0
        self._admin: Listener | None = None

    def run(self) -> int:
        """From start to end; the exit code."""
        set_title(f"fastmesh: supervisor ({self._label})")
        try:
            self._start()
            while self._exit is None:
                self._turn()
        except (StartError, ListenError) as error:
            self._exit = error.code if isinstance(error, StartError) else EXIT_LISTEN
            say(str(error))
            self._notifier.failed(str(error))
        finally:
            self._clean_up()
        return self._exit

    # the boot story

    def _start(self) -> None:
        _raise_descriptor_limit()
        if self._pid_file:
            try:
                self._pid_file.prepare()
            except OSError as error:
                raise StartError(EXIT_CONFIG, f"pid file {self._pid_file.path}: {error.strerror}") from error
        self._activation.claim()
        try:
            self._start_agent()
        except OSError as error:
            raise StartError(EXIT_BOOT, f"the agent cannot start: {error.strerror}") from error
        self._agent.send({"type": "start", "config": self._config, "workers": self._workers})
        self._timers.after("boot", _BOOT_S, self._agent_too_slow)

    def _agent_too_slow(self) -> NoReturn:
        raise StartError(EXIT_BOOT, f"the agent has not read the configuration within {_BOOT_S:.0f} s")

    def _start_agent(self) -> None:
        ours, theirs = Channel.pair()
        fds = [theirs.fileno(), self._area.fd]
        if self._admin:
            fds += [sock.fileno() for sock in self._admin.sockets]
        try:
            pid = spawn([*self._agent_command, *map(str, fds)], fds)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._agent.started(pid, ours)

    def _boot(self, frame: Frame) -> None:
        """The first snapshot is there: bind, then fork."""
        self._take_snapshot(frame)
        count = self._snapshot["workers"]
        if count > self._area.workers:
            raise StartError(EXIT_CONFIG, f"workers: {count}: at most {self._area.workers} are possible")
        self._listeners.slots = count
        self._listeners.extend(frame.message["snapshot"]["listeners"])
        self._open_admin()
        for name in self._activation.close_rest():
            say(f"the service manager passed a socket that no listener takes: {name}")
        self._phase = "boot"
        self._slots = [Slot(number) for number in range(count)]
        # What exists now stays shared with the workers unless somebody writes to it: keep the collector off.
        gc.collect()
        gc.freeze()
        for slot in self._slots:
            self._start_worker(slot)
        self._timers.after("boot", _BOOT_S, self._workers_too_slow)
        self._tell_status()

    def _workers_too_slow(self) -> NoReturn:
        late = ", ".join(str(slot) for slot in self._slots if slot.state != "ready")
        raise StartError(EXIT_BOOT, f"not ready within {_BOOT_S:.0f} s: {late}")

    def _open_admin(self) -> None:
        admin = self._snapshot["admin"]
        if not admin:
            return
        family = "inet6" if ":" in admin["host"] else "inet"
        bind = {"family": family, "host": admin["host"], "port": admin["port"], "path": None}
        listener = Listener("admin", bind)
        passed = self._activation.take("admin", bind)
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
        self._admin = listener
        self._agent.send({"type": "admin"}, descriptors=[sock.fileno() for sock in listener.sockets])

    def _start_worker(self, slot: Slot) -> None:
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            self._worker_not_started(slot, error)
            return
        sockets = {listener.name: listener.socket_of(slot.number) for listener in self._listeners}
        descriptors = {name: sock.fileno() for name, sock in sockets.items()}

        def child() -> int:
            set_title(f"fastmesh: {slot.name} ({self._label})")
            return worker.run(slot.number, self._area, Channel(theirs), descriptors)

        try:
            pid = fork(child, [theirs.fileno(), *descriptors.values()])
        except OSError as error:
            ours.close()
            self._worker_not_started(slot, error)
            return
        finally:
            theirs.close()
        slot.started(pid, ours)
        slot.send(self._frame, key="snapshot")

    def _worker_not_started(self, slot: Slot, error: OSError) -> None:
        what = f"{slot.name} cannot start: {error.strerror}"
        if self._phase == "boot":
            raise StartError(EXIT_BOOT, what) from error
        say(what)
        self._restart_worker(slot)

    def _ready(self) -> None:
        """Every worker is ready for the first time."""
        self._phase = "run"
        self._timers.cancel("boot")
        if self._pid_file:
            try:
                self._pid_file.publish()
            except OSError as error:
                raise StartError(EXIT_CONFIG, f"pid file {self._pid_file.path}: {error.strerror}") from error
        listeners = ", ".join(f"{listener.name} {listener.address}" for listener in self._listeners)
        admin = f"; admin {self._admin.address}" if self._admin else ""
        text = f"{listeners}; workers {len(self._slots)}{admin}"
        say(f"ready: {text}; pid {os.getpid()}", prefix="fastmesh ")
        self._notifier.ready(text)
        self._timers.after("tickets", self._ticket_interval, self._rotate_tickets)
        if self._notifier.watchdog_s:
            self._keep_alive(self._notifier.watchdog_s)

    def _rotate_tickets(self) -> None:
        """No context is made anew and no worker told: they see it in the shared memory."""
        self._area.rotate_tickets()
        self._timers.after("tickets", self._ticket_interval, self._rotate_tickets)

    def _keep_alive(self, interval: float) -> None:
        self._notifier.alive()
        self._timers.after("watchdog", interval, lambda: self._keep_alive(interval))

    # the loop

    def _turn(self) -> None:
        """Wait for signals, frames and timers, and act on each."""
        poll = select.poll()
        poll.register(self._signals.fileno(), select.POLLIN)
        children: dict[int, Child] = {}
        for child in [self._agent, *self._slots]:
            if child.channel is not None and not child.channel.closed:
                events = select.POLLIN | (select.POLLOUT if child.channel.waiting else 0)
                poll.register(child.channel.fileno(), events)
                children[child.channel.fileno()] = child
        ready = poll.poll(self._timers.wait_ms())
        for fd, events in ready:
            if fd not in children:
                continue
            if events & select.POLLOUT:
                children[fd].flush()
            if events & ~select.POLLOUT:
                self._hear(children[fd])
        for number in self._signals.take():
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._reload()
            else:
                self._terminate()
        self._timers.run()

    def _hear(self, child: Child) -> None:
        """Act on the frames that have come from a child."""
        if child.channel is None:
            return
        try:
            frames = child.channel.receive()
        except ChannelError as error:
            say(f"{child} sent {error}; killed")
            child.kill()
            child.channel.closed = True
            return
        for frame in frames:
            if isinstance(child, Slot):
                self._on_worker_frame(child, frame)
            else:
                self._on_agent_frame(frame)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for child in [self._agent, *self._slots]:
                if child.pid == pid:
                    self._hear(child)
                    if isinstance(child, Slot):
                        self._worker_died(child, status)
                    else:
                        self._agent_died(status)

    # workers

    def _on_worker_frame(self, slot: Slot, frame: Frame) -> None:
        if frame.type == "ready":
            slot.answered = frame.message["number"]
            if slot.state == "starting":
                slot.state = "ready"
                self._tell_status()
        elif frame.type == "failed":
            slot.reason = frame.message["message"]
            if slot.state == "ready":
                # It goes on with the snapshot before.
                slot.answered = self._snapshot["number"]
                say(f"{slot} refused snapshot {slot.answered}: {slot.reason}")
        self._settle()

    def _settle(self) -> None:
        """See whether the workers have come to terms with the newest snapshot."""
        number = self._snapshot["number"]
        if self._settled == number or any(slot.answered != number for slot in self._slots if slot.pid):
            return
        if self._phase == "boot":
            self._settled = number
            self._ready()
        elif self._phase == "run":
            self._settled = number
            if self._reloading and number != self._renewed:
                self._end_reload(f"snapshot {number} is in use")

    def _worker_died(self, slot: Slot, status: int) -> None:
        how = how_it_ended(status)
        if slot.state == "starting" and slot.reason:
            how = f"cannot start: {slot.reason}"
        what = f"{slot} {how}"
        expected = slot.state == "killed" or (slot.state == "draining" and not status)
        slot.gone()
        if self._phase == "boot":
            raise StartError(EXIT_BOOT, what)
        if not expected:
            say(what)
        if self._phase == "run":
            self._restart_worker(slot)
            self._settle()
        elif not expected:
            self._clean = False
        self._tell_status()
        if self._phase == "drain" and not any(other.pid for other in self._slots):
            self._stop_agent()

    def _restart_worker(self, slot: Slot) -> None:
        slot.restarts += 1
        self._timers.after(slot.name, slot.backoff.delay(), lambda: self._start_worker(slot))

    # the agent

    def _on_agent_frame(self, frame: Frame) -> None:
        if frame.type == "snapshot":
            if self._phase == "agent":
                self._boot(frame)
            elif self._phase in ("boot", "run"):
                self._change(frame)
        elif frame.type == "renewed":
            self._renewed = frame.message["number"]
        elif frame.type == "config_error":
            errors = frame.message["errors"]
            for line in errors:
                say(line, prefix="")
            if self._phase == "agent":
                raise StartError(EXIT_CONFIG, f"not started: {_count(errors)} in the configuration")
            self._end_reload(f"not reloaded: {_count(errors)} in the configuration, the one before stays")
        elif frame.type == "unchanged":
            self._end_reload("nothing has changed in the configuration")
        elif frame.type == "pki_error":
            if self._phase == "agent":
                raise StartError(EXIT_PKI, frame.message["message"])
            self._end_reload(f"not reloaded: {frame.message['message']}")

    def _agent_died(self, status: int) -> None:
        what = f"{self._agent} {how_it_ended(status)}"
        self._agent.gone()
        if self._phase == "agent":
            raise StartError(EXIT_BOOT, f"{what} before it had read the configuration")
        if self._phase == "stop":
            self._exit = EXIT_OK if self._clean else EXIT_FAILURE
            return
        say(what)
        self._agent.restarts += 1
        self._timers.after("agent", self._agent.backoff.delay(), self._resume_agent)

    def _resume_agent(self) -> None:
        try:
            self._start_agent()
        except OSError as error:
            say(f"the agent cannot start: {error.strerror}")
            self._timers.after("agent", self._agent.backoff.delay(), self._resume_agent)
            return
        self._restore_agent()
        self._tell_status()
        if self._reloading:
            self._agent.send({"type": "reload"}, key="reload")

    def _restore_agent(self) -> None:
        """Tell the agent which snapshot is in use."""
        snapshot = snapshot_bytes(Frame(self._frame, []))
        frame = snapshot_frame(snapshot, "resume", config=self._config, workers=self._workers)
        self._agent.send(frame, key="resume")

    def _tell_status(self) -> None:
        workers = [
            {"slot": slot.number, "pid": slot.pid, "state": slot.state, "restarts": slot.restarts}
            for slot in self._slots
        ]
        status = {
            "type": "status",
            "workers": workers,
            "draining": self._phase in ("drain", "stop"),
            "agent_restarts": self._agent.restarts,
        }
        self._agent.send(status, key="status")

    # a new configuration

    def _take_snapshot(self, frame: Frame) -> None:
        self._frame = frame.body
        # Keep what is decided with here; services and keys stay in the frame only.
        snapshot = frame.message["snapshot"]
        self._snapshot = {key: snapshot[key] for key in ("number", "workers", "drain_ms", "admin")}

    def _change(self, frame: Frame) -> None:
        """A newer snapshot: open what is new in it, then hand it to the workers."""
        snapshot = frame.message["snapshot"]
        try:
            added = self._listeners.extend(snapshot["listeners"])
        except ListenError as error:
            self._restore_agent()
            self._end_reload(f"not reloaded: {error}")
            return
        for key in ("workers", "admin"):
            if snapshot[key] != self._snapshot[key]:
                say(f"{key} changed in the configuration: takes effect at the next start")
        self._take_snapshot(frame)
        for slot in self._slots:
            if added:
                names = [listener.name for listener in added]
                fds = [listener.socket_of(slot.number).fileno() for listener in added]
                try:
                    slot.send({"type": "listen", "names": names}, descriptors=fds)
                except OSError as error:
                    # Connections would wait on a socket that it does not know. Its successor inherits all.
                    say(f"{slot} cannot be given its new sockets: {error.strerror}; replaced")
                    slot.kill()
            slot.send(self._frame, key="snapshot")

    def _reload(self) -> None:
        if self._phase in ("drain", "stop"):
            return
        self._reloading = True
        self._notifier.reloading()
        self._agent.send({"type": "reload"}, key="reload")
        self._timers.after("reload", _RELOAD_S, self._reload_too_slow)

    def _reload_too_slow(self) -> None:
        self._end_reload(f"the reload has not ended within {_RELOAD_S:.0f} s")

    def _end_reload(self, text: str) -> None:
        say(text)
        if self._reloading:
            self._reloading = False
            self._timers.cancel("reload")
            self._notifier.ready(text)

    # the end

    def _terminate(self) -> None:
        """SIGTERM or SIGINT."""
        if self._phase in ("agent", "boot"):
            self._exit = EXIT_OK
        elif self._phase == "run":
            self._drain()
        else:
            self._stop_at_once()

    def _drain(self) -> None:
        self._phase = "drain"
        deadline_ms = self._snapshot["drain_ms"]
        text = f"draining, for at most {deadline_ms / 1000:g} s"
        say(text)
        self._notifier.stopping(text)
        # First ours, then the workers theirs: the last one to close a socket makes it refuse.
        self._listeners.close()
        for slot in self._slots:
            self._timers.cancel(slot.name)
            if slot.pid:
                slot.state = "draining"
                slot.send({"type": "drain", "deadline_ms": deadline_ms})
        self._tell_status()
        self._timers.after("deadline", deadline_ms / 1000 + _GRACE_S, self._kill_workers)
        if not any(slot.pid for slot in self._slots):
            self._stop_agent()

    def _kill_workers(self) -> None:
        for slot in self._slots:
            if slot.pid:
                say(f"{slot} has not ended in time; killed")
                slot.state = "killed"
                slot.kill()

    def _stop_agent(self) -> None:
        """All workers have ended: let the agent write what it has."""
        self._phase = "stop"
        self._timers.cancel("agent")
        if not self._agent.pid:
            self._exit = EXIT_OK if self._clean else EXIT_FAILURE
            return
        self._agent.send({"type": "stop"})
        self._timers.after("deadline", _STOP_S if self._at_once else _AGENT_GRACE_S, self._agent.kill)

    def _stop_at_once(self) -> None:
        """The second signal: exchanges are cut, but what can be given back in a moment is."""
        self._at_once = True
        for slot in self._slots:
            slot.send({"type": "stop"})
        self._timers.after("deadline", _STOP_S, self._kill_all)

    def _kill_all(self) -> None:
        self._kill_workers()
        self._agent.kill()

    def _clean_up(self) -> None:
        """Leave nothing behind, however the run ended."""
        for child in [self._agent, *self._slots]:
            child.kill()
        for child in [self._agent, *self._slots]:
            if child.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)
                child.gone()
        self._listeners.close()
        if self._admin:
            self._admin.close()
        if self._pid_file:
            self._pid_file.remove()


def _count(errors: list[str]) -> str:
    return "1 error" if len(errors) == 1 else f"{len(errors)} errors"


def _raise_descriptor_limit() -> None:
    """As many descriptors as this process may have: the soft limit is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
