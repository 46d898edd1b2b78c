"""One health check of one endpoint, from connecting to the verdict; never longer than its timeout."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fastmesh.agent.health.http1 import MOST, ask_http1
from fastmesh.agent.health.words import ERROR, LOCAL, TIMEOUT, AnswerError, Outcome, Peer

if TYPE_CHECKING:
    from fastmesh.agent.health.tls import CheckTls

# How long the rest of an answer may take once the verdict is clear, and a TLS connection to end.
REST_S: Final = 0.25
# What the system says when it is us who lack something.
_OURS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}


async def ask(service: Mapping[str, Any], endpoint: Mapping[str, Any], tls: CheckTls | None) -> Outcome:
    """Ask `endpoint` of `service` (both as the snapshot has them) how it is."""
    if tls is not None and tls.error:
        return Outcome(LOCAL, tls.error)
    timeout_ms = service["health_check"]["timeout_ms"]
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            reader, writer = await _connect(endpoint, tls, service["health_check"].get("mark", 0))
            peer = Peer(reader, writer, _host(service, tls), tls is not None)
            outcome, whole = await _question(service, peer)
        if not whole:
            await _rest(reader)
        return outcome
    except TimeoutError:
        return Outcome(TIMEOUT, f"no answer within {timeout_ms / 1000:g} s")
    except AnswerError as error:
        return Outcome(ERROR, str(error))
    except ssl.SSLCertVerificationError as error:
        return Outcome(ERROR, f"its certificate is not trusted: {error.verify_message}")
    except ssl.SSLError as error:
        return Outcome(ERROR, f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}")
    except OSError as error:
        result = LOCAL if error.errno in _OURS else ERROR
        return Outcome(result, os.strerror(error.errno).lower() if error.errno else str(error))
    finally:
        if writer is not None:
            writer.close()


async def _connect(
    endpoint: Mapping[str, Any], tls: CheckTls | None, mark: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    options: dict[str, Any] = {}
    if tls is not None:
        options = {"ssl": tls.context, "server_hostname": tls.server_name, "ssl_shutdown_timeout": REST_S}
    if endpoint["family"] == "unix":
        path = endpoint["path"]
        path = "\0" + path[1:] if path.startswith("@") else path  # abstract namespace
        reader, writer = await asyncio.open_unix_connection(path, limit=MOST, **options)
    elif mark:
        sock = await _marked(endpoint, mark)
        try:
            reader, writer = await asyncio.open_connection(sock=sock, limit=MOST, **options)
        except BaseException:
            sock.close()
            raise
    else:
        reader, writer = await asyncio.open_connection(
            endpoint["host"], endpoint["port"], limit=MOST, **options
        )
    if tls is not None:
        try:
            tls.judge(writer.get_extra_info("ssl_object"))
        except AnswerError:
            writer.close()
            raise
    return reader, writer


async def _marked(endpoint: Mapping[str, Any], mark: int) -> socket.socket:
    """A connection that is not taken over: it carries our mark, where we may set one."""
    sock = socket.socket(socket.AF_INET6 if endpoint["family"] == "inet6" else socket.AF_INET)
    try:
        sock.setblocking(False)
        with contextlib.suppress(PermissionError):  # then rules tell us by our user
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        await asyncio.get_running_loop().sock_connect(sock, (endpoint["host"], endpoint["port"]))
    except BaseException:
        sock.close()
        raise
    return sock


async def _question(service: Mapping[str, Any], peer: Peer) -> tuple[Outcome, bool]:
    """The verdict, and whether nothing of the answer is left to read."""
    check = service["health_check"]
    if check["grpc"] is None and service["protocol"] != "http2":
        return await ask_http1(peer, check["path"]), False
    # What needs the library `h2` is imported when there is a check that does.
    if check["grpc"] is None:
        from fastmesh.agent.health.http2 import ask_http2

        return await ask_http2(peer, check["path"]), True
    from fastmesh.agent.health.grpc import ask_grpc

    return await ask_grpc(peer, check["grpc"], check["timeout_ms"]), True


def _host(service: Mapping[str, Any], tls: CheckTls | None) -> str:
    name = tls.server_name if tls is not None and tls.server_name else str(service["name"])
    return f"[{name}]" if ":" in name else name


async def _rest(reader: asyncio.StreamReader) -> None:
    """Read what is left of an answer, within bounds: a server takes it for an error if we close before."""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(REST_S):
            left = MOST
            while left > 0 and (data := await reader.read(left)):
                left -= len(data)
