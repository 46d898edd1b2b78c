"""The admission webhook: HTTP around `review`. POST /inject, GET /healthz, nothing else.

No state, no side effects, no cluster: a dry run is as good as a real one, and any number of them may run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastmesh.kubernetes.review import NoReview, answer
from fastmesh.kubernetes.settings import Settings

# The API server takes objects of 3 MiB; a review may hold two of them.
MAX_BODY: Final = 8 << 20
# A review is some KiB. Up to this, as many as there are connections may be in memory ...
SMALL: Final = 128 << 10
# ... and of larger ones so many, whatever their size.
MAX_LARGE: Final = 4
# Those that are made an answer of, at a time. A body becomes almost a hundred times its size then, in the
# worst case: small ones do not wait for a large one, and of those there is never more than one.
PARSED_SMALL: Final = 8
PARSED_LARGE: Final = 1
# What a body may take to arrive: the API server waits 10 s in all.
BODY_S: Final = 5.0


def webhook_app(settings: Settings, say: Callable[[str], None]) -> Starlette:
    """The application; `say` gets a line for each pod."""

    large = asyncio.Semaphore(MAX_LARGE)
    parsed_small, parsed_large = asyncio.Semaphore(PARSED_SMALL), asyncio.Semaphore(PARSED_LARGE)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def post(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, f"content-type {kind or 'is missing'}, expected application/json")
        async with contextlib.AsyncExitStack() as held:
            body = await _body(request, large, held)
            await held.enter_async_context(parsed_small if len(body) <= SMALL else parsed_large)
            try:
                review, line = await run_in_threadpool(answer, body, settings)
            except NoReview as error:
                say(f"warning: a request that is no review: {error}")
                raise HTTPException(400, str(error)) from None
        if line:
            say(line)
        return JSONResponse(review)

    async def http_error(request: Request, exception: Exception) -> Response:
        assert isinstance(exception, HTTPException)
        text = {404: "no such endpoint, expected /inject or /healthz", 405: "expected POST /inject"}
        detail = text.get(exception.status_code, exception.detail)
        # What is left of a body that nobody reads must not be taken for a request.
        headers = {**(exception.headers or {}), "connection": "close"}
        return JSONResponse({"error": detail}, exception.status_code, headers)

    async def internal_error(request: Request, exception: Exception) -> Response:
        # Starlette raises it again afterwards, and uvicorn logs it. The cluster's failurePolicy decides.
        return JSONResponse({"error": "an error inside fastmesh, see its log"}, 500)

    app = Starlette(
        routes=[Route("/healthz", healthz), Route("/inject", post, methods=["POST"])],
        exception_handlers={HTTPException: http_error, Exception: internal_error},
    )
    app.router.redirect_slashes = False
    return app


async def _body(request: Request, large: asyncio.Semaphore, held: contextlib.AsyncExitStack) -> bytearray:
    """The body, of which no more is kept than may be. One that is large holds a place from then on."""
    too_large = HTTPException(413, f"the body is larger than {MAX_BODY >> 20} MiB")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY:
        raise too_large
    body, placed, waiting = bytearray(), False, False
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                if len(body) + len(chunk) > MAX_BODY:
                    raise too_large
                if not placed and len(body) + len(chunk) > SMALL:
                    waiting = True
                    await held.enter_async_context(large)
                    placed, waiting = True, False
                body += chunk
    except TimeoutError:
        if waiting:
            raise HTTPException(503, "too many large bodies at a time; ask again") from None
        raise HTTPException(408, f"the body was not there within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ended before its time") from None
    return body
