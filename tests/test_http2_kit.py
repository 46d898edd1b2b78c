"""The HTTP/2 test kit itself: its client and its scripted upstream against each other, and the corpus against
a server of somebody else (nghttpd), which must agree with nearly all of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from kit import http2, http2_case, http2_server
from kit.fixtures import Serving
from kit.http2 import Code, Type
from kit.http2_client import Client, dial
from kit.http2_corpus import Outcome, Target
from kit.http2_server import H2Conn, h2
from kit.http2_upstream import BIG, SMALL
from kit.limits import SANITIZED, bare, wait_until
from kit.ports import free_port, release_port
from kit.public import Shop
from kit.upstream import Upstream

pytestmark = pytest.mark.skipif(SANITIZED, reason="runs none of our compiled code")

NGHTTPD = shutil.which("nghttpd") or "/usr/sbin/nghttpd"

# Where nghttpd is wrong, or may differ because it forwards nothing (tests/corpus/http2/README.md).
LENIENT = {
    "rfc9113-8.3.1-authority-with-user",
    "rfc9113-8.3.1-host-and-authority-different",
    "rfc9113-8.3.1-path-beyond-ascii",
}

HEAD = http2.headers(1, [(":status", "200")])


def client_of(server: Upstream, generous: bool = False) -> Client:
    client = dial(server.address)
    client.generous = generous
    client.open()
    return client


# the scripted upstream


def test_requests_and_answers(upstream: Serving) -> None:
    server = upstream(h2(http2_server.echo))
    with client_of(server, generous=True) as client:
        body = bytes(range(256)) * 1024
        client.send(http2.headers(1, http2.request("POST", "/first?q")))
        for at in range(0, len(body), 16384):
            size = min(16384, len(body) - at)
            client.until(partial(has_room, client, at + size), "a window")
            client.send(http2.data(1, body[at : at + size]))
        client.send(http2.headers(1, [("x-sum", "42")], end=True))
        answer = client.until_over(1)
        assert answer.status == 200
        assert answer.get("x-path") == "/first?q"
        assert bytes(answer.body) == body
        assert answer.trailers == [("x-sum", "42")]
        assert client.ask(3).ended
    assert [request.line for request in server.requests] == ["POST /first?q HTTP/2", "GET / HTTP/2"]


def has_room(client: Client, size: int) -> bool:
    """The windows allow `size` bytes in all on stream 1."""
    return size <= http2.WINDOW + min(client.credit.get(1, 0), client.credit.get(0, 0))


def test_interim_responses_trailers_and_resets(upstream: Serving) -> None:
    def script(conn: H2Conn) -> None:
        for request in conn:
            if request.path == "/reset":
                conn.head(request)
                conn.data(request, b"half")
                conn.reset(request, Code.ENHANCE_YOUR_CALM)
            else:
                conn.interim(request, 103, [("link", "</a>")])
                conn.answer(request, 201, [("x-a", "b")], b"body", [("x-end", "1")])

    with client_of(upstream(h2(script))) as client:
        answer = client.ask(1)
        assert [dict(head)[":status"] for head in answer.heads] == ["103", "201"]
        assert (bytes(answer.body), answer.trailers) == (b"body", [("x-end", "1")])
        answer = client.ask(3, http2.request(path="/reset"))
        assert (bytes(answer.body), answer.reset) == (b"half", Code.ENHANCE_YOUR_CALM)
        assert client.ask(5).status == 201


def test_a_client_that_resets_and_one_that_takes_nothing(upstream: Serving) -> None:
    codes = []

    def script(conn: H2Conn) -> None:
        request = conn.next_request()
        assert request is not None
        conn.answer(request, body=bytes(200_000))
        codes.append(request.reset)
        for other in conn:
            conn.answer(other)

    with client_of(upstream(h2(script))) as client:
        client.send(http2.headers(1, http2.request(), end=True))
        answer = client.answer(1)
        client.until(lambda: len(answer.body) == http2.WINDOW, "a full window")
        client.send(http2.reset(1), http2.window_update(0, http2.WINDOW))
        assert client.ask(3).ended
    assert codes == [Code.CANCEL]


def test_goaway_and_raw_frames(upstream: Serving) -> None:
    def script(conn: H2Conn) -> None:
        request = conn.next_request()
        assert request is not None
        conn.goaway()
        conn.raw(http2.Frame(0x77, 0, 0, b"unknown"))
        conn.ping()
        conn.answer(request, body=b"last words")

    with client_of(upstream(h2(script))) as client:
        assert bytes(client.ask(1).body) == b"last words"
        client.until_closed()
        assert client.goaways == [(1, Code.NO_ERROR, b"")]
        assert [frame.payload for frame in client.frames if frame.type == 0x77] == [b"unknown"]


def test_windows_of_an_upstream_that_stalls(upstream: Serving) -> None:
    def script(conn: H2Conn) -> None:
        request = conn.next_request()
        assert request is not None
        conn.until(lambda: len(request.body) == 1000, "a window full")
        conn.allow(request.stream)
        conn.answer(conn.whole(request), body=bytes(request.body[-4:]))

    with client_of(upstream(h2(script, generous=False, settings={"INITIAL_WINDOW_SIZE": 1000}))) as client:
        client.send(http2.headers(1, http2.request("POST")), http2.data(1, bytes(1000)))
        client.until(lambda: client.credit.get(1, 0) == 1000, "the window")
        assert client.settings[http2.Setting.INITIAL_WINDOW_SIZE] == 1000
        client.send(http2.data(1, b"tail", end=True))
        assert bytes(client.until_over(1).body) == b"tail"


def test_over_tls(upstream: Serving, tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    server = upstream(h2(http2_server.answering(b"safe"), shop.server(shop.issue("one", "one.example"))))
    with dial(server.address, shop.client(), "one.example") as client:
        client.open()
        assert bytes(client.ask(1).body) == b"safe"
        assert client.fence()


def test_the_upstream_refuses_a_bad_client(upstream: Serving) -> None:
    server = upstream(h2(http2_server.echo))
    with client_of(server) as client:
        client.send(http2.data(1, b"on an idle stream"))
        client.until_closed()
    server.wait_open(0)
    assert len(server.errors) == 1
    server.tolerate(type(server.errors[0]))


# the client sees what a server does wrong


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (http2.Frame(Type.DATA, 0, 1, b"early"), "out of place"),
        (http2.Frame(Type.DATA, 0, 9, b"strange"), "never opened"),
        (http2.Frame(Type.PING, 0, 0, b"short"), "bad"),
        (http2.Frame(Type.PUSH_PROMISE, 4, 1, bytes(4)), "unexpected"),
        (http2.Frame(0x77, 0, 0, bytes(16385)), "too large"),
        (http2.settings(ack=True), "were not sent"),
        (http2.headers(1, [(":status", "103")], end=True), "interim"),
        (http2.Frame(Type.HEADERS, 0, 1, b"").encode() + http2.ping().encode(), "inside a header block"),
        (
            http2.headers(1, [(":status", "200")]).encode() + 5 * http2.data(1, bytes(16384)).encode(),
            "window",
        ),
    ],
)
def test_offences_of_a_server_are_seen(upstream: Serving, wrong: http2.Frame | bytes, told: str) -> None:
    def script(conn: H2Conn) -> None:
        assert conn.next_request() is not None
        conn.raw(wrong)
        conn.until_closed()

    with client_of(upstream(h2(script))) as client:
        client.fence()
        with pytest.raises(AssertionError, match=told):
            client.ask(1)


# the corpus


@pytest.fixture(scope="module")
def nghttpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("nghttpd")
    (directory / "index.html").write_bytes(SMALL)
    (directory / "big").write_bytes(BIG)
    port = free_port()
    command = [NGHTTPD, "--no-tls", "-a", "127.0.0.1", "-d", str(directory), str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=bare(), start_new_session=True
    )

    def answers() -> bool:
        assert process.poll() is None, f"nghttpd ended with {process.returncode}"
        try:
            dial(("127.0.0.1", port)).conn.close()
        except OSError:
            return False
        return True

    try:
        wait_until(answers, "nghttpd")
        yield Target(("127.0.0.1", port))
    finally:
        process.kill()
        process.wait()
        release_port(port)


def wanted(case: http2_case.Case, outcome: Outcome) -> str:
    """What is wrong with nghttpd's outcome, or nothing."""
    if str(case) in LENIENT:
        return "" if outcome.complaint else "it has learned this: take it from the list"
    return outcome.complaint


@pytest.mark.parametrize("case", http2_case.load(), ids=str)
def test_the_corpus_agrees_with_nghttpd(nghttpd: Target, case: http2_case.Case) -> None:
    outcome = nghttpd.run(case)
    if outcome.missing:
        pytest.skip(f"nghttpd: no {outcome.missing}")
    assert not wanted(case, outcome), str(outcome)


def test_an_outcome_can_be_wrong(upstream: Serving, tmp_path: Path) -> None:
    """A server that answers whatever comes, and every expectation that it does not meet."""
    target = Target(upstream(h2(http2_server.answering())).address)
    for number, (expect, right) in enumerate(
        {
            "answered 1": True,
            "answered 1 any": True,
            "answered 1 404": False,
            "answered 1, body 1 2": True,
            "answered 1, body 1 3": False,
            "answered 1, trailer 1 a=b": False,
            "answered 1, interim 1 103": False,
            "ignored": True,
            "served": True,
            "malformed 1": False,
            "stream 1 CANCEL": False,
            "connection PROTOCOL_ERROR": False,
            "closed": False,
        }.items()
    ):
        path = tmp_path / f"{number}.h2"
        path.write_text(
            f"rule: test\nexpect: {expect}\n\nHEADERS 1 END_HEADERS END_STREAM\n    GET //test/\nWAIT end 1\n"
        )
        outcome = target.run(http2_case.parse(path))
        assert bool(outcome.complaint) != right, f"{expect}: {outcome}"


@pytest.mark.parametrize(
    "text",
    [
        "rule: x\nexpect: answered\n\n",
        "rule: x\nexpect: stream 1 OOPS\n\n",
        "rule: x\nexpect: hoped 1\n\n",
        "rule: x\n\nPING 0",
        "expect: ignored\n\nPING 0",
        "rule: x\nexpect: ignored\nupstream: some\n\n",
        "rule: x\nexpect: ignored\nwhatever: 1\n\n",
        "rule: x\nexpect: ignored\n\nPONG 0",
        "rule: x\nexpect: ignored\n\nPING 0 SOMETIMES",
        "rule: x\nexpect: ignored\n\nPING 0 size=1",
        "rule: x\nexpect: ignored\n\nHEADERS 1\n    no field",
    ],
)
def test_files_that_say_nothing_sensible_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "case.h2"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"case\.h2"):
        http2_case.parse(path)
