"""Asking name servers: who is asked, in which order, what is believed, and when it is given up."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest
from kit.dns import Asked, NameServer, answer, found, silence
from kit.ports import free_port

from fastmesh.agent.dns.answer import MAX_TCP, MAX_UDP, Forward
from fastmesh.agent.dns.forward import (
    MAX_MISMATCHES,
    Forwarder,
    Server,
    SystemServers,
    read_servers,
)
from fastmesh.agent.dns.words import Counts

Start = Callable[..., NameServer]
TRIES = (0.1, 0.2)


def forward(name: str = "example.com", most: int = MAX_UDP, kind: str = "A") -> Forward:
    query = dns.message.make_query(name, kind)
    question = query.question[0].name.to_wire() + struct.pack("!HH", query.question[0].rdtype, 1)
    return Forward(query.to_wire(), question, most, False)


def at(server: NameServer) -> Server:
    return Server(server.host, server.port)


class Asking:
    """A forwarder, and what it counts."""

    def __init__(self, *servers: Server, **options: Any) -> None:
        self.counts = Counts()
        options = {"tries": TRIES, "total": 2.0} | options
        self.forwarder = Forwarder(lambda: list(servers), self.counts, **options)

    async def ask(self, *args: Any, **options: Any) -> dns.message.Message | None:
        response = await self.forwarder.ask(forward(*args, **options))
        return None if response is None else dns.message.from_wire(response)

    def one(self, *args: Any, **options: Any) -> dns.message.Message | None:
        return asyncio.run(self.ask(*args, **options))

    def counted(self) -> dict[str, int]:
        return {result: count for result, count in self.counts.asked.items() if count}


def test_an_answer(name_server: Start) -> None:
    asking = Asking(at(name_server()))
    response = asking.one()
    assert response is not None
    assert found(response) == ["192.0.2.1"]
    assert asking.counted() == {"answered": 1}
    assert not asking.forwarder._local


def test_ipv6(name_server: Start) -> None:
    server = name_server(host="::1")
    response = Asking(at(server)).one(kind="AAAA")
    assert response is not None
    assert found(response) == ["2001:db8::1"]


def test_ids_and_ports_are_new_each_time(name_server: Start) -> None:
    server = name_server()
    asking = Asking(at(server))

    async def many() -> None:
        await asyncio.gather(*(asking.ask(f"{number}.example") for number in range(40)))

    asyncio.run(many())
    assert len({one.source[1] for one in server.asked}) > 35
    ids = [one.message.id for one in server.asked]
    assert len(set(ids)) > 35  # two may meet
    assert sorted(ids) != ids


def test_another_server_is_asked_when_one_is_silent(name_server: Start) -> None:
    first, second = name_server(silence), name_server()
    asking = Asking(at(first), at(second))
    assert asking.one() is not None
    assert asking.counted() == {"timeout": 1, "answered": 1}
    # And for a while it comes first.
    asking.one("again.example")
    assert first.names() == ["example.com."]
    assert second.names() == ["example.com.", "again.example."]


def test_the_one_that_comes_first_loses_its_place_when_it_fails(name_server: Start) -> None:
    first, second = name_server(silence), name_server()
    asking = Asking(at(first), at(second))
    asking.one()
    first.script, second.script = answer, silence
    assert asking.one("two.example") is not None
    asking.one("three.example")
    assert first.names() == ["example.com.", "two.example.", "three.example."]


def test_it_is_asked_in_its_place_again_after_a_while(name_server: Start, monkeypatch: Any) -> None:
    monkeypatch.setattr("fastmesh.agent.dns.forward.PREFER_S", 0.0)
    first, second = name_server(silence), name_server()
    asking = Asking(at(first), at(second))
    asking.one()
    first.script = answer
    asking.one("again.example")
    assert first.names()[-1] == "again.example."


def test_nobody_listens() -> None:
    asking = Asking(Server("127.0.0.1", free_port()))
    assert asking.one() is None
    assert asking.counted() == {"error": 2}


def test_nobody_answers(name_server: Start) -> None:
    server = name_server(silence)
    asking = Asking(at(server))
    assert asking.one() is None
    assert asking.counted() == {"timeout": 2}
    assert len(server.asked) == 2


def test_all_of_it_has_an_end(name_server: Start) -> None:
    servers = [at(name_server(silence)) for _ in range(3)]
    asking = Asking(*servers, tries=(0.2,) * 50, total=0.5)
    assert asking.one() is None
    assert 1 <= asking.counts.asked["timeout"] <= 3


def test_there_is_no_name_server() -> None:
    assert Asking().one() is None


@pytest.mark.parametrize(
    "rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.FORMERR]
)
def test_a_server_that_cannot_is_not_the_last_word(name_server: Start, rcode: int) -> None:
    def cannot(asked: Asked) -> Iterable[bytes]:
        yield asked.reply(rcode=rcode)

    response = Asking(at(name_server(cannot)), at(name_server())).one()
    assert response is not None
    assert found(response) == ["192.0.2.1"]
    # Where all cannot, the client hears how.
    asking = Asking(at(name_server(cannot)))
    response = asking.one()
    assert response is not None
    assert response.rcode() == rcode
    assert asking.counted() == {"error": 1}


def test_no_such_name_is_an_answer(name_server: Start) -> None:
    def unknown(asked: Asked) -> Iterable[bytes]:
        yield asked.reply(rcode=dns.rcode.NXDOMAIN)

    second = name_server()
    response = Asking(at(name_server(unknown)), at(second)).one()
    assert response is not None
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert not second.asked


def test_an_error_without_the_question_is_told_in_our_words(name_server: Start) -> None:
    def header(asked: Asked) -> Iterable[bytes]:
        yield asked.wire[:2] + b"\x80\x01" + b"\0" * 8

    assert Asking(at(name_server(header))).one() is None


# what is believed


def test_what_answers_something_else_is_passed_over(name_server: Start) -> None:
    def guesses(asked: Asked) -> Iterable[bytes]:
        good = asked.reply("192.0.2.66")
        yield bytes([good[0] ^ 1]) + good[1:]  # another id
        other = dns.message.make_query("other.example", "A")
        other.id = asked.message.id
        yield dns.message.make_response(other).to_wire()
        yield asked.wire  # the query itself
        yield b"garbage"
        yield from answer(asked)

    asking = Asking(at(name_server(guesses)))
    response = asking.one()
    assert response is not None
    assert found(response) == ["192.0.2.1"]
    assert asking.counted() == {"mismatch": 4, "answered": 1}


def test_guessing_has_an_end(name_server: Start) -> None:
    def guesses(asked: Asked) -> Iterable[bytes]:
        good = asked.reply("192.0.2.66")
        for number in range(1, 2 * MAX_MISMATCHES):
            yield struct.pack("!H", asked.message.id ^ number) + good[2:]
        yield good

    asking = Asking(at(name_server(guesses)), tries=(2.0,))
    assert asking.one() is None
    assert asking.counted() == {"mismatch": MAX_MISMATCHES, "error": 1}


def test_only_the_server_is_heard(name_server: Start) -> None:
    """A right guess from another port of the same host: the socket is connected."""

    def from_elsewhere(asked: Asked) -> Iterable[bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(asked.reply("192.0.2.66"), asked.source)
        yield from answer(asked)

    asking = Asking(at(name_server(from_elsewhere)))
    response = asking.one()
    assert response is not None
    assert found(response) == ["192.0.2.1"]
    assert asking.counted() == {"answered": 1}


# truncation


def cut_by_udp(asked: Asked) -> Iterable[bytes]:
    if asked.transport == "udp":
        yield asked.reply(flags=dns.flags.TC)
    else:
        yield asked.reply(*(f"10.0.0.{number}" for number in range(1, 101)))


@pytest.mark.parametrize("most", [MAX_UDP, MAX_TCP])
def test_what_is_cut_is_asked_for_by_tcp(name_server: Start, most: int) -> None:
    server = name_server(cut_by_udp)
    asking = Asking(at(server))
    response = asking.one(most=most)
    assert response is not None
    assert len(found(response)) == 100
    assert asking.counted() == {"truncated": 1, "answered": 1}
    assert [one.transport for one in server.asked] == ["udp", "tcp"]
    assert server.asked[0].message.id != server.asked[1].message.id


def hangs_by_tcp(asked: Asked) -> Iterable[bytes]:
    if asked.transport == "udp":
        yield asked.reply(flags=dns.flags.TC)


def lies_by_tcp(asked: Asked) -> Iterable[bytes]:
    if asked.transport == "udp":
        yield asked.reply(flags=dns.flags.TC)
    else:
        good = asked.reply("192.0.2.66")
        yield bytes([good[0] ^ 1]) + good[1:]


@pytest.mark.parametrize("script", [hangs_by_tcp, lies_by_tcp])
def test_where_tcp_fails(name_server: Start, script: Any, monkeypatch: Any) -> None:
    """A client by UDP has the cut answer, and can ask by TCP itself; one by TCP has nothing of it."""
    monkeypatch.setattr("fastmesh.agent.dns.forward.TCP_S", 0.1)
    server = name_server(script)
    response = Asking(at(server)).one()
    assert response is not None
    assert response.flags & dns.flags.TC
    assert Asking(at(server)).one(most=MAX_TCP) is None


# loops


def test_its_own_queries_are_known_while_they_are_under_way(name_server: Start) -> None:
    seen: list[bool] = []
    asking = Asking()

    def look(asked: Asked) -> Iterable[bytes]:
        seen.append(asking.forwarder.is_own(asked.source[:2]))
        return answer(asked)

    server = name_server(look)
    asking.forwarder._servers = lambda: [at(server)]
    asking.one()
    assert seen == [True]
    assert not asking.forwarder.is_own(server.asked[0].source[:2])


def test_the_mark_is_put_where_it_is_allowed(name_server: Start) -> None:
    """Whether or not it is: the question is asked."""
    assert Asking(at(name_server()), mark=0x0FA5).one() is not None


# resolv.conf(5)


def test_the_servers_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(
        b"# nameserver 192.0.2.9\nsearch example.com\n nameserver\t192.0.2.1 # first\n"
        b"nameserver 2001:db8::1\nnameserver fe80::1%lo\nnameserver nonsense\nnameserver\n"
        b"nameserver 192.0.2.1\n\xff\xfe\noptions ndots:5\n"
    )
    hosts = ("192.0.2.1", "2001:db8::1", "fe80::1%lo")
    assert read_servers(path) == [Server(host, 53) for host in hosts]
    assert read_servers(tmp_path / "nothing") == []
    assert read_servers(tmp_path) == []


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fastmesh.agent.dns.forward.LOOK_S", 0.0)
    path = tmp_path / "resolv.conf"
    servers = SystemServers(Server("127.0.0.1", 53), path)
    assert servers() == []
    path.write_text("nameserver 127.0.0.1\nnameserver 192.0.2.1\n")
    assert servers() == [Server("192.0.2.1", 53)], "never itself"
    draft = tmp_path / "draft"
    draft.write_text("".join(f"nameserver 192.0.2.{number}\n" for number in range(2, 9)))
    draft.replace(path)
    assert servers() == [Server(f"192.0.2.{number}", 53) for number in (2, 3, 4)]
    path.unlink()
    assert servers() == []


def test_the_file_is_not_looked_at_for_every_query(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    servers = SystemServers(Server("127.0.0.1", 53), path)
    assert servers() == []
    path.write_text("nameserver 192.0.2.1\n")
    assert servers() == []
