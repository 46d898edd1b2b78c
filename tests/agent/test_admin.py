"""The admin API over HTTP: what it answers, to whom, and how long it waits."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kit.agent import CONFIG, Agent
from kit.limits import DEADLINE, wait_until
from prometheus_client.parser import text_string_to_metric_families

StartAgent = Callable[..., Agent]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with one ready worker, for all tests that only ask; it must end well."""
    agent = Agent(tmp_path_factory.mktemp("agent"))
    try:
        agent.serving()
        wait_until(lambda: agent.get("/readyz").status == 200, "readiness")
        yield agent
        agent.stop()
    finally:
        agent.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything until the peer closes or resets."""
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


# -- answers


def test_the_index_names_the_endpoints(served: Agent) -> None:
    answer = served.get("/")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    for path in ("/healthz", "/readyz", "/metrics", "/services", "/config"):
        assert path in answer.text
        assert served.get(path).status == 200


def test_healthz(served: Agent) -> None:
    assert served.get("/healthz").json == {"status": "alive"}


def test_readyz_says_why_not(served: Agent) -> None:
    served.status("ready", "starting")
    wait_until(lambda: served.get("/readyz").status == 503, "the news of a starting worker")
    assert served.get("/readyz").json == {"status": "not ready", "reasons": ["worker 1 is starting"]}
    served.status("ready", "ready")
    wait_until(lambda: served.get("/readyz").status == 200, "readiness")
    served.status("draining", "ready", draining=True)
    wait_until(lambda: served.get("/readyz").status == 503, "the news of the drain")
    assert served.get("/readyz").json["reasons"] == ["the proxy is shutting down", "worker 0 is draining"]
    served.status("ready")
    wait_until(lambda: served.get("/readyz").status == 200, "readiness")


def test_metrics_is_prometheus_text(served: Agent) -> None:
    answer = served.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"fastmesh_build_info", "fastmesh_requests", "fastmesh_request_duration_seconds"} <= families
    openmetrics = served.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_config_is_the_snapshot(served: Agent) -> None:
    answer = served.get("/config")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["file"] == str(served.path)
    assert answer.json["errors"] == []
    assert answer.json["snapshot"]["services"][0]["name"] == "web"


def test_unknown_paths(served: Agent) -> None:
    for path in ("/nothing", "/metrics/", "//metrics", "/healthz/..", "/%00", "/config?x=1/../y"):
        answer = served.get(path)
        if path.startswith("/config"):
            assert answer.status == 200
        else:
            assert answer.status == 404, path
            assert set(answer.json) == {"error"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(served: Agent, method: str) -> None:
    answer = served.get("/config", method)
    assert answer.status == 405
    assert answer.headers["allow"] in ("GET, HEAD", "HEAD, GET")
    assert set(answer.json) == {"error"}


def test_head_is_get_without_the_body(served: Agent) -> None:
    for path in ("/", "/healthz", "/config", "/nothing"):
        head, get = served.get(path, "HEAD"), served.get(path)
        assert head.text == ""
        assert head.status == get.status
        assert head.headers["content-length"] == get.headers["content-length"]


def test_answers_are_not_kept_nor_guessed_at(served: Agent) -> None:
    for path in ("/", "/metrics", "/config", "/nothing"):
        headers = served.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


# -- who may ask


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:15000",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:99",
        "127.9.9.9",
        "[::1]",
        "[::1]:15000",
    ],
)
def test_loopback_names(served: Agent, host: str) -> None:
    assert served.get("/healthz", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:15000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[2001:db8::1]:15000",
        "127.1",
        "0x7f000001",
        "2130706433",
        "[127.0.0.1",
        "localhost:80:80",
        "",
    ],
)
def test_other_names_are_refused(served: Agent, host: str) -> None:
    answer = served.get("/config", host=host)
    assert answer.status == 421
    assert set(answer.json) == {"error"}
    assert served.get("/nothing", "POST", host=host).status == 421


def test_two_host_fields_are_refused(served: Agent) -> None:
    with served.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 421 " in read_all(sock).split(b"\r\n")[0]


def test_a_client_without_host_is_served(served: Agent) -> None:
    with served.connect() as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in read_all(sock).split(b"\r\n")[0]


def test_an_open_api_takes_addresses_and_the_own_name(start_agent: StartAgent) -> None:
    agent = start_agent(admin_host="0.0.0.0")
    agent.host = "127.0.0.1"
    agent.serving()
    for host in ("10.1.2.3:15000", "localhost", socket.gethostname()):
        assert agent.get("/healthz", host=host).status == 200
    assert agent.get("/healthz", host="evil.example").status == 421
    agent.stop()


def test_ipv6(start_agent: StartAgent) -> None:
    agent = start_agent(admin_host="::1")
    agent.serving()
    assert agent.get("/healthz").status == 200
    agent.stop()


# -- what a client may cost


@pytest.mark.parametrize("fields", ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_body_is_refused_unread(served: Agent, fields: str) -> None:
    with served.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode())
        data = read_all(sock)
    assert b" 413 " in data.split(b"\r\n")[0]


def test_a_head_too_large_is_refused(served: Agent) -> None:
    with served.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for number in range(20_000):
                sock.sendall(b"X-%d: 1\r\n" % number)
        except OSError:
            pass
        assert b" 431 " in read_all(sock).split(b"\r\n")[0]
    assert served.get("/healthz").status == 200


def test_what_is_no_http_is_closed(served: Agent) -> None:
    with served.connect() as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert read_all(sock).startswith(b"HTTP/1.1 400")


def test_pipelined_requests_and_upgrades(served: Agent) -> None:
    with served.connect() as sock:
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
        sock.sendall(request % b"" * 3 + request % b"Connection: close\r\n")
        assert read_all(sock).count(b"HTTP/1.1 200") == 4
    with served.connect() as sock:
        upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n"
        sock.sendall(request % upgrade)
        assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_a_silent_client_is_closed(start_agent: StartAgent) -> None:
    agent = start_agent(patches={"fastmesh.agent.server.HEAD_TIMEOUT_S": 0.2})
    agent.serving()
    for start in (b"", b"GET / HTTP/1.1\r\nHost: local"):
        with agent.connect() as sock:
            sock.sendall(start)
            assert read_all(sock) == b""
    with agent.connect() as sock:  # and a second request has no more time than the first
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert read_all(sock).count(b"HTTP/1.1") == 1
    agent.stop()


def test_a_client_that_trickles_its_head_is_closed(start_agent: StartAgent) -> None:
    agent = start_agent(patches={"fastmesh.agent.server.HEAD_TIMEOUT_S": 0.3})
    agent.serving()
    closed = threading.Event()
    with agent.connect() as sock:

        def trickle() -> None:
            try:
                sock.sendall(b"GET / HTTP/1.1\r\n")
                while not closed.wait(0.02):
                    sock.sendall(b"X: 1\r\n")
            except OSError:
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        assert read_all(sock) == b""
        closed.set()
        thread.join(DEADLINE)
    agent.stop()


def test_a_client_that_does_not_read_is_closed(start_agent: StartAgent) -> None:
    agent = start_agent(patches={"fastmesh.agent.server.ANSWER_TIMEOUT_S": 0.5})
    services: dict[str, Any] = {
        f"service-{number}": {"endpoints": ["127.0.0.1:9000"]} for number in range(400)
    }
    agent.serving({**CONFIG, "services": {**CONFIG["services"], **services}})
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((agent.host, agent.port))
        for _ in range(40):  # more than the kernel's buffers hold
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Reset, not finished: the deadline has come before the answers were taken.
        wait_until(lambda: _closed(agent, sock), "the end of the connection")
    assert agent.get("/healthz").status == 200
    agent.stop()


def _closed(agent: Agent, sock: socket.socket) -> bool:
    """Whether the agent has let go of the connection."""
    from kit.procfs import owned_peers

    return sock.getsockname()[1] not in owned_peers(agent.process.pid, agent.port)


def test_too_many_clients(start_agent: StartAgent) -> None:
    agent = start_agent(
        patches={"fastmesh.agent.server.MAX_CONNECTIONS": 4, "fastmesh.agent.server.MAX_SOCKETS": 8}
    )
    agent.serving()
    idle = [agent.connect() for _ in range(6)]
    busy = wait_until(lambda: (answer := agent.get("/healthz")).status == 503 and answer, "a refusal")
    assert busy.status == 503
    idle += [agent.connect() for _ in range(4)]
    # Above the second bound connections are closed without an answer.
    assert any(read_all(sock) == b"" for sock in idle[-2:])
    for sock in idle:
        sock.close()
    wait_until(lambda: agent.get("/healthz").status == 200, "an answer again")
    agent.stop()


def test_a_thousand_services_do_not_hold_the_health_check_up_for_long(start_agent: StartAgent) -> None:
    agent = start_agent()
    services: dict[str, Any] = {
        f"service-{number}": {"endpoints": ["127.0.0.1:9000"]} for number in range(1000)
    }
    agent.serving({**CONFIG, "services": {**CONFIG["services"], **services}})
    text = agent.get("/metrics").text
    assert text.count("fastmesh_request_duration_seconds_count{") == 1001
    assert len(json.dumps(agent.get("/config").json)) > 100_000
    agent.stop()
