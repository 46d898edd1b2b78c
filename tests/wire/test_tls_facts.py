"""What is kept of a peer, what its sessions say of it, and that a ticket has no certificate in it."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.x509.oid import ExtendedKeyUsageOID
from kit.svid import (
    A,
    Authority,
    B,
    Identity,
    authority,
    certificate,
    meet,
    minutes,
    open_pair,
    reason,
    shake,
    svc_a,
    svc_b,
)

from fastmesh import _tls as tls

KEYS: Final = bytes(range(100, 180))
NAME, MAC, CIPHER = KEYS[:16], KEYS[16:48], KEYS[48:]  # of tickets
PEER, CONTEXT, TICKET, NOTE = 0xA3, 0xA4, 0xAA, 0xB2  # elements of a written session


@pytest.fixture(params=[True, False], ids=["own", "openssl"])
def engine(request: pytest.FixtureRequest) -> Iterator[tls.Engine]:
    """With our own records, and with OpenSSL's all the way."""
    yield tls.Engine(own_records=request.param)
    assert not tls.errors_queued()


def leaf_of(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.chain)


def der_of(identity: Identity) -> bytes:
    return leaf_of(identity).public_bytes(serialization.Encoding.DER)


def seconds(moment: datetime.datetime) -> int:
    return int(moment.timestamp())


# the bytes of a session


def noted(  # noqa: PLR0917
    id: bytes = A.encode(),
    serial: bytes = b"\x07",
    start: int = 5,
    end: int = 9,
    version: int = 1,
    serial_len: int | None = None,
    id_len: int | None = None,
) -> bytes:
    lengths = (
        len(serial) if serial_len is None else serial_len,
        len(id) if id_len is None else id_len,
    )
    return struct.pack("=BBH20s32sqq", version, *lengths, serial, b"h" * 32, start, end) + id


GOOD: Final = {
    "usual": noted(),
    "no id": noted(id=b""),
    "no serial": noted(serial=b""),
    "the longest": noted(id=b"x" * 2048, serial=b"\x01" * 20),
}
BAD: Final = {
    "nothing": b"",
    "a time, as older releases noted it": struct.pack("=q", 9),
    "another version": noted(version=2),
    "version 0": noted(version=0),
    "no head": noted()[:71],
    "a cut id": noted()[:-1],
    "no id where one is promised": noted()[:72],
    "a byte too many": noted() + b"\0",
    "an id longer than it says": noted(id_len=3),
    "an id shorter than it says": noted(id_len=len(A) + 1),
    "an id longer than there are": noted(id=b"x" * 2049),
    "the greatest length": noted(id_len=0xFFFF),
    "a serial longer than there are": noted(serial_len=21),
    "the greatest serial": noted(serial_len=0xFF),
    "a serial with zeros in front": noted(serial=b"\0\x07"),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_facts_that_can_be_read(data: bytes) -> None:
    _, serial_len, id_len, serial, digest, start, end = struct.unpack("=BBH20s32sqq", data[:72])
    assert tls.read_facts(data) == (data[72:], serial[:serial_len], digest, start, end)
    assert len(data) == 72 + id_len


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_facts_that_are_none(data: bytes) -> None:
    assert tls.read_facts(data) is None


def test_every_cut_is_seen() -> None:
    whole = noted()
    assert [n for n in range(len(whole) + 1) if tls.read_facts(whole[:n])] == [len(whole)]


# the facts of a peer


def test_facts_are_those_of_the_certificate(engine: tls.Engine) -> None:
    slot, server = tls.Slot(), svc_b().server(keys=KEYS)
    first = meet(engine, svc_a().client(), server, slot=slot)
    elsewhere = meet(engine, svc_a().client(), svc_b().server(keys=KEYS), slot=slot)
    again = meet(engine, svc_a().client(), server, slot=slot)
    assert [c.resumed for c, _ in (first, elsewhere, again)] == [0, 1, 1]
    for seen, identity, uri in (
        *((s, svc_a(), A) for _, s in (first, elsewhere, again)),
        *((c, svc_b(), B) for c, _ in (first, elsewhere, again)),
    ):
        leaf = leaf_of(identity)
        _, issuer = x509.load_pem_x509_certificates(identity.chain)
        chain = (leaf, issuer, x509.load_pem_x509_certificate(identity.bundle))
        assert seen.facts == (
            uri.encode(),
            identity.serial,
            leaf.fingerprint(hashes.SHA256()),
            max(seconds(one.not_valid_before_utc) for one in chain),
            min(seconds(one.not_valid_after_utc) for one in chain),
        )


@pytest.mark.parametrize("which", ["leaf", "issuer", "root"])
def test_facts_end_with_the_first_certificate_of_the_chain(engine: tls.Engine, which: str) -> None:
    home = Authority()
    end = datetime.timedelta(minutes=7)
    ends = {name: end if name == which else minutes(60) for name in ("leaf", "issuer", "root")}
    home.root = certificate("root", home.root_key, ("root", home.root_key), ca=True, end=ends["root"])
    home.issuer = certificate("issuer", home.key, ("root", home.root_key), ca=True, end=ends["issuer"])
    home.bundle = home.root.public_bytes(serialization.Encoding.PEM)
    client = home.leaf(A, end=ends["leaf"])
    slot = tls.Slot()
    latest = datetime.datetime.now(datetime.UTC) + end
    for _ in range(2):
        _, s = meet(engine, client.client(), home.leaf(B).server(keys=KEYS), slot=slot)
        assert s.facts is not None
        assert 0 <= seconds(latest) - s.facts[4] < 60
        assert slot.lifetime() <= end.total_seconds()
    assert s.resumed


def test_nobody_is_known_before_the_end(engine: tls.Engine) -> None:
    """Not while the key is yet to be proved, and not when that failed."""
    c, s = open_pair(engine, svc_a().client(), svc_b().server())
    assert c.facts is s.facts is None
    _, flight = s.handshake(c.handshake()[1])
    assert s.facts is None
    _, answer = c.handshake(flight)
    assert c.facts is not None
    broken = bytearray(answer)
    broken[-1] ^= 1
    assert s.handshake(bytes(broken))[0] < 0
    assert s.facts is None
    c.free()
    assert c.facts is None


def test_one_leaf_verified_with_two_chains(engine: tls.Engine) -> None:
    """A session ends with the chain that it began with, whatever was verified since."""
    home = Authority()
    brief = certificate("issuer", home.key, ("root", home.root_key), ca=True, end=minutes(3))
    leaf = home.leaf(A)
    short = Identity(
        leaf.chain.replace(
            home.issuer.public_bytes(serialization.Encoding.PEM),
            brief.public_bytes(serialization.Encoding.PEM),
        ),
        leaf.key,
        leaf.bundle,
    )
    slot, long = tls.Slot(), tls.Slot()
    _, first = meet(engine, short.client(), home.leaf(B).server(keys=KEYS), slot=slot)
    other = home.leaf(B).server(keys=KEYS)
    _, second = meet(engine, leaf.client(), other, slot=long)
    _, third = meet(engine, short.client(), other, slot=slot)
    assert third.resumed
    assert first.facts == third.facts
    assert second.facts is not None
    assert third.facts is not None
    assert second.facts[:4] == third.facts[:4]
    assert second.facts[4] > third.facts[4]


# DER


def der(tag: int, content: bytes) -> bytes:
    n = len(content)
    if n < 0x80:
        return bytes([tag, n]) + content
    size = n.to_bytes((n.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(size)]) + size + content


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """Of a SEQUENCE that nobody has damaged."""

    def one(at: int) -> tuple[int, int, int]:
        n = data[at + 1]
        if n < 0x80:
            return data[at], at + 2, n
        k = n & 0x7F
        return data[at], at + 2 + k, int.from_bytes(data[at + 2 : at + 2 + k])

    _, at, _ = one(0)
    found = []
    while at < len(data):
        tag, begin, n = one(at)
        found.append((tag, data[begin : begin + n]))
        at = begin + n
    return found


def sequence(*parts: bytes) -> bytes:
    return der(0x30, b"".join(parts))


NUMBER: Final = der(2, b"\x01")
CUTS: Final = [
    (sequence(NUMBER, der(PEER, b"x" * size), *after), sequence(NUMBER, *after))
    for size in (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000)
    for after in ((), (der(0xA4, b"y" * 10),), (der(0xA4, b"y" * 200),), (der(0xA4, b"y" * 70_000),))
]


@pytest.mark.parametrize(("whole", "left"), CUTS, ids=[f"{len(a)}-{len(b)}" for a, b in CUTS])
def test_an_element_is_cut_out(whole: bytes, left: bytes) -> None:
    assert tls.cut(whole, PEER) == left


def test_nothing_else_need_be_there() -> None:
    assert tls.cut(sequence(der(PEER, b"x")), PEER) == sequence()


NOT_CUT: Final = {
    "empty": b"",
    "a byte": b"\x30",
    "no element": sequence(),
    "not that element": sequence(NUMBER, der(0xA4, b"x")),
    "it is twice there": sequence(der(PEER, b"x"), NUMBER, der(PEER, b"x")),
    "no sequence": der(0x31, der(PEER, b"x")),
    "a byte too many": sequence(der(PEER, b"x")) + b"\0",
    "a byte too few": sequence(der(PEER, b"x"))[:-1],
    "an element that is longer than all": sequence(NUMBER, b"\xa3\x05x"),
    "a length without bytes": sequence(NUMBER, b"\xa3\x82\x01"),
    "a tag alone": sequence(der(PEER, b"x"), b"\x02"),
    "indefinite": sequence(b"\xa3\x80x\0\0"),
    "a length of 2^32": sequence(b"\xa3\x85\x01\0\0\0\0x"),
    "not the shortest length": sequence(b"\xa3\x81\x01x"),
    "zeros before the length": sequence(b"\xa3\x82\x00\x80" + b"x" * 128),
    "a long tag": sequence(der(PEER, b"x"), b"\x1f\x81\x01\x00"),
}


@pytest.mark.parametrize("data", NOT_CUT.values(), ids=NOT_CUT)
def test_what_is_unexpected_stays(data: bytes) -> None:
    assert tls.cut(data, PEER) is None


def test_noise_is_never_cut_wrongly() -> None:
    """Every byte of a session changed: what is cut is a sequence of the other elements."""
    whole = sequence(NUMBER, der(4, b"key"), der(PEER, der(0x30, b"certificate")), der(0xA4, b"id"))
    for at in range(len(whole)):
        for value in range(256):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            left = tls.cut(damaged, PEER)
            if left is not None:
                assert elements(left) == [e for e in elements(damaged) if e[0] != PEER]


# tickets


def opened(ticket: bytes) -> bytes:
    """The session inside a ticket (RFC 5077 4: name, IV, ciphertext, MAC)."""
    name, iv, sealed, mac = ticket[:16], ticket[16:32], ticket[32:-32], ticket[-32:]
    assert name == NAME
    assert mac == hmac.digest(MAC, ticket[:-32], "sha256")
    open_ = Cipher(algorithms.AES(CIPHER), modes.CBC(iv)).decryptor()
    unpad = padding.PKCS7(128).unpadder()
    return unpad.update(open_.update(sealed) + open_.finalize()) + unpad.finalize()


def sealed(session: bytes) -> bytes:
    iv = os.urandom(16)
    pad = padding.PKCS7(128).padder()
    seal = Cipher(algorithms.AES(CIPHER), modes.CBC(iv)).encryptor()
    text = NAME + iv + seal.update(pad.update(session) + pad.finalize()) + seal.finalize()
    return text + hmac.digest(MAC, text, "sha256")


def ticket_of(slot: tls.Slot) -> bytes:
    octets = dict(elements(slot.der))[TICKET]
    return elements(der(0x30, octets))[0][1]


def with_ticket(slot: tls.Slot, ticket: bytes) -> tls.Slot:
    """The same session with another ticket."""
    other = tls.Slot()
    parts = [(tag, der(4, ticket) if tag == TICKET else content) for tag, content in elements(slot.der)]
    other.der = sequence(*(der(tag, content) for tag, content in parts))
    return other


def changed(slot: tls.Slot, change: dict[int, bytes | None]) -> tls.Slot:
    """The same session with a ticket of ours in which these elements are others, or (None) missing."""
    found = elements(opened(ticket_of(slot)))
    fixed = [der(tag, content) for tag, content in found if tag < 0x80]
    optional = {tag: content for tag, content in found if tag >= 0x80} | change
    kept = [der(tag, content) for tag, content in sorted(optional.items()) if content is not None]
    return with_ticket(slot, sealed(sequence(*fixed, *kept)))


@pytest.fixture
def slot(engine: tls.Engine) -> tls.Slot:
    """A session of svc-a, fresh from svc-b."""
    slot = tls.Slot()
    meet(engine, svc_a().client(), svc_b().server(keys=KEYS), slot=slot)
    return slot


def resumes(engine: tls.Engine, slot: tls.Slot) -> bool:
    """And whoever is there is who he is."""
    c, s = meet(engine, svc_a().client(), svc_b().server(keys=KEYS), slot=slot)
    assert c.resumed == s.resumed
    assert (s.facts[:3], c.peer) == (
        (A.encode(), svc_a().serial, leaf_of(svc_a()).fingerprint(hashes.SHA256())),
        B.encode(),
    )
    assert s.read(c.write(b"ping")[1])[1] == b"ping"
    return bool(s.resumed)


def test_a_ticket_says_who_and_has_no_certificate(engine: tls.Engine) -> None:
    slot = tls.Slot()
    _, s = meet(engine, svc_a().client(), svc_b().server(keys=KEYS), slot=slot)
    session = dict(elements(opened(ticket_of(slot))))
    assert PEER not in session
    assert elements(der(0x30, session[NOTE])) == [(4, s.noted)]
    assert der_of(svc_a()) not in opened(ticket_of(slot))


def test_the_size_of_a_ticket(engine: tls.Engine) -> None:
    """It grows with the SPIFFE ID and with nothing else of the certificate."""

    def size(identity: Identity) -> int:
        slot = tls.Slot()
        meet(engine, identity.client(), svc_b().server(keys=KEYS), slot=slot)
        return len(ticket_of(slot))

    usual = size(svc_a())
    assert usual < len(der_of(svc_a()))
    assert (
        size(authority().leaf(A, usage=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)))
        == usual
    )
    longer = size(authority().leaf(A + "/" + "x" * 159))
    assert abs(longer - usual - 160) <= 16  # whole blocks


def test_a_ticket_that_is_made_anew_by_us_is_good(engine: tls.Engine, slot: tls.Slot) -> None:
    """So that what the next tests show is not the fault of how they do it."""
    assert resumes(engine, with_ticket(slot, sealed(opened(ticket_of(slot)))))
    assert resumes(engine, changed(slot, {}))


def test_a_ticket_with_a_certificate_is_as_good(engine: tls.Engine, slot: tls.Slot) -> None:
    """Where OpenSSL lets it not be taken out, facts are what counts too."""
    assert resumes(engine, changed(slot, {PEER: der_of(svc_a())}))


def test_a_certificate_alone_is_worth_nothing(engine: tls.Engine, slot: tls.Slot) -> None:
    assert not resumes(engine, changed(slot, {PEER: der_of(svc_a()), NOTE: None}))


def test_a_ticket_without_facts_is_not_used(engine: tls.Engine, slot: tls.Slot) -> None:
    assert not resumes(engine, changed(slot, {NOTE: None}))


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_ticket_with_bad_facts_is_not_used(engine: tls.Engine, slot: tls.Slot, data: bytes) -> None:
    assert not resumes(engine, changed(slot, {NOTE: der(4, data)}))


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (1 << 40, 1 << 41), (0, -1), (1 << 62, 0)],
    ids=["over", "to come", "never", "no"],
)
def test_a_chain_out_of_time_is_not_resumed(engine: tls.Engine, slot: tls.Slot, start: int, end: int) -> None:
    assert not resumes(engine, changed(slot, {NOTE: der(4, noted(start=start, end=end))}))


def test_a_ticket_of_another_trust_is_not_used(engine: tls.Engine, slot: tls.Slot) -> None:
    """The session id context inside, whatever the client thinks."""
    assert not resumes(engine, changed(slot, {CONTEXT: der(4, hashlib.sha256(b"another").digest())}))


def test_another_s_ticket_speaks_of_its_peer(engine: tls.Engine, slot: tls.Slot) -> None:
    """One peer's ticket with the session of another: without its secret it opens nothing."""
    other = tls.Slot()
    c_id = authority().leaf("spiffe://mesh.local/svc-c")
    meet(engine, c_id.client(), svc_b().server(keys=KEYS), slot=other)
    c, s = open_pair(
        engine, c_id.client(), svc_b().server(keys=KEYS), slot=with_ticket(other, ticket_of(slot))
    )
    _, result, _ = shake(c, s)
    assert reason(result) == "tls_handshake"
    assert s.facts is None


def test_a_client_s_session_without_facts_is_not_offered(engine: tls.Engine, slot: tls.Slot) -> None:
    bare = tls.Slot()
    bare.der = sequence(*(der(tag, content) for tag, content in elements(slot.der) if tag != NOTE))
    assert not resumes(engine, bare)
    assert resumes(engine, bare), "it has them now"


@pytest.mark.parametrize("count", [1, 3])
def test_a_renewed_ticket_says_the_same(engine: tls.Engine, count: int) -> None:
    keys, slot = tls.Tickets(), tls.Slot()
    server = svc_b().server(keys=keys)
    _, first = meet(engine, svc_a().client(), server, slot=slot)
    for _ in range(count):
        keys.rotate()
        before = ticket_of(slot)
        _, s = meet(engine, svc_a().client(), svc_b().server(keys=keys), slot=slot)
        assert s.resumed
        assert s.facts == first.facts
        assert ticket_of(slot) != before
        assert len(ticket_of(slot)) == len(before)
