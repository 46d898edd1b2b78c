"""The agent as a process: what it sends and when, what it survives, how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import procfs
from kit.agent import CONFIG, Agent
from kit.area import FakeArea, append_log, log_record
from kit.limits import SANITIZED, wait_until

StartAgent = Callable[..., Agent]


def test_start_hands_out_the_snapshot_first(agent: Agent) -> None:
    agent.start(workers=3)
    snapshot = agent.frame("snapshot").message["snapshot"]
    assert (snapshot["number"], snapshot["workers"], snapshot["source"]) == (1, 3, "mesh.yaml")
    agent.channel.send({"type": "admin"}, descriptors=[agent.listening.fileno()])
    agent.frame("ready")
    assert agent.get("/healthz").status == 200
    agent.stop()


def test_without_an_admin_api_it_is_ready_at_once(agent: Agent) -> None:
    agent.start({"admin": "off", **CONFIG})
    agent.frame("snapshot")
    agent.frame("ready")
    agent.stop()


def test_a_bad_file_is_told_with_every_error(agent: Agent) -> None:
    agent.start("listeners:\n  - {name: edge, bnid: 127.0.0.1:80, to: web}\nservices: {web: 1}\n")
    message = agent.frame("config_error").message
    assert message["initial"] is True
    assert len(message["errors"]) >= 2
    assert any(error.startswith(f"{agent.path}:2:") and "bnid" in error for error in message["errors"])


def test_a_missing_file_is_told(agent: Agent) -> None:
    agent.channel.send({"type": "start", "config": str(agent.path), "workers": None})
    (error,) = agent.frame("config_error").message["errors"]
    assert str(agent.path) in error


def test_an_identity_that_cannot_be_loaded_is_told(agent: Agent) -> None:
    mesh = {"tls": "mesh", "endpoints": ["127.0.0.1:15443"]}
    identity = {"workload": "svc-a", "trust_domain": "mesh.local", "pki": "pki"}
    agent.start({**identity, **CONFIG, "services": {"web": mesh}})
    assert agent.frame("pki_error").message["message"]


def test_reload(agent: Agent) -> None:
    first = agent.serving()
    second = {
        **CONFIG,
        "services": {"api": {"endpoints": ["127.0.0.1:9002"]}, "web": {"endpoints": ["127.0.0.1:9001"]}},
    }
    agent.write(second)
    agent.channel.send({"type": "reload"})
    snapshot = agent.frame("snapshot").message["snapshot"]
    assert snapshot["number"] == 2
    rows = {service["name"]: service["slot"] for service in snapshot["services"]}
    assert rows["web"] == first["services"][0]["slot"] != rows["api"]
    assert agent.get("/config").json["snapshot"]["number"] == 2

    agent.channel.send({"type": "reload"})
    agent.frame("unchanged")

    agent.write("listeners: 5\n")
    agent.channel.send({"type": "reload"})
    assert agent.frame("config_error").message["initial"] is False
    shown = agent.get("/config").json
    assert shown["snapshot"]["number"] == 2
    assert len(shown["errors"]) >= 1
    metrics = agent.get("/metrics").text
    for result in ("accepted", "unchanged", "rejected"):
        assert f'fastmesh_config_reloads_total{{result="{result}"}} 1.0' in metrics

    agent.write(second)
    agent.channel.send({"type": "reload"})
    agent.frame("unchanged")
    assert agent.get("/config").json["errors"] == []
    agent.stop()


def test_a_reload_asked_for_while_one_is_under_way_reads_the_file_again(agent: Agent) -> None:
    agent.serving()
    agent.channel.send({"type": "reload"})
    agent.channel.send({"type": "reload"})
    agent.frame("unchanged")
    agent.frame("unchanged")
    agent.stop()


def test_a_snapshot_that_cannot_be_put_to_use_is_taken_back(agent: Agent) -> None:
    first = agent.serving()
    agent.write({**CONFIG, "drain": "1s"})
    agent.channel.send({"type": "reload"})
    agent.frame("snapshot")
    agent.channel.send({"type": "resume", "snapshot": first})
    wait_until(lambda: agent.get("/config").json["snapshot"]["number"] == 1, "the snapshot before")
    assert agent.get("/config").json["errors"]
    agent.channel.send({"type": "reload"})
    assert agent.frame("snapshot").message["snapshot"]["number"] == 2
    agent.stop()


def test_resume_takes_the_snapshot_and_reads_no_file(start_agent: StartAgent) -> None:
    first = start_agent()
    snapshot = first.serving()
    first.path.unlink()
    second = start_agent(admin_first=True)
    second.channel.send({"type": "resume", "snapshot": snapshot})
    second.frame("ready")
    assert second.get("/readyz").status == 503
    second.status("ready", agent_restarts=1)
    wait_until(lambda: second.get("/readyz").status == 200, "readiness")
    assert second.get("/config").json["snapshot"]["digest"] == snapshot["digest"]
    assert "fastmesh_agent_restarts_total 1.0" in second.get("/metrics").text
    # The file is named by the reload, because nothing else told this agent.
    second.write({**CONFIG, "drain": "1s"})
    second.channel.send({"type": "reload", "config": str(second.path), "workers": 1})
    assert second.frame("snapshot").message["snapshot"]["number"] == 2
    second.stop()


def test_a_loader_that_dies_is_a_rejected_configuration(start_agent: StartAgent) -> None:
    agent = start_agent(patches={"sys.executable": "/bin/false"})
    agent.serving()  # the first is no program, but a copy of the agent
    agent.channel.send({"type": "reload"})
    (error,) = agent.frame("config_error").message["errors"]
    assert "without a result" in error


def test_a_first_loader_that_dies_is_a_rejected_configuration(start_agent: StartAgent) -> None:
    agent = start_agent()
    os.mkfifo(agent.path)
    with agent.path.open("r+b", buffering=0):  # a writer that never writes
        agent.channel.send({"type": "start", "config": str(agent.path), "workers": 1})
        (loader,) = wait_until(lambda: procfs.children(agent.process.pid), "the loader")
        wait_until(lambda: reads(loader, agent.path), "it to read")
        os.kill(loader, signal.SIGKILL)
        (error,) = agent.frame("config_error").message["errors"]
    assert "without a result" in error
    assert not procfs.children(agent.process.pid)


def test_a_first_loader_that_hangs_is_given_up(start_agent: StartAgent) -> None:
    agent = start_agent(patches={"fastmesh.agent.configuration.TIMEOUT_S": 0.2})
    os.mkfifo(agent.path)
    with agent.path.open("r+b", buffering=0):
        agent.channel.send({"type": "start", "config": str(agent.path), "workers": 1})
        (error,) = agent.frame("config_error").message["errors"]
    assert "name server" in error
    assert not procfs.children(agent.process.pid)


def test_a_loader_that_hangs_is_given_up(start_agent: StartAgent, tmp_path: Path) -> None:
    snapshot = start_agent().serving()
    hang = tmp_path / "hang"
    hang.write_text("#!/bin/sh\nexec sleep 1000\n")
    hang.chmod(0o755)
    agent = start_agent(
        patches={
            "sys.executable": str(hang),
            "fastmesh.agent.configuration.TIMEOUT_S": 0.2,
        },
        admin_first=True,
    )
    agent.channel.send({"type": "resume", "snapshot": snapshot, "config": str(agent.path), "workers": 1})
    agent.frame("ready")
    agent.channel.send({"type": "reload"})
    (error,) = agent.frame("config_error").message["errors"]
    assert "name server" in error
    assert not procfs.children(agent.process.pid)


def test_a_loader_that_hangs_ends_with_its_agent(start_agent: StartAgent) -> None:
    """A file that never comes to its end, here a pipe, as a name server that does not answer would do."""
    agent = start_agent()
    os.mkfifo(agent.path)
    with agent.path.open("r+b", buffering=0):  # a writer that never writes
        agent.channel.send({"type": "start", "config": str(agent.path), "workers": 1})
        (loader,) = wait_until(lambda: procfs.children(agent.process.pid), "the loader")
        wait_until(lambda: reads(loader, agent.path), "it to read")
        agent.process.kill()
        agent.process.wait()
        wait_until(lambda: not procfs.alive(loader), "the loader's end")
    assert not agent.stderr()


def reads(pid: int, path: Path) -> bool:
    """Whether a process has the file open."""
    return str(path) in procfs.fds(pid)


def test_the_access_log_goes_to_the_file(agent: Agent) -> None:
    agent.serving({**CONFIG, "telemetry": {"access_log": {"path": "access.log"}}})
    path = agent.directory / "access.log"
    append_log(agent.area_fd, log_record(path="/a"), log_record(path="/b"))
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) == 2, "two lines")
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["/a", "/b"]
    wait_until(
        lambda: "fastmesh_access_log_records_total 2.0" in agent.get("/metrics").text, "both to be counted"
    )

    path.rename(agent.directory / "access.log.1")
    agent.signal(signal.SIGUSR1)
    append_log(agent.area_fd, log_record(path="/c"))
    wait_until(path.exists, "a new file")
    append_log(agent.area_fd, log_record(path="/d"))
    agent.stop()
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["/c", "/d"]


def test_the_access_log_can_be_turned_off_and_on(agent: Agent) -> None:
    agent.serving({**CONFIG, "telemetry": {"access_log": {"path": "one.log"}}})
    append_log(agent.area_fd, log_record())
    one, two = agent.directory / "one.log", agent.directory / "two.log"
    wait_until(lambda: one.exists() and one.read_text(), "a line")
    agent.write(CONFIG)
    agent.channel.send({"type": "reload"})
    agent.frame("snapshot")
    agent.write({**CONFIG, "telemetry": {"access_log": {"path": "two.log"}}})
    agent.channel.send({"type": "reload"})
    agent.frame("snapshot")
    append_log(agent.area_fd, log_record(path="/two"))
    wait_until(lambda: two.exists() and two.read_text(), "a line in the other file")
    assert len(one.read_text().splitlines()) == 1
    agent.stop()


def test_the_private_key_is_never_shown(agent: Agent, start_agent: StartAgent) -> None:
    snapshot = agent.serving({**CONFIG, "telemetry": {"access_log": {"path": "access.log"}}})
    key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n"
    identity = {"certificate": "-----BEGIN CERTIFICATE-----\n", "key": key, "bundle": ""}
    resumed = start_agent(admin_first=True)
    resumed.channel.send({"type": "resume", "snapshot": {**snapshot, "identity": identity}})
    resumed.frame("ready")
    for path in ("/", "/healthz", "/readyz", "/metrics", "/config", "/nothing"):
        text = resumed.get(path).text
        assert "PRIVATE KEY" not in text
        assert "MIGHAgEA" not in text
    assert "BEGIN CERTIFICATE" in resumed.get("/config").text
    resumed.stop()
    assert "PRIVATE KEY" not in resumed.stderr()


def test_a_real_identity_is_redacted(agent: Agent, pki: Any) -> None:
    config = {
        **CONFIG,
        "workload": "svc-a",
        "trust_domain": "mesh.local",
        "pki": str(pki.path),
        "services": {"web": {"tls": "mesh", "endpoints": ["127.0.0.1:15443"]}},
    }
    assert "PRIVATE KEY" in agent.serving(config)["identity"]["key"]
    text = agent.get("/config").text
    assert "PRIVATE KEY" not in text
    assert "BEGIN CERTIFICATE" in text
    agent.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_only_the_supervisor_ends_it(agent: Agent, number: signal.Signals) -> None:
    agent.serving()
    agent.signal(number)
    assert agent.get("/healthz").status == 200
    agent.stop()


def test_it_ends_with_the_supervisor(agent: Agent) -> None:
    agent.serving()
    agent.channel.close()
    agent.ended()


def test_it_ends_with_a_supervisor_that_goes_before_it_said_anything(agent: Agent) -> None:
    agent.channel.close()
    agent.ended()


def test_what_is_no_frame_ends_it(agent: Agent) -> None:
    agent.serving()
    with contextlib.suppress(OSError):
        os.write(agent.channel.fileno(), b"\xff" * 64)
    agent.ended()


def test_another_admin_socket_replaces_the_first(agent: Agent) -> None:
    agent.serving()
    other = socket.create_server(("127.0.0.1", 0))
    agent.channel.send({"type": "admin"}, descriptors=[other.fileno()])
    agent.frame("ready")
    agent.port = other.getsockname()[1]
    other.close()
    assert agent.get("/healthz").status == 200
    agent.stop()


def test_every_process_is_measured(start_agent: StartAgent) -> None:
    agent = start_agent(area=FakeArea(2))
    agent.serving()
    agent.status("ready", "ready")
    text = wait_until(
        lambda: (text := agent.get("/metrics").text) and 'worker="1"' in text and text,
        "metrics of the second worker",
    )
    for process in (
        'process="supervisor",worker=""',
        'process="agent",worker=""',
        'process="worker",worker="1"',
    ):
        for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds"):
            assert f"fastmesh_process_{name}{{{process}}}" in text
    agent.stop()


@pytest.mark.skipif(SANITIZED, reason="a sanitiser needs memory of its own")
def test_it_is_small_and_sleeps(agent: Agent) -> None:
    agent.serving({**CONFIG, "telemetry": {"access_log": {"path": "access.log"}}})
    agent.get("/metrics")
    assert procfs.pss(agent.process.pid) <= 30 << 20  # 23 to 25 MiB, plus what the test brings in
    modules = agent.process.pid
    maps = Path(f"/proc/{modules}/maps").read_text()
    assert "_yaml" not in maps, "PyYAML belongs into the loader only"
    assert "cryptography" not in maps, "cryptography belongs into the loader only"
    agent.stop()


def test_what_only_few_need_is_imported_when_they_need_it() -> None:
    """Said by a process in which nothing has happened yet but an agent's start."""
    loads = "import sys, fastmesh.agent.__main__, fastmesh.agent.agent; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", loads], capture_output=True, text=True, check=True)
    heavy = {
        "uvicorn",
        "starlette",
        "prometheus_client",
        "http.client",
        "h2",
        "dns",
        "msgspec",
        "yaml",
        "click",
    }
    assert not heavy & set(done.stdout.split())


def test_an_admin_api_that_cannot_be_served_is_told_and_nothing_else_suffers(start_agent: StartAgent) -> None:
    """Who asks need not wait, though the supervisor has the socket open as well."""
    agent = start_agent(patches={"fastmesh.agent.api.STEPS": ["fastmesh.no_such_module"]})
    agent.serving()
    for _ in range(3):
        with agent.connect() as sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert agent.stderr().count("agent: the admin API cannot be served: ") == 1
    agent.channel.send({"type": "reload"})
    agent.frame("unchanged")
    agent.stop()


def test_an_admin_api_that_could_not_be_served_is_tried_again(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    late = tmp_path / "api_that_is_late.py"
    late.write_text("raise OSError(24, 'Too many open files')\n")
    agent = start_agent(
        patches={
            "sys.path": [str(tmp_path), *sys.path],
            "fastmesh.agent.api.STEPS": ["api_that_is_late", "fastmesh.agent.admin"],
            "fastmesh.agent.api.RETRY_S": 0.1,
        }
    )
    agent.serving()
    with agent.connect() as sock, contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    late.write_text("")

    def served() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return agent.get("/healthz").status == 200
        return False

    wait_until(served, "the admin API")
    agent.stop()
