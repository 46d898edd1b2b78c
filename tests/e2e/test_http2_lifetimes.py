"""HTTP/2 and what ends: drains, reloads, killed processes, connections of an age, endpoints that restart.

An exchange that has begun ends well unless its own worker is killed; a request that nobody has looked at is
told so (RFC 9113 sections 6.8 and 8.7) and asked elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from kit import procfs
from kit.fixtures import Serve, Serving
from kit.grpc_peers import Peers
from kit.grpc_scenarios import SCENARIOS
from kit.http2 import Code, Fields, data, headers, request
from kit.http2_chat import GRPC, Chat, chat
from kit.http2_client import dial
from kit.http2_load import H2Load
from kit.http2_server import H2Conn, h2
from kit.limits import DEADLINE, scaled, wait_until
from kit.load import Load
from kit.nginx import Nginx
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.sidecars import address_of, inbound, outbound
from kit.upstream import ServerConn
from kit.wire import Closed, connect, response
from kit.wire import request as request1

WARNING = (
    2**31 - 1,
    Code.NO_ERROR,
    b"",
)  # the first step of a drain: go elsewhere, what is on its way is served
HTTP1 = request1(target="/small", host="svc-b")
Address = tuple[str, int]


def small(number: int) -> Fields:
    return request("GET", "/small", authority="svc-b")


def edge(
    serve: Serve, endpoint: str, workers: int = 1, *, listener: Any = None, service: Any = None, **more: Any
) -> tuple[Fastmesh, Address]:
    port = free_port()
    proxy = serve(
        {
            **more,
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "to": "web", **(listener or {})}],
            "services": {"web": {"endpoints": [endpoint], **(service or {})}},
        },
        workers,
    )
    return proxy, ("127.0.0.1", port)


class Pair:
    """Two sidecars, HTTP/2 between them: svc-a calls svc-b, which passes on to `endpoint`."""

    def __init__(
        self, serve: Serve, pki: Pki, endpoint: int, workers: int = 1, service: Any = None, **top: Any
    ) -> None:
        theirs = inbound(pki, endpoint) | top
        theirs["services"]["app"] |= service or {}
        self.inbound = address_of(theirs)
        self.b = serve(theirs, workers)
        ours = outbound(pki, self.inbound[1]) | top
        self.outbound = address_of(ours)
        self.a = serve(ours, workers)

    def kill(self, sidecar: Fastmesh, pid: int) -> set[int]:
        """SIGKILL to a worker of one of the two; the ports of our clients whose exchanges it has.

        It is stopped first: from then on it takes nothing, and what waits for it belongs to its successor.
        """
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: procfs.stopped(pid), "the worker to stop")
        if sidecar is self.a:
            doomed = procfs.owned_peers(pid, self.outbound[1])
        else:
            doomed = set()
            between = procfs.owned_peers(pid, self.inbound[1])
            for worker in self.a.worker_pids():
                mine = {int(name[8:-1]) for name in procfs.fds(worker) if name.startswith("socket:[")}
                if any(procfs.connections(port).get(self.inbound[1]) in mine for port in between):
                    doomed |= procfs.owned_peers(worker, self.outbound[1])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in sidecar.worker_pids(), "the worker's end")
        return doomed


@contextlib.contextmanager
def chats(address: Address, count: int, **options: Any) -> Iterator[list[Chat]]:
    made: list[Chat] = []
    try:
        for _ in range(count):
            made.append(Chat(address, **options))
            made[-1].step()
        yield made
    finally:
        for one in made:
            one.close()


def progress(load: H2Load | Load, more: int) -> None:
    """Until so many more requests have been answered."""
    goal = load.result.requests + more
    wait_until(lambda: load.result.requests >= goal, f"{goal} requests, {load.result.failures}")


def refused(address: Address) -> bool:
    try:
        connect(address).close()
    except OSError:
        return True
    return False


def restart_agent(proxy: Fastmesh) -> None:
    agent = wait_until(proxy.agent_pid, "an agent")
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: proxy.agent_pid() not in (None, agent), "a new agent")


# draining


def test_a_drain_warns_serves_and_ends(serve: Serve, upstream: Serving) -> None:
    release = threading.Event()

    def slow(conn: ServerConn) -> None:
        for _ in conn:
            assert release.wait(2 * DEADLINE)
            conn.send(response(b"late"))

    server = upstream(slow)
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}")
    [worker] = proxy.wait_workers()
    with dial(address) as client:
        client.open()
        first = client.answer(1)
        client.send(headers(1, request(), end=True))
        server.wait_requests(1)
        os.kill(worker, signal.SIGSTOP)
        on_its_way = client.answer(3)
        client.send(headers(3, request(), end=True))
        proxy.terminate()
        os.kill(worker, signal.SIGCONT)
        client.until(lambda: len(client.goaways) == 2, "both steps")
        assert client.goaways == [WARNING, (3, Code.NO_ERROR, b"")]
        too_late = client.answer(5)
        client.send(headers(5, request(), end=True))
        server.wait_requests(2)
        release.set()
        client.until_closed()
        assert [(one.status, bytes(one.body), one.ended) for one in (first, on_its_way)] == [
            (200, b"late", True)
        ] * 2
        assert not too_late.heads
    assert proxy.wait() == 0
    assert len(server.requests) == 2


@pytest.mark.parametrize("protocol", ["http", "auto"])
def test_a_drain_ends_connections_that_it_finds_in_the_accept_queue(
    serve: Serve, upstream: Serving, protocol: str
) -> None:
    """Their requests are served; then they do not hold it up."""
    server = upstream()
    proxy, address = edge(
        serve,
        f"127.0.0.1:{server.address[1]}",
        listener={"protocol": protocol},
        drain=f"{int(10 * DEADLINE)}s",
    )
    [worker] = proxy.wait_workers()
    os.kill(worker, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(address)) for _ in range(6)]
        for client in clients:
            client.open()
            client.answer(1)
            client.send(headers(1, request(), end=True))
        proxy.terminate()
        os.kill(worker, signal.SIGCONT)
        for client in clients:
            assert client.until_over(1).status == 200
            client.until_closed()
            assert client.goaways == [WARNING, (1, Code.NO_ERROR, b"")]
    assert proxy.wait() == 0


def test_a_connection_without_a_request_ends_with_both_steps(serve: Serve, upstream: Serving) -> None:
    server = upstream()
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", drain=f"{int(10 * DEADLINE)}s", workers=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(address)) for _ in range(6)]
        for client in clients:
            client.open()
            assert client.fence()
        proxy.terminate()
        for client in clients:
            client.until_closed()
            assert client.goaways == [WARNING, (0, Code.NO_ERROR, b"")]
    assert proxy.wait() == 0


def test_the_deadline_says_so_on_every_stream(serve: Serve, upstream: Serving) -> None:
    """A gRPC stream gets its status, another one a reset, and who has no answer yet gets one."""

    def script(conn: H2Conn) -> None:
        while (seen := conn.next_request()) is not None:
            if seen.path == "/begun":
                conn.head(seen, 200, [("content-type", seen.get("content-type") or "text/plain")])
                conn.data(seen, b"begun")

    server = upstream(h2(script))
    proxy, address = edge(
        serve, f"127.0.0.1:{server.address[1]}", service={"protocol": "http2"}, drain="500ms"
    )
    with dial(address) as client:
        client.open()
        kinds = [("/begun", GRPC), ("/begun", []), ("/silent", []), ("/silent", GRPC)]
        for stream, (path, fields) in zip((1, 3, 5, 7), kinds, strict=True):
            client.answer(stream)
            client.send(headers(stream, request("POST", path, fields)))
        server.wait_requests(4)
        client.until(lambda: client.answer(1).body == client.answer(3).body == b"begun", "two answers")
        proxy.terminate()
        client.until_closed()
        begun, other, silent, call = (client.answer(stream) for stream in (1, 3, 5, 7))
        assert dict(begun.trailers or ())["grpc-status"] == "14"
        assert (other.ended, other.reset) == (False, Code.INTERNAL_ERROR)
        assert (silent.status, silent.get("x-fastmesh-reason")) == (503, "draining")
        assert (call.status, call.get("grpc-status"), call.ended) == (200, "14", True)
        assert client.goaways == [WARNING, (7, Code.NO_ERROR, b"")]
    assert proxy.wait() == 0
    server.tolerate()


def test_a_drain_under_load_fails_no_request(serve: Serve, nginx: Nginx) -> None:
    proxy, address = edge(serve, nginx.address, workers=2)
    with H2Load(address, 6, 5, small) as load:
        progress(load, scaled(1000, 100))
        proxy.terminate()
        assert proxy.wait() == 0
        load.stopping = True
    assert load.result.goaways > 0
    assert [one for one in load.result.failures if not one.what.startswith("connect:")] == []


def test_requests_go_to_the_endpoint_that_does_not_drain(serve: Serve, nginx: Nginx, pki: Pki) -> None:
    """Sidecars of one service restart one after the other; HTTP/2 to and between the sidecars."""
    theirs = [inbound(pki, nginx.port) for _ in range(2)]
    endpoints = [serve(one) for one in theirs]
    ours = outbound(pki, 1)
    ours["services"]["svc-b"]["endpoints"] = [one["listeners"][0]["bind"] for one in theirs]
    caller = serve(ours, 2)
    step = scaled(400, 60)
    with H2Load(address_of(ours), 4, 4, small) as load, Load(address_of(ours), 8, HTTP1) as plain:
        for number in (0, 1, 0):
            progress(load, step)
            progress(plain, step)
            endpoints[number].terminate()
            assert endpoints[number].wait() == 0
            progress(load, step)
            progress(plain, step)
            endpoints[number] = serve(theirs[number])
    assert load.result.failures == []
    assert plain.result.failures == []
    assert caller.metrics().sum("http2_goaways_total", side="upstream", direction="received") > 0


def test_both_sidecars_drain_at_once(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(h2(chat))
    mesh = Pair(serve, pki, server.address[1], 2, {"protocol": "http2"})
    with chats(mesh.outbound, 6) as streams:
        for sidecar in (mesh.a, mesh.b):
            sidecar.terminate()
        for one in streams:
            one.client.until(lambda one=one: len(one.client.goaways) == 2, "both steps")
            assert one.client.goaways == [WARNING, (1, Code.NO_ERROR, b"")]
        for one in streams:
            one.step()
            one.finish()
        for one in streams:
            one.client.until_closed()
        assert mesh.a.wait() == mesh.b.wait() == 0


def test_a_drain_waits_with_who_waits_for_settings(serve: Serve, upstream: Serving) -> None:
    """A WebSocket over HTTP/2 waits for the endpoint to allow it (RFC 8441); its connection is not idle."""
    asked, go = threading.Event(), threading.Event()

    def switch(conn: H2Conn) -> None:
        seen = conn.next_request()
        assert seen is not None
        conn.head(seen, 200)
        conn.whole(seen)
        conn.data(seen, b"", end=True)
        conn.until_closed()

    def late(conn: ServerConn) -> None:
        while len(conn.buffer) < 24:  # the preface
            if not conn.fill():
                return  # dialled in case we speak first, since our client was slow to
        asked.set()
        assert go.wait(2 * DEADLINE)
        h2(switch, settings={"ENABLE_CONNECT_PROTOCOL": 1})(conn)

    server = upstream(late)
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", service={"protocol": "http2"})
    fields = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    with connect(address) as client:
        client.send(request1(headers=[*fields, ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")]))
        assert asked.wait(DEADLINE)
        proxy.terminate()
        wait_until(lambda: refused(address), "the listener to close")
        go.set()
        assert client.read_response_head().status == 101
        client.shutdown()  # each half of a tunnel ends by itself
        assert client.read_to_end() == b""
    assert proxy.wait() == 0


# killing


@pytest.mark.heavy
def test_workers_killed_under_load(serve: Serve, nginx: Nginx, pki: Pki) -> None:
    """Of either sidecar, in turn: what fails is what was under way there."""
    mesh = Pair(serve, pki, nginx.port, 2)
    doomed: set[int] = set()
    step = scaled(600, 60)
    with H2Load(mesh.outbound, 8, 4, small) as load, Load(mesh.outbound, 16, HTTP1) as plain:
        for number in range(6):
            progress(load, step)
            progress(plain, step)
            sidecar = mesh.a if number % 2 else mesh.b
            doomed |= mesh.kill(sidecar, sidecar.wait_workers(2)[number // 2 % 2])
            if number in (1, 4):
                restart_agent(sidecar)
        progress(load, step)
        progress(plain, step)
        failures = load.stop().failures + plain.stop().failures
    assert doomed, "nobody was connected to the killed workers"
    assert [one for one in failures if one.port not in doomed] == [], (
        "failures that no killed worker explains"
    )


@pytest.mark.parametrize("whose", ["caller", "callee"])
def test_streams_of_a_killed_worker_end_and_no_others(
    serve: Serve, upstream: Serving, pki: Pki, whose: str
) -> None:
    server = upstream(h2(chat))
    mesh = Pair(serve, pki, server.address[1], 2, {"protocol": "http2"})
    sidecar = mesh.a if whose == "caller" else mesh.b
    with chats(mesh.outbound, 8) as streams:
        workers = sidecar.wait_workers(2)
        doomed = mesh.kill(sidecar, workers[0]) or mesh.kill(sidecar, workers[1])
        assert doomed & {one.port for one in streams}
        for one in streams:
            if one.port not in doomed:
                one.step()
                one.finish()
                continue
            with contextlib.suppress(AssertionError):
                while True:
                    one.step()
            if whose == "callee":
                assert one.answer.over, "the caller's sidecar lives, and says that the stream does not"
                assert one.client.fence(), "its connection goes on"
                fields = request("POST", "/chat", GRPC, authority="svc-b")
                again = one.client.answer(3)
                one.client.send(headers(3, fields), data(3, b"again", end=True))
                one.client.until_over(3)
                assert (again.status, bytes(again.body)) == (200, b"again")
    server.tolerate()


# what a stream does not notice


def test_agents_die_and_files_are_read_again_beside_streams(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    server = upstream(h2(chat))
    mesh = Pair(serve, pki, server.address[1], 2, {"protocol": "http2"})
    workers = mesh.a.worker_pids() + mesh.b.worker_pids()
    with chats(mesh.outbound, 6) as streams:
        for number in range(3):
            for sidecar in (mesh.a, mesh.b):
                restart_agent(sidecar)
                for one in streams:
                    one.step()
                wait_until(lambda sidecar=sidecar: sidecar.admin("/readyz")[0] == 200, "readiness")
                sidecar.reload(drain=f"{10 + number}s")
                for one in streams:
                    one.step()
        for one in streams:
            one.finish()
            assert one.client.goaways == []
    assert mesh.a.worker_pids() + mesh.b.worker_pids() == workers


def test_grpc_streams_do_not_notice_agents_and_reloads(serve: Serve, grpc_peers: Peers, pki: Pki) -> None:
    """grpcio at both ends, streams in lock step."""
    service, client = grpc_peers.service("grpcio"), grpc_peers.client("grpcio")
    mesh = Pair(serve, pki, service.port, 2)
    steps = [["ping_pong", 20, "a"], ["idle", 0.1]] * 20
    scenario = replace(
        SCENARIOS["bidi"],
        client=[*steps, ["half_close"], ["recv_all"]],
        service=[["echo_all"]],
        parallel=8,
        recorded=False,
    )
    host, port = mesh.outbound
    job = {
        "scenario": scenario.data(),
        "target": f"{host}:{port}",
        "control": service.address,
        "authority": "svc-b",
    }
    client.say(json.dumps(job))
    mesh.b.wait_metric("the streams", lambda m: m.sum("exchanges") == 8)
    for number, sidecar in enumerate((mesh.a, mesh.b)):
        restart_agent(sidecar)
        wait_until(lambda sidecar=sidecar: sidecar.admin("/readyz")[0] == 200, "readiness")
        sidecar.reload(drain=f"{10 + number}s")
    calls = client.hear()["calls"]
    assert [call["code"] for call in calls] == ["OK"] * 8, calls
    assert all(len(call["events"]) == 20 * 20 + 1 for call in calls)


def test_an_endpoint_is_replaced_under_streams(serve: Serve, upstream: Serving) -> None:
    """They go on to the old one, new requests to the new one; then nothing is left of the old one."""
    servers = [upstream(h2(chat)), upstream(h2(chat))]
    services = [
        {"web": {"endpoints": [f"127.0.0.1:{server.address[1]}"], "protocol": "http2"}} for server in servers
    ]
    proxy, address = edge(serve, f"127.0.0.1:{servers[0].address[1]}", service={"protocol": "http2"})
    for number in range(scaled(6, 4)):
        old, new = servers[number % 2], servers[1 - number % 2]
        with chats(address, 2) as streams, chats(address, 2) as others:
            for one in others:
                one.finish()
            old.wait_open(1)
            before = len(new.requests)
            proxy.reload(services=services[1 - number % 2])
            with chats(address, 1) as [fresh]:
                assert len(new.requests) == before + 1
                for one in streams:
                    one.step()
                    one.finish()
                fresh.finish()
        old.wait_open(0)
    proxy.wait_metric("no client is left", lambda m: m.sum("downstream_connections_open") == 0)


def test_an_idle_connection_goes_with_its_endpoint(serve: Serve, upstream: Serving) -> None:
    servers = [upstream(h2(chat)), upstream(h2(chat))]
    proxy, address = edge(serve, f"127.0.0.1:{servers[0].address[1]}", service={"protocol": "http2"})
    for number in range(scaled(8, 4)):
        old, new = servers[number % 2], servers[1 - number % 2]
        with chats(address, 2) as streams:
            for one in streams:
                one.finish()
        old.wait_open(1)
        endpoints = [f"127.0.0.1:{new.address[1]}"]
        proxy.reload(services={"web": {"endpoints": endpoints, "protocol": "http2"}})
        old.wait_open(0)


# ages


def test_max_connection_age_loses_no_request(serve: Serve, upstream: Serving, nginx: Nginx, pki: Pki) -> None:
    """On both listeners of a call; a stream that is longer ends when it ends."""
    server = upstream(h2(chat))
    theirs = inbound(pki, nginx.port, max_connection_age="200ms")
    theirs["services"]["app"] = {"endpoints": [f"127.0.0.1:{server.address[1]}"], "protocol": "http2"}
    ours = outbound(pki, address_of(theirs)[1])
    ours["listeners"][0]["max_connection_age"] = "300ms"
    b, a = serve(theirs), serve(ours, 2)
    address = address_of(ours)
    with chats(address, 2) as streams, H2Load(address, 4, 4, small) as load:
        for one in streams:
            one.step()
        a.wait_metric(
            "ages", lambda m: m.sum("connections_retired_total", side="downstream", cause="age") > 8
        )
        b.wait_metric(
            "ages", lambda m: m.sum("connections_retired_total", side="downstream", cause="age") > 4
        )
        for one in streams:
            one.step()
            one.finish()
        progress(load, 20)
    assert load.result.failures == []
    assert load.result.goaways > 4


# endpoints


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_endpoint_that_goes_away_again_and_again(serve: Serve, upstream: Serving, method: str) -> None:
    """GOAWAY after some requests, and what came behind is not looked at: nothing is lost, or done twice."""
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def script(conn: H2Conn) -> None:
        with contextlib.suppress(OSError, Closed):
            for number, seen in enumerate(conn, 1):
                with lock:
                    done[seen.get("x-number") or ""] += 1
                conn.answer(seen, body=b"done")
                if number == 30:
                    conn.goaway(seen.stream)
                    conn.conn.shutdown()
                    conn.until_closed()
                    return

    server = upstream(h2(script))
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", service={"protocol": "http2"}, workers=2)

    def make(number: int) -> Fields:
        return request(method, fields=[("x-number", str(number))])

    with H2Load(address, 4, 4, make) as load:
        progress(load, scaled(1000, 200))
    assert load.result.failures == []
    assert len(done) == load.result.requests
    assert max(done.values()) == 1, "a request was done twice"
    assert proxy.metrics().sum("http2_goaways_total", side="upstream", direction="received") >= 5
