"""Private keys: the kinds that the authority makes, as text and back, and which public keys it certifies.

A root's key may be encrypted with a passphrase; the others are in the clear, because what uses them runs
without a person.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fastmesh.certs.errors import PkiError

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

# What `cryptography` raises about certificates and keys that it cannot read, some of it only when a part is
# asked for.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
DEFAULT: Final = "ec-p256"
KINDS: Final[dict[str, Callable[[], PrivateKey]]] = {
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa-3072": lambda: rsa.generate_private_key(65537, 3072),
}
# NIST SP 800-57 allows no fewer; more than the upper bound only costs the peers time.
_RSA_BITS: Final = range(2048, 8193)
_ENCRYPTED: Final = ("BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED")


def new(kind: str = DEFAULT) -> PrivateKey:
    """A new key of one of `KINDS`."""
    return KINDS[kind]()


def pem(key: PrivateKey, passphrase: str | None = None) -> str:
    """PKCS #8, encrypted if there is a passphrase."""
    encryption = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase.encode())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    ).decode()


def is_encrypted(text: str) -> bool:
    """Whether a PEM file holds an encrypted key (RFC 7468 section 11, RFC 1421)."""
    return any(mark in text for mark in _ENCRYPTED)


def load(text: str, where: str, remedy: str | None = None, passphrase: str | None = None) -> PrivateKey:
    """The key in a PEM file. Raises PkiError: encrypted and no or a wrong passphrase, or no key."""
    if is_encrypted(text):
        if passphrase is None:
            raise PkiError(
                f"{where} is encrypted",
                "give its passphrase with --root-passphrase-file or FASTMESH_ROOT_PASSPHRASE",
            )
        try:
            key = serialization.load_pem_private_key(text.encode(), passphrase.encode())
        except UNREADABLE:
            raise PkiError(f"the passphrase does not open {where}", "give the right one") from None
    else:
        try:
            key = serialization.load_pem_private_key(text.encode(), None)
        except UNREADABLE:
            raise PkiError(f"{where} holds no private key that can be read", remedy) from None
    if not isinstance(key, PrivateKey):
        raise PkiError(f"{where} holds a key of a kind that is not used here", remedy)
    return key


def digest(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """The hash to sign with: as strong as the key; Ed25519 has its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384()
    return hashes.SHA256()


def described(key: object) -> str:
    """A public key's kind, for people."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return type(key).__name__


def weakness(key: object) -> str | None:
    """Why a public key is not certified; None if it may be."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in _RSA_BITS:
            return (
                f"an RSA key of {key.key_size} bits; {_RSA_BITS.start} to {_RSA_BITS.stop - 1} are accepted"
            )
        if key.public_numbers().e < 65537:
            return "an RSA key with a small exponent"
        return None
    if isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)):
            return None
        return f"a key on the curve {key.curve.name}; P-256, P-384 and P-521 are accepted"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return None
    return f"a key of a kind that TLS peers do not accept ({type(key).__name__})"
