"""A worker process, from fork to exit: what happens around `_core.Worker`, which does the work.

It takes frames from its supervisor (snapshot, listen, settle, withdraw, drain, stop) and answers (ready,
failed, withdrawn, drained). The first snapshot must load, or the worker ends with the reason; a later one
that does not load is refused and the one in use stays. A worker whose supervisor has gone drains and ends:
nobody is left to replace it.
"""

from __future__ import annotations

import os
import select

from fastmesh._core import RUN_DRAINED, Worker
from fastmesh.host.channel import Channel, Frame, snapshot_bytes
from fastmesh.host.exits import EXIT_BALANCE, EXIT_BOOT, EXIT_OK
from fastmesh.host.process import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmesh._core import Area


def run(
    slot: int,
    area: Area,
    channel: Channel,
    sockets: dict[str, tuple[int, int]],
    siblings: tuple[int, list[int]] | None,
) -> int:
    """Serve until drained or told to stop; the exit code.

    `sockets`: by listener, its number and the listening socket. `siblings`: the inbox of this worker, and by
    slot where to send what is for others.
    """
    try:
        worker = Worker(area, slot)
        if siblings:
            worker.siblings(*siblings)
            # It has copies.
            for fd in {siblings[0], *siblings[1]}:
                os.close(fd)
        process = _Process(slot, worker, channel, sockets)
    except (OSError, ValueError, MemoryError) as error:
        channel.send({"type": "failed", "message": _reason(error)})
        return EXIT_BOOT
    code = process.serve()
    balance = {name: count for name, count in process.worker.close().items() if count}
    if balance:
        say(f"worker {slot}: balance: not given back at the end: {balance}")
        return code or EXIT_BALANCE
    return code


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Process:
    def __init__(
        self, slot: int, worker: Worker, channel: Channel, sockets: dict[str, tuple[int, int]]
    ) -> None:
        self.worker = worker
        self._slot = slot
        self._channel = channel
        # Sockets to accept from as soon as a snapshot has their listener.
        self._waiting = sockets
        self._drain_ms: int | None = None
        self._draining = False
        self._orphaned = False
        self._end: int | None = None

    def serve(self) -> int:
        control = self._channel.fileno()
        poll = select.poll()
        poll.register(control, select.POLLIN)
        while self._drain_ms is None and self._end is None:
            poll.poll()
            self._take_frames()
        while self._end is None:
            if self.worker.run(control) == RUN_DRAINED:
                self._channel.send({"type": "drained"})
                return EXIT_OK
            self._take_frames()
            if self._channel.closed and not self._orphaned:
                # At its end a channel stays readable for ever: go on with something that never is.
                self._orphaned = True
                self._channel.close()
                control = os.eventfd(0, os.EFD_CLOEXEC)
        return self._end

    def _take_frames(self) -> None:
        for frame in self._channel.receive():
            if frame.type == "snapshot":
                self._load(frame)
            elif frame.type == "listen":
                numbers = frame.message["numbers"]
                for name, fd in zip(numbers, frame.descriptors, strict=True):
                    self._waiting[name] = (numbers[name], fd)
            elif frame.type == "settle":
                # What is in the inbox is for listeners that come with the first snapshot.
                if self._drain_ms is not None:
                    self.worker.settle()
            elif frame.type == "withdraw":
                if self._drain_ms is not None:
                    self.worker.withdraw()
                self._channel.send({"type": "withdrawn"})
            elif frame.type == "drain":
                self._drain(frame.message["deadline_ms"])
            elif frame.type == "stop":
                self._end = EXIT_OK
        if self._channel.closed:
            if self._drain_ms is None:
                self._end = EXIT_OK
            else:
                self._drain(self._drain_ms)

    def _load(self, frame: Frame) -> None:
        snapshot = frame.message["snapshot"]
        try:
            self.worker.load(snapshot_bytes(frame))
            self._accept({listener["name"] for listener in snapshot["listeners"]})
        except (OSError, ValueError, MemoryError) as error:
            self._channel.send({"type": "failed", "message": _reason(error)})
            if self._drain_ms is None:
                self._end = EXIT_BOOT
            return
        self._drain_ms = snapshot["drain_ms"]
        self._channel.send({"type": "ready", "number": snapshot["number"]})

    def _accept(self, listeners: set[str]) -> None:
        """Accept for those listeners of the snapshot just loaded that have a new socket."""
        for name in listeners & self._waiting.keys():
            number, fd = self._waiting.pop(name)
            self.worker.listen(name, fd, number)
            # It has a copy, and closes that when it drains.
            os.close(fd)

    def _drain(self, deadline_ms: int) -> None:
        if not self._draining:
            self._draining = True
            self.worker.drain(deadline_ms)
