"""A pod template with a sidecar in it: pure, without a look at anything but the object and the settings.

What is put in, in this order, in front of the pod's own init containers:

1. `fastmesh-config` writes the configuration of this pod (`render`); it has no rights at all.
2. `fastmesh-intercept` sets the rules that take the pod's traffic over, in the pod's network namespace; it is
   root there with NET_ADMIN alone. From then on nothing of the application passes around the sidecar.
3. `fastmesh` is the sidecar: an init container with `restartPolicy: Always`. What comes after it, the pod's
   own init containers too, starts when it is ready. It ends after all the others, and a Job does not wait
   for it; a `preStop` hook would be run before that order begins, so there is none.

The sidecar's traffic is exempt from the rules by its user (with `tproxy`, which root alone can do, by its
mark). It belongs to group 0, because that is the group of a Secret's files, which only it and their owner may
read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any, Final, NamedTuple

from fastmesh import __version__
from fastmesh.certs import spiffe
from fastmesh.kubernetes.errors import ManifestError, Path, Refused
from fastmesh.kubernetes.objects import Object, at, template_of, workload_of
from fastmesh.kubernetes.pod import (
    CONFIG_FILE,
    MESH_DIRECTORY,
    PKI_DIRECTORY,
    POD_DIRECTORY,
    Direction,
    Pod,
)
from fastmesh.kubernetes.probes import Probes
from fastmesh.kubernetes.settings import INJECT, PREFIX, STATUS, Settings, choice, of_pod
from fastmesh.kubernetes.shapes import mapping, mappings, named, port, text

SIDECAR: Final = "fastmesh"
INTERCEPT: Final = "fastmesh-intercept"
CONFIG: Final = "fastmesh-config"
# Where a mesh's listeners are by convention: the application cannot be there too.
LISTENERS: Final = (15001, 15006)
# A node has many processors, of which a pod without a limit sees every one: a sidecar needs fewer workers.
WORKERS: Final = 2
_OTHERS: Final = {"istio-proxy": "Istio's", "linkerd-proxy": "Linkerd's"}


class Note(NamedTuple):
    """One thing that was done (`+` added, `~` changed, `!` to be known), and why."""

    sign: str
    what: str
    why: str


class Outcome(NamedTuple):
    """What became of an object. `data` is the whole document, changed or not."""

    object: Object
    action: str  # injected | unchanged | refused
    why: str
    notes: list[Note]
    data: Any


def inject(data: Any, one: Object, settings: Settings) -> Outcome:
    """Give the pods of an object their sidecar; `data`, the document that the object is in, stays as it is.

    Raises ManifestError for what is wrong, and Refused when an object that explicitly asks for a sidecar
    cannot have one; without being asked for, that is an outcome.
    """
    found = template_of(data, one)
    path = (*one.path, *one.template)
    metadata = mapping(found, "metadata", path)
    annotations = mapping(metadata, "annotations", (*path, "metadata"))
    labels = mapping(metadata, "labels", (*path, "metadata"))
    where = (*path, "metadata", "annotations")
    notes = _misplaced(data, one)
    if STATUS in annotations:
        _check_status(found, path)
        return Outcome(one, "unchanged", f"it has its sidecar{_version(annotations[STATUS])}", notes, data)
    asked = choice(annotations, where)
    if asked is None:
        asked = choice(labels, (*path, "metadata", "labels"))
    if asked is False:
        what = "annotation" if INJECT in annotations else "label"
        return Outcome(one, "unchanged", f"its {what} {INJECT} says disabled", notes, data)
    chosen = of_pod(annotations, where, settings)
    changed = copy.deepcopy(data)
    try:
        work = _Injection(template_of(changed, one), path, chosen)
        work.run(_workload(data, one, chosen, where))
    except Refused as reason:
        if asked:
            raise
        return Outcome(one, "refused", str(reason), notes, data)
    return Outcome(one, "injected", f"workload {work.workload}", notes + work.notes, changed)


def _check_status(template: dict[str, Any], path: Path) -> None:
    """Raises ManifestError where our annotation has been copied without our containers."""
    spec = mapping(template, "spec", path)
    names = [one.get("name") for one in mappings(spec, "initContainers", (*path, "spec"))]
    if SIDECAR not in names:
        raise ManifestError(
            (*path, "metadata", "annotations", STATUS),
            f"says that there is a sidecar, and there is no init container {SIDECAR}; remove the annotation",
        )


def _version(status: Any) -> str:
    try:
        return f", of fastmesh {json.loads(status)['version']}"
    except (ValueError, TypeError, LookupError):
        return ""


def _misplaced(data: Any, one: Object) -> list[Note]:
    """Annotations of ours that stand at a workload, where nobody reads them."""
    if not one.template:
        return []
    metadata = mapping(at(data, one.path), "metadata", one.path)
    return [
        Note(
            "!",
            f"annotation {name}",
            f"has no effect on a {one.kind}: it belongs to the pod, in {_spelt(one)}",
        )
        for name in mapping(metadata, "annotations", (*one.path, "metadata"))
        if name.startswith(PREFIX)
    ]


def _spelt(one: Object) -> str:
    return f"{'.'.join(map(str, one.template))}.metadata.annotations"


def _workload(data: Any, one: Object, settings: Settings, where: Path) -> str:
    if settings.workload is not None:
        return settings.workload
    name = workload_of(at(data, one.path), one)
    if not name:
        raise ManifestError(
            (*one.path, "metadata"), f"no name, expected one, or the annotation {PREFIX}workload"
        )
    try:
        return spiffe.workload(name)
    except spiffe.SpiffeError as error:
        raise ManifestError(
            (*one.path, "metadata", "name"), f"{error}; or set the annotation {PREFIX}workload"
        ) from None


class _Injection:
    """One template on its way; it is changed in place."""

    def __init__(self, template: dict[str, Any], path: Path, settings: Settings) -> None:
        self.workload = ""
        self.notes: list[Note] = []
        self.template = template
        self.path = path
        self.settings = settings
        self.at = (*path, "spec")
        self.spec = mapping(template, "spec", path)
        self.containers = mappings(self.spec, "containers", self.at)
        self.inits = mappings(self.spec, "initContainers", self.at)
        self.volumes = mappings(self.spec, "volumes", self.at)
        if not self.containers:
            raise ManifestError((*self.at, "containers"), "nothing, expected the pod's containers")

    def run(self, workload: str) -> None:
        self.workload = workload
        self.refuse()
        inbound = self.inbound()
        probes = self.probes(inbound)
        volumes, mounts = self.make_volumes()
        settings = self.settings
        pod = Pod(
            workload=workload,
            admin=settings.admin_port,
            method=settings.method,
            user=None if self.as_root else settings.user,
            pki=settings.pki.kind != "none",
            workers=None if "cpu" in (settings.resources.get("limits") or {}) else WORKERS,
            inbound=Direction(ports=inbound, exclude_cidrs=settings.exclude_inbound_cidrs),
            outbound=Direction(
                exclude_ports=settings.exclude_outbound_ports, exclude_cidrs=settings.exclude_outbound_cidrs
            ),
            probes=probes.ports(),
        )
        made = [self.config(pod, mounts), self.intercept(mounts), self.sidecar(pod, mounts)]
        self.spec["initContainers"] = made + self.inits
        self.spec["volumes"] = self.volumes + volumes
        self.tell(inbound, probes, volumes)
        self.mark(made, volumes)

    @property
    def as_root(self) -> bool:
        return self.settings.method == "tproxy"

    # what cannot be

    def refuse(self) -> None:
        """Raises Refused for a pod that cannot have a sidecar."""
        spec = self.spec
        if spec.get("hostNetwork") is True:
            raise Refused(
                "hostNetwork: its network is the node's, and the rules would take over the traffic of the "
                "whole node; give the pod a network of its own"
            )
        if mapping(spec, "os", self.at).get("name") == "windows":
            raise Refused("its containers are for Windows, where there is nothing to intercept with")
        user = mapping(spec, "securityContext", self.at).get("runAsUser")
        for path, container in self.all():
            name = named(container, path)
            if name in (SIDECAR, INTERCEPT, CONFIG):
                raise Refused(f"it has a container that is called {name}, as the sidecar's are; rename it")
            if name in _OTHERS:
                raise Refused(f"it has {_OTHERS[name]} sidecar already; two meshes cannot share a pod")
            own = mapping(container, "securityContext", path).get("runAsUser", user)
            if not self.as_root and own == self.settings.user:
                raise Refused(
                    f"container {name} runs as user {own}, which is the sidecar's own and not intercepted; "
                    f"choose another for the sidecar with {PREFIX}user"
                )
            for index, one in enumerate(mappings(container, "ports", path)):
                at = (*path, "ports", index, "containerPort")
                number = port(one.get("containerPort"), at)
                if number == self.settings.admin_port:
                    raise Refused(
                        f"container {name} has port {number}, which is the sidecar's admin port; choose "
                        f"another with {PREFIX}admin-port"
                    )
                if number in LISTENERS:
                    raise Refused(
                        f"container {name} has port {number}, where the sidecar listens; choose another"
                    )

    def all(self) -> list[tuple[Path, dict[str, Any]]]:
        """The containers of the pod's own, init containers too."""
        return [
            ((*self.at, key, index), container)
            for key, containers in (("containers", self.containers), ("initContainers", self.inits))
            for index, container in enumerate(containers)
        ]

    def running(self) -> list[tuple[Path, dict[str, Any]]]:
        """Those that run as long as the pod does."""
        always = len(self.containers)
        return [
            one
            for index, one in enumerate(self.all())
            if index < always or one[1].get("restartPolicy") == "Always"
        ]

    # what is asked of the pod

    def inbound(self) -> list[int]:
        """The ports on which what arrives is taken over."""
        ports = self.settings.inbound_ports
        if ports is None:
            ports = []
            for path, container in self.running():
                for index, one in enumerate(mappings(container, "ports", path)):
                    number = port(one.get("containerPort"), (*path, "ports", index, "containerPort"))
                    protocol = text(one, "protocol", (*path, "ports", index)) or "TCP"
                    if protocol != "TCP":
                        what = f"port {number} of {container['name']}"
                        self.notes.append(Note("!", what, f"is {protocol}, and not intercepted: only TCP is"))
                    elif number not in ports:
                        ports.append(number)
        reserved = [one for one in ports if one in (self.settings.admin_port, *LISTENERS)]
        if reserved:
            raise ManifestError(
                (*self.path, "metadata", "annotations", f"{PREFIX}inbound-ports"),
                f"{reserved[0]}, which is a port of the sidecar's, expected ports of the application",
            )
        return [one for one in ports if one not in self.settings.exclude_inbound_ports]

    def probes(self, inbound: list[int]) -> Probes:
        taken = {self.settings.admin_port, *LISTENERS, *inbound}
        for path, container in self.running():
            taken |= {one.get("containerPort", 0) for one in mappings(container, "ports", path)}
        probes = Probes(inbound, taken)
        for path, container in self.running():
            probes.turn(container, path)
        return probes

    # what is put in

    def make_volumes(self) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        """The volumes, and by what they are for their mounts."""
        taken = {named(one, (*self.at, "volumes", i)) for i, one in enumerate(self.volumes)}
        mesh, own, pki = (_free(name, taken) for name in ("fastmesh-mesh", "fastmesh-pod", "fastmesh-pki"))
        volumes: list[dict[str, Any]] = [
            {"name": mesh, "configMap": {"name": self.settings.config}},
            {"name": own, "emptyDir": {"sizeLimit": "16Mi"}},
        ]
        mounts: dict[str, dict[str, Any]] = {
            "mesh": {"name": mesh, "mountPath": MESH_DIRECTORY, "readOnly": True},
            "write": {"name": own, "mountPath": POD_DIRECTORY},
            "pod": {"name": own, "mountPath": POD_DIRECTORY, "readOnly": True},
        }
        kind, name = self.settings.pki
        if kind == "none":
            return volumes, mounts
        if kind == "volume":
            if name not in taken:
                known = ", ".join(sorted(taken)) or "it has none"
                raise ManifestError(
                    (*self.path, "metadata", "annotations", f"{PREFIX}pki"),
                    f"the pod has no volume {name}, expected one of its volumes ({known})",
                )
            pki = name
        else:
            # Mode 0440: read by the sidecar's group, and refused by it where others could read.
            secret: dict[str, Any] = {"secretName": name or f"fastmesh-{self.workload}", "defaultMode": 0o440}
            if kind == "tls-secret":
                files = {"tls.crt": "certificate.pem", "tls.key": "key.pem", "ca.crt": "bundle.pem"}
                secret["items"] = [{"key": key, "path": file} for key, file in files.items()]
            volumes.append({"name": pki, "secret": secret})
        entry = f"{PKI_DIRECTORY}/workloads/{self.workload}"
        mounts["pki"] = {"name": pki, "mountPath": entry, "readOnly": True}
        return volumes, mounts

    def base(self, name: str, arguments: list[str], mounts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "name": name,
            "image": self.settings.image,
            "command": ["fastmesh", *arguments],
            "resources": copy.deepcopy(self.settings.resources),
            "volumeMounts": [dict(mount) for mount in mounts],
        }

    def config(self, pod: Pod, mounts: dict[str, dict[str, Any]]) -> dict[str, Any]:
        files = [f"--from={MESH_DIRECTORY}/{CONFIG_FILE}", f"--to={POD_DIRECTORY}/{CONFIG_FILE}"]
        # The kubelet expands $(NAME) in arguments, and takes $$ for a $ wherever it stands.
        description = pod.text().replace("$", "$$")
        container = self.base(
            CONFIG,
            ["pod-config", *files, "--address=$(POD_IP)", description],
            [mounts["mesh"], mounts["write"]],
        )
        container["env"] = [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
        container["securityContext"] = _security(self.settings.user)
        return container

    def intercept(self, mounts: dict[str, dict[str, Any]]) -> dict[str, Any]:
        arguments = ["intercept", "up", "-c", f"{POD_DIRECTORY}/{CONFIG_FILE}"]
        container = self.base(INTERCEPT, arguments, [mounts["pod"]])
        container["securityContext"] = _security(0, "NET_ADMIN")
        return container

    def sidecar(self, pod: Pod, mounts: dict[str, dict[str, Any]]) -> dict[str, Any]:
        arguments = ["serve", "-c", f"{POD_DIRECTORY}/{CONFIG_FILE}"]
        used = [mounts["pod"], *([mounts["pki"]] if "pki" in mounts else [])]
        container = self.base(SIDECAR, arguments, used)
        container["restartPolicy"] = "Always"
        container["ports"] = [
            {"name": "fastmesh-admin", "containerPort": pod.admin, "protocol": "TCP"},
            *({"containerPort": one.port, "protocol": "TCP"} for one in pod.probes),
        ]
        ready = {"path": "/readyz", "port": pod.admin}
        # The next container starts when this one is ready: it is asked often, for two minutes.
        container["startupProbe"] = {
            "httpGet": ready,
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 120,
        }
        container["readinessProbe"] = {
            "httpGet": dict(ready),
            "periodSeconds": 5,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        }
        # It is the agent that answers. Without it traffic goes on, and the supervisor starts another: that is
        # no reason to end the sidecar, unless it never comes back.
        container["livenessProbe"] = {
            "httpGet": {"path": "/healthz", "port": pod.admin},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 12,
        }
        container["securityContext"] = (
            _security(0, "NET_ADMIN") if self.as_root else _security(self.settings.user)
        )
        return container

    # what is said of it

    def mark(self, made: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> None:
        content = json.dumps([made, volumes], sort_keys=True).encode()
        status = {
            "version": __version__,
            "hash": hashlib.sha256(content).hexdigest()[:16],
            "containers": [one["name"] for one in made],
            "volumes": [one["name"] for one in volumes],
        }
        metadata = self.template["metadata"] = mapping(self.template, "metadata", self.path)
        annotations = mapping(metadata, "annotations", (*self.path, "metadata"))
        metadata["annotations"] = {**annotations, STATUS: json.dumps(status, separators=(",", ":"))}

    def tell(self, inbound: list[int], probes: Probes, volumes: list[dict[str, Any]]) -> None:
        settings, notes = self.settings, []
        ports = ", ".join(map(str, inbound)) or "none"
        notes.append(
            Note(
                "+",
                f"init container {CONFIG}",
                f"writes the pod's configuration: that of ConfigMap {settings.config}, for workload "
                f"{self.workload}, inbound ports {ports}",
            )
        )
        notes.append(
            Note(
                "+",
                f"init container {INTERCEPT}",
                f"takes the pod's traffic over ({settings.method}); root with NET_ADMIN, in this pod's "
                "network alone",
            )
        )
        exempt = (
            "root with NET_ADMIN, its traffic is exempt by its mark"
            if self.as_root
            else f"user {settings.user}, whose traffic is exempt"
        )
        notes.append(
            Note(
                "+",
                f"init container {SIDECAR}",
                f"the sidecar ({settings.image}): {exempt}; what comes after it starts when it is ready, and "
                "it ends last",
            )
        )
        why = {"configMap": "the mesh's configuration", "emptyDir": "the pod's configuration"}
        for one in volumes:
            kind = next(key for key in one if key != "name")
            note = why.get(kind) or f"the identity of {self.workload}: Secret {one['secret']['secretName']}"
            notes.append(Note("+", f"volume {one['name']}", note))
        for turned in probes.turned:
            if turned.to is None:
                why_not = (
                    f"connects to port {turned.port}, where the sidecar accepts now: it tells that the "
                    "sidecar is there, not the application; use httpGet or grpc"
                )
                notes.append(Note("!", turned.where, why_not))
            else:
                because = (
                    f"port {turned.port} -> {turned.to}, where the sidecar lets just this through: the "
                    "kubelet has no identity"
                )
                notes.append(Note("~", turned.where, because))
        if not inbound:
            notes.append(
                Note(
                    "!", "inbound", f"nothing that arrives is taken over: no ports; see {PREFIX}inbound-ports"
                )
            )
        if self.guaranteed():
            notes.append(
                Note("!", "QoS", f"is no longer Guaranteed: the sidecar needs limits, see {PREFIX}resources")
            )
        notes.append(Note("+", f"annotation {STATUS}", "what was put in: a second time changes nothing"))
        self.notes += notes

    def guaranteed(self) -> bool:
        """Whether the pod's own containers are Guaranteed, and the sidecar is not."""
        own = [mapping(one, "resources", path) for path, one in self.all()]
        return all(map(_limited, own)) and not _limited(self.settings.resources)


def _limited(resources: dict[str, Any]) -> bool:
    limits = resources.get("limits")
    if not isinstance(limits, dict) or not {"cpu", "memory"} <= set(limits):
        return False
    return resources.get("requests") in (None, {}, limits)


def _free(name: str, taken: set[str]) -> str:
    """A name of ours that no volume of the pod has."""
    wanted, number = name, 1
    while wanted in taken:
        number += 1
        wanted = f"{name}-{number}"
    return wanted


def _security(user: int, *capabilities: str) -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], **({"add": list(capabilities)} if capabilities else {})},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": 0,
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
