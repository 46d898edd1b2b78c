"""The API server's side of an admission webhook: AdmissionReview documents, sent over TLS."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import ssl
import subprocess
import uuid
from pathlib import Path
from typing import Any

from kit.limits import DEADLINE, wait_until
from kit.proxy import FASTMESH, FATAL

GROUPS = {"Pod": ("", "v1", "pods"), "Job": ("batch", "v1", "jobs"), "CronJob": ("batch", "v1", "cronjobs")}


def review(data: dict[str, Any], operation: str = "CREATE", **request: Any) -> dict[str, Any]:
    """What the API server (1.31) asks about an object that somebody creates."""
    kind = data["kind"]
    group, version, resource = GROUPS.get(kind, ("apps", "v1", f"{kind.lower()}s"))
    kinds = {"group": group, "version": version, "kind": kind}
    resources = {"group": group, "version": version, "resource": resource}
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": str(uuid.uuid4()),
            "kind": kinds,
            "resource": resources,
            "requestKind": kinds,
            "requestResource": resources,
            "namespace": "shop",
            "operation": operation,
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "uid": "5c1a4b9e-6e5c-4f1e-9a1c-0a3f0f9d1a11",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": data,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **request,
        },
    }


def patch_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The operations of an answer; none if it has no patch."""
    if "patch" not in response:
        assert "patchType" not in response
        return []
    assert response["patchType"] == "JSONPatch"
    operations: list[dict[str, Any]] = json.loads(base64.b64decode(response["patch"], validate=True))
    return operations


class Webhook:
    """`fastmesh webhook` as a process; `ca` are the roots that its certificate leads to."""

    def __init__(self, directory: Path, certificate: Path, key: Path, ca: Path, *options: str) -> None:
        self._log = directory / "webhook.log"
        self._ca = ca
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    FASTMESH,
                    *("webhook", "--listen=127.0.0.1:0", f"--cert={certificate}", f"--key={key}", *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        ready = wait_until(self._ready, "the webhook")
        self.port = int(ready[1])

    def _ready(self) -> re.Match[str] | None:
        assert self.process.poll() is None, self.said()
        return re.search(r"webhook ready: https://127\.0\.0\.1:(\d+)/inject\n", self.said())

    def said(self) -> str:
        return self._log.read_text()

    def connect(self, name: str = "svc-hook") -> http.client.HTTPSConnection:
        """A new connection to it, its certificate judged for `name`, as the API server does."""
        context = ssl.create_default_context(cafile=str(self._ca))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=context, timeout=4 * DEADLINE
        )
        connection.connect = lambda: _connect(connection, context, name)  # type: ignore[method-assign]
        return connection

    def ask(
        self,
        body: bytes | str,
        *,
        path: str = "/inject",
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """One request; the status and the JSON of the answer."""
        connection = self.connect()
        try:
            given = {"Content-Type": "application/json"} if headers is None else headers
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def review(self, question: dict[str, Any]) -> dict[str, Any]:
        """The response to a question that is one."""
        status, answer = self.ask(json.dumps(question))
        assert status == 200, answer
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        response: dict[str, Any] = answer["response"]
        assert response["uid"] == question["request"]["uid"]
        return response

    def stop(self) -> None:
        """SIGTERM, exit code 0, nothing bad on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert code == 0, self.said()
        assert not FATAL.search(self.said()), self.said()


def _connect(connection: http.client.HTTPSConnection, context: ssl.SSLContext, name: str) -> None:
    http.client.HTTPConnection.connect(connection)
    connection.sock = context.wrap_socket(connection.sock, server_hostname=name)
