"""A pod without a cluster: its processes, run as the kubelet and a container runtime run them.

`Kubelet` takes a pod as `kubectl apply` would get it and gives it a host of `kit.netns`. Volumes are filled
as the kubelet fills them (links to a directory that is exchanged whole, modes, groups), containers get just
the rights that their `securityContext` says (`kit.container`), in the pod's order: init containers one after
another, sidecars until their `startupProbe` passes, then all the rest; and at the end the other way round.
Probes come from another host, the node. What this does not know is an error, so that nothing is left out
unseen. Needs root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from kit import container as program
from kit.limits import DEADLINE
from kit.netns import Namespace

ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent
# An image: the programs of this machine, and fastmesh in its PATH.
IMAGE = list(
    dict.fromkeys(
        str(one) for one in (Path("/usr"), Path(sys.base_prefix), ROOT, _BIN.parent, Path("/etc/ssl"))
    )
)
LINKS = {
    f"/{name}": f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64") if Path(f"/{name}").is_symlink()
}
PATH = f"{_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# capabilities(7); containerd's and Docker's default.
CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7}
CAPABILITIES |= {"SETPCAP": 8, "NET_BIND_SERVICE": 10, "SYS_CHROOT": 18, "MKNOD": 27, "AUDIT_WRITE": 29}
CAPABILITIES |= {"SETFCAP": 31, "NET_RAW": 13}
DEFAULT = frozenset(CAPABILITIES.values())
CAPABILITIES |= {"NET_ADMIN": 12, "SYS_ADMIN": 21, "SYS_PTRACE": 19}
_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "/etc/group": "root:x:0:\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
}
PACE = 0.05  # seconds between probes, which periodSeconds counts in whole ones
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


class Kubelet:
    """One pod (`{"metadata": …, "spec": …}`) on a host, with the node that asks it.

    `config_maps` and `secrets`: what there is in the pod's namespace, by name and file.
    """

    def __init__(
        self,
        pod: dict[str, Any],
        host: Namespace,
        node: Namespace,
        address: str,
        directory: Path,
        *,
        config_maps: dict[str, dict[str, str]] | None = None,
        secrets: dict[str, dict[str, bytes]] | None = None,
    ) -> None:
        self.spec: dict[str, Any] = pod["spec"]
        self.metadata: dict[str, Any] = pod.get("metadata", {})
        self.host, self.node, self.address = host, node, address
        self.directory = directory
        self.running: dict[str, Container] = {}
        self._sources = {"configMap": config_maps or {}, "secret": secrets or {}}
        self._volumes = {one["name"]: self._volume(one) for one in self.spec.get("volumes", [])}
        known = {"containers", "initContainers", "volumes", "restartPolicy", "securityContext"}
        known |= {"terminationGracePeriodSeconds", "automountServiceAccountToken"}
        assert set(self.spec) <= known, f"this kubelet does not know {set(self.spec) - known}"

    # its life

    def start(self) -> None:
        """Until all containers have been started. AssertionError for a step that fails."""
        for one in self.spec.get("initContainers", []):
            started = self.run(one)
            if one.get("restartPolicy") == "Always":
                if "startupProbe" in one:
                    self.wait(one["name"], "startupProbe")
            else:
                code = started.wait()
                assert code == 0, f"{one['name']}: exit {code}\n{started.log()}"
        for one in self.spec["containers"]:
            self.run(one)

    def run(self, one: dict[str, Any]) -> Container:
        """A container's process, started; once more if it has ended."""
        before = self.running.get(one["name"])
        assert before is None or not before.alive, f"{one['name']} runs"
        made = self.running[one["name"]] = Container(self, one)
        return made

    def wait(self, name: str, *probes: str) -> None:
        """Until these probes of a container pass, for as long as the kubelet would ask."""
        for key in probes:
            running = self.running[name]
            probe = running.spec[key]
            patience = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
            deadline = time.monotonic() + max(patience, DEADLINE)
            passed, said = self.probe(running, probe)
            while not passed:
                assert running.alive, f"{name} has ended\n{running.log()}"
                assert time.monotonic() < deadline, f"{name}.{key}: {said}\n{running.log()}"
                time.sleep(PACE)
                passed, said = self.probe(running, probe)

    def end(self) -> list[str]:
        """SIGTERM to the containers, and when these have ended, to the sidecars; the names of those that ran
        until then, in the order in which they ended. What outlives the grace period is an error."""
        deadline = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", 30)
        ended: list[str] = []
        names = [one["name"] for one in self.spec["containers"]]
        sidecars = [
            o["name"] for o in self.spec.get("initContainers", []) if o.get("restartPolicy") == "Always"
        ]
        for turn in (names, *([one] for one in reversed(sidecars))):
            running = [self.running[one] for one in turn if self.running[one].alive]
            for one in running:
                self._pre_stop(one)
                one.signal(signal.SIGTERM)
            for one in running:
                one.wait(max(deadline - time.monotonic(), 0.1))
                ended.append(one.name)
        return ended

    def _pre_stop(self, one: Container) -> None:
        hook = one.spec.get("lifecycle", {}).get("preStop")
        if hook is not None:
            passed, why = self.probe(one, hook)
            assert passed, f"{one.name}.preStop: {why}"

    def kill(self) -> None:
        for one in self.running.values():
            one.kill()

    # probes

    def probe(self, of: Container, probe: dict[str, Any]) -> tuple[bool, str]:
        """Ask once, as the kubelet does, from the node."""
        timeout = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            done = of.execute(*probe["exec"]["command"], timeout=timeout)
            return done.returncode == 0, done.stdout
        with self.node.inside():
            if "httpGet" in probe:
                return self._http(of, probe["httpGet"], timeout)
            if "grpc" in probe:
                return self._grpc(probe["grpc"], timeout)
            port = of.port(probe["tcpSocket"]["port"])
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, port), timeout).close()
                return True, ""
            return False, "no connection"

    def _http(self, of: Container, http_get: dict[str, Any], timeout: float) -> tuple[bool, str]:
        where = (self.address, of.port(http_get["port"]))
        assert http_get.get("scheme", "HTTP") == "HTTP", "HTTPS is not known here"
        connection = http.client.HTTPConnection(*where, timeout=timeout)
        headers = {"User-Agent": "kube-probe/1.31", "Accept": "*/*", "Connection": "close"}
        headers |= {one["name"]: one["value"] for one in http_get.get("httpHeaders", [])}
        try:
            connection.request("GET", http_get.get("path", "/"), headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return 200 <= answer.status < 400, f"{answer.status} {text}"
        except (OSError, http.client.HTTPException) as error:
            return False, str(error)
        finally:
            connection.close()

    def _grpc(self, grpc: dict[str, Any], timeout: float) -> tuple[bool, str]:
        # A process of its own: gRPC's threads would live on in the node's network.
        script = (
            "import sys, grpc\nfrom grpc_health.v1 import health_pb2 as pb, health_pb2_grpc as stubs\n"
            "with grpc.insecure_channel(sys.argv[1], [('grpc.enable_http_proxy', 0)]) as channel:\n"
            "    asked = pb.HealthCheckRequest(service=sys.argv[2])\n"
            "    got = stubs.HealthStub(channel).Check(asked, timeout=float(sys.argv[3]))\n"
            "    sys.exit(got.status != pb.HealthCheckResponse.SERVING)\n"
        )
        host = f"[{self.address}]" if ":" in self.address else self.address
        arguments = (f"{host}:{grpc['port']}", grpc.get("service", ""), str(timeout))
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
        return done.returncode == 0, done.stderr

    # what containers are made of

    def field(self, path: str) -> str:
        """A value of the downward API."""
        known = {"status.podIP": self.address, "metadata.name": self.name, "metadata.namespace": "default"}
        found = re.fullmatch(r"metadata\.(annotations|labels)\['([^']+)'\]", path)
        return self.metadata[found[1]][found[2]] if found else known[path]

    @property
    def name(self) -> str:
        return str(self.metadata.get("name") or f"{self.metadata.get('generateName', 'pod-')}x")

    def mounts(self, one: dict[str, Any]) -> list[tuple[str, str, bool]]:
        return [
            (str(self._volumes[mount["name"]]), mount["mountPath"], not mount.get("readOnly", False))
            for mount in one.get("volumeMounts", [])
        ]

    def _volume(self, volume: dict[str, Any]) -> Path:
        home = self.directory / f"volume-{volume['name']}"
        home.mkdir(parents=True)
        home.chmod(0o777)
        group = self.spec.get("securityContext", {}).get("fsGroup")
        kind = next(key for key in volume if key != "name")
        if kind == "emptyDir":
            if group is not None:
                os.chown(home, -1, group)
                home.chmod(0o2777)
            return home
        source = volume[kind]
        files = self._sources[kind][source["name"] if kind == "configMap" else source["secretName"]]
        items = source.get("items") or [{"key": key, "path": key} for key in files]
        self.fill(
            home, {one["path"]: files[one["key"]] for one in items}, source.get("defaultMode", 0o644), group
        )
        return home

    @staticmethod
    def fill(home: Path, files: dict[str, Any], mode: int, group: int | None = None) -> None:
        """What a volume holds, exchanged at once: names are links into the directory that `..data` names."""
        version = home / f"..{time.time_ns()}"
        version.mkdir()
        version.chmod(0o755)
        for name, content in files.items():
            file = version / name
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            if group is not None:
                os.chown(file, -1, group)
            file.chmod(mode if group is None else mode | 0o440)
            if not (home / name).is_symlink():
                (home / name).symlink_to(f"..data/{name}")
        (home / "..new").symlink_to(version.name)
        old = home / "..data"
        before = old.resolve() if old.is_symlink() else None
        (home / "..new").replace(old)
        if before is not None:
            shutil.rmtree(before)


class Container:
    """One container's process, from its start on."""

    def __init__(self, pod: Kubelet, spec: dict[str, Any]) -> None:
        self.pod, self.spec = pod, spec
        self.name: str = spec["name"]
        self._log = pod.directory / f"{self.name}.log"
        own, shared = spec.get("securityContext", {}), pod.spec.get("securityContext", {})
        self.environment = self._environment()
        command = [*spec.get("command", []), *spec.get("args", [])]
        assert command, f"{self.name}: an image's own command is not known here"
        root = pod.directory / "root"
        root.mkdir(exist_ok=True)
        self.rights = rights(own, shared)
        with self._log.open("ab") as log:
            self.process, self.pid = _start(
                {
                    "join": 0,
                    "network": f"/run/netns/{pod.host.name}",
                    "hostname": pod.name,
                    "root": str(root),
                    "image": IMAGE,
                    "files": {**_FILES, "/etc/hosts": f"127.0.0.1 localhost\n{pod.address} {pod.name}\n"},
                    "links": LINKS,
                    "mounts": pod.mounts(spec),
                    "read_only": own.get("readOnlyRootFilesystem", False),
                    "env": self.environment,
                    "command": [self._expanded(one) for one in command],
                    **self.rights,
                },
                log,
            )

    def _environment(self) -> dict[str, str]:
        made = {"PATH": PATH, "HOSTNAME": self.pod.name, "HOME": "/", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        for one in self.spec.get("env", []):
            source = one.get("valueFrom")
            made[one["name"]] = (
                _expanded(one.get("value", ""), made)
                if source is None
                else self.pod.field(source["fieldRef"]["fieldPath"])
            )
        return made

    def _expanded(self, text: str) -> str:
        return _expanded(text, self.environment)

    def port(self, value: int | str) -> int:
        """A port by its number or name."""
        if isinstance(value, int):
            return value
        return int(next(one["containerPort"] for one in self.spec["ports"] if one.get("name") == value))

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def status(self) -> dict[str, str]:
        """What the kernel says of process 1 (proc(5))."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 2 * DEADLINE) -> int:
        """Its exit code. AssertionError if it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {seconds:.1f} s\n{self.log()}") from None

    def kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGKILL)
        self.process.wait()

    def execute(self, *command: str, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
        """`kubectl exec`: one more process in the container, with its rights."""
        reader, writer = os.pipe()
        with open(reader, "rb") as output:  # noqa: PTH123
            with open(writer, "wb") as log:  # noqa: PTH123
                process, _ = _start(
                    {"join": self.pid, "env": self.environment, "command": [*command], **self.rights}, log
                )
            said: list[bytes] = []
            thread = threading.Thread(target=lambda: said.append(output.read()))
            thread.start()
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            thread.join()
        return subprocess.CompletedProcess([*command], code, said[0].decode(errors="replace"), "")


def rights(own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """What a container's process may do: by its `securityContext`, and the pod's where that is silent."""
    known = {"allowPrivilegeEscalation", "capabilities", "privileged", "readOnlyRootFilesystem", "runAsGroup"}
    known |= {"runAsNonRoot", "runAsUser", "seccompProfile", "fsGroup", "supplementalGroups"}
    assert set(own) | set(shared) <= known, f"this kubelet does not know {(set(own) | set(shared)) - known}"
    assert not own.get("privileged")
    both = {**shared, **own}
    user, group = both.get("runAsUser", 0), both.get("runAsGroup", 0)
    assert not (both.get("runAsNonRoot") and user == 0), (
        "container has runAsNonRoot and image will run as root"
    )
    chosen = own.get("capabilities", {})
    granted = set(DEFAULT)
    for one in chosen.get("drop", []):
        granted -= granted if one == "ALL" else {CAPABILITIES[one]}
    granted |= {CAPABILITIES[one] for one in chosen.get("add", [])}
    groups = {*shared.get("supplementalGroups", []), *([shared["fsGroup"]] if "fsGroup" in shared else [])}
    return {
        "user": user,
        "group": group,
        "groups": sorted(groups),
        "capabilities": sorted(granted),
        "no_new_privs": own.get("allowPrivilegeEscalation") is False,
        "seccomp": both.get("seccompProfile", {}).get("type") == "RuntimeDefault",
    }


def _expanded(text: str, variables: dict[str, str]) -> str:
    """$(NAME) by its value, $$ by $, as in containers' commands; a name that is not known stays."""
    return _REFERENCE.sub(lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]), text)


def _start(specification: dict[str, Any], log: Any) -> tuple[subprocess.Popen[bytes], int]:
    """The program, and the process that it has started, as it is called here."""
    reader, writer = os.pipe()
    with open(reader, "rb") as status:  # noqa: PTH123
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", program.__file__, str(writer)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(json.dumps(specification).encode())
        pid = status.readline().strip()
    if not pid:
        process.wait()
        text = Path(log.name).read_text(errors="replace") if isinstance(log.name, str) else ""
        raise AssertionError(f"a container cannot be made: {text}")
    return process, int(pid)
