"""Helpers of the certificate tests: commands, OpenSSL as an independent reader, certificates made wrong."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, Layout
from kit.limits import bare

ROOT = Path(__file__).parents[2]


def openssl(*args: str | Path, check: bool = True) -> str:
    """What OpenSSL's command line says."""
    done = subprocess.run(
        ["openssl", *map(str, args)], capture_output=True, text=True, timeout=30, check=False
    )
    text = done.stdout + done.stderr
    assert not check or done.returncode == 0, text
    return text


def fastmesh(
    *args: str | Path,
    cwd: Path | None = None,
    preexec: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """One run of the command line in a process of its own."""
    return subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
        preexec_fn=preexec,
    )


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-c", "from fastmesh.cli import main; main()", *map(str, args)]


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), **bare(), "PYTHONDONTWRITEBYTECODE": "1"}


def in_child(work: Callable[[], str | None]) -> str:
    """What `work` returns in a forked copy of this process, which may give up its rights."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.write(writer, (work() or "").encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status:#x}"
    return said


def plain(directory: Path, files: Mapping[str, str]) -> Path:
    """An identity as a plain directory, as a mounted secret gives it."""
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    (directory / KEY).chmod(0o600)
    return directory


class Forge:
    """Identities by the authority in `pki` that it would never make itself."""

    def __init__(self, pki: Path) -> None:
        layout = Layout(pki)
        self.issuer = x509.load_pem_x509_certificate((layout.issuer / CERTIFICATE).read_bytes())
        key = serialization.load_pem_private_key((layout.issuer / KEY).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.issuer_key = key
        self.bundle = layout.bundle.read_text()

    def files(
        self,
        uris: list[str],
        *,
        start: float = -60,
        end: float = 3600,
        is_ca: bool = False,
        purposes: tuple[x509.ObjectIdentifier, ...] = (
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ),
        signs: bool = True,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> dict[str, str]:
        """The three files; times are seconds from now."""
        own = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
            .issuer_name(self.issuer.subject)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(seconds=start))
            .not_valid_after(now + datetime.timedelta(seconds=end))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(signs, False, not signs, False, False, is_ca, is_ca, False, False),
                critical=True,
            )
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        )
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        leaf = builder.sign(self.issuer_key, hashes.SHA256())
        return {CERTIFICATE: pem(leaf) + pem(self.issuer), KEY: key_pem(own), BUNDLE: self.bundle}


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    ).decode()
