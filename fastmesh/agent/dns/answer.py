"""What is said to a query: bytes in, bytes out, without I/O.

The wire format is dnspython's: kept up since 2003, typed, pure Python without dependencies, strict with what
it reads, and it knows EDNS, truncation and compression, which dnslib leaves to its users in part, without
types. It is 4 MiB of an agent, so nobody imports this module whose configuration has no `dns`.

For names of the mesh the answer is made here. All else is passed on as it came and so is what comes back
(RFC 5625): nothing of it is understood but the question, the flags and the client's size.

Rules: a response is never answered, so that two servers cannot keep each other busy. What is no query gets
FORMERR at most, in 12 bytes. No answer by UDP is larger than `MAX_UDP` or than the client's buffer.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from fastmesh.agent.dns.names import Entry, Names
from fastmesh.agent.dns.words import ANSWERED, MALFORMED, NO_DATA, REFUSED, UNKNOWN

# What crosses every network in one piece, hence neither lost in fragments nor useful to an attacker.
MAX_UDP: Final = 1232
MIN_UDP: Final = 512
MAX_TCP: Final = 65535
HEADER: Final = struct.Struct("!HHHHHH")

_QR, _TC, _RA, _RD, _CD = 0x8000, 0x0200, 0x0080, 0x0100, 0x0010
_OPCODE: Final = 0x7800
# EDNS and a signature; there is nothing else that a query has besides its question.
_MAX_ADDITIONAL: Final = 2
_IN: Final = dns.rdataclass.IN
_A, _AAAA, _PTR, _SOA, _ANY = (
    dns.rdatatype.A,
    dns.rdatatype.AAAA,
    dns.rdatatype.PTR,
    dns.rdatatype.SOA,
    dns.rdatatype.ANY,
)
# Types that are no data, but ask for whole zones or speak between servers.
_META: Final = {0, dns.rdatatype.OPT, *range(249, 255)}


class Reply(NamedTuple):
    """An answer that is ready, and the word for it. None: there is none."""

    wire: bytes | None
    outcome: str


class Forward(NamedTuple):
    """A query that somebody else has to answer. `question` is its section as bytes, `size` what the client
    takes, `edns` whether it speaks EDNS."""

    query: bytes
    question: bytes
    size: int
    edns: bool


def decide(wire: bytes, names: Names, most: int) -> Reply | Forward:
    """What becomes of a message that has arrived; `most` is the transport's size."""
    if len(wire) < HEADER.size:
        return Reply(None, MALFORMED)
    _, flags, questions, answered, authority, additional = HEADER.unpack_from(wire)
    if flags & _QR:
        return Reply(None, MALFORMED)
    if flags & _OPCODE:
        return Reply(_bare(wire, dns.rcode.NOTIMP), REFUSED)
    # Before anything is parsed: long names that many records point to are a second's work in 64 KiB.
    if questions != 1 or answered or authority or additional > _MAX_ADDITIONAL:
        return Reply(_bare(wire, dns.rcode.FORMERR), MALFORMED)
    try:
        query = dns.message.from_wire(wire, keyring=False)
        asked = query.question[0]
        question = (asked.name.to_wire() or b"") + struct.pack("!HH", asked.rdtype, asked.rdclass)
    except Exception:  # whatever a parser may raise about what anybody may send
        return Reply(_bare(wire, dns.rcode.FORMERR), MALFORMED)
    if not wire.startswith(question, HEADER.size):  # a name with pointers in it: nobody writes that
        return Reply(_bare(wire, dns.rcode.FORMERR), MALFORMED)
    size = most
    if most != MAX_TCP:
        size = max(MIN_UDP, min(int(query.payload), most)) if query.edns >= 0 else MIN_UDP
    if query.edns > 0:
        return Reply(_render(_response(query, dns.rcode.BADVERS), size), REFUSED)
    if asked.rdclass != _IN or asked.rdtype in _META:
        return Reply(_render(_response(query, dns.rcode.REFUSED), size), REFUSED)
    entry = names.look_up(tuple(label.lower() for label in asked.name.labels[:-1]))
    if entry is None:
        return Forward(wire, question, size, query.edns >= 0)
    response, outcome = _about(query, entry, names)
    return Reply(_render(response, size), outcome)


def _about(query: dns.message.Message, entry: Entry, names: Names) -> tuple[dns.message.Message, str]:
    """The response about a name of the mesh."""
    asked = query.question[0]
    response = _response(query, dns.rcode.NOERROR)
    response.flags |= dns.flags.AA
    zone = dns.name.Name(asked.name.labels[-entry.depth - 1 :])
    at_apex = len(asked.name.labels) == len(zone.labels)
    kind, texts = _records(asked.rdtype, entry)
    if asked.rdtype == _SOA and at_apex:
        response.answer.append(_soa(asked.name, names))
        return response, ANSWERED
    if texts:
        # With the question's own spelling: clients that mix the case look for it.
        response.answer.append(dns.rrset.from_text_list(asked.name, names.ttl, _IN, kind, texts))
        return response, ANSWERED
    response.authority.append(_soa(zone, names))
    if entry.exists:
        return response, NO_DATA
    response.set_rcode(dns.rcode.NXDOMAIN)
    return response, UNKNOWN


def _records(kind: dns.rdatatype.RdataType, entry: Entry) -> tuple[dns.rdatatype.RdataType, list[str]]:
    """What there is of a type, as text; of `ANY` one type that there is (RFC 8482, 4.1)."""
    found = {
        _A: [str(one) for one in entry.addresses if one.version == 4],
        _AAAA: [str(one) for one in entry.addresses if one.version == 6],
        _PTR: [f"{entry.target}."] if entry.target else [],
    }
    if kind == _ANY:
        return next(((one, texts) for one, texts in found.items() if texts), (kind, []))
    return kind, found.get(kind, [])


def _soa(zone: dns.name.Name, names: Names) -> dns.rrset.RRset:
    """For how long a resolver may remember that there is nothing (RFC 2308)."""
    domain = b".".join(names.domain).decode()
    text = f"ns.{domain}. hostmaster.{domain}. 1 3600 600 86400 {names.ttl}"
    return dns.rrset.from_text_list(zone, names.ttl, _IN, _SOA, [text])


def _response(query: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
    response = dns.message.make_response(query, recursion_available=True, our_payload=MAX_UDP, pad=0)
    response.flags |= query.flags & dns.flags.CD
    if query.edns >= 0 and query.ednsflags & dns.flags.DO:  # RFC 3225, 3
        response.ednsflags |= dns.flags.DO
    response.set_rcode(rcode)
    return response


def _render(response: dns.message.Message, size: int) -> bytes:
    return response.to_wire(max_size=size, prefer_truncation=True)


def _bare(wire: bytes, rcode: int) -> bytes:
    """A header alone: what else there is may not be what it seems."""
    number, flags, *_ = HEADER.unpack_from(wire)
    return HEADER.pack(number, _QR | _RA | flags & (_OPCODE | _RD | _CD) | rcode, 0, 0, 0, 0)


# what is passed on


def asked_as(forward: Forward, number: int) -> bytes:
    """The query under another id."""
    return struct.pack("!H", number) + forward.query[2:]


def answers(forward: Forward, number: int, response: bytes) -> bool:
    """Whether a response is one to this query under this id. What is behind its question is not looked at."""
    if len(response) < HEADER.size:
        return False
    got, flags, questions, *_ = HEADER.unpack_from(response)
    if got != number or not flags & _QR or flags & _OPCODE:
        return False
    if not questions:  # an error that a server makes without having read the question
        return bool(flags & 0xF) and len(response) == HEADER.size
    end = HEADER.size + len(forward.question)
    found = response[HEADER.size : end]
    # In case-insensitive comparison the type and the class at its end are no letters.
    return (
        questions == 1
        and found[:-4].lower() == forward.question[:-4].lower()
        and found[-4:] == forward.question[-4:]
    )


def is_truncated(response: bytes) -> bool:
    return bool(HEADER.unpack_from(response)[1] & _TC)


def rcode_of(response: bytes) -> int:
    return int(HEADER.unpack_from(response)[1] & 0xF)


def passed_on(forward: Forward, response: bytes) -> bytes:
    """A name server's response for the client: under its id, and cut if it is too large for it."""
    if len(response) <= forward.size:
        return forward.query[:2] + response[2:]
    flags = HEADER.unpack_from(response)[1] | _TC
    return _without_records(forward, flags)


def failure(forward: Forward) -> bytes:
    """SERVFAIL."""
    flags = HEADER.unpack_from(forward.query)[1] & (_RD | _CD)
    return _without_records(forward, _QR | _RA | flags | dns.rcode.SERVFAIL)


def _without_records(forward: Forward, flags: int) -> bytes:
    number = HEADER.unpack_from(forward.query)[0]
    opt = struct.pack("!BHHIH", 0, dns.rdatatype.OPT, MAX_UDP, 0, 0) if forward.edns else b""
    return HEADER.pack(number, flags, 1, 0, 0, len(opt) and 1) + forward.question + opt
