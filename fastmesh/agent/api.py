"""The admin API as the agent holds it: its sockets from the start, what serves them from the first client on.

uvicorn, Starlette and prometheus_client are more than half of what an agent would import: most of the time
that a start takes, and a third of its memory. So they wait until somebody asks. The first client waits with
them, for about a tenth of a second, in the backlog of the sockets; the agent's other tasks do not.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from fastmesh.agent.server import AdminServer

# In this order, each a step after which others have their turn. What they need comes with them.
STEPS: Final = (
    "http.client",
    "uvicorn",
    "uvicorn.protocols.http.httptools_impl",
    "starlette.requests",
    "starlette.applications",
    "prometheus_client",
    "fastmesh.agent.admin",
    "fastmesh.agent.server",
)


# Before it is tried again what could not be done.
RETRY_S: Final = 10.0


class Api:
    """`make` is called once all of `STEPS` are there; the server that it makes owns the sockets."""

    def __init__(
        self, make: Callable[[Sequence[socket.socket]], AdminServer], say: Callable[[str], None]
    ) -> None:
        self._make = make
        self._say = say
        self._sockets: list[socket.socket] = []
        self._serving: asyncio.Task[AdminServer | None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    async def open(self, sockets: list[socket.socket]) -> None:
        """Answer those who come to these sockets, and no more those who come to the ones before."""
        await self.close()
        self._sockets = sockets
        for one in sockets:
            one.setblocking(False)
        self._watch()

    def _watch(self) -> None:
        for one in self._sockets:
            asyncio.get_running_loop().add_reader(one, self._wake)

    def _wake(self) -> None:
        """Somebody has come."""
        self._let_go()
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> AdminServer | None:
        try:
            for module in STEPS:
                importlib.import_module(module)
                await asyncio.sleep(0)
            server = self._make(self._sockets)
            await server.start()
        except Exception as error:
            self._say(f"agent: the admin API cannot be served: {error!r}")
            self._turn_away()
            return None
        return server

    def _turn_away(self) -> None:
        """Who waits is refused, and who comes; later it is tried again. To close the sockets would have all
        of them wait: the supervisor has these open, too."""
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            loop.add_reader(one, self._refuse, one)
        self._retry = loop.call_later(RETRY_S, self._watch)

    def _refuse(self, one: socket.socket) -> None:
        try:
            one.accept()[0].close()
        except BlockingIOError:
            pass
        except OSError:
            # No descriptor is left, as it may be.
            asyncio.get_running_loop().remove_reader(one)

    def _let_go(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for one in self._sockets:
            asyncio.get_running_loop().remove_reader(one)

    async def close(self) -> None:
        """Finish what is being answered, for at most a second."""
        server = None if self._serving is None else await self._serving
        if server is not None:
            await server.stop()
        else:
            self._let_go()
            for one in self._sockets:
                one.close()
        self._serving = None
        self._sockets = []
