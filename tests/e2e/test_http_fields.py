"""Which fields end at the proxy and which it adds: hop-by-hop, Via, X-Forwarded-*, Forwarded."""

from __future__ import annotations

import pytest
from kit.fixtures import LaneFactory
from kit.upstream import answering
from kit.wire import Request, Response, request

HOP = [("Keep-Alive", "timeout=5"), ("Proxy-Connection", "keep-alive"), ("TE", "gzip;q=0.5")]


def forward(lane: LaneFactory, headers: list[tuple[str, str]], kind: str = "http", **options: str) -> Request:
    here = lane(kind)
    server = here.upstream()
    answer = here.ask(request(headers=headers, **options))
    assert answer.status == 200, answer.raw
    return server.requests[0]


def answered(lane: LaneFactory, headers: list[tuple[str, str]], kind: str = "http") -> Response:
    here = lane(kind)
    here.upstream(answering(headers=headers))
    return here.ask(request())


# hop-by-hop (RFC 9110 7.6.1)


def test_hop_by_hop_fields_of_a_request_end_here(lane: LaneFactory) -> None:
    seen = forward(lane, [("X-Before", "1"), *HOP, ("X-After", "2"), ("Connection", "keep-alive, te")])
    assert not seen.names() & {"keep-alive", "proxy-connection", "upgrade"}
    assert set(seen.tokens("te")) <= {"trailers"}
    assert "te" not in seen.tokens("connection") or seen.tokens("te")
    assert (seen.get("x-before"), seen.get("x-after")) == ("1", "2")


def test_fields_named_by_connection_end_here(lane: LaneFactory) -> None:
    seen = forward(
        lane,
        [
            ("Connection", "x-one ,X-TWO"),
            ("X-One", "1"),
            ("x-two", "2"),
            ("X-Three", "3"),
            ("connection", "keep-alive,,x-four"),
            ("X-Four", "4"),
            ("X-One", "again"),
        ],
    )
    assert not seen.names() & {"x-one", "x-two", "x-four"}
    assert seen.get("x-three") == "3"


def test_fields_named_by_connection_in_an_answer_end_here(lane: LaneFactory) -> None:
    answer = answered(
        lane,
        [
            ("Connection", "x-secret"),
            ("X-Secret", "1"),
            ("Keep-Alive", "timeout=9"),
            ("X-Open", "2"),
            ("Upgrade", "h2c"),
        ],
    )
    assert not answer.names() & {"x-secret", "keep-alive", "upgrade", "proxy-connection"}
    assert answer.get("x-open") == "2"


def test_an_upgrade_field_that_connection_does_not_name_is_no_upgrade(lane: LaneFactory) -> None:
    seen = forward(lane, [("Upgrade", "websocket")])
    assert "upgrade" not in seen.names()
    assert "upgrade" not in seen.tokens("connection")


def test_proxy_authorization_passes_unless_connection_names_it(lane: LaneFactory) -> None:
    assert forward(lane, [("Proxy-Authorization", "Basic eA==")]).get("proxy-authorization") == "Basic eA=="
    named = [("Proxy-Authorization", "Basic eA=="), ("Connection", "proxy-authorization")]
    assert forward(lane, named).get("proxy-authorization") is None


def test_te_trailers_is_passed_on_with_connection_te(lane: LaneFactory) -> None:
    seen = forward(lane, [("TE", "trailers"), ("Connection", "TE")])
    if seen.get("te") is not None:
        assert seen.tokens("te") == ["trailers"]
        assert "te" in seen.tokens("connection"), "RFC 9110 10.1.4: whoever sends TE names it in Connection"


def test_expect_of_an_http_1_0_client_is_ignored(lane: LaneFactory) -> None:
    """RFC 9110 10.1.1. The next hop is asked in HTTP/1.1 and would not ignore it."""
    here = lane()
    server = here.upstream()
    data = request("POST", headers=[("Expect", "100-continue")], body=b"x", version="HTTP/1.0")
    assert here.ask(data).status == 200
    assert server.requests[0].get("expect") is None


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding", "Connection"])
def test_connection_may_not_name_framing_or_routing(lane: LaneFactory, name: str) -> None:
    here = lane()
    server = here.upstream()
    with here.client() as client:
        client.send(request("POST", headers=[("Connection", name)], body=b"x"))
        answer = client.read_response()
        if name == "Connection":
            assert answer.status in (200, 400)
            return
        assert (answer.status, answer.reason) == (400, "bad_field")
        client.expect_close()
    assert server.requests == []


# Via (RFC 9110 7.6.3)


def test_via_is_added_to_requests_and_answers(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream()
    answer = here.ask(request())
    for message in (server.requests[0], answer):
        via = message.get("via")
        assert via is not None
        assert via.startswith("1.1 "), via
        assert "127.0.0.1" not in via


def test_via_is_appended_and_tells_the_version_received(lane: LaneFactory) -> None:
    seen = forward(lane, [("Via", "1.1 first"), ("Via", "2 second")], version="HTTP/1.0")
    parts = [part.strip() for part in (seen.get("via") or "").split(",")]
    assert parts[:2] == ["1.1 first", "2 second"]
    assert len(parts) == 3
    assert parts[2].startswith("1.0 "), "the protocol of the received request"


def test_via_is_appended_to_answers(lane: LaneFactory) -> None:
    via = answered(lane, [("Via", "1.1 origin-cache")]).get("via") or ""
    assert via.startswith("1.1 origin-cache, 1.1 ")


def test_via_can_be_switched_off(lane: LaneFactory) -> None:
    assert forward(lane, [], "xff-keep").get("via") is None
    assert forward(lane, [("Via", "1.1 first")], "xff-keep").get("via") == "1.1 first"
    assert answered(lane, [], "xff-keep").get("via") is None


# X-Forwarded-For, X-Forwarded-Proto


def test_x_forwarded_is_set_by_default(lane: LaneFactory) -> None:
    seen = forward(lane, [])
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]
    assert seen.all("x-forwarded-proto") == ["http"]


def test_x_forwarded_for_is_appended_to(lane: LaneFactory) -> None:
    seen = forward(lane, [("X-Forwarded-For", "192.0.2.1, 192.0.2.2"), ("x-forwarded-for", "192.0.2.3")])
    parts = [part.strip() for part in (seen.get("x-forwarded-for") or "").split(",")]
    assert parts == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "127.0.0.1"]


def test_x_forwarded_is_replaced_at_an_edge_that_trusts_nobody(lane: LaneFactory) -> None:
    spoofed = [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("x-forwarded-for", "192.0.2.9"),
    ]
    seen = forward(lane, spoofed, "xff-replace")
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]
    assert seen.all("x-forwarded-proto") == ["http"]


def test_x_forwarded_is_kept_untouched(lane: LaneFactory) -> None:
    given = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "h")]
    seen = forward(lane, given, "xff-keep")
    assert [field for field in seen.fields if field[0].lower().startswith("x-forwarded")] == given
    assert not [name for name in forward(lane, [], "xff-keep").names() if name.startswith("x-forwarded")]


def test_x_forwarded_is_removed(lane: LaneFactory) -> None:
    given = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "h")]
    seen = forward(lane, [*given, ("Forwarded", "for=192.0.2.1")], "xff-remove")
    assert not [name for name in seen.names() if "forwarded" in name]


# Forwarded (RFC 7239)


def elements(seen: Request) -> list[dict[str, str]]:
    """The elements of Forwarded; good enough for values without quoted commas."""
    parsed = []
    for element in (seen.get("forwarded") or "").split(","):
        pairs = [pair.strip().partition("=") for pair in element.split(";") if pair.strip()]
        parsed.append({name.lower(): value.strip('"') for name, _, value in pairs})
    return parsed


def test_forwarded_is_not_introduced_by_default(lane: LaneFactory) -> None:
    assert forward(lane, []).get("forwarded") is None


def test_forwarded_is_appended_where_the_caller_sent_one(lane: LaneFactory) -> None:
    seen = forward(lane, [("Forwarded", "for=192.0.2.1;proto=https"), ("Forwarded", "for=unknown")])
    found = elements(seen)
    assert len(found) == 3
    assert (found[0]["for"], found[1]["for"]) == ("192.0.2.1", "unknown")
    assert found[2]["for"] == "127.0.0.1"
    assert found[2].get("proto", "http") == "http"


def test_forwarded_append_always_adds_one(lane: LaneFactory) -> None:
    found = elements(forward(lane, [], "forwarded-append"))
    assert [element["for"] for element in found] == ["127.0.0.1"]


def test_forwarded_is_replaced(lane: LaneFactory) -> None:
    found = elements(forward(lane, [("Forwarded", "for=192.0.2.1;proto=https;host=evil")], "xff-replace"))
    assert [element["for"] for element in found] == ["127.0.0.1"]
    assert "evil" not in str(found)


def test_forwarded_is_kept(lane: LaneFactory) -> None:
    assert forward(lane, [("Forwarded", "for=192.0.2.1")], "xff-keep").all("forwarded") == ["for=192.0.2.1"]
