"""`certs verify`: each rule that a certificate breaks is a finding that says which."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kit.certs import Forge, key_pem, openssl, pem, plain

from fastmesh.certs import authority, keys, revocation, rotation, templates, verification
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY
from fastmesh.cli import main

ID = "spiffe://mesh.local/svc-a"
RULES = [
    "file",
    "SPIFFE id",
    "no CA",
    "key usage",
    "purposes",
    "strength",
    "serial",
    "chain",
    "time",
    "deny list",
    "key",
]


def verify(*args: str | Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and of each rule the mark and the text; of several the worst."""
    result: Result = CliRunner().invoke(main, ["certs", "verify", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    found: dict[str, tuple[str, str]] = {}
    for line in result.stdout.splitlines():
        mark, rest = line[:4].strip(), line[6:]
        rule, text = rest[:9].strip(), rest[11:]
        if rule not in found or mark == "FAIL":
            found[rule] = (mark, text)
    return result.exit_code, found


def failed(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {rule: text for rule, (mark, text) in found.items() if mark == "FAIL"}


def test_a_good_one(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    code, found = verify(ca / "workloads/svc-a")
    assert code == 0
    assert list(found) == RULES
    assert {mark for mark, _ in found.values()} == {"ok"}
    code, found = verify(ca / "workloads/svc-a" / CERTIFICATE, "--pki", ca)
    assert code == 0
    assert found["key"][0] == "-"
    code, found = verify(
        ca / "workloads/svc-a" / CERTIFICATE, "--bundle", ca / "ca" / BUNDLE, "--pki", "none"
    )
    assert code == 0


def test_good_ones_while_the_root_changes(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    old = (ca / "ca" / BUNDLE).read_text()
    (ca / "old.pem").write_text(old)
    rotation.introduce(ca)
    rotation.switch(ca)
    authority.issue(ca, "svc-b")
    for name in ("svc-a", "svc-b"):
        assert verify(ca / "workloads" / name)[0] == 0
    code, found = verify(ca / "workloads/svc-b" / CERTIFICATE, "--bundle", ca / "old.pem")
    assert code == 0
    assert found["chain"][1].count(" < ") == 3, "by the cross certificate"
    rotation.retire(ca, force=True)
    assert verify(ca / "workloads/svc-b")[0] == 0
    assert "is not there" in failed(verify(ca / "workloads/svc-a")[1])["chain"]


@pytest.mark.parametrize(
    ("uris", "options", "wrong"),
    [
        ([], {}, {"SPIFFE id": "no alternative names"}),
        ([ID, ID], {}, {"SPIFFE id": "exactly one URI"}),
        (["spiffe://mesh.local"], {}, {"SPIFFE id": "names a trust domain, no workload"}),
        (["spiffe://mesh.local/*"], {}, {"SPIFFE id": "cannot stand in the path"}),
        (["https://mesh.local/x"], {}, {"SPIFFE id": "does not start with spiffe://"}),
        ([ID + "\n"], {}, {"SPIFFE id": "only letters"}),
        (["spiffe://MESH.local/x"], {}, {"SPIFFE id": "write mesh.local"}),
        (["spiffe://other.example/x"], {}, {"chain": "other.example is neither mesh.local nor federated"}),
        ([ID], {"is_ca": True}, {"no CA": "it is a CA's", "key usage": "certificate sign must not be set"}),
        ([ID], {"signs": False}, {"key usage": "digital signature is missing"}),
        ([ID], {"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, {"purposes": "as client is missing"}),
        ([ID], {"purposes": (ExtendedKeyUsageOID.CODE_SIGNING,)}, {"purposes": "as server and client"}),
        ([ID], {"start": -100, "end": -50}, {"time": "forged expired at"}),
        ([ID], {"start": 50, "end": 100}, {"time": "forged is valid from"}),
    ],
)
def test_broken_rules(ca: Path, uris: list[str], options: dict[str, object], wrong: dict[str, str]) -> None:
    plain(ca / "workloads/svc-a", Forge(ca).files(uris, **options))  # type: ignore[arg-type]
    code, found = verify(ca / "workloads/svc-a")
    assert code == 5
    said = failed(found)
    for rule, text in wrong.items():
        assert text in said.pop(rule)
    # OpenSSL's handshake fails for most of them too; nothing else is wrong.
    assert set(said) <= {"key"}, said


def builder(ca: Path) -> tuple[Forge, ec.EllipticCurvePrivateKey, x509.CertificateBuilder]:
    """A leaf of the authority's issuer, still without names and a key."""
    forge = Forge(ca)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .issuer_name(forge.issuer.subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )
    return forge, key, made


def named(
    made: x509.CertificateBuilder, *names: x509.GeneralName, subject: str | None = "x"
) -> x509.CertificateBuilder:
    parts = [] if subject is None else [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
    return made.subject_name(x509.Name(parts)).add_extension(
        x509.SubjectAlternativeName(names), critical=False
    )


URI = x509.UniformResourceIdentifier(ID)
USAGE = x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def test_rules_that_only_odd_certificates_break(ca: Path, tmp_path: Path) -> None:
    forge, key, blank = builder(ca)
    weak = rsa.generate_private_key(65537, 1024)
    other = ec.generate_private_key(ec.SECP256R1())

    def sign(
        made: x509.CertificateBuilder,
        *,
        own: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = key,
        critical: bool | None = True,
        signer: ec.EllipticCurvePrivateKey = forge.issuer_key,
    ) -> x509.Certificate:
        if critical is not None:
            made = made.add_extension(USAGE, critical)
        return made.public_key(own.public_key()).sign(signer, hashes.SHA256())

    plain_names = named(blank, URI)
    cases = [
        (
            sign(named(blank, URI, x509.DNSName("*.example"))),
            {"names": "a wildcard is not one workload's name"},
        ),
        (sign(named(blank, URI, subject=None)), {"names": "must be critical"}),
        (sign(plain_names, critical=None), {"key usage": "there is none"}),
        (sign(plain_names, critical=False), {"key usage": "it must be critical"}),
        (sign(plain_names, own=weak), {"strength": "an RSA key of 1024 bits"}),
        (sign(plain_names, signer=other), {"chain": "the signature on x is not by mesh.local issuer"}),
    ]
    for leaf, wrong in cases:
        (tmp_path / "chain").write_text(pem(leaf) + pem(forge.issuer))
        code, found = verify(tmp_path / "chain", "--pki", ca)
        assert code == 5
        said = failed(found)
        assert set(said) == set(wrong)
        for rule, text in wrong.items():
            assert text in said[rule]


def test_chains_that_do_not_hold(ca: Path, tmp_path: Path) -> None:
    """A leaf as a CA, an issuing CA below an issuing CA, an expired issuer, no issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    good = Forge(ca).files([ID], key=key)
    leaf, _ = x509.load_pem_x509_certificates(good[CERTIFICATE].encode())
    (tmp_path / "alone").write_text(pem(leaf))
    assert "is not there" in failed(verify(tmp_path / "alone", "--pki", ca)[1])["chain"]
    below = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "below")]))
        .issuer_name(leaf.subject)
        .serial_number(1)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
        .public_key(key.public_key())
        .add_extension(USAGE, True)
        .add_extension(x509.SubjectAlternativeName([URI]), False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "chain").write_text(pem(below) + good[CERTIFICATE])
    said = failed(verify(tmp_path / "chain", "--pki", ca)[1])["chain"]
    assert "forged is no CA" in said
    assert "forged may not sign certificates" in said
    assert "mesh.local issuer" in said
    assert "allows 0 CAs below it, and there are 1" in said


def test_an_expired_bundle(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", root_life=86400, issuer_life=86400, now=time.time() - 2 * 86400)
    authority.issue(pki, "svc-a", 3600, now=time.time() - 2 * 86400)
    code, found = verify(pki / "workloads/svc-a")
    assert code == 5
    said = failed(found)
    assert "expired at" in said["chain"]
    assert "svc-a expired at" in said["time"]
    assert "root" in said["key"]


def test_what_stands_beside_it(ca: Path) -> None:
    home = plain(ca / "workloads/svc-a", Forge(ca).files([ID]))
    (home / KEY).write_text(key_pem(ec.generate_private_key(ec.SECP256R1())))
    assert "is not the key of the certificate" in failed(verify(home)[1])["key"]
    (home / KEY).write_text("hello")
    assert "holds no private key" in failed(verify(home)[1])["key"]
    authority.issue(ca, "svc-b")
    revocation.revoke(ca, ["svc-b"])
    said = failed(verify(ca / "workloads/svc-b")[1])
    assert list(said) == ["deny list"]
    code, found = verify(ca / "workloads/svc-b" / CERTIFICATE, "--pki", ca)
    assert (code, list(failed(found))) == (5, ["deny list"]), "the authority's list, without an entry"


BROKEN = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xfe", BROKEN])
def test_nothing_to_judge(ca: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    result = CliRunner().invoke(main, ["certs", "verify", str(tmp_path / "file"), "--pki", str(ca)])
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_files_that_cannot_be_read(ca: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path / "fifo", Path("/dev/null/x")):
        result = CliRunner().invoke(main, ["certs", "verify", str(path), "--pki", str(ca)])
        assert (result.exit_code, result.stdout) == (5, ""), path
        assert result.stderr.startswith("error: ")


def test_without_any_bundle(ca: Path, tmp_path: Path) -> None:
    authority.issue(ca, "svc-a")
    code, found = verify(ca / "workloads/svc-a" / CERTIFICATE, "--pki", tmp_path / "none")
    assert code == 5
    assert "give one with --bundle FILE" in failed(found)["chain"]


def test_a_revoked_certificate_is_revoked_with_any_bundle(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    leaf = ca / "workloads/svc-a/certificate.pem"
    revocation.revoke(ca, ["svc-a"])
    found = verification.verify(leaf, ca, bundle_path=ca / "ca/bundle.pem")
    assert [one.rule for one in found if one.good is False] == ["deny list"]


def test_a_critical_extension_that_nobody_knows(tmp_path: Path) -> None:
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=odd",
        "-keyout", tmp_path / "key", "-out", tmp_path / "odd.pem", "-addext", "1.2.3.4=critical,DER:0500",
    )  # fmt: skip
    found = verification.verify(tmp_path / "odd.pem", tmp_path / "none")
    assert "odd has 1.2.3.4, critical, which nobody knows" in [one.text for one in found]


def test_cas_that_all_sign_each_other(tmp_path: Path) -> None:
    """As many ways as permutations, and none leads to a root."""
    key = keys.new()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "same")])
    start = datetime.datetime.now(datetime.UTC)
    made = [
        x509.CertificateBuilder(name, name, key.public_key(), number, start, start + datetime.timedelta(1))
        .sign(key, keys.digest(key))
        for number in range(1, 16)
    ]  # fmt: skip
    (tmp_path / "all.pem").write_text("".join(map(templates.pem, made)))
    authority.create(tmp_path / "pki", "mesh.local")
    found = verification.verify(tmp_path / "all.pem", tmp_path / "pki")
    assert any(one.rule == "chain" and one.good is False for one in found)
