"""Kinds of keys, names and requests: what is asked for stands in the certificate, as OpenSSL reads it."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.certs import fastmesh, key_pem, openssl

from fastmesh.certs import authority, keys, record, requests, rotation
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, Layout, PkiError, load_identity
from fastmesh.cli import main

SHOWN = {
    "ec-p256": ("prime256v1", "ecdsa-with-SHA256"),
    "ec-p384": ("secp384r1", "ecdsa-with-SHA384"),
    "ed25519": ("ED25519", "Signature Algorithm: ED25519"),
    "rsa-3072": ("(3072 bit)", "sha256WithRSAEncryption"),
}


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, ["certs", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def text_of(path: Path) -> str:
    return openssl("x509", "-in", path, "-noout", "-text")


def strict(pki: Path, name: str) -> str:
    leaf = Layout(pki).workload(name) / CERTIFICATE
    return openssl("verify", "-x509_strict", "-CAfile", leaf.with_name(BUNDLE), "-untrusted", leaf, leaf)


@pytest.mark.parametrize("kind", SHOWN)
def test_kinds_of_keys(tmp_path: Path, kind: str) -> None:
    pki = tmp_path / "pki"
    assert run("init", "--key", kind, "--root-days", "30", "--issuer-days", "7", "--pki", pki).exit_code == 0
    assert run("issue", "svc-a", "--pki", pki).exit_code == 0
    for entry in ("ca/root", "ca/issuer", "workloads/svc-a"):
        text = text_of(pki / entry / CERTIFICATE)
        assert all(part in text for part in SHOWN[kind]), text
    assert strict(pki, "svc-a").endswith(": OK\n")
    made = load_identity(pki, "svc-a")
    assert 29 * 86400 < made.root_not_after - made.not_before <= 30 * 86400
    assert 6 * 86400 < made.issuer_not_after - made.not_before <= 7 * 86400
    # What `init` was told is kept for what comes after it.
    rotation.introduce(pki)
    rotation.switch(pki)
    assert SHOWN[kind][0] in text_of(pki / "ca/next-root" / CERTIFICATE)
    authority.renew(pki, "svc-a")
    assert strict(pki, "svc-a").endswith(": OK\n")
    assert load_identity(pki, "svc-a").issuer_not_after - made.issuer_not_after in range(600)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["init", "--key", "rsa-1024"], "rsa-1024"),
        (["init", "--root-days", "0"], "--root-days"),
        (["init", "--root-days", "40000"], "--root-days"),
        (["init", "--root-days", "10", "--issuer-days", "11"], "cannot outlive the root"),
        (["issue", "svc-a", "--dns", "*.example"], "wildcard"),
        (["issue", "svc-a", "--dns", "A.example."], "write a.example"),
        (["issue", "svc-a", "--dns", "a_b"], "no DNS name"),
        (["issue", "svc-a", "--ip", "1.2.3"], "--ip"),
        (["issue", "svc-a", "--ip", "10.0.0.0/8"], "--ip"),
        (["issue", "svc-a", "--spiffe", "ns/shop"], "starts with a slash"),
        (["issue", "svc-a", "--spiffe", "spiffe://mesh.local/x"], "starts with a slash"),
        (["issue", "svc-a", "--spiffe", "/"], "empty parts"),
        (["issue", "svc-a", "--spiffe", "/a/../b"], "'..'"),
        (["issue", "svc-a", "--spiffe", "/a/*"], "cannot stand"),
        (["issue", "svc-a", "--spiffe", "/a\n"], "cannot stand"),
        (["issue", "svc-a", "--spiffe", "/" + "x" * 3000], "2048"),
        (["issue", "svc-a", "svc-b", "--spiffe", "/x"], "for one NAME"),
        (["issue", "svc-a", "svc-b", "--csr", "x"], "for one NAME"),
        (["renew"], "--all"),
        (["renew", "svc-a", "--all"], "--all"),
        (["revoke"], "Missing argument"),
        (["bundle", "--federate", "other.example"], "DOMAIN=FILE"),
        (["bundle", "--federate", "Other=x"], "no trust domain"),
        (["bundle", "--federate", "a=x", "--unfederate", "a"], "once"),
        (["bundle", "--format", "der"], "--format"),
        (["rotate-root", "begin"], "begin"),
        (["verify"], "Missing argument"),
    ],
)
def test_bad_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_names(ca: Path) -> None:
    args = ("--dns", "a.example", "--dns", "svc-a", "--ip", "10.0.0.1", "--ip", "fd00::1", "--ip", "10.0.0.1")
    assert run("issue", "svc-a", *args, "--pki", ca).exit_code == 0
    names = "DNS:svc-a, DNS:a.example, IP Address:10.0.0.1, IP Address:FD00:0:0:0:0:0:0:1"
    assert names in text_of(ca / "workloads/svc-a" / CERTIFICATE)
    shown = run("show", "svc-a", "--pki", ca).stdout
    assert "10.0.0.1, fd00::1" in shown
    leaf = ca / "workloads/svc-a" / CERTIFICATE
    arguments = ("-CAfile", leaf.with_name(BUNDLE), "-untrusted", leaf, leaf)
    assert openssl("verify", "-verify_ip", "fd00::1", *arguments).endswith(": OK\n")
    assert "mismatch" in openssl("verify", "-verify_ip", "10.0.0.2", *arguments, check=False)


def test_a_full_path(ca: Path) -> None:
    issued = run("issue", "cart", "--spiffe", "/ns/shop/sa/cart", "--pki", ca)
    wanted = "spiffe://mesh.local/ns/shop/sa/cart"
    assert issued.stdout.startswith(f"{wanted}  until ")
    assert load_identity(ca, "cart", spiffe_id=wanted).spiffe_id == wanted
    assert run("show", "cart", "--pki", ca).exit_code == 0
    with pytest.raises(PkiError, match=f"is of {wanted}, not of spiffe://mesh.local/cart; run: "):
        load_identity(ca, "cart")
    with pytest.raises(PkiError, match="not of spiffe://mesh") as caught:
        load_identity(ca, "cart", spiffe_id="spiffe://mesh.local/ns/shop/sa/web")
    assert "certs issue cart --spiffe /ns/shop/sa/web --pki" in str(caught.value)
    with pytest.raises(PkiError, match="SPIFFE id"):
        load_identity(ca, "cart", spiffe_id="cart\n")
    # The whole id has at most 2048 bytes.
    with pytest.raises(PkiError, match="2048"):
        authority.issue(ca, "cart", path="/" + "x" * 2040)


# --- requests -----------------------------------------------------------------------------------------------


def request(directory: Path, *options: str, form: str = "PEM") -> tuple[Path, Path]:
    """A key and a request that asks for far too much, made by OpenSSL."""
    key, csr = directory / "own.key", directory / "own.csr"
    openssl(
        "req", "-new", *(options or ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")), "-nodes",
        "-keyout", key, "-subj", "/CN=admin", "-addext", "subjectAltName=URI:spiffe://mesh.local/admin",
        "-addext", "basicConstraints=critical,CA:TRUE", "-outform", form, "-out", csr,
    )  # fmt: skip
    return key, csr


@pytest.mark.parametrize("form", ["PEM", "DER"])
@pytest.mark.parametrize("options", [(), ("-newkey", "rsa:2048"), ("-newkey", "ed25519")], ids=str)
def test_a_request(ca: Path, tmp_path: Path, options: tuple[str, ...], form: str) -> None:
    key, csr = request(tmp_path, *options, form=form)
    issued = run("issue", "svc-a", "--csr", csr, "--pki", ca)
    assert issued.exit_code == 0, issued.stderr
    assert "has its key elsewhere" in issued.stderr
    home = ca / "workloads/svc-a"
    assert sorted(path.name for path in home.iterdir() if path.name[0] != ".") == [
        "bundle.pem",
        "certificate.pem",
        "current",
    ]
    text = text_of(home / CERTIFICATE)
    assert "admin" not in text
    assert "CA:FALSE" in text
    assert "URI:spiffe://mesh.local/svc-a, DNS:svc-a" in text
    assert strict(ca, "svc-a").endswith(": OK\n")
    # Where the key is, the files make an identity.
    away = tmp_path / "away/workloads/svc-a"
    away.mkdir(parents=True)
    for name in (CERTIFICATE, BUNDLE):
        (away / name).write_text((home / name).read_text())
    (away / KEY).write_text(key.read_text())
    (away / KEY).chmod(0o600)
    assert load_identity(tmp_path / "away", "svc-a").spiffe_id == "spiffe://mesh.local/svc-a"
    with pytest.raises(PkiError, match=r"key\.pem is missing"):
        load_identity(ca, "svc-a")
    renewed = run("renew", "svc-a", "--pki", ca)
    assert renewed.exit_code == 5
    assert "certs issue svc-a --csr FILE" in renewed.stderr


def test_a_request_for_the_key_that_is_there(ca: Path, tmp_path: Path) -> None:
    authority.issue(ca, "svc-a")
    key = ca / "workloads/svc-a" / KEY
    before = key.read_text()
    openssl("req", "-new", "-key", key, "-subj", "/", "-out", tmp_path / "csr")
    issued = run("issue", "svc-a", "--csr", tmp_path / "csr", "--pki", ca)
    assert (issued.exit_code, issued.stderr) == (0, "")
    assert load_identity(ca, "svc-a").key == before


def test_a_key_that_goes_leaves_no_link(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    authority.issue(ca, "svc-a", public=keys.new().public_key())
    assert not os.path.lexists(ca / "workloads/svc-a" / KEY)


def test_requests_that_are_refused(ca: Path, tmp_path: Path) -> None:
    key, csr = request(tmp_path)
    der = subprocess.run(
        ["openssl", "req", "-in", csr, "-outform", "DER"], capture_output=True, check=True
    ).stdout
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "holds no certificate signing request"),
        "text": (b"hello", "holds no certificate signing request"),
        "key": (key.read_bytes(), "holds a private key, which must not leave the workload"),
        "certificate": ((ca / "ca" / BUNDLE).read_bytes(), "holds no certificate signing request"),
        "cut": (csr.read_bytes()[:200], "holds no certificate signing request"),
        # The last byte is of the signature.
        "forged": (der[:-1] + bytes([der[-1] ^ 1]), "is not signed with the key that it names"),
        "huge": (b"x" * 70_000, "has more than 65536 bytes"),
    }
    for options, said in (
        (("-newkey", "rsa:1024"), "an RSA key of 1024 bits"),
        (("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"), "a key on the curve secp256k1"),
        (("-newkey", "ed448"), "a kind that TLS peers do not accept"),
    ):
        cases[" ".join(options)] = (request(tmp_path, *options)[1].read_bytes(), said)
    for name, (data, said) in cases.items():
        (tmp_path / "csr").write_bytes(data)
        issued = run("issue", "svc-a", "--csr", tmp_path / "csr", "--pki", ca)
        assert (issued.exit_code, issued.stdout) == (5, ""), name
        assert said in issued.stderr, name
        assert issued.stderr.count("\n") == 1, name
    with pytest.raises(PkiError, match="cannot be read: No such file"):
        requests.public_key(tmp_path / "none")
    assert not (ca / "workloads").exists()


# --- the root's key ----------------------------------------------------------------------------------------


def test_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMESH_ROOT_PASSPHRASE", raising=False)
    pki, word = tmp_path / "pki", tmp_path / "word"
    word.write_text("correct horse\nsecond line\n")
    made = run("init", "--root-passphrase-file", word, "--pki", pki)
    assert "root key      encrypted with the passphrase" in made.stdout
    assert "BEGIN ENCRYPTED PRIVATE KEY" in (pki / "ca/root" / KEY).read_text()
    openssl("pkey", "-in", pki / "ca/root" / KEY, "-passin", "pass:correct horse", "-noout")
    assert run("issue", "svc-a", "--pki", pki).exit_code == 0, "the root is not needed for it"
    for step in (["rotate-issuer"], ["rotate-root", "introduce"], ["rotate-root", "switch"]):
        denied = run(*step, "--pki", pki)
        assert denied.exit_code == 5
        assert "is encrypted; give its passphrase with" in denied.stderr
        wrong = fastmesh_with("wrong", *step, pki=pki)
        assert (wrong.returncode, wrong.stdout) == (5, "")
        assert "the passphrase does not open" in wrong.stderr
        assert run(*step, "--root-passphrase-file", word, "--pki", pki).exit_code == 0
        # Once done, a repetition opens nothing.
        if step[0] == "rotate-root":
            assert run(*step, "--pki", pki).exit_code == 0
    assert "BEGIN ENCRYPTED PRIVATE KEY" in (pki / "ca/next-root" / KEY).read_text()
    assert run("rotate-root", "retire", "--force", "--pki", pki).exit_code == 0
    assert fastmesh_with("correct horse", "rotate-issuer", pki=pki).returncode == 0


def fastmesh_with(word: str, *args: str, pki: Path) -> subprocess.CompletedProcess[str]:
    os.environ["FASTMESH_ROOT_PASSPHRASE"] = word
    try:
        return fastmesh("certs", *args, "--pki", pki)
    finally:
        del os.environ["FASTMESH_ROOT_PASSPHRASE"]


def test_a_passphrase_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMESH_ROOT_PASSPHRASE", raising=False)
    args = ["certs", "init", "--root-passphrase", "--pki", str(tmp_path / "pki")]
    done = CliRunner().invoke(main, args, input="one two\none two\n")
    assert done.exit_code == 0
    assert "one two" not in done.output
    openssl("pkey", "-in", tmp_path / "pki/ca/root" / KEY, "-passin", "pass:one two", "-noout")


@pytest.mark.parametrize(
    ("content", "said"), [(b"\n", "1 to 1023"), (b"x" * 1024, "1 to 1023"), (b"\xff", "no text")]
)
def test_passphrase_files_that_hold_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "word").write_bytes(content)
    made = run("init", "--root-passphrase-file", tmp_path / "word", "--pki", tmp_path / "pki")
    assert made.exit_code == 5
    assert said in made.stderr
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("word", ["", "\udcff"])
def test_passphrases_of_the_environment_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("FASTMESH_ROOT_PASSPHRASE", word)
    made = run("init", "--pki", tmp_path / "pki")
    assert made.exit_code == 5
    assert made.stderr.startswith("error: $FASTMESH_ROOT_PASSPHRASE ")
    assert not (tmp_path / "pki").exists()


def test_an_id_that_is_too_long_with_the_trust_domain(ca: Path) -> None:
    made = run("issue", "svc-a", "--spiffe", "/" + "x" * 2040, "--pki", ca)
    assert made.exit_code == 5
    assert made.stderr.startswith("error: a SPIFFE id has at most 2048 bytes")


def test_a_key_that_is_put_beside_its_certificate(ca: Path, tmp_path: Path) -> None:
    key, csr = request(tmp_path)
    assert run("issue", "web", "--csr", csr, "--pki", ca).exit_code == 0
    copy = tmp_path / "copy/workloads/web"
    shutil.copytree(ca / "workloads/web", copy, symlinks=True)
    for home in (copy, ca / "workloads/web"):
        shutil.copy(key, home / KEY)
        (home / KEY).chmod(0o644)
        with pytest.raises(PkiError, match="others can read it"):
            load_identity(home.parents[1], "web")
        (home / KEY).chmod(0o600)
        load_identity(home.parents[1], "web")
    # A change of trust keeps it.
    rotation.introduce(ca)
    assert load_identity(ca, "web").key == key.read_text()


def test_a_root_key_that_is_kept_elsewhere(ca: Path, tmp_path: Path) -> None:
    kept = tmp_path / "usb.pem"
    shutil.move((ca / "ca/root" / KEY).resolve(), kept)
    gone = run("rotate-issuer", "--pki", ca)
    assert gone.exit_code == 5
    assert "key.pem is missing; give the place where it is kept with --root-key FILE" in gone.stderr
    assert run("rotate-issuer", "--root-key", kept, "--pki", ca).exit_code == 0
    assert run("rotate-root", "introduce", "--root-key", kept, "--pki", ca).exit_code == 0
    assert "does not exist" in run("rotate-issuer", "--root-key", tmp_path / "no", "--pki", ca).stderr
    kept.chmod(0o644)
    assert "others can read it" in run("rotate-issuer", "--root-key", kept, "--pki", ca).stderr
    (tmp_path / "wrong.pem").write_text(key_pem(keys.KINDS["ec-p256"]()))  # type: ignore[arg-type]
    (tmp_path / "wrong.pem").chmod(0o600)
    wrong = run("rotate-issuer", "--root-key", tmp_path / "wrong.pem", "--pki", ca)
    assert "wrong.pem is not the key of" in wrong.stderr


# --- renewal ------------------------------------------------------------------------------------------------


def test_renewing_keeps_names_and_life(ca: Path) -> None:
    authority.issue(
        ca, "cart", 600, dns=["a.example"], addresses=[ipaddress.ip_address("::1")], path="/ns/shop/sa/cart"
    )
    home = ca / "workloads/cart"
    before, key = text_of(home / CERTIFICATE), (home / KEY).read_text()
    made = authority.renew(ca, "cart")
    after = text_of(home / CERTIFICATE)
    assert made.not_after - made.not_before == 620
    assert made.ttl == 600
    names = "URI:spiffe://mesh.local/ns/shop/sa/cart, DNS:cart, DNS:a.example, IP Address:0:0:0:0:0:0:0:1"
    assert names in before
    assert names in after
    assert (home / KEY).read_text() != key
    assert strict(ca, "cart").endswith(": OK\n")


def test_a_life_that_was_cut_short_is_whole_again(tmp_path: Path) -> None:
    """Else a certificate that ends with its issuer would live shorter with each renewal, for ever."""
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", issuer_life=86400, now=time.time() - 86400 + 600)
    assert authority.issue(pki, "svc-a", 3600).capped
    assert authority.renew(pki, "svc-a").capped
    rotation.rotate_issuer(pki)
    made = authority.renew(pki, "svc-a")
    assert not made.capped
    assert made.not_after - made.not_before in range(3600, 3621)


def test_renewing_all(ca: Path) -> None:
    assert run("renew", "--all", "--pki", ca).stderr == "no certificate has been issued yet\n"
    for name in ("svc-a", "svc-b", "svc-c"):
        authority.issue(ca, name)
    authority.issue(ca, "svc-d", public=keys.new().public_key())
    (ca / "workloads/svc-b" / CERTIFICATE).write_text("broken")
    renewed = run("renew", "--all", "--pki", ca)
    assert renewed.exit_code == 5
    assert [line.split()[0] for line in renewed.stdout.splitlines()] == [
        "spiffe://mesh.local/svc-a",
        "spiffe://mesh.local/svc-c",
    ]
    errors = renewed.stderr.splitlines()
    assert errors[0].startswith("error: ")
    assert "svc-b/certificate.pem holds no certificate" in errors[0]
    assert errors[1].startswith("note: the key of svc-d is not in")


def test_only_what_is_on_record_is_renewed(ca: Path) -> None:
    """Who can write into an entry, but not into the authority, does not choose the names that are signed."""
    for name in ("svc-a", "svc-b"):
        authority.issue(ca, name)
    shutil.rmtree(ca / "workloads/svc-a")
    shutil.copytree(ca / "workloads/svc-b", ca / "workloads/svc-a", symlinks=True)
    with pytest.raises(PkiError, match="is not on record as a certificate of svc-a"):
        authority.renew(ca, "svc-a")
    with pytest.raises(PkiError, match="has no identity for the workload svc-x"):
        authority.renew(ca, "svc-x")
    assert record.find(Layout(ca).record, "0" * 32) is None
