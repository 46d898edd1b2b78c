"""One run from start to end: the sidecar first, then the command, then both away in the right order.

    boot   the sidecar starts; whatever goes wrong ends the run, and the command never runs
    run    the command runs; a sidecar that dies is started again, and until it is back traffic fails: the
           interception stays
    leave  the command has ended; what it has left behind is asked to end, then made to
    drain  nothing of the command is left; the sidecar drains and ends, then the interception goes

SIGTERM reaches the command a moment after the sidecar's inbound listeners have stopped accepting: no new
request comes in for an application that is about to end, while what it calls itself is served until it has
gone.
"""

from __future__ import annotations

import os
import select
import signal

from fastmesh._core import set_title
from fastmesh.host.exits import EXIT_BOOT, EXIT_FAILURE
from fastmesh.host.launch.application import Application
from fastmesh.host.launch.guard import Guard
from fastmesh.host.launch.kernel import adopt_orphans
from fastmesh.host.launch.processes import (
    MARK,
    code_of,
    descendants,
    kill_until_gone,
    running,
    send,
    session_of,
)
from fastmesh.host.launch.sidecar import Sidecar
from fastmesh.host.launch.signals import STOPS, Inbox, stop_ourselves
from fastmesh.host.launch.takeover import Takeover, TakeoverError
from fastmesh.host.launch.witness import Witness
from fastmesh.host.process import how_it_ended, say
from fastmesh.host.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from fastmesh.host.launch.plan import Plan
    from fastmesh.host.launch.signals import Signal

    Phase = Literal["boot", "run", "leave", "drain", "end"]

# How long inbound listeners may take to close before the command hears of SIGTERM all the same.
_WITHDRAW_S = 1.0
# What the command leaves behind may take so long to end after SIGTERM.
_LEAVE_S = 5.0
_KILL_S = 5.0
# Before a guard that has died is started again.
_GUARD_S = 0.5


class Launcher:
    """One run. Made in a process that has no child and one thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._phase: Phase = "boot"
        self._exit = 0
        self._timers = Timers()
        self._inbox = Inbox()
        # Below that of a run that we are part of: it ends with that one.
        outer = os.environ.get(MARK)
        own = f"{os.getpid()}-{os.urandom(8).hex()}"
        self._mark = f"{outer}:{own}" if outer else own
        self._takeover = Takeover.of(plan)
        self._application = Application(plan, self._mark)
        self._sidecars: list[Sidecar] = []
        # SIGTERM, until the sidecar accepts nothing more for the command; it is so.
        self._withheld: int | None = None
        self._withdrawing = False
        # What could not be killed.
        self._left: list[int] = []

    @property
    def _helpers(self) -> set[int]:
        return {self._witness.pid, self._guard.pid}

    @property
    def _sidecar(self) -> Sidecar:
        return self._sidecars[0]

    def run(self) -> int:
        """From start to end; the exit code."""
        plan = self._plan
        set_title(f"fastmesh: run ({plan.label}: {' '.join(plan.command)})")
        adopt_orphans()
        try:
            self._takeover.prepare()
            self._sidecars = self._takeover.sidecars(self._mark)
            self._witness = Witness(plan.label)
            self._guard = self._new_guard()
        except (OSError, TakeoverError) as error:
            self._takeover.down()
            say(f"run: {_reason(error)}; the command was not started")
            return EXIT_FAILURE
        self._timers.after("timeout", plan.timeout_s, self._too_slow)
        for sidecar in self._sidecars:
            self._start(sidecar)
        # After an error inside this, the guard ends what runs before it removes the interception.
        while self._phase != "end":
            self._turn()
        self._takeover.down(left=self._left)
        self._guard.dismiss()
        return self._exit

    # the loop

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._inbox, select.POLLIN)
        for sidecar in self._sidecars:
            poll.register(sidecar, select.POLLIN)
        poll.poll(self._timers.wait_ms())
        for sidecar in self._sidecars:
            before = sidecar.ready
            sidecar.hear()
            if sidecar.ready and not before:
                self._is_ready(sidecar)
        if self._sidecars[0].withdrawn:
            self._pass_withheld()
        for one in self._inbox.take():
            if one.number == signal.SIGCHLD:
                self._reap()
            else:
                self._on_signal(one)
        self._timers.run()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                pid = 0
            if not pid:
                break
            if os.WIFSTOPPED(status):
                if pid == self._application.pid and os.WSTOPSIG(status) in STOPS:
                    stop_ourselves()
            elif pid == self._application.pid:
                self._application_ended(status)
            elif pid in self._helpers:
                self._helper_ended(pid, status)
            else:
                for sidecar in self._sidecars:
                    if pid == sidecar.pid:
                        self._sidecar_ended(sidecar, status)
        if self._phase == "leave":
            self._leave()

    # the helpers

    def _new_guard(self) -> Guard:
        marks = [one.mark for one in self._sidecars]
        return Guard(self._plan.label, self._mark, marks, self._takeover)

    def _helper_ended(self, pid: int, status: int) -> None:
        """Their pids are somebody else's from now on."""
        if pid == self._witness.pid:
            self._witness.pid = 0
            say(
                f"run: the witness (pid {pid}) {how_it_ended(status)}; signals to the whole group reach the "
                "command twice from now on"
            )
            return
        self._guard.pid = 0
        say(f"run: the guard (pid {pid}) {how_it_ended(status)}; it is started again")
        self._timers.after("guard", _GUARD_S, self._guard_again)

    def _guard_again(self) -> None:
        try:
            self._guard = self._new_guard()
        except OSError as error:
            say(f"run: the guard cannot be started: {error.strerror}")
            self._timers.after("guard", _GUARD_S, self._guard_again)

    # signals

    def _on_signal(self, one: Signal) -> None:
        # To the whole group: the command has it, too.
        # Asked in any case: what it has seen is not to count for the next one.
        seen = self._witness.has_seen(one.number)
        for_all = not one.sent or seen
        if self._phase == "run":
            if one.number == signal.SIGTERM:
                self._on_term(for_all)
            elif not for_all:
                self._application.signal(one.number)
        elif one.number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            self._hurry(one.number)

    def _on_term(self, for_all: bool) -> None:
        """The first one is passed on when the sidecar accepts nothing more, every other at once."""
        if self._withdrawing:
            self._pass_withheld()
            if not for_all:
                self._application.signal(signal.SIGTERM)
            return
        self._withdrawing = True
        self._withheld = None if for_all else signal.SIGTERM
        if self._sidecar.ready:
            self._sidecar.withdraw()
            self._timers.after("withdraw", _WITHDRAW_S, self._pass_withheld)
        else:
            self._pass_withheld()

    def _pass_withheld(self) -> None:
        self._timers.cancel("withdraw")
        if self._withheld is not None:
            self._application.signal(self._withheld)
            self._withheld = None

    def _hurry(self, number: int) -> None:
        """Somebody wants an end, and the command is not there to hear it."""
        if self._phase == "boot":
            self._exit = 128 + number
            self._drain()
        elif self._phase == "leave":
            self._kill_rest()
        else:
            for sidecar in self._sidecars:
                sidecar.signal(signal.SIGTERM)

    # the sidecar

    def _start(self, sidecar: Sidecar) -> None:
        try:
            sidecar.start()
        except OSError as error:
            say(f"run: the {sidecar.name} cannot be started: {error.strerror}")
            self._restart(sidecar)

    def _restart(self, sidecar: Sidecar) -> None:
        self._timers.after(sidecar.name, sidecar.backoff.delay(), lambda: self._start(sidecar))

    def _is_ready(self, sidecar: Sidecar) -> None:
        if self._phase == "boot":
            if all(one.ready for one in self._sidecars):
                self._begin()
            return
        say(f"run: the {sidecar.name} is back")
        if self._withdrawing and sidecar is self._sidecar:
            sidecar.withdraw()

    def _sidecar_ended(self, sidecar: Sidecar, status: int) -> None:
        what = f"the {sidecar.name} (pid {sidecar.pid}) {how_it_ended(status)}"
        sidecar.gone()
        if self._phase == "boot":
            say(f"run: {what} before it was ready; the command was not started")
            self._exit = code_of(status) or EXIT_FAILURE
            self._drain()
        elif self._phase == "drain":
            self._drained()
        else:
            say(f"run: {what}; it is started again, and until then the command reaches nobody")
            self._pass_withheld()
            self._restart(sidecar)

    def _too_slow(self) -> None:
        late = " and the ".join(one.name for one in self._sidecars if not one.ready)
        say(f"run: the {late} was not ready within {self._plan.timeout_s:g} s; the command was not started")
        self._exit = EXIT_BOOT
        self._drain()

    # the command

    def _begin(self) -> None:
        """The sidecar is ready."""
        self._timers.cancel("timeout")
        try:
            self._takeover.up()
            self._application.start(self._takeover, self._inbox.before)
        except (OSError, TakeoverError) as error:
            say(f"run: {_reason(error)}; the command was not started")
            self._exit = EXIT_FAILURE
            self._drain()
            return
        self._phase = "run"

    def _application_ended(self, status: int) -> None:
        self._exit = code_of(status)
        self._application.ended(self._exit)
        self._withheld = None
        self._phase = "leave"
        for pid in self._rest():
            send(pid, signal.SIGTERM)
            # One that is stopped would not hear it.
            send(pid, signal.SIGCONT)
        self._timers.after("leave", _LEAVE_S, self._kill_rest)

    def _rest(self) -> list[int]:
        """What the command has left behind. Workers of a supervisor that has died are in its session."""
        sessions = set().union(*(one.sessions for one in self._sidecars))
        return [
            pid
            for pid in descendants(os.getpid())
            if pid not in self._helpers and session_of(pid) not in sessions and running(pid)
        ]

    def _leave(self) -> None:
        if not self._rest():
            self._drain()

    def _kill_rest(self) -> None:
        rest = self._rest()
        if rest:
            say(f"run: killed what the command has left behind: {', '.join(map(str, rest))}")
        self._takeover.kill()
        kill_until_gone(self._rest, _KILL_S)
        self._drain()

    # the end

    def _drain(self) -> None:
        if self._phase in ("drain", "end"):
            return
        self._phase = "drain"
        for name in ("timeout", "leave", *(one.name for one in self._sidecars)):
            self._timers.cancel(name)
        for sidecar in self._sidecars:
            sidecar.let_go()
            sidecar.signal(signal.SIGTERM)
        self._drained()

    def _drained(self) -> None:
        if not any(one.pid for one in self._sidecars):
            # Workers whose supervisor has died have no deadline that anybody watches.
            self._left = kill_until_gone(self._any, _KILL_S)
            self._phase = "end"

    def _any(self) -> list[int]:
        return [pid for pid in descendants(os.getpid()) if pid not in self._helpers and running(pid)]


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
