"""The files of ordinary TLS: every one that is not right is reported where the file names it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from fastmesh._core import certificate_times
from fastmesh.agent.state import State
from fastmesh.certs.errors import PkiError
from fastmesh.config import ConfigErrors, load, make_snapshot
from fastmesh.config.tls_files import again
from fastmesh.host.secrets import REDACTED

TEXT = """\
listeners:
  - name: edge
    bind: 127.0.0.1:8443
    to: web
    protocol: http
    tls:
      certificates:
        - {certificate: a.pem, key: a.key}
      client_ca: ca.pem
services:
  web:
    endpoints: [127.0.0.1:9000]
    tls:
      server_name: API.example.
      ca: ca.pem
      certificate: a.pem
      key: a.key
"""


def make(directory: Path, name: str) -> None:
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            *["-subj", f"/CN={name}", "-days", "1"],
            *["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem")],
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("a", "ca", "other"):
        make(tmp_path, name)
    (tmp_path / "x.yaml").write_text(TEXT)
    return tmp_path


def errors(home: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        make_snapshot(load(home / "x.yaml"))
    return [f"{e.line}:{e.column}: {e.message}" for e in caught.value.errors]


def test_what_workers_get(home: Path) -> None:
    snapshot = make_snapshot(load(home / "x.yaml"))
    (listener,), (service,) = snapshot["listeners"], snapshot["services"]
    begin, end = certificate_times((home / "a.pem").read_text())
    pair = {
        "certificate": (home / "a.pem").read_text(),
        "key": (home / "a.key").read_text(),
        "not_before": begin,
        "not_after": end,
    }
    named = {"certificate": "a.pem", "key": "a.key"}
    ca = (home / "ca.pem").read_text()
    assert listener["tls"] == "terminate"
    assert listener["tls_contexts"] == [{"files": named, **pair}]
    assert listener["tls_settings"] == {
        "files": {"client_ca": "ca.pem"},
        "client_ca": ca,
        "alpn": ["h2", "http/1.1"],
        "min_version": "1.2",
    }
    assert service["tls"] == "tls"
    assert service["tls_context"] == {
        "server_name": "api.example",
        "files": {"ca": "ca.pem", **named},
        "ca": ca,
        **pair,
        "alpn": ["h2", "http/1.1"],
        "min_version": "1.2",
    }
    before = snapshot["digest"]
    make(home, "a")
    assert make_snapshot(load(home / "x.yaml"))["digest"] != before


def test_no_key_is_shown(home: Path) -> None:
    state = State()
    state.take_snapshot(make_snapshot(load(home / "x.yaml")))
    shown = json.dumps(state.snapshot)
    assert (home / "a.key").read_text().splitlines()[1] not in shown
    assert shown.count(REDACTED) == 2


def test_certificates_with_their_key_in_one_file(home: Path) -> None:
    """As HAProxy wants it. What is shown of the certificates has only those."""
    certificate, key = (home / "a.pem").read_text(), (home / "a.key").read_text()
    for name, text in {"a.pem": f"{key}some words\n{certificate}", "ca.pem": certificate + key}.items():
        (home / name).write_text(text)
    snapshot = make_snapshot(load(home / "x.yaml"))
    assert snapshot["listeners"][0]["tls_contexts"][0]["certificate"] == certificate
    assert snapshot["listeners"][0]["tls_settings"]["client_ca"] == certificate
    state = State()
    state.take_snapshot(snapshot)
    assert key.splitlines()[1] not in json.dumps(state.snapshot)


def test_a_chain_is_whole_or_refused(home: Path) -> None:
    """Wherever it is cut off, but between two certificates: there it cannot be told."""
    leaf = (home / "a.pem").read_text()
    chain = leaf + (home / "ca.pem").read_text()
    whole = {len(leaf) - 1, len(leaf), len(chain) - 1, len(chain)}
    (home / "chain").mkdir()
    for size in [*range(len(leaf) - 30, len(leaf) + 60), *range(len(chain) - 30, len(chain) + 1)]:
        (home / "chain/a.pem").write_text(chain[:size])
        block = {"files": {"certificate": "chain/a.pem", "key": "a.key"}}
        if size in whole:
            again({"tls_contexts": [block]}, home)
        else:
            with pytest.raises(PkiError, match=r"is cut off|is not readable as"):
                again({"tls_contexts": [block]}, home)


def test_alpn_only_where_http_is_all_that_comes(home: Path) -> None:
    (home / "x.yaml").write_text(TEXT.replace("protocol: http", "protocol: auto"))
    snapshot = make_snapshot(load(home / "x.yaml"))
    assert snapshot["listeners"][0]["tls_settings"]["alpn"] == []
    assert snapshot["services"][0]["tls_context"]["alpn"] == []


def test_a_file_that_is_not_there(home: Path) -> None:
    (home / "ca.pem").unlink()
    what = "'ca.pem' cannot be read (No such file or directory), expected a PEM file"
    assert errors(home) == [f"9:18: client_ca: {what}", f"15:11: ca: {what}"]


def test_a_key_of_another_certificate(home: Path) -> None:
    (home / "a.key").write_bytes((home / "other.key").read_bytes())
    found = errors(home)
    assert [one.split(":")[0] for one in found] == ["8", "17"]
    assert all("key: the private key does not belong to the certificate" in one for one in found)


@pytest.mark.parametrize("name", ["a.pem", "a.key", "ca.pem"])
@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\0\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_pem(home: Path, name: str, content: bytes) -> None:
    (home / name).write_bytes(content)
    assert len(errors(home)) == 2
    assert all("is not readable as" in one for one in errors(home))


def test_an_encrypted_key_is_an_error_and_asks_nobody(home: Path) -> None:
    subprocess.run(
        ["openssl", "ec", "-in", "a.key", "-aes128", "-passout", "pass:x", "-out", "a.key"],
        cwd=home,
        check=True,
        capture_output=True,
    )
    assert all("unencrypted PEM" in one for one in errors(home))


@pytest.mark.parametrize(("days", "what"), [(3, "ended"), (-3, "begins")])
def test_a_certificate_that_is_not_valid_now(
    home: Path, monkeypatch: pytest.MonkeyPatch, days: int, what: str
) -> None:
    now = time.time()
    monkeypatch.setattr("fastmesh.config.tls_files.time.time", lambda: now + days * 86400)
    found = errors(home)
    assert len(found) == 2
    assert found[0].startswith(f"8:25: certificate: the certificate 'a.pem' {what} ")
