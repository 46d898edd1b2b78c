"""Outbound interception with real redirects: where the client wanted to go decides.

Each test runs on a host of its own (a network namespace) whose outgoing connections are redirected to
`outbound`, in both address families; the servers are on other addresses of the same host. Connections that
carry our mark are let through.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kit import http2
from kit.fixtures import Serve, Serving
from kit.http2_client import dial
from kit.limits import wait_until
from kit.netns import Namespace, namespaces, needs_root
from kit.pki import Pki
from kit.upstream import ServerConn, answering
from kit.wire import Conn, connect, request

pytestmark = needs_root

OUT = 15001
MARK = 0x0FA5
HOSTS = {4: "10.77.0.2", 6: "fd00:77::2"}
OTHERS = {4: "10.77.0.3", 6: "fd00:77::3"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
RULES = f"""
table inet test {{
    chain output {{
        type nat hook output priority -100
        meta mark {MARK} return
        ip daddr 10.77.0.0/24 tcp dport 1-65535 redirect to :{OUT}
        ip6 daddr fd00:77::/64 tcp dport 1-65535 redirect to :{OUT}
    }}
}}
"""
families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        one.address("lo", *(f"{ip}/32" for ip in (HOSTS[4], OTHERS[4], "10.77.0.9")))
        one.address("lo", *(f"{ip}/128" for ip in (HOSTS[6], OTHERS[6])))
        one.nft(RULES)
        with one.inside():
            yield one


def at(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def config(services: dict[str, Any], **listener: Any) -> dict[str, Any]:
    common = {"role": "outbound", "transparent": True, **listener}
    return {
        "intercept": {"outbound": {}},
        "listeners": [
            {"name": "out", "bind": f"127.0.0.1:{OUT}", **common},
            {"name": "out6", "bind": f"[::1]:{OUT}", **common},
        ],
        "services": services,
    }


def get(conn: Conn, host: str = "any") -> bytes:
    conn.send(request(host=host))
    return conn.read_response().body


def greeting(conn: ServerConn) -> None:
    conn.send(b"220 ready\r\n")
    while conn.fill():
        conn.send(conn.take(len(conn.buffer)))
    conn.shutdown()


def echo(conn: ServerConn) -> None:
    while conn.fill():
        conn.send(conn.take(len(conn.buffer)))
    conn.shutdown()


@families
def test_the_destination_names_the_service(
    host: Namespace, serve: Serve, upstream: Serving, family: int
) -> None:
    server = upstream(answering(b"web"), address=(LOOPBACK[family], 9000))
    proxy = serve(
        config({"web": {"addresses": [at(HOSTS[family], 80)], "endpoints": [at(LOOPBACK[family], 9000)]}})
    )
    for _ in range(2):
        with connect((HOSTS[family], 80)) as client:
            assert get(client, "whatever.example") == b"web"
            assert get(client, at(HOSTS[family], 80)) == b"web"
    assert len(server.connections) == 1, "HTTP, by a pool"
    assert proxy.metrics().sum("requests_total", service="web", code="2xx") == 4


@families
def test_an_endpoint_is_its_services_address_too(
    host: Namespace, serve: Serve, upstream: Serving, family: int
) -> None:
    upstream(answering(b"web"), address=(HOSTS[family], 9000))
    proxy = serve(config({"web": {"endpoints": [at(HOSTS[family], 9000)]}}))
    with connect((HOSTS[family], 9000)) as client:
        assert get(client) == b"web"
    assert proxy.metrics().sum("requests_total", service="web", code="2xx") == 1


@families
def test_what_nobody_has_passes_through(
    host: Namespace, serve: Serve, upstream: Serving, family: int
) -> None:
    got: list[bytes] = []

    def script(conn: ServerConn) -> None:
        conn.send(b"first")
        conn.shutdown()
        got.append(conn.read_to_end())

    server = upstream(echo, script, address=(HOSTS[family], 7))
    proxy = serve(config({}))
    begun = time.monotonic()
    with connect((HOSTS[family], 7)) as client:
        for data in (b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", bytes(range(256)) * 5000):
            with client.sending(data):
                assert client.read_exact(len(data)) == data
        client.shutdown()
        client.expect_close(reset_ok=False)
    with connect((HOSTS[family], 7)) as client:
        assert client.read_to_end() == b"first"
        client.send(b"and I go on")
        client.shutdown()
        server.wait_open(0)
    assert got == [b"and I go on"]
    metrics = proxy.metrics()
    assert metrics.sum("passthrough_connections_total") == 2
    assert metrics.sum("detect_timeouts_total") == 0, "nothing to tell, nothing to wait for"
    assert time.monotonic() - begun < 5


@families
def test_passing_through_to_nobody(host: Namespace, serve: Serve, family: int) -> None:
    proxy = serve(config({}))
    with connect((HOSTS[family], 9)) as client:
        client.expect_close()
    proxy.wait_metric("refused", lambda m: m.by_reason("connect_refused") == 1)


@families
def test_unknown_destinations_can_be_refused(
    host: Namespace, serve: Serve, upstream: Serving, family: int
) -> None:
    server = upstream(echo, address=(HOSTS[family], 7))
    proxy = serve(config({}, unknown="reject"))
    with pytest.raises(ConnectionResetError), connect((HOSTS[family], 7)) as client:
        client.sock.recv(1)
    proxy.wait_metric("counted", lambda m: m.by_reason("unknown_destination") == 1)
    assert not server.connections


@families
def test_the_listener_itself_is_no_destination(host: Namespace, serve: Serve, family: int) -> None:
    """It would come back here, for ever."""
    proxy = serve(config({}))
    for _ in range(2):
        with pytest.raises(ConnectionResetError), connect((LOOPBACK[family], OUT)) as client:
            client.sock.recv(1)
    proxy.wait_metric("counted", lambda m: m.by_reason("loop") == 2)
    assert proxy.metrics().sum("upstream_connections_total") == 0


@pytest.mark.parametrize("workers", [1, 2])
@families
def test_rules_that_bring_our_own_connections_back(
    host: Namespace, serve: Serve, upstream: Serving, workers: int, family: int
) -> None:
    """Without an exception for our mark: known by both their ends, before the descriptors run out."""
    upstream(echo, address=(HOSTS[family], 7))
    host.run("nft", "flush", "ruleset")
    host.nft(RULES.replace(f"meta mark {MARK} return", ""))
    proxy = serve(config({"web": {"endpoints": [at(HOSTS[family], 80)], "protocol": "tcp"}}), workers=workers)
    for port in (7, 80):
        # The reset may be there before the handshake is told.
        with contextlib.suppress(ConnectionResetError), connect((HOSTS[family], port)) as client:
            client.expect_close()
    metrics = proxy.wait_metric("counted", lambda m: m.by_reason("loop") == 2)
    assert metrics.sum("upstream_connections_total") <= 2 * workers


def shared(**more: Any) -> dict[str, Any]:
    """Two services behind one address."""
    return config(
        {
            name: {"addresses": [at(ip, 80) for ip in HOSTS.values()], "endpoints": [f"127.0.0.1:{port}"]}
            for name, port in (("one.mesh", 9001), ("two.mesh", 9002))
        },
        **more,
    )


@families
def test_host_tells_services_of_one_address_apart(
    host: Namespace, serve: Serve, upstream: Serving, family: int
) -> None:
    upstream(answering(b"one"), address=("127.0.0.1", 9001))
    upstream(answering(b"two"), address=("127.0.0.1", 9002))
    proxy = serve(shared(unknown="reject"))
    with connect((HOSTS[family], 80)) as client:
        assert get(client, "two.mesh") == b"two"
        assert get(client, "ONE.mesh:80") == b"one"
        client.send(request(host="three.mesh"))
        assert client.read_response().reason == "no_service"
    with connect((HOSTS[family], 80)) as client:
        proxy.wait_metric("waited in vain", lambda m: m.sum("detect_timeouts_total") == 1)
        assert get(client, "one.mesh") == b"one", "late, and nobody's server was asked meanwhile"
    with connect((HOSTS[family], 80)) as client:
        client.send(request(host="three.mesh"))
        client.expect_close()
    proxy.wait_metric("refused", lambda m: m.by_reason("unknown_destination") == 1)


def test_a_host_that_is_none_of_theirs_passes_through(
    host: Namespace, serve: Serve, upstream: Serving
) -> None:
    upstream(answering(b"behind"), address=(HOSTS[4], 80))
    proxy = serve(shared())
    with connect((HOSTS[4], 80)) as client:
        head = request(host="three.mesh")
        client.send(head[:30])
        client.send(head[30:])
        assert client.read_response().body == b"behind"
        assert get(client, "one.mesh") == b"behind", "opaque: nobody looks any more"
    assert proxy.metrics().sum("passthrough_connections_total") == 1


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_later_requests_for_others_go_to_the_destination(
    host: Namespace, serve: Serve, upstream: Serving, version: str
) -> None:
    """On a connection that began as HTTP for one of them: where they would have gone without us."""
    upstream(answering(b"one"), address=("127.0.0.1", 9001))
    upstream(answering(b"two"), address=("127.0.0.1", 9002))
    behind = upstream(answering(b"behind"), address=(HOSTS[4], 80))
    proxy = serve(shared())
    wanted = {"one.mesh": b"one", "three.mesh": b"behind", "two.mesh": b"two", "four.mesh": b"behind"}
    if version == "HTTP/1.1":
        with connect((HOSTS[4], 80)) as client:
            assert {name: get(client, name) for name in wanted} == wanted
    else:
        with dial((HOSTS[4], 80)) as other:
            other.open()
            for stream, (name, body) in enumerate(wanted.items()):
                assert other.ask(2 * stream + 1, http2.request(authority=name)).body == body
    assert len(behind.connections) == 1, "a pool for each destination"
    metrics = proxy.metrics()
    assert metrics.sum("requests_total", code="2xx") == 4
    assert metrics.sum("requests_total", code="4xx") == 0


def test_late_bytes_tell_services_of_one_address_apart(
    host: Namespace, serve: Serve, upstream: Serving
) -> None:
    upstream(answering(b"one"), address=("127.0.0.1", 9001))
    behind = upstream(answering(b"behind"), greeting, address=(HOSTS[4], 80))
    proxy = serve(shared())
    with connect((HOSTS[4], 80)) as client:
        behind.wait_connections(1)
        assert get(client, "one.mesh") == b"one"
    assert proxy.metrics().sum("passthrough_connections_total") == 0
    with connect((HOSTS[4], 80)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
    proxy.wait_metric("passed through", lambda m: m.sum("passthrough_connections_total") == 1)


def test_connections_that_are_older_than_the_interception(
    host: Namespace, serve: Serve, upstream: Serving
) -> None:
    """Where they wanted to go is asked anew; what was made to the listener itself goes by Host as before."""
    upstream(answering(b"web"), address=("127.0.0.1", 9000))
    upstream(answering(b"behind"), address=(HOSTS[4], 81))
    services = {"web": {"addresses": [f"{HOSTS[4]}:80"], "endpoints": ["127.0.0.1:9000"]}}
    before = config(services)
    del before["intercept"]
    before["listeners"] = [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{OUT}"}]
    proxy = serve(before)
    with (
        connect((HOSTS[4], 80)) as taken,
        connect((HOSTS[4], 81)) as other,
        connect((LOOPBACK[4], OUT)) as own,
    ):
        for client in (taken, other, own):
            assert get(client, "web") == b"web"
        proxy.reload(**{**config(services), "listeners": config(services)["listeners"][:1]})
        for _ in range(2):
            assert get(taken, "whatever") == b"web"
            assert get(other, "web") == b"behind"
            assert get(own, "web") == b"web"
        own.send(request(host="whatever"))
        assert own.read_response().reason == "no_service"


@families
def test_a_tls_hello_tells_services_of_one_address_apart(
    host: Namespace, serve: Serve, upstream: Serving, pki: Pki, family: int
) -> None:
    """The name that the client asks for; the bytes are not touched."""
    heard: list[bytes] = []

    def take(conn: ServerConn) -> None:
        conn.fill()
        heard.append(bytes(conn.buffer))

    one = upstream(take, address=("127.0.0.1", 9001))
    two = upstream(take, address=("127.0.0.1", 9002))
    serve(shared(unknown="reject"))
    context = ssl.create_default_context()
    for name, server in (("two.mesh", two), ("one.mesh", one)):
        before = len(server.connections)
        with socket.create_connection((HOSTS[family], 80)) as sock, pytest.raises(OSError):
            context.wrap_socket(sock, server_hostname=name)
        assert len(server.connections) == before + 1
        wait_until(lambda: heard, "the hello")
        assert heard.pop()[:2] == b"\x16\x03"
    with socket.create_connection((HOSTS[family], 80)) as sock, pytest.raises(OSError):
        context.wrap_socket(sock, server_hostname="three.mesh")
    assert len(one.connections) == len(two.connections) == 1


@families
def test_endpoints_that_keep_the_port(host: Namespace, serve: Serve, upstream: Serving, family: int) -> None:
    """Each port has a pool of its own; opaque bytes keep it too."""
    other = f"[{OTHERS[6]}]" if family == 6 else OTHERS[4]
    addresses = [at(HOSTS[family], port) for port in (80, 81, 25)]
    servers = {port: upstream(answering(b"%d" % port), address=(OTHERS[family], port)) for port in (80, 81)}
    upstream(greeting, address=(OTHERS[family], 25))
    proxy = serve(config({"web": {"addresses": addresses, "endpoints": [other]}}, ports={"25": "tcp"}))
    for _ in range(3):
        for port in (80, 81):
            with connect((HOSTS[family], port)) as client:
                assert get(client) == b"%d" % port
    assert [len(server.connections) for server in servers.values()] == [1, 1]
    with connect((HOSTS[family], 25)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
        client.send(b"HELO")
        assert client.read_exact(4) == b"HELO"
    metrics = proxy.metrics()
    assert metrics.sum("detect_timeouts_total") == 0, "its protocol is declared"
    proxy.reload(services={"web": {"addresses": addresses, "endpoints": [other], "reuse_retry": "off"}})
    with connect((HOSTS[family], 81)) as client:
        assert get(client) == b"81"
    assert len(servers[81].connections) == 1, "pools outlive a reload that leaves their endpoint alone"


@families
def test_a_server_that_speaks_first_is_waited_for_once(
    host: Namespace, serve: Serve, upstream: Serving, family: int
) -> None:
    upstream(greeting, address=(HOSTS[family], 25))
    proxy = serve(config({"mail": {"endpoints": [at(HOSTS[family], 25)]}}))
    for number in range(3):
        begun = time.monotonic()
        with connect((HOSTS[family], 25)) as client:
            assert client.read_until(b"\n") == b"220 ready\r\n"
            assert number or time.monotonic() - begun >= 0.1
            data = bytes(range(256)) * 4000
            with client.sending(data):
                assert client.read_exact(len(data)) == data
    metrics = proxy.metrics()
    assert metrics.sum("detect_timeouts_total") == 1
    assert metrics.sum("detect_skipped_total") == 2
    status, text = proxy.admin("/services")
    assert status == 200
    (mail,) = [one for one in json.loads(text)["services"] if one["name"] == "mail"]
    (learned,) = mail["learned"]
    assert learned == {
        "destination": at(HOSTS[family], 25),
        "server_speaks_first": True,
        "timeouts": 1,
        "skipped": 2,
    }
    wait_until(lambda: "detect_timeout" in proxy.stderr(), "the warning")
    assert at(HOSTS[family], 25) in proxy.stderr()


def test_what_was_learned_refuses_no_request_that_rules_allow(
    host: Namespace, serve: Serve, upstream: Serving
) -> None:
    """As opaque bytes it would be, for good."""
    upstream(greeting, answering(b"web"), address=(HOSTS[4], 80))
    web = {"endpoints": [f"{HOSTS[4]}:80"]}
    rules = {"allow": [{"methods": ["GET"]}]}
    proxy = serve(config({"web": web}))
    with connect((HOSTS[4], 80)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
    (learned,) = json.loads(proxy.admin("/services")[1])["services"][0]["learned"]
    assert learned["server_speaks_first"]
    proxy.reload(services={"web": {**web, **rules}})
    with connect((HOSTS[4], 80)) as client:
        assert get(client) == b"web"
    proxy.reload(**config({"web": web}, **rules))
    with connect((HOSTS[4], 80)) as client:
        assert get(client) == b"web"
    assert proxy.metrics().sum("detect_skipped_total") == 0


def test_a_slow_client_teaches_nothing(host: Namespace, serve: Serve, upstream: Serving) -> None:
    """It is HTTP, as the next one."""
    upstream(answering(b"web"), address=(HOSTS[4], 80))
    proxy = serve(config({"web": {"endpoints": [f"{HOSTS[4]}:80"]}}))
    with connect((HOSTS[4], 80)) as client:
        proxy.wait_metric("waited for", lambda m: m.sum("detect_timeouts_total") == 1)
        assert get(client) == b"web"
    with connect((HOSTS[4], 80)) as client:
        assert get(client) == b"web"
    metrics = proxy.metrics()
    assert metrics.sum("requests_total", service="web", code="2xx") == 2
    assert metrics.sum("detect_skipped_total") == 0
    assert metrics.sum("detect_delay_seconds_count") == 2


def test_a_client_that_speaks_first_after_all_is_believed(
    host: Namespace, serve: Serve, upstream: Serving
) -> None:
    """Where a server spoke first there may be another one today."""
    server = upstream(greeting, answering(b"web"), address=(HOSTS[4], 80))
    proxy = serve(config({"web": {"endpoints": [f"{HOSTS[4]}:80"]}}))
    with connect((HOSTS[4], 80)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
    for _ in range(2):
        with connect((HOSTS[4], 80)) as client:
            assert get(client) == b"web"
    metrics = proxy.metrics()
    assert metrics.sum("detect_skipped_total") == 1
    assert metrics.sum("requests_total", service="web", code="2xx") == 2
    server.wait_connections(3)


def test_opaque_services_are_not_looked_at(host: Namespace, serve: Serve, upstream: Serving) -> None:
    upstream(greeting, address=(HOSTS[4], 25))
    proxy = serve(config({"mail": {"endpoints": [f"{HOSTS[4]}:25"], "protocol": "tcp"}}))
    with connect((HOSTS[4], 25)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
    assert proxy.metrics().sum("detect_timeouts_total") == 0


def test_a_reload_moves_destinations_under_connections(
    host: Namespace, serve: Serve, upstream: Serving
) -> None:
    upstream(answering(b"one"), address=("127.0.0.1", 9001))
    upstream(answering(b"two"), address=("127.0.0.1", 9002))
    address = {"addresses": [f"{HOSTS[4]}:80"]}
    proxy = serve(config({"one": {**address, "endpoints": ["127.0.0.1:9001"]}}))
    with connect((HOSTS[4], 80)) as client:
        assert get(client) == b"one"
        proxy.reload(services={"two": {**address, "endpoints": ["127.0.0.1:9002"]}})
        assert get(client) == b"two"
        proxy.reload(services={"two": {"endpoints": ["127.0.0.1:9002"]}})
        client.send(request())
        assert client.read_response().reason == "connect_refused", "the destination itself"
        reject = [one | {"unknown": "reject"} for one in config({})["listeners"]]
        proxy.reload(services={"two": {"endpoints": ["127.0.0.1:9002"]}}, listeners=reject)
        client.send(request())
        assert client.read_response().reason == "no_service"


def test_many_at_once_by_several_workers(host: Namespace, serve: Serve, upstream: Serving) -> None:
    upstream(echo, address=(OTHERS[4], 7))
    upstream(answering(b"web"), address=("127.0.0.1", 9000))
    proxy = serve(
        config({"web": {"addresses": [f"{HOSTS[4]}:80"], "endpoints": ["127.0.0.1:9000"]}}), workers=2
    )
    failed: list[BaseException] = []

    def call(number: int) -> None:
        try:
            for _ in range(20):
                with connect((HOSTS[4], 80)) as client:
                    assert get(client) == b"web"
                with connect((OTHERS[4], 7)) as client:
                    client.send(b"%d" % number)
                    client.shutdown()
                    assert client.read_to_end() == b"%d" % number
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    metrics = proxy.metrics()
    assert metrics.sum("passthrough_connections_total") == metrics.sum("requests_total", code="2xx") == 160
