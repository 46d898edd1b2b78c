"""The files of ordinary TLS: read, and judged by what the workers will judge them by, each error at its line.

A block of the snapshot has `files`, as the configuration names them, and what is read from them: so that
those of one listener or service can be read again when they change (`again`), without the configuration. A
file that is not right keeps what is in use.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from fastmesh.certs import files
from fastmesh.certs.errors import PkiError, reason
from fastmesh.config.errors import ConfigError, shown
from fastmesh.config.roles import leading_to, listener_alpn, service_alpn
from fastmesh.host.parts import BLOCKS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fastmesh.config.loader import Loaded
    from fastmesh.config.positions import Where
    from fastmesh.config.schema import Config, Listener, Service

    # Takes which of the files it is, and what is wrong.
    Complain = Callable[[str, str], None]

ROOTS: Final = ("ca", "client_ca")


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
                self._block((*where, "certificates", index), certificate=one.certificate, key=one.key)
                for index, one in enumerate(tls.certificates or ())
            ],
            "tls_settings": {
                **self._block(where, client_ca=tls.client_ca),
                "alpn": listener_alpn(listener),
                "min_version": tls.min_version,
            },
        }

    def service(self, config: Config, name: str, service: Service, where: Where) -> dict[str, Any]:
        tls = service.tls
        if tls is None or tls.mode is not None:
            return {}
        return {
            "tls_context": {
                "server_name": tls.server_name,
                **self._block((*where, "tls"), ca=tls.ca, certificate=tls.certificate, key=tls.key),
                "alpn": service_alpn(service, leading_to(config.listeners, name)),
                "min_version": tls.min_version,
            }
        }

    def _block(self, where: Where, **named: str | None) -> dict[str, Any]:
        def complain(which: str, message: str) -> None:
            place = self.loaded.positions.of((*where, which))
            self.errors.append(ConfigError(self.loaded.name, *place, f"{which}: {message}"))

        found = {which: path for which, path in named.items() if path is not None}
        return {"files": found, **_read(found, self.loaded.path.parent, complain)}


def again(owner: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """The blocks of a listener or a service of a snapshot, with what their files hold now; their paths begin
    at `home`. Raises PkiError with all that is wrong."""
    wrong: list[str] = []

    def anew(block: Mapping[str, Any]) -> dict[str, Any]:
        named = block["files"]

        def complain(which: str, message: str) -> None:
            wrong.append(f"{which} {shown(named[which])}: {message}")

        return {**block, **_read(named, home, complain)}

    new = {
        key: anew(owner[key]) if isinstance(owner[key], dict) else [anew(block) for block in owner[key]]
        for key in BLOCKS
        if key in owner
    }
    if wrong:
        raise PkiError("; ".join(wrong))
    return new


def _read(named: Mapping[str, str], home: Path, complain: Complain) -> dict[str, Any]:
    """What the files of one block hold."""
    texts = {which: _text(path, home, which, complain) for which, path in named.items()}
    found: dict[str, Any] = {which: texts[which] for which in ROOTS if texts.get(which) is not None}
    for which, text in found.items():
        _judge_roots(text, which, complain)
    certificate, key = texts.get("certificate"), texts.get("key")
    if certificate is not None and key is not None:
        begin, end = _judge_pair(certificate, key, named["certificate"], complain)
        found |= {"certificate": certificate, "key": key, "not_before": begin, "not_after": end}
    return found


def _judge_pair(certificate: str, key: str, name: str, complain: Complain) -> tuple[int, int]:
    """When the certificate begins and ends."""
    from fastmesh._core import certificate_times, tls_material_error

    error = tls_material_error(certificate, key, None)
    if error is not None:
        which = "key" if "key" in error else "certificate"
        complain(which, f"{error}, expected PEM of a certificate and its key")
        return 0, 0
    begin, end = certificate_times(certificate)
    now = time.time()
    if not begin <= now < end:
        when = f"ended {_day(end)}" if now >= end else f"begins {_day(begin)} only"
        complain("certificate", f"the certificate {shown(name)} {when}, expected one that is valid now")
    return begin, end


def _judge_roots(text: str, which: str, complain: Complain) -> None:
    from fastmesh._core import tls_material_error

    if (error := tls_material_error(None, None, text)) is not None:
        complain(which, f"{error}, expected PEM of the certificates to trust")


def _text(path: str, home: Path, which: str, complain: Complain) -> str | None:
    """What workers get of a file: all of a key's, of others the certificates, which everybody may see."""
    try:
        text = files.read_pem(home / path)
    except (PkiError, OSError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        complain(which, f"{shown(path)} cannot be read ({why}), expected a PEM file")
        return None
    if which == "key":
        return text
    public = files.certificates_in(text)
    if public and files.is_cut_off(text):
        complain(which, f"{shown(path)} is cut off, expected a whole PEM file")
        return None
    return public


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
