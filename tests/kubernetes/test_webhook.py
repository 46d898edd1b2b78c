"""`fastmesh webhook`, asked over TLS as the API server asks."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import select
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
from click.testing import CliRunner
from kit.admission import Webhook, patch_of, review
from kit.kubernetes import MANIFESTS, VERSIONS, objects, read, template
from kit.limits import DEADLINE, wait_until
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import cli

from fastmesh.agent.server import HANDSHAKE_TIMEOUT_S
from fastmesh.cli.inject import command
from fastmesh.cli.webhook import MAX_SOCKETS
from fastmesh.kubernetes import review as reviews
from fastmesh.kubernetes import webhook as module
from fastmesh.kubernetes.settings import Settings
from fastmesh.kubernetes.webhook import MAX_BODY, MAX_LARGE, SMALL, webhook_app

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"generateName": "web-7d9f8c6b5-", "namespace": "shop"},
    "spec": {"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}]},
}


def pod(annotations: dict[str, str], **spec: Any) -> dict[str, Any]:
    metadata = {**POD["metadata"], "annotations": annotations}
    return {**POD, "metadata": metadata, "spec": {**POD["spec"], **spec}}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    authority = Pki(tmp_path_factory.mktemp("pki") / "pki")
    authority.issue("svc-hook")
    authority.issue("svc-new")
    return authority


@contextlib.contextmanager
def running(directory: Path, authority: Pki, *options: str, name: str = "svc-hook") -> Iterator[Webhook]:
    files = authority.identity(name)
    webhook = Webhook(directory, files.certificate, files.key, files.bundle, *options)
    try:
        yield webhook
        webhook.stop()
    finally:
        if webhook.process.poll() is None:
            webhook.process.kill()
            webhook.process.wait()


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory, authority: Pki) -> Iterator[Webhook]:
    allowed = ("--allow-annotation=image", "--allow-annotation=method")
    with running(tmp_path_factory.mktemp("webhook"), authority, *allowed) as one:
        yield one


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_patch_makes_what_inject_writes(webhook: Webhook, path: Path) -> None:
    """For every object that makes pods, and for the pods that it makes."""
    written = CliRunner().invoke(command, [str(path)])
    for before, after in zip(objects(path.read_text()), objects(written.stdout), strict=True):
        if "template" not in str(before) and before["kind"] != "Pod":
            continue
        response = webhook.review(review(before))
        assert response["allowed"] is True
        assert jsonpatch.apply_patch(before, patch_of(response)) == after
        assert bool(patch_of(response)) == (before != after)


def test_pod_of_a_workload_gets_the_same_as_its_template(webhook: Webhook) -> None:
    (deployment,) = objects((MANIFESTS[0].parent / "deployment.yaml").read_text())
    created = template(deployment)
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9", "uid": "u", "controller": True}
    metadata = {
        "labels": {"pod-template-hash": "7d9"},
        "generateName": "web-7d9-",
        "ownerReferences": [owner],
    }
    one = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": created["spec"]}
    patched = jsonpatch.apply_patch(one, patch_of(webhook.review(review(one))))
    (injected,) = objects(CliRunner().invoke(command, [str(MANIFESTS[0].parent / "deployment.yaml")]).stdout)
    assert patched["spec"] == template(injected)["spec"]
    kubernetes_validate.validate(patched, VERSIONS[0], strict=True)


def test_injected_already(webhook: Webhook) -> None:
    once = jsonpatch.apply_patch(POD, patch_of(webhook.review(review(POD))))
    response = webhook.review(review(once))
    assert response == {"uid": response["uid"], "allowed": True}


def test_dry_run_is_like_any(webhook: Webhook) -> None:
    real, dry = webhook.review(review(POD)), webhook.review(review(POD, dryRun=True))
    assert patch_of(real) == patch_of(dry) != []
    wait_until(lambda: "'web-7d9f8c6b5-' (dry run): injected" in webhook.said(), "its line in the log")


@pytest.mark.parametrize(
    "question",
    [
        review(POD, "DELETE", object=None, oldObject=POD),
        review(POD, "UPDATE", oldObject=POD),
        review(POD, "CREATE", subResource="ephemeralcontainers"),
        review(pod({"fastmesh.io/inject": "disabled"})),
        review({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {}}),
        review({"apiVersion": "v1", "kind": "List", "items": [POD]}),
    ],
    ids=["delete", "update", "subresource", "disabled", "other", "list"],
)
def test_nothing_to_do(webhook: Webhook, question: dict[str, Any]) -> None:
    response = webhook.review(question)
    assert response == {"uid": question["request"]["uid"], "allowed": True}


def test_kind_is_that_of_the_request(webhook: Webhook) -> None:
    bare = {key: value for key, value in POD.items() if key not in ("apiVersion", "kind")}
    whole = jsonpatch.apply_patch(POD, patch_of(webhook.review(review(POD))))
    patched = jsonpatch.apply_patch(bare, patch_of(webhook.review(review(POD, object=bare))))
    assert {**patched, "apiVersion": "v1", "kind": "Pod"} == whole


def test_warnings(webhook: Webhook) -> None:
    response = webhook.review(review(pod({}, hostNetwork=True)))
    assert response["allowed"] is True
    assert "patch" not in response
    (warning,) = response["warnings"]
    assert warning.startswith("fastmesh: no sidecar: hostNetwork: its network is the node's")
    probe = {"tcpSocket": {"port": 8080}}
    container = {**POD["spec"]["containers"][0], "livenessProbe": probe}
    response = webhook.review(review(pod({}, containers=[container])))
    assert patch_of(response)
    assert response["warnings"][0].startswith("fastmesh: app.livenessProbe: connects to port 8080")
    assert all(len(one) <= 256 for one in response["warnings"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pod({"fastmesh.io/inject": "enabled"}, hostNetwork=True), "fastmesh: hostNetwork: its network is"),
        (
            pod({"fastmesh.io/inbound-ports": "http"}),
            "fastmesh: metadata.annotations['fastmesh.io/inbound-ports']: 'http', expected a port",
        ),
        (pod({}, containers=[]), "fastmesh: spec.containers: nothing, expected the pod's containers"),
        (pod({}, volumes=7), "fastmesh: spec.volumes: the number 7, expected a list"),
    ],
)
def test_denied(webhook: Webhook, data: dict[str, Any], message: str) -> None:
    response = webhook.review(review(data))
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    assert response["status"]["message"].startswith(message)
    assert "patch" not in response


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "the body is not JSON"),
        ("{", "the body is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "the body is not JSON"),
        ("[" * 100_000, "the body is not JSON"),
        ("[]", "the body is a list, expected an AdmissionReview"),
        ("{}", "apiVersion and kind are 'None', 'None', expected admission.k8s.io/v1, AdmissionReview"),
        (
            json.dumps({**review(POD), "apiVersion": "admission.k8s.io/v1beta1"}),
            "are 'admission.k8s.io/v1beta1'",
        ),
        (json.dumps({**review(POD), "request": None}), "request is nothing, expected a mapping"),
        (json.dumps(review(POD, uid=None)), "request.uid is nothing, expected a text"),
        (json.dumps(review(POD, kind="Pod")), "request.kind is 'Pod', expected a mapping"),
        (json.dumps(review(POD, object=[])), "request.object is a list, expected a mapping"),
        (
            json.dumps(review(POD)).replace('"image": "app"', f'"image": {"[" * 900}{"]" * 900}'),
            "request.object is nested too deep for any pod",
        ),
    ],
)
def test_no_review(webhook: Webhook, body: str | bytes, error: str) -> None:
    status, answer = webhook.ask(body)
    assert status == 400
    assert error in answer["error"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/yaml", "application/jsonx"])
def test_content_type(webhook: Webhook, kind: str | None) -> None:
    status, answer = webhook.ask(json.dumps(review(POD)), headers={"Content-Type": kind} if kind else {})
    assert status == 415
    assert answer["error"].endswith("expected application/json")


def test_content_type_with_a_parameter(webhook: Webhook) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert webhook.ask(json.dumps(review(POD)), headers=headers)[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_body_too_large(webhook: Webhook, chunked: bool) -> None:
    """By its length, before any of it is read; or as soon as there is too much."""
    connection = webhook.connect()
    with contextlib.closing(connection):
        connection.putrequest("POST", "/inject")
        connection.putheader("Content-Type", "application/json")
        if not chunked:
            connection.putheader("Content-Length", str(MAX_BODY + 1))
            connection.endheaders()
        else:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            with contextlib.suppress(OSError):  # it may be answered and closed before all is sent
                for _ in range(MAX_BODY // 65536 + 1):
                    connection.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read()) == {"error": "the body is larger than 8 MiB"}


def test_largest_body_is_read(webhook: Webhook) -> None:
    body = json.dumps(review(POD))
    assert webhook.ask(body + " " * (MAX_BODY - len(body)))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/inject", 405),
        ("PUT", "/inject", 405),
        ("POST", "/healthz", 405),
        ("POST", "/", 404),
        ("POST", "/inject/", 404),
        ("GET", "/healthz", 200),
    ],
)
def test_endpoints(webhook: Webhook, method: str, path: str, status: int) -> None:
    assert webhook.ask(b"", method=method, path=path)[0] == status


def test_many_at_once(webhook: Webhook) -> None:
    expected = patch_of(webhook.review(review(POD)))
    wrong: list[Any] = []

    def ask() -> None:
        for _ in range(5):
            if patch_of(webhook.review(review(POD))) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * DEADLINE)
    assert not wrong


def test_only_tls(webhook: Webhook) -> None:
    with socket.create_connection(("127.0.0.1", webhook.port), DEADLINE) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"200" not in plain.recv(100)
    with pytest.raises(ssl.SSLCertVerificationError):
        webhook.connect("svc-new").connect()
    assert webhook.ask(b"", method="GET", path="/healthz")[0] == 200


def test_connections_are_bounded_before_their_handshake(tmp_path: Path, authority: Pki) -> None:
    with running(tmp_path, authority) as webhook:
        where = ("127.0.0.1", webhook.port)
        with contextlib.ExitStack() as stack:
            for _ in range(MAX_SOCKETS):
                stack.enter_context(socket.create_connection(where, DEADLINE))
            one_more = stack.enter_context(socket.create_connection(where, DEADLINE))
            assert one_more.recv(1) == b""

        def answered() -> bool:
            with contextlib.suppress(OSError):
                return webhook.ask(b"", method="GET", path="/healthz")[0] == 200
            return False

        wait_until(answered, "places that are free again")


def test_handshakes_that_do_not_end(webhook: Webhook) -> None:
    """A client that says nothing, and one that says it byte by byte: neither holds its place for long."""
    outgoing = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="svc-hook")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    words = outgoing.read()
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        where = ("127.0.0.1", webhook.port)
        silent, slow = (stack.enter_context(socket.create_connection(where, DEADLINE)) for _ in range(2))
        for index in range(len(words) - 1):
            slow.send(words[index : index + 1])
            if select.select([slow], [], [], 0.1)[0]:
                break
        for one in (slow, silent):
            with contextlib.suppress(ConnectionError):
                assert one.recv(1) == b""
    assert HANDSHAKE_TIMEOUT_S <= time.monotonic() - begun < HANDSHAKE_TIMEOUT_S + DEADLINE / 2


def heavy(size: int) -> bytes:
    """A review of about that size which takes as much memory as one can."""
    text = json.dumps(review(pod({}, containers=[{**POD["spec"]["containers"][0], "args": "X"}])))
    return text.replace('"X"', f"[{','.join(['{}'] * (size // 3))}]").encode()


def test_memory_is_bounded(tmp_path: Path, authority: Pki) -> None:
    """Large reviews at once take no more than one by itself, but for their text; small ones do not wait."""
    body = heavy(SMALL * 3 // 2)
    with running(tmp_path, authority) as webhook:

        def peak() -> int:
            status = Path(f"/proc/{webhook.process.pid}/status").read_text()
            return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]

        before = peak()
        assert webhook.ask(body)[0] == 200
        one = peak() - before
        with ThreadPoolExecutor(MAX_LARGE) as pool:
            asked = [pool.submit(webhook.ask, body) for _ in range(MAX_LARGE)]
            assert webhook.ask(json.dumps(review(POD)))[0] == 200
            assert {each.result()[0] for each in asked} == {200}
        every = peak() - before
    print(f"{len(body) >> 10} KiB: {one >> 20} MiB for one, {every >> 20} MiB for {MAX_LARGE} at once")
    assert one > 20 * len(body), "a body that is none"
    assert every < 1.5 * one + 2 * MAX_LARGE * len(body)


class Posted:
    """A review on its way into the application, in two pieces: the second one when `arrived` is set."""

    def __init__(self, arrived: asyncio.Event, size: int = 0) -> None:
        self._arrived = arrived
        body = json.dumps(review(POD)).encode()
        self._pieces = [body[:9], body[9:] + b" " * (size - len(body))]
        self.taken = 0
        self.status = 0

    async def ask(self, app: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/inject", "headers": headers, "query_string": b""}
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        piece, self.taken = self._pieces[self.taken], self.taken + 1
        if self.taken == 2:
            await self._arrived.wait()
        return {"type": "http.request", "body": piece, "more_body": self.taken < 2}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


def test_a_body_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_S", 0.05)
    posted = Posted(asyncio.Event())
    asyncio.run(asyncio.wait_for(posted.ask(webhook_app(Settings(), print)), DEADLINE))
    assert posted.status == 408


class Large(Posted):
    """One whose first piece is large already."""

    def __init__(self, arrived: asyncio.Event) -> None:
        super().__init__(arrived)
        self._pieces[0] += b" " * SMALL


def test_large_bodies_hold_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that do not end keep one more out for as long as they may take, and small ones not at all."""
    monkeypatch.setattr(module, "BODY_S", 0.5)

    async def run() -> None:
        app, never, now = webhook_app(Settings(), print), asyncio.Event(), asyncio.Event()
        now.set()
        stuck = [Large(never) for _ in range(MAX_LARGE)]
        one_more, small = Large(now), Posted(now)
        async with asyncio.TaskGroup() as group:
            for one in stuck:
                group.create_task(one.ask(app))
            for _ in range(100):  # turns of the loop: nothing else has to happen
                await asyncio.sleep(0)
            assert [one.taken for one in stuck] == [2] * MAX_LARGE
            await small.ask(app)
            assert small.status == 200
            group.create_task(one_more.ask(app))
        assert {one.status for one in stuck} == {408}
        assert one_more.status in (200, 503)
        again = Large(now)
        await again.ask(app)
        assert again.status == 200

    asyncio.run(run())


def test_failure_admits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours is no answer: the cluster's failurePolicy decides."""

    def fail(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(reviews, "difference", fail)
    with pytest.raises(RuntimeError):
        reviews.answer(json.dumps(review(POD)).encode(), Settings())


def test_options_are_defaults(tmp_path: Path, authority: Pki) -> None:
    with running(tmp_path, authority, "--image=other:1", "--pki=none") as webhook:
        patched = jsonpatch.apply_patch(POD, patch_of(webhook.review(review(POD))))
    assert {one["image"] for one in patched["spec"]["initContainers"]} == {"other:1"}
    assert len(patched["spec"]["volumes"]) == 2


def test_annotations_that_are_withheld(tmp_path: Path, authority: Pki) -> None:
    """What would let a pod run any image as root, unless it is allowed."""
    image, method = {"fastmesh.io/image": "other:1"}, {"fastmesh.io/method": "tproxy"}
    with running(tmp_path, authority, "--allow-annotation", "method") as webhook:
        denied = webhook.review(review(pod(image)))
        assert denied["allowed"] is False
        message = denied["status"]["message"]
        assert message.startswith(
            "fastmesh: metadata.annotations['fastmesh.io/image']: this cluster's webhook"
        )
        assert message.endswith("`fastmesh webhook` with --allow-annotation image")
        assert patch_of(webhook.review(review(pod(method))))
        assert webhook.review(review(pod(image | {"fastmesh.io/inject": "disabled"})))["allowed"] is True
    with running(tmp_path, authority) as webhook:
        assert webhook.review(review(pod(method)))["allowed"] is False


def test_new_certificate_is_taken_over(tmp_path: Path, authority: Pki) -> None:
    """Connections go on; what cannot be used is said once, and changes nothing."""
    files = {name: authority.identity(name) for name in ("svc-hook", "svc-new")}
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def put(source: Path, target: Path) -> None:
        shutil.copy(source, tmp_path / "stage")
        (tmp_path / "stage").replace(target)

    put(files["svc-hook"].certificate, certificate)
    put(files["svc-hook"].key, key)
    webhook = Webhook(tmp_path, certificate, key, files["svc-hook"].bundle)
    try:
        kept = webhook.connect()
        kept.connect()

        def alive(connection: http.client.HTTPSConnection) -> bool:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            return answer.status == 200

        assert alive(kept)
        put(files["svc-new"].certificate, certificate)  # half of it
        with contextlib.closing(webhook.connect("svc-hook")) as other:
            other.connect()
            assert alive(other)
        assert "warning: the certificate has changed and cannot be used: " in webhook.said()
        put(files["svc-new"].key, key)
        with contextlib.closing(webhook.connect("svc-new")) as other:
            other.connect()
            assert alive(other)
        assert "new certificate in use" in webhook.said()
        with pytest.raises(ssl.SSLCertVerificationError):
            webhook.connect("svc-hook").connect()
        assert alive(kept)
        kept.close()
        key.unlink()
        with contextlib.closing(webhook.connect("svc-new")) as other:
            other.connect()
            assert alive(other)
        assert "tls.key cannot be read: No such file or directory" in webhook.said()
        webhook.stop()
    finally:
        if webhook.process.poll() is None:
            webhook.process.kill()
            webhook.process.wait()


def test_bad_files(tmp_path: Path, authority: Pki) -> None:
    files, other = authority.identity("svc-hook"), authority.identity("svc-new")

    def said(certificate: Path, key: Path) -> str:
        done = cli("webhook", "--listen=127.0.0.1:0", f"--cert={certificate}", f"--key={key}", check=False)
        assert done.returncode == 5, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "none.pem cannot be read: No such file" in said(tmp_path / "none.pem", files.key)
    assert "are not a certificate and its key in PEM" in said(files.key, files.key)
    assert "(KEY_VALUES_MISMATCH); expected both" in said(files.certificate, other.key)


def test_address_that_is_taken(authority: Pki) -> None:
    files, port = authority.identity("svc-hook"), free_port()
    with socket.create_server(("127.0.0.1", port)):
        arguments = (f"--listen=127.0.0.1:{port}", f"--cert={files.certificate}", f"--key={files.key}")
        done = cli("webhook", *arguments, check=False)
    assert done.returncode == 3
    assert done.stderr == (
        f"error: 127.0.0.1, port {port}: Address already in use; choose another with --listen\n"
    )


@pytest.mark.parametrize("listen", ["x", "1.2.3.4:", "1.2.3.4:99999"])
def test_bad_address(listen: str) -> None:
    done = cli("webhook", f"--listen={listen}", check=False)
    assert done.returncode == 2
    assert "expected host:port" in done.stderr


def test_manifest(authority: Pki, tmp_path: Path) -> None:
    roots = authority.identity("svc-hook").bundle
    options = ("--namespace=mesh", "--image=registry.example/fastmesh:1", "--exclude-outbound-ports=53,22")
    options += ("--allow-annotation=image", "--allow-annotation=image")
    done = cli("webhook", "--print-manifest", f"--ca={roots}", "--pki=tls-secret:x", *options)
    configuration, service, deployment = read(done.stdout)
    for one in (configuration, service, deployment):
        for version in VERSIONS:
            kubernetes_validate.validate(one, version, strict=True)
    for hook in configuration["webhooks"]:
        assert hook["failurePolicy"] == "Fail"
        assert hook["sideEffects"] == "None"
        assert hook["clientConfig"]["service"]["name"] == service["metadata"]["name"]
        assert hook["clientConfig"]["service"]["namespace"] == service["metadata"]["namespace"] == "mesh"
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/fastmesh:1"
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    given = container["command"]
    assert given.count("--allow-annotation=image") == 1
    assert {"--pki=tls-secret:x", "--exclude-outbound-ports=53,22"} < set(given)
    # What it is started with is what it takes, but for the places of its files.
    files = authority.identity("svc-hook")
    with running(tmp_path, authority, *given[5:]) as webhook:
        patched = jsonpatch.apply_patch(POD, patch_of(webhook.review(review(POD))))
    assert patched["spec"]["volumes"][-1]["secret"]["secretName"] == "x"
    assert files.key.exists()


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Kubernetes' rules for label selectors: NotIn holds, too, where there is no such label."""
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "NotIn"
        if labels.get(one["key"]) in one["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


@pytest.mark.parametrize(
    ("namespace", "pod", "asked"),
    [
        ("enabled", None, True),
        ("enabled", "enabled", True),
        ("enabled", "disabled", False),
        (None, None, False),
        (None, "enabled", True),
        (None, "disabled", False),
        ("disabled", "enabled", False),
        ("disabled", None, False),
    ],
)
def test_who_asks_for_a_sidecar(namespace: str | None, pod: str | None, asked: bool) -> None:
    (configuration, *_) = read(cli("webhook", "--print-manifest").stdout)
    names = {
        key: {} if said is None else {"fastmesh.io/inject": said}
        for key, said in (("n", namespace), ("p", pod))
    }

    def of(name: str) -> list[str]:
        labels = {**names["n"], "kubernetes.io/metadata.name": name}
        return [
            hook["name"]
            for hook in configuration["webhooks"]
            if selected(hook["namespaceSelector"], labels) and selected(hook["objectSelector"], names["p"])
        ]

    assert len(of("shop")) == asked, "never both"
    assert not of("fastmesh-system"), "its own pods wait for nobody"


def test_manifest_without_roots(tmp_path: Path) -> None:
    done = cli("webhook", "--print-manifest")
    assert "caBundle" not in done.stdout
    assert "warning: no --ca: the cluster will not trust the webhook" in done.stderr
    (tmp_path / "x").write_text("x")
    for name, error in (("x", "has no certificate in PEM"), ("none", "cannot be read: No such file")):
        done = cli("webhook", "--print-manifest", f"--ca={tmp_path / name}", check=False)
        assert done.returncode == 5
        assert error in done.stderr
