"""Trust bundles: what we publish, as others read it (PyJWT, `spiffe`), and what we read of others."""

from __future__ import annotations

import base64
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from kit.certs import Forge, openssl, plain

from fastmesh.certs import authority, bundle, keys, revocation, rotation, trust
from fastmesh.certs.store import BUNDLE, CERTIFICATE, FEDERATED, Layout, PkiError, load_identity
from fastmesh.cli import main

OTHER = "other.example"
DAY = 86400


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, ["certs", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def other(scratch: Path) -> Path:
    pki = scratch / "other"
    authority.create(pki, OTHER)
    return pki


def jwks(pki: Path) -> dict[str, Any]:
    return json.loads(run("bundle", "--format", "jwks", "--pki", pki).stdout)  # type: ignore[no-any-return]


def test_pem(ca: Path) -> None:
    assert run("bundle", "--pki", ca).stdout == (ca / "ca" / BUNDLE).read_text()


@pytest.mark.parametrize("kind", keys.KINDS)
def test_a_jwk_set(tmp_path: Path, kind: str) -> None:
    """RFC 7517 by PyJWT; the rules of the SPIFFE standards by hand."""
    jwt = pytest.importorskip("jwt")
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", key=kind)
    found = jwks(pki)
    assert set(found) == {"keys", "spiffe_sequence", "spiffe_refresh_hint"}
    assert type(found["spiffe_sequence"]) is type(found["spiffe_refresh_hint"]) is int
    (key,) = found["keys"]
    assert key["use"] == "x509-svid"
    assert "kid" not in key, "X.509-SVID, 6.1"
    (der,) = key["x5c"]
    root = x509.load_der_x509_certificate(base64.b64decode(der, validate=True))
    assert root == x509.load_pem_x509_certificate((pki / "ca" / BUNDLE).read_bytes())
    assert jwt.PyJWKSet.from_dict(found).keys[0].key == root.public_key()


def test_the_sequence_number_grows_with_the_bundle_and_only_then(ca: Path) -> None:
    numbers = [jwks(ca)["spiffe_sequence"]]
    authority.issue(ca, "svc-a")
    rotation.rotate_issuer(ca)
    assert jwks(ca)["spiffe_sequence"] == numbers[0]
    rotation.introduce(ca)
    rotation.introduce(ca)
    numbers.append(jwks(ca)["spiffe_sequence"])
    assert len(jwks(ca)["keys"]) == 2
    rotation.switch(ca)
    assert jwks(ca)["spiffe_sequence"] == numbers[1]
    rotation.retire(ca, force=True)
    numbers.append(jwks(ca)["spiffe_sequence"])
    assert len(jwks(ca)["keys"]) == 1
    assert numbers == sorted(set(numbers))
    # A change that was not counted (a kill, an editor) counts.
    (ca / "ca" / BUNDLE).write_text((ca / "ca" / BUNDLE).read_text() + "\n")
    assert jwks(ca)["spiffe_sequence"] > numbers[-1]


def test_the_spiffe_package_takes_our_svids_and_bundles(ca: Path) -> None:
    """Somebody else's implementation: SVIDs by its own rules, bundles from PEM and out of the JWK Set."""
    spiffe = pytest.importorskip("spiffe")
    domain = spiffe.TrustDomain("mesh.local")
    authority.issue(ca, "svc-a", dns=["a.example"])
    authority.issue(ca, "cart", path="/ns/shop/sa/cart")
    rotation.introduce(ca)
    rotation.switch(ca)
    authority.renew(ca, "svc-a")  # with the cross certificate in its chain
    for name, path in (("svc-a", "/svc-a"), ("cart", "/ns/shop/sa/cart")):
        made = load_identity(ca, name, spiffe_id=f"spiffe://mesh.local{path}")
        svid = spiffe.X509Svid.parse(made.certificate.encode(), made.key.encode())
        assert str(svid.spiffe_id) == made.spiffe_id
        assert svid.spiffe_id.trust_domain == domain
        assert len(svid.cert_chain) == made.certificate.count("BEGIN")
        roots = spiffe.X509Bundle.parse(domain, made.bundle.encode())
        assert len(roots.x509_authorities) == 2
        published = b"".join(base64.b64decode(key["x5c"][0]) for key in jwks(ca)["keys"])
        assert spiffe.X509Bundle.parse_raw(domain, published).x509_authorities == roots.x509_authorities
        # Its own check of the chain is the caller's: each link, up to one of its authorities.
        chain = svid.cert_chain
        for below, above in pairwise(chain):
            below.verify_directly_issued_by(above)
        assert any(chain[-1].issuer == root.subject for root in roots.x509_authorities)


# --- federation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pem", "jwks"])
def test_another_trust_domain(ca: Path, other: Path, tmp_path: Path, form: str) -> None:
    authority.issue(ca, "svc-a")
    (tmp_path / "bundle").write_text(run("bundle", "--format", form, "--pki", other).stdout)
    done = run("bundle", "--federate", f"{OTHER}={tmp_path / 'bundle'}", "--pki", ca)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{OTHER}  one root, until ")
    assert run("bundle", "--federated", "--pki", ca).stdout == done.stdout
    root = (other / "ca" / BUNDLE).read_text()
    assert dict(load_identity(ca, "svc-a").federated) == {OTHER: root}
    authority.issue(ca, "svc-b")
    assert dict(load_identity(ca, "svc-b").federated) == {OTHER: root}
    # The own bundle is not mixed with it: what it signs proves nothing about our names.
    assert load_identity(ca, "svc-a").bundle == (ca / "ca" / BUNDLE).read_text()
    authority.issue(other, "svc-o")
    judged = run("verify", other / "workloads/svc-o" / CERTIFICATE, "--pki", ca)
    assert judged.exit_code == 0, judged.stdout
    gone = run("bundle", "--unfederate", OTHER, "--pki", ca)
    assert (gone.exit_code, gone.stderr) == (0, "no other trust domain is trusted\n")
    assert not load_identity(ca, "svc-a").federated
    assert not (ca / "workloads/svc-a" / FEDERATED).is_symlink()
    again = run("bundle", "--unfederate", OTHER, "--pki", ca)
    assert again.exit_code == 5
    assert "is not federated; these are: none" in again.stderr


def test_a_bundle_that_sidecars_could_not_read_is_not_taken(ca: Path, other: Path, tmp_path: Path) -> None:
    """Else nothing could be issued from then on."""
    authority.issue(ca, "svc-a")
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=odd",
        "-keyout", tmp_path / "key", "-out", tmp_path / "odd.pem", "-addext", "keyUsage=digitalSignature",
    )  # fmt: skip
    for path, said in (
        (tmp_path / "odd.pem", "odd.pem holds a certificate that is no CA's"),
        (Layout(other).bundle, f"holds a root of the trust domain {OTHER}, not of third.example"),
    ):
        done = run("bundle", "--federate", f"third.example={path}", "--pki", ca)
        assert (done.exit_code, done.stdout) == (5, "")
        assert said in done.stderr
    authority.issue(ca, "svc-a")
    assert not load_identity(ca, "svc-a").federated


def test_a_jwk_set_of_others(ca: Path, other: Path, tmp_path: Path) -> None:
    """Keys for other uses, without a certificate, or of kinds nobody knows are left out (X.509-SVID, 6.2)."""
    found = jwks(other)
    (key,) = found["keys"]
    key["x5c"].append("not looked at")
    found["keys"] = [
        {"use": "jwt-svid", "kty": "RSA", "kid": "x", "n": "AQAB", "e": "AQAB"},
        {"use": "x509-svid", "kty": "EC"},
        {"use": "x509-svid", "kty": "EC", "x5c": []},
        {"kty": "unknown"},
        key,
    ]
    (tmp_path / "bundle").write_text(json.dumps(found))
    rows, _ = bundle.federate(ca, {OTHER: tmp_path / "bundle"}, [])
    assert [(row.trust_domain, row.roots) for row in rows] == [(OTHER, 1)]


def test_bundles_that_are_refused(ca: Path, other: Path, tmp_path: Path) -> None:
    authority.create(tmp_path / "old", OTHER, now=time.time() - 11 * 366 * DAY)
    authority.create(tmp_path / "early", OTHER, now=time.time() + DAY)
    leaf = Forge(other).files([f"spiffe://{OTHER}/x"])[CERTIFICATE]
    for name, text, said in (
        (OTHER, "", "holds no certificate in PEM form (it is empty)"),
        (OTHER, "{", "holds no trust bundle that can be read"),
        (OTHER, "{}", "holds no trust bundle that can be read"),
        (OTHER, '{"keys": [1]}', "holds no trust bundle that can be read"),
        (OTHER, '{"keys": [{"use": "x509-svid", "x5c": ["!"]}]}', "holds no trust bundle that can be read"),
        (OTHER, '{"keys": []}', "holds no key for X.509-SVIDs"),
        (OTHER, leaf, "holds a certificate that is no CA's"),
        (OTHER, (ca / "ca" / BUNDLE).read_text(), "holds a root of this trust domain itself"),
        (OTHER, (tmp_path / "old/ca" / BUNDLE).read_text(), "is over: its last root, other.example root"),
        (OTHER, (tmp_path / "early/ca" / BUNDLE).read_text(), "only; set the clock"),
        ("mesh.local", (other / "ca" / BUNDLE).read_text(), "is this authority's own trust domain"),
    ):
        (tmp_path / "bundle").write_text(text)
        done = run("bundle", "--federate", f"{name}={tmp_path / 'bundle'}", "--pki", ca)
        assert (done.exit_code, done.stdout) == (5, ""), said
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    done = run("bundle", "--federate", f"{OTHER}={tmp_path / 'none'}", "--pki", ca)
    assert "none cannot be read: No such file" in done.stderr
    assert not Layout(ca).federated.exists()
    # Beside a valid root, one that is over is left out.
    both = (tmp_path / "old/ca" / BUNDLE).read_text() + (other / "ca" / BUNDLE).read_text()
    (tmp_path / "bundle").write_text(both)
    assert bundle.federate(ca, {OTHER: tmp_path / "bundle"}, [])[0][0].roots == 1
    assert list(trust.read_federated(Layout(ca))) == [OTHER]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ('{"A B": "x"}', "is damaged"),
        ('{"other.example": 1}', "is damaged"),
        ('{"other.example": "x"}', r"federated.json \(for other.example\) holds no certificate"),
        ('{"mesh.local": "ROOT"}', "has roots for mesh.local, the trust domain of the workload itself"),
        ('{"other.example": "LEAF"}', "holds a certificate that is no CA's"),
    ],
)
def test_a_damaged_entry(ca: Path, text: str, said: str) -> None:
    made = Forge(ca).files(["spiffe://mesh.local/svc-a"])
    home = plain(ca / "workloads/svc-a", made)
    special = {"ROOT": made[BUNDLE], "LEAF": made[CERTIFICATE]}
    for word, value in special.items():
        text = text.replace(f'"{word}"', json.dumps(value))
    (home / FEDERATED).write_text(text)
    with pytest.raises(PkiError, match=said):
        load_identity(ca, "svc-a")


def test_what_is_damaged_in_the_authority_is_not_published(ca: Path, other: Path, tmp_path: Path) -> None:
    """One broken file there must not break every workload."""
    authority.issue(ca, "svc-a")
    authority.issue(ca, "svc-b")
    bundle.federate(ca, {OTHER: other / "ca" / BUNDLE}, [])
    before = load_identity(ca, "svc-a")
    good = (ca / "ca" / BUNDLE).read_text()
    for path, text, said in (
        ("ca/bundle.pem", good[:300], r"ca/bundle\.pem holds no certificate"),
        ("ca/federated/other.example.pem", "", r"federated/other\.example\.pem holds no certificate"),
        ("ca/federated/OTHER.pem", good, "is not called after a trust domain; remove it"),
        ("ca/federated/mesh.local.pem", good, "is called after this authority's own trust domain; remove it"),
    ):
        saved = (ca / path).read_text() if (ca / path).exists() else None
        (ca / path).write_text(text)
        with pytest.raises(PkiError, match=said):
            revocation.revoke(ca, ["svc-b"])
        assert load_identity(ca, "svc-a") == before
        if saved is None:
            (ca / path).unlink()
        else:
            (ca / path).write_text(saved)
    revocation.revoke(ca, ["svc-b"])
    load_identity(ca, "svc-a")


def test_reading_needs_no_right_to_write(ca: Path) -> None:
    (ca / ".fastmesh-lock").unlink()
    for args in (
        ["bundle"],
        ["bundle", "--format", "jwks"],
        ["bundle", "--federated"],
        ["rotate-root"],
        ["list"],
    ):
        assert run(*args, "--pki", ca).exit_code == 0
    assert not (ca / ".fastmesh-lock").exists()


def test_openssl_reads_what_is_printed(ca: Path, tmp_path: Path) -> None:
    authority.issue(ca, "svc-a")
    rotation.introduce(ca)
    (tmp_path / "roots").write_text(run("bundle", "--pki", ca).stdout)
    leaf = ca / "workloads/svc-a" / CERTIFICATE
    assert openssl("verify", "-CAfile", tmp_path / "roots", "-untrusted", leaf, leaf).endswith(": OK\n")
