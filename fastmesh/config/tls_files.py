"""The files of ordinary TLS: read, and judged by what the workers will judge them by, each error at its line.

They are read anew with every load of the configuration, so that SIGHUP takes over what has changed; a file
that is not right keeps the configuration in use.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from fastmesh.config.errors import ConfigError, shown
from fastmesh.config.roles import http_only, leading_to

if TYPE_CHECKING:
    from fastmesh.config.loader import Loaded
    from fastmesh.config.positions import Where
    from fastmesh.config.schema import Certificate, Config, Listener, ListenerTls, Service, ServiceTls

MAX_FILE: Final = 4 << 20


class TlsFiles:
    """Reads what the settings name; what is wrong is in `errors`."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.errors: list[ConfigError] = []

    def listener(self, config: Config, listener: Listener, where: Where) -> dict[str, Any]:
        """The keys of a listener's snapshot that are about TLS by names."""
        tls = listener.tls
        if tls is None or tls.mode is not None:
            return {}
        where = (*where, "tls")
        return {
            "tls_contexts": [
                self._pair(one, (*where, "certificates", index))
                for index, one in enumerate(tls.certificates or ())
            ],
            "tls_settings": {
                "client_ca": self._roots(tls.client_ca, (*where, "client_ca")),
                **_protocol(tls, http_only([listener])),
            },
        }

    def service(self, config: Config, name: str, service: Service, where: Where) -> dict[str, Any]:
        tls = service.tls
        if tls is None or tls.mode is not None:
            return {}
        where = (*where, "tls")
        pair: dict[str, str] = {}
        if tls.certificate is not None:
            pair = self._pair(tls, where)
        return {
            "tls_context": {
                "server_name": tls.server_name,
                "ca": self._roots(tls.ca, (*where, "ca")),
                **pair,
                **_protocol(tls, http_only(leading_to(config.listeners, name))),
            }
        }

    def _pair(self, pair: Certificate | ServiceTls, where: Where) -> dict[str, str]:
        from fastmesh._core import certificate_times, tls_material_error

        assert pair.certificate is not None and pair.key is not None  # checks.py
        at, key_at = (*where, "certificate"), (*where, "key")
        certificate, key = self._read(pair.certificate, at), self._read(pair.key, key_at)
        if certificate is None or key is None:
            return {}
        error = tls_material_error(certificate, key, None)
        if error is not None:
            self._error(
                key_at if "key" in error else at, f"{error}, expected PEM of a certificate and its key"
            )
            return {}
        begin, end = certificate_times(certificate)
        now = time.time()
        if not begin <= now < end:
            when = f"ended {_day(end)}" if now >= end else f"begins {_day(begin)} only"
            self._error(
                at, f"the certificate {shown(pair.certificate)} {when}, expected one that is valid now"
            )
        return {"certificate": certificate, "key": key}

    def _roots(self, path: str | None, where: Where) -> str | None:
        if path is None:
            return None
        from fastmesh._core import tls_material_error

        text = self._read(path, where)
        if text is not None and (error := tls_material_error(None, None, text)) is not None:
            self._error(where, f"{error}, expected PEM of the certificates to trust")
        return text

    def _read(self, path: str, where: Where) -> str | None:
        try:
            with (self.loaded.path.parent / path).open("rb") as file:
                data = file.read(MAX_FILE + 1)
            if len(data) > MAX_FILE:
                raise OSError(0, f"larger than {MAX_FILE >> 20}MiB")
            return data.decode("ascii", "replace").replace("\0", "\ufffd")
        except OSError as error:
            what = f"{shown(path)} cannot be read ({error.strerror or error})"
            self._error(where, f"{what}, expected a PEM file")
        return None

    def _error(self, where: Where, message: str) -> None:
        place = self.loaded.positions.of(where)
        self.errors.append(ConfigError(self.loaded.name, *place, f"{where[-1]}: {message}"))


def _protocol(tls: ListenerTls | ServiceTls, http: bool) -> dict[str, Any]:
    alpn = tls.alpn if tls.alpn is not None else ["http/1.1"] if http else []
    return {"alpn": list(alpn), "min_version": tls.min_version}


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
