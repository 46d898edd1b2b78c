"""Does a key, a certificate chain and a trust bundle belong together, and which SPIFFE id do they prove now?

The answer comes from OpenSSL itself: the identity shakes hands with itself over TLS 1.3 in memory, both ends
with this key and chain, both requiring a certificate that leads to this bundle. What passes here is what a
peer accepts, key usages and path lengths included, because it is the same code that judges. It takes about 3
ms.

The standard library's `ssl` is used, not `cryptography`: a sidecar's event loop has imported it already, and
`cryptography` would add a third of a sidecar's memory.

Times are compared here, not by OpenSSL, so that the message can say which certificate ended when, and so
that a test can set the clock.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import ssl
import time
from typing import Any, Final, NamedTuple

from fastmesh.certs import spiffe
from fastmesh.certs.errors import PkiError

_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for.
_NO_CHECK_TIME: Final = 0x200000
# The extension in DER (RFC 5280 section 4.2.1.3): its id, perhaps "critical", a BIT STRING in an OCTET
# STRING. What looks like it elsewhere in a certificate can only have it refused.
_KEY_USAGE: Final = re.compile(rb"\x06\x03\x55\x1d\x0f(?:\x01\x01.)?\x04.\x03..(.)", re.DOTALL)
_MAX_FLIGHTS: Final = 20
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_EPOCH: Final = datetime.date(1970, 1, 1).toordinal()
_PLACE: Final = re.compile(r"^\[[^\]]*\] | ?\(_ssl\.c:[0-9]+\)$")


class Proof(NamedTuple):
    """What was proven. Times are Unix seconds; those of the issuer are of the first one above the certificate
    to end, those of the root of the first valid one in the bundle to end. `serial` is hexadecimal in lower
    case, of at least 32 digits."""

    spiffe_id: spiffe.SpiffeId
    not_before: int
    not_after: int
    serial: str
    issuer_not_before: int
    issuer_not_after: int
    root_not_before: int
    root_not_after: int


class Labels(NamedTuple):
    """What the three parts are called in messages: their paths, as a rule."""

    certificate: str
    key: str
    bundle: str


class _NoPath(PkiError):
    """The chain does not lead to a root."""


class _Ca(NamedTuple):
    pem: str
    subject: str
    not_before: int
    not_after: int


def prove(certificate: str, key: str, bundle: str, now: float, labels: Labels) -> Proof:
    """Checks the identity at time `now` (Unix seconds).

    Raises PkiError: not PEM, key of another certificate, chain that does not lead to the bundle, wrong key
    usage, not yet or no longer valid, or not an X.509-SVID (X.509-SVID standard, sections 2 to 5).
    OSError when it cannot be checked: out of memory or descriptors, or no /proc.
    """
    chain = certificates(certificate, labels.certificate)
    issuers = [_ca(pem, labels.certificate) for pem in chain[1:]]
    in_time = [ca for ca in issuers if ca.not_before <= now <= ca.not_after]
    if _is_ca(chain[0], labels.certificate):
        raise PkiError(f"the first certificate in {labels.certificate} is a CA's, not a workload's")
    if _signs(chain[0]):
        # X.509-SVID standard, section 5.2. OpenSSL lets it pass as long as it is no CA.
        raise PkiError(
            f"the certificate in {labels.certificate} is no X.509-SVID: its key usage allows to sign "
            "certificates"
        )
    roots = [_ca(pem, labels.bundle) for pem in certificates(bundle, labels.bundle)]
    valid = [root for root in roots if root.not_before <= now <= root.not_after]
    if not valid:
        root = max(roots, key=lambda root: root.not_after)
        _check_time(f"the root {root.subject} in {labels.bundle}", root.not_before, root.not_after, now)
    usable = "\n".join([chain[0], *(ca.pem for ca in in_time)])
    try:
        peer = _handshake(usable, key, "\n".join(root.pem for root in valid), labels)
    except _NoPath:
        # An issuer that is over harms nobody who knows another way to a root (the cross certificate of a root
        # that was replaced). Where there is none, it is the reason.
        for ca in issuers:
            _check_time(f"the issuer {ca.subject} in {labels.certificate}", ca.not_before, ca.not_after, now)
        raise
    try:
        not_before, not_after = _times(peer)
    except ValueError:
        raise PkiError(f"{labels.certificate} holds a certificate whose times cannot be read") from None
    _check_time(f"the certificate in {labels.certificate}", not_before, not_after, now)
    root = min(valid, key=_end_of)
    # A cross certificate is called as the root that it stands in for, which is what counts.
    names = {one.subject for one in valid}
    issuer = min((ca for ca in in_time if ca.subject not in names), key=_end_of, default=root)
    return Proof(
        _svid(peer, labels.certificate),
        not_before,
        not_after,
        f"{int(peer['serialNumber'], 16):032x}",
        issuer.not_before,
        issuer.not_after,
        root.not_before,
        root.not_after,
    )


def check_roots(text: str, where: str) -> None:
    """Raises PkiError when `text` is not the certificates of CAs in PEM form. Their times are not looked at:
    roots that are over verify nothing."""
    for pem in certificates(text, where):
        _ca(pem, where)


def certificates(text: str, where: str) -> list[str]:
    """The certificates in a PEM file, one text each. Raises PkiError when there is none."""
    found = _CERTIFICATE.findall(text)
    if not found:
        raise PkiError(
            f"{where} holds no certificate in PEM form" + ("" if text.strip() else " (it is empty)")
        )
    if text.count("-----BEGIN ") != len(found):
        raise PkiError(f"{where} is cut off or holds something else than certificates")
    return found


def when(seconds: float) -> str:
    """A time for a message."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"second {seconds:.0f}"


def _check_time(what: str, not_before: int, not_after: int, now: float) -> None:
    # RFC 5280 section 4.1.2.5: both ends are part of the validity.
    if now < not_before:
        raise PkiError(
            f"{what} is valid from {when(not_before)} only, and this host's clock says {when(now)}"
        )
    if now > not_after:
        raise PkiError(f"{what} expired at {when(not_after)}, and this host's clock says {when(now)}")


def _context(pem: str, where: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise PkiError(f"{where} holds a certificate that cannot be read ({_said(error)})") from None
    return context


def _is_ca(pem: str, where: str) -> bool:
    return _context(pem, where).cert_store_stats()["x509_ca"] > 0


def _signs(pem: str) -> bool:
    """Whether the key usage has keyCertSign or cRLSign, which `ssl` does not tell."""
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        return False  # the handshake says what is wrong with it
    return any(bits[0] & 0x06 for bits in _KEY_USAGE.findall(der))


def _ca(pem: str, where: str) -> _Ca:
    # `get_ca_certs` lists CA certificates only.
    found = _context(pem, where).get_ca_certs()
    if not found:
        raise PkiError(f"{where} holds a certificate that is no CA's")
    fields: Any = found[0]
    names = [value for part in fields.get("subject", ()) for _, value in part]
    try:
        return _Ca(pem, names[-1] if names else "without a name", *_times(fields))
    except ValueError:
        raise PkiError(f"{where} holds a certificate whose times cannot be read") from None


def _end_of(ca: _Ca) -> int:
    return ca.not_after


def _times(fields: Any) -> tuple[int, int]:
    return _seconds(fields["notBefore"]), _seconds(fields["notAfter"])


def _seconds(text: str) -> int:
    """Unix seconds of a time as OpenSSL prints it, "Nov  9 18:20:35 2026 GMT". ValueError if it is none.

    `ssl.cert_time_to_seconds` would import strptime, calendar and locale, at every start of a sidecar.
    """
    month, day, clock, year, zone = text.split()
    if zone != "GMT":
        raise ValueError(text)
    date = datetime.date(int(year), _MONTHS.index(month) + 1, int(day))
    hours, minutes, seconds = map(int, clock.split(":"))
    return (date.toordinal() - _EPOCH) * 86400 + hours * 3600 + minutes * 60 + seconds


def _handshake(certificate: str, key: str, roots: str, labels: Labels) -> Any:
    """The certificate of one end as the other end verified it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _end(ssl.PROTOCOL_TLS_CLIENT, certificate, key, roots, labels).wrap_bio(to_client, to_server)
    server = _end(ssl.PROTOCOL_TLS_SERVER, certificate, key, roots, labels).wrap_bio(
        to_server, to_client, server_side=True
    )
    waiting = [client, server]
    try:
        for _ in range(_MAX_FLIGHTS):
            for end in tuple(waiting):
                try:
                    end.do_handshake()
                    waiting.remove(end)
                except ssl.SSLWantReadError:
                    pass
            if not waiting:
                return client.getpeercert()
    except ssl.SSLCertVerificationError as error:
        raise _NoPath(
            f"{labels.certificate} does not lead to {labels.bundle}: {error.verify_message}"
        ) from None
    except (ssl.SSLError, ValueError) as error:
        raise PkiError(f"{labels.certificate} cannot be used for TLS ({_said(error)})") from None
    raise PkiError(f"{labels.certificate} cannot be used for TLS (the handshake does not end)")


def _end(protocol: int, certificate: str, key: str, roots: str, labels: Labels) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME) | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=roots)
    encrypted = False

    def password() -> str:
        # Without this OpenSSL would ask on the terminal.
        nonlocal encrypted
        encrypted = True
        return ""

    # `load_cert_chain` takes paths only. Files in memory: what is judged is what is handed out, and the key
    # is not written anywhere.
    try:
        with _memory(certificate) as chain_path, _memory(key) as key_path:
            context.load_cert_chain(chain_path, key_path, password)
    except ssl.SSLError as error:
        if encrypted:
            raise PkiError(f"{labels.key} is encrypted; a sidecar needs it in the clear") from None
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise PkiError(f"{labels.key} is not the key of {labels.certificate}") from None
        raise PkiError(f"{labels.key} holds no private key that can be read ({_said(error)})") from None
    return context


@contextlib.contextmanager
def _memory(text: str) -> Iterator[str]:
    """The path of a file without a name that holds `text` while the block runs."""
    fd = os.memfd_create("fastmesh-identity")
    try:
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _svid(peer: Any, where: str) -> spiffe.SpiffeId:
    uris = [value for kind, value in peer.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise PkiError(
            f"the certificate in {where} is no X.509-SVID: it needs exactly one URI as subject "
            f"alternative name, it has {len(uris)}"
        )
    try:
        found = spiffe.parse(uris[0])
    except spiffe.SpiffeError as error:
        raise PkiError(f"the certificate in {where} is no X.509-SVID: {error}") from None
    if not found.path:
        raise PkiError(
            f"the certificate in {where} is no X.509-SVID: {found} names a trust domain, no workload"
        )
    return found


def _said(error: Exception) -> str:
    """What OpenSSL said: `[SSL] PEM lib (_ssl.c:3926)` without the places in the code."""
    text = getattr(error, "reason", None) or _PLACE.sub("", str(error)) or type(error).__name__
    return str(text).replace("_", " ").lower()
