"""The objects that make the webhook run in a cluster, and the cluster ask it."""

from __future__ import annotations

import base64
from typing import Any, Final

from fastmesh.kubernetes import nodes
from fastmesh.kubernetes.settings import INJECT

NAME: Final = "fastmesh-webhook"
PORT: Final = 8443
TLS: Final = "/etc/fastmesh/tls"
_USER: Final = 15000


def manifest(namespace: str, image: str, ca: bytes | None, arguments: list[str]) -> str:
    """MutatingWebhookConfiguration, Service and Deployment as YAML; `arguments`: options of the command."""
    made = (configuration(namespace, ca), service(namespace), deployment(namespace, image, arguments))
    return "---\n".join(nodes.written(nodes.node(one)) for one in made)


def configuration(namespace: str, ca: bytes | None) -> dict[str, Any]:
    """Two ways to ask for sidecars, never both for one pod: a namespace does for its pods, but for those that
    say no by their label; and a pod does by its label, where its namespace says nothing."""
    # The webhook's own pods must not wait for themselves.
    elsewhere = _expression("kubernetes.io/metadata.name", "NotIn", namespace)
    namespaces = {"matchLabels": {INJECT: "enabled"}, "matchExpressions": [elsewhere]}
    silent = {"matchExpressions": [elsewhere, _expression(INJECT, "NotIn", "enabled", "disabled")]}
    client: dict[str, Any] = {
        "service": {"name": NAME, "namespace": namespace, "path": "/inject", "port": 443}
    }
    if ca is not None:
        client["caBundle"] = base64.b64encode(ca).decode()
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME, "labels": _labels()},
        "webhooks": [
            _webhook(
                "inject.fastmesh.io",
                client,
                namespaces,
                {"matchExpressions": [_expression(INJECT, "NotIn", "disabled")]},
            ),
            _webhook("pod.inject.fastmesh.io", client, silent, {"matchLabels": {INJECT: "enabled"}}),
        ],
    }


def _webhook(
    name: str, client: dict[str, Any], namespaces: dict[str, Any], pods: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "clientConfig": client,
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }
        ],
        "namespaceSelector": namespaces,
        "objectSelector": pods,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        # A pod that should have a sidecar does not start without one.
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "reinvocationPolicy": "Never",
        "timeoutSeconds": 10,
    }


def _expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, "values": [*values]}


def service(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": namespace, "labels": _labels()},
        "spec": {
            "selector": _labels(),
            "ports": [{"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP"}],
        },
    }


def deployment(namespace: str, image: str, arguments: list[str]) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/healthz", "port": "https", "scheme": "HTTPS"}}
    files = [f"--cert={TLS}/tls.crt", f"--key={TLS}/tls.key"]
    container = {
        "name": "webhook",
        "image": image,
        "command": ["fastmesh", "webhook", f"--listen=:{PORT}", *files, *arguments],
        "ports": [{"name": "https", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        # The worst that a body of the largest size can be made of becomes 700 MiB.
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [{"name": "tls", "mountPath": TLS, "readOnly": True}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsGroup": 0,
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": namespace, "labels": _labels()},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": _labels()},
            "template": {
                "metadata": {"labels": _labels()},
                "spec": {
                    "automountServiceAccountToken": False,
                    "containers": [container],
                    "volumes": [{"name": "tls", "secret": {"secretName": NAME, "defaultMode": 0o440}}],
                },
            },
        },
    }


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": NAME}
