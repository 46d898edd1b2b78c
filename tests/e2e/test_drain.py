"""Stopping: what is in flight ends well, what is idle is closed, what is new goes elsewhere."""

from __future__ import annotations

import os
import signal
import threading
import time

from kit import procfs
from kit.fixtures import Serve, Serving
from kit.limits import DEADLINE, wait_until
from kit.load import Load
from kit.nginx import Nginx
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.upstream import ServerConn, answering
from kit.wire import connect, request, response


def edge(
    serve: Serve, endpoint: str, protocol: str = "http", **more: object
) -> tuple[Fastmesh, tuple[str, int]]:
    port = free_port()
    proxy = serve(
        {
            **more,
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": protocol, "to": "web"}],
            "services": {"web": {"endpoints": [endpoint]}},
        }
    )
    return proxy, ("127.0.0.1", port)


def refused(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except OSError:
        return True
    return False


def test_requests_in_flight_finish(serve: Serve, upstream: Serving) -> None:
    release = threading.Event()

    def slow(conn: ServerConn) -> None:
        for seen in conn:
            assert release.wait(20)
            conn.send(response(seen.body or b"late"))

    server = upstream(slow)
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}")
    waiting, uploading = connect(address), connect(address)
    waiting.send(request())
    server.wait_requests(1)
    uploading.send(request("POST", headers=[("Content-Length", "10")]), b"01234")
    server.wait_requests(2)
    proxy.terminate()
    wait_until(lambda: refused(address), "the listener to close")
    release.set()
    answer = waiting.read_response()
    assert answer.body == b"late"
    assert "close" in answer.tokens("connection"), "the client is told to go elsewhere"
    waiting.expect_close()
    uploading.send(b"56789")
    answer = uploading.read_response()
    assert answer.body == b"0123456789"
    uploading.expect_close()
    assert proxy.wait() == 0


def test_idle_connections_are_closed_at_once(serve: Serve, upstream: Serving) -> None:
    server = upstream()
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}")
    clients = [connect(address) for _ in range(20)]
    for client in clients[:10]:
        client.send(request())
        assert client.read_response().status == 200
    proxy.wait_metric("all accepted", lambda m: m.sum("downstream_connections_open") == 20)
    start = time.monotonic()
    proxy.terminate()
    for client in clients:
        client.expect_close(reset_ok=False)
    assert proxy.wait() == 0
    assert time.monotonic() - start < DEADLINE / 2
    server.wait_open(0)


def test_connection_that_never_spoke_does_not_hold_up_the_end(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    """A permissive listener has not told TLS from plaintext yet: there is nothing to wait for."""
    server = upstream()
    port = free_port()
    proxy = serve(
        {
            "workload": "svc-b",
            "trust_domain": "mesh.local",
            "pki": str(pki.path),
            "drain": f"{int(10 * DEADLINE)}s",
            "listeners": [
                {
                    "name": "in",
                    "role": "inbound",
                    "bind": f"127.0.0.1:{port}",
                    "protocol": "http",
                    "tls": "permissive",
                    "to": "app",
                }
            ],
            "services": {"app": {"endpoints": [f"127.0.0.1:{server.address[1]}"]}},
        }
    )
    with connect(("127.0.0.1", port)) as client:
        proxy.wait_metric("accepted", lambda m: m.sum("downstream_connections_open") == 1)
        proxy.terminate()
        assert proxy.wait() == 0
        client.expect_close()


def test_connections_in_the_accept_queue_are_served(serve: Serve, upstream: Serving) -> None:
    """Connected before the signal, not accepted yet: the client could not know."""
    server = upstream()
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}")
    [worker] = proxy.wait_workers()
    os.kill(worker, signal.SIGSTOP)
    clients = [connect(address) for _ in range(10)]
    for client in clients:
        client.send(request())
    proxy.terminate()
    os.kill(worker, signal.SIGCONT)
    for client in clients:
        assert client.read_response().status == 200
        client.expect_close()
    assert proxy.wait() == 0


def test_large_answer_finishes_during_the_drain(serve: Serve, upstream: Serving) -> None:
    body = os.urandom(1 << 20) * 16
    server = upstream(answering(body))
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}")
    with connect(address) as client:
        client.send(request())
        head = client.read_response_head()
        proxy.terminate()
        wait_until(lambda: refused(address), "the listener to close")
        assert client.read_exact(int(head.get("content-length") or 0)) == body
    assert proxy.wait() == 0


def test_opaque_connections_may_finish_until_the_deadline(serve: Serve, upstream: Serving) -> None:
    def echo(conn: ServerConn) -> None:
        while conn.fill():
            conn.send(conn.take(len(conn.buffer)))

    server = upstream(echo)
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", protocol="tcp")
    with connect(address) as client:
        client.send(b"before")
        assert client.read_exact(6) == b"before"
        proxy.terminate()
        wait_until(lambda: refused(address), "the listener to close")
        client.send(b"during")
        assert client.read_exact(6) == b"during"
    assert proxy.wait() == 0


def test_the_deadline_ends_what_does_not_end(serve: Serve, upstream: Serving) -> None:
    server = upstream(lambda conn: (conn.read_request(), conn.expect_close())[1])
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", drain="400ms")
    with connect(address) as client:
        client.send(request())
        server.wait_requests(1)
        start = time.monotonic()
        proxy.terminate()
        code = proxy.wait()
        took = time.monotonic() - start
        assert took >= 0.35
        assert code == 0
    server.wait_open(0)


def test_second_signal_ends_at_once(serve: Serve, upstream: Serving) -> None:
    server = upstream(lambda conn: (conn.read_request(), conn.expect_close())[1])
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", drain="10m")
    family = procfs.children(proxy.pid)
    with connect(address) as client:
        client.send(request())
        server.wait_requests(1)
        os.kill(proxy.pid, signal.SIGINT)
        wait_until(lambda: refused(address), "the listener to close")
        os.kill(proxy.pid, signal.SIGINT)
        proxy.wait()
        wait_until(lambda: not any(procfs.alive(pid) for pid in family), "the children's end")
    proxy.process = None  # its exit code says that it was cut short; the stop at the end expects 0


def test_drain_under_load_fails_no_request(serve: Serve, nginx: Nginx) -> None:
    """Nor does it lose one that was on its way when the drain began."""
    proxy, address = edge(serve, nginx.address)
    with Load(address, 64, request(target="/small")) as load:
        wait_until(lambda: load.result.requests > 500, "some load")
        proxy.terminate()
        assert proxy.wait() == 0
        load.stopping = True
    assert [failure for failure in load.result.failures if failure.what != "refused"] == []
