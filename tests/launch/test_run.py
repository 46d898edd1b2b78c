"""A command with a sidecar: it starts when that is ready, finds its way through it, its exit code counts."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import cli
from kit.sidecars import address_of, inbound, outbound

# What it needs of others it asks for while it is being imported: there is no later moment to wait for.
AT_IMPORT = """
import urllib.request

ANSWER = urllib.request.urlopen("http://svc-b/greeting", timeout=10).read().decode()
print("heard", ANSWER)
"""

CONNECT = """
import http.client, os, urllib.parse

proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
connection = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=10)
connection.set_tunnel("svc-b", 443)
connection.request("GET", "/")
print(connection.getresponse().read().decode())
"""


def test_a_program_may_call_others_while_it_is_imported(launch, script, config):
    run = launch(config, *script(AT_IMPORT))
    assert run.wait() == 0, run.err()
    assert run.out() == "heard hello\n"


def test_through_the_mesh(launch, script, serve, upstream, pki: Pki):
    """With the identity that --workload names, which the other side asks for."""
    app = upstream()
    config_b = inbound(pki, app.address[1])
    config_b["listeners"][0]["allow"] = [{"from": ["svc-x"]}]
    serve(config_b)
    config = outbound(pki, address_of(config_b)[1], workload="svc-a")
    config.pop("workload")
    ask = ["curl", "-sS", "-o", os.devnull, "-w", "%{http_code}", "http://svc-b/"]
    denied = launch(config, *ask, options=["--explicit", "--workload", "svc-a"])
    assert denied.wait() == 0, denied.err()
    assert denied.out() == "403"
    run = launch(config, *script(AT_IMPORT), options=["--explicit", "--workload", "svc-x"])
    assert run.wait() == 0, run.err()
    assert run.out() == "heard ok\n"


def test_connect_by_service_name(launch, script, config):
    run = launch(config, *script(CONNECT))
    assert run.wait() == 0, run.err()
    assert run.out() == "hello\n"


def test_what_the_command_is_told(launch, config):
    run = launch(config, "env", env={"NO_PROXY": "intranet, ::1"})
    assert run.wait() == 0
    told = dict(line.split("=", 1) for line in run.out().splitlines())
    proxy = "http://" + config["listeners"][0]["bind"]
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        assert told[name] == told[name.upper()] == proxy
    assert told["no_proxy"] == told["NO_PROXY"] == "localhost,127.0.0.1,::1,intranet"
    assert "NOTIFY_SOCKET" not in told
    assert "PYTHONSAFEPATH" not in told


@pytest.mark.parametrize("bind", ["0.0.0.0:{}", "[::]:{}", "[::1]:{}"])
def test_the_address_of_the_proxy(launch, config, bind):
    port = free_port()
    config["listeners"][0]["bind"] = bind.format(port)
    run = launch(config, "sh", "-c", "echo $http_proxy")
    assert run.wait() == 0
    assert run.out() == ("http://127.0.0.1" if "." in bind else "http://[::1]") + f":{port}\n"


def test_the_streams_are_the_commands(launch, config, tmp_path):
    (tmp_path / "in").write_text("to be read\n")
    with (tmp_path / "in").open() as stdin:
        run = launch(config, "sh", "-c", "cat; echo said >&2", stdin=stdin)
        assert run.wait() == 0
    assert run.out() == "to be read\n"
    assert "said\n" in run.err()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("exec ./no-program", 126),
    ],
)
def test_exit_codes(launch, config, tmp_path, command, code):
    (tmp_path / "no-program").touch()
    assert launch(config, "sh", "-c", command).wait() == code


def test_a_command_that_cannot_be_run(launch, config, tmp_path):
    (tmp_path / "no-program").touch()
    missing = launch(config, "fm-no-such-program")
    assert missing.wait() == 127
    assert missing.err() == "fastmesh: run: fm-no-such-program: there is no such program\n"
    run = launch(config, "./no-program")
    assert run.wait() == 126
    assert "fastmesh: run: ./no-program cannot be run: Permission denied\n" in run.err()


def test_the_command_is_not_started_without_its_sidecar(launch, config):
    with socket.create_server(tuple_of(config["listeners"][0]["bind"])):
        run = launch(config, "echo", "started")
        assert run.wait() == 3
    words, ours = run.err().splitlines()
    assert words.startswith("fastmesh: cannot listen on 127.0.0.1:")
    assert "another socket has this address" in words
    assert ours.endswith("ended with exit code 3 before it was ready; the command was not started")
    assert run.out() == ""


def tuple_of(bind):
    host, _, port = bind.rpartition(":")
    return host, int(port)


def test_a_sidecar_that_takes_too_long(launch, config):
    run = launch(config, "echo", "started", options=["--explicit", "--timeout", "1ms"])
    assert run.wait() == 4
    assert "the sidecar was not ready within 0.001 s; the command was not started\n" in run.err()
    assert run.out() == ""


def test_a_bad_configuration(launch, config):
    config["listeners"][0]["roll"] = "outbound"
    run = launch(config, "echo", "started")
    assert run.wait() == 2
    assert "unknown key 'roll'" in run.err()


def test_a_configuration_without_a_proxy(launch, config):
    config["listeners"][0]["to"] = "svc-b"
    run = launch(config, "echo", "started")
    assert run.wait() == 2
    assert "--explicit needs a listener with `role: outbound`" in run.err()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--timeout", "soon"], "Invalid value for '--timeout'"),
        (["--timeout", "0s"], "0s is no time to start in"),
        (["--workload", "Svc"], "Invalid value for '--workload'"),
    ],
)
def test_bad_options(options, said):
    done = cli("run", *options, "--", "true", check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_commands_own_options(launch, config):
    run = launch(config, sys.executable, "-c", "import sys; print(sys.argv[1:])", "-c", "--explicit")
    assert run.wait() == 0
    assert run.out() == "['-c', '--explicit']\n"
