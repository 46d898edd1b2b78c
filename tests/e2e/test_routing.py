"""Outbound listeners: the Host names the service; what no service claims gets 404 no_service."""

from __future__ import annotations

import pytest
from kit.fixtures import LaneFactory, Serve, Serving
from kit.ports import free_port
from kit.upstream import answering
from kit.wire import connect, request


@pytest.mark.parametrize("form", ["{}", "{}:80", "{}.", "{}.:8080", "{}:15001"])
@pytest.mark.parametrize("upper", [False, True])
def test_host_names_the_service(lane: LaneFactory, form: str, upper: bool) -> None:
    here = lane("outbound")
    server = here.upstream()
    host = form.format(here.service.upper() if upper else here.service)
    answer = here.ask(request(host=host))
    assert answer.status == 200, answer.raw
    assert server.requests[0].get("host") == host, "the Host is passed on as it came"


def test_absolute_form_of_a_client_that_uses_http_proxy(lane: LaneFactory) -> None:
    here = lane("outbound")
    server = here.upstream()
    answer = here.ask(request(target=f"http://{here.service}/path?q", host=here.service))
    assert answer.status == 200
    assert server.requests[0].target == "/path?q"


@pytest.mark.parametrize(
    "host", ["nobody", "nobody:80", "outbound", "127.0.0.1", "[::1]:80", "{}x", "x{}", "{}.local", "{}.."]
)
def test_unknown_host_is_no_service(lane: LaneFactory, host: str) -> None:
    here = lane("outbound")
    server = here.upstream()
    with here.client() as client:
        client.send(request(host=host.format(here.service)))
        answer = client.read_response()
        if ".." in host and answer.status == 400:
            return  # an empty label is no valid name either
        assert (answer.status, answer.reason) == (404, "no_service")
        client.send(request(host=here.service))
        assert client.read_response().status == 200, "the connection goes on"
    assert len(server.requests) == 1


def test_every_request_of_a_connection_is_routed_by_itself(lane: LaneFactory) -> None:
    one, two = lane("outbound"), lane("outbound")
    one.upstream(answering(b"one"))
    two.upstream(answering(b"two"))
    with one.client() as client:
        client.send(
            *[request(host=host) for host in (one.service, two.service, one.service, "nobody", two.service)]
        )
        answers = [client.read_response() for _ in range(5)]
    assert [answer.body for answer in answers if answer.status == 200] == [b"one", b"two", b"one", b"two"]
    assert answers[3].reason == "no_service"


def test_unknown_host_with_a_body_does_not_break_the_connection(lane: LaneFactory) -> None:
    """The body of a refused request is read away or the connection closes; it is never read as a request."""
    here = lane("outbound")
    server = here.upstream()
    hidden = request("GET", "/hidden", host=here.service)
    with here.client() as client:
        client.send(request("POST", host="nobody", body=hidden))
        answer = client.read_response()
        assert answer.status == 404
        if "close" not in answer.tokens("connection"):
            client.send(request(target="/next", host=here.service))
            assert client.read_response().status == 200
    assert "/hidden" not in [seen.target for seen in server.requests]


def test_http_1_0_without_host_has_no_service(lane: LaneFactory) -> None:
    here = lane("outbound")
    answer = here.ask(request(host=None, version="HTTP/1.0"))
    assert answer.status in (400, 404)


def test_services_by_their_names_in_a_large_configuration(serve: Serve, upstream: Serving) -> None:
    """1,000 services: every lookup finds its own."""
    server = upstream()
    host, port = server.address
    names = [f"svc-{number}.shop" for number in range(1000)]
    proxy_port = free_port()
    serve(
        {
            "listeners": [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{proxy_port}"}],
            "services": {name: {"endpoints": [f"{host}:{port}"]} for name in names},
        }
    )
    with connect(("127.0.0.1", proxy_port)) as client:
        client.send(*[request(host=name) for name in names])
        assert {client.read_response().status for _ in names} == {200}
        client.send(request(host="svc-1000.shop"))
        assert client.read_response().status == 404
