"""Our own records against OpenSSL's, and against peers that break the rules of RFC 8446."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from kit.svid import A, B, meet, open_pair, reason, shake, svc_a, svc_b

from fastmesh import _tls as tls

HANDSHAKE, ALERT, DATA = 22, 21, 23
TICKET, KEY_UPDATE = 4, 24
# lifetime, age_add, nonce, ticket, no extensions
LATE = bytes([TICKET, 0, 0, 19, 0, 0, 14, 16, 1, 2, 3, 4, 1, 7, 0, 5]) + b"later" + bytes(2)
Ends = tuple[tls.Connection, tls.Connection]


@pytest.fixture
def own() -> Iterator[tls.Engine]:
    yield tls.Engine()
    assert not tls.errors_queued()


@pytest.fixture
def openssl() -> Iterator[tls.Engine]:
    yield tls.Engine(own_records=False)
    assert not tls.errors_queued()


def across(client_engine: tls.Engine, server_engine: tls.Engine, server: tls.Context | None = None) -> Ends:
    """A client and a server, each on its engine, after the handshake."""
    c = tls.Connection(client_engine, svc_a().client(), False, B.encode(), tls.Slot())
    s = tls.Connection(server_engine, server or svc_b().server(), True)
    done = shake(c, s)
    assert done[:2] == (1, 1)
    assert c.read(done[2])[0] == 0
    return c, s


@pytest.fixture(params=["client", "server"])
def mixed(request: pytest.FixtureRequest, own: tls.Engine, openssl: tls.Engine) -> Ends:
    """(the end with our records, the end with OpenSSL's), either of them the client."""
    if request.param == "client":
        c, s = across(own, openssl)
        return c, s
    c, s = across(openssl, own)
    return s, c


@pytest.fixture
def ends(own: tls.Engine) -> Ends:
    """Client and server, both with our records from the first byte on."""
    c, s = meet(own, svc_a().client(), svc_b().server())
    assert c.own_records
    assert s.own_records
    return c, s


def say(sender: tls.Connection, receiver: tls.Connection, data: bytes) -> bytes:
    """What arrives of data."""
    n, wire = sender.write(data)
    assert n == len(data), n
    got = b""
    n, plain, _ = receiver.read(wire)
    while n > 0:
        got += plain
        n, plain, _ = receiver.read()
    assert n == 0, n
    return got


def talk(a: tls.Connection, b: tls.Connection) -> None:
    for size in (1, 17, 200, 16383, 16384, 16385, 50_000):
        data = random.Random(size).randbytes(size)
        assert say(a, b, data) == data
        assert say(b, a, data) == data


# with OpenSSL at the other end ---------------------------------------------------------------------------


def test_openssl_understands_us(mixed: Ends) -> None:
    ours, theirs = mixed
    talk(theirs, ours)
    assert ours.own_records
    assert not theirs.own_records
    talk(ours, theirs)


@pytest.mark.parametrize(
    "suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
)
def test_every_suite(own: tls.Engine, openssl: tls.Engine, suite: str) -> None:
    server = svc_b().server(suites=suite.encode())
    for client_engine, server_engine in ((own, openssl), (openssl, own), (own, own)):
        c, s = across(client_engine, server_engine, server)
        talk(c, s)
        assert c.own_records is (client_engine is own)
        assert s.own_records is (server_engine is own)


def test_one_record_after_the_other(ends: Ends) -> None:
    assert all(tls.bench_records(*ends, size, 4, 3) for size in (1, 200, 16384))


def test_the_server_is_free_of_openssl_after_the_handshake(own: tls.Engine) -> None:
    _, s = meet(own, svc_a().client(), svc_b().server())
    assert s.own_records
    # one ticket has gone under the application's keys
    assert s.sequences == (1, 0)


def test_a_client_keeps_openssl_until_its_ticket_is_there(own: tls.Engine) -> None:
    slot = tls.Slot()
    client, server = open_pair(own, svc_a().client(), svc_b().server(), slot=slot)
    _, _, ticket = shake(client, server)
    assert not client.own_records
    wire = client.write(bytes(40_000))[1]
    client.read(ticket[:-1])
    assert not client.own_records
    client.read(ticket[-1:])
    assert slot
    assert client.own_records
    assert client.sequences == (3, 1)
    assert server.read(wire)[0] == 40_000
    talk(client, server)


def test_a_client_without_a_ticket_goes_on_with_the_first_data(own: tls.Engine) -> None:
    client, server = open_pair(own, svc_a().client(), svc_b().server(keys=None), slot=tls.Slot())
    assert shake(client, server)[:2] == (1, 1)
    wire = server.write(b"first" * 100)[1]
    # as long as OpenSSL holds a part of it, OpenSSL keeps it
    assert client.read(wire, 100)[1] == (b"first" * 100)[:100]
    assert not client.own_records
    assert client.read()[1] == (b"first" * 100)[100:]
    assert client.own_records
    talk(client, server)


def test_ticket_and_data_in_one_window(own: tls.Engine) -> None:
    client, server = open_pair(own, svc_a().client(), svc_b().server(), slot=tls.Slot())
    _, _, ticket = shake(client, server)
    wire = ticket + b"".join(server.write(bytes([i]) * 3000)[1] for i in range(5)) + server.close_notify()
    got = b""
    n, plain, _ = client.read(wire)
    while n > 0:
        got += plain
        n, plain, _ = client.read()
    assert n == tls.EOF
    assert got == b"".join(bytes([i]) * 3000 for i in range(5))


def test_the_moment_of_taking_over_loses_nothing_wherever_the_stream_is_cut(own: tls.Engine) -> None:
    """OpenSSL reads a record's head by itself: with only that inside, it says that nothing is pending."""
    size = len(shake(*open_pair(own, svc_a().client(), svc_b().server(), slot=tls.Slot()))[2])
    for cut in [*range(1, 8), *range(size - 2, size + 32)]:
        client, server = open_pair(own, svc_a().client(), svc_b().server(), slot=tls.Slot())
        wire = shake(client, server)[2] + server.write(b"first")[1] + server.write(b"second")[1]
        got = b"".join(client.read(piece)[1] for piece in (wire[:cut], wire[cut:]))
        while (more := client.read())[0] > 0:
            got += more[1]
        assert got == b"firstsecond", cut
        assert client.own_records
        talk(client, server)


@pytest.mark.parametrize("first", [1, 3, 4, 5, 20])
def test_no_taking_over_with_a_part_of_a_message_inside_openssl(own: tls.Engine, first: int) -> None:
    client, server = open_pair(own, svc_a().client(), svc_b().server(), slot=tls.Slot())
    ticket = shake(client, server)[2]
    head, tail = server.seal(HANDSHAKE, LATE[:first]), server.seal(HANDSHAKE, LATE[first:])
    assert client.read(ticket + head) == (0, b"", b"")
    assert not client.own_records
    assert client.read(tail + server.write(b"data")[1])[:2] == (4, b"data")
    assert client.own_records
    talk(client, server)


def test_padded_tickets_leave_the_connection_with_openssl_until_the_first_data(own: tls.Engine) -> None:
    client, server = open_pair(own, svc_a().client(), svc_b().server(), slot=tls.Slot())
    ticket = shake(client, server)[2]
    # what is padding and what a part of the next message cannot be told apart from outside
    assert client.read(ticket + server.seal(0, LATE + bytes([HANDSHAKE]) + bytes(30))) == (0, b"", b"")
    assert not client.own_records
    talk(server, client)
    assert client.own_records
    talk(client, server)


@pytest.mark.parametrize("ticket_first", [False, True])
def test_change_cipher_spec_after_the_handshake(own: tls.Engine, ticket_first: bool) -> None:
    """RFC 8446 5: refused behind Finished, before and after the records are ours."""
    client, server = open_pair(own, svc_a().client(), svc_b().server(), slot=tls.Slot())
    ticket = shake(client, server)[2]
    if ticket_first:
        assert client.read(ticket)[0] == 0
        assert client.own_records
    assert reason(client.read(b"\x14\x03\x03\x00\x01\x01")[0]) == "upstream_tls_handshake"


def test_no_number_is_used_twice_when_the_sink_was_full(own: tls.Engine) -> None:
    """A flight that OpenSSL had to hold back is counted once: its records are sealed already."""
    for client_room, server_room in ((10, 1 << 17), (1 << 17, 10), (10, 10), (400, 400)):
        c, s = open_pair(own, svc_a().client(), svc_b().server(), slot=tls.Slot())
        wire = {c: b"", s: b""}
        done = {c: 0, s: 0}
        rooms = {c: client_room, s: server_room}
        held_back = 0
        while not all(done.values()):
            for end, other in ((c, s), (s, c)):
                if done[end] == 1:
                    continue
                own.room(rooms[end])
                n, out = end.handshake(wire[end])
                wire[end] = b""
                while n == tls.SINK_FULL:
                    held_back += 1
                    wire[other] += out
                    own.room(1 << 17)
                    n, out = end.handshake()
                assert n in (0, 1)
                wire[other] += out
                done[end] = n
        own.room(1 << 17)
        assert held_back > 0
        assert c.read(wire[c])[0] == 0
        assert c.own_records
        assert s.own_records
        assert (c.sequences, s.sequences) == ((0, 1), (1, 0))
        talk(c, s)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("early", [0, 1, 3])
def test_what_was_written_before_is_counted(own: tls.Engine, resumed: bool, early: int) -> None:
    """A client writes, and even ends, while OpenSSL still waits for its ticket."""
    slot = tls.Slot()
    server_context = svc_b().server()
    client_context = svc_a().client()
    if resumed:
        meet(own, client_context, server_context, slot=slot)
    c, s = open_pair(own, client_context, server_context, slot=slot)
    ticket = shake(c, s)[2]
    assert c.resumed is resumed
    wire = b"".join(c.write(b"early")[1] for _ in range(early))
    wire += c.close_notify()
    assert c.read(ticket + s.write(b"answer")[1])[:2] == (6, b"answer")
    assert c.own_records
    assert c.sequences[0] == early + 1
    assert s.read(wire)[1] == b"early" * early
    assert s.read()[0] == tls.EOF
    assert say(s, c, b"more") == b"more"
    assert c.write(b"late")[0] < 0


def test_without_a_cipher_openssl_goes_on(own: tls.Engine) -> None:
    own.forget_ciphers()
    c, s = meet(own, svc_a().client(), svc_b().server(), slot=tls.Slot())
    assert not c.own_records
    assert not s.own_records
    talk(c, s)
    assert c.read(s.key_update(True))[:2] == (0, b"")
    talk(c, s)
    assert (c.peer, s.peer) == (B.encode(), A.encode())


def test_tls_1_2_stays_with_openssl(own: tls.Engine) -> None:
    c, s = open_pair(own, svc_a().client(old=True), svc_b().server(old=True), slot=tls.Slot())
    done = shake(c, s)
    assert done[:2] == (1, 1)
    assert c.read(done[2])[0] == 0
    talk(c, s)
    assert not c.own_records
    assert not s.own_records
    assert s.read(c.close_notify())[0] == tls.EOF


@pytest.mark.parametrize("request_answer", [False, True])
def test_key_update_by_openssl(mixed: Ends, request_answer: bool) -> None:
    ours, theirs = mixed
    talk(theirs, ours)
    for _ in range(5):
        assert say(ours, theirs, b"before") == b"before"
        wire = theirs.key_update(request_answer)
        assert ours.read(wire) == (0, b"", b"")
        assert say(theirs, ours, b"under new keys") == b"under new keys"
        assert say(ours, theirs, b"answered") == b"answered"
    talk(ours, theirs)


def test_key_update_while_openssl_still_reads(own: tls.Engine, openssl: tls.Engine) -> None:
    """Records are counted from the handshake on: with other keys the count is lost, so OpenSSL goes on."""
    c = tls.Connection(own, svc_a().client(), False, B.encode(), tls.Slot())
    s = tls.Connection(openssl, svc_b().server(), True)
    _, _, ticket = shake(c, s)
    wire = s.key_update(True)
    c.read(ticket[:-1])
    n, plain, out = c.read(ticket[-1:] + wire + s.write(b"data")[1])
    assert (n, plain) == (4, b"data")
    s.read(out)
    talk(c, s)
    talk(s, c)


def test_our_keys_are_updated_in_time(ends: Ends) -> None:
    """RFC 8446 5.5: no more than 2^24.5 records under one AES-GCM key."""
    client, server = ends
    server.set_sequences((1 << 24) - 2, 0)
    client.set_sequences(0, (1 << 24) - 2)
    for i in range(4):
        assert say(server, client, b"x" * i * 10) == b"x" * i * 10
    assert server.sequences[0] < 10
    assert client.sequences[1] == server.sequences[0]
    talk(client, server)


def test_sequence_numbers_of_eight_bytes(mixed: Ends) -> None:
    ours, theirs = mixed
    talk(theirs, ours)
    for _ in range(300):  # past one byte
        assert say(ours, theirs, b"x") == b"x"
        assert say(theirs, ours, b"x") == b"x"


# padding and other things that are allowed ----------------------------------------------------------------


def test_padding_is_taken_off(ends: Ends) -> None:
    client, server = ends
    assert server.read(client.seal(0, b"padded" + bytes([DATA]) + bytes(5000)))[:2] == (6, b"padded")
    assert server.read(client.seal(0, b"\0\0" + bytes([DATA]) + bytes(10)))[:2] == (2, b"\0\0")


def test_padding_fills_a_record_and_no_more(ends: Ends) -> None:
    """RFC 8446 5.4: content, its type and padding are 2^14 + 1 bytes at most."""
    client, server = ends
    full = b"padded" + bytes([DATA]) + bytes(16384 - 7)  # and one that seal adds
    assert server.read(client.seal(0, full))[:2] == (6, b"padded")
    n, _, alert = server.read(client.seal(0, full + bytes(1)))
    assert reason(n) == "downstream_reset"
    assert client.read(alert)[0] < 0


def test_nothing_is_written_behind_close_notify(ends: Ends) -> None:
    """RFC 8446 6.1; what the peer still sends is read."""
    client, server = ends
    end = client.close_notify()
    before = client.sequences
    n, wire = client.write(b"late")
    assert n < 0
    assert (wire, client.sequences) == (b"", before)
    assert server.read(end)[0] == tls.EOF


def test_empty_records_are_nothing_but_not_for_ever(ends: Ends) -> None:
    client, server = ends
    for _ in range(10):
        assert server.read(client.seal(DATA, b""))[0] == 0
    assert say(client, server, b"data") == b"data"
    wire = b"".join(client.seal(DATA, b"") for _ in range(32))
    assert server.read(wire)[0] == 0
    assert reason(server.read(client.seal(DATA, b""))[0]) == "downstream_reset"


@pytest.mark.parametrize("piece", [1, 3, 4, 5, 24, 25, 1000])
def test_late_tickets_are_skipped_however_cut(ends: Ends, piece: int) -> None:
    client, server = ends
    ticket = bytes([TICKET, 0, 0, 20]) + bytes(20) if piece < 10 else bytes([TICKET, 0, 4, 0]) + bytes(1024)
    stream = ticket * (1 if piece < 10 else 2)
    wire = b"".join(server.seal(HANDSHAKE, stream[i : i + piece]) for i in range(0, len(stream), piece))
    if len(stream) / piece > 32:  # that is too much without data
        assert reason(client.read(wire)[0]) == "upstream_tls_handshake"
    else:
        assert client.read(wire + server.write(b"data")[1])[:2] == (4, b"data")


def test_a_key_update_in_pieces(ends: Ends) -> None:
    client, server = ends
    message = bytes([KEY_UPDATE, 0, 0, 1, 0])
    wire = b"".join(client.seal(HANDSHAKE, message[i : i + 1]) for i in range(5))
    assert server.read(wire)[0] == 0
    # the sender has not changed its keys: what it sends is not understood any more
    assert reason(server.read(client.write(b"data")[1])[0]) == "downstream_reset"


def test_user_canceled_comes_before_the_end(ends: Ends) -> None:
    client, server = ends
    assert server.read(client.seal(ALERT, bytes([1, 90])))[0] == 0
    assert server.read(client.seal(ALERT, bytes([1, 0])))[0] == tls.EOF


def test_what_follows_close_notify_is_not_read(ends: Ends) -> None:
    client, server = ends
    wire = client.write(b"data")[1] + client.close_notify() + client.seal(DATA, b"more")
    assert server.read(wire)[:2] == (4, b"data")
    assert [server.read()[0] for _ in range(2)] == [tls.EOF] * 2


# and what is not ------------------------------------------------------------------------------------------

UPDATE = bytes([KEY_UPDATE, 0, 0, 1, 0])
FORBIDDEN = {
    "a record that is only padding": (0, b""),
    "change_cipher_spec": (20, b"\1"),
    "heartbeat": (24, b"\1\0\0"),
    "an unknown type": (99, b"x"),
    "more than a full record": (DATA, bytes(16385)),
    "an alert of one byte": (ALERT, b"\1"),
    "an alert of three bytes": (ALERT, b"\1\0\0"),
    "two alerts in one record": (ALERT, b"\1\x5a\1\0"),
    "an empty handshake record": (HANDSHAKE, b""),
    "a hello": (HANDSHAKE, b"\1\0\0\2\3\3"),
    "a certificate request": (HANDSHAKE, b"\x0d\0\0\3\0\0\0"),
    "finished again": (HANDSHAKE, b"\x14\0\0\x20" + bytes(32)),
    "a key update that is too long": (HANDSHAKE, b"\x18\0\0\2\0\0"),
    "a key update that is too short": (HANDSHAKE, b"\x18\0\0\0"),
    "a key update of an unknown kind": (HANDSHAKE, b"\x18\0\0\1\2"),
    "something behind a key update": (HANDSHAKE, UPDATE + UPDATE),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_breaches_break_the_connection(ends: Ends, case: str) -> None:
    kind, content = FORBIDDEN[case]
    other = meet(tls.Engine(), svc_a().client(), svc_b().server())
    for sender, receiver, why, echo in (
        (ends[0], ends[1], "downstream_reset", "upstream_tls_handshake"),
        (other[1], other[0], "upstream_tls_handshake", "downstream_reset"),
    ):
        n, plain, alert = receiver.read(sender.seal(kind, content))
        assert (reason(n), plain) == (why, b"")
        assert reason(receiver.read()[0]) == why
        assert reason(sender.read(alert)[0]) == echo


def test_a_ticket_to_a_server_breaks_the_connection(ends: Ends) -> None:
    client, server = ends
    assert reason(server.read(client.seal(HANDSHAKE, bytes([TICKET, 0, 0, 1, 0])))[0]) == "downstream_reset"


@pytest.mark.parametrize(("kind", "content"), [(DATA, b"data"), (ALERT, b"\1\0")])
def test_nothing_comes_between_the_parts_of_a_message(ends: Ends, kind: int, content: bytes) -> None:
    client, server = ends
    for begin in (UPDATE[:1], UPDATE[:4]):
        c, s = meet(tls.Engine(), svc_a().client(), svc_b().server())
        assert reason(s.read(c.seal(HANDSHAKE, begin) + c.seal(kind, content))[0]) == "downstream_reset"
    assert client.read(server.seal(HANDSHAKE, bytes([TICKET, 0, 1, 0]) + bytes(100)))[0] == 0
    assert reason(client.read(server.seal(kind, content))[0]) == "upstream_tls_handshake"


def test_key_updates_without_end_are_refused(openssl: tls.Engine, own: tls.Engine) -> None:
    _, server = (ends := across(openssl, own))
    wire = b"".join(ends[0].key_update(True) for _ in range(33))
    assert reason(server.read(wire)[0]) == "downstream_reset"


@pytest.mark.parametrize("request_answer", [False, True])
def test_who_only_receives_may_change_keys_for_ever(
    openssl: tls.Engine, own: tls.Engine, request_answer: bool
) -> None:
    """A long download: what comes back is nothing but key updates, one for so many bytes."""
    client, server = across(openssl, own)
    for _ in range(100):
        assert server.read(client.key_update(request_answer)) == (0, b"", b"")
        assert say(server, client, b"more of it") == b"more of it"


@pytest.mark.parametrize(
    "head",
    [
        b"\x17\x03\x03\x00\x00",
        b"\x17\x03\x03\x00\x10",
        b"\x17\x03\x03\x41\x01",
        b"\x17\x03\x03\xff\xff",
        b"\x14\x03\x03\x00\x01",
        b"\x15\x03\x03\x00\x02",
        b"\x16\x03\x03\x00\x20",
        b"GET /",
    ],
)
def test_heads_that_cannot_be(ends: Ends, head: bytes) -> None:
    """Refused at the head, without waiting for a body."""
    assert reason(ends[1].read(head)[0]) == "downstream_reset"


def test_the_head_is_protected_too(ends: Ends) -> None:
    client, server = ends
    wire = client.write(b"data")[1]
    assert reason(server.read(b"\x17\x03\x01" + wire[3:])[0]) == "downstream_reset"


def test_fatal_alerts_name_who_refused(own: tls.Engine) -> None:
    certificate = [42, 43, 44, 45, 46, 48, 49, 116, 40]
    for alert in certificate:
        c, s = meet(own, svc_a().client(), svc_b().server())
        assert reason(c.read(s.seal(ALERT, bytes([2, alert])))[0]) == "upstream_tls_refused"
    for alert in (10, 20, 47, 80):
        c, s = meet(own, svc_a().client(), svc_b().server())
        assert reason(c.read(s.seal(ALERT, bytes([2, alert])))[0]) == "upstream_tls_handshake"
        c, s = meet(own, svc_a().client(), svc_b().server())
        say(s, c, b"data")
        assert reason(c.read(s.seal(ALERT, bytes([2, alert])))[0]) == "upstream_reset"


@pytest.mark.parametrize("seed", range(20))
def test_noise(own: tls.Engine, seed: int) -> None:
    """Valid records with bytes changed, dropped and repeated: nothing but what was sent is ever delivered."""
    dice = random.Random(seed)
    c, s = meet(own, svc_a().client(), svc_b().server())
    sent = dice.randbytes(60_000)
    wire = bytearray()
    for i in range(0, len(sent), 3000):
        wire += c.write(sent[i : i + 3000])[1]
    position = dice.randrange(len(wire))
    match dice.randrange(3):
        case 0:
            wire[position] ^= 1 << dice.randrange(8)
        case 1:
            del wire[position]
        case 2:
            wire[position:position] = wire[position : position + dice.randrange(1, 4000)]
    got = b""
    n = 0
    while wire and n >= 0:
        k = dice.randrange(1, 5000)
        n, plain, _ = s.read(bytes(wire[:k]))
        del wire[:k]
        got += plain
    assert sent.startswith(got)
    assert len(got) <= position + 3000
