"""`load_identity`: what it gives was proven; a refusal is one sentence with the file and the remedy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from kit.certs import Forge, environment, in_child, key_pem, pem, plain

from fastmesh.certs import authority
from fastmesh.certs.store import BUNDLE, CERTIFICATE, FEDERATED, KEY, REVOKED, PkiError, load_identity

ID = "spiffe://mesh.local/svc-a"


@pytest.fixture
def svc(ca: Path) -> Path:
    authority.issue(ca, "svc-a")
    return ca / "workloads/svc-a"


def test_the_identity(ca: Path, svc: Path) -> None:
    made = load_identity(ca, "svc-a")
    assert made.certificate == (svc / CERTIFICATE).read_text()
    assert made.certificate.count("BEGIN CERTIFICATE") == 2
    assert made.key == (svc / KEY).read_text()
    assert made.bundle == (svc / BUNDLE).read_text() == (ca / "ca" / BUNDLE).read_text()
    assert made.spiffe_id == ID
    assert 86400 <= made.not_after - made.not_before <= 86420
    assert made.issuer_not_after - made.not_before in range(365 * 86400 - 60, 365 * 86400 + 60)
    assert made.root_not_after - made.not_before in range(3652 * 86400 - 60, 3652 * 86400 + 60)
    assert (dict(made.federated), made.revoked) == ({}, ())


def test_it_is_immutable_and_never_shows_its_key(ca: Path, svc: Path) -> None:
    made = load_identity(ca, "svc-a")
    assert "PRIVATE" not in f"{made!r}{made}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.key = ""  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.federated["x"] = ""  # type: ignore[index]


def test_a_copy_of_the_directory_is_enough(svc: Path, tmp_path: Path) -> None:
    """With links or with what they lead to, and without the authority."""
    for kind, symlinks in (("links", True), ("files", False)):
        shutil.copytree(svc, tmp_path / kind / "workloads/svc-a", symlinks=symlinks)
        assert load_identity(tmp_path / kind, "svc-a").spiffe_id == ID


def test_a_secret_as_kubernetes_mounts_it(ca: Path, tmp_path: Path) -> None:
    directory = tmp_path / "mounted/workloads/svc-a"
    plain(directory / "..2026_11_24", Forge(ca).files([ID]))
    (directory / "..data").symlink_to("..2026_11_24")
    for name in (CERTIFICATE, KEY, BUNDLE):
        (directory / name).symlink_to(f"..data/{name}")
    (directory / KEY).chmod(0o640)
    assert load_identity(tmp_path / "mounted", "svc-a").spiffe_id == ID


def test_a_new_issue_takes_the_place_of_a_plain_directory(ca: Path) -> None:
    plain(ca / "workloads/svc-a", Forge(ca).files([ID], end=60))
    before = load_identity(ca, "svc-a")
    authority.issue(ca, "svc-a")
    after = load_identity(ca, "svc-a")
    assert after.not_after > before.not_after
    assert (ca / "workloads/svc-a" / KEY).read_text() == after.key


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        (svc / name).write_text(text)

    return change


def bytes_of(name: str, data: bytes) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        (svc / name).write_bytes(data)

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        text = (svc / name).read_text()
        (svc / name).write_text(text[: int(len(text) * share)])

    return change


def flip(name: str, line: int) -> Callable[[Path], None]:
    """Another letter in that line of the file."""

    def change(svc: Path) -> None:
        lines = (svc / name).read_text().split("\n")
        old = lines[line]
        lines[line] = old[:10] + ("A" if old[10] != "A" else "B") + old[11:]
        (svc / name).write_text("\n".join(lines))

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        (svc / name).unlink()

    return change


def fifo(name: str) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        (svc / name).unlink()
        os.mkfifo(svc / name, 0o600)

    return change


def folder(name: str) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        (svc / name).unlink()
        (svc / name).mkdir()

    return change


def huge(name: str) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        os.truncate(svc / name, 1 << 40)

    return change


def mode(name: str, bits: int) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        (svc / name).chmod(bits)

    return change


def swap(a: str, b: str) -> Callable[[Path], None]:
    def change(svc: Path) -> None:
        first, second = (svc / a).read_text(), (svc / b).read_text()
        (svc / a).write_text(second)
        (svc / b).write_text(first)

    return change


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(svc: Path) -> None:
        (svc / name).write_text(change((svc / name).read_text()))

    return apply


def first_block(text: str) -> str:
    return text[: text.index("-----END CERTIFICATE-----") + 26]


def without_first_block(text: str) -> str:
    return text[len(first_block(text)) :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove(CERTIFICATE), "certificate.pem is missing"),
        (remove(KEY), "key.pem is missing"),
        (remove(BUNDLE), "bundle.pem is missing"),
        (write(CERTIFICATE, ""), "certificate.pem holds no certificate in PEM form (it is empty)"),
        (write(KEY, ""), "key.pem holds no private key"),
        (write(BUNDLE, "\n"), "bundle.pem holds no certificate in PEM form (it is empty)"),
        (write(CERTIFICATE, "hello"), "certificate.pem holds no certificate in PEM form"),
        (write(KEY, "hello"), "key.pem holds no private key"),
        (bytes_of(CERTIFICATE, b"\xff\xfe\0"), "certificate.pem is no text file"),
        (bytes_of(KEY, os.urandom(200) + b"\xff"), "key.pem is no text file"),
        (bytes_of(BUNDLE, b"\0" * 100), "bundle.pem holds no certificate"),
        (cut(CERTIFICATE, 0.2), "certificate.pem holds no certificate"),
        (cut(CERTIFICATE, 0.75), "certificate.pem is cut off"),
        (cut(KEY, 0.5), "key.pem holds no private key"),
        (cut(BUNDLE, 0.9), "bundle.pem holds no certificate"),
        (flip(CERTIFICATE, 2), "certificate.pem"),
        # In the secret number: the key still names the public key of the certificate.
        (flip(KEY, 2), "certificate.pem cannot be used for TLS (bad signature)"),
        # In the public key: of a root, OpenSSL does not check the signature that it makes on itself.
        (flip(BUNDLE, 5), "bundle.pem"),
        (fifo(CERTIFICATE), "certificate.pem is no regular file"),
        (fifo(KEY), "key.pem is no regular file"),
        (folder(BUNDLE), "bundle.pem is no regular file"),
        (huge(BUNDLE), "bundle.pem has 1099511627776 bytes"),
        (mode(KEY, 0o604), "others can read it"),
        (mode(KEY, 0o644), "others can read it"),
        (mode(KEY, 0o620), "others can change it"),
        (swap(CERTIFICATE, BUNDLE), "is a CA's, not a workload's"),
        (swap(KEY, CERTIFICATE), "certificate.pem holds no certificate"),
        (edit(CERTIFICATE, first_block), "certificate.pem does not lead to"),
        (edit(CERTIFICATE, without_first_block), "is a CA's, not a workload's"),
        (edit(BUNDLE, lambda text: text + "-----BEGIN CERTIFICATE-----\n"), "bundle.pem is cut off"),
        (edit(CERTIFICATE, lambda text: first_block(text) * 2), "holds a certificate that is no CA's"),
    ],
)
def test_damaged_files(ca: Path, change: Callable[[Path], None], said: str) -> None:
    svc = plain(ca / "workloads/svc-a", Forge(ca).files([ID]))
    load_identity(ca, "svc-a")
    change(svc)
    with pytest.raises(PkiError) as caught:
        load_identity(ca, "svc-a")
    message = str(caught.value)
    assert said in message
    assert "; " in message, "a remedy follows"
    assert "run: fastmesh certs issue svc-a --pki" in message or "chmod 600" in message
    assert "\n" not in message
    assert "PRIVATE" not in message
    assert "ssl.c" not in message


@pytest.mark.parametrize(
    ("uris", "options", "said"),
    [
        ([], {}, "exactly one URI as subject alternative name, it has 0"),
        ([ID, "spiffe://mesh.local/svc-b"], {}, "exactly one URI as subject alternative name, it has 2"),
        (
            ["spiffe://mesh.local/svc-b"],
            {},
            "is of spiffe://mesh.local/svc-b, not of spiffe://mesh.local/svc-a",
        ),
        (["spiffe://other.local/svc-a"], {}, "is of spiffe://other.local/svc-a, not of"),
        (["spiffe://mesh.local"], {}, "names a trust domain, no workload"),
        (["spiffe://mesh.local/svc-a/"], {}, "no X.509-SVID"),
        (["spiffe://mesh.local/svc-a/b"], {}, "is of spiffe://mesh.local/svc-a/b"),
        (["spiffe://mesh.local/*"], {}, "no X.509-SVID"),
        (["https://mesh.local/svc-a"], {}, "no X.509-SVID"),
        ([ID + "\n"], {}, "no X.509-SVID"),
        (["spiffe://MESH.local/svc-a"], {}, "no X.509-SVID"),
        ([ID], {"is_ca": True}, "is a CA's, not a workload's"),
        ([ID], {"start": -100, "end": -50}, "expired at"),
        ([ID], {"start": 50, "end": 100}, "is valid from"),
        ([ID], {"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "unsuitable certificate purpose"),
        ([ID], {"purposes": (ExtendedKeyUsageOID.CLIENT_AUTH,)}, "unsuitable certificate purpose"),
        ([ID], {"purposes": (ExtendedKeyUsageOID.CODE_SIGNING,)}, "unsuitable certificate purpose"),
        ([ID], {"signs": False}, "certificate.pem"),
    ],
)
def test_certificates_that_prove_something_else(
    ca: Path, uris: list[str], options: dict[str, object], said: str
) -> None:
    plain(ca / "workloads/svc-a", Forge(ca).files(uris, **options))  # type: ignore[arg-type]
    with pytest.raises(PkiError) as caught:
        load_identity(ca, "svc-a")
    assert said in str(caught.value)
    assert "run: fastmesh certs issue svc-a --pki" in str(caught.value)


@pytest.mark.parametrize(("certificate", "crl"), [(True, False), (False, True)])
@pytest.mark.parametrize("critical", [True, False])
def test_a_leaf_that_may_sign(ca: Path, certificate: bool, crl: bool, critical: bool) -> None:
    """X.509-SVID, 5.2. No CA, but with a CA's key usage: OpenSSL alone lets it pass."""
    forge = Forge(ca)
    found = forge.files([ID])
    leaf = x509.load_pem_x509_certificates(found[CERTIFICATE].encode())[0]
    builder = x509.CertificateBuilder(
        leaf.issuer, leaf.subject, leaf.public_key(), 1, leaf.not_valid_before_utc, leaf.not_valid_after_utc
    )
    usage = x509.KeyUsage(True, False, False, False, False, certificate, crl, False, False)
    for extension in leaf.extensions:
        special = isinstance(extension.value, x509.KeyUsage)
        builder = builder.add_extension(
            usage if special else extension.value, critical if special else extension.critical
        )
    made = builder.sign(forge.issuer_key, hashes.SHA256())
    plain(ca / "workloads/svc-a", {**found, CERTIFICATE: pem(made) + pem(forge.issuer)})
    with pytest.raises(PkiError, match="its key usage allows to sign certificates"):
        load_identity(ca, "svc-a")


def test_the_key_of_another_certificate(ca: Path) -> None:
    forge = Forge(ca)
    found = forge.files([ID])
    for other in (ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())):
        shutil.rmtree(ca / "workloads", ignore_errors=True)
        plain(ca / "workloads/svc-a", {**found, KEY: key_pem(other)})
        with pytest.raises(PkiError, match=r"key\.pem is not the key of .*certificate\.pem"):
            load_identity(ca, "svc-a")


def test_an_encrypted_key_does_not_ask_on_the_terminal(ca: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    found = Forge(ca).files([ID], key=key)
    plain(ca / "workloads/svc-a", {**found, KEY: key_pem(key, b"secret")})
    with pytest.raises(PkiError, match=r"key\.pem is encrypted"):
        load_identity(ca, "svc-a")


def test_the_bundle_of_another_authority(ca: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    authority.create(other, "mesh.local")
    found = Forge(ca).files([ID])
    svc = plain(ca / "workloads/svc-a", {**found, BUNDLE: (other / "ca" / BUNDLE).read_text()})
    with pytest.raises(PkiError, match="does not lead to"):
        load_identity(ca, "svc-a")
    # With both roots, as while a root is being changed, it does.
    (svc / BUNDLE).write_text(found[BUNDLE] + (other / "ca" / BUNDLE).read_text())
    assert load_identity(ca, "svc-a").spiffe_id == ID


def test_text_around_the_certificates_is_let_pass(ca: Path) -> None:
    found = Forge(ca).files([ID])
    note = "subject: svc-a\nissuer: somebody\n"
    plain(
        ca / "workloads/svc-a",
        {**found, CERTIFICATE: note + found[CERTIFICATE].replace("\n", "\r\n"), BUNDLE: found[BUNDLE] + note},
    )
    assert load_identity(ca, "svc-a").spiffe_id == ID


def test_the_trust_domain_asked_for_counts(ca: Path, svc: Path) -> None:
    assert load_identity(ca, "svc-a", trust_domain="mesh.local").spiffe_id == ID
    with pytest.raises(PkiError, match=f"is of {ID}, not of spiffe://other.local/svc-a"):
        load_identity(ca, "svc-a", trust_domain="other.local")


def test_trust_beside_it_in_a_plain_directory(ca: Path, tmp_path: Path) -> None:
    """A mounted secret with all files is as good as an entry, whoever wrote it."""
    authority.create(tmp_path / "other", "other.example")
    root = (tmp_path / "other/ca" / BUNDLE).read_text()
    plain(
        tmp_path / "mounted/workloads/svc-a",
        {
            **Forge(ca).files([ID]),
            FEDERATED: json.dumps({"other.example": root}),
            REVOKED: json.dumps({"revoked": ["ff" * 16, "01", "ff" * 16, "00" * 12 + "ab" * 20]}),
        },
    )
    made = load_identity(tmp_path / "mounted", "svc-a")
    assert made.federated == {"other.example": root}
    assert made.revoked == ("00" * 15 + "01", "ab" * 20, "ff" * 16)


def test_a_revoked_certificate_of_somebody_else(ca: Path) -> None:
    """By its serial alone, of any length: who issues the certificates need not be this authority."""
    home = plain(ca / "workloads/svc-a", Forge(ca).files([ID]))
    shown = subprocess.run(
        ["openssl", "x509", "-in", home / CERTIFICATE, "-noout", "-serial"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    serial = f"{int(shown.strip().removeprefix('serial='), 16):032x}"
    (home / REVOKED).write_text(json.dumps({"revoked": [serial]}))
    with pytest.raises(PkiError, match=r"was revoked; run: fastmesh certs issue svc-a"):
        load_identity(ca, "svc-a")


def test_the_spiffe_id_asked_for_counts(ca: Path, svc: Path) -> None:
    assert load_identity(ca, "svc-a", spiffe_id=ID).spiffe_id == ID
    assert load_identity(ca, "svc-a", trust_domain="x", spiffe_id=ID).spiffe_id == ID
    for other in ("spiffe://mesh.local/svc-b", "spiffe://other.local/svc-a", "spiffe://mesh.local"):
        with pytest.raises(PkiError, match=f"is of {ID}, not of {other}"):
            load_identity(ca, "svc-a", spiffe_id=other)


def test_nothing_there_yet(tmp_path: Path, ca: Path) -> None:
    with pytest.raises(PkiError) as caught:
        load_identity(tmp_path / "none", "svc-a")
    none = tmp_path / "none"
    assert str(caught.value) == (
        f"there is no pki directory {none}; run: fastmesh certs init --pki {none} && "
        f"fastmesh certs issue svc-a --pki {none}"
    )
    with pytest.raises(PkiError) as caught:
        load_identity(ca, "svc-x")
    assert str(caught.value) == (
        f"{ca} has no identity for the workload svc-x; run: fastmesh certs issue svc-x --pki {ca}"
    )


@pytest.mark.parametrize("name", ["", "..", "../ca", "a/b", "A", "a\n", "a\0b"])
def test_a_name_cannot_leave_the_directory(ca: Path, name: str) -> None:
    with pytest.raises(PkiError, match="workload name"):
        load_identity(ca, name)


@pytest.mark.parametrize("at", ["", "workloads", "workloads/svc-a"])
def test_a_file_where_a_directory_should_be(tmp_path: Path, at: str) -> None:
    path = tmp_path / "pki" / at
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    with pytest.raises(PkiError):
        load_identity(tmp_path / "pki", "svc-a")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_directory_that_may_not_be_read(svc: Path) -> None:
    def read() -> str:
        os.chdir(svc.parents[2])  # while it is still allowed
        os.setuid(65534)
        with pytest.raises(PkiError) as caught:
            load_identity(Path("pki"), "svc-a")
        return str(caught.value)

    assert "cannot be read: Permission denied" in in_child(read)


def test_a_sidecar_does_not_import_cryptography(ca: Path, svc: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from fastmesh.certs.store import load_identity\n"
        "assert 'ssl' not in sys.modules\n"
        "load_identity(Path(sys.argv[1]), 'svc-a')\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('cryptography', 'click', 'cffi')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, ca], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "[]"


def test_nothing_stays_open(ca: Path, svc: Path) -> None:
    load_identity(ca, "svc-a")
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        load_identity(ca, "svc-a")
    (svc / CERTIFICATE).write_text("broken")
    with pytest.raises(PkiError):
        load_identity(ca, "svc-a")
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
