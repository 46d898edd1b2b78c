"""The order of an end: nothing new comes in, the application ends, and reaches others until it has gone."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from kit import procfs
from kit.limits import wait_until
from kit.ports import free_port

# Serves until SIGTERM; then it calls another service before it ends, at its own pace.
SERVER = """
import http.server, signal, sys, threading, urllib.request

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/slow":
            print("asked", flush=True)
            released.wait()
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass

released, told = threading.Event(), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
told.wait()
print("told", flush=True)
sys.stdin.readline()
released.set()
print("called", urllib.request.urlopen("http://svc-b/", timeout=10).read().decode(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def served(launch, script, config):
    """A run with an inbound listener, and lines to its application."""
    port, app = free_port(), free_port()
    config["listeners"].append(
        {"name": "inbound", "role": "inbound", "bind": f"127.0.0.1:{port}", "tls": "none", "to": "app"}
    )
    config["services"]["app"] = {"endpoints": [f"127.0.0.1:{app}"]}
    read, write = os.pipe()
    run = launch(config, *script(SERVER), app, stdin=read)
    os.close(read)
    run.wait_out("ready\n")
    run.port, run.line = port, write
    yield run
    os.close(write)


def ask(sock, path):
    sock.sendall(b"GET %s HTTP/1.1\r\nhost: app\r\n\r\n" % path)


def answer(sock):
    data = b""
    while not data.endswith(b"ok"):
        more = sock.recv(4096)
        assert more, data
        data += more
    return data


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_the_order(served):
    with (
        socket.create_connection(("127.0.0.1", served.port)) as idle,
        socket.create_connection(("127.0.0.1", served.port)) as busy,
    ):
        ask(idle, b"/")
        assert b"connection: close" not in answer(idle).lower()
        ask(busy, b"/slow")
        served.wait_out("asked\n")
        served.signal(signal.SIGTERM)
        served.wait_out("told\n")
        # When the application hears of it, nobody new comes in already.
        assert refused(served.port)
        assert idle.recv(1) == b""
        os.write(served.line, b"\n")
        assert b"connection: close" in answer(busy).lower()
        assert busy.recv(1) == b""
    served.wait_out("called hello\n")
    assert any("supervisor" in title for title in served.tree())
    assert "draining" not in served.err()
    os.write(served.line, b"\n")
    assert served.wait() == 0, served.err()
    assert served.err().index("inbound listeners are withdrawn") < served.err().index("draining")


def test_a_second_signal_does_not_wait(served):
    supervisor = served.find("supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    served.signal(signal.SIGTERM)
    served.signal(signal.SIGTERM)
    served.wait_out("told\n")
    os.kill(supervisor, signal.SIGCONT)
    os.write(served.line, b"\n\n")
    assert served.wait() == 0


def test_a_sidecar_that_does_not_answer_delays_the_signal_only(served):
    supervisor = served.find("supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    served.signal(signal.SIGTERM)
    served.wait_out("told\n")
    os.kill(supervisor, signal.SIGCONT)
    os.write(served.line, b"\n\n")
    assert served.wait() == 0


def test_a_worker_that_starts_after_the_withdrawal_lets_nobody_in(served):
    worker = served.find("worker")
    served.signal(signal.SIGTERM)
    served.wait_out("told\n")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not procfs.alive(worker) and served.find("worker"), "another worker")
    os.write(served.line, b"\n")
    served.wait_out("called hello\n")
    assert refused(served.port)
    os.write(served.line, b"\n")
    assert served.wait() == 0


def test_the_sidecar_is_hurried_by_a_signal_when_the_command_has_gone(launch, config):
    """Its drain would last: a client keeps a tunnel open."""
    port = free_port()
    config["listeners"].append(
        {
            "name": "inbound",
            "role": "inbound",
            "bind": f"127.0.0.1:{port}",
            "tls": "none",
            "protocol": "tcp",
            "to": "svc-b",
        }
    )
    read, write = os.pipe()
    run = launch({**config, "drain": "10m"}, "sh", "-c", "echo ready; read line", stdin=read)
    os.close(read)
    run.wait_out("ready")
    with socket.create_connection(("127.0.0.1", port)):
        os.close(write)
        run.wait_err("draining")
        run.signal(signal.SIGTERM)
        assert run.wait() == 1
