"""Health checks of a whole proxy: traffic leaves endpoints that are not well, and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.grpc_health import WHO, HealthServer
from kit.grpc_raw import RawEnd
from kit.limits import SANITIZED, wait_until
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.public import Shop
from kit.sidecars import address_of, inbound, outbound
from kit.upstream import ServerConn, Upstream
from kit.wire import connect, request, response

pytestmark = pytest.mark.skipif(SANITIZED, reason="the core's part is in tests/core/test_health.py")

FAST = {"interval": "100ms", "timeout": "1s", "healthy": 2, "unhealthy": 2}


class App:
    """An endpoint that answers with its name, and its health check with `status`."""

    def __init__(self, serving: Serving, name: str) -> None:
        self.name = name
        self.status = "200 OK"
        self.upstream: Upstream = serving(self)
        host, port = self.upstream.address
        self.address, self.port = f"{host}:{port}", int(port)

    def __call__(self, conn: ServerConn) -> None:
        for asked in conn:
            if asked.target == "/healthz":
                conn.send(response(b"", self.status))
            else:
                conn.send(response(self.name.encode()))


def config(*addresses: str, **more: Any) -> dict[str, Any]:
    service = {"endpoints": list(addresses), "health_check": {"path": "/healthz", **FAST}}
    return {
        "listeners": [{"name": "edge", "bind": f"127.0.0.1:{free_port()}", "protocol": "http", "to": "web"}],
        "services": {"web": service | more},
    }


def ask(proxy: Fastmesh, where: tuple[str, int], times: int = 12) -> Counter[str]:
    """Who answers so many requests."""
    found: Counter[str] = Counter()
    with connect(where) as client:
        for _ in range(times):
            client.send(request())
            answer = client.read_response()
            found[(answer.body or b"").decode() if answer.status == 200 else str(answer.status)] += 1
    return found


def healthy(proxy: Fastmesh, *wanted: int, service: str = "web") -> None:
    """Until just so many of them are healthy."""
    proxy.wait_metric(
        f"healthy endpoints: {wanted}",
        lambda m: (
            [
                sample.value
                for sample in m.samples
                if sample.name == "fastmesh_endpoint_healthy" and sample.labels["service"] == service
            ]
            == list(wanted)
        ),
    )


def test_traffic_moves_away_and_comes_back(serve: Serve, upstream: Serving) -> None:
    one, two, three = (App(upstream, name) for name in ("one", "two", "three"))
    setting = config(one.address, two.address, three.address)
    proxy, where = serve(setting, workers=2), address_of(setting)
    healthy(proxy, 1, 1, 1)
    assert ask(proxy, where) == {"one": 4, "two": 4, "three": 4}
    two.status = "503 Service Unavailable"
    healthy(proxy, 1, 0, 1)
    for _ in range(4):  # whichever worker is asked
        assert ask(proxy, where) == {"one": 6, "three": 6}
    line = f"warning: endpoint {two.address} of service web is unhealthy: answered 503, 2 checks in a row"
    assert line in proxy.stderr()
    found = proxy.metrics()
    assert found.sum("health_check_total", service="web", endpoint=two.address, result="unhealthy") >= 2
    assert found.sum("health_check_total", service="web", endpoint=one.address, result="healthy") >= 1
    assert found.sum("health_check_total", endpoint=one.address, result="unhealthy") == 0
    two.status = "200 OK"
    healthy(proxy, 1, 1, 1)
    assert ask(proxy, where) == {"one": 4, "two": 4, "three": 4}
    assert f"endpoint {two.address} of service web is healthy again" in proxy.stderr()
    assert proxy.metrics().sum("health_panics_total") == 0


def test_all_are_unhealthy(serve: Serve, upstream: Serving) -> None:
    one, two = App(upstream, "one"), App(upstream, "two")
    one.status = two.status = "500 Internal Server Error"
    setting = config(one.address, two.address)
    proxy, where = serve(setting), address_of(setting)
    healthy(proxy, 0, 0)
    assert ask(proxy, where) == {"one": 6, "two": 6}
    assert proxy.metrics().sum("health_panics_total", service="web") == 12
    said = "no endpoint of service web is healthy"
    assert f"warning: {said}: all of them are used" in proxy.stderr()
    assert any(said in warning for warning in json.loads(proxy.admin("/readyz")[1])["warnings"])
    one.status = "200 OK"
    healthy(proxy, 1, 0)
    assert ask(proxy, where) == {"one": 12}


def test_the_verdict_stays_without_an_agent(serve: Serve, upstream: Serving) -> None:
    one, two = App(upstream, "one"), App(upstream, "two")
    setting = config(one.address, two.address)
    proxy, where = serve(setting), address_of(setting)
    one.status = "503 Service Unavailable"
    healthy(proxy, 0, 1)
    agent = proxy.agent_pid()
    assert agent is not None
    os.kill(agent, signal.SIGSTOP)
    one.status = "200 OK"
    assert ask(proxy, where) == {"two": 12}, "nobody has looked since"
    one.status = "503 Service Unavailable"
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: proxy.agent_pid() not in (None, agent), "the next agent")
    assert ask(proxy, where) == {"two": 12}
    healthy(proxy, 0, 1)
    assert ask(proxy, where) == {"two": 12}
    # What the next one says first is no verdict on what has not changed.
    assert proxy.stderr().count("is unhealthy") == 1
    one.status = "200 OK"
    healthy(proxy, 1, 1)
    assert ask(proxy, where) == {"one": 6, "two": 6}


def test_the_verdict_stays_for_the_next_worker(serve: Serve, upstream: Serving) -> None:
    one, two = App(upstream, "one"), App(upstream, "two")
    setting = config(one.address, two.address)
    proxy, where = serve(setting), address_of(setting)
    one.status = "503 Service Unavailable"
    healthy(proxy, 0, 1)
    (worker,) = proxy.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: proxy.worker_pids() not in ([], [worker]), "the next worker")
    assert ask(proxy, where) == {"two": 12}


def test_reload(serve: Serve, upstream: Serving) -> None:
    one, two, three = (App(upstream, name) for name in ("one", "two", "three"))
    setting = config(one.address, two.address)
    proxy, where = serve(setting), address_of(setting)
    one.status = "503 Service Unavailable"
    healthy(proxy, 0, 1)
    checks = {"health_check": setting["services"]["web"]["health_check"]}
    proxy.reload(services={"web": {"endpoints": [three.address, one.address], **checks}})
    # What is known of one goes with it; three begins as healthy.
    assert ask(proxy, where) == {"three": 12}
    healthy(proxy, 1, 0)
    proxy.reload(services={"web": {"endpoints": [three.address, one.address]}})
    assert ask(proxy, where) == {"three": 6, "one": 6}, "nobody is checked"
    assert not any(sample.name == "fastmesh_endpoint_healthy" for sample in proxy.metrics().samples)


@contextlib.contextmanager
def grpc_pair(*services: str) -> Iterator[list[HealthServer]]:
    with HealthServer(*services) as one, HealthServer(*services) as two:
        yield [one, two]


def who(where: tuple[str, int], times: int = 8) -> Counter[str]:
    found: Counter[str] = Counter()
    with connect(where) as conn:
        client = RawEnd(conn)
        for _ in range(times):
            stream = client.call(path=WHO)
            found[stream.messages[0][1].decode() if stream.status == 0 else f"status {stream.status}"] += 1
    return found


@pytest.mark.parametrize("service", ["", "shop.Orders"])
def test_grpc(serve: Serve, service: str) -> None:
    with grpc_pair("shop.Orders") as (one, two):
        check = {"grpc": service, **FAST}
        setting = config(one.address, two.address, health_check=check)
        proxy, where = serve(setting), address_of(setting)
        healthy(proxy, 1, 1)
        both = {str(one.port): 4, str(two.port): 4}
        assert who(where) == both
        one.set("NOT_SERVING", service)
        healthy(proxy, 0, 1)
        assert who(where) == {str(two.port): 8}
        assert f"endpoint {one.address} of service web is unhealthy: is NOT_SERVING" in proxy.stderr()
        one.set("SERVING", service)
        healthy(proxy, 1, 1)
        assert who(where) == both
        # The other name's status is none of our business.
        one.set("NOT_SERVING", "shop.Orders" if not service else "")
        before = proxy.metrics().sum("health_check_total", endpoint=one.address, result="healthy")
        proxy.wait_metric(
            "more checks",
            lambda m: m.sum("health_check_total", endpoint=one.address, result="healthy") > before + 3,
        )
        healthy(proxy, 1, 1)


def test_grpc_of_servers_that_cannot_say(serve: Serve) -> None:
    with HealthServer(health=False) as silent, HealthServer() as other:
        setting = config(silent.address, other.address, health_check={"grpc": "shop.Orders", **FAST})
        proxy = serve(setting)
        healthy(proxy, 0, 0)
        said = proxy.stderr()
        assert (
            f"{silent.address} of service web is unhealthy: answered UNIMPLEMENTED: the server has no" in said
        )
        assert f"{other.address} of service web is unhealthy: answered NOT_FOUND: the health service" in said
        assert who(address_of(setting)) == {str(silent.port): 4, str(other.port): 4}


@pytest.mark.parametrize("kind", ["path", "grpc"])
def test_through_the_mesh(serve: Serve, upstream: Serving, pki: Pki, kind: str) -> None:
    """The check goes where requests go: through the other sidecar, to the application, as ourselves."""
    with contextlib.ExitStack() as stack:
        if kind == "path":
            app = App(upstream, "app")
            port, check = app.port, {"path": "/healthz", **FAST}
        else:
            server = stack.enter_context(HealthServer())
            port, check = server.port, {"grpc": "", **FAST}
        there = inbound(pki, port)
        serve(there)
        nowhere = free_port()
        here = outbound(pki, address_of(there)[1], health_check=check)
        here["services"]["svc-b"]["endpoints"].append(f"127.0.0.1:{nowhere}")
        proxy = serve(here)
        healthy(proxy, 1, 0, service="svc-b")
        good = f"127.0.0.1:{address_of(there)[1]}"
        proxy.wait_metric(
            "a check that went well",
            lambda m: m.sum("health_check_total", endpoint=good, result="healthy") >= 1,
        )
        if kind == "path":
            app.status = "503 Service Unavailable"
        else:
            server.set("NOT_SERVING")
        healthy(proxy, 0, 0, service="svc-b")
        found = proxy.metrics()
        assert found.sum("health_check_total", endpoint=good, result="error") == 0
        assert "connection refused" in proxy.stderr()


def test_somebody_else_in_the_mesh(serve: Serve, upstream: Serving, pki: Pki) -> None:
    app = App(upstream, "app")
    there = inbound(pki, app.port)
    serve(there)
    setting = outbound(pki, address_of(there)[1], health_check={"path": "/healthz", **FAST})
    setting["services"]["svc-c"] = setting["services"].pop("svc-b")
    proxy = serve(setting)
    healthy(proxy, 0, service="svc-c")
    assert (
        "it proved the identity spiffe://mesh.local/svc-b, expected spiffe://mesh.local/svc-c"
        in proxy.stderr()
    )


def test_a_renewed_identity(serve: Serve, upstream: Serving, tmp_path: Path) -> None:
    """Checks go on with the new one: its key comes with a part of the snapshot, all else is as it was."""
    own = Pki(tmp_path / "own")
    for name in ("svc-a", "svc-b"):
        own.issue(name)
    app = App(upstream, "app")
    there = inbound(own, app.port)
    serve(there)
    proxy = serve(outbound(own, address_of(there)[1], health_check={"path": "/healthz", **FAST}))
    healthy(proxy, 1, service="svc-b")
    own.issue("svc-a")
    proxy.wait_metric("the new identity", lambda m: m.sum("identity_reloads_total", result="accepted") == 1)
    before = proxy.metrics().sum("health_check_total", result="healthy")
    found = proxy.wait_metric(
        "checks with it", lambda m: m.sum("health_check_total", result="healthy") > before + 2
    )
    assert found.sum("health_check_total") == found.sum("health_check_total", result="healthy")


def test_ordinary_tls(serve: Serve, upstream: Serving, tmp_path: Path) -> None:
    app = App(upstream, "app")
    shop = Shop(tmp_path / "shop")
    pair = shop.issue("api", "api.example")
    edge = {
        "listeners": [
            {
                "name": "edge",
                "bind": f"127.0.0.1:{free_port()}",
                "protocol": "http",
                "to": "app",
                "tls": {"certificates": [pair]},
            }
        ],
        "services": {"app": {"endpoints": [app.address]}},
    }
    serve(edge)
    address = ":".join(map(str, address_of(edge)))
    setting = config(address, tls={"server_name": "api.example", "ca": str(shop.ca)})
    setting["services"]["wrong"] = {
        **setting["services"]["web"],
        "tls": {"server_name": "other.example", "ca": str(shop.ca)},
    }
    proxy = serve(setting)
    healthy(proxy, 0, service="wrong")
    healthy(proxy, 1)
    found = proxy.metrics()
    assert found.sum("health_check_total", service="web", result="healthy") >= 1
    assert found.sum("health_check_total", service="wrong", result="error") >= 2
    assert "its certificate is not trusted" in proxy.stderr()
