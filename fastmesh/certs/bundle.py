"""Trust bundles as others exchange them: PEM, and the JWK Set of the SPIFFE standards.

By "SPIFFE Trust Domain and Bundle", section 4, and the X.509-SVID standard, section 6: a key for each root,
with `use` x509-svid, its certificate in `x5c`, and no `kid`. Both forms are read; keys of other uses (JWT)
are left out, as the standard wants.

Federation is one-sided: to trust another domain's bundle lets its workloads prove who they are here, and
nothing more. Who may call what is decided by rules.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fastmesh.certs import files, proof, spiffe, trust
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.keys import UNREADABLE
from fastmesh.certs.signer import RESTORE, failures, locked, present
from fastmesh.certs.store import Layout, read_trust_domain
from fastmesh.certs.templates import common_name, end_of, pem, start_of

# How often others should look for a new bundle, in seconds (Trust Domain and Bundle, 4.1.2). A root is in the
# bundle for days before anything depends on it.
REFRESH_HINT: Final = 3600
_USE: Final = "x509-svid"
_CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True, slots=True)
class Federated:
    """Another trust domain: how many roots it has, and when the last of them ends (Unix seconds)."""

    trust_domain: str
    roots: int
    not_after: int


def read(pki: Path) -> str:
    """The own bundle in PEM form. Raises PkiError."""
    layout = Layout(pki)
    with failures(f"the bundle in {pki} cannot be read"):
        return "".join(map(pem, _roots(layout)))


def jwks(pki: Path) -> str:
    """The own bundle as a JWK Set. Raises PkiError."""
    layout = Layout(pki)
    with failures(f"the bundle in {pki} cannot be read"):
        while True:
            text = _text_of(layout)
            number = trust.sequence(layout, text)
            # Without the lock: who reads need not be allowed to write. Both are of one moment, then.
            if _text_of(layout) == text:
                break
        keys = [_jwk(root) for root in _parsed(layout, text)]
    return json.dumps(
        {"keys": keys, "spiffe_sequence": number, "spiffe_refresh_hint": REFRESH_HINT}, indent=2
    )


def federated(pki: Path) -> list[Federated]:
    """The other trust domains that are trusted. Raises PkiError."""
    layout = Layout(pki)
    with failures(f"the bundles in {pki} cannot be read"):
        present(layout)
        return _listed(layout)


def federate(
    pki: Path, add: dict[str, Path], remove: list[str], *, now: float | None = None
) -> tuple[list[Federated], list[str]]:
    """Trusts other trust domains by bundle files (PEM or JWK Set), and no longer those in `remove`.

    All files are read before the first change. Returns what is trusted then, and remarks about entries left
    alone. Raises PkiError: no bundle, all roots over, a root of this trust domain, or a domain to be removed
    that is not there.
    """
    layout = Layout(pki)
    with failures(f"the trust in {pki} cannot be changed"), locked(layout):
        moment = time.time() if now is None else now
        own = read_trust_domain(layout)
        ours = set(_roots(layout))
        made = {}
        for domain, path in add.items():
            if spiffe.trust_domain(domain) == own:
                raise PkiError(f"{own} is this authority's own trust domain")
            made[domain] = _usable(parse(_text(path), str(path)), domain, ours, str(path), moment)
        there = trust.read_federated(layout)
        # What a kill left in entries is removed by the same command again.
        left = trust.published_domains(layout) if remove else set()
        for domain in remove:
            if domain not in there and domain not in left:
                known = ", ".join(there) or "none"
                raise PkiError(f"the trust domain {domain} is not federated; these are: {known}")
        if made:
            files.make_directory(layout.federated)
        for domain, text in made.items():
            files.replace(layout.federated / f"{domain}.pem", text, files.PUBLIC_MODE, pki)
        for domain in remove:
            files.remove(layout.federated / f"{domain}.pem")
        remarks = trust.republish(layout, trust.read(layout, moment))
        return _listed(layout), remarks


def parse(text: str, where: str) -> list[x509.Certificate]:
    """The certificates in a bundle, PEM or JWK Set. Raises PkiError."""
    try:
        if not text.lstrip().startswith("{"):
            return [
                _whole(x509.load_pem_x509_certificate(one.encode()))
                for one in proof.certificates(text, where)
            ]
        keys = json.loads(text)["keys"]
        used = [key for key in keys if key.get("use") == _USE and key.get("x5c")]
        # All but the first certificate of a key are to be ignored (X.509-SVID, 6.2).
        return [
            _whole(x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0], validate=True)))
            for key in used
        ]
    except (*UNREADABLE, LookupError, AttributeError, binascii.Error, RecursionError):
        raise PkiError(f"{where} holds no trust bundle that can be read, neither PEM nor a JWK Set") from None


def _whole(root: x509.Certificate) -> x509.Certificate:
    """The same certificate, of which everything can be asked. Raises what `UNREADABLE` names."""
    start_of(root), end_of(root), root.public_key(), root.subject, list(root.extensions)
    return root


def _usable(
    found: list[x509.Certificate], domain: str, ours: set[x509.Certificate], where: str, now: float
) -> str:
    """The roots that are worth keeping, in PEM form, as sidecars will be able to read them."""
    if not found:
        raise PkiError(f"{where} holds no key for X.509-SVIDs")
    kept = []
    for root in found:
        try:
            constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (x509.ExtensionNotFound, *UNREADABLE):
            constraints = None
        if constraints is None or not constraints.ca:
            raise PkiError(f"{where} holds a certificate that is no CA's")
        if any(root.public_key() == one.public_key() for one in ours):
            # It could speak for both (Trust Domain and Bundle, section 6: keys are not to be shared).
            raise PkiError(f"{where} holds a root of this trust domain itself")
        # X.509-SVID standard, section 3.2: a CA may have the id of its trust domain.
        if (named := trust.domain_of(root)) not in (None, domain):
            raise PkiError(f"{where} holds a root of the trust domain {named}, not of {domain}")
        if end_of(root) >= now:
            kept.append(root)
    if not kept:
        last = max(found, key=end_of)
        raise PkiError(
            f"the bundle in {where} is over: its last root, {common_name(last)}, expired at "
            f"{proof.when(end_of(last))}",
            "get a new one from the other trust domain",
        )
    if all(start_of(root) > now for root in kept):
        first = min(kept, key=start_of)
        raise PkiError(
            f"the bundle in {where} is valid from {proof.when(start_of(first))} only", "set the clock"
        )
    text = "".join(map(pem, dict.fromkeys(kept)))
    # Before it is trusted, as it is judged when it is read: a file that is not would stop everything.
    proof.check_roots(text, where)
    return text


def _text(path: Path) -> str:
    try:
        return files.read_text(path)
    except OSError as error:
        raise PkiError(f"{path} cannot be read: {reason(error)}") from None


def _roots(layout: Layout) -> list[x509.Certificate]:
    return _parsed(layout, _text_of(layout))


def _text_of(layout: Layout) -> str:
    present(layout)
    try:
        return files.read_text(layout.bundle)
    except FileNotFoundError:
        raise PkiError(f"{layout.bundle} is missing", RESTORE) from None


def _parsed(layout: Layout, text: str) -> list[x509.Certificate]:
    try:
        return parse(text, str(layout.bundle))
    except PkiError as error:
        raise PkiError(error.problem, RESTORE) from None


def _listed(layout: Layout) -> list[Federated]:
    rows = []
    for domain, text in trust.read_federated(layout).items():
        roots = parse(text, str(layout.federated / f"{domain}.pem"))
        rows.append(Federated(domain, len(roots), max(map(end_of, roots))))
    return rows


def _jwk(root: x509.Certificate) -> dict[str, Any]:
    """RFC 7517, with the parameters of RFC 7518 section 6 and RFC 8037 section 2."""
    key = root.public_key()
    facts: dict[str, Any]
    if isinstance(key, ec.EllipticCurvePublicKey):
        numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
        facts = {
            "kty": "EC",
            "crv": _CURVES[key.curve.name],
            "x": _base64url(numbers.x.to_bytes(size, "big")),
            "y": _base64url(numbers.y.to_bytes(size, "big")),
        }
    elif isinstance(key, rsa.RSAPublicKey):
        public = key.public_numbers()
        facts = {"kty": "RSA", "n": _number(public.n), "e": _number(public.e)}
    elif isinstance(key, ed25519.Ed25519PublicKey):
        facts = {"kty": "OKP", "crv": "Ed25519", "x": _base64url(key.public_bytes_raw())}
    else:
        raise PkiError(f"the root {common_name(root)} has a key of a kind that is not used here")
    der = root.public_bytes(serialization.Encoding.DER)
    # `x5c` is plain base64, not base64url (RFC 7517 section 4.7).
    return {"use": _USE, **facts, "x5c": [base64.b64encode(der).decode()]}


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
