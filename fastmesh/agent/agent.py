"""The agent's loop: what the supervisor says, what the loader brings, and the admin API beside them.

One thread, plus the access log's own. Every callback of the loop is short; what may block is done elsewhere
(loading a configuration, writing to a file); health checks and DNS wait for others in tasks of their own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from typing import TYPE_CHECKING, Final

from fastmesh.agent.api import Api
from fastmesh.agent.detection import DetectionWarnings
from fastmesh.agent.dns.resolver import Resolver
from fastmesh.agent.health.checks import HealthChecks
from fastmesh.agent.rotation import POLL_S, Rotation
from fastmesh.host.channel import ChannelError
from fastmesh.host.process import say
from fastmesh.observe.access_log import AccessLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastmesh._core import Area
    from fastmesh.agent.configuration import Configuration
    from fastmesh.agent.server import AdminServer
    from fastmesh.agent.state import State
    from fastmesh.host.channel import Channel, Frame

# How long the last access log lines may take to reach the disk when the agent is told to stop.
FLUSH_S: Final = 2.0


class Agent:
    """`sockets` are the admin API's listening sockets, if the supervisor has opened them already, and `dns`
    the resolver's, if they were passed to it."""

    def __init__(
        self,
        area: Area,
        channel: Channel,
        state: State,
        configuration: Configuration,
        sockets: list[socket.socket],
        *,
        dns: Sequence[socket.socket] = (),
    ) -> None:
        self._area = area
        self._channel = channel
        self._state = state
        self._configuration = configuration
        self._rotation = Rotation(state, configuration, say)
        self._sockets = sockets
        self._access_log = AccessLog(area, say)
        self._health = HealthChecks(area, state, say)
        self._detection = DetectionWarnings(area, state, say)
        self._resolver = Resolver(state, say, dns)
        self._api = Api(self._admin_server, say)
        self._opening: asyncio.Task[None] | None = None
        self._ready = False
        self._loader_fd = -1
        self._loader_expiry: asyncio.TimerHandle | None = None

    def run(self, frames: list[Frame]) -> None:
        """Run until the supervisor says "stop" or has gone. `frames` are those that have come already."""
        # What has been imported stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.enable()
        asyncio.run(self._main(frames))

    async def _main(self, frames: list[Frame]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGUSR1, self._access_log.reopen)
        self._loop.add_reader(self._channel.fileno(), self._hear)
        if self._sockets:
            self._serve(self._sockets)
        for frame in frames:
            self._on_frame(frame)
        self._settle()
        self._rotate()
        await self._stopped.wait()
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._forget_loader()
        self._rotation.close()
        self._configuration.close()
        await self._health.stop()
        await self._resolver.stop()
        if self._opening is not None:
            await self._opening
        await self._api.close()
        self._access_log.stop(FLUSH_S)

    def _settle(self) -> None:
        """After every event: what follows from what the agent knows now."""
        snapshot = self._state.snapshot
        self._health.follow()
        self._resolver.follow()
        log = snapshot["access_log"] if snapshot is not None else None
        self._access_log.configure(log["path"] if log is not None else None, self._state.slots)
        loading = self._configuration.loading
        if loading is not None and self._loader_fd < 0:
            self._loader_fd = loading.fileno()
            self._loop.add_reader(self._loader_fd, self._advance)
            self._loader_expiry = self._loop.call_at(loading.deadline, self._advance)
        if snapshot is not None and snapshot["admin"] is None and not self._ready:
            self._tell_ready()
        self._flush()

    def _tell_ready(self) -> None:
        """There is nothing more to wait for: the admin API is served, or not wanted."""
        self._ready = True
        self._channel.send({"type": "ready"})
        self._flush()

    def _flush(self) -> None:
        """Send what waits, and come back when the supervisor has read if that is not all."""
        self._channel.flush()
        if self._channel.waiting:
            self._loop.add_writer(self._channel.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._channel.fileno())

    # the supervisor

    def _hear(self) -> None:
        try:
            frames = self._channel.receive()
        except ChannelError as error:
            say(f"agent: the supervisor sent {error}")
            frames = []
            self._stopped.set()
        for frame in frames:
            self._on_frame(frame)
        if self._channel.closed:
            self._stopped.set()
        self._settle()

    def _on_frame(self, frame: Frame) -> None:
        message = frame.message
        self._configuration.adopt(message)
        if frame.type == "status":
            self._state.take_status(message)
        elif frame.type == "reload":
            self._configuration.load()
        elif frame.type == "resume":
            # To an agent that runs: the snapshot it sent could not be put to use.
            self._state.take_snapshot(message["snapshot"])
            self._rotation.look_again()
            self._state.reloads["refused"] += 1
            self._state.errors = ["a listener of the new configuration could not be opened"]
        elif frame.type == "admin":
            self._serve([socket.socket(fileno=fd) for fd in frame.descriptors])
            return
        elif frame.type == "stop":
            self._stopped.set()
        for fd in frame.descriptors:
            os.close(fd)

    # the identity

    def _rotate(self) -> None:
        if self._stopped.is_set():
            return
        # First: a defect in what follows is reported, and must not be the last that is heard of renewals.
        self._loop.call_later(POLL_S, self._rotate)
        self._detection.tick()
        self._rotation.tick()
        self._settle()

    # the loader

    def _advance(self) -> None:
        # Its descriptor is closed inside `advance`, and a second load may get the same number.
        self._forget_loader()
        self._configuration.advance()
        self._settle()

    def _forget_loader(self) -> None:
        if self._loader_fd >= 0:
            self._loop.remove_reader(self._loader_fd)
            self._loader_fd = -1
        if self._loader_expiry is not None:
            self._loader_expiry.cancel()
            self._loader_expiry = None

    # the admin API

    def _serve(self, sockets: list[socket.socket]) -> None:
        """Serve on these sockets instead of those before."""
        before = self._opening

        async def replace() -> None:
            if before is not None:
                await before
            await self._api.open(sockets)
            self._tell_ready()

        self._opening = self._loop.create_task(replace())

    def _admin_server(self, sockets: Sequence[socket.socket]) -> AdminServer:
        from fastmesh.agent.admin import admin_app
        from fastmesh.agent.server import AdminServer
        from fastmesh.observe.metrics import Metrics

        metrics = Metrics(self._area, self._state, self._access_log)
        return AdminServer(admin_app(self._state, metrics, self._area, sockets), [*sockets])
