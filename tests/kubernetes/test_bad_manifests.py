"""Manifests that are wrong: what, where, what was expected, and nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastmesh.cli.inject import command

GOOD = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: good}
spec:
  template:
    spec:
      containers: [{name: app, image: app}]
"""
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: bad
  annotations: {ANNOTATIONS}
spec:
  SPEC
"""
ONE = "containers: [{name: app, image: app, ports: [{containerPort: 8080}]}]"


def pod(annotations: str = "", spec: str = ONE) -> str:
    return POD.replace("ANNOTATIONS", annotations).replace("SPEC", spec)


def said(text: str | bytes, *options: str) -> str:
    """What is said of a file with `text` behind a good document; nothing must be written."""
    result = CliRunner().invoke(command, [*options, "-"], input=text)
    assert result.exit_code == 2, result.stdout
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.rstrip("\n")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [1", "stdin:10:4: '[' that is never closed, expected its end before the end of the file"),
        ("a: 1\n\tb: 2", "stdin:11:1: a tab, expected spaces"),
        ("a: 1\na: 2", "stdin:11:1: key 'a' is given twice, first on line 10, expected it once"),
        (
            "a: *b",
            "stdin:10:4: the alias '*b' has no anchor before it, expected '&b' earlier in the document",
        ),
        ("a: &b [*b]", "stdin:10:8: the alias '*b' stands inside its own anchor, expected"),
        ("[1]: 2", "stdin:10:1: a list or mapping as a key, expected a name"),
        ("<<: 5", "stdin:10:5: no mapping after '<<', expected a mapping or a list of mappings"),
        ("a: \x01", "stdin:10:4: control character U+0001, expected printable text"),
        ('a: "\\ud800"', "stdin:10:4: half a character (a lone surrogate), expected text"),
        ("[" * 200 + "]" * 200, "stdin:10:129: nested more than 128 levels deep, expected less"),
        (
            "- text",
            "stdin:10:1: document 2: a list, expected a Kubernetes object: a mapping with kind",
        ),
        (
            "apiVersion: v1",
            "stdin:10:1: document 2: no kind, expected a Kubernetes object (kind: Deployment and so on)",
        ),
        ("kind: 5", "stdin:10:7: document 2: kind: the number 5, expected a text (in quotes)"),
        (
            "apiVersion: v1\nkind: List\nitems: {}",
            "stdin:12:8: document 2: items: a mapping, expected a list",
        ),
        (
            "apiVersion: v1\nkind: List\nitems:\n- 5",
            "stdin:13:3: document 2: items[0]: the number 5, expected a mapping",
        ),
        (
            "apiVersion: extensions/v1beta1\nkind: Deployment",
            "stdin:10:13: document 2: apiVersion: 'extensions/v1beta1', expected apps/v1 for a Deployment: "
            "sidecars need Kubernetes 1.29, which has no other",
        ),
        ("kind: Pod", "stdin:10:1: document 2: apiVersion: nothing, expected v1 for a Pod"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: bad}\nspec: {replicas: 1}",
            "stdin:13:7: document 2: Deployment bad: spec.template: nothing, expected the spec.template of a "
            "Deployment",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: []",
            "stdin:12:11: document 2: metadata: a list, expected a mapping",
        ),
        (pod(spec="x: 1"), "spec.containers: nothing, expected the pod's containers"),
        (pod(spec="containers: {app: {}}"), "stdin:16:15: document 2: Pod bad: spec.containers: a mapping"),
        (pod(spec="containers: [app]"), "spec.containers[0]: 'app', expected a mapping"),
        (pod(spec="containers: [{image: app}]"), "spec.containers[0]: no name, expected `name`"),
        (
            pod(spec="containers: [{name: app, ports: [{containerPort: '80'}]}]"),
            "spec.containers[0].ports[0].containerPort: '80', expected a port from 1 to 65535",
        ),
        (
            pod(spec="containers: [{name: app, ports: [{containerPort: 80000}]}]"),
            "stdin:16:52: document 2: Pod bad: spec.containers[0].ports[0].containerPort: the number 80000",
        ),
        (
            pod(spec="containers: [{name: a, livenessProbe: {httpGet: {port: http}}}]"),
            "spec.containers[0].livenessProbe.httpGet.port: 'http' is no port of the container, expected one "
            "of its ports (none has a name)",
        ),
        (
            pod("fastmesh.io/inject: maybe"),
            "stdin:14:37: document 2: Pod bad: metadata.annotations['fastmesh.io/inject']: 'maybe', expected "
            "enabled or disabled",
        ),
        (pod("fastmesh.io/inject: true"), ": true, expected a text: annotations are texts, put it in quotes"),
        (pod("fastmesh.io/inbound-ports: 8080"), ": the number 8080, expected a text: annotations are texts"),
        (pod("fastmesh.io/inbound-port: '80'"), "not known, expected fastmesh.io/inbound-ports"),
        (pod("fastmesh.io/zzz: ''"), "not known, expected one of those in docs/kubernetes.md"),
        (pod("fastmesh.io/inbound-ports: '80,http'"), ": 'http', expected a port from 1 to 65535"),
        (pod("fastmesh.io/inbound-ports: '80,15006'"), ": 15006, which is a port of the sidecar's, expected"),
        (
            pod("fastmesh.io/status: '{}'"),
            "says that there is a sidecar, and there is no init container fastmesh; remove the annotation",
        ),
        (pod("fastmesh.io/exclude-outbound-ports: '0'"), ": '0', expected a port from 1 to 65535"),
        (
            pod("fastmesh.io/exclude-inbound-cidrs: 10.0.0.1/8"),
            "address bits behind its prefix, expected 10.0",
        ),
        (pod("fastmesh.io/exclude-outbound-cidrs: here"), "'here' is not a network, expected an address or"),
        (pod("fastmesh.io/workload: My_App"), "'My_App' is no workload name"),
        (pod("fastmesh.io/config: My/Map"), "'My/Map', expected the name of an object, such as fastmesh"),
        (pod("fastmesh.io/pki: vault"), "expected secret, secret:NAME, tls-secret:NAME, volume:NAME or none"),
        (
            pod("fastmesh.io/pki: 'volume:ids'"),
            "the pod has no volume ids, expected one of its volumes (it has",
        ),
        (pod("fastmesh.io/method: iptables"), "'iptables', expected redirect or tproxy"),
        (pod("fastmesh.io/image: 'a b'"), "'a b', expected an image such as registry.example/fastmesh:1.0"),
        (pod("fastmesh.io/user: root"), "'root', expected the number of a user from 1 to 2147483647"),
        (pod("fastmesh.io/resources: '{cpu: 1}'"), "expected requests and limits, such as {requests: {cpu:"),
        (pod("fastmesh.io/resources: '['"), "expected requests and limits, such as {requests: {cpu:"),
        (
            pod("fastmesh.io/resources: '{limits: {memory: much}}'"),
            "memory: 'much', expected an amount such as 100m or 64Mi",
        ),
        (
            pod().replace("name: bad", "name: Bad"),
            "stdin:13:9: document 2: Pod Bad: metadata.name: 'Bad' is no workload name",
        ),
        (
            pod().replace("name: bad", "namespace: x"),
            "no name, expected one, or the annotation fastmesh.io/work",
        ),
    ],
)
def test_error(text: str, error: str) -> None:
    message = said(f"{GOOD}---\n\n{text}")
    assert error in message
    assert re.match(r"stdin:\d+:\d+: ", message), message


ASKED = "fastmesh.io/inject: enabled"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (pod(ASKED, f"hostNetwork: true\n  {ONE}"), "hostNetwork: its network is the node's"),
        (pod(ASKED, f"os: {{name: windows}}\n  {ONE}"), "for Windows"),
        (pod(ASKED, ONE.replace("app", "fastmesh", 1)), "has a container that is called fastmesh"),
        (pod(ASKED, ONE.replace("app", "istio-proxy", 1)), "has Istio's sidecar already"),
        (pod(ASKED, ONE.replace("8080", "15000")), "has port 15000, which is the sidecar's admin port"),
        (pod(ASKED, ONE.replace("8080", "15006")), "has port 15006, where the sidecar listens"),
        (
            pod(ASKED, ONE.replace("image", "securityContext: {runAsUser: 15000}, image")),
            "runs as user 15000",
        ),
        (
            pod(ASKED, ONE.replace("image", "livenessProbe: {httpGet: {port: 8080, path: '/a b'}}, image")),
            "'/a b' is not a path",
        ),
        (
            pod(ASKED, ONE.replace("image", "livenessProbe: {httpGet: {port: 8080, path: '/a*'}}, image")),
            "'/a*' ends in '*'",
        ),
    ],
)
def test_refused(text: str, reason: str) -> None:
    """An error for a pod that asks for a sidecar; one that does not is written as it is."""
    message = said(text)
    assert message.startswith("stdin:1:1: document 1: Pod bad: asks for a sidecar and cannot have one: ")
    assert reason in message
    text = text.replace(ASKED, "a: b")
    result = CliRunner().invoke(command, [], input=text)
    assert result.exit_code == 0
    assert result.stdout == text
    assert result.stderr.startswith("stdin: document 1: Pod bad: refused (")
    assert reason in result.stderr


def test_all_errors_come_together(tmp_path: Path) -> None:
    file = tmp_path / "app.yaml"
    bad = pod("fastmesh.io/inject: maybe")
    file.write_text(f"{bad}---\n{GOOD}---\n{bad}---\n- 1\n")
    result = CliRunner().invoke(command, [str(file), str(tmp_path / "none.yaml"), str(tmp_path)])
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert [line.removeprefix(str(tmp_path))[:30] for line in lines] == [
        ": is a directory, expected a f",
        "/app.yaml:5:37: document 1: Po",
        "/app.yaml:21:37: document 3: P",
        "/app.yaml:25:1: document 4: a ",
        "/none.yaml: does not exist, ex",
    ]


def test_not_text() -> None:
    assert said(b"a: \xff") == "stdin:1:4: byte 0xff is not UTF-8, expected UTF-8"
    assert "is in UTF-16" in said("a: 1".encode("utf-16"))


def test_aliases_that_multiply() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "more than 250000 values once aliases are expanded" in said("\n".join(levels))


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "---\n---\n", "null\n"])
def test_nothing_is_nothing(text: str) -> None:
    result = CliRunner().invoke(command, [], input=text)
    assert (result.exit_code, result.stdout, result.stderr) == (0, text, "")


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--image", "a b", "expected an image such as"),
        ("--pki", "none:x", "expected secret, secret:NAME"),
        ("--user", "0", "expected the number of a user from 1 to 2147483647"),
        ("--resources", "x", "expected requests and limits"),
        ("--exclude-outbound-cidrs", "10.0.0.0/99", "is not a network"),
    ],
)
def test_options(option: str, value: str, error: str) -> None:
    assert error in said("", option, value)
