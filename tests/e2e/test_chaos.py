"""Everything at once: peers of every bad habit, reloads, tunnels and a mesh hop, beside clients that behave.

What is asserted is what must hold whatever happens: those that behave get their exact bytes, no worker dies,
and at the end every connection, buffer and timer has been given back. The seed is printed with a failure and
can be set (FASTMESH_CHAOS_SEED); the interleaving is the machine's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from kit.fixtures import Serve, Serving
from kit.limits import SANITIZED, scaled
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.upstream import Script, ServerConn
from kit.wire import Address, chunked, connect, request, response

SEED = int(os.environ.get("FASTMESH_CHAOS_SEED", "20240229"))
SECONDS = 12.0 if SANITIZED else 6.0
NOISE = hashlib.shake_256(b"chaos").digest(1 << 20)
LARGEST = scaled(1 << 20, 1 << 18)


def noise(rng: random.Random, most: int) -> bytes:
    size = rng.choice((0, 1, 100, 5_000, 70_000, 150_000, most))
    size = min(size, most)
    start = rng.randrange(len(NOISE) - size + 1)
    return NOISE[start : start + size]


# endpoints


def forgiving(script: Script) -> Script:
    """What clients that go away in the middle do to a script is no failure; a ValueError would be one."""

    def run(conn: ServerConn) -> None:
        with contextlib.suppress(OSError, AssertionError):
            script(conn)

    return run


def echo_http(conn: ServerConn) -> None:
    """Answers with the request's body, chunked when asked for it."""
    for seen in conn:
        if seen.get("x-chunked"):
            half = len(seen.body) // 2
            body = chunked(*(part for part in (seen.body[:half], seen.body[half:]) if part))
            conn.send(response(None, headers=[("Transfer-Encoding", "chunked")]), body)
        else:
            conn.send(response(seen.body))


def echo_bytes(conn: ServerConn) -> None:
    while conn.fill():
        conn.send(conn.take(len(conn.buffer)))
    conn.shutdown()


def misbehave(conn: ServerConn) -> None:
    """One of many ways to fail a request; which one follows from the connection's number."""
    rng = random.Random(SEED * 31 + conn.index)
    way = rng.randrange(14)
    if way == 0:
        return
    if way == 1:
        conn.reset()
        return
    if way == 2:
        conn.send(response(b"before it is asked"))
    conn.read_request_head()
    if way == 3:
        conn.send(rng.randbytes(300))
    elif way == 4:
        conn.send(response(b"early", "413 Content Too Large"))
        conn.read_until(b"never")
    elif way == 5:
        conn.send(response(b"early", "413 Content Too Large", [("Connection", "close")]))
    elif way == 6:
        for _ in range(rng.randrange(400)):
            conn.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        conn.send(response(b"after hints"))
    elif way == 7:
        for byte in response(b"slowly", headers=[("Connection", "close")]):
            conn.send(bytes([byte]))
            time.sleep(0.002)
    elif way == 8:
        conn.send(response(None, headers=[("Content-Length", "900000")]), NOISE[: rng.randrange(800_000)])
        if rng.random() < 0.5:
            conn.reset()
    elif way == 9:
        conn.send(response(None, headers=[("Transfer-Encoding", "chunked")]), b"5\r\nhello\r\n", b"zz\r\n")
    elif way == 10:
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        echo_bytes(conn)
    elif way == 11:
        conn.send(response(NOISE, headers=[("Connection", "close")]))
    elif way == 12:
        conn.send(response(b"one"), response(b"two, which nobody wanted"))
    else:
        conn.send(response(None, headers=[("Connection", "close")]), NOISE[: rng.randrange(300_000)])


# clients that behave


def ask_and_check(rng: random.Random, address: Address, host: str) -> None:
    """A keep-alive connection, some requests at once, exact bodies; sometimes ended by a half-close."""
    with connect(address) as client:
        for _ in range(rng.randrange(1, 6)):
            bodies = [noise(rng, LARGEST) for _ in range(rng.choice((1, 1, 1, 3)))]
            data = bytearray()
            for body in bodies:
                fields = [("X-Chunked", "yes")] if rng.random() < 0.3 else []
                if rng.random() < 0.3:
                    head = request("POST", headers=[*fields, ("Transfer-Encoding", "chunked")], host=host)
                    data += head + chunked(*(body[i : i + 40_000] for i in range(0, len(body), 40_000)))
                else:
                    data += request("POST", headers=fields, host=host, body=body)
            with client.sending(bytes(data)):
                for body in bodies:
                    answer = client.read_response()
                    assert answer.status == 200, (answer.status, answer.reason)
                    assert answer.body == body
        if rng.random() < 0.3:
            client.send(request("POST", body=b"last", host=host))
            client.shutdown()
            assert client.read_response().body == b"last"
            client.expect_close(reset_ok=False)


def tunnel_and_check(rng: random.Random, address: Address) -> None:
    """Opaque bytes there and back, then a half-close."""
    data = noise(rng, LARGEST)
    with connect(address) as client, client.sending(data, end=True):
        assert client.read_to_end() == data


# clients that do not


def trouble(rng: random.Random, addresses: list[Address]) -> None:
    with connect(rng.choice(addresses), timeout=3) as client:
        client.sock.settimeout(0.3)
        way = rng.randrange(11)
        if way == 0:
            return
        if way == 1:
            client.reset()
            return
        if way == 2:
            client.send(
                request("POST", headers=[("Content-Length", "500000")]), NOISE[: rng.randrange(400_000)]
            )
        elif way == 3:
            client.send(request("POST", headers=[("Content-Length", "500000")]), NOISE[:1000])
            client.shutdown()
        elif way == 4:
            client.send(request("POST", body=NOISE[:20_000]) * 20)
        elif way == 5:
            client.send(request("POST", headers=[("Transfer-Encoding", "chunked")]), b"5\r\nhello\r\nqq\r\n")
        elif way == 6:
            for byte in request()[: rng.randrange(20)]:
                client.send(bytes([byte]))
                time.sleep(0.003)
        elif way == 7:
            client.send(b"\x16\x03\x01" + rng.randbytes(200))
        elif way == 8:
            fields = [("Connection", "upgrade"), ("Upgrade", "echo")]
            client.send(request(headers=fields), NOISE[: rng.randrange(2000)])
        elif way == 9:
            client.send(request(), request("DELETE"), b"GET / HT")
            client.shutdown()
        else:
            client.send(request("POST", body=NOISE[:300_000]))
        for _ in range(rng.randrange(4)):
            if not client.fill(1 << rng.randrange(18)):
                break
        if rng.random() < 0.4:
            client.reset()


class Crew:
    """Threads that repeat something until the time is up, or one of them fails."""

    def __init__(self) -> None:
        self.end = time.monotonic() + SECONDS
        self.failures: list[BaseException] = []
        self.rounds = 0
        self._threads: list[threading.Thread] = []

    def running(self) -> bool:
        return time.monotonic() < self.end and not self.failures

    def add(self, work: Callable[..., None], *args: Any, quiet: bool = False, pause: float = 0) -> None:
        rng = random.Random(SEED + len(self._threads))

        def run() -> None:
            while self.running():
                try:
                    work(rng, *args)
                    self.rounds += not quiet
                except BaseException as error:
                    if not quiet or not isinstance(error, (OSError, AssertionError, ValueError)):
                        self.failures.append(error)
                time.sleep(pause)

        self._threads.append(threading.Thread(target=run, daemon=True))

    def work(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        for failure in self.failures:
            raise AssertionError(f"seed {SEED}: {failure!r}") from failure


def reload(rng: random.Random, proxy: Fastmesh) -> None:
    """The same listeners with other settings and one more service; the file is replaced whole."""
    config = yaml.safe_load(proxy.path.read_text())
    config["drain"] = f"{rng.randrange(5, 20)}s"
    config["services"].pop("extra", None)
    if rng.random() < 0.5:
        config["services"]["extra"] = {"endpoints": [f"127.0.0.1:{rng.randrange(1, 9)}"]}
    for listener in config["listeners"]:
        listener["idle_timeout"] = f"{rng.randrange(20, 60)}s"
    fresh = proxy.path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(config, sort_keys=False))
    fresh.replace(proxy.path)
    os.kill(proxy.pid, signal.SIGHUP)


@dataclass
class Scene:
    """A mesh of two sidecars, each also with listeners of other kinds, before endpoints good and bad."""

    proxy: Fastmesh
    inbound: Fastmesh
    at: dict[str, Address]
    workers: list[int]

    def crew(self, *, quiet: bool) -> Crew:
        """Those that behave (`quiet`: and may fail), those that do not, and reloads."""
        crew, at = Crew(), self.at
        for _ in range(2):
            crew.add(ask_and_check, at["good"], "good", quiet=quiet)
            crew.add(ask_and_check, at["outbound"], "svc-b", quiet=quiet)
        crew.add(tunnel_and_check, at["tcp"], quiet=quiet)
        for _ in range(4):
            crew.add(
                trouble,
                [at["bad"], at["bad"], at["good"], at["badtcp"], at["tcp"], at["inbound"]],
                quiet=True,
            )
        for sidecar in (self.proxy, self.inbound):
            crew.add(reload, sidecar, quiet=True, pause=SECONDS / 12)
        return crew

    def check(self) -> None:
        """No worker has died, and at the end nothing is left."""
        running = [*self.proxy.worker_pids(), *self.inbound.worker_pids()]
        assert sorted(running) == sorted(self.workers), "a worker has died"
        for sidecar in (self.proxy, self.inbound):
            assert sidecar.metrics().sum("impossible_total") == 0
            sidecar.wait_metric(
                "no request is left", lambda m: m.sum("exchanges") == 0 and m.sum("tunnels") == 0
            )
        # The other's clients are this one's pooled connections, which stay.
        self.proxy.wait_metric("all clients have gone", lambda m: m.sum("downstream_connections_open") == 0)


def scene(serve: Serve, upstream: Serving, pki: Pki, **options: Any) -> Scene:
    good, tcp, bad = (upstream(forgiving(script)) for script in (echo_http, echo_bytes, misbehave))
    ports = {name: free_port() for name in ("good", "bad", "tcp", "badtcp", "outbound", "inbound")}
    at: dict[str, Address] = {name: ("127.0.0.1", port) for name, port in ports.items()}
    endpoints = {
        name: [f"127.0.0.1:{server.address[1]}"]
        for name, server in (("good", good), ("bad", bad), ("tcp", tcp), ("badtcp", bad))
    }

    def listener(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "bind": f"127.0.0.1:{ports[name]}", **more}

    mesh = {"trust_domain": "mesh.local", "pki": str(pki.path)}
    inbound = serve(
        {
            "workload": "svc-b",
            **mesh,
            "listeners": [listener("inbound", role="inbound", tls="mesh", to="good")],
            "services": {"good": {"endpoints": endpoints["good"]}},
        },
        **options,
    )
    proxy = serve(
        {
            "workload": "svc-a",
            **mesh,
            "listeners": [
                listener("good", protocol="http", to="good"),
                listener("bad", protocol="http", to="bad", header_timeout="1s", stream_idle_timeout="2s"),
                listener("tcp", protocol="tcp", to="tcp"),
                listener("badtcp", to="badtcp", tcp_idle_timeout="2s"),
                listener("outbound", role="outbound"),
            ],
            "services": {
                **{name: {"endpoints": endpoints[name]} for name in ("good", "tcp")},
                **{
                    name: {"endpoints": endpoints[name], "response_timeout": "2s"}
                    for name in ("bad", "badtcp")
                },
                "svc-b": {"endpoints": [f"127.0.0.1:{ports['inbound']}"], "tls": "mesh"},
            },
        },
        **options,
    )
    return Scene(proxy, inbound, at, [*proxy.wait_workers(), *inbound.wait_workers()])


@pytest.mark.heavy
def test_those_that_behave_are_served_beside_those_that_do_not(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    mesh = scene(serve, upstream, pki)
    crew = mesh.crew(quiet=False)
    crew.work()
    assert crew.rounds > 5, "hardly anything was done"
    mesh.check()
    assert mesh.proxy.metrics().sum("config_reloads_total", result="accepted") > 0


@pytest.mark.heavy
@pytest.mark.skipif(
    os.environ.get("FASTMESH_BUILD") not in ("debug", "asan"),
    reason="needs a build that can be short of memory",
)
@pytest.mark.parametrize("one_in", [7, 60, 500])
def test_worker_that_is_short_of_memory_gives_everything_back(
    serve: Serve, upstream: Serving, pki: Pki, one_in: int
) -> None:
    """One in so many blocks of memory is not there: requests fail, and nothing else happens."""
    mesh = scene(serve, upstream, pki, env={"FASTMESH_FAULT": str(one_in)})
    mesh.crew(quiet=True).work()
    mesh.check()
