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


class Api:
    """`make` is called once all of `STEPS` are there; the server that it makes owns the sockets."""

    def __init__(
        self, make: Callable[[Sequence[socket.socket]], AdminServer], say: Callable[[str], None]
    ) -> None:
        self._make = make
        self._say = say
        self._sockets: list[socket.socket] = []
        self._serving: asyncio.Task[AdminServer | None] | None = None

    async def open(self, sockets: list[socket.socket]) -> None:
        """Answer those who come to these sockets, and no more those who come to the ones before."""
        await self.close()
        self._sockets = sockets
        for one in sockets:
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
            self._end()
            return None
        return server

    def _let_go(self) -> None:
        for one in self._sockets:
            asyncio.get_running_loop().remove_reader(one)

    def _end(self) -> None:
        """Who waits is refused."""
        for one in self._sockets:
            one.close()

    async def close(self) -> None:
        """Finish what is being answered, for at most a second."""
        if self._serving is None:
            self._let_go()
            self._end()
        elif server := await self._serving:
            await server.stop()
        self._serving = None
        self._sockets = []
