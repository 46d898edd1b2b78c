"""From a configuration and the options of `fastmesh run` to a plan: which listeners the command will meet."""

from __future__ import annotations

import os
from typing import Final

from fastmesh.config.loader import Loaded
from fastmesh.config.schema import Listener
from fastmesh.host.launch.plan import Plan

# Applications differ in which spelling they look at.
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_EXCEPT: Final = ("no_proxy", "NO_PROXY")
_OWN: Final = ("localhost", "127.0.0.1", "::1")
_LOOPBACK: Final = {"127.0.0.1": "127.0.0.1", "::1": "::1", "localhost": "127.0.0.1"}
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class NotPossible(Exception):
    """The configuration has not what the options need; the text says what."""


def make_plan(
    loaded: Loaded,
    command: list[str],
    workload: str | None,
    *,
    isolate: bool,
    explicit: bool,
    timeout_s: float,
) -> Plan:
    """Raises NotPossible."""
    return Plan(
        command=command,
        config=str(loaded.path),
        workload=workload or loaded.config.workload,
        mode="isolate" if isolate else "explicit" if explicit else "cgroup",
        proxied=explicit,
        timeout_s=timeout_s,
        environment=_proxies(loaded) if explicit else {},
        inside=_inside(loaded) if isolate else [],
        published=_published(loaded) if isolate else [],
        names=_names(loaded) if isolate else None,
    )


def _inside(loaded: Loaded) -> list[tuple[str, str, int]]:
    """What the command may connect to: the outbound listeners."""
    found = []
    for listener in loaded.config.listeners:
        if listener.role == "outbound" and listener.bind.path is None:
            if not listener.bind.port:
                raise NotPossible(f"--isolate needs a fixed port for listener {listener.name}, not port 0")
            found.append((listener.name, listener.bind.host, listener.bind.port))
    if not found:
        raise NotPossible(
            "--isolate needs a listener with `role: outbound` on an address with a port: it is the command's "
            "only way out"
        )
    intercept = loaded.config.intercept
    if intercept is not None and intercept.method != "redirect":
        raise NotPossible(
            "--isolate goes with `intercept.method: redirect` alone: tproxy shows the application the "
            "addresses of its callers, and here they come through the gate, on loopback; write "
            "`method: redirect`"
        )
    return found


def _names(loaded: Loaded) -> tuple[str, int] | None:
    """Where the command asks for names: the sidecar's resolver, if it has one."""
    if loaded.config.dns is None:
        return None
    listen = loaded.config.dns.listen
    host = _LOOPBACK.get(str(listen.host), str(listen.host))
    if host != "::1" and not host.startswith("127."):
        raise NotPossible(
            f"--isolate needs `dns.listen` on loopback, such as 127.0.0.1:{listen.port}: the command has no "
            f"address {host}"
        )
    return host, listen.port


def _published(loaded: Loaded) -> list[tuple[str, int]]:
    """The loopback addresses at which inbound listeners look for the application."""
    config = loaded.config
    found: dict[tuple[str, int], None] = {}
    for listener in config.listeners:
        if listener.role != "inbound":
            continue
        if listener.to is not None:
            for endpoint in config.services[listener.to].endpoints:
                address = endpoint.address
                if address.path is None and address.port and address.host in _LOOPBACK:
                    found[_LOOPBACK[address.host], address.port] = None
        if listener.transparent and config.intercept is not None and config.intercept.inbound is not None:
            host = "::1" if ":" in listener.bind.host else "127.0.0.1"
            found |= dict.fromkeys((host, port) for port in config.intercept.inbound.ports)
    return list(found)


def _proxies(loaded: Loaded) -> dict[str, str]:
    """The variables by which programs find their proxy: the first outbound listener that goes by Host."""
    for listener in loaded.config.listeners:
        if listener.role == "outbound" and _serves_by_name(listener):
            return dict.fromkeys(_PROXIES, _url(listener)) | dict.fromkeys(_EXCEPT, _exceptions())
    raise NotPossible(
        "--explicit needs a listener with `role: outbound` on an address with a port, without `to`, TLS or "
        "`protocol: tcp`: it is the proxy that the command is told of"
    )


def _serves_by_name(listener: Listener) -> bool:
    bind = listener.bind
    return (
        bind.path is None
        and bool(bind.port)
        and listener.to is None
        and listener.tls is None
        and listener.protocol != "tcp"
        and not listener.transparent
    )


def _url(listener: Listener) -> str:
    host = _ANY.get(str(listener.bind.host), str(listener.bind.host))
    return f"http://[{host}]:{listener.bind.port}" if ":" in host else f"http://{host}:{listener.bind.port}"


def _exceptions() -> str:
    """The command's own addresses, and what it was not to use a proxy for anyway."""
    given = [part for name in _EXCEPT for part in os.environ.get(name, "").split(",") if part.strip()]
    return ",".join(dict.fromkeys([*_OWN, *(part.strip() for part in given)]))
