"""Pods as `fastmesh inject` writes them, with the rights that they get in a cluster: two, and their node.

The applications know nothing of the mesh, and run with rights of their own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kit.intercept import MISSING
from kit.kubelet import CAPABILITIES, Kubelet
from kit.kubernetes import template
from kit.limits import DEADLINE, wait_until
from kit.pki import Pki
from kit.sniffer import Sniffer, plaintext, tls_records
from kit.three_hosts import LOOPBACK, A, B, Hosts, at, execute, three_hosts

from fastmesh.cli.inject import command

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
# A Service's address, as applications call it, by version of IP: nobody has it.
SERVICE = {4: "10.96.0.20", 6: "fd00:10::20"}


def mesh(family: int) -> str:
    """What the cluster's pods have in common."""
    local, everywhere = (("127.0.0.1", "0.0.0.0"), ("[::1]", "[::]"))[family == 6]
    return f"""
trust_domain: mesh.local
listeners:
  - {{name: outbound, role: outbound, bind: "{local}:15001", transparent: true}}
  - {{name: inbound, role: inbound, bind: "{everywhere}:15006", transparent: true, tls: mesh}}
services:
  orders: {{addresses: ["{at(SERVICE[family], 80)}"], endpoints: ["{at(B[family], 8080)}"], tls: mesh}}
"""


# Answers with what it was asked, and by whom.
SERVER = """
import http.server, json, signal, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = json.dumps([self.client_address[0], self.path, dict(self.headers)]).encode()
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6  # and IPv4 with it
Server(("::", int(sys.argv[1])), Handler).serve_forever()
"""
# An application that speaks gRPC, of which only the health service is there.
GRPC = """
import signal, sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2_grpc
server = grpc.server(futures.ThreadPoolExecutor(2))
servicer = health.HealthServicer()
servicer.set("shop.Orders", 1)
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
server.add_insecure_port("[::]:50051")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server.start()
signal.pause()
"""
REFUSALS = ("denied", "permitted", "Read-only", "must be superuser")
QUESTION = "how-many-are-left-of-4711"
ORDERS: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "orders"},
    "spec": {
        "selector": {"matchLabels": {"app": "orders"}},
        "template": {
            "metadata": {"labels": {"app": "orders"}},
            "spec": {
                "terminationGracePeriodSeconds": 20,
                "containers": [
                    {
                        "name": "app",
                        "image": "registry.example/orders:1",
                        "command": ["python3", "-c", SERVER, "8080"],
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "startupProbe": {"httpGet": {"path": "/started", "port": "http"}},
                        "readinessProbe": {"httpGet": {"path": "/healthz?full=1", "port": "http"}},
                        "securityContext": {
                            "runAsUser": 1000,
                            "runAsGroup": 1000,
                            "runAsNonRoot": True,
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
            },
        },
    },
}


def calling(name: str, path: str, family: int) -> dict[str, Any]:
    """A container that calls the other service, once."""
    script = (
        f"curl --silent --show-error --fail --max-time 30 --globoff http://{at(SERVICE[family], 80)}/{path}"
    )
    return {"name": name, "image": "registry.example/curl:1", "command": ["sh", "-c"], "args": [script]}


def job(family: int = 4) -> dict[str, Any]:
    """A Job that needs the network in its init container already."""
    spec = {
        "restartPolicy": "Never",
        "initContainers": [calling("fetch", "first", family)],
        "containers": [calling("app", QUESTION, family)],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "report"},
        "spec": {"template": {"spec": spec}},
    }


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    authority = Pki(tmp_path_factory.mktemp("pki") / "pki")
    for name in ("orders", "report"):
        authority.issue(name)
    return authority


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as all_three:
        yield all_three


Started = Callable[..., Kubelet]


@pytest.fixture
def start(hosts: Hosts, authority: Pki, tmp_path: Path) -> Iterator[Started]:
    """Starts pods: an object goes through `fastmesh inject`, and what it wrote is run."""
    with contextlib.ExitStack() as stack:

        def start(one: dict[str, Any], *options: str, family: int = 4) -> Kubelet:
            done = CliRunner().invoke(command, [*options], input=yaml.safe_dump(one))
            assert done.exit_code == 0, done.stderr
            pod = template(yaml.safe_load(done.stdout))
            workload = one["metadata"]["name"]
            identity = authority.identity(workload)
            files = {"certificate": identity.certificate, "key": identity.key, "bundle": identity.bundle}
            host, addresses = (hosts.b, B) if workload == "orders" else (hosts.a, A)
            made = Kubelet(
                {**pod, "metadata": {**pod.get("metadata", {}), "name": f"{workload}-0"}},
                host,
                hosts.c,
                addresses[family],
                tmp_path / workload,
                config_maps={"fastmesh": {"fastmesh.yaml": mesh(family)}},
                secrets={f"fastmesh-{workload}": {f"{k}.pem": f.read_bytes() for k, f in files.items()}},
            )
            stack.callback(made.kill)
            made.start()
            return made

        yield start


def told(text: str) -> tuple[str, str, dict[str, str]]:
    """What the application was asked: the caller's address, path, headers by their names in small letters."""
    caller, path, headers = json.loads(text)
    return caller, path, {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("family", [4, 6])
def test_a_call_between_two_pods(start: Started, hosts: Hosts, family: int) -> None:
    """By TLS between them, with the caller's identity; the Job ends, and its sidecar after it."""
    orders = start(ORDERS, family=family)
    orders.wait("app", "startupProbe", "readinessProbe")
    orders.wait("fastmesh", "readinessProbe", "livenessProbe")
    with Sniffer(hosts.switch) as sniffer:
        report = start(job(family), family=family)
        assert report.running["app"].wait() == 0, report.running["app"].log()
        between = [one for one in sniffer.streams() if {one.source[0], one.to[0]} == {A[family], B[family]}]
        assert between, "nothing passed between the pods"
        for one in between:
            assert "application_data" in tls_records(one.data())
        for frame in sniffer.frames:
            assert not plaintext(frame, QUESTION.encode(), b"curl/")
    assert report.end() == ["fastmesh"]
    for name, asked in (("fetch", "/first"), ("app", f"/{QUESTION}")):
        caller, path, headers = told(report.running[name].log())
        assert (caller.removeprefix("::ffff:"), path) == (LOOPBACK[family], asked)
        assert headers["host"] == at(SERVICE[family], 80).removesuffix(":80")
        assert "URI=spiffe://mesh.local/report" in headers["x-forwarded-client-cert"]
    assert orders.end() == ["app", "fastmesh"]
    for pod in (orders, report):
        assert pod.running["fastmesh"].wait() == 0, pod.running["fastmesh"].log()


def service(app: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """The other service, with a container and a pod that are somewhat different."""
    one = copy.deepcopy(ORDERS)
    pod = one["spec"]["template"]["spec"]
    pod["containers"][0].update(app)
    pod.update(spec)
    return one


def test_rights_are_those_of_the_manifest(start: Started) -> None:
    """What the kernel says of the processes; and what a sidecar that is broken into may not."""
    orders = start(ORDERS)
    sidecar, app = orders.running["fastmesh"], orders.running["app"]
    for container, user in ((sidecar, "15000"), (app, "1000")):
        status = container.status()
        assert set(status["Uid"].split()) == {user}
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert status["NoNewPrivs"] == "1"
    assert (sidecar.status()["Groups"], sidecar.status()["Gid"].split()[0]) == ("", "0")
    assert sidecar.status()["Seccomp"] == "2"
    for tried in (
        "touch /x /tmp/x /run/x /dev/x",
        "touch /etc/fastmesh/pod/x",
        "echo > /etc/fastmesh/pod/fastmesh.yaml",
        "mount -t tmpfs x /tmp",
        "nft list ruleset",
        "unshare --user true",
        "unshare --net true",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
    ):
        done = sidecar.execute("sh", "-c", tried)
        assert done.returncode != 0, tried
        assert any(word in done.stdout for word in REFUSALS), done.stdout
    assert sidecar.execute("cat", "/etc/fastmesh/pki/workloads/orders/key.pem").returncode == 0
    assert app.execute("ls", "/etc/fastmesh").returncode != 0, "the application has nothing of it"


def test_only_probes_pass_without_an_identity(start: Started, hosts: Hosts) -> None:
    """The kubelet's requests reach the application, whose answer decides; nothing else does from there."""
    probes = {
        "startupProbe": {"exec": {"command": ["sh", "-c", "test $(id -u) = 1000"]}},
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
        "livenessProbe": {"httpGet": {"path": "/none", "port": 8080}},
        "lifecycle": {"preStop": {"httpGet": {"path": "/hooks/stop", "port": "http"}}},
    }
    grpc = {
        "name": "grpc",
        "image": "registry.example/grpc:1",
        "command": ["python3", "-c", GRPC],
        "ports": [{"containerPort": 50051}],
        "readinessProbe": {"grpc": {"port": 50051, "service": "shop.Orders"}, "timeoutSeconds": 5},
        "livenessProbe": {"grpc": {"port": 50051, "service": "shop.Unknown"}, "timeoutSeconds": 5},
        "startupProbe": {"tcpSocket": {"port": 50051}},
    }
    one = service(probes)
    one["spec"]["template"]["spec"]["containers"].append(grpc)
    orders = start(one)
    orders.wait("app", "startupProbe", "readinessProbe")
    orders.wait("grpc", "startupProbe", "readinessProbe")
    passed, said = orders.probe(orders.running["grpc"], orders.running["grpc"].spec["livenessProbe"])
    assert not passed and "NOT_FOUND" in said, "the application's own word"
    app = orders.running["app"]
    passed, answer = orders.probe(app, app.spec["readinessProbe"])
    assert passed
    _, path, headers = told(answer.partition(" ")[2])
    assert (path, headers["user-agent"]) == ("/healthz", "kube-probe/1.31")
    passed, answer = orders.probe(app, app.spec["livenessProbe"])
    assert not passed and answer.startswith("404 "), "the application's own word"
    for path, port in (("/other", app.spec["readinessProbe"]["httpGet"]["port"]), ("/healthz", 8080)):
        done = execute(hosts.c, "curl", "-sS", "--fail", f"http://{B[4]}:{port}{path}", check=False)
        assert done.returncode != 0, done
    assert "/other" not in app.log()
    assert orders.end() == ["app", "grpc", "fastmesh"]
    assert "GET /hooks/stop" in app.log()


def test_steps_that_run_again(start: Started) -> None:
    """The kubelet may run init containers again, and starts a sidecar that has ended again."""
    orders = start(ORDERS)
    config, intercept, sidecar = orders.spec["initContainers"]
    rules = orders.host.run("nft", "-s", "list", "ruleset")
    assert rules
    for _ in range(2):
        for step in (config, intercept):
            again = orders.run(step)
            assert again.wait() == 0, again.log()
        assert orders.host.run("nft", "-s", "list", "ruleset") == rules
        orders.running["fastmesh"].kill()
        assert not orders.probe(orders.running["app"], orders.running["app"].spec["readinessProbe"])[0]
        orders.run(sidecar)
        orders.wait("fastmesh", "startupProbe")
        orders.wait("app", "readinessProbe")
    assert orders.end() == ["app", "fastmesh"]
    assert orders.running["fastmesh"].wait() == 0


def test_rights_that_the_pod_sets_for_all(start: Started, hosts: Hosts) -> None:
    """A user, groups of files and no root, in a cluster without IPv6."""
    for host in (hosts.a, hosts.b):
        host.run("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    shared = {
        "runAsUser": 1000,
        "runAsNonRoot": True,
        "fsGroup": 2000,
        "supplementalGroups": [3000],
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    orders = start(service({"securityContext": {}}, securityContext=shared))
    orders.wait("app", "readinessProbe")
    assert orders.running["fastmesh"].status()["Groups"].split() == ["2000", "3000"]
    report = start(job())
    assert report.running["app"].wait() == 0, report.running["app"].log()
    assert report.end() == ["fastmesh"]
    assert orders.end() == ["app", "fastmesh"]


def test_tproxy(start: Started) -> None:
    """The application sees who calls; the sidecar is root, and may nothing but NET_ADMIN."""
    orders = start(ORDERS, "--method=tproxy")
    orders.wait("app", "readinessProbe")
    status = orders.running["fastmesh"].status()
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << CAPABILITIES["NET_ADMIN"]
    report = start(job(), "--method=tproxy")
    assert report.running["app"].wait() == 0, report.running["app"].log()
    assert told(report.running["app"].log())[0].removeprefix("::ffff:") == A[4]
    assert report.end() == ["fastmesh"]
    assert orders.end() == ["app", "fastmesh"]


def test_the_last_call(start: Started) -> None:
    """An application that is told to end reaches others through the mesh until it has ended."""
    orders = start(ORDERS)
    one = job()
    spec = one["spec"]["template"]["spec"]
    last = f"curl --silent --show-error --fail http://{SERVICE[4]}/last"
    spec["initContainers"] = []
    spec["containers"][0]["args"] = [f"trap '{last}; exit 3' TERM; echo ready; while :; do sleep 0.05; done"]
    report = start(one)
    app = report.running["app"]
    wait_until(lambda: "ready" in app.log(), "the application")
    assert report.end() == ["app", "fastmesh"]
    assert app.wait() == 3, app.log()
    assert told(app.log().partition("ready")[2])[1] == "/last"
    assert "GET /last" in orders.running["app"].log()


def test_a_secret_that_is_exchanged(start: Started, hosts: Hosts, authority: Pki) -> None:
    """As the kubelet does it: the sidecar shows its new certificate."""
    orders = start(ORDERS)

    def shown() -> str:
        with hosts.c.inside():
            return ssl.get_server_certificate((B[4], 8080), timeout=DEADLINE)

    before = shown()
    made = authority.issue("orders")
    files = {"certificate": made.certificate, "key": made.key, "bundle": made.bundle}
    orders.fill(
        orders.directory / "volume-fastmesh-pki",
        {f"{name}.pem": file.read_bytes() for name, file in files.items()},
        0o440,
    )
    wait_until(lambda: shown() != before, "the new certificate")
    assert shown() in made.certificate.read_text()
