"""When the resolver is at work: as the snapshot in use says.

A reload replaces what it knows and whom it asks without a query being lost. Another address is bound before
the one before is given up. An address that cannot be had is told once, shown by `/readyz` as a warning, and
tried again every `RETRY_S`; requests go on as ever, and so does what was served before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fastmesh.agent.dns.words import Counts

if TYPE_CHECKING:
    import socket

    from fastmesh.agent.dns.server import DnsServer
    from fastmesh.agent.state import State

RETRY_S: Final = 2.0


class Resolver:
    """Serves the `dns` of the snapshot in `state`. `say` takes lines for the operator; `passed` are sockets
    to serve on instead of those that `dns.listen` names."""

    def __init__(
        self, state: State, say: Callable[[str], None], passed: Sequence[socket.socket] = ()
    ) -> None:
        self._state = state
        self._say = say
        self._passed = passed
        self._followed: Mapping[str, Any] | None = None
        self._server: DnsServer | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None

    def follow(self) -> None:
        """Serve what the snapshot in use says; nothing happens as long as that is the same."""
        snapshot = self._state.snapshot
        if snapshot is not None and snapshot is not self._followed:
            self._followed = snapshot
            self._serve(snapshot)

    async def stop(self) -> None:
        """Answer no more."""
        if self._retry is not None:
            self._retry.cancel()
        self._give_up()
        await asyncio.gather(*self._stopping)

    def _serve(self, snapshot: Mapping[str, Any]) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        dns = snapshot.get("dns")
        if dns is None:
            self._state.dns_error = ""
            self._give_up()
            return
        if self._state.dns is None:
            self._state.dns = Counts()
        try:
            self._begin(dns, snapshot["services"], self._state.dns)
        except ImportError as error:
            self._failed(
                snapshot, f"the package dnspython cannot be imported ({error}): pip install dnspython"
            )
        except OSError as error:
            self._failed(snapshot, str(error))
        else:
            self._state.dns_error = ""

    def _begin(self, dns: Mapping[str, Any], services: list[Mapping[str, Any]], counts: Counts) -> None:
        """Raises OSError when the address cannot be had, ImportError without dnspython."""
        # Brings in dnspython: only those who need it pay.
        from fastmesh.agent.dns.forward import Forwarder, Server, SystemServers
        from fastmesh.agent.dns.names import Names
        from fastmesh.agent.dns.server import DnsServer

        listen = Server(**dns["listen"])
        upstream = dns["upstream"] and Server(**dns["upstream"])
        # Sockets that were passed may be in another network, where the address is another's.
        own = None if self._passed else listen
        servers = (lambda: [upstream]) if upstream else SystemServers(own)
        names, forwarder = Names(dns, services), Forwarder(servers, counts, dns["mark"])
        if self._server is not None:
            # Also where it is about to be replaced: the names are right whatever the address.
            self._server.names, self._server.forwarder = names, forwarder
        if self._server is None or self._server.listen != listen:
            server = DnsServer(listen, names, forwarder, counts, self._say, passed=self._passed)
            server.start()
            self._give_up()
            self._server = server
            counts.listening = True
            many = "1 service" if names.services == 1 else f"{names.services} services"
            self._say(f"DNS for {many} is answered on {_text(listen)}")

    def _failed(self, snapshot: Mapping[str, Any], why: str) -> None:
        before = self._server and f"; it goes on at {_text(self._server.listen)}"
        error = f"no DNS: {why}{before or ''}"
        if error != self._state.dns_error:
            self._say(f"warning: {error}")
        self._state.dns_error = error
        self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._serve, snapshot)

    def _give_up(self) -> None:
        if self._server is None:
            return
        task = asyncio.get_running_loop().create_task(self._server.stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        self._server = None
        if self._state.dns is not None:
            self._state.dns.listening = False


def _text(listen: Any) -> str:
    return f"[{listen.host}]:{listen.port}" if ":" in listen.host else f"{listen.host}:{listen.port}"
