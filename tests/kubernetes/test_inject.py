"""`fastmesh inject`: what it writes is what Kubernetes takes, and says of every pod what it should."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
from click.testing import CliRunner, Result
from kit.kubernetes import MANIFESTS, VERSIONS, objects, read, template, validate

from fastmesh.cli.inject import command
from fastmesh.kubernetes import manifests
from fastmesh.kubernetes.inject import inject
from fastmesh.kubernetes.objects import objects as found_objects
from fastmesh.kubernetes.patch import difference
from fastmesh.kubernetes.settings import ANNOTATIONS, Settings

HERE = Path(__file__).parent
STATUS = "fastmesh.io/status"
LEFT_ALONE = ("disabled.yaml", "host-network.yaml", "https-probe.yaml", "same-user.yaml", "windows.yaml")


def run(*arguments: str | Path, stdin: str = "", code: int = 0) -> Result:
    result = CliRunner().invoke(command, [str(one) for one in arguments], input=stdin)
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def injected(name: str) -> dict[str, Any]:
    """The template of the one object in a file, injected."""
    (one,) = objects(run(HERE / "manifests" / name).stdout)
    return template(one)


def sidecars(pod: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in pod["spec"]["initContainers"]}


def described(pod: dict[str, Any]) -> dict[str, Any]:
    """What the pod's configuration is made of."""
    return json.loads(sidecars(pod)["fastmesh-config"]["command"][-1])


def injected_again(data: Any) -> Any:
    for one in found_objects(data):
        data = inject(data, one, Settings()).data
    return data


def test_there_are_many() -> None:
    assert len(MANIFESTS) >= 20


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_output_is_valid(path: Path) -> None:
    assert validate(path.read_text()), "the test's own data"
    result = run(path)
    assert validate(result.stdout) == len([*objects(path.read_text())]) - ("Rollout" in path.read_text())
    assert (STATUS in result.stdout) == (path.name not in LEFT_ALONE)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_second_time_changes_nothing(path: Path) -> None:
    once = run(path).stdout
    assert run("-", stdin=once).stdout == once
    assert run(stdin=once).stdout == once


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_text_and_patch_are_the_same_change(path: Path) -> None:
    """What is written means what the transformation says, and a JSON Patch makes it too."""
    for document in manifests.documents(path.read_bytes(), path.name):
        data = injected_again(document.data)
        operations = difference(document.data, data)
        assert jsonpatch.apply_patch(document.data, operations) == data
        (again,) = manifests.documents(document.text(operations).encode(), "again") or [document]
        assert again.data == data


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_nothing_of_the_pod_is_lost(path: Path) -> None:
    """What is not ours is as it was, but for the ports of probes."""
    before = [*objects(path.read_text())]
    after = [*objects(run(path).stdout)]
    for old, new in zip(before, after, strict=True):
        if old == new:
            continue
        ours, spec = template(new), template(new)["spec"]
        status = json.loads(ours["metadata"]["annotations"].pop(STATUS))
        spec["initContainers"] = [
            one for one in spec["initContainers"] if one["name"] not in status["containers"]
        ]
        spec["volumes"] = [one for one in spec["volumes"] if one["name"] not in status["volumes"]]
        assert normal(new) == normal(old)


def normal(value: Any) -> Any:
    """Without what is empty, and without the ports of probes."""
    if isinstance(value, list):
        return [normal(one) for one in value]
    if not isinstance(value, dict):
        return value
    probe = {"httpGet", "grpc"} & set(value)
    plain = {key: {**child, "port": 0} if key in probe else normal(child) for key, child in value.items()}
    return {key: child for key, child in plain.items() if child not in ({}, [], None)}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone_is_written_as_it_was(name: str) -> None:
    path = HERE / "manifests" / name
    result = run(path)
    assert result.stdout == path.read_text()
    assert "unchanged (" in result.stderr or "refused (" in result.stderr


def test_other_documents_stay_byte_for_byte() -> None:
    path = HERE / "manifests" / "many-documents.yaml"
    before, after = path.read_text().split("---\n"), run(path).stdout.split("---\n")
    assert [old == new for old, new in zip(before, after, strict=True)] == [1, 1, 1, 0, 1, 1, 1]


def test_containers_and_their_order() -> None:
    pod = injected("init-containers.yaml")
    names = [one["name"] for one in pod["spec"]["initContainers"]]
    assert names == ["fastmesh-config", "fastmesh-intercept", "fastmesh", "wait-for-db", "migrate"]
    config, intercept, sidecar = pod["spec"]["initContainers"][:3]
    assert sidecar["restartPolicy"] == "Always"
    assert "restartPolicy" not in config | intercept
    assert sidecar["command"] == ["fastmesh", "serve", "-c", "/etc/fastmesh/pod/fastmesh.yaml"]
    assert intercept["command"] == ["fastmesh", "intercept", "up", "-c", "/etc/fastmesh/pod/fastmesh.yaml"]
    assert "lifecycle" not in sidecar, "a hook would be run before the application has ended"


def test_rights() -> None:
    config, intercept, sidecar = [*sidecars(injected("security-context.yaml")).values()]
    for one in (config, sidecar):
        assert one["securityContext"]["runAsUser"] == 15000
        assert one["securityContext"]["runAsNonRoot"] is True
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    # The pod says runAsNonRoot: the step that needs root says otherwise for itself alone.
    assert intercept["securityContext"]["runAsUser"] == 0
    assert intercept["securityContext"]["runAsNonRoot"] is False
    assert intercept["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    for one in (config, intercept, sidecar):
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["securityContext"]["readOnlyRootFilesystem"] is True


def test_tproxy_is_root_and_exempt_by_its_mark() -> None:
    pod = injected("tproxy.yaml")
    sidecar = sidecars(pod)["fastmesh"]["securityContext"]
    assert (sidecar["runAsUser"], sidecar["capabilities"]["add"]) == (0, ["NET_ADMIN"])
    assert "user" not in described(pod)


def test_probes_of_the_sidecar() -> None:
    sidecar = sidecars(injected("deployment.yaml"))["fastmesh"]
    asked = {
        name: (sidecar[name]["httpGet"]["path"], sidecar[name]["httpGet"]["port"])
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert asked == {
        "startupProbe": ("/readyz", 15000),
        "readinessProbe": ("/readyz", 15000),
        "livenessProbe": ("/healthz", 15000),
    }


def test_probes_of_the_application() -> None:
    pod = injected("probes.yaml")
    http, grpc, tcp, beside = pod["spec"]["containers"]
    assert http["startupProbe"]["httpGet"] == {
        "path": "/healthz?full=1",
        "port": 15021,
        "httpHeaders": [{"name": "X-Probe", "value": "startup"}],
    }
    assert http["readinessProbe"]["httpGet"]["port"] == 15021
    assert http["livenessProbe"]["httpGet"]["port"] == 15021
    assert http["lifecycle"]["postStart"]["httpGet"]["port"] == 15021
    assert http["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "5"]}}
    assert grpc["readinessProbe"]["grpc"] == {"port": 15022, "service": "shop.Orders"}
    assert tcp["readinessProbe"]["tcpSocket"] == {"port": "sql"}
    assert beside["livenessProbe"]["httpGet"]["port"] == 8443, "a port that is not intercepted"
    assert described(pod)["probes"] == [
        {"port": 15021, "to": 8080, "paths": ["/healthz", "/ready", "/", "/hooks/started"]},
        {"port": 15022, "to": 50051, "grpc": True},
    ]
    ports = [one["containerPort"] for one in sidecars(pod)["fastmesh"]["ports"]]
    assert ports == [15000, 15021, 15022]


def test_annotations() -> None:
    (original,) = objects((HERE / "manifests" / "annotations.yaml").read_text())
    named = set(template(original)["metadata"]["annotations"])
    assert named == {"fastmesh.io/inject", *(f"fastmesh.io/{name}" for name in ANNOTATIONS)}
    pod = injected("annotations.yaml")
    assert described(pod) == {
        "workload": "checkout",
        "admin": 16000,
        "method": "redirect",
        "user": 16001,
        "pki": True,
        "workers": 2,
        "inbound": {"ports": [8080, 9090], "exclude_cidrs": ["10.9.0.0/16"]},
        "outbound": {
            "exclude_ports": [22, 5432],
            "exclude_cidrs": ["169.254.0.0/16", "fd00:ec2::254/128"],
        },
    }
    for one in sidecars(pod).values():
        assert one["image"] == "registry.example/fastmesh:1"
        assert one["resources"]["limits"] == {"memory": "256Mi"}
    mesh, _, pki = pod["spec"]["volumes"]
    assert mesh["configMap"] == {"name": "shop-mesh"}
    assert pki["secret"] == {"secretName": "checkout-identity", "defaultMode": 0o440}


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("deployment.yaml", "web"),
        ("pod-of-replicaset.yaml", "web"),
        ("job-generated-name.yaml", "backup"),
        ("cronjob.yaml", "nightly"),
        ("pod.yaml", "shell"),
    ],
)
def test_workload(name: str, workload: str) -> None:
    assert described(injected(name))["workload"] == workload


@pytest.mark.parametrize(
    ("owner", "labels", "workload"),
    [
        ({"kind": "Job", "name": "nightly-29012345"}, {}, "nightly"),
        ({"kind": "StatefulSet", "name": "db"}, {}, "db"),
        ({"kind": "ReplicaSet", "name": "web-5c9"}, {"rollouts-pod-template-hash": "5c9"}, "web"),
        ({"kind": "ReplicaSet", "name": "bare"}, {}, "bare"),
    ],
)
def test_workload_of_a_pod_with_an_owner(
    owner: dict[str, Any], labels: dict[str, str], workload: str
) -> None:
    metadata = {"generateName": "x-", "ownerReferences": [{**owner, "controller": True}], "labels": labels}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "a"}]}}
    assert described(injected_again(pod))["workload"] == workload


def test_inbound_ports() -> None:
    def ports(name: str) -> list[int]:
        return described(injected(name)).get("inbound", {}).get("ports", [])

    assert ports("multi-container.yaml") == [8080, 9090, 6379]
    assert ports("native-sidecars.yaml") == [8080, 7070]
    assert ports("no-ports.yaml") == []
    assert ports("daemonset.yaml") == [8126], "UDP is not intercepted"
    assert ports("https-probe-excluded.yaml") == [8080]


def test_volumes_with_names_that_are_taken() -> None:
    pod = injected("volumes.yaml")
    names = [one["name"] for one in pod["spec"]["volumes"]]
    assert names[3:] == ["fastmesh-mesh", "fastmesh-pod-3", "fastmesh-pki-2"]
    mounts = {one["name"] for one in sidecars(pod)["fastmesh"]["volumeMounts"]}
    assert mounts == {"fastmesh-pod-3", "fastmesh-pki-2"}


def test_workers() -> None:
    """Two, unless a limit of the sidecar's says how many processors there are."""
    assert described(injected("deployment.yaml"))["workers"] == 2
    limited = run("--resources={limits: {cpu: 4}}", HERE / "manifests" / "deployment.yaml")
    (one,) = objects(limited.stdout)
    assert "workers" not in described(template(one))


def test_identity() -> None:
    def pki(name: str) -> tuple[Any, Any]:
        pod = injected(name)
        mounts = sidecars(pod)["fastmesh"]["volumeMounts"]
        mount = next((one for one in mounts if "pki" in one["mountPath"]), None)
        volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
        return mount and mount["mountPath"], mount and volumes[mount["name"]]

    assert pki("deployment.yaml") == (
        "/etc/fastmesh/pki/workloads/web",
        {"name": "fastmesh-pki", "secret": {"secretName": "fastmesh-web", "defaultMode": 0o440}},
    )
    _, volume = pki("identity-cert-manager.yaml")
    assert {one["key"]: one["path"] for one in volume["secret"]["items"]} == {
        "tls.crt": "certificate.pem",
        "tls.key": "key.pem",
        "ca.crt": "bundle.pem",
    }
    assert pki("identity-csi.yaml")[1]["csi"]["driver"] == "csi.example"
    assert pki("no-identity.yaml") == (None, None)
    assert "pki" not in described(injected("no-identity.yaml"))


@pytest.mark.parametrize(
    ("label", "annotation", "has_one"),
    [
        ("disabled", None, False),
        ("enabled", None, True),
        ("enabled", "disabled", False),
        ("disabled", "enabled", True),
    ],
)
def test_label(label: str, annotation: str | None, has_one: bool) -> None:
    """What a webhook can be chosen by says the same here; an annotation says it with more weight."""
    (one,) = read((HERE / "manifests" / "deployment.yaml").read_text())
    metadata = template(one)["metadata"]
    metadata["labels"]["fastmesh.io/inject"] = label
    if annotation is not None:
        metadata["annotations"] = {"fastmesh.io/inject": annotation}
    result = run(stdin=json.dumps(one))
    assert (STATUS in result.stdout) == has_one
    if not has_one:
        which = "label" if annotation is None else "annotation"
        assert f"unchanged (its {which} fastmesh.io/inject says disabled)" in result.stderr


def test_label_that_says_something_else() -> None:
    (one,) = read((HERE / "manifests" / "deployment.yaml").read_text())
    template(one)["metadata"]["labels"]["fastmesh.io/inject"] = "true"
    said = run(stdin=json.dumps(one), code=2).stderr
    assert "metadata.labels['fastmesh.io/inject']: 'true', expected enabled or disabled" in said


def test_json_stays_json() -> None:
    path = HERE / "manifests" / "from-kubectl.json"
    before, after = json.loads(path.read_text()), json.loads(run(path).stdout)
    assert [one["kind"] for one in after["items"]] == [one["kind"] for one in before["items"]]
    assert injected_again(before) == after


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_judge_can_say_no(path: Path) -> None:
    """Of all that is put in, one thing at a time is spoilt."""
    for one in objects(run(path).stdout):
        if STATUS not in json.dumps(one):
            continue
        for spoil in (
            lambda spec: spec["initContainers"][0].update(images="x"),
            lambda spec: spec["initContainers"][0].pop("name"),
            lambda spec: spec["initContainers"][1]["securityContext"].update(runAsUser="0"),
            lambda spec: spec["initContainers"][2].update(restartPolicy=True),
            lambda spec: spec["initContainers"][2]["startupProbe"]["httpGet"].pop("port"),
            lambda spec: spec["volumes"][-1].update(emptyDir=[]),
            lambda spec: spec.update(initContainers={}),
        ):
            other = copy.deepcopy(one)
            spoil(template(other)["spec"])
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(other, VERSIONS[0], strict=True)
        break


def test_scalars_keep_what_they_mean() -> None:
    text = run(HERE / "manifests" / "cronjob.yaml").stdout
    for kept in ('value: "12e4567"', "value: 'on'", 'value: "22:30"', 'schedule: "30 2 * * *"'):
        assert kept in text


def test_aliases_are_changed_in_one_place() -> None:
    one, two = objects(run(HERE / "manifests" / "anchors.yaml").stdout)
    assert template(one)["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] == 15020
    assert template(two)["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] == 8080
    assert "initContainers" not in template(two)["spec"]


def test_many_files_are_one_stream(tmp_path: Path) -> None:
    first, second = HERE / "manifests" / "pod.yaml", tmp_path / "second.yaml"
    second.write_text("kind: Service\napiVersion: v1\nmetadata: {name: s}")
    documents = read(run(first, second, first).stdout)
    assert [one["kind"] for one in documents] == ["Pod", "Service", "Pod"]


def test_explain() -> None:
    path = HERE / "manifests" / "probes.yaml"
    said = run("--explain", path).stdout.splitlines()
    assert said[0] == f"{path}: document 1: Deployment probed: injected (workload probed)"
    for begin in (
        "  + init container fastmesh-intercept: takes the pod's traffic over (redirect)",
        "  + volume fastmesh-pki: the identity of probed: Secret fastmesh-probed",
        "  ~ http.readinessProbe: port 8080 -> 15021",
        "  ! tcp.readinessProbe: connects to port 5432",
    ):
        assert any(line.startswith(begin) for line in said), begin
    assert "initContainers" not in "".join(said)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("guaranteed.yaml", "QoS: is no longer Guaranteed"),
        ("no-ports.yaml", "inbound: nothing that arrives is taken over"),
        ("daemonset.yaml", "port 8125 of agent: is UDP"),
    ],
)
def test_what_is_to_be_known(name: str, note: str) -> None:
    assert f"  ! {note}" in run("--explain", HERE / "manifests" / name).stdout


def test_annotation_in_the_wrong_place() -> None:
    text = (HERE / "manifests" / "replicaset.yaml").read_text()
    text = text.replace("{name: bare}", "{name: bare, annotations: {fastmesh.io/inject: disabled}}")
    said = run("--explain", stdin=text).stdout
    assert "! annotation fastmesh.io/inject: has no effect on a ReplicaSet" in said
    assert "in spec.template.metadata.annotations" in said


def test_sidecar_of_a_guaranteed_pod_can_be_guaranteed() -> None:
    resources = "{requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 100m, memory: 64Mi}}"
    said = run("--explain", "--resources", resources, HERE / "manifests" / "guaranteed.yaml").stdout
    assert "QoS" not in said


def test_options_are_defaults_of_annotations() -> None:
    options = ("--image", "other:1", "--config", "mesh", "--exclude-outbound-ports", "53")
    (plain,) = objects(run(*options, HERE / "manifests" / "deployment.yaml").stdout)
    (tuned,) = objects(run(*options, HERE / "manifests" / "annotations.yaml").stdout)
    assert sidecars(template(plain))["fastmesh"]["image"] == "other:1"
    assert described(template(plain))["outbound"] == {"exclude_ports": [53]}
    assert sidecars(template(tuned))["fastmesh"]["image"] == "registry.example/fastmesh:1"


def test_dollars_in_paths_are_not_expanded() -> None:
    text = (HERE / "manifests" / "deployment.yaml").read_text().replace("/healthz", "/a$$b$(HOME)$")
    (one,) = objects(run(stdin=text).stdout)
    assert '"/a$$$$b$$(HOME)$$"' in sidecars(template(one))["fastmesh-config"]["command"][-1]
