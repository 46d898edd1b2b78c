"""TLS of the webhook: certificate and key from two files, new ones as soon as they are there.

With every handshake the files are looked at (two `stat`s: the API server keeps its connections, handshakes
are few). What has changed is loaded and used from this handshake on; if it cannot be loaded, because one of
the two files is not the new one yet, what is in use stays.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from fastmesh.certs.errors import PkiError


class Files:
    """A certificate with its issuers, and its key. `say` gets a line when what is in use should change."""

    def __init__(self, certificate: Path, key: Path, say: Callable[[str], None]) -> None:
        """Raises PkiError."""
        self._certificate = certificate
        self._key = key
        self._say = say
        self._seen = self._print()
        self._current = self._load()
        # One context is all that a server takes: it hands each handshake over to the current one.
        self.context = self._load()
        self.context.sni_callback = self._choose

    def _choose(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        seen = self._print()
        if seen != self._seen:
            self._seen = seen
            try:
                self._current = self._load()
                self._say("new certificate in use")
            except PkiError as error:
                self._say(f"warning: the certificate has changed and cannot be used: {error}")
        connection.context = self._current

    def _print(self) -> tuple[object, ...]:
        """What tells one version of the files from another."""
        found: list[object] = []
        for path in (self._certificate, self._key):
            try:
                status = path.stat()
            except OSError as error:
                found.append(error.errno)
            else:
                found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        for path in (self._certificate, self._key):
            try:
                path.open("rb").close()
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise PkiError(f"{path} cannot be read: {why}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without a passphrase OpenSSL would ask the terminal.
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise PkiError(
                f"{self._certificate} and {self._key} are not a certificate and its key in PEM ({reason})",
                "expected both, the key without a passphrase",
            ) from None
        return context
