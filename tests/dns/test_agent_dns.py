"""The resolver in a real agent, and in a whole sidecar: starts, reloads, failures, restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.rcode
import pytest
from kit import procfs
from kit.agent import CONFIG, Agent
from kit.dns import NameServer, ask, found, free_dns_port
from kit.fixtures import Serve
from kit.limits import SANITIZED, wait_until
from kit.proxy import Metrics

from fastmesh.agent.dns.resolver import Resolver
from fastmesh.agent.state import State

Start = Callable[..., NameServer]
StartAgent = Callable[..., Agent]
SERVICE = {"endpoints": ["127.0.0.1:9000"]}


def config(port: int, *names: str, **dns: Any) -> dict[str, Any]:
    """With a resolver on this port, and services of these names beside `web`."""
    services = {**CONFIG["services"], **dict.fromkeys(names, SERVICE)}
    return {**CONFIG, "services": services, "dns": {"listen": f"127.0.0.1:{port}", **dns}}


def address(snapshot: dict[str, Any], name: str) -> str:
    (one,) = (service["virtual"][0] for service in snapshot["services"] if service["name"] == name)
    return str(one)


def reload(agent: Agent, config: dict[str, Any]) -> dict[str, Any]:
    agent.write(config)
    agent.channel.send({"type": "reload"})
    snapshot: dict[str, Any] = agent.frame("snapshot").message["snapshot"]
    return snapshot


def test_it_answers_and_counts(start_agent: StartAgent, name_server: Start) -> None:
    port, upstream = free_dns_port(), name_server()
    agent = start_agent()
    snapshot = agent.serving(config(port, "api.shop", upstream=upstream.text, ttl="7s"))
    # By the time that it is ready it answers.
    response = ask(port, "api.shop.mesh")
    assert found(response) == [address(snapshot, "api.shop")]
    assert response.answer[0].ttl == 7
    assert found(ask(port, "example.com", tcp=True)) == ["192.0.2.1"]
    assert ask(port, "nobody.mesh").rcode() == dns.rcode.NXDOMAIN
    assert f"DNS for 2 services is answered on 127.0.0.1:{port}" in agent.stderr()
    metrics = Metrics(agent.get("/metrics").text)
    assert metrics.sum("dns_listening") == 1
    assert metrics.sum("dns_queries_total", transport="udp", outcome="answered") == 1
    assert metrics.sum("dns_queries_total", transport="udp", outcome="unknown") == 1
    assert metrics.sum("dns_queries_total", transport="tcp", outcome="forwarded") == 1
    assert metrics.sum("dns_queries_total") == 3
    assert metrics.sum("dns_upstream_total", result="answered") == 1
    assert metrics.sum("dns_in_flight") == 0
    assert upstream.names() == ["example.com."]
    assert agent.get("/config").json["snapshot"]["dns"]["domain"] == "mesh"
    agent.stop()


def test_names_come_and_go_with_reloads(start_agent: StartAgent, name_server: Start) -> None:
    port, upstream = free_dns_port(), name_server()
    agent = start_agent()
    first = agent.serving(config(port, "one", upstream=upstream.text))
    assert ask(port, "two.mesh").rcode() == dns.rcode.NXDOMAIN
    second = reload(agent, config(port, "two", "one", upstream=upstream.text))
    wait_until(lambda: found(ask(port, "two.mesh")), "the new name")
    assert found(ask(port, "one")) == [address(first, "one")] == [address(second, "one")]
    reload(agent, config(port, "two", upstream=upstream.text, domain="example"))
    wait_until(lambda: found(ask(port, "two.example")) == [address(second, "two")], "the other domain")
    # What is not of the mesh any more is others' business.
    assert found(ask(port, "one")) == ["192.0.2.1"]
    agent.stop()


def test_a_bad_configuration_changes_nothing(start_agent: StartAgent) -> None:
    port = free_dns_port()
    agent = start_agent()
    agent.serving(config(port, "one"))
    agent.write(config(port, "one", virtual="10.0.0.0/33"))
    agent.channel.send({"type": "reload"})
    agent.frame("config_error")
    assert found(ask(port, "one"))
    agent.stop()


def test_it_can_be_turned_off_and_on(start_agent: StartAgent) -> None:
    port = free_dns_port()
    agent = start_agent()
    agent.serving()
    assert "dns_listening" not in agent.get("/metrics").text
    snapshot = reload(agent, config(port))
    wait_until(lambda: answered(port), "the resolver")
    reload(agent, CONFIG)
    wait_until(lambda: not answered(port), "its end")
    assert Metrics(agent.get("/metrics").text).sum("dns_listening") == 0
    reload(agent, config(port, "more"))
    wait_until(lambda: answered(port), "the resolver again")
    assert found(ask(port, "web")) == [address(snapshot, "web")]
    agent.stop()


def answered(port: int) -> bool:
    """Whether a resolver answers there: by TCP, where it shows at once."""
    try:
        return bool(found(ask(port, "web.mesh", tcp=True)))
    except (OSError, dns.exception.DNSException, EOFError):
        return False


def test_another_address(start_agent: StartAgent) -> None:
    before, after = free_dns_port(), free_dns_port()
    agent = start_agent()
    agent.serving(config(before))
    reload(agent, config(after, "new"))
    wait_until(lambda: answered(after), "the resolver at its new address")
    wait_until(lambda: not answered(before), "its end at the old one")
    assert found(ask(after, "new"))
    agent.stop()


def test_an_address_that_is_taken(start_agent: StartAgent) -> None:
    """It is told, it is no reason not to be ready, and it is taken when it is free."""
    port = free_dns_port()
    agent = start_agent(patches={"fastmesh.agent.dns.resolver.RETRY_S": 0.05})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        agent.serving(config(port))
        wait_until(lambda: agent.get("/readyz").status == 200, "readiness")
        warning = (
            f"no DNS: cannot listen on 127.0.0.1:{port} by UDP: another socket has this address "
            f"(ss -lunp 'sport = :{port}' names it); stop it or change `dns.listen`"
        )
        assert agent.get("/readyz").json["warnings"] == [warning]
        assert Metrics(agent.get("/metrics").text).sum("dns_listening") == 0
        assert agent.get("/healthz").status == 200
    wait_until(lambda: answered(port), "the resolver")
    assert "warnings" not in agent.get("/readyz").json
    assert agent.stderr().count("no DNS") == 1, "the same is not said again and again"
    agent.stop()


def test_a_new_address_that_is_taken(start_agent: StartAgent) -> None:
    """What was served before goes on, with the new names."""
    port, taken = free_dns_port(), free_dns_port()
    agent = start_agent(patches={"fastmesh.agent.dns.resolver.RETRY_S": 0.05})
    agent.serving(config(port))
    with socket.create_server(("127.0.0.1", taken)):
        reload(agent, config(taken, "new"))
        wait_until(lambda: found(ask(port, "new.mesh")), "the new name at the old address")
        (warning,) = agent.get("/readyz").json["warnings"]
        assert f"127.0.0.1:{taken} by TCP" in warning
        assert warning.endswith(f"; it goes on at 127.0.0.1:{port}")
    wait_until(lambda: answered(taken), "the resolver at its new address")
    wait_until(lambda: not answered(port), "its end at the old one")
    agent.stop()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def scenario() -> State:
        state = State()
        state.snapshot = {"dns": {"listen": {"host": "127.0.0.1", "port": 1}}, "services": []}
        resolver = Resolver(state, said.append)
        resolver.follow()
        resolver.follow()
        await resolver.stop()
        return state

    monkeypatch.setitem(sys.modules, "fastmesh.agent.dns.forward", None)
    state = asyncio.run(scenario())
    (line,) = said
    assert line.startswith("warning: no DNS: the package dnspython cannot be imported (")
    assert line.endswith("): pip install dnspython")
    assert f"warning: {state.dns_error}" == line


def test_the_next_agent_has_the_same_addresses(start_agent: StartAgent) -> None:
    port = free_dns_port()
    first = start_agent()
    snapshot = first.serving(config(port, "one"))
    # As a reload may have left it: not what the name alone would lead to.
    for service in snapshot["services"]:
        if service["name"] == "one":
            service["virtual"][0] = "240.77.9.9"
    snapshot["dns"]["answers"]["one"] = ["240.77.9.9"]
    first.process.kill()
    first.process.wait()
    second = start_agent(admin_first=True)
    second.write(config(port, "one", "two"))
    second.channel.send({"type": "resume", "snapshot": snapshot, "config": str(second.path), "workers": 1})
    second.frame("ready")
    assert found(ask(port, "one")) == ["240.77.9.9"]
    second.channel.send({"type": "reload"})
    assert address(second.frame("snapshot").message["snapshot"], "one") == "240.77.9.9"
    second.stop()


def test_it_waits_for_nobody_at_the_end(start_agent: StartAgent, name_server: Start) -> None:
    port = free_dns_port()
    agent = start_agent()
    agent.serving(config(port, upstream=name_server(lambda asked: ()).text))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.send(dns.message.make_query("example.com", "A").to_wire())
        wait_until(
            lambda: Metrics(agent.get("/metrics").text).sum("dns_in_flight") == 1, "a query that waits"
        )
        agent.stop()


def test_who_has_no_dns_does_not_import_it() -> None:
    program = "import fastmesh.agent.agent, sys; print([name for name in sys.modules if name[:4] == 'dns.'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(SANITIZED, reason="a sanitiser needs memory of its own")
def test_what_it_costs(start_agent: StartAgent) -> None:
    plain, resolving = start_agent(), start_agent()
    port = free_dns_port()
    plain.serving()
    resolving.serving(config(port))
    for agent in (plain, resolving):
        agent.get("/metrics")
    ask(port, "web")
    more = procfs.pss(resolving.process.pid) - procfs.pss(plain.process.pid)
    assert more < 8 << 20  # 4 to 5 MiB
    plain.stop()
    resolving.stop()


# a whole sidecar


def test_a_sidecar(serve: Serve, name_server: Start, tmp_path: Path) -> None:
    port, upstream = free_dns_port(), name_server()
    proxy = serve(
        {
            "dns": {"listen": f"127.0.0.1:{port}", "upstream": upstream.text},
            "listeners": [{"name": "out", "bind": "127.0.0.1:0", "role": "outbound"}],
            "services": {"one": SERVICE},
        }
    )
    wait_until(lambda: "DNS for 1 service is" in proxy.stderr(), "the resolver")
    (one,) = found(ask(port, "one.mesh"))
    services = dict.fromkeys(("two", "one"), SERVICE)
    proxy.reload(services=services)
    wait_until(lambda: found(ask(port, "two.mesh")), "the new name")
    assert found(ask(port, "one.mesh")) == [one]
    agent = proxy.agent_pid()
    assert agent is not None
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: proxy.stderr().count("is answered on") == 2, "the next agent's resolver")
    assert found(ask(port, "one.mesh")) == [one]
    assert found(ask(port, "example.com")) == ["192.0.2.1"]
