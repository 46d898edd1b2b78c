"""The admin API: what an operator, a health check or Prometheus may ask. GET and HEAD only; nothing changes.

There is no authentication: the API is for loopback, and says nothing secret. Against web pages that make a
browser ask (DNS rebinding) the Host field is checked, see `HostGuard`.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fastmesh.agent.services import services
from fastmesh.observe.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from fastmesh._core import Area
    from fastmesh.agent.state import State
    from fastmesh.observe.metrics import Metrics

ENDPOINTS: Final = {
    "/healthz": "200 while the agent is alive",
    "/readyz": "200 when every worker is ready, else 503 with the reasons; warns before a certificate ends",
    "/metrics": "metrics, in Prometheus' text format",
    "/services": "services: addresses, endpoints and their health, where servers speak first",
    "/config": "the configuration in use, without its private key",
}
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class JSON(Response):
    """JSON for people, too: indented, with a newline at its end."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def admin_app(state: State, metrics: Metrics, area: Area, sockets: Iterable[socket.socket]) -> ASGIApp:
    """The application, for an API that listens on these sockets."""

    async def index(request: Request) -> Response:
        lines = ["fastmesh admin API", "", *(f"{path:<10} {text}" for path, text in ENDPOINTS.items()), ""]
        return PlainTextResponse("\n".join(lines))

    async def healthz(request: Request) -> Response:
        return JSON({"status": "alive"})

    async def readyz(request: Request) -> Response:
        reasons = state.not_ready()
        warnings = state.warnings()
        more = {"warnings": warnings} if warnings else {}
        if reasons:
            return JSON({"status": "not ready", "reasons": reasons, **more}, 503)
        return JSON({"status": "ready", **more})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def show_services(request: Request) -> Response:
        if state.snapshot is None:
            return error(503, "no configuration is in use yet")
        return JSON({"services": services(area, state)})

    async def config(request: Request) -> Response:
        if state.snapshot is None:
            return error(503, "no configuration is in use yet")
        return JSON({"file": state.config or None, "errors": state.errors, "snapshot": state.snapshot})

    async def http_error(request: Request, exception: Exception) -> Response:
        assert isinstance(exception, HTTPException)
        text = {404: "no such endpoint, / lists them", 405: "only GET and HEAD are answered here"}
        return error(
            exception.status_code, text.get(exception.status_code, exception.detail), exception.headers
        )

    async def internal_error(request: Request, exception: Exception) -> Response:
        # Starlette raises it again afterwards, and uvicorn logs it.
        return error(500, "an error inside fastmesh, see its log")

    endpoints = (index, healthz, readyz, show_metrics, show_services, config)
    app = Starlette(
        routes=[Route(path, endpoint) for path, endpoint in zip(("/", *ENDPOINTS), endpoints, strict=True)],
        exception_handlers={HTTPException: http_error, Exception: internal_error},
    )
    app.router.redirect_slashes = False
    return HostGuard(app, loopback=all(map(is_loopback, sockets)))


def error(status: int, message: str, headers: Any = None) -> Response:
    return JSON({"error": message}, status, headers)


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this host can connect to a listening socket."""
    if sock.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


class HostGuard:
    """Answers only those who address this API by an address or a name that is its own.

    A web page can make a browser send requests here under the page's own host name, once its name server
    says that the name is 127.0.0.1, and then read the answers. So Host must be `localhost` or a loopback
    address; where the API listens on others too, any IP address and this host's name are fine as well. A
    request without Host is let through: browsers always send it. Requests with a body are refused, because
    nothing here reads it.
    """

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self._app = app
        self._loopback = loopback
        self._names = {"localhost"}
        if not loopback:
            name = socket.gethostname().lower()
            self._names |= {name, name.partition(".")[0]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) > 1 or not all(map(self._own, hosts)):
            answer = error(421, "the Host field names another host: use the API's address, or localhost")
        elif "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            answer = error(413, "no body is expected here", {"connection": "close"})
        else:
            await self._app(scope, receive, _with_headers(send))
            return
        await answer(scope, receive, _with_headers(send))

    def _own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        name = name.lower().removesuffix(".")
        if name in self._names:
            return True
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._loopback


def _with_headers(send: Send) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            fields = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message["headers"] = [*message["headers"], *fields]
        await send(message)

    return sending
