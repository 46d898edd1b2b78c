"""The workers of a run: forked on the listening sockets, replaced when they die, drained at the end."""

from __future__ import annotations

import gc

from fastmesh._core import set_title
from fastmesh.host import worker
from fastmesh.host.channel import Channel
from fastmesh.host.children import Slot
from fastmesh.host.exits import EXIT_BOOT
from fastmesh.host.handover import Inboxes
from fastmesh.host.process import fork, how_it_ended, say
from fastmesh.host.run import BOOT_S, StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from fastmesh.host.channel import Frame
    from fastmesh.host.run import Run
    from fastmesh.host.sockets import Listener


class Crew:
    """The workers, a slot each.

    While the proxy boots, one that cannot start ends it (StartError); later it is tried again.
    """

    def __init__(self, run: Run) -> None:
        self.slots: list[Slot] = []
        # Of those that the end of the run has ended, all did so in order.
        self.clean = True
        self._run = run
        self._inboxes = Inboxes(0)
        # Inbound listeners are closed: whoever starts now is given none.
        self._withdrawing = False

    @property
    def alive(self) -> bool:
        return any(slot.pid for slot in self.slots)

    def boot(self, count: int) -> None:
        """Start `count` workers, on what is open now."""
        try:
            self._inboxes = Inboxes(count)
        except OSError as error:
            raise StartError(EXIT_BOOT, f"workers: no inboxes for {count}: {error.strerror}") from error
        self.slots = [Slot(number) for number in range(count)]
        # What exists now stays shared with the workers unless somebody writes to it: keep the collector off.
        gc.collect()
        gc.freeze()
        for slot in self.slots:
            self._start(slot)
        self._run.timers.after("boot", BOOT_S, self._too_slow)

    def _too_slow(self) -> NoReturn:
        late = ", ".join(str(slot) for slot in self.slots if slot.state != "ready")
        raise StartError(EXIT_BOOT, f"not ready within {BOOT_S:.0f} s: {late}")

    def _start(self, slot: Slot) -> None:
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            self._not_started(slot, error)
            return
        run = self._run
        sockets = {
            listener.name: (listener.number, listener.socket_of(slot.number).fileno())
            for listener in run.listeners
            if listener.sockets
        }
        inboxes, outboxes = self._inboxes.descriptors()
        own = inboxes[slot.number : slot.number + 1]

        def child() -> int:
            set_title(f"fastmesh: {slot.name} ({run.label})")
            siblings = (own[0], outboxes) if own else None
            return worker.run(slot.number, run.area, Channel(theirs), sockets, siblings)

        try:
            listening = [fd for _, fd in sockets.values()]
            pid = fork(child, [theirs.fileno(), *listening, *own, *outboxes])
        except OSError as error:
            ours.close()
            self._not_started(slot, error)
            return
        finally:
            theirs.close()
        slot.started(pid, ours)
        slot.withdrawn = self._withdrawing
        slot.send(run.frame, key="snapshot")

    def _not_started(self, slot: Slot, error: OSError) -> None:
        what = f"{slot.name} cannot start: {error.strerror}"
        if self._run.phase == "boot":
            raise StartError(EXIT_BOOT, what) from error
        say(what)
        self._restart(slot)

    def _restart(self, slot: Slot) -> None:
        slot.restarts += 1
        self._run.timers.after(slot.name, slot.backoff.delay(), lambda: self._start(slot))

    def hear(self, slot: Slot, frame: Frame) -> bool:
        """A worker tells how it gets on with its snapshot. True: the agent should know."""
        if frame.type == "ready":
            news = slot.state == "starting" or slot.reason != ""
            slot.answered, slot.reason = frame.message["number"], ""
            if slot.state == "starting":
                slot.state = "ready"
            return news
        elif frame.type == "failed":
            slot.reason = frame.message["message"]
            if slot.state == "ready":
                # It goes on with the snapshot before.
                slot.answered = self._run.snapshot["number"]
                say(f"{slot} refused snapshot {slot.answered}: {slot.reason}")
                return True
        return False

    def withdraw(self) -> None:
        """Inbound listeners, closed here already, accept no more; exchanges may end, the others go on."""
        self._withdrawing = True
        for slot in self.slots:
            slot.send({"type": "withdraw"}, key="withdraw")

    def withdrawn(self) -> bool:
        """Does none that lives accept on an inbound listener?"""
        return all(slot.withdrawn for slot in self.slots if slot.pid)

    def settled(self) -> bool:
        """Have all that live taken or refused the snapshot in use?"""
        number = self._run.snapshot["number"]
        return all(slot.answered == number for slot in self.slots if slot.pid)

    def died(self, slot: Slot, status: int) -> None:
        """It has been reaped."""
        how = how_it_ended(status)
        if slot.state == "starting" and slot.reason:
            how = f"cannot start: {slot.reason}"
        what = f"{slot} {how}"
        expected = slot.state == "killed" or (slot.state == "draining" and not status)
        slot.gone()
        self._mourn(slot)
        if self._run.phase == "boot":
            raise StartError(EXIT_BOOT, what)
        if not expected:
            say(what)
        if self._run.phase == "run":
            self._restart(slot)
        elif not expected:
            self.clean = False

    def _mourn(self, slot: Slot) -> None:
        """Its siblings hand nothing to it from now on, and what it has not handed to them will not come."""
        self._run.area.forget(slot.number, self._run.listeners.opened)
        for other in self.slots:
            other.send({"type": "settle"}, key="settle")
        if self._run.phase != "run":
            # It has no successor: what is in its inbox would wait for nobody.
            self._inboxes.shut(slot.number)

    def close(self) -> None:
        """All workers have ended."""
        self._inboxes.close()

    def change(self, added: Sequence[Listener]) -> None:
        """Hand out the snapshot in use, and the sockets of the listeners that are new in it."""
        for slot in self.slots:
            if added:
                numbers = {listener.name: listener.number for listener in added}
                fds = [listener.socket_of(slot.number).fileno() for listener in added]
                try:
                    slot.send({"type": "listen", "numbers": numbers}, descriptors=fds)
                except OSError as error:
                    # Connections would wait on a socket that it does not know. Its successor inherits all.
                    say(f"{slot} cannot be given its new sockets: {error.strerror}; replaced")
                    slot.kill()
            slot.send(self._run.frame, key="snapshot")

    def drain(self, deadline_ms: int) -> None:
        """Nothing new; exchanges may end until the deadline. Nobody is replaced any more."""
        for slot in self.slots:
            self._run.timers.cancel(slot.name)
            if slot.pid:
                slot.state = "draining"
                slot.send({"type": "drain", "deadline_ms": deadline_ms})
            else:
                self._inboxes.shut(slot.number)

    def stop(self) -> None:
        """Exchanges are cut, but what can be given back in a moment is."""
        for slot in self.slots:
            slot.send({"type": "stop"})

    def kill(self) -> None:
        """Their time is over."""
        for slot in self.slots:
            if slot.pid:
                say(f"{slot} has not ended in time; killed")
                slot.state = "killed"
                slot.kill()

    def report(self) -> list[dict[str, object]]:
        """What the agent tells the world of them."""
        return [
            {
                "slot": slot.number,
                "pid": slot.pid,
                "state": slot.state,
                "restarts": slot.restarts,
                "refused": slot.reason,
            }
            for slot in self.slots
        ]
