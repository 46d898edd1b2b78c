"""What the authority makes, as OpenSSL's command line reads it: an independent reader."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import verification
from kit.certs import Forge, openssl, pem

from fastmesh.certs import authority, keys, spiffe, templates
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, Layout
from fastmesh.certs.templates import Signer

DAY = 86400


@pytest.fixture
def svc(ca: Path) -> Path:
    authority.issue(ca, "svc-a")
    return Layout(ca).workload("svc-a")


def text_of(path: Path) -> str:
    return openssl("x509", "-in", path, "-noout", "-text", "-certopt", "no_pubkey,no_sigdump")


def extension(text: str, name: str) -> tuple[bool, str]:
    """Whether it is critical, and its value in one line."""
    match = re.search(rf"X509v3 {re.escape(name)}:( critical)?\s*\n\s+(.+(?:\n {{16}}.+)*)", text)
    assert match is not None, text
    return match[1] is not None, " ".join(match[2].split())


def test_the_leaf(svc: Path) -> None:
    text = text_of(svc / CERTIFICATE)
    assert extension(text, "Basic Constraints") == (True, "CA:FALSE")
    assert extension(text, "Key Usage") == (True, "Digital Signature")
    assert extension(text, "Extended Key Usage") == (
        False,
        "TLS Web Server Authentication, TLS Web Client Authentication",
    )
    assert extension(text, "Subject Alternative Name") == (False, "URI:spiffe://mesh.local/svc-a, DNS:svc-a")
    assert "Subject: CN = svc-a\n" in text
    assert "ecdsa-with-SHA256" in text
    issuer = text_of(svc.parents[1] / "ca/issuer" / CERTIFICATE)
    assert extension(text, "Authority Key Identifier")[1] == extension(issuer, "Subject Key Identifier")[1]
    assert extension(text, "Subject Key Identifier")[1] != extension(issuer, "Subject Key Identifier")[1]


@pytest.mark.parametrize(("entry", "length", "own_issuer"), [("root", 2, True), ("issuer", 0, False)])
def test_the_authorities(ca: Path, entry: str, length: int, own_issuer: bool) -> None:
    text = text_of(ca / "ca" / entry / CERTIFICATE)
    assert extension(text, "Basic Constraints") == (True, f"CA:TRUE, pathlen:{length}")
    assert extension(text, "Key Usage") == (True, "Certificate Sign, CRL Sign")
    assert extension(text, "Subject Alternative Name") == (False, "URI:spiffe://mesh.local")
    root = text_of(ca / "ca/root" / CERTIFICATE)
    assert extension(text, "Authority Key Identifier")[1] == extension(root, "Subject Key Identifier")[1]
    issuer, subject = re.search(r"Issuer: (.*)", text)[1], re.search(r"Subject: (.*)", text)[1]  # type: ignore[index]
    assert (issuer == subject) is own_issuer
    key = openssl("ec", "-in", ca / "ca" / entry / KEY, "-noout", "-text")
    assert "prime256v1" in key


def test_lives(ca: Path) -> None:
    now = int(time.time())
    made = authority.issue(ca, "svc-a")

    def times(path: Path) -> tuple[int, ...]:
        leaf = x509.load_pem_x509_certificate(path.read_bytes())
        return int(leaf.not_valid_before_utc.timestamp()) - now, int(
            leaf.not_valid_after_utc.timestamp()
        ) - now

    for path, life in (
        (ca / "ca/root" / CERTIFICATE, 3652 * DAY - 20),
        (ca / "ca/issuer" / CERTIFICATE, 365 * DAY - 20),
        (ca / "workloads/svc-a" / CERTIFICATE, DAY),
    ):
        start, end = times(path)
        assert -30 <= start <= -15, path
        assert abs(end - life) <= 10, path
    assert not made.capped


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient", "any"])
def test_openssl_verifies_the_chain_strictly(svc: Path, purpose: str) -> None:
    leaf = svc / CERTIFICATE
    arguments = ("-x509_strict", "-purpose", purpose, "-CAfile", svc / BUNDLE, "-untrusted", leaf, leaf)
    assert openssl("verify", *arguments).endswith(": OK\n")
    assert openssl("verify", "-verify_hostname", "svc-a", *arguments).endswith(": OK\n")
    assert "hostname mismatch" in openssl("verify", "-verify_hostname", "svc-b", *arguments, check=False)


def test_another_authority_does_not_verify_it(svc: Path, tmp_path: Path) -> None:
    authority.create(tmp_path / "other", "mesh.local")
    leaf = svc / CERTIFICATE
    said = openssl("verify", "-CAfile", tmp_path / "other/ca" / BUNDLE, "-untrusted", leaf, leaf, check=False)
    assert "unable to get local issuer certificate" in said


def test_a_second_verifier_agrees(svc: Path) -> None:
    """The verifier of `cryptography`: its path building is its own, with the rules of the web PKI."""
    leaf, *above = x509.load_pem_x509_certificates((svc / CERTIFICATE).read_bytes())
    builder = verification.PolicyBuilder().store(
        verification.Store(x509.load_pem_x509_certificates((svc / BUNDLE).read_bytes()))
    )
    assert len(builder.build_server_verifier(x509.DNSName("svc-a")).verify(leaf, above)) == 3
    names = builder.build_client_verifier().verify(leaf, above).subjects
    assert names is not None
    assert x509.UniformResourceIdentifier("spiffe://mesh.local/svc-a") in names


def test_the_issuer_cannot_make_another_authority(ca: Path, tmp_path: Path) -> None:
    """Path length 0: what a stolen issuing key signs as a CA is worth nothing."""
    forge = Forge(ca)
    below = keys.new()
    now = int(time.time())
    above = Signer(forge.issuer, forge.issuer_key)
    middle = templates.issuer(below.public_key(), above, "mesh.local", now - 60, now + DAY)
    names = templates.Names("svc-a", spiffe.workload_id("mesh.local", "svc-a"), ["svc-a"])
    leaf = templates.leaf(keys.new().public_key(), Signer(middle, below), names, now - 20, now + 3600)
    (tmp_path / "chain").write_text(pem(leaf) + pem(middle) + pem(forge.issuer))
    said = openssl(
        "verify",
        "-CAfile",
        ca / "ca" / BUNDLE,
        "-untrusted",
        tmp_path / "chain",
        tmp_path / "chain",
        check=False,
    )
    assert "path length constraint exceeded" in said


def test_serial_numbers_are_random_and_long(ca: Path) -> None:
    serials = [int(authority.issue(ca, "svc-a").serial, 16) for _ in range(20)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 1 << 128 for serial in serials)
    # 20 numbers of 128 bits all below 2^120 would be a wonder of 1 in 2^160.
    assert max(serials) > 1 << 120
    found = openssl("x509", "-in", ca / "workloads/svc-a" / CERTIFICATE, "-noout", "-serial")
    assert int(found.strip().removeprefix("serial="), 16) == serials[-1]


def test_each_issue_has_a_key_of_its_own(ca: Path) -> None:
    keys = set()
    for _ in range(3):
        authority.issue(ca, "svc-a")
        keys.add((ca / "workloads/svc-a" / KEY).read_text())
    assert len(keys) == 3


@pytest.mark.parametrize("name", ["x" * 63 + "." + "y" * 63, ".".join(["x" * 61] * 4), "a", "7"])
def test_names_of_every_length(ca: Path, name: str) -> None:
    authority.issue(ca, name)
    leaf = ca / "workloads" / name / CERTIFICATE
    critical, names = extension(text_of(leaf), "Subject Alternative Name")
    assert names == f"URI:spiffe://mesh.local/{name}, DNS:{name}"
    # RFC 5280 section 4.1.2.6: an empty subject makes the alternative name critical.
    assert critical is (len(name) > 64)
    bundle = ca / "ca" / BUNDLE
    assert openssl("verify", "-x509_strict", "-CAfile", bundle, "-untrusted", leaf, leaf).endswith(": OK\n")


@pytest.mark.parametrize("domain", ["a", "1.2.3.4", "under_score", "x" * 255])
def test_trust_domains_of_every_kind(tmp_path: Path, domain: str) -> None:
    authority.create(tmp_path / "pki", domain)
    made = authority.issue(tmp_path / "pki", "svc-a")
    assert made.spiffe_id == f"spiffe://{domain}/svc-a"
    leaf = tmp_path / "pki/workloads/svc-a" / CERTIFICATE
    bundle = leaf.with_name(BUNDLE)
    assert openssl("verify", "-x509_strict", "-CAfile", bundle, "-untrusted", leaf, leaf).endswith(": OK\n")


def test_mutual_tls_between_two_workloads(ca: Path) -> None:
    """OpenSSL's own server and client, over a socket, with the files under their stable names."""
    import socket
    import ssl
    import threading

    for name in ("svc-a", "svc-b"):
        authority.issue(ca, name)

    def context(protocol: int, name: str) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_REQUIRED
        directory = ca / "workloads" / name
        made.load_verify_locations(directory / BUNDLE)
        made.load_cert_chain(directory / CERTIFICATE, directory / KEY)
        return made

    server = context(ssl.PROTOCOL_TLS_SERVER, "svc-b")
    client = context(ssl.PROTOCOL_TLS_CLIENT, "svc-a")
    seen: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            with server.wrap_socket(raw, server_side=True) as conn:
                seen.append(conn.getpeercert())
                conn.sendall(conn.recv(100))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client.check_hostname = True
        with client.wrap_socket(
            socket.create_connection(listener.getsockname(), timeout=10), server_hostname="svc-b"
        ) as conn:
            conn.sendall(b"ping")
            assert conn.recv(100) == b"ping"
        thread.join(10)
    assert ("URI", "spiffe://mesh.local/svc-a") in seen[0]["subjectAltName"]  # type: ignore[index]
