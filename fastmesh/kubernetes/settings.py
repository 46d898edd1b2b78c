"""What can be chosen: for all pods by options of the commands, for one pod by its annotations.

An annotation is declared once, in `ANNOTATIONS`: its name, how its text is read, what it means.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from fastmesh import __version__
from fastmesh.certs import spiffe
from fastmesh.config.errors import nearest, shown
from fastmesh.config.values import parse_cidr
from fastmesh.kubernetes.errors import ManifestError, Path
from fastmesh.kubernetes.shapes import described

PREFIX: Final = "fastmesh.io/"
INJECT: Final = f"{PREFIX}inject"
STATUS: Final = f"{PREFIX}status"

# Together they run any image as root with NET_ADMIN: a webhook leaves that to no pod unless it is told to.
GUARDED: Final = ("image", "method")

# Kubernetes' own rules: RFC 1123 subdomains, quantities, image references without spaces.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_QUANTITY: Final = re.compile(r"[0-9]+(\.[0-9]+)?([mkKMGTPE]|[KMGTPE]i)?")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")


class Pki(NamedTuple):
    """Where the identity comes from: `kind` is none, secret, tls-secret or volume."""

    kind: str
    name: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is chosen for a pod. The sidecar is never intercepted, because it runs as `user`. `withheld`: the
    annotations that a pod may not have."""

    image: str = f"fastmesh:{__version__}"
    config: str = "fastmesh"
    pki: Pki = Pki("secret")
    method: str = "redirect"
    user: int = 15000
    admin_port: int = 15000
    resources: dict[str, Any] = msgspec.field(
        default_factory=lambda: {"requests": {"cpu": "50m", "memory": "64Mi"}}
    )
    workload: str | None = None
    inbound_ports: list[int] | None = None
    exclude_inbound_ports: list[int] = []
    exclude_inbound_cidrs: list[str] = []
    exclude_outbound_ports: list[int] = []
    exclude_outbound_cidrs: list[str] = []
    withheld: frozenset[str] = frozenset()


def parse_image(text: str) -> str:
    if not _IMAGE.fullmatch(text):
        raise ValueError(f"{shown(text)}, expected an image such as registry.example/fastmesh:1.0")
    return text


def parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{shown(text)}, expected the name of an object, such as fastmesh")
    return text


def parse_pki(text: str) -> Pki:
    kind, colon, name = text.partition(":")
    if (kind == "none" and not colon) or (kind == "secret" and not colon):
        return Pki(kind)
    if kind in ("secret", "tls-secret", "volume") and _NAME.fullmatch(name):
        return Pki(kind, name)
    raise ValueError(f"{shown(text)}, expected secret, secret:NAME, tls-secret:NAME, volume:NAME or none")


def parse_method(text: str) -> str:
    if text not in ("redirect", "tproxy"):
        raise ValueError(f"{shown(text)}, expected redirect or tproxy")
    return text


def _number(text: str, least: int, most: int, what: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise ValueError(f"{shown(text)}, expected {what} from {least} to {most}")
    return int(text)


def parse_port(text: str) -> int:
    return _number(text, 1, 65535, "a port")


def parse_user(text: str) -> int:
    return _number(text, 1, 2**31 - 1, "the number of a user")


def parse_ports(text: str) -> list[int]:
    if text.strip() in ("", "none"):
        return []
    return list(dict.fromkeys(parse_port(one.strip()) for one in text.split(",")))


def parse_cidrs(text: str) -> list[str]:
    return list(dict.fromkeys(parse_cidr(one.strip()) for one in text.split(",")))


def parse_resources(text: str) -> dict[str, Any]:
    """Requests and limits, as a container has them, in YAML or JSON."""
    wanted = "expected requests and limits, such as {requests: {cpu: 100m, memory: 64Mi}}"
    try:
        data = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        data = None
    if not isinstance(data, dict) or not set(data) <= {"requests", "limits"}:
        raise ValueError(f"{shown(text)}, {wanted}")
    for amounts in data.values():
        if not isinstance(amounts, dict):
            raise ValueError(f"{shown(text)}, {wanted}")
        for name, amount in amounts.items():
            if not isinstance(amount, str) or not _QUANTITY.fullmatch(amount):
                raise ValueError(f"{name}: {described(amount)}, expected an amount such as 100m or 64Mi")
    return data


class Annotation(NamedTuple):
    field: str
    parse: Callable[[str], Any]
    meaning: str


ANNOTATIONS: Final = {
    "workload": Annotation(
        "workload",
        spiffe.workload,
        "The name of the workload, which its identity has. Left out: the name of the Deployment, "
        "StatefulSet, … that makes the pod.",
    ),
    "config": Annotation("config", parse_name, "The ConfigMap with `fastmesh.yaml`."),
    "pki": Annotation(
        "pki",
        parse_pki,
        "Where the identity comes from: `secret` (the Secret `fastmesh-WORKLOAD`), `secret:NAME`, "
        "`tls-secret:NAME` (with the keys `tls.crt`, `tls.key`, `ca.crt`, as cert-manager makes it), "
        "`volume:NAME` (a volume of the pod, as a CSI driver fills it) or `none`.",
    ),
    "inbound-ports": Annotation(
        "inbound_ports",
        parse_ports,
        "What the mesh may call: ports, separated by commas, or `none`. Left out: the `containerPort`s.",
    ),
    "exclude-inbound-ports": Annotation(
        "exclude_inbound_ports", parse_ports, "Of those, ports that are reached past the sidecar."
    ),
    "exclude-inbound-cidrs": Annotation(
        "exclude_inbound_cidrs", parse_cidrs, "Networks from which the pod is reached past the sidecar."
    ),
    "exclude-outbound-ports": Annotation(
        "exclude_outbound_ports", parse_ports, "Ports that the pod calls past the sidecar."
    ),
    "exclude-outbound-cidrs": Annotation(
        "exclude_outbound_cidrs", parse_cidrs, "Networks that the pod calls past the sidecar."
    ),
    "method": Annotation(
        "method",
        parse_method,
        "`redirect`, or `tproxy`: the application sees its callers' addresses, and the sidecar runs as root "
        "with NET_ADMIN.",
    ),
    "image": Annotation("image", parse_image, "The sidecar's image."),
    "resources": Annotation(
        "resources", parse_resources, "Requests and limits of the sidecar and of the steps before it."
    ),
    "admin-port": Annotation(
        "admin_port", parse_port, "The port of the sidecar's admin API, which the kubelet asks."
    ),
    "user": Annotation("user", parse_user, "The number of the user that the sidecar runs as."),
}


def of_pod(annotations: dict[str, Any], path: Path, settings: Settings) -> Settings:
    """`settings` with what a pod's annotations choose. Raises ManifestError."""
    chosen: dict[str, Any] = {}
    for name, value in annotations.items():
        if not name.startswith(PREFIX) or name in (INJECT, STATUS):
            continue
        known = ANNOTATIONS.get(name.removeprefix(PREFIX))
        at = (*path, name)
        if known is None:
            near = nearest(name.removeprefix(PREFIX), ["inject", *ANNOTATIONS])
            wanted = f"{PREFIX}{near}" if near else "one of those in docs/kubernetes.md"
            raise ManifestError(at, f"an annotation that is not known, expected {wanted}")
        if name.removeprefix(PREFIX) in settings.withheld:
            option = f"--allow-annotation {name.removeprefix(PREFIX)}"
            raise ManifestError(
                at,
                "this cluster's webhook does not let pods choose it; remove the annotation, or run "
                f"`fastmesh webhook` with {option}",
            )
        try:
            chosen[known.field] = known.parse(_text(value, at))
        except ValueError as error:
            raise ManifestError(at, str(error)) from None
    return msgspec.structs.replace(settings, **chosen)


def choice(said: dict[str, Any], path: Path) -> bool | None:
    """Whether a pod asks for a sidecar, by its annotations or labels; None when these do not say."""
    if INJECT not in said:
        return None
    at = (*path, INJECT)
    value = _text(said[INJECT], at)
    if value not in ("enabled", "disabled"):
        raise ManifestError(at, f"{shown(value)}, expected enabled or disabled")
    return value == "enabled"


def _text(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise ManifestError(
            path, f"{described(value)}, expected a text: {path[-2]} are texts, put it in quotes"
        )
    return value
