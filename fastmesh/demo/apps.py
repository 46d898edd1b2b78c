"""The demo's two applications: `python -m fastmesh.demo.apps svc-a|svc-b FD [OUTBOUND]`.

FD is a listening socket to serve on, OUTBOUND the port of svc-a's sidecar. Neither application knows that
there is TLS, an identity or a policy: that is the point of a mesh.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastmesh.demo.client import Client


def service_b() -> Starlette:
    """Answers with a greeting, and with what its sidecar told it about the caller."""
    count = 0

    async def hello(request: Request) -> Response:
        nonlocal count
        count += 1
        return JSONResponse(
            {
                "service": "svc-b",
                "message": "hello from behind two sidecars",
                "request": count,
                "via": request.headers.get("via"),
            }
        )

    return Starlette(routes=[Route("/{path:path}", hello)])


def service_a(outbound: int) -> Starlette:
    """Calls svc-b for every request, through the sidecar's outbound port, in plain HTTP."""
    idle: list[Client] = []

    async def front(request: Request) -> Response:
        client = idle.pop() if idle else Client(outbound, "svc-b")
        try:
            status, body = await client.get("/hello")
        except (OSError, ValueError, TimeoutError) as error:
            return Response(f"svc-b cannot be reached: {error}\n", 502, media_type="text/plain")
        idle.append(client)
        return Response(body, status, media_type="application/json")

    return Starlette(routes=[Route("/{path:path}", front)])


def main(name: str, fd: int, outbound: int) -> None:
    app = service_b() if name == "svc-b" else service_a(outbound)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    listening = socket.socket(fileno=fd)
    # uvicorn raises the signal again when it has stopped: let the default action be a quiet end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(server.serve(sockets=[listening]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
