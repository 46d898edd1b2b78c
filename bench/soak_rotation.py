"""Certificates of a minute under load: two sidecars, wrk through both, both CAs replaced on the way.

`python -m bench.soak_rotation [--seconds 300] [--ttl 60]`. A third workload shakes hands with the inbound
sidecar all the time and records the certificate that it is shown. Prints renewals, failures, handshakes and
retired connections; exit code 1 when a request failed, a certificate was shown outside its time, or fewer
renewals took place than there was time for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.load import WRK
from bench.machine import BENCH, free_port
from bench.proxies.fastmesh import BINARY

DOMAIN: Final = "mesh.local"
NGINX: Final = """\
daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 3600;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "a small answer\\n"; }} }}
}}
"""
SIDECAR: Final = """\
workers: 1
admin: 127.0.0.1:{admin}
workload: {workload}
trust_domain: mesh.local
pki: {pki}
"""
INBOUND: Final = "listeners: [{{name: in, role: inbound, bind: '127.0.0.1:{port}', to: app}}]\n" + (
    "services: {{app: {{endpoints: ['127.0.0.1:{to}']}}}}\n"
)
OUTBOUND: Final = "listeners: [{{name: out, role: outbound, bind: '127.0.0.1:{port}'}}]\n" + (
    "services: {{svc-b: {{endpoints: ['127.0.0.1:{to}'], tls: mesh}}}}\n"
)


class Recorder(threading.Thread):
    """Shakes hands with the inbound sidecar ten times a second and looks at the certificate it is shown."""

    def __init__(self, port: int, entry: Path) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._entry = entry
        self.stop = threading.Event()
        self.handshakes = 0
        self.serials: set[str] = set()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stop.wait(0.1):
            try:
                self._once()
            except (OSError, ValueError) as error:
                self.wrong.append(f"{time.strftime('%X')} {error}")

    def _once(self) -> None:
        version = (self._entry / "current").resolve()  # all files of one version
        context = ssl.create_default_context(cafile=str(version / "bundle.pem"))
        context.check_hostname = False
        context.load_cert_chain(version / "certificate.pem", version / "key.pem")
        with (
            contextlib.closing(socket_to(self._port)) as plain,
            context.wrap_socket(plain) as client,
        ):
            shown = client.getpeercert()
            now = time.time()
            client.sendall(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
            if not client.recv(65536).startswith(b"HTTP/1.1 200"):
                raise ValueError("no answer")
        assert shown is not None
        self.handshakes += 1
        self.serials.add(str(shown["serialNumber"]))
        begin, end = (ssl.cert_time_to_seconds(str(shown[key])) for key in ("notBefore", "notAfter"))
        if not begin <= now < end:
            raise ValueError(f"shown a certificate of {begin:.0f} to {end:.0f} at {now:.1f}")


def socket_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def certs(pki: Path, *args: str) -> None:
    subprocess.run([str(BINARY), "certs", *args, "--pki", str(pki)], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def running(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def metrics(admin: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def wait_ready(admin: int) -> None:
    end = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5).close()
            return
        if time.monotonic() > end:
            raise SystemExit("a sidecar is not ready within 30 s")
        time.sleep(0.1)


def wait_identity(admins: list[int], before: list[float]) -> None:
    """Until each has taken over one more identity."""
    end = time.monotonic() + 30
    while any(count <= old for count, old in zip(map(reloads, admins), before, strict=True)):
        if time.monotonic() > end:
            raise SystemExit("a sidecar has not taken over what is in the directory within 30 s")
        time.sleep(0.1)


def reloads(admin: int) -> float:
    return metrics(admin)['fastmesh_identity_reloads_total{result="accepted"}']


def soak(home: Path, seconds: int, ttl: int, connections: int) -> int:
    pki = home / "pki"
    certs(pki, "init", "--trust-domain", DOMAIN)
    certs(pki, "issue", "svc-a", "svc-b", "--ttl", f"{ttl}s")
    certs(pki, "issue", "probe", "--ttl", "24h")
    web, inbound, outbound, *admins = (free_port() for _ in range(5))
    (home / "nginx.conf").write_text(NGINX.format(home=home, port=web))
    files = []
    for workload, role, port, to, admin in (
        ("svc-b", INBOUND, inbound, web, admins[0]),
        ("svc-a", OUTBOUND, outbound, inbound, admins[1]),
    ):
        files.append(home / f"{workload}.yaml")
        files[-1].write_text(
            (SIDECAR + role).format(workload=workload, pki=pki, admin=admin, port=port, to=to)
        )
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    with contextlib.ExitStack() as stack:
        argv = [nginx, "-c", str(home / "nginx.conf"), "-p", str(home)]
        stack.enter_context(running(argv, home / "nginx.log"))
        for path, admin in zip(files, admins, strict=True):
            log = path.with_suffix(".log")
            stack.enter_context(running([str(BINARY), "serve", "-c", str(path)], log))
            wait_ready(admin)
        recorder = Recorder(inbound, pki / "workloads" / "probe")
        recorder.start()
        argv = [WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        argv += ["-s", str(BENCH / "wrk.lua"), "-H", "Host: svc-b", f"http://127.0.0.1:{outbound}/"]
        started = time.monotonic()
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as load:
            for share, command in (
                (0.2, ("rotate-issuer",)),
                (0.4, ("rotate-root", "introduce")),
                (0.55, ("rotate-root", "switch", "--renew")),
                (0.75, ("rotate-root", "retire", "--force")),
            ):
                time.sleep(max(0.0, started + share * seconds - time.monotonic()))
                before = [reloads(admin) for admin in admins]
                certs(pki, *command)
                if command[0] == "rotate-root":
                    wait_identity(admins, before)
                print(f"{time.monotonic() - started:6.1f} s  certs {' '.join(command)}", flush=True)
            said, _ = load.communicate(timeout=seconds + 60)
        recorder.stop.set()
        recorder.join(15)
        done = json.loads(said.rpartition("JSON ")[2])
        shown = [metrics(admin) for admin in admins]
    return report(done, shown, recorder, seconds, ttl)


def report(
    done: dict[str, int], shown: list[dict[str, float]], recorder: Recorder, seconds: int, ttl: int
) -> int:
    errors = {key: done[key] for key in ("connect", "read", "write", "timeout", "status") if done[key]}
    print(f"requests              {done['requests']}, failed {errors or 0}")
    renewals = []
    for name, rows in zip(("svc-b", "svc-a"), shown, strict=True):
        renewals.append(rows['fastmesh_certificate_renewals_total{result="succeeded"}'])
        failed = rows['fastmesh_certificate_renewals_total{result="failed"}']
        handshakes = sum(v for k, v in rows.items() if k.startswith("fastmesh_tls_handshakes_total"))
        broken = sum(v for k, v in rows.items() if k.startswith("fastmesh_tls_failed_total"))
        retired = sum(v for k, v in rows.items() if k.startswith("fastmesh_connections_retired_total"))
        print(
            f"{name:<22}{renewals[-1]:.0f} renewals, {failed:.0f} failed; {handshakes:.0f} handshakes, "
            f"{broken:.0f} failed; {retired:.0f} connections retired"
        )
    print(
        f"certificates shown    {len(recorder.serials)} in {recorder.handshakes} handshakes, "
        f"{len(recorder.wrong)} wrong {recorder.wrong[:3] or ''}"
    )
    wanted = int(seconds / (0.8 * ttl)) - 1
    return int(bool(errors or recorder.wrong or min(renewals) < wanted))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak_rotation", description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--ttl", type=int, default=60, help="life of the sidecars' certificates in seconds")
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastmesh-soak-") as home:
        return soak(Path(home), options.seconds, options.ttl, options.connections)


if __name__ == "__main__":
    sys.exit(main())
