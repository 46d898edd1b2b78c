"""gRPC through the mesh a frame at a time: the wire, deadlines, retries, balance, the mesh's own answers.

Client and service are scripted, so that they may do what no library does: ignore a deadline, refuse a stream,
end a connection in the middle of calls.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import gzip
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.fixtures import Serving
from kit.grpc_compare import added_by_proxies
from kit.grpc_mesh import WAYS, GrpcMesh, Host, grpc_mesh
from kit.grpc_peers import Peers, Service
from kit.grpc_raw import Fields, RawEnd, Stream, answering, frame, serving
from kit.limits import DEADLINE, PATIENCE, wait_until
from kit.pki import Pki
from kit.wire import connect

CANCEL, REFUSED_STREAM, INTERNAL_ERROR = 8, 7, 2  # RFC 9113, 7
UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@pytest.fixture(scope="module")
def mesh(grpc_peers: Peers, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcMesh]:
    with grpc_mesh(tmp_path_factory.mktemp("grpc-wire"), pki, grpc_peers) as running:
        yield running


@contextlib.contextmanager
def client(address: Host) -> Iterator[RawEnd]:
    with connect(address) as conn:
        yield RawEnd(conn)


def raw(way: str, mesh: GrpcMesh) -> contextlib.AbstractContextManager[RawEnd]:
    """A client on its way to the scripted service."""
    return client(mesh.way(way, "svc-raw"))


def own(fields: Fields | None) -> Fields:
    """Without what proxies add. Only the order of values of one name means something."""
    kept = [field for field in fields or [] if not added_by_proxies(field[0])]
    return sorted(kept, key=lambda field: field[0])


def test_nothing_on_the_wire_is_touched(mesh: GrpcMesh, upstream: Serving) -> None:
    """Encodings of messages, of metadata and of grpc-message pass as they are, byte for byte."""
    squeezed = gzip.compress(b"a message " * 100)
    seen: list[Stream] = []

    def answer(end: RawEnd, stream: Stream) -> None:
        end.head(stream, [("grpc-encoding", "gzip"), ("x-odd-bin", "AAE"), ("x-down", "1"), ("x-down", "2")])
        end.send(stream, frame(squeezed, compressed=True) + frame(b"plain") + frame(b""))
        details = base64.b64encode(b"\x08\x0b\xff").decode()
        end.status(
            stream,
            11,
            [("grpc-message", "caf%C3%A9: 100%25 %zz"), ("grpc-status-details-bin", details), ("x-t", ",")],
        )

    upstream(serving(answer, seen), address=mesh.raw)
    fields = [
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "identity,gzip, x-own"),
        ("user-agent", "raw/1 (a test)"),
        ("x-pad-bin", "/w=="),
        ("x-nopad-bin", "/w"),
        ("x-list-bin", "AA,AQ=="),
        ("x-twice", "a, b"),
        ("x-twice", "c"),
        ("x-none", ""),
    ]
    answers = []
    for address in (mesh.raw, mesh.way("edge", "svc-raw"), mesh.way("mesh", "svc-raw")):
        with client(address) as end:
            answers.append(
                end.call(
                    "/a.b.C/D%2fe",
                    fields,
                    authority="svc-raw",
                    data=frame(squeezed, compressed=True),
                    content_type="application/grpc+own",
                )
            )
    direct_call, *calls = seen
    direct, *proxied = answers
    assert direct.status == 11
    assert direct.messages == [(True, squeezed), (False, b"plain"), (False, b"")]
    for call in calls:
        assert own(call.heads[0]) == own(direct_call.heads[0])
        assert call.data == direct_call.data
    for got in proxied:
        assert [own(head) for head in got.heads] == [own(head) for head in direct.heads]
        assert got.data == direct.data
        assert own(got.trailers) == own(direct.trailers)


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_of_trailers_only_stays_one(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    def answer(end: RawEnd, stream: Stream) -> None:
        head = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5"), ("x-t", "1")]
        end.h2.send_headers(stream.number, head, end_stream=True)
        end.flush()

    upstream(serving(answer), address=mesh.raw)
    with raw(way, mesh) as end:
        got = end.call(authority="svc-raw")
        assert (got.trailers_only, got.status, got.end["x-t"]) == (True, 5, "1")


@pytest.mark.parametrize("way", WAYS)
def test_a_ping_is_answered_during_a_call_and_after(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    upstream(answering(b"late"), address=mesh.raw)
    with raw(way, mesh) as end:
        call = end.start(authority="svc-raw", end=False)
        end.ping(b"the 1st.")
        end.h2.end_stream(call.number)
        end.flush()
        assert end.finish(call).status == 0
        end.ping(b"the 2nd.")


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_stands_still_holds_up_no_other(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    held: list[Stream] = []

    def answer(end: RawEnd, stream: Stream) -> None:
        if stream.fields[":path"] == "/hold":
            held.append(stream)
            return
        end.reply(stream, b"now")
        for one in held:
            if stream.fields[":path"] == "/release":
                end.reply(one, b"then")

    upstream(serving(answer), address=mesh.raw)
    with raw(way, mesh) as end:
        first = end.start("/hold", authority="svc-raw")
        for _ in range(20):
            assert end.call("/x", authority="svc-raw").messages == [(False, b"now")]
        assert not first.heads
        assert end.call("/release", authority="svc-raw").status == 0
        assert end.finish(first).messages == [(False, b"then")]


@pytest.mark.parametrize("way", WAYS)
def test_a_reset_by_the_client_reaches_the_service(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    codes: list[int | None] = []

    def answer(end: RawEnd, stream: Stream) -> None:
        if stream.fields[":path"] == "/next":
            end.reply(stream, b"")
            return
        end.head(stream)
        end.until(lambda: stream.reset is not None, "a reset")
        codes.append(stream.reset)

    upstream(serving(answer), address=mesh.raw)
    with raw(way, mesh) as end:
        call = end.start(authority="svc-raw")
        end.until(lambda: bool(call.heads), "a head")
        end.reset(call, CANCEL)
        wait_until(lambda: codes, "a reset at the service")
        assert codes == [CANCEL]
        assert end.call("/next", authority="svc-raw").status == 0, "the connection goes on"


# deadlines


def seconds(value: str) -> float:
    """grpc-timeout as PROTOCOL-HTTP2 of gRPC has it: at most 8 digits and a unit."""
    assert value[:-1].isdigit(), value
    assert len(value) <= 9, value
    return int(value[:-1]) * UNITS[value[-1]]


@pytest.mark.parametrize("way", WAYS)
def test_the_proxy_enforces_a_deadline_that_the_service_ignores(
    mesh: GrpcMesh, upstream: Serving, way: str
) -> None:
    seen: list[Stream] = []

    def ignore(end: RawEnd, stream: Stream) -> None:
        end.until(lambda: stream.reset is not None, "being told to stop")

    upstream(serving(ignore, seen), address=mesh.raw)
    asked = 0.5 * PATIENCE
    with raw(way, mesh) as end:
        got = end.call("/a/b", [("grpc-timeout", f"{int(asked * 1000)}m")], authority="svc-raw")
        assert (got.status, got.trailers_only) == (4, True), got
        assert got.fields[":status"] == "200"
        assert got.fields["content-type"].startswith("application/grpc")
    wait_until(lambda: seen and seen[0].reset is not None, "the end of the call at the service")
    assert seen[0].reset == CANCEL
    assert 0 < seconds(seen[0].fields["grpc-timeout"]) <= asked
    assert len(seen) == 1, "a call whose time is over is not tried again"


@pytest.mark.parametrize("timeout", ["300m", "300000u", "99999999n", "0S", "0m"])
def test_every_unit_of_a_deadline(mesh: GrpcMesh, upstream: Serving, timeout: str) -> None:
    upstream(serving(lambda end, stream: None), address=mesh.raw)
    with raw("edge", mesh) as end:
        assert end.call("/a/b", [("grpc-timeout", timeout)], authority="svc-raw").status == 4


@pytest.mark.parametrize("timeout", ["99999999H", "1H", "20000M", "20000S"])
@pytest.mark.parametrize("way", WAYS)
def test_a_deadline_far_away_harms_nothing(mesh: GrpcMesh, upstream: Serving, timeout: str, way: str) -> None:
    seen: list[Stream] = []
    upstream(answering(b"in time", seen), address=mesh.raw)
    with raw(way, mesh) as end:
        assert end.call("/a/b", [("grpc-timeout", timeout)], authority="svc-raw").status == 0
    left = seconds(seen[0].fields["grpc-timeout"])
    assert seconds(timeout) - DEADLINE <= left <= seconds(timeout) * 1.01


@pytest.mark.parametrize("way", WAYS)
def test_a_deadline_ends_a_stream_that_has_begun(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    def stall(end: RawEnd, stream: Stream) -> None:
        end.head(stream)
        end.send(stream, frame(b"first"))
        end.until(lambda: stream.reset is not None, "being told to stop")

    upstream(serving(stall), address=mesh.raw)
    with raw(way, mesh) as end:
        timeout = f"{int(500 * PATIENCE)}m"
        got = end.call("/a/b", [("grpc-timeout", timeout)], authority="svc-raw")
        assert got.messages == [(False, b"first")]
        # Behind messages the status comes as trailers; where that cannot be, as a reset (of gRPC: CANCELLED).
        assert got.status == 4 or got.reset == CANCEL, got


# errors of the mesh itself


@pytest.mark.parametrize(
    ("authority", "status"),
    [("nobody-here", 12), ("nowhere", 14), ("refusing", 14), ("forbidden", 7), ("strangers", 7)],
)
def test_the_meshs_own_answers_are_trailers_only(
    mesh: GrpcMesh, upstream: Serving, authority: str, status: int
) -> None:
    seen: list[Stream] = []
    upstream(answering(b"", seen), address=mesh.raw)
    with client(mesh.outbound) as end:
        for content_type in ("application/grpc", "application/grpc+proto"):
            got = end.call(authority=authority, content_type=content_type)
            assert (got.status, got.trailers_only) == (status, True), got
            assert got.fields[":status"] == "200"
            assert got.fields["content-type"].startswith("application/grpc")
            message = got.fields["grpc-message"]
            assert message.isascii()
            assert message.isprintable()
            assert "127.0.0.1" not in message, "an address of the inside shows"
        assert end.call(authority="svc-raw").status == 0, "and the connection goes on"
    assert len(seen) == 1


def test_others_get_answers_of_http(mesh: GrpcMesh) -> None:
    """Who does not speak gRPC is not answered in it."""
    with client(mesh.outbound) as end:
        for authority, status in (("nobody-here", "404"), ("nowhere", "503"), ("forbidden", "403")):
            got = end.call(authority=authority, content_type="text/plain")
            assert got.fields[":status"] == status
            assert "grpc-status" not in got.fields | dict(got.trailers or [])


# services behind one connection, endpoints behind one service


def test_calls_of_one_connection_take_turns_over_the_endpoints(mesh: GrpcMesh, upstream: Serving) -> None:
    for address in mesh.three:
        upstream(answering(str(address[1]).encode()), address=address)
    with client(mesh.outbound) as end:
        answers = [end.call(authority="three").messages[0][1] for _ in range(30)]
        counted = collections.Counter(int(answer) for answer in answers)
        assert counted == {port: 10 for _, port in mesh.three}
        together = [end.start(authority="three") for _ in range(30)]
        counted = collections.Counter(int(end.finish(call).messages[0][1]) for call in together)
        assert counted == {port: 10 for _, port in mesh.three}


def test_one_connection_carries_calls_to_many_services(mesh: GrpcMesh, upstream: Serving) -> None:
    upstream(answering(b"raw"), address=mesh.raw)
    for address in mesh.three:
        upstream(answering(b"three"), address=address)
    with client(mesh.outbound) as end:
        calls = [end.start(authority=name) for name in ("svc-raw", "three", "nowhere") * 5]
        got = [end.finish(call) for call in calls]
    assert [one.messages[0][1] if one.status == 0 else one.status for one in got] == [
        b"raw",
        b"three",
        14,
    ] * 5


# calls that a service has not begun are tried again, others are not


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_stream_is_tried_again(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    seen: list[Stream] = []

    def refuse_once(end: RawEnd, stream: Stream) -> None:
        if len(seen) == 1:
            end.reset(stream, REFUSED_STREAM)
        else:
            end.reply(stream, bytes(stream.data))

    upstream(serving(refuse_once, seen), address=mesh.raw)
    with raw(way, mesh) as end:
        got = end.call(authority="svc-raw", data=frame(b"once more"))
        assert (got.status, got.messages) == (0, [(False, frame(b"once more"))])
    assert len(seen) == 2


@pytest.mark.parametrize("way", WAYS)
def test_refusals_without_end_are_an_answer_in_the_end(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    seen: list[Stream] = []
    upstream(serving(lambda end, stream: end.reset(stream, REFUSED_STREAM), seen), address=mesh.raw)
    with raw(way, mesh) as end:
        assert end.call(authority="svc-raw").status == 14
    assert 1 <= len(seen) <= 10


@pytest.mark.parametrize("way", WAYS)
def test_what_a_service_may_have_done_is_not_done_twice(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    seen: list[Stream] = []
    upstream(serving(lambda end, stream: end.reset(stream, INTERNAL_ERROR), seen), address=mesh.raw)
    with raw(way, mesh) as end:
        got = end.call(authority="svc-raw")
        assert got.status in (13, 14) or got.reset == INTERNAL_ERROR, got
    assert len(seen) == 1


@pytest.mark.parametrize("way", WAYS)
def test_goaway_loses_no_call(mesh: GrpcMesh, upstream: Serving, way: str) -> None:
    """Calls that the service began end on the old connection, the others go to a new one (RFC 9113, 6.8)."""
    seen: list[tuple[int, str]] = []
    begun = 3

    def leave(end: RawEnd, stream: Stream) -> None:
        """The first connection takes three calls, says so, and answers them last of all."""
        seen.append((end.conn.index, stream.fields["x-number"]))
        if end.conn.index > 0:
            end.reply(stream, stream.fields["x-number"].encode())
        elif len([one for one in seen if one[0] == 0]) == begun:
            numbers = sorted(end.streams)[:begun]
            end.go_away(numbers[-1])
            for number in numbers:
                end.reply(end.streams[number], end.streams[number].fields["x-number"].encode())

    server = upstream(serving(leave), address=mesh.raw)
    with raw(way, mesh) as end:
        calls = [end.start("/a/b", [("x-number", str(n))], authority="svc-raw") for n in range(10)]
        for number, call in enumerate(calls):
            got = end.finish(call)
            assert (got.status, got.messages) == (0, [(False, str(number).encode())]), got
        assert end.call("/a/b", [("x-number", "more")], authority="svc-raw").status == 0
    assert len(server.connections) >= 2
    on_the_new = [number for index, number in seen if index > 0]
    assert len(on_the_new) == len(set(on_the_new)) == 10 - begun + 1, seen


def test_a_service_that_restarts_gracefully_loses_no_call(mesh: GrpcMesh, tmp_path: Path) -> None:
    """Two real services; one drains, ends, and comes back, and nobody who calls on and on notices."""
    services = [Service(tmp_path, "grpcio", port) for _, port in mesh.pair]
    ports = [service.port for service in services]
    asked: list[int | str] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            with client(mesh.outbound) as end:
                while not stop.is_set():
                    calls = [end.start(authority="pair") for _ in range(4)]
                    for call in calls:
                        got = end.finish(call)
                        asked.append(int(got.messages[0][1]) if got.status == 0 else str(got))
        except Exception as error:
            asked.append(repr(error))

    def both_after(mark: int) -> bool:
        return set(ports) <= set(asked[mark:]) or not caller.is_alive()

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        wait_until(lambda: both_after(0), "answers of both")
        services[0].drain()
        services[0].process.wait(DEADLINE)
        services[0].close()
        mark = len(asked)
        wait_until(lambda: len(asked) >= mark + 20 or not caller.is_alive(), "calls to the other")
        services[0] = Service(tmp_path, "grpcio", ports[0])
        assert services[0].port == ports[0]
        mark = len(asked)
        wait_until(lambda: both_after(mark), "answers of both again")
    finally:
        stop.set()
        caller.join(2 * DEADLINE)
        for service in services:
            service.close()
    assert not caller.is_alive()
    # A service that closes while calls still come in resets the connection, and the kernel may throw its last
    # GOAWAY away with that: such a call may have been served, so nobody repeats it. All else is lost by us.
    lost = [one for one in asked if one not in ports]
    # What the service itself has answered, as grpcio does with calls that come while it stops, is not
    # ours either.
    ours = [one for one in lost if "x-fastmesh-reason" in str(one) and "upstream_reset" not in str(one)]
    assert not ours, ours[:5]
    assert set(ports) <= set(asked)
