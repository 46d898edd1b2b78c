"""Destinations: whose they are, what is learned of them, and the choice by port and Host, without sockets."""

from __future__ import annotations

import random

import pytest
from fastmesh._destination import MOST_LEARNED, Memory, OwnDials, Table, find_port, host_of, own, text_of

from fastmesh._core import DETECT_BOUNDS


def test_a_port_counts_more_than_an_address_alone() -> None:
    table = Table(
        {("10.0.0.1", 80): [1], ("10.0.0.1", 0): [2], ("fd00::1", 0): [3], ("10.0.0.2", 80): [4, 7]}
    )
    assert table.find("10.0.0.1", 80) == [1]
    assert table.find("10.0.0.1", 81) == [2]
    assert table.find("fd00::1", 1) == [3]
    assert table.find("10.0.0.2", 80) == [4, 7], "shared"
    assert table.find("10.0.0.2", 81) is None
    assert table.find("::", 80) is None


def test_families_are_not_mixed_up() -> None:
    table = Table({("10.0.0.1", 80): [1]})
    assert table.find("0a00:1::", 80) is None


def test_an_empty_table_has_nothing() -> None:
    assert Table({}).find("10.0.0.1", 80) is None


def test_many_destinations_are_found_and_no_others() -> None:
    chance = random.Random(5)
    hosts = [f"10.{n >> 8}.{n & 255}.1" for n in range(900)] + [f"fd00::{n:x}" for n in range(900)]
    claims = {(host, chance.choice((0, 80, 443, 5432))): [at % 90] for at, host in enumerate(hosts)}
    table = Table(claims)
    for (host, port), services in claims.items():
        assert table.find(host, port or 9) == services
        assert table.find(host, port + 1) == (services if port == 0 else None)


@pytest.mark.parametrize(
    ("bound", "to", "is_own"),
    [
        (("127.0.0.1", 15001), ("127.0.0.1", 15001), True),
        (("127.0.0.1", 15001), ("127.0.0.2", 15001), False),
        (("127.0.0.1", 15001), ("127.0.0.1", 80), False),
        (("0.0.0.0", 15006), ("10.0.0.7", 15006), True),
        (("0.0.0.0", 15006), ("10.0.0.7", 8080), False),
        (("::", 15006), ("fd00::7", 15006), True),
        (("::", 15006), ("10.0.0.7", 15006), True),
        (("::1", 15006), ("fd00::7", 15006), False),
    ],
)
def test_what_is_the_listener_itself(bound: tuple[str, int], to: tuple[str, int], is_own: bool) -> None:
    assert own(bound, to) is is_own


def test_as_text() -> None:
    assert text_of("10.0.0.1", 65535) == "10.0.0.1:65535"
    assert text_of("fd00:1:2:3:4:5:6:7", 80) == "[fd00:1:2:3:4:5:6:7]:80"


def test_ports_are_found() -> None:
    for count in range(9):
        ports = [10 * n for n in range(1, count + 1)]
        for port in range(1, 100):
            assert find_port(ports, port) == (ports.index(port) if port in ports else None)


def test_what_is_learned() -> None:
    memory = Memory()
    assert not memory.server_first("10.0.0.1", 25, 1)
    memory.spoke("10.0.0.1", 25, True)
    assert memory.known("10.0.0.1", 25) is None, "only where somebody was waited for"
    memory.timeout("10.0.0.1", 25, 1)
    assert memory.known("10.0.0.1", 25) == (1, 0, False)
    assert not memory.server_first("10.0.0.1", 25, 2)
    memory.spoke("10.0.0.1", 25, True)
    assert memory.server_first("10.0.0.1", 25, 3)
    assert not memory.server_first("10.0.0.1", 26, 3)
    assert memory.known("10.0.0.1", 25) == (1, 1, True)
    memory.spoke("10.0.0.1", 25, False)
    assert not memory.server_first("10.0.0.1", 25, 4)


def test_memory_is_bounded_and_forgets_what_was_not_seen_for_longest() -> None:
    memory = Memory()
    busy = ("10.0.0.1", 25)
    memory.timeout(*busy, 1)
    memory.spoke(*busy, True)
    for n in range(20 * MOST_LEARNED):
        memory.timeout(f"10.{1 + (n >> 16)}.{n >> 8 & 255}.{n & 255}", 25, n + 1)
        assert memory.server_first(*busy, n + 1), "it is seen all the time"
    assert memory.count() <= MOST_LEARNED


def test_delays_in_buckets() -> None:
    memory = Memory()
    bounds = [round(1000 * bound) for bound in DETECT_BOUNDS]
    assert [memory.observe(bound) for bound in bounds] == list(range(len(bounds)))
    assert [memory.observe(bound + 1) for bound in bounds] == list(range(1, len(bounds) + 1))
    assert memory.observe(10**6) == len(bounds)


@pytest.mark.parametrize(
    ("data", "host"),
    [
        (b"", None),
        (b"GET / HTTP/1.1\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: a.exa", None),
        (b"GET / HTTP/1.1\r\nHost: a.example:80\r\n", b"a.example:80"),
        (b"GET / HTTP/1.1\r\nx: y\r\nhOST:\t a.example \r\nHost: b\r\n\r\n", b"a.example"),
        (b"GET / HTTP/1.1\nHost:a\n", b"a"),
        (b"GET / HTTP/1.1\r\nHosts: a\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b""),
        (b"Host: no\r\nx: y\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nx: y\r\n\r\nHost: body\r\n", b""),
    ],
)
def test_the_host_of_a_head_that_is_still_coming(data: bytes, host: bytes | None) -> None:
    assert host_of(data) == host
    for cut in range(len(data)):
        assert host_of(data[:cut]) in (None, host)


def test_our_own_connections_are_known_for_a_moment() -> None:
    dials = OwnDials()
    ours, theirs = ("10.0.0.1", 40000), ("10.0.0.2", 80)
    assert not dials.noted(ours, theirs, 1)
    dials.note(ours, theirs, 1000)
    assert dials.noted(ours, theirs, 1000) and dials.noted(ours, theirs, 3999)
    assert not dials.noted(ours, theirs, 4000)
    assert not dials.noted(ours, ("10.0.0.2", 81), 1000)
    assert not dials.noted(("10.0.0.1", 40001), theirs, 1000)
