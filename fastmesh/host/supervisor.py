"""The supervisor: the small process that keeps a proxy alive. It decides; it moves no request.

It owns the listening sockets, the shared counters (`Area`) and every child: what its parts share is the
`Run`, the workers are the `Crew`, beside them is the `Agent`; here is what binds them. The boot story: the
agent starts and reads the configuration; its snapshot names the listeners; they are bound; a worker is forked
for each slot; when all of them are ready the proxy is. After that a child that dies is replaced, a worker on
the same sockets with the snapshot in use, the agent with "resume", so that neither needs the other to come
back.

Invariants:
  - The loop blocks in poll only. A hung child can neither stop it nor make it grow (see `channel`).
  - Before the proxy is ready every failure ends it, with its own exit code; afterwards none does.
  - A snapshot reaches the workers only when all its listeners are open; else the one before stays in use.
  - SIGTERM and SIGINT drain; the second one ends at once. SIGHUP asks the agent to read the file again.
  - SIGUSR2 withdraws: inbound listeners accept no more, outbound ones serve on until the drain. It is for the
    moment before the application is asked to end, and is not taken back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from fastmesh._core import set_title
from fastmesh.host.agent import Agent
from fastmesh.host.channel import ChannelError, Frame
from fastmesh.host.children import Child, Slot
from fastmesh.host.crew import Crew
from fastmesh.host.exits import EXIT_BOOT, EXIT_CONFIG, EXIT_FAILURE, EXIT_LISTEN, EXIT_OK, EXIT_PKI
from fastmesh.host.notify import Notifier
from fastmesh.host.pidfile import PidFile
from fastmesh.host.process import how_it_ended, raise_descriptor_limit, say
from fastmesh.host.reload import Reload
from fastmesh.host.run import BOOT_S, Run, StartError
from fastmesh.host.signals import SignalQueue
from fastmesh.host.sockets import ListenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# How long after its own deadline a worker may take to end, and the agent to write what it has.
_GRACE_S = 1.0
_AGENT_GRACE_S = 3.0
_STOP_S = 0.5
# Keys of session tickets: tickets of the one before are taken too, so one is worth an hour or two.
_TICKET_S = 3600.0


class Supervisor:
    """One run of the proxy. `workers` and `workload` override the configuration; `agent` is the agent's
    command line; session tickets get a new key every `ticket_interval` seconds.
    """

    def __init__(
        self,
        config: str,
        workers: int | None = None,
        pid_file: str | None = None,
        agent: list[str] | None = None,
        ticket_interval: float = _TICKET_S,
        *,
        workload: str | None = None,
    ) -> None:
        self._pid_file = PidFile(pid_file) if pid_file else None
        self._ticket_interval = ticket_interval
        self._signals = SignalQueue()
        self._notifier = Notifier()
        self._run = Run(config, workers, workload)
        self._timers = self._run.timers
        self._agent = Agent(self._run, agent or [sys.executable, "-m", "fastmesh.agent"])
        self._crew = Crew(self._run)
        self._reload = Reload(self._timers, self._notifier)
        self._exit: int | None = None
        # The second signal has come: the agent gets no time beyond a moment, either.
        self._at_once = False
        # The newest snapshot number that all workers have taken or refused.
        self._settled = 0
        # Inbound listeners are being closed; they are.
        self._withdrawing = False
        self._withdrawn = False
        # The newest snapshot that has a new identity and nothing else new.
        self._renewed = 0

    @property
    def _children(self) -> list[Child]:
        return [self._agent, *self._crew.slots]

    def run(self) -> int:
        """From start to end; the exit code."""
        set_title(f"fastmesh: supervisor ({self._run.label})")
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
        raise_descriptor_limit()
        if self._pid_file:
            try:
                self._pid_file.prepare()
            except OSError as error:
                raise StartError(EXIT_CONFIG, f"pid file {self._pid_file.path}: {error.strerror}") from error
        self._run.activation.claim()
        self._agent.dns = self._run.activation.take_dns()
        try:
            self._agent.start()
        except OSError as error:
            raise StartError(EXIT_BOOT, f"the agent cannot start: {error.strerror}") from error
        self._agent.begin()
        self._timers.after("boot", BOOT_S, self._agent_too_slow)

    def _agent_too_slow(self) -> NoReturn:
        raise StartError(EXIT_BOOT, f"the agent has not read the configuration within {BOOT_S:.0f} s")

    def _boot(self, frame: Frame) -> None:
        """The first snapshot is there: bind, then fork."""
        run = self._run
        run.take(frame)
        count = run.snapshot["workers"]
        if count > run.area.workers:
            raise StartError(EXIT_CONFIG, f"workers: {count}: at most {run.area.workers} are possible")
        run.listeners.slots = count
        run.listeners.extend(frame.message["snapshot"]["listeners"])
        self._agent.open_admin()
        if self._agent.dns and not frame.message["snapshot"].get("dns"):
            say(
                "the service manager passed sockets for the resolver (@dns), and there is no `dns` in the "
                "configuration"
            )
        for name in run.activation.close_rest():
            say(f"the service manager passed a socket that no listener takes: {name}")
        run.phase = "boot"
        self._crew.boot(count)
        self._tell_status()

    def _ready(self) -> None:
        """Every worker is ready for the first time."""
        self._run.phase = "run"
        self._timers.cancel("boot")
        if self._pid_file:
            try:
                self._pid_file.publish()
            except OSError as error:
                raise StartError(EXIT_CONFIG, f"pid file {self._pid_file.path}: {error.strerror}") from error
        listeners = ", ".join(f"{listener.name} {listener.address}" for listener in self._run.listeners)
        admin = f"; admin {self._agent.admin.address}" if self._agent.admin else ""
        text = f"{listeners}; workers {len(self._crew.slots)}{admin}"
        say(f"ready: {text}; pid {os.getpid()}", prefix="fastmesh ")
        self._notifier.ready(text)
        self._timers.after("tickets", self._ticket_interval, self._rotate_tickets)
        if self._notifier.watchdog_s:
            self._keep_alive(self._notifier.watchdog_s)

    def _rotate_tickets(self) -> None:
        """No context is made anew and no worker told: they see it in the shared memory."""
        self._run.area.rotate_tickets()
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
        for child in self._children:
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
                self._begin_reload()
            elif number == signal.SIGUSR2:
                self._withdraw()
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
            for child in self._children:
                if child.pid == pid:
                    self._hear(child)
                    if isinstance(child, Slot):
                        self._worker_died(child, status)
                    else:
                        self._agent_died(status)

    # workers

    def _on_worker_frame(self, slot: Slot, frame: Frame) -> None:
        if frame.type == "withdrawn":
            slot.withdrawn = True
            self._tell_withdrawn()
            return
        if self._crew.hear(slot, frame):
            self._tell_status()
        self._settle()

    def _settle(self) -> None:
        """See whether the workers have come to terms with the newest snapshot."""
        number = self._run.snapshot["number"]
        if self._settled == number or not self._crew.settled():
            return
        if self._run.phase == "boot":
            self._settled = number
            self._ready()
        elif self._run.phase == "run":
            self._settled = number
            if self._reload.running and number != self._renewed:
                self._reload.end(f"snapshot {number} is in use")

    def _worker_died(self, slot: Slot, status: int) -> None:
        self._crew.died(slot, status)
        if self._run.phase == "run":
            self._settle()
        self._tell_withdrawn()
        self._tell_status()
        if self._run.phase == "drain" and not self._crew.alive:
            self._stop_agent()

    # the agent

    def _on_agent_frame(self, frame: Frame) -> None:
        if frame.type == "snapshot":
            if self._run.phase == "agent":
                self._boot(frame)
            elif self._run.phase in ("boot", "run"):
                self._change(frame)
        elif frame.type == "parts":
            if self._run.phase in ("boot", "run", "drain") and self._run.renew(frame.message):
                # No answer to a reload that somebody waits for.
                self._renewed = frame.message["number"]
                self._crew.change([])
        elif frame.type == "config_error":
            errors = frame.message["errors"]
            for line in errors:
                say(line, prefix="")
            if self._run.phase == "agent":
                raise StartError(EXIT_CONFIG, f"not started: {_count(errors)} in the configuration")
            self._reload.end(f"not reloaded: {_count(errors)} in the configuration, the one before stays")
        elif frame.type == "unchanged":
            self._reload.end("nothing has changed in the configuration")
        elif frame.type == "pki_error":
            if self._run.phase == "agent":
                raise StartError(EXIT_PKI, frame.message["message"])
            self._reload.end(f"not reloaded: {frame.message['message']}")

    def _agent_died(self, status: int) -> None:
        what = f"{self._agent} {how_it_ended(status)}"
        self._agent.gone()
        if self._run.phase == "agent":
            raise StartError(EXIT_BOOT, f"{what} before it had read the configuration")
        if self._run.phase == "stop":
            self._exit = self._ended()
            return
        say(what)
        self._agent.restarts += 1
        self._timers.after("agent", self._agent.backoff.delay(), self._resume_agent)

    def _resume_agent(self) -> None:
        try:
            self._agent.start()
        except OSError as error:
            say(f"the agent cannot start: {error.strerror}")
            self._timers.after("agent", self._agent.backoff.delay(), self._resume_agent)
            return
        self._agent.restore()
        self._tell_status()
        if self._reload.running:
            self._agent.send({"type": "reload"}, key="reload")

    def _tell_status(self) -> None:
        status = {
            "type": "status",
            "workers": self._crew.report(),
            "draining": self._run.phase in ("drain", "stop"),
            "agent_restarts": self._agent.restarts,
        }
        self._agent.send(status, key="status")

    # a new configuration

    def _change(self, frame: Frame) -> None:
        """A newer snapshot: open what is new in it, then hand it to the workers."""
        run = self._run
        snapshot = frame.message["snapshot"]
        if self._withdrawing:
            self._agent.restore()
            self._reload.end(
                "not reloaded: the proxy is about to stop, its inbound listeners have been withdrawn"
            )
            return
        try:
            added = run.listeners.extend(snapshot["listeners"])
        except ListenError as error:
            self._agent.restore()
            self._reload.end(f"not reloaded: {error}")
            return
        for key in ("workers", "admin"):
            if snapshot[key] != run.snapshot[key]:
                say(f"{key} changed in the configuration: takes effect at the next start")
        run.take(frame)
        self._crew.change(added)

    def _begin_reload(self) -> None:
        """SIGHUP."""
        if self._run.phase in ("drain", "stop"):
            return
        self._reload.begin()
        self._agent.send({"type": "reload"}, key="reload")

    # the end

    def _withdraw(self) -> None:
        """SIGUSR2. A successor of a worker that dies meanwhile gets no inbound socket."""
        if self._run.phase != "run" or self._withdrawing:
            return
        self._withdrawing = True
        say("inbound listeners are withdrawn")
        # First ours, then the workers theirs, as in a drain.
        self._run.listeners.withdraw()
        self._crew.withdraw()
        self._tell_withdrawn()

    def _tell_withdrawn(self) -> None:
        if self._withdrawing and not self._withdrawn and self._crew.withdrawn():
            self._withdrawn = True
            self._notifier.withdrawn("inbound listeners accept no more")

    def _terminate(self) -> None:
        """SIGTERM or SIGINT."""
        if self._run.phase in ("agent", "boot"):
            self._exit = EXIT_OK
        elif self._run.phase == "run":
            self._drain()
        else:
            self._stop_at_once()

    def _drain(self) -> None:
        self._run.phase = "drain"
        deadline_ms = self._run.snapshot["drain_ms"]
        text = f"draining, for at most {deadline_ms / 1000:g} s"
        say(text)
        self._notifier.stopping(text)
        # First ours, then the workers theirs: the last one to close a socket makes it refuse.
        self._run.listeners.close()
        self._crew.drain(deadline_ms)
        self._tell_status()
        self._timers.after("deadline", deadline_ms / 1000 + _GRACE_S, self._crew.kill)
        if not self._crew.alive:
            self._stop_agent()

    def _stop_agent(self) -> None:
        """All workers have ended: let the agent write what it has."""
        self._run.phase = "stop"
        self._timers.cancel("agent")
        if not self._agent.pid:
            self._exit = self._ended()
            return
        self._agent.send({"type": "stop"})
        self._timers.after("deadline", _STOP_S if self._at_once else _AGENT_GRACE_S, self._agent.kill)

    def _ended(self) -> int:
        return EXIT_OK if self._crew.clean else EXIT_FAILURE

    def _stop_at_once(self) -> None:
        """The second signal."""
        self._at_once = True
        self._crew.stop()
        self._timers.after("deadline", _STOP_S, self._kill_all)

    def _kill_all(self) -> None:
        self._crew.kill()
        self._agent.kill()

    def _clean_up(self) -> None:
        """Leave nothing behind, however the run ended."""
        for child in self._children:
            child.kill()
        for child in self._children:
            if child.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)
                child.gone()
        self._run.listeners.close()
        self._crew.close()
        if self._agent.admin:
            self._agent.admin.close()
        if self._pid_file:
            self._pid_file.remove()


def _count(errors: list[str]) -> str:
    return "1 error" if len(errors) == 1 else f"{len(errors)} errors"
