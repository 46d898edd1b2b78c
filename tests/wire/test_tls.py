"""TLS of the mesh in memory: two ends meet, bytes arrive however they are cut, ends are told apart."""

from __future__ import annotations

import itertools
import random
import ssl
from collections.abc import Iterator

import pytest
from kit.svid import (
    DOMAIN,
    H1,
    H2_H1,
    A,
    B,
    PythonEnd,
    authority,
    key_pem,
    meet,
    open_pair,
    reason,
    shake,
    svc_a,
    svc_b,
)

from fastmesh import _tls as tls

MIB = 1 << 20


@pytest.fixture
def ends(engine: tls.Engine) -> tuple[tls.Connection, tls.Connection]:
    return meet(engine, svc_a().client(), svc_b().server(), expect=B.encode(), slot=tls.Slot())


def read_all(end: tls.Connection, data: bytes, cap: int = 65536) -> bytes:
    """Everything that `data` holds for `end`."""
    got = []
    n, plain, _ = end.read(data, cap)
    while n > 0:
        got.append(plain)
        n, plain, _ = end.read(b"", cap)
    assert n == 0, n
    return b"".join(got)


def test_two_ends_meet(engine: tls.Engine) -> None:
    client, server = meet(engine, svc_a().client(), svc_b().server(), expect=B.encode())
    assert (client.peer, server.peer) == (B.encode(), A.encode())
    assert (client.alpn, server.alpn) == (2, 2)
    assert not client.resumed
    for data in (b"x", b"ping" * 50, bytes(16384), bytes(16385)):
        n, wire = client.write(data)
        assert n == len(data)
        assert read_all(server, wire) == data
        n, wire = server.write(data)
        assert n == len(data)
        assert read_all(client, wire) == data


def test_writing_nothing_sends_nothing(ends: tuple[tls.Connection, tls.Connection]) -> None:
    assert ends[0].write(b"") == (0, b"")


def test_a_server_may_speak_first(engine: tls.Engine) -> None:
    client, server = open_pair(engine, svc_a().client(), svc_b().server(), slot=tls.Slot())
    c, s, ticket = shake(client, server)
    assert (c, s) == (1, 1)
    _, wire = server.write(b"220 ready")
    assert client.read(ticket + wire)[:2] == (9, b"220 ready")


def test_data_may_come_with_the_last_flight(engine: tls.Engine) -> None:
    client, server = open_pair(engine, svc_a().client(), svc_b().server())
    _, hello = client.handshake()
    _, flight = server.handshake(hello)
    c, finished = client.handshake(flight)
    assert c == 1
    _, request = client.write(b"early bird")
    assert server.handshake(finished + request)[0] == 1
    assert server.read()[:2] == (10, b"early bird")


@pytest.mark.parametrize(
    ("client", "server", "agreed"),
    [(H2_H1, H2_H1, 2), (H1, H2_H1, 1), (H2_H1, H1, 1), (None, H2_H1, 0), (H2_H1, None, 0)],
)
def test_alpn(engine: tls.Engine, client: bytes | None, server: bytes | None, agreed: int) -> None:
    ends = meet(engine, svc_a().client(alpn=client), svc_b().server(alpn=server))
    assert [end.alpn for end in ends] == [agreed, agreed]


def test_no_common_alpn_is_refused(engine: tls.Engine) -> None:
    c, s, _ = shake(*open_pair(engine, svc_a().client(alpn=b"\x02h2"), svc_b().server(alpn=H1)))
    assert (reason(c), reason(s)) == ("upstream_tls_handshake", "tls_handshake")


def test_identities_of_many_connections_on_one_engine(engine: tls.Engine) -> None:
    names = [f"spiffe://mesh.local/svc-{i}" for i in range(20)]
    server = svc_b().server()
    clients = [authority().leaf(name).client() for name in names]
    pairs = [open_pair(engine, client, server) for client in clients for _ in range(3)]
    # handshakes of all of them at the same time, one step after the other
    flights = [c.handshake()[1] for c, _ in pairs]
    flights = [s.handshake(data)[1] for (_, s), data in zip(pairs, flights, strict=True)]
    flights = [c.handshake(data)[1] for (c, _), data in zip(pairs, flights, strict=True)]
    assert [s.handshake(data)[0] for (_, s), data in zip(pairs, flights, strict=True)] == [1] * len(pairs)
    assert [s.peer.decode() for _, s in pairs] == [name for name in names for _ in range(3)]
    wires = [c.write(s.peer)[1] for c, s in pairs]
    assert all(s.read(wire)[1] == s.peer for (_, s), wire in zip(pairs, wires, strict=True))


# however the bytes are cut -------------------------------------------------------------------------------


def drip(end: tls.Connection, pieces: Iterator[bytes]) -> tuple[int, bytes]:
    """A handshake fed piece by piece."""
    out = b""
    result = 0
    for piece in pieces:
        result, flight = end.handshake(piece)
        out += flight
    return result, out


def single_bytes(data: bytes) -> Iterator[bytes]:
    return (bytes([b]) for b in data)


def test_a_handshake_byte_by_byte(engine: tls.Engine) -> None:
    client, server = open_pair(engine, svc_a().client(), svc_b().server(), slot=tls.Slot())
    _, hello = client.handshake()
    s, flight = drip(server, single_bytes(hello))
    assert s == 0
    c, finished = drip(client, single_bytes(flight))
    assert c == 1
    s, ticket = drip(server, single_bytes(finished))
    assert s == 1
    assert all(client.read(b)[0] == 0 for b in single_bytes(ticket))
    _, wire = server.write(b"hello")
    assert b"".join(client.read(b)[1] for b in single_bytes(wire)) == b"hello"


def test_records_cut_in_two_at_every_byte(ends: tuple[tls.Connection, tls.Connection]) -> None:
    client, server = ends
    for cut in range(1, 2 * (5 + 3 + 1 + 16)):
        wire = client.write(b"one")[1] + client.write(b"two")[1]
        first = server.read(wire[:cut])[1]
        assert first + read_all(server, wire[cut:]) == b"onetwo"


@pytest.mark.parametrize("seed", range(8))
def test_random_pieces_both_ways(ends: tuple[tls.Connection, tls.Connection], seed: int) -> None:
    dice = random.Random(seed)
    for sender, receiver in (ends, ends[::-1]):
        sent = dice.randbytes(300_000)
        wire = b""
        position = 0
        while position < len(sent):
            n, out = sender.write(sent[position : position + dice.choice((1, 7, 300, 16384, 40000))])
            position += n
            wire += out
        got = b""
        position = 0
        while position < len(wire):
            piece = wire[position : position + dice.choice((1, 4, 5, 6, 21, 22, 23, 1000, 20000))]
            position += len(piece)
            n, plain, _ = receiver.read(piece, dice.choice((1, 10, 4096, 16384, 65536)))
            assert n >= 0
            got += plain
        assert got + read_all(receiver, b"") == sent


@pytest.mark.parametrize("cap", [1, 16383, 16384, 16385, 100_000])
def test_reading_into_any_room(ends: tuple[tls.Connection, tls.Connection], cap: int) -> None:
    data = random.Random(1).randbytes(40_000 if cap > 1 else 2_000)
    assert read_all(ends[1], ends[0].write(data)[1], cap) == data


# big writes and the sink ---------------------------------------------------------------------------------


def record_lengths(wire: bytes) -> list[int]:
    lengths = []
    while wire:
        assert wire[0] == 23
        n = int.from_bytes(wire[3:5], "big")
        lengths.append(n)
        wire = wire[5 + n :]
    return lengths


def test_big_writes_leave_as_full_records() -> None:
    engine = tls.Engine(2 * MIB)
    client, server = meet(engine, svc_a().client(), svc_b().server())
    data = random.Random(2).randbytes(MIB)
    n, wire = client.write(data)
    assert n == MIB
    assert record_lengths(wire) == [16384 + 17] * 64
    assert len(wire) <= MIB + tls.overhead(MIB)
    assert read_all(server, wire, 2 * MIB) == data


def test_a_full_sink_takes_nothing() -> None:
    engine = tls.Engine()
    client, server = meet(engine, svc_a().client(), svc_b().server())
    data = bytes(30_000)
    engine.room(30_000 + tls.overhead(30_000) - 1)
    assert client.write(data) == (tls.SINK_FULL, b"")
    engine.room(30_000 + tls.overhead(30_000))
    n, wire = client.write(data)
    assert n == 30_000
    assert read_all(server, wire) == data


def test_a_handshake_goes_on_when_a_full_sink_was_emptied() -> None:
    engine = tls.Engine()
    client, server = open_pair(engine, svc_a().client(), svc_b().server(), slot=tls.Slot())
    engine.room(100)
    assert client.handshake() == (tls.SINK_FULL, b"")
    engine.room(32768)
    c, hello = client.handshake()
    assert c == 0
    engine.room(600)
    out = b""
    s, flight = server.handshake(hello)
    while s == tls.SINK_FULL:
        out += flight
        engine.room(2000)
        s, flight = server.handshake()
    assert s == 0
    engine.room(32768)
    c, finished = client.handshake(out + flight)
    assert c == 1
    engine.room(10)
    assert server.handshake(finished)[0] == tls.SINK_FULL
    engine.room(32768)
    s, ticket = server.handshake()
    assert s == 1
    assert client.read(ticket)[0] == 0
    assert read_all(server, client.write(b"after all")[1]) == b"after all"


# how it ends ---------------------------------------------------------------------------------------------


def test_close_notify_is_an_end(ends: tuple[tls.Connection, tls.Connection]) -> None:
    client, server = ends
    wire = client.write(b"last words")[1] + client.close_notify()
    assert server.read(wire)[:2] == (10, b"last words")
    assert [server.read()[0] for _ in range(3)] == [tls.EOF] * 3
    # the other direction goes on (RFC 8446 6.1)
    assert client.read(server.write(b"still here")[1])[:2] == (10, b"still here")
    assert client.read(server.close_notify())[0] == tls.EOF


def test_close_notify_is_sent_once(ends: tuple[tls.Connection, tls.Connection]) -> None:
    assert ends[0].close_notify()
    assert ends[0].close_notify() == b""


def test_close_notify_before_the_handshake_is_over_says_nothing(engine: tls.Engine) -> None:
    client, _ = open_pair(engine, svc_a().client(), svc_b().server())
    client.handshake()
    assert client.close_notify() == b""


def test_an_end_without_close_notify_is_a_truncation(ends: tuple[tls.Connection, tls.Connection]) -> None:
    client, server = ends
    wire = client.write(b"half a message")[1]
    assert server.read(wire, eof=True)[:2] == (14, b"half a message")
    assert server.read(eof=True)[0] == tls.TRUNCATED


@pytest.mark.parametrize("cut", [1, 5, 6, -1])
def test_an_end_inside_a_record_is_a_truncation(
    ends: tuple[tls.Connection, tls.Connection], cut: int
) -> None:
    wire = ends[0].write(b"half a message")[1]
    assert ends[1].read(wire[:cut], eof=True)[0] == tls.TRUNCATED


@pytest.mark.parametrize("position", [0, 1, 3, 5, 20, -1])
def test_a_changed_record_breaks_the_connection(
    ends: tuple[tls.Connection, tls.Connection], position: int
) -> None:
    client, server = ends
    wire = bytearray(client.write(b"x" * 100)[1])
    wire[position] ^= 0x15
    n, plain, alert = server.read(bytes(wire) + bytes(20000))
    assert (reason(n), plain) == ("downstream_reset", b"")
    assert reason(server.read()[0]) == "downstream_reset"
    assert reason(server.write(b"more")[0]) == "downstream_reset"
    assert server.close_notify() == b""
    if alert:
        assert reason(client.read(alert)[0]) in ("upstream_reset", "upstream_tls_handshake")


def test_a_repeated_record_breaks_the_connection(ends: tuple[tls.Connection, tls.Connection]) -> None:
    wire = ends[0].write(b"pay 10")[1]
    assert ends[1].read(wire)[1] == b"pay 10"
    assert reason(ends[1].read(wire)[0]) == "downstream_reset"


def test_plain_bytes_after_the_handshake_break_the_connection(
    ends: tuple[tls.Connection, tls.Connection],
) -> None:
    client, server = ends
    assert reason(server.read(b"\x17\x03\x03\x00\x05hello")[0]) == "downstream_reset"
    assert reason(client.read(b"HTTP/1.1 200 OK\r\n\r\n")[0]).startswith("upstream_")


def test_freeing_twice_is_harmless(ends: tuple[tls.Connection, tls.Connection]) -> None:
    ends[0].free()
    ends[0].free()


# Python's ssl at the other end -----------------------------------------------------------------------------


def test_a_client_nobody_here_wrote(engine: tls.Engine) -> None:
    server = tls.Connection(engine, svc_b().server(), True)
    context = svc_a().python(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    client = PythonEnd(context, server=False)
    _, flight = server.handshake(client.handshake())
    s, ticket = server.handshake(client.handshake(flight))
    assert s == 1
    assert client.done
    assert (server.peer, server.alpn) == (A.encode(), 1)
    assert client.read(ticket + server.write(b"x" * 10_000)[1]) == b"x" * 10_000
    assert read_all(server, client.write(b"y" * 50_000)) == b"y" * 50_000
    assert server.read(client.close())[0] == tls.EOF


def test_a_server_nobody_here_wrote(engine: tls.Engine) -> None:
    client = tls.Connection(engine, svc_a().client(), False, B.encode(), tls.Slot())
    context = svc_b().python(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    server = PythonEnd(context, server=True)
    c, finished = client.handshake(server.handshake(client.handshake()[1]))
    assert c == 1
    tickets = server.handshake(finished)
    assert server.done
    assert (client.peer, client.alpn) == (B.encode(), 2)
    assert client.read(tickets)[0] == 0
    assert server.read(client.write(b"x" * 1000)[1]) == b"x" * 1000
    assert read_all(client, server.write(b"y" * 50_000)) == b"y" * 50_000


# contexts and identities ---------------------------------------------------------------------------------

CLIENT_MATERIAL = ["chain", "key", "bundle", "domain"]


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("chain", b"", "certificate is not readable"),
        (
            "chain",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "certificate is not readable",
        ),
        ("key", b"nonsense", "key is not readable"),
        ("bundle", b"", "bundle is not readable"),
        ("domain", b"Mesh.Local", "trust domain"),
        ("domain", b"", "trust domain"),
        ("domain", b"a" * 256, "trust domain"),
    ],
)
def test_bad_material_is_named(part: str, value: bytes, says: str) -> None:
    good = {"chain": svc_a().chain, "key": svc_a().key, "bundle": svc_a().bundle, "domain": DOMAIN}
    for server in (True, False):
        with pytest.raises(ValueError, match=says):
            tls.Context(server, *({**good, part: value}[name] for name in CLIENT_MATERIAL))
    assert not tls.errors_queued()


def test_a_cut_certificate_is_refused() -> None:
    identity = svc_a()
    for chain, bundle in ((identity.chain[:-100], identity.bundle), (identity.chain, identity.bundle[:-100])):
        with pytest.raises(ValueError, match="not readable"):
            tls.Context(True, chain, identity.key, bundle, DOMAIN)


def test_a_foreign_key_is_refused() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        tls.Context(True, svc_a().chain, svc_b().key, svc_a().bundle, DOMAIN)


def test_an_encrypted_key_is_refused_without_a_prompt() -> None:
    key = key_pem(authority().key, b"secret")
    with pytest.raises(ValueError, match="unencrypted"):
        tls.Context(True, svc_a().chain, key, svc_a().bundle, DOMAIN)


@pytest.mark.parametrize(
    ("uri", "valid"),
    [
        ("spiffe://mesh.local/svc-a", True),
        ("spiffe://mesh.local/ns/shop/sa/Cart_1.x", True),
        ("spiffe://mesh.local/...", True),
        ("spiffe://mesh.local", False),
        ("spiffe://mesh.local/", False),
        ("spiffe://mesh.local/a/", False),
        ("spiffe://mesh.local//a", False),
        ("spiffe://mesh.local/a//b", False),
        ("spiffe://mesh.local/./a", False),
        ("spiffe://mesh.local/a/..", False),
        ("spiffe://mesh.local/a%2fb", False),
        ("spiffe://mesh.local/a b", False),
        ("spiffe://mesh.local/a\n", False),
        ("spiffe://mesh.local/a\0", False),
        ("spiffe://mesh.local/ä", False),
        ("spiffe://mesh.local/a?x", False),
        ("spiffe://mesh.local/a#x", False),
        ("spiffe://mesh.local:80/a", False),
        ("spiffe://user@mesh.local/a", False),
        ("spiffe://mesh.localx/a", False),
        ("spiffe://mesh.loca/a", False),
        ("spiffe://Mesh.local/a", False),
        ("SPIFFE://mesh.local/a", False),
        ("https://mesh.local/a", False),
        ("spiffe:/mesh.local/a", False),
        ("", False),
        ("spiffe://mesh.local/" + "a" * 2028, True),
        ("spiffe://mesh.local/" + "a" * 2029, False),
    ],
)
def test_spiffe_ids(uri: str, valid: bool) -> None:
    assert tls.id_valid(uri.encode(), DOMAIN) is valid


def test_trust_domains() -> None:
    allowed = set(b"abcdefghijklmnopqrstuvwxyz0123456789.-_")
    for byte, server in itertools.product(range(256), (b"a", b"")):
        assert tls.domain_valid(server + bytes([byte])) is (byte in allowed)
