"""The documentation's commands work as printed, in their order, and print what the pages show."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from kit.guide import PAGES, ROOT, Guide, blocks, shell
from kit.intercept import MISSING
from kit.limits import wait_until

from fastmesh.config.loader import loads
from fastmesh.kubernetes.settings import ANNOTATIONS

# Whose commands run here. Those of README's first sections are what every run of the suite begins with.
GUIDES = {
    "README.md",
    "docs/authorization.md",
    "docs/dns.md",
    "docs/grpc.md",
    "docs/guide-first-mesh.md",
    "docs/health.md",
    "docs/http2.md",
    "docs/identity.md",
    "docs/kubernetes.md",
    "docs/internals/processes-and-reload.md",
    "docs/run.md",
    "docs/tls.md",
    "docs/transparent.md",
}


def test_no_page_is_left_out() -> None:
    assert {str(page.relative_to(ROOT)) for page in PAGES if blocks(page.read_text())} == GUIDES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_are_shown_are_right(page: Path) -> None:
    smallest = "listeners: [{name: a, bind: '127.0.0.1:1', to: web}]\nservices: {web: {endpoints: []}}\n"
    for text in blocks(page.read_text(), "yaml"):
        loads((smallest + text).encode(), Path("/page.yaml"))


def test_smallest_mesh(tmp_path: Path) -> None:
    guide = Guide("README.md", "The smallest mesh")
    (tmp_path / "examples").mkdir()
    for name in ("mesh-a.yaml", "mesh-b.yaml"):
        config = guide.other_ports((ROOT / "examples" / name).read_text())
        # Which of the two is ready first decides who gets the default address: here it is always the first.
        admin = f"127.0.0.1:{guide.ports['15000']}" if name == "mesh-a.yaml" else "off"
        (tmp_path / "examples" / name).write_text(f"admin: {admin}\n{config}")
    start, call, by_proxy, refused, watch, end = guide.blocks()
    hello, refusal = guide.blocks("text")
    with shell(tmp_path) as bash:
        bash.run(start)
        wait_until(lambda: bash.text().count("fastmesh ready: ") == 2, "two sidecars")
        wait_until(lambda: listens(guide.ports["8080"]), "the server")
        assert bash.run(call) == bash.run(by_proxy) == hello
        answer = bash.run(refused).replace("\r", "").split("\n")
        assert [line for line in refusal.split("\n") if line not in answer] == []
        seen = bash.run(watch)
        assert '"status": "ready"' in seen
        assert 'fastmesh_requests_total{code="2xx",service="svc-b"} 2.0' in seen
        bash.run(end)
        assert bash.text().count("draining, for at most 30 s") == 2, bash.text()


def listens(port: int) -> bool:
    """Whether something listens on a port of this host (proc(5): /proc/net/tcp, and tcp6 for both)."""
    tables = (Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
    return any(re.search(f":{port:04X} 0+:0000 0A", table) for table in tables)


def test_first_mesh(tmp_path: Path) -> None:
    guide = Guide("docs/guide-first-mesh.md")
    *before, by_host, by_proxy, method, service, plaintext, counted, end = guide.blocks()
    with shell(tmp_path) as bash:
        for block in before:
            bash.run(block)
        assert bash.run(by_host) == bash.run(by_proxy) == "hello from svc-b\n"
        denied = bash.run(method)
        assert denied.startswith("HTTP/1.1 403 ")
        assert "x-fastmesh-reason: denied" in denied
        unknown = bash.run(service)
        # The page of errors shows the same answer.
        (shown,) = blocks((ROOT / "docs/errors.md").read_text(), "console")
        asked, _, wanted = guide.other_ports(shown).partition("\n")
        assert asked.removeprefix("$ curl -i ") == service.removeprefix("curl -sS -i ").strip()
        assert undated(unknown) == undated(wanted)
        assert bash.run(plaintext).endswith("refused\n")
        seen = bash.run(counted)
        assert re.search(r'^fastmesh_requests_total\{.*code="2xx".*\} 2', seen, re.MULTILINE), seen
        assert "tls_not_tls" in seen
        bash.run(end)


def undated(answer: str) -> list[str]:
    return [line for line in answer.replace("\r", "").rstrip().split("\n") if not line.startswith("date: ")]


def test_run(tmp_path: Path) -> None:
    guide = Guide("docs/run.md")
    service, at_import, code, isolated, end = guide.blocks()
    (shown,) = guide.blocks("text")
    with shell(tmp_path) as bash:
        bash.run(service)
        wait_until(lambda: listens(guide.ports["8080"]), "the service")
        config = tmp_path / "fastmesh.yaml"
        config.write_text(f"admin: off\n{config.read_text()}")
        assert bash.run(at_import) == shown
        assert bash.run(code) == "ended with 7\n"
        assert bash.run(isolated) == shown
        bash.run(end)


def test_identity(tmp_path: Path) -> None:
    with shell(tmp_path) as bash:
        said = "".join(map(bash.run, Guide("docs/identity.md").blocks()))
    assert "certificate.pem: OK" in said
    assert "URI:spiffe://mesh.local/svc-a, DNS:svc-a" in said
    assert re.search(r"^usable +yes, for another 1h(29m|30m)", said, re.MULTILINE)


def test_authorization(tmp_path: Path) -> None:
    guide = Guide("docs/authorization.md")
    shown, _ = guide.blocks("text")
    with shell(tmp_path) as bash:
        check, allowed, others, audited = map(bash.run, guide.blocks())
    assert check.startswith("sidecar.yaml: ok"), check
    assert allowed == shown
    for line in (
        "rule       deny by the listener's rules: rule no-exports",
        "as it should be",
        "rule       allow by the listener's rules: rule shop-writes",
    ):
        assert line in others, others
    assert "rule       deny by the listener's rules: no rule holds (only audited: it passes)" in audited


def test_tls(tmp_path: Path) -> None:
    guide = Guide("docs/tls.md")
    certificate, edge, by_name, renewal, sidecar, outwards, passing, passed, explained, end = guide.blocks()
    with shell(tmp_path) as bash:
        bash.run(certificate + edge)
        assert bash.run(by_name) == "hello from the shop\n"
        assert "new TLS of listener edge, for 59 d 23 h: snapshot 2\n" in bash.run(renewal)
        bash.run(sidecar)
        assert bash.run(outwards) == "hello from the shop\n"
        bash.run(passing)
        assert bash.run(passed) == "hello from the shop\nrefused\n"
        asked = bash.run(explained)
        assert "service    shop\n" in asked
        assert asked.endswith("result     refused: no_service (no service of that name)\nrefused\n"), asked
        bash.run(end)


def test_http2(tmp_path: Path) -> None:
    guide = Guide("docs/http2.md")
    check, explain, start, ask, count, end = guide.blocks()
    answers, counted = guide.blocks("text")
    with shell(tmp_path) as bash:
        assert bash.run(check) == "http2.yaml: ok (1 listener, 2 services)\n"
        spoken = [line for line in bash.run(explain).splitlines() if line.startswith("upstream ")]
        assert spoken == ["upstream   HTTP/1.1", "upstream   HTTP/2"]
        bash.run(start)
        assert bash.run(ask) == answers
        assert bash.run(count) == counted
        bash.run(end)


def test_grpc(tmp_path: Path) -> None:
    guide = Guide("docs/grpc.md")
    service, edge, call, stream, gone = guide.blocks()
    with shell(tmp_path) as bash:
        bash.run(service)
        wait_until(lambda: listens(guide.ports["50051"]), "the service")
        bash.run(edge)
        for block, shown in zip((call, stream), guide.blocks("text"), strict=True):
            seen = bash.run(block).splitlines()
            for line in shown.splitlines():  # behind the bytes in front of its message
                # The service has the same deadline, and may be the first to say so in its own words.
                assert line.startswith("grpc-message") or any(one.endswith(line) for one in seen), seen
        assert "x-fastmesh-reason: connect_refused" in bash.run(gone)
        bash.run("kill %2")


def test_health(tmp_path: Path) -> None:
    guide = Guide("docs/health.md")
    check, start, ill, well = guide.blocks()
    (shown,) = guide.blocks("text")
    second = f"127.0.0.1:{guide.ports['9001']}"
    with shell(tmp_path) as bash:
        assert bash.run(check) == "checks.yaml: ok (1 listener, 2 services)\n"
        bash.run(start)
        gauge, *names, line = bash.run(ill).splitlines()
        assert gauge == f'fastmesh_endpoint_healthy{{endpoint="{second}",service="web"}} 0.0'
        assert names == shown.split()
        assert line.endswith(
            f"endpoint {second} of service web is unhealthy: answered 404, 3 checks in a row"
        )
        _, *names = bash.run(well).splitlines()
        assert sorted(names) == ["one", "one", "two", "two"]


def test_kubernetes(tmp_path: Path) -> None:
    guide = Guide("docs/kubernetes.md")
    explain, again, mesh, pod, certs, manifest, start, ask = guide.blocks()
    told, unchanged, configured, answered = guide.blocks("text")
    with shell(tmp_path) as bash:
        assert bash.run(explain) == told
        assert bash.run(again) == unchanged
        bash.run(mesh)
        assert bash.run(pod) == configured
        bash.run(certs)
        bash.run(manifest)
        assert "kind: MutatingWebhookConfiguration" in (tmp_path / "webhook.yaml").read_text()
        bash.run(start)
        assert json.loads(bash.run(ask)) == json.loads(answered)


def test_annotations_of_kubernetes() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for name, annotation in ANNOTATIONS.items():
        assert f"| `fastmesh.io/{name}` | {annotation.meaning} |\n" in page


def test_transparent(tmp_path: Path) -> None:
    if MISSING:
        pytest.skip(MISSING)
    guide = Guide("docs/transparent.md", "Try it out")
    netns = f"fm-intercept-{os.getpid()}-guide"
    check, up, prove, end = (re.sub(r"\bshop\b", netns, block) for block in guide.blocks())
    (shown,) = guide.blocks("text")
    with shell(tmp_path) as bash:
        try:
            assert bash.run(check) == "sidecar.yaml: ok (4 listeners, 1 service)\n"
            assert bash.run(up).endswith(shown)
            before, _, after = bash.run(prove).partition("not yet\n")
            assert "FAIL the sidecar does not run" in before
            assert [line[:4] for line in after.splitlines()] == ["ok  "] * 6
            assert bash.run(end) == "traffic of everybody is left alone\n"
        finally:
            if Path("/run/netns", netns).exists():
                subprocess.run(["ip", "netns", "delete", netns], check=True)


def test_dns(tmp_path: Path) -> None:
    guide = Guide("docs/dns.md")
    start, ask, change = guide.blocks()
    (shown,) = guide.blocks("text")
    with shell(tmp_path) as bash:
        assert bash.run(start) == "dns.yaml: ok (1 listener, 2 services)\n"
        assert bash.run(ask) == shown
        *_, status, gone, address, counted = bash.run(change).splitlines()
        assert "status: NOERROR" in status
        assert gone == "status: NXDOMAIN"
        assert address == shown.splitlines()[0]
        assert re.fullmatch(r"fastmesh_dns_queries_total\{.*\} [5-9]\.0", counted), counted


def test_reload_by_pid_file(tmp_path: Path) -> None:
    page = Guide("docs/internals/processes-and-reload.md")
    (start,) = re.findall(r"`(fastmesh serve --pid-file \S+)`", page.text)
    (reload,) = page.blocks()
    config = Guide("examples/edge.yaml").text
    (tmp_path / "fastmesh.yaml").write_text(f"admin: off\n{config}")
    with shell(tmp_path) as bash:
        bash.run(f"{start} &")
        wait_until((tmp_path / "fastmesh.pid").exists, "the pid file")
        bash.run(reload)
        wait_until(lambda: "nothing has changed in the configuration" in bash.text(), "the reload")
