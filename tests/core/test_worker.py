"""The worker without its processes: what it does with snapshots and listeners that come and go."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import ssl

from kit.pki import Pki, client_context
from kit.upstream import Upstream, answering
from kit.wire import connect, connect_tls, request
from kit.worker import running, snapshot

from fastmesh._core import RUN_CONTROL, Area, Worker


def test_listener_that_later_snapshots_do_not_name_goes_on() -> None:
    """With what it had, for old connections and new ones."""
    worker = Worker(Area.create(1, 8), 0)
    with (
        Upstream(("127.0.0.1", 0), answering(b"web")) as server,
        socket.create_server(("127.0.0.1", 0)) as kept,
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        endpoint = server._listener.getsockname()[1]
        worker.load(snapshot(1, {"kept": "web", "gone": "old"}, endpoint))
        for name, sock in (("kept", kept), ("gone", gone)):
            sock.setblocking(False)
            worker.listen(name, sock.fileno())
        with connect(gone.getsockname()) as old:
            for number in range(2, 8):
                worker.load(snapshot(number, {"kept": "web"}, endpoint))
                with running(worker):
                    old.send(request())
                    assert old.read_response().body == b"web"
                    for sock in (kept, gone):
                        with connect(sock.getsockname()) as new:
                            new.send(request())
                            assert new.read_response().body == b"web"
            worker.load(snapshot(8, {"kept": "web", "gone": "web"}, endpoint))
            with running(worker):
                old.send(request())
                assert old.read_response().body == b"web"
        assert not {name: count for name, count in worker.close().items() if count}


def test_connections_in_the_queue_are_left_to_a_successor() -> None:
    with (
        Upstream(("127.0.0.1", 0), answering(b"web")) as server,
        socket.create_server(("127.0.0.1", 0)) as edge,
    ):
        edge.setblocking(False)
        first, second = Worker(Area.create(1, 8), 0), Worker(Area.create(1, 8), 0)
        for worker in (first, second):
            worker.load(snapshot(1, {"edge": "web"}, server._listener.getsockname()[1]))
        first.listen("edge", edge.fileno())
        with connect(edge.getsockname()) as client:
            assert not any(first.close().values())
            second.listen("edge", edge.fileno())
            with running(second):
                client.send(request())
                assert client.read_response().body == b"web"
        assert not any(second.close().values())


def hello(context: ssl.SSLContext) -> bytes:
    """A client's first flight: it costs the client nothing, and the server a signature."""
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


def test_a_turn_drives_one_handshake_at_most(pki: Pki) -> None:
    """However many clients shake hands: a request is answered in the turn in which it came, and behind it one
    step of one handshake is made. Counted in turns: with its control readable a worker runs one."""
    count = 24
    worker, context = Worker(Area.create(1, 8), 0), client_context(pki.identity("svc-a"))
    turn = os.eventfd(1, os.EFD_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, turn)
        inbound = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        inbound.setblocking(False)
        worker.load(snapshot(1, {"inbound": "app"}, None, pki.identity("svc-b")))
        worker.listen("inbound", inbound.fileno())
        with running(worker):
            client = stack.enter_context(connect_tls(inbound.getsockname(), context))
        flood = [stack.enter_context(connect(inbound.getsockname())) for _ in range(count)]
        for one in flood:
            one.send(hello(context))
        answered = [0]
        for _ in itertools.takewhile(lambda _: answered[-1] < count, range(8 * count)):
            client.send(request())
            assert worker.run(turn) == RUN_CONTROL
            assert client.read_response().reason == "no_endpoint"
            answered.append(len(select.select([one.sock for one in flood], (), (), 0)[0]))
        assert answered[-1] == count, "all of them get on"
        steps = [after - before for before, after in itertools.pairwise(answered)]
        assert set(steps) <= {0, 1}, steps
        assert sum(steps[-count:]) == count, "one in each turn, once they are accepted"
    assert not {name: left for name, left in worker.close().items() if left}


def test_identities_go_with_their_connections(pki: Pki) -> None:
    """Nothing of a caller stays in a worker: not of one that is opaque, nor of one that has been refused."""
    worker = Worker(Area.create(1, 8), 0)
    with (
        Upstream(("127.0.0.1", 0), *[answering(b"web")] * 4) as server,
        socket.create_server(("127.0.0.1", 0)) as http,
        socket.create_server(("127.0.0.1", 0)) as tcp,
    ):
        document = json.loads(
            snapshot(
                1,
                {"http": "web", "tcp": "web"},
                server._listener.getsockname()[1],
                pki.identity("svc-b"),
            )
        )
        document["listeners"][1]["protocol"] = "tcp"
        worker.load(json.dumps(document).encode())
        for name, sock in (("http", http), ("tcp", tcp)):
            sock.setblocking(False)
            worker.listen(name, sock.fileno())
        with running(worker), contextlib.ExitStack() as stack:
            for name in ("svc-a", "svc-x"):
                for sock in (http, tcp):
                    client = stack.enter_context(
                        connect_tls(sock.getsockname(), client_context(pki.identity(name)))
                    )
                    client.send(request())
                    assert client.read_response().body == b"web"
    left = worker.close()
    assert "texts" in left
    assert not any(left.values()), left
