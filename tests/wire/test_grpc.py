"""What the core knows of gRPC: kinds of messages, deadlines, statuses, and the errors that it writes."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmesh import _grpc

CALL = b"POST /pkg.Service/Method HTTP/1.1\r\nHost: a\r\n"


# ---------------------------------------------------------------- Content-Type


@pytest.mark.parametrize(
    ("value", "kind", "subtype"),
    [
        (b"application/grpc", "grpc", b""),
        (b"application/grpc+proto", "grpc", b"+proto"),
        (b"application/grpc+json", "grpc", b"+json"),
        (b"application/grpc+x.y-z+q", "grpc", b"+x.y-z+q"),
        (b"Application/gRPC+Proto", "grpc", b"+Proto"),
        (b"application/grpc;charset=utf-8", "grpc", b""),
        (b"application/grpc ; charset=utf-8", "grpc", b""),
        (b"application/grpc+proto\t;a", "grpc", b"+proto"),
        (b"application/grpc ", "grpc", b""),
        (b"application/grpc-web", "web", b""),
        (b"application/grpc-web+proto", "web", b"+proto"),
        (b"APPLICATION/GRPC-WEB;a=b", "web", b""),
        (b"application/grpc-web-text", "text", b""),
        (b"application/grpc-web-text+proto", "text", b"+proto"),
        (b"application/grpc-web-text-base64", "text", b""),
        (b"application/grpc-web-text; q=1", "text", b""),
    ],
)
def test_kinds(value: bytes, kind: str, subtype: bytes) -> None:
    assert _grpc.kind(value) == (kind, subtype)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"application/grp",
        b"application/grpcx",
        b"application/grpc-",
        b"application/grpc-we",
        b"application/grpc-webx",
        b"application/grpc-web-",
        b"application/grpc-web-tex",
        b"application/grpc-web-texts",
        b"application/grpc-web-text-base6",
        b"application/grpc-web-text-base64x",
        b"application/grpc-status",
        b"application/grpc+",
        b"application/grpc+;a",
        b"application/grpc-web+ proto",
        b"application/grpc+proto, text/html",
        b"application/grpc proto",
        b"application/grpc/proto",
        b"application/json",
        b" application/grpc",
        b"x-application/grpc",
        b"application/grp\xc3",
    ],
)
def test_what_only_looks_like_it(value: bytes) -> None:
    assert _grpc.kind(value) == (None, b"")


@pytest.mark.parametrize("value", [b"application/grpc+proto", b"application/grpc-web-text+proto"])
def test_every_prefix_and_every_other_byte(value: bytes) -> None:
    pattern = re.compile(
        rb"application/grpc(-web(-text(-base64)?)?)?(\+[!#$%&'*+.^_`|~0-9a-z-]+)?[ \t]*(;.*)?", re.IGNORECASE
    )
    tried = 0
    for at in range(len(value) + 1):
        for byte in [9, *range(0x20, 0x7F), *range(0x80, 0x100)]:
            one = bytes([byte])
            for alike in (value[:at], value[:at] + one, value[:at] + one + value[at + 1 :]):
                assert (_grpc.kind(alike)[0] is None) == (pattern.fullmatch(alike) is None), alike
                tried += 1
    assert tried > 10_000


def test_a_head_with_two_types_is_none() -> None:
    one = b"Content-Type: application/grpc\r\n"
    assert _grpc.kind_of(CALL + one + b"\r\n") == "grpc"
    assert _grpc.kind_of(CALL + one + one + b"\r\n") is None
    assert _grpc.kind_of(CALL + b"Content-Type: text/html\r\n" + one + b"\r\n") is None
    assert _grpc.kind_of(CALL + b"\r\n") is None


# ---------------------------------------------------------------- deadlines

UNITS = {"H": 3600 * 10**6, "M": 60 * 10**6, "S": 10**6, "m": 1000, "u": 1}


@given(st.integers(0, 99_999_999), st.sampled_from("HMSmun"), st.integers(1, 8))
def test_timeouts(value: int, unit: str, digits: int) -> None:
    text = f"{value:0{digits}}{unit}".encode()
    wanted = -(-value // 1000) if unit == "n" else value * UNITS[unit]
    assert _grpc.timeout(text) == wanted


def test_the_largest_timeout_is_no_overflow() -> None:
    assert _grpc.timeout(b"99999999H") == 99_999_999 * 3600 * 10**6 < 2**59
    assert _grpc.timeout(b"1n") == _grpc.timeout(b"1000n") == 1
    assert _grpc.timeout(b"1001n") == 2
    assert _grpc.timeout(b"0n") == _grpc.timeout(b"0S") == 0


@given(st.binary(max_size=12) | st.text("0123456789HMSmun +-.", max_size=11).map(str.encode))
def test_only_such_timeouts(value: bytes) -> None:
    assert (_grpc.timeout(value) is not None) == bool(re.fullmatch(rb"[0-9]{1,8}[HMSmun]", value))


@pytest.mark.parametrize(
    "value",
    [b"", b"1", b"S", b"123456789S", b"-1S", b"+1S", b"1 S", b"1.5S", b"1s", b"1h", b"0x1S", b"1SS", b"1ms"],
)
def test_malformed_timeouts(value: bytes) -> None:
    assert _grpc.timeout(value) is None


def test_the_deadline_of_a_head() -> None:
    assert _grpc.deadline(CALL + b"\r\n") is None
    assert _grpc.deadline(CALL + b"Grpc-Timeout: 250m\r\n\r\n") == 250_000
    assert _grpc.deadline(CALL + b"grpc-timeout:  0S \r\n\r\n") == 0
    assert _grpc.deadline(CALL + b"grpc-timeout: 1s\r\n\r\n") is False
    assert _grpc.deadline(CALL + b"grpc-timeout:\r\n\r\n") is False
    assert _grpc.deadline(CALL + b"grpc-timeout: 1S\r\nx: y\r\nGRPC-TIMEOUT: 1S\r\n\r\n") is False
    assert _grpc.deadline(CALL + b"grpc-timeouts: 1S\r\nxgrpc-timeout: 1S\r\n\r\n") is None


# ---------------------------------------------------------------- statuses


def test_http_statuses_follow_the_mapping() -> None:
    mapped = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 431: 13, 502: 14, 503: 14, 504: 14}
    for status in range(1000):
        assert _grpc.of_http(status) == mapped.get(status, 2), status


def test_codes_of_resets_follow_the_mapping() -> None:
    mapped = {7: 14, 8: 1, 11: 8, 12: 7}
    for code in [*range(20), 2**32 - 1]:
        assert _grpc.of_reset(code) == mapped.get(code, 13), code


# What gRPC callers are told; every reason is in exactly one of them.
TOLD = {
    1: {"downstream_closed", "downstream_reset", "stream_reset"},
    4: {"header_timeout", "body_timeout", "upstream_timeout", "stream_timeout", "deadline"},
    7: {"denied"},
    8: {"no_memory", "tls_rate"},
    12: {"no_service", "connect_not_allowed", "upstream_no_upgrade"},
    13: {"internal", "protocol_unknown", "upstream_bad_response", "upstream_head_too_large", "line_too_long",
         "head_too_large", "too_many_fields", "upstream_h2_protocol_error", "upstream_h2_flood", "late_http"},
    14: {"no_endpoint", "upstream_closed", "upstream_reset", "upstream_truncated", "draining", "overloaded",
         "identity_expired", "certificates_over", "idle_timeout", "tls_timeout", "tls_busy",
         "upstream_goaway", "upstream_stream_reset", "upstream_stream_refused", "upstream_ping_timeout",
         "upstream_not_http2", "loop", "unknown_destination"},
}  # fmt: skip
FAMILIES = {"bad_": 13, "connect_": 14, "upstream_tls_": 14, "tls_": 16}


def test_every_reason_has_its_status() -> None:
    named = {name: status for status, names in TOLD.items() for name in names}
    table = {name: grpc for name, _, grpc, _ in _grpc.reason_table()}
    assert table.pop("none") == 0
    assert not set(named) - set(table)
    for name, grpc in table.items():
        if name.startswith("h2_"):
            assert grpc in (8, 13, 14), name
            continue
        family = next((status for prefix, status in FAMILIES.items() if name.startswith(prefix)), None)
        assert grpc == named.get(name, family), name


def test_no_reason_says_that_all_is_well() -> None:
    for name, status, grpc, _ in _grpc.reason_table()[1:]:
        assert 1 <= grpc <= 16, name
        assert status != 200


def test_what_may_be_tried_elsewhere_is_unavailable() -> None:
    rows = [(name, grpc) for name, _, grpc, retry_safe in _grpc.reason_table() if retry_safe]
    assert len(rows) > 10
    assert {grpc for _, grpc in rows} == {14}


# ---------------------------------------------------------------- errors of our own


def parsed(lines: bytes) -> list[tuple[bytes, bytes]]:
    assert lines.endswith(b"\r\n")
    pairs = [tuple(line.split(b": ", 1)) for line in lines.removesuffix(b"\r\n").split(b"\r\n")]
    assert all(len(pair) == 2 for pair in pairs)
    return [(name, value) for name, value in pairs]


def test_an_error() -> None:
    lines = _grpc.error(
        14, b"svc-b: the endpoint refused the connection (connect_refused)", b"x-fastmesh-reason: a\r\n"
    )
    assert lines == (
        b"content-type: application/grpc\r\ngrpc-status: 14\r\n"
        b"grpc-message: svc-b: the endpoint refused the connection (connect_refused)\r\n"
        b"x-fastmesh-reason: a\r\n"
    )
    assert _grpc.error(4, b"", b"") == b"content-type: application/grpc\r\ngrpc-status: 4\r\n"


@pytest.mark.parametrize("status", [-1, 0, 17, 99, 2**31 - 1])
def test_an_error_is_never_ok(status: int) -> None:
    assert _grpc.error(status, b"", b"").endswith(b"grpc-status: 2\r\n")


def test_all_statuses() -> None:
    for status in range(1, 17):
        assert _grpc.error(status, b"", b"").endswith(b"grpc-status: %d\r\n" % status)


def test_every_byte_of_a_message() -> None:
    value = _grpc.percent(b"a" + bytes(range(256)) + b"a", 2000)
    for byte in range(256):
        plain = 0x20 <= byte <= 0x7E and byte != ord("%")
        assert (b"a%ca" % byte if plain else b"a%%%02Xa" % byte) == _grpc.percent(b"a%ca" % byte, 9)
    assert unquote_to_bytes(value) == b"a" + bytes(range(256)) + b"a"
    assert re.fullmatch(rb"(?:[ -$&-~]|%[0-9A-F]{2})*", value)
    # White space at the ends would not arrive.
    assert _grpc.percent(b" a b ", 99) == b"%20a b%20"
    assert _grpc.percent(b" ", 99) == b"%20"


@given(st.text(max_size=60), st.integers(0, 200))
def test_a_message_is_cut_between_characters(text: str, room: int) -> None:
    value = _grpc.percent(text.encode(), room)
    back = unquote_to_bytes(value).decode()
    assert text.startswith(back)
    if back != text:
        # The next character is what had no room.
        assert len(value) + 3 * len(text[len(back)].encode()) > room
    else:
        assert len(value) <= room


@given(st.binary(max_size=2000), st.integers(0, 16), st.integers(0, 1200))
def test_status_lines_stay_in_their_room(text: bytes, status: int, room: int) -> None:
    lines = _grpc.status_lines(status, text, room)
    if room < _grpc.STATUS_LINES:
        assert lines == b""
        return
    names = [name for name, _ in parsed(lines)]
    assert names in ([b"grpc-status"], [b"grpc-status", b"grpc-message"])
    assert parsed(lines)[0][1] == b"%d" % (status or 2)
    if len(names) == 2:
        value = parsed(lines)[1][1]
        assert text.startswith(unquote_to_bytes(value)) and len(value) <= _grpc.MESSAGE_MAX


def test_a_long_message_is_cut_at_its_limit() -> None:
    lines = _grpc.error(13, b"x" * 5000, b"a: b\r\n")
    assert lines.count(b"x") == _grpc.MESSAGE_MAX
    assert lines.endswith(b"x\r\na: b\r\n")
    assert _grpc.error(13, b"%" * 5000, b"").count(b"%25") == _grpc.MESSAGE_MAX // 3


def test_every_room() -> None:
    extra = b"a: b\r\n"
    whole = _grpc.error(14, b"all is lost", extra)
    least = _grpc.ERROR_LINES + len(extra)
    for room in range(least + 100):
        lines = _grpc.error(14, b"all is lost", extra, room)
        if room < least:
            assert lines == b""
        else:
            assert lines.startswith(b"content-type: application/grpc\r\ngrpc-status: 14\r\n")
            assert lines.endswith(extra)
            message = dict(parsed(lines)).get(b"grpc-message", b"")
            assert b"all is lost".startswith(message)
    assert lines == whole
