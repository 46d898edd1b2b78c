"""IPv4, IPv6 and Unix sockets, as listeners and as endpoints, in every combination."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from kit.fixtures import Serve, Serving
from kit.ports import free_port
from kit.wire import Address, connect, request

FAMILIES = ["ipv4", "ipv6", "unix"]


def address(family: str, directory: Path, name: str) -> tuple[Address, str]:
    """An address for sockets, and how the configuration writes it."""
    if family == "unix":
        path = str(directory / name)
        return path, f"unix:{path}"
    host = "127.0.0.1" if family == "ipv4" else "::1"
    port = free_port()
    return (host, port), f"127.0.0.1:{port}" if family == "ipv4" else f"[::1]:{port}"


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A directory whose path fits into sockaddr_un."""
    if len(str(tmp_path)) < 80:
        return tmp_path
    link = Path("/tmp") / f"fm-{os.getpid()}-{free_port()}"
    link.symlink_to(tmp_path)
    return link


def test_every_family_to_every_family(serve: Serve, upstream: Serving, short: Path) -> None:
    listeners, services, pairs = [], {}, []
    for inside in FAMILIES:
        target, text = address(inside, short, f"up-{inside}")
        services[inside] = {"endpoints": [text]}
        server = upstream(address=target)
        for outside in FAMILIES:
            for protocol in ("http", "tcp"):
                name = f"{outside}-{inside}-{protocol}"
                bind, text = address(outside, short, name)
                listeners.append({"name": name, "bind": text, "protocol": protocol, "to": inside})
                pairs.append((bind, server, name))
    proxy = serve({"listeners": listeners, "services": services})
    for bind, server, name in pairs:
        before = len(server.requests)
        with connect(bind) as client:
            for _ in range(2):
                client.send(request(target=f"/{name}"))
                assert client.read_response().status == 200, name
        assert [seen.target for seen in server.requests[before:]] == [f"/{name}"] * 2
        if name.endswith("http"):
            told = server.requests[-1].get("x-forwarded-for")
            assert told == {"ipv4": "127.0.0.1", "ipv6": "::1"}.get(name[:4], told)
    proxy.stop()
    leftover = [
        path.name for path in short.iterdir() if path.is_socket() and path.name.startswith(tuple(FAMILIES))
    ]
    assert leftover == [], "Unix sockets of listeners are removed at the end"
    if short.is_symlink():
        short.unlink()


def test_forwarded_brackets_ipv6(serve: Serve, upstream: Serving) -> None:
    server = upstream()
    port = free_port()
    serve(
        {
            "listeners": [
                {
                    "name": "six",
                    "bind": f"[::1]:{port}",
                    "protocol": "http",
                    "to": "web",
                    "forwarded": {"forwarded": "append"},
                }
            ],
            "services": {"web": {"endpoints": [f"127.0.0.1:{server.address[1]}"]}},
        }
    )
    with connect(("::1", port)) as client:
        client.send(request())
        assert client.read_response().status == 200
    assert 'for="[::1]' in (server.requests[0].get("forwarded") or ""), "RFC 7239 section 6"


def test_caller_on_a_unix_socket_cannot_name_itself(serve: Serve, upstream: Serving, short: Path) -> None:
    """It has no address to put in the place of what it claims: nothing takes the place."""
    server = upstream()
    listener = {
        "name": "edge",
        "bind": f"unix:{short / 'edge'}",
        "protocol": "http",
        "to": "web",
        "forwarded": {"x_forwarded": "replace", "forwarded": "replace"},
    }
    endpoints = [f"127.0.0.1:{server.address[1]}"]
    serve({"listeners": [listener], "services": {"web": {"endpoints": endpoints}}})
    with connect(str(short / "edge")) as client:
        client.send(request(headers=[("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.1")]))
        assert client.read_response().status == 200
    assert server.requests[0].all("x-forwarded-for") == []
    assert "192.0.2.1" not in str(server.requests[0].fields)


def test_host_name_endpoint_tries_both_families(serve: Serve, upstream: Serving) -> None:
    """`localhost` has an IPv6 and an IPv4 address; only one of them answers."""
    port = free_port()
    for family in ("127.0.0.1", "::1"):
        server = upstream(address=(family, port))
        listen = free_port()
        proxy = serve(
            {
                "listeners": [
                    {"name": "edge", "bind": f"127.0.0.1:{listen}", "protocol": "http", "to": "web"}
                ],
                "services": {"web": {"endpoints": [f"localhost:{port}"]}},
            }
        )
        for _ in range(4):
            with connect(("127.0.0.1", listen)) as client:
                client.send(request())
                status = client.read_response().status
                if status == 502 and len(socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)) < 2:
                    pytest.skip("localhost has one address here")
                assert status == 200
        proxy.stop()
        server.close()


def test_a_stale_unix_socket_is_replaced_a_live_one_is_not(
    serve: Serve, upstream: Serving, short: Path
) -> None:
    server = upstream()
    path = short / "edge.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # the file stays, nobody listens
    config = {
        "listeners": [{"name": "edge", "bind": f"unix:{path}", "protocol": "http", "to": "web"}],
        "services": {"web": {"endpoints": [f"127.0.0.1:{server.address[1]}"]}},
    }
    serve(config)
    with connect(str(path)) as client:
        client.send(request())
        assert client.read_response().status == 200
    with pytest.raises(AssertionError, match="serve ended with 3"):
        serve(config)
    with connect(str(path)) as client:
        client.send(request())
        assert client.read_response().status == 200
