"""Which objects make pods, and where in them the pod's template stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from fastmesh.config.errors import shown
from fastmesh.kubernetes.errors import ManifestError, Path
from fastmesh.kubernetes.shapes import described, mapping, mappings, text

# kind -> (apiVersion, where the template is)
KINDS: Final[dict[str, tuple[str, Path]]] = {
    "Pod": ("v1", ()),
    "ReplicationController": ("v1", ("spec", "template")),
    "Deployment": ("apps/v1", ("spec", "template")),
    "StatefulSet": ("apps/v1", ("spec", "template")),
    "DaemonSet": ("apps/v1", ("spec", "template")),
    "ReplicaSet": ("apps/v1", ("spec", "template")),
    "Job": ("batch/v1", ("spec", "template")),
    "CronJob": ("batch/v1", ("spec", "jobTemplate", "spec", "template")),
}
_GROUPS: Final = frozenset(version.rpartition("/")[0] for version, _ in KINDS.values())
# Groups that these kinds were in before Kubernetes 1.16 and 1.25.
_FORMER: Final = frozenset(("extensions",))


class Object(NamedTuple):
    """An object that makes pods. `template` is where, `path` where the object itself is in its document."""

    kind: str
    name: str
    path: Path
    template: Path

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def objects(data: Any, path: Path = (), kind: str | None = None) -> Iterator[Object]:
    """The objects of a document that make pods, in their order. Raises ManifestError."""
    if data is None:
        return
    if not isinstance(data, dict):
        raise ManifestError(path, f"{described(data)}, expected a Kubernetes object: a mapping with kind")
    kind = text(data, "kind", path) or kind or ""
    if not kind:
        raise ManifestError(path, "no kind, expected a Kubernetes object (kind: Deployment and so on)")
    item = kind.removesuffix("List")
    if kind == "List" or (item != kind and item in KINDS):
        for index, one in enumerate(mappings(data, "items", path)):
            yield from objects(one, (*path, "items", index), item or None)
        return
    if kind not in KINDS:
        return
    version = text(data, "apiVersion", path)
    wanted, template = KINDS[kind]
    if version != wanted and not (path and not version):  # entries of a PodList may leave it out
        group = version.rpartition("/")[0]
        if group not in _GROUPS | _FORMER:
            return  # a kind of somebody else's
        raise ManifestError(
            (*path, "apiVersion"),
            f"{shown(version) if version else 'nothing'}, expected {wanted} for a {kind}: sidecars need "
            "Kubernetes 1.29, which has no other",
        )
    yield Object(kind, _name(data, path), path, template)


def at(data: Any, path: Path) -> Any:
    """What is at a path that is known to be there."""
    for part in path:
        data = data[part]
    return data


def template_of(data: dict[str, Any], one: Object) -> dict[str, Any]:
    """The pod template of an object (a pod is its own). Raises ManifestError when there is none."""
    found, path = at(data, one.path), one.path
    for part in one.template:
        assert isinstance(part, str)
        found = mapping(found, part, path)
        path = (*path, part)
        if not found:
            raise ManifestError(
                path, f"nothing, expected the {'.'.join(map(str, one.template))} of a {one.kind}"
            )
    assert isinstance(found, dict)
    return found


def _name(data: dict[str, Any], path: Path) -> str:
    metadata = mapping(data, "metadata", path)
    at = (*path, "metadata")
    return text(metadata, "name", at) or text(metadata, "generateName", at).rstrip("-")


def workload_of(data: dict[str, Any], one: Object) -> str:
    """The name that a workload goes by: of the object that makes the pods, whichever of the two this is."""
    metadata = mapping(data, "metadata", one.path)
    for owner in mappings(metadata, "ownerReferences", (*one.path, "metadata")):
        if owner.get("controller") is not True or not isinstance(owner.get("name"), str):
            continue
        name: str = owner["name"]
        labels = mapping(metadata, "labels", (*one.path, "metadata"))
        for label in ("pod-template-hash", "rollouts-pod-template-hash"):
            if isinstance(labels.get(label), str):
                name = name.removesuffix(f"-{labels[label]}")
        if owner.get("kind") == "Job":  # a CronJob's has the minute behind its name
            name = re.sub(r"-[0-9]{8,10}$", "", name)
        return name
    return one.name
