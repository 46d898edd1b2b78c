"""`fastmesh pod-config`: the mesh's configuration with a pod laid over it, and a sidecar that runs so."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.certs import in_child
from kit.fixtures import Serve, Serving
from kit.limits import DEADLINE
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import cli
from kit.upstream import answering

from fastmesh.certs.store import load_identity
from fastmesh.config.loader import loads
from fastmesh.kubernetes.pod import Direction, Pod, ProbePort
from fastmesh.kubernetes.probes import GRPC_PATH
from fastmesh.kubernetes.render import render

MESH = b"""\
# The mesh's, from a ConfigMap.
trust_domain: mesh.local
workload: nobody
drain: 5s                  # kept as it is
intercept:
  outbound: {exclude_ports: [22], exclude_cidrs: [169.254.0.0/16]}
listeners:
  - {name: outbound, role: outbound, bind: 127.0.0.1:15001, transparent: true}
  - {name: inbound, role: inbound, bind: "0.0.0.0:15006", transparent: true}
services: {svc-b: {endpoints: ["10.77.0.2:15006"], tls: mesh}}
"""
POD = Pod(
    workload="web",
    admin=15000,
    method="redirect",
    user=15000,
    pki=True,
    inbound=Direction(ports=[8080], exclude_cidrs=["10.9.0.0/16"]),
    outbound=Direction(exclude_ports=[22, 53]),
    probes=[ProbePort(15020, 8080, ["/healthz"], grpc=True)],
)


def test_pod_is_laid_over_the_mesh() -> None:
    assert yaml.safe_load(render(MESH, "mesh.yaml", POD, "10.0.0.7")) == {
        "trust_domain": "mesh.local",
        "workload": "web",
        "pki": "/etc/fastmesh/pki",
        "admin": "0.0.0.0:15000",
        "drain": "5s",
        "intercept": {
            "method": "redirect",
            "outbound": {"exclude_ports": [22, 53], "exclude_cidrs": ["169.254.0.0/16"]},
            "inbound": {"ports": [8080], "exclude_cidrs": ["10.9.0.0/16"]},
            "exempt_uids": [15000],
        },
        "listeners": [
            {"name": "outbound", "role": "outbound", "bind": "127.0.0.1:15001", "transparent": True},
            {"name": "inbound", "role": "inbound", "bind": "0.0.0.0:15006", "transparent": True},
            {
                "name": "kubelet-8080",
                "bind": "0.0.0.0:15020",
                "protocol": "http",
                "to": "kubelet-8080",
                "allow": [
                    {"methods": ["GET"], "paths": ["/healthz"]},
                    {"methods": ["POST"], "paths": [GRPC_PATH]},
                ],
            },
        ],
        "services": {
            "svc-b": {"endpoints": ["10.77.0.2:15006"], "tls": "mesh"},
            "kubelet-8080": {"endpoints": ["127.0.0.1:8080"]},
        },
    }


@pytest.mark.parametrize(("address", "host"), [("10.0.0.7", "0.0.0.0"), ("fd00::7", "[::]")])
def test_configuration_is_right(address: str, host: str) -> None:
    loaded = loads(render(MESH, "mesh.yaml", POD, address).encode(), Path("/pod.yaml"))
    assert loaded.config.workload == "web"
    assert str(loaded.config.admin) == f"{host}:15000"
    assert loaded.config.drain == 5000
    assert [one.name for one in loaded.config.listeners] == ["outbound", "inbound", "kubelet-8080"]


def test_smallest_pod_and_mesh() -> None:
    pod = Pod(workload="web", admin=15000, method="tproxy")
    assert yaml.safe_load(render(b"{}", "mesh.yaml", pod, "10.0.0.7")) == {
        "workload": "web",
        "admin": "0.0.0.0:15000",
        "intercept": {"method": "tproxy", "outbound": {}},
    }


def test_a_pod_without_ports_has_no_listener_for_what_arrives() -> None:
    pod = Pod(workload="web", admin=15000, method="redirect", user=15000, pki=True)
    loaded = loads(render(MESH, "mesh.yaml", pod, "10.0.0.7").encode(), Path("/pod.yaml"))
    assert [one.name for one in loaded.config.listeners] == ["outbound"]
    # Ports that the mesh's own file names stay those of every pod.
    mesh = MESH.replace(b"intercept:", b"intercept:\n  inbound: {ports: [8080]}")
    loaded = loads(render(mesh, "mesh.yaml", pod, "10.0.0.7").encode(), Path("/pod.yaml"))
    assert [one.name for one in loaded.config.listeners] == ["outbound", "inbound"]


@pytest.mark.parametrize(
    ("mesh", "pod", "workers"),
    [("{}", 2, 2), ("workers: 5", 2, 5), ("workers: 5", None, 5), ("{}", None, None)],
)
def test_workers(mesh: str, pod: int | None, workers: int | None) -> None:
    one = Pod(workload="web", admin=15000, method="redirect", workers=pod)
    assert yaml.safe_load(render(mesh.encode(), "mesh.yaml", one, "10.0.0.7")).get("workers") == workers


def test_scalars_stay_as_they_were_written() -> None:
    text = render(b"a: 1_0\nb: on\nc: '5'\nd: &x 5s\ne: *x\n", "mesh.yaml", POD, "10.0.0.7")
    assert text.startswith("a: 1_0\nb: on\nc: '5'\nd: 5s\ne: 5s\n")


def test_file_is_written(tmp_path: Path) -> None:
    mesh, target = tmp_path / "mesh.yaml", tmp_path / "pod.yaml"
    mesh.write_bytes(MESH)
    arguments = ("pod-config", f"--from={mesh}", "--address=10.0.0.7", POD.text())
    printed = cli(*arguments).stdout
    for _ in range(2):  # a container may be started again
        cli(*arguments, f"--to={target}")
        assert target.read_text() == printed == render(MESH, "mesh.yaml", POD, "10.0.0.7")
    assert target.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mesh.yaml", "pod.yaml"]


@pytest.mark.parametrize(
    ("mesh", "pod", "address", "error"),
    [
        ("a: [1", None, "::1", "mesh.yaml:1:4: '[' that is never closed"),
        ("", None, "::1", "mesh.yaml:1:1: expected one document, a mapping with listeners and services"),
        ("- a", None, "::1", "mesh.yaml:1:1: expected one document, a mapping"),
        ("a: 1\n---\nb: 2", None, "::1", "mesh.yaml:1:1: expected one document"),
        ("a: 1", "{", "::1", "error: Input data was truncated; expected what `fastmesh inject` writes"),
        ("a: 1", '{"workload":"web"}', "::1", "missing required field `admin`"),
        ("a: 1", '{"workload":"web","more":1}', "::1", "unknown field `more`"),
        ("a: 1", None, "here", "'here' does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_bad_input(tmp_path: Path, mesh: str, pod: str | None, address: str, error: str) -> None:
    (tmp_path / "mesh.yaml").write_text(mesh)
    arguments = ("--from=mesh.yaml", "--to=out.yaml", f"--address={address}", pod or POD.text())
    done = cli("pod-config", *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.yaml").exists()


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_bytes(MESH)
    done = cli("pod-config", "--from=mesh.yaml", "--to=no/out.yaml", POD.text(), check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: no/out.yaml cannot be written: No such file or directory\n",
    )


def get(port: int, path: str, method: str = "GET") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        # As the kubelet does: it names the pod's address.
        connection.request(method, path, headers={"Host": f"10.0.0.7:{port}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def test_kubelet_gets_through_and_nothing_else(serve: Serve, upstream: Serving) -> None:
    """The sidecar that is configured so: its own probes, and those of the application."""
    application = upstream(answering())
    admin, outbound, probe = free_port(), free_port(), free_port()
    mesh: dict[str, Any] = {
        "listeners": [
            {"name": "out", "role": "outbound", "bind": f"127.0.0.1:{outbound}", "transparent": True}
        ],
    }
    assert isinstance(application.address, tuple)
    to = application.address[1]
    pod = Pod("web", admin, "redirect", probes=[ProbePort(probe, to, ["/healthz"])])
    proxy = serve(render(json.dumps(mesh).encode(), "mesh.yaml", pod, "10.0.0.7"))
    assert get(admin, "/readyz") == get(admin, "/healthz") == 200
    assert get(probe, "/healthz?full=1") == 200
    assert get(probe, "/secret") == get(probe, "/healthz/x") == get(probe, "/healthz", "POST") == 403
    assert proxy.metrics().sum("requests_total", service=f"kubelet-{to}", code="2xx") == 1
    application.close()
    assert get(probe, "/healthz") >= 500, "a probe tells whether the application is there"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes the sidecar's user")
def test_identity_out_of_a_secret(pki: Pki) -> None:
    """The files as the kubelet mounts them: root's, mode 0440, behind a link; read as the sidecar's user."""
    source = pki.issue("svc-pod")
    # Not below pytest's own directory, which is for root alone.
    with tempfile.TemporaryDirectory(prefix="fastmesh-secret-") as directory:
        entry = Path(directory, "workloads", "svc-pod")
        (entry / "..version").mkdir(parents=True)
        Path(directory).chmod(0o755)
        (entry / "..data").symlink_to("..version")
        for file in (source.certificate, source.key, source.bundle):
            shutil.copy(file, entry / "..version" / file.name)
            (entry / "..version" / file.name).chmod(0o440)
            (entry / file.name).symlink_to(f"..data/{file.name}")

        def identity() -> str:
            load_identity(Path(directory), "svc-pod")  # the modules it needs may be root's as well
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(15000, 15000, 15000)
            return load_identity(Path(directory), "svc-pod").spiffe_id

        assert in_child(identity) == "spiffe://mesh.local/svc-pod"
