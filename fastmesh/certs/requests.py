"""Certificate signing requests: a workload's public key, from where its private key stays.

Of a request only the public key counts. Names, uses and times that it asks for are ignored: they are the
authority's to decide (RFC 2986 section 3 lets a CA choose the rest).
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fastmesh.certs import keys
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.keys import UNREADABLE, PublicKey

_MAX_REQUEST = 64 * 1024


def public_key(path: Path) -> PublicKey:
    """The key of the request in a file (PKCS #10, PEM or DER). Raises PkiError: unreadable, not signed with
    the key that it names (proof of possession, RFC 2986 section 3), or a key too weak to be certified."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_REQUEST + 1)
    except OSError as error:
        raise PkiError(f"{path} cannot be read: {reason(error)}") from None
    if len(data) > _MAX_REQUEST:
        raise PkiError(
            f"{path} has more than {_MAX_REQUEST} bytes; a certificate signing request is far smaller"
        )
    if b"PRIVATE KEY-----" in data:
        raise PkiError(
            f"{path} holds a private key, which must not leave the workload",
            "make a request of it: openssl req -new -key FILE -subj / -out REQUEST",
        )
    try:
        pem = data.lstrip().startswith(b"-----")
        request = x509.load_pem_x509_csr(data) if pem else x509.load_der_x509_csr(data)
        key = request.public_key()
        proven = request.is_signature_valid
    except (*UNREADABLE, InvalidSignature):
        raise PkiError(
            f"{path} holds no certificate signing request that can be read",
            "make one with: openssl req -new -key FILE -subj / -out REQUEST",
        ) from None
    if not proven:
        raise PkiError(f"the request in {path} is not signed with the key that it names")
    if (weak := keys.weakness(key)) is not None:
        raise PkiError(f"the request in {path} is for {weak}")
    assert isinstance(key, PublicKey)
    return key
