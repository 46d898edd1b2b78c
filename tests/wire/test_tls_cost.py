"""What connections leave behind, and what idle ones hold."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from kit.svid import (
    A,
    Authority,
    B,
    Identity,
    authority,
    meet,
    minutes,
    open_pair,
    shake,
    svc_a,
    svc_b,
)

from fastmesh import _tls as tls

KIB = 1024


def growth(work: Callable[[], None], rounds: int) -> int:
    """Bytes that `rounds` of work leave allocated each time: OpenSSL and malloc warm up only once."""
    work()
    left = []
    for _ in range(2):
        gc.collect()
        before = tls.heap()
        for _ in range(rounds):
            work()
        gc.collect()
        left.append(tls.heap() - before)
    return min(left)


def exchange(engine: tls.Engine, client: tls.Context, server: tls.Context, slot: tls.Slot) -> None:
    c, s = meet(engine, client, server, slot=slot, expect=B.encode())
    assert s.read(c.write(bytes(3000))[1])[0] == 3000
    # freed with a record half read, and with plaintext left over
    s.read(c.write(bytes(3000))[1][:1500])
    c.read(s.write(bytes(3000))[1], 100)


def test_handshakes_leave_nothing() -> None:
    engine, client, server = tls.Engine(), svc_a().client(), svc_b().server()
    assert growth(lambda: exchange(engine, client, server, tls.Slot()), 500) < 16 * KIB


def test_resumed_handshakes_leave_nothing() -> None:
    engine, client, server, slot = tls.Engine(), svc_a().client(), svc_b().server(), tls.Slot()
    assert growth(lambda: exchange(engine, client, server, slot), 500) < 16 * KIB


def test_failed_handshakes_leave_nothing() -> None:
    engine = tls.Engine()
    stranger = Authority().leaf(A)
    good_client, good_server = svc_a().client(), svc_b().server()
    pairs = [
        (Identity(stranger.chain, stranger.key, authority().bundle).client(), good_server),
        (authority().leaf(A, end=minutes(-1)).client(), good_server),
        (authority().leaf("https://mesh.local/a").client(), good_server),
        (good_client, stranger.server()),
        (good_client, authority().leaf(A).server()),
    ]

    def work() -> None:
        for client, server in pairs:
            c, s = open_pair(engine, client, server, expect=B.encode(), slot=tls.Slot())
            done = shake(c, s)
            assert min(done[:2]) < 0
            c.read(done[2])
        half, server = open_pair(engine, good_client, good_server)
        server.handshake(half.handshake()[1][:-1])
        tls.Connection(engine, good_server, True).handshake(b"GET / HTTP/1.1\r\n\r\n")

    assert growth(work, 100) < 16 * KIB


def test_many_peers_leave_a_bounded_cache() -> None:
    """Certificates by the hundreds: those that were let in are held, but not all for ever."""
    engine, server = tls.Engine(), svc_b().server()
    clients = [authority().leaf(f"spiffe://mesh.local/w{i}").client() for i in range(300)]

    def round_of_all() -> None:
        for client in clients:
            meet(engine, client, server)

    assert growth(round_of_all, 1) < 64 * KIB


def test_contexts_leave_nothing() -> None:
    """A context that has verified peers goes with all it holds."""
    engine = tls.Engine()

    def work() -> None:
        meet(engine, svc_a().client(), svc_b().server())

    assert growth(work, 100) < 16 * KIB


@pytest.mark.parametrize(
    ("side", "own_records", "limit"),
    [("server", True, 3.5), ("client", True, 3.5), ("server", False, 20.5), ("client", False, 16.5)],
)
def test_memory_of_an_idle_connection(side: str, own_records: bool, limit: float) -> None:
    engine = tls.Engine(own_records=own_records)
    client, server, slot = svc_a().client(), svc_b().server(), tls.Slot()
    kept = []

    def work() -> None:
        c, s = meet(engine, client, server, expect=B.encode(), slot=slot)
        assert s.read(c.write(bytes(200))[1])[0] == 200
        assert c.read(s.write(bytes(500))[1])[0] == 500
        kept.append(c if side == "client" else s)

    per_end = growth(work, 300) / 300
    assert per_end < limit * KIB, f"{per_end / KIB:.1f} KiB"
