"""What is said to a query, message by message: names, types, sizes, and what is no query."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.dns import found

from fastmesh.agent.dns import answer
from fastmesh.agent.dns.answer import MAX_TCP, MAX_UDP, Forward, Reply, decide
from fastmesh.agent.dns.names import Names, labels_of

B4, B6 = "240.77.1.2", "fd77:6d65:7368::5"
S4, S6 = "240.77.1.3", "fd77:6d65:7368::6"


def names_of(services: dict[str, list[str]], **more: Any) -> Names:
    """`services`: what is answered for each; virtual addresses count from 1."""
    rows = [
        {"name": name, "virtual": [f"240.77.0.{number}", f"fd77:6d65:7368::{number:x}"]}
        for number, name in enumerate(services, 1)
    ]
    dns = {
        "ttl_s": 5,
        "domain": "mesh",
        "networks": ["240.77.0.0/16", "fd77:6d65:7368::/64"],
        "answers": services,
    }
    return Names(dns | more, rows)


NAMES = names_of(
    {
        "svc-b": [B4, B6],
        "api.shop": [S4, S6],
        "real": ["10.0.0.1", "10.0.0.2"],
        "x" * 63 + "." + "y" * 63 + "." + "z" * 63 + "." + "w" * 60: [B4],
    }
)


def reply(name: str, kind: str = "A", most: int = MAX_UDP, names: Names = NAMES, **options: Any) -> Any:
    """The response to a question, and the word for it."""
    query = dns.message.make_query(name, kind, **options)
    decided = decide(query.to_wire(), names, most)
    assert isinstance(decided, Reply)
    assert decided.wire is not None
    response = dns.message.from_wire(decided.wire)
    assert query.is_response(response)
    return response, decided.outcome


@pytest.mark.parametrize(
    ("name", "four", "six"),
    [
        ("svc-b", [B4], [B6]),
        ("svc-b.mesh", [B4], [B6]),
        ("api.shop", [S4], [S6]),
        ("api.shop.mesh", [S4], [S6]),
        ("SVC-B.Mesh", [B4], [B6]),
        ("real.mesh", ["10.0.0.1", "10.0.0.2"], []),
    ],
)
def test_addresses(name: str, four: list[str], six: list[str]) -> None:
    for kind, wanted in (("A", four), ("AAAA", six)):
        response, outcome = reply(name, kind)
        assert response.rcode() == dns.rcode.NOERROR
        assert found(response) == wanted
        assert outcome == ("answered" if wanted else "no_data")
        assert response.flags & (dns.flags.AA | dns.flags.RA | dns.flags.RD) == (
            dns.flags.AA | dns.flags.RA | dns.flags.RD
        )
        for rrset in response.answer:
            # Byte for byte: names are equal whatever their case is.
            assert rrset.name.labels == dns.name.from_text(name).labels
            assert rrset.ttl == 5
        assert response.question[0].name.labels == dns.name.from_text(name).labels
        assert bool(response.authority) is not bool(wanted)


@pytest.mark.parametrize("kind", ["TXT", "MX", "HTTPS", "SRV", "CNAME", "NS", "SOA", "DS", "TYPE65280"])
@pytest.mark.parametrize("name", ["svc-b.mesh", "api.shop.mesh", "shop.mesh"])
def test_other_types_are_no_data(name: str, kind: str) -> None:
    response, outcome = reply(name, kind)
    assert (response.rcode(), outcome) == (dns.rcode.NOERROR, "no_data")
    assert not response.answer
    (soa,) = response.authority
    assert (soa.name.to_text(), soa.rdtype, soa.ttl) == ("mesh.", dns.rdatatype.SOA, 5)
    assert soa[0].minimum == 5


def test_a_bare_name_is_a_zone_of_its_own() -> None:
    response, _ = reply("svc-b", "TXT")
    assert response.authority[0].name.to_text() == "svc-b."
    response, outcome = reply("svc-b", "SOA")
    assert (outcome, response.answer[0].name.to_text()) == ("answered", "svc-b.")


def test_the_domain_itself() -> None:
    assert reply("mesh", "SOA")[0].answer[0].rdtype == dns.rdatatype.SOA
    assert reply("mesh", "A")[1] == "no_data"


@pytest.mark.parametrize(
    "name", ["nobody.mesh", "a.svc-b.mesh", "x.api.shop.mesh", "x.shop.mesh", r"api\.shop.mesh"]
)
def test_names_that_are_not_there(name: str) -> None:
    response, outcome = reply(name, "A")
    assert (response.rcode(), outcome) == (dns.rcode.NXDOMAIN, "unknown")
    assert response.authority[0].name.to_text() == "mesh."


def test_one_of_what_there_is() -> None:
    assert found(reply("svc-b.mesh", "ANY")[0]) == [B4]
    assert found(reply("1.0.77.240.in-addr.arpa", "ANY")[0]) == ["svc-b.mesh."]
    assert reply("shop.mesh", "ANY")[1] == "no_data"


@pytest.mark.parametrize(
    "name", ["example.com", "shop", "com", "x.svc-b", "mesh.example", "amesh", ".", "svc-b.example"]
)
def test_what_is_not_ours_is_passed_on(name: str) -> None:
    query = dns.message.make_query(name, "A")
    decided = decide(query.to_wire(), NAMES, MAX_UDP)
    assert isinstance(decided, Forward)
    assert decided.query == query.to_wire()
    assert (decided.size, decided.edns) == (512, False)


@pytest.mark.parametrize("domain", ["mesh.internal", "a.b.c"])
def test_other_domains(domain: str) -> None:
    names = names_of({"svc-b": [B4]}, domain=domain)
    assert found(reply(f"svc-b.{domain}", names=names)[0]) == [B4]
    assert reply(f"nobody.{domain}", names=names)[1] == "unknown"
    assert found(reply("1.0.77.240.in-addr.arpa", "PTR", names=names)[0]) == [f"svc-b.{domain}."]
    above = dns.message.make_query(domain.partition(".")[2], "A").to_wire()
    assert isinstance(decide(above, names, MAX_UDP), Forward)


def test_a_name_that_does_not_fit_in_the_domain() -> None:
    long = "x" * 63 + "." + "y" * 63 + "." + "z" * 63 + "." + "w" * 60
    assert found(reply(long)[0]) == [B4]
    assert found(reply("4.0.77.240.in-addr.arpa", "PTR")[0]) == [f"{long}."]


def test_services_that_nobody_wrote_down_have_no_names() -> None:
    """Interception makes some for itself."""
    dns = {"ttl_s": 5, "domain": "mesh", "networks": [], "answers": {"web": [B4]}}
    names = Names(dns, [{"name": "web", "virtual": [B4, B6]}, {"name": "inbound:8080"}])
    assert names.services == 1
    assert reply("inbound:8080.mesh", names=names)[1] == "unknown"


# backwards


def test_virtual_addresses_lead_back() -> None:
    for text in ("240.77.0.2", "fd77:6d65:7368::2"):
        pointer = ipaddress.ip_address(text).reverse_pointer
        response, outcome = reply(pointer.upper(), "PTR")
        assert (found(response), outcome) == (["api.shop.mesh."], "answered")
        assert reply(pointer, "A")[1] == "no_data"


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("9.0.77.240.in-addr.arpa", "unknown"),
        ("1.1.0.77.240.in-addr.arpa", "unknown"),
        ("256.0.77.240.in-addr.arpa", "unknown"),
        ("01.0.77.240.in-addr.arpa", "unknown"),
        ("_x.77.240.in-addr.arpa", "unknown"),
        ("0.77.240.in-addr.arpa", "no_data"),
        ("77.240.in-addr.arpa", "no_data"),
        ("240.in-addr.arpa", None),
        ("1.0.0.10.in-addr.arpa", None),
        ("in-addr.arpa", None),
        ("1.0.78.240.in-addr.arpa", None),
        ("0.0.0.0.8.6.3.7.5.6.d.6.7.7.d.f.ip6.arpa", "no_data"),
        ("g.0.0.0.0.8.6.3.7.5.6.d.6.7.7.d.f.ip6.arpa", "unknown"),
        ("8.6.3.7.5.6.d.6.7.7.d.f.ip6.arpa", None),
        ("ip6.arpa", None),
    ],
)
def test_reverse_names(name: str, outcome: str | None) -> None:
    query = dns.message.make_query(name, "PTR").to_wire()
    decided = decide(query, NAMES, MAX_UDP)
    assert (decided.outcome if isinstance(decided, Reply) else None) == outcome
    if isinstance(decided, Reply):
        zone = dns.message.from_wire(decided.wire or b"").authority[0].name.to_text()
        assert zone in ("77.240.in-addr.arpa.", "0.0.0.0.8.6.3.7.5.6.d.6.7.7.d.f.ip6.arpa.")


@settings(deadline=None)
@given(st.ip_addresses())
@example(ipaddress.ip_address("240.77.0.1"))
@example(ipaddress.ip_address("fd77:6d65:7368::ffff"))
def test_what_is_in_the_networks_is_never_asked_of_others(address: Any) -> None:
    ours = any(
        address in network
        for network in map(ipaddress.ip_network, ("240.77.0.0/16", "fd77:6d65:7368::/64"))
        if network.version == address.version
    )
    assert (NAMES.look_up(labels_of(address.reverse_pointer)) is not None) is ours


@pytest.mark.parametrize("network", ["10.32.0.0/11", "10.32.16.0/20", "10.32.16.128/25"])
def test_networks_that_end_within_a_label(network: str) -> None:
    where = ipaddress.ip_network(network)
    names = Names(
        {
            "ttl_s": 5,
            "domain": "mesh",
            "networks": [network, "fd77::/62"],
            "answers": {"web": [str(where[1])]},
        },
        [{"name": "web", "virtual": [str(where[1]), "fd77::1"]}],
    )
    for address in (where[0], where[1], where[-1]):
        assert names.look_up(labels_of(address.reverse_pointer)) is not None
    for address in (where[0] - 1, where[-1] + 1):
        assert names.look_up(labels_of(address.reverse_pointer)) is None
    response, _ = reply(where[1].reverse_pointer, "PTR", names=names)
    assert found(response) == ["web.mesh."]
    response, _ = reply(where[2].reverse_pointer, "PTR", names=names)
    assert response.question[0].name.is_subdomain(response.authority[0].name)


# sizes and EDNS

MANY = names_of({"many": [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(200)]})


@pytest.mark.parametrize(
    ("payload", "most", "wanted"),
    [
        (None, MAX_UDP, 512),
        (100, MAX_UDP, 512),
        (900, MAX_UDP, 900),
        (65535, MAX_UDP, MAX_UDP),
        (1232, MAX_TCP, MAX_TCP),
    ],
)
def test_no_answer_is_larger_than_the_client_takes(payload: int | None, most: int, wanted: int) -> None:
    options = {} if payload is None else {"use_edns": 0, "payload": payload}
    query = dns.message.make_query("many", "A", **options)
    decided = decide(query.to_wire(), MANY, most)
    assert isinstance(decided, Reply)
    assert decided.wire is not None
    assert len(decided.wire) <= wanted
    response = dns.message.from_wire(decided.wire)
    whole = most == MAX_TCP
    assert bool(response.flags & dns.flags.TC) is not whole
    assert len(found(response)) == (200 if whole else 0)
    assert (response.edns == 0) is (payload is not None)


def test_edns() -> None:
    response, _ = reply("svc-b", use_edns=0, payload=4000, want_dnssec=True)
    assert (response.edns, response.payload) == (0, MAX_UDP)
    assert response.ednsflags & dns.flags.DO
    response, _ = reply("svc-b")
    assert response.edns == -1
    cookie = dns.edns.GenericOption(10, b"12345678")
    response, outcome = reply("svc-b", use_edns=0, options=[cookie])
    assert outcome == "answered"
    assert not response.options


def test_a_later_version_of_edns() -> None:
    response, outcome = reply("svc-b", use_edns=1)
    assert (response.rcode(), outcome, response.edns) == (dns.rcode.BADVERS, "refused", 0)
    assert not response.answer


def test_flags_are_given_back() -> None:
    query = dns.message.make_query("svc-b", "A", flags=dns.flags.CD)
    decided = decide(query.to_wire(), NAMES, MAX_UDP)
    assert isinstance(decided, Reply)
    response = dns.message.from_wire(decided.wire or b"")
    assert response.flags == dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.CD


# what is refused


@pytest.mark.parametrize("kind", ["AXFR", "IXFR", "TKEY", "MAILB"])
@pytest.mark.parametrize("name", ["svc-b.mesh", "mesh", "example.com"])
def test_transfers_are_refused(name: str, kind: str) -> None:
    response, outcome = reply(name, kind)
    assert (response.rcode(), outcome) == (dns.rcode.REFUSED, "refused")


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY"])
def test_other_classes_are_refused(rdclass: str) -> None:
    response, outcome = reply("version.bind", "TXT", rdclass=rdclass)
    assert (response.rcode(), outcome) == (dns.rcode.REFUSED, "refused")


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_operations_are_not_implemented(opcode: int) -> None:
    wire = bytearray(dns.message.make_query("svc-b", "A").to_wire())
    wire[2] |= opcode << 3
    decided = decide(bytes(wire), NAMES, MAX_UDP)
    assert isinstance(decided, Reply)
    assert decided.outcome == "refused"
    assert decided.wire is not None
    assert len(decided.wire) == 12
    assert decided.wire[2] >> 3 & 15 == opcode
    assert decided.wire[3] & 15 == dns.rcode.NOTIMP


QUERY = dns.message.make_query("svc-b", "A", id=0x1234).to_wire()
NAME = b"\x05svc-b\0"


@pytest.mark.parametrize(
    "wire",
    [
        QUERY[:13],
        QUERY[:-1],
        QUERY + b"\0",
        QUERY[:4] + b"\0\0" + QUERY[6:],
        QUERY[:4] + b"\0\2" + QUERY[6:] + NAME + b"\0\1\0\1",
        QUERY[:6] + b"\0\1" + QUERY[8:],
        QUERY[:12] + b"\xc0\x0c\0\1\0\1",  # a pointer to itself
        QUERY[:12] + b"\x05svc-b\xc0\x04\0\1\0\1",  # one into the header
        QUERY[:12] + b"\x7fsvc-b\0\0\1\0\1",  # a label of a kind that there is not
        QUERY[:12] + b"\x3f" + b"a" * 63 + b"\0\1\0\1",
        QUERY[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",  # 257 bytes
        QUERY[:10] + b"\0\2" + QUERY[12:] + b"\0\0\x29\x04\xd0\0\0\0\0\0\0" * 2,  # two OPT
        QUERY[:10] + b"\0\1" + QUERY[12:] + b"\1a\0\0\x29\x04\xd0\0\0\0\0\0\0",  # OPT of a name
    ],
)
def test_malformed_queries(wire: bytes) -> None:
    decided = decide(wire, NAMES, MAX_UDP)
    assert isinstance(decided, Reply)
    assert decided.outcome == "malformed"
    assert decided.wire is not None
    assert len(decided.wire) == 12
    assert decided.wire[:2] == wire[:2]
    assert decided.wire[3] & 15 == dns.rcode.FORMERR


@pytest.mark.parametrize(("place", "count"), [(6, 1), (8, 1), (10, 3), (6, 341), (8, 341), (10, 341)])
def test_records_that_no_query_has_are_not_parsed(
    place: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long name that all of them point to takes dnspython a second."""
    parsed: list[Any] = []
    monkeypatch.setattr(dns.message, "from_wire", lambda *given, **_: parsed.append(given))
    name = (b"\1a" * 126) + b"\0"
    records = (b"\xc0\x0c\0\1\0\1\0\0\0\0\0\0") * count
    head = bytearray(QUERY[:12])
    struct.pack_into("!H", head, place, count)
    decided = decide(bytes(head) + name + b"\0\1\0\1" + records, NAMES, MAX_TCP)
    assert isinstance(decided, Reply)
    assert decided.outcome == "malformed"
    assert decided.wire is not None
    assert decided.wire[3] & 15 == dns.rcode.FORMERR
    assert not parsed


@pytest.mark.parametrize("wire", [b"", b"\0", QUERY[:11], QUERY[:2] + b"\x80" + QUERY[3:]])
def test_what_gets_no_answer(wire: bytes) -> None:
    """Responses, above all: two servers must not keep each other busy."""
    assert decide(wire, NAMES, MAX_UDP) == Reply(None, "malformed")


queries = st.builds(
    lambda name, kind, edns: dns.message.make_query(name, kind, use_edns=edns).to_wire(),
    st.sampled_from(["svc-b.mesh", "API.shop", "nobody.mesh", "example.com", "1.0.77.240.in-addr.arpa", "."]),
    st.sampled_from(["A", "AAAA", "ANY", "PTR", "TXT", "AXFR"]),
    st.sampled_from([None, 0, 1]),
)


@st.composite
def mutated(draw: Any) -> bytes:
    wire = bytearray(draw(queries))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(wire) - 1))
        wire[place] = draw(st.sampled_from([0, 1, 0x29, 0x3F, 0x40, 0x7F, 0xC0, 0xFF, wire[place] ^ 0x20]))
    cut = draw(st.integers(0, len(wire)))
    return bytes(wire[: cut if draw(st.booleans()) else len(wire)])


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=80), mutated(), queries), st.sampled_from([MAX_UDP, MAX_TCP]))
def test_whatever_comes(wire: bytes, most: int) -> None:
    """No exception, no answer to a response, the id and no more bytes than allowed; and what is passed on is
    a query with one question that is not about the mesh."""
    decided = decide(wire, NAMES, most)
    if isinstance(decided, Forward):
        assert decided.query == wire
        assert wire[12:].startswith(decided.question)
        name = dns.message.from_wire(wire, keyring=False).question[0].name
        assert not name.is_subdomain(dns.name.from_text("mesh."))
        assert name not in map(dns.name.from_text, ("svc-b.", "api.shop.", "real."))
        return
    if decided.wire is None:
        assert len(wire) < 12 or wire[2] & 0x80
        return
    assert decided.wire[:2] == wire[:2]
    assert decided.wire[2] & 0x80
    assert len(decided.wire) <= max(512, len(wire) * 4)
    with contextlib.suppress(dns.message.UnknownTSIGKey):
        dns.message.from_wire(decided.wire)


# what is passed on, and what comes back


def forwarded(name: str = "Example.com", most: int = MAX_UDP, kind: str = "A", **options: Any) -> Forward:
    decided = decide(dns.message.make_query(name, kind, id=7, **options).to_wire(), NAMES, most)
    assert isinstance(decided, Forward)
    return decided


def response_to(forward: Forward, number: int, **changes: Any) -> bytes:
    query = dns.message.from_wire(answer.asked_as(forward, number))
    response = dns.message.make_response(query)
    for name, value in changes.items():
        setattr(response, name, value)
    return response.to_wire()


def test_the_question_goes_out_under_another_id() -> None:
    forward = forwarded()
    assert answer.asked_as(forward, 0xABCD) == b"\xab\xcd" + forward.query[2:]
    assert answer.answers(forward, 0xABCD, response_to(forward, 0xABCD))
    assert answer.passed_on(forward, response_to(forward, 0xABCD))[:2] == b"\0\7"


def test_what_is_no_answer() -> None:
    forward = forwarded()
    good = response_to(forward, 9)
    assert answer.answers(forward, 9, good)
    assert answer.answers(forward, 9, good.replace(b"Example", b"eXAMPLE"))
    assert not answer.answers(forward, 10, good)
    assert not answer.answers(forward, 9, good[:11])
    assert not answer.answers(forward, 9, b"\0\x09" + forward.query[2:])  # a query
    assert not answer.answers(forward, 9, good.replace(b"Example", b"example2"[:7]).replace(b"com", b"org"))
    assert not answer.answers(forward, 9, good[:-3] + b"\x1c" + good[-2:])  # about AAAA
    assert not answer.answers(forward, 9, good[:-1] + b"\3")  # of another class
    assert not answer.answers(forward, 9, good[:4] + b"\0\2" + good[6:])
    assert not answer.answers(forward, 9, good[:2] + bytes([good[2] | 0x20]) + good[3:])  # NOTIFY
    assert not answer.answers(forward, 9, good[:20])
    # Servers that could not read the question answer without it; that is an error, or it is nothing.
    header = struct.pack("!HHHHHH", 9, 0x8001, 0, 0, 0, 0)
    assert answer.answers(forward, 9, header)
    assert not answer.answers(forward, 9, header[:3] + b"\0" + header[4:])
    assert not answer.answers(forward, 9, header + b"\0")


def test_types_are_no_letters() -> None:
    """65 and 97 differ by the bit in which "A" and "a" do."""
    forward = forwarded(kind="TYPE65")
    other = response_to(forwarded(kind="TYPE97"), 9)
    assert answer.answers(forward, 9, response_to(forward, 9))
    assert not answer.answers(forward, 9, other)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_comes_back(data: Any) -> None:
    """It is an answer or not, without an exception; of an answer the client gets what it can take."""
    forward = forwarded(kind=data.draw(st.sampled_from(["A", "TYPE65", "TXT"])))
    wire = bytearray(response_to(forward, 9) + data.draw(st.binary(max_size=600)))
    for _ in range(data.draw(st.integers(0, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    response = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    if not answer.answers(forward, 9, response):
        return
    assert response[:2] == b"\0\x09"
    passed = answer.passed_on(forward, response)
    assert passed[:2] == b"\0\7"
    assert len(passed) <= forward.size
    assert answer.is_truncated(passed) or passed[2:] == response[2:]
    assert answer.rcode_of(passed) == answer.rcode_of(response)


@pytest.mark.parametrize("edns", [None, 0])
def test_a_response_that_is_too_large_is_cut(edns: int | None) -> None:
    forward = forwarded(**({} if edns is None else {"use_edns": edns, "payload": 600}))
    large = response_to(forward, 9) + b"\0" * 700
    cut = dns.message.from_wire(answer.passed_on(forward, large))
    assert cut.id == 7
    assert cut.flags & dns.flags.TC
    assert cut.question[0].name.labels == dns.name.from_text("Example.com").labels
    assert cut.edns == (-1 if edns is None else 0)
    by_tcp = forwarded(most=MAX_TCP, use_edns=edns)
    assert answer.passed_on(by_tcp, large) == b"\0\7" + large[2:]


@pytest.mark.parametrize("edns", [None, 0])
def test_a_failure(edns: int | None) -> None:
    failure = dns.message.from_wire(answer.failure(forwarded(use_edns=edns)))
    assert (failure.id, failure.rcode(), failure.edns) == (7, dns.rcode.SERVFAIL, -1 if edns is None else 0)
    assert failure.flags & (dns.flags.RD | dns.flags.RA) == dns.flags.RD | dns.flags.RA
    assert failure.question[0].name == dns.name.from_text("example.com")
