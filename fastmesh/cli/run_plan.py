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
        inside=[],
        published=[],
    )


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
        and not getattr(listener, "transparent", False)
    )


def _url(listener: Listener) -> str:
    host = _ANY.get(str(listener.bind.host), str(listener.bind.host))
    return f"http://[{host}]:{listener.bind.port}" if ":" in host else f"http://{host}:{listener.bind.port}"


def _exceptions() -> str:
    """The command's own addresses, and what it was not to use a proxy for anyway."""
    given = [part for name in _EXCEPT for part in os.environ.get(name, "").split(",") if part.strip()]
    return ",".join(dict.fromkeys([*_OWN, *(part.strip() for part in given)]))
