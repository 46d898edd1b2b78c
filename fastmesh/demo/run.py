"""The demo from start to summary. Ends by itself, on Ctrl-C, or when something of it has died."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from array import array
from pathlib import Path

from rich.console import Console

from fastmesh.cli import EXIT_FAILURE, EXIT_OK
from fastmesh.demo.mesh import DemoError, Mesh
from fastmesh.demo.numbers import Count, counts
from fastmesh.demo.show import Display, Moment, introduce, summarise
from fastmesh.demo.traffic import Traffic, intrude

_EVERY_S = 1.0


def run(seconds: float) -> int:
    """Run the demo for `seconds`; the exit code."""
    console = Console()
    try:
        return asyncio.run(_demo(console, seconds))
    except DemoError as error:
        Console(stderr=True).print(f"fastmesh demo: {error}", markup=False, highlight=False, soft_wrap=True)
        return EXIT_FAILURE


async def _demo(console: Console, seconds: float) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="fastmesh-demo-") as directory:
        mesh = Mesh(Path(directory))
        starting = asyncio.create_task(_start(mesh))
        interrupted = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return EXIT_FAILURE
            return await _drive(console, mesh, starting.result(), seconds, stop)
        finally:
            for task in (starting, interrupted):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, DemoError):
                    await task
            for text in await mesh.stop():
                console.print(text, style="red", highlight=False)


async def _start(mesh: Mesh) -> Traffic:
    await mesh.start()
    traffic = Traffic(mesh.front)
    try:
        await traffic.warm_up()
    except (OSError, ValueError, TimeoutError) as error:
        mesh.check()
        raise DemoError(f"the mesh does not answer: {error}") from error
    return traffic


async def _drive(console: Console, mesh: Mesh, traffic: Traffic, seconds: float, stop: asyncio.Event) -> int:
    introduce(console, mesh)
    let_in = 0
    traffic.start()
    with Display(console, mesh) as display:
        before: dict[str, Count] = await counts(mesh.admin)
        seen, failed, then = 0, 0, time.monotonic()
        while (rest := seconds - traffic.seconds) > 0.05 and not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(_EVERY_S, rest))
            let_in += await intrude(mesh.inbound)
            mesh.check()
            now, found = time.monotonic(), await counts(mesh.admin)
            latencies: array[float] = traffic.latencies[seen:]
            moment = Moment(
                at=traffic.seconds,
                seconds=now - then,
                requests=len(latencies),
                failed=traffic.failed - failed,
                latencies=latencies,
                counts=found,
                before=before,
            )
            display.update(moment)
            seen, failed, then, before = seen + len(latencies), traffic.failed, now, found
        await traffic.stop()
    summarise(console, traffic, await counts(mesh.admin), let_in)
    return EXIT_OK if traffic.succeeded and not traffic.failed and not let_in else EXIT_FAILURE
