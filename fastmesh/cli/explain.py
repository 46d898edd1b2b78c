"""`fastmesh explain`: what would become of a request, asked of the engine that serves requests.

The configuration becomes a snapshot, as for `serve` but without certificates and sockets, and a worker of the
data plane that never runs decides: parser, routing, path normalisation and rules are the real ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from fastmesh.certs import spiffe
from fastmesh.cli import EXIT_CONFIG, EXIT_FAILURE
from fastmesh.config import ConfigErrors, find_config, load, make_snapshot

TCP = "TCP"


@click.command()
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="The file; without it fastmesh.yaml here, then /etc/fastmesh/fastmesh.yaml.",
)
@click.option(
    "--from",
    "caller",
    metavar="WORKLOAD",
    help="Who calls: a workload name or a SPIFFE ID. Left out: somebody without an identity.",
)
@click.option("--source", default="127.0.0.1", show_default=True, help="The caller's IP address.")
@click.option(
    "--listener", "name", help="The listener that is called. Left out: the one that fits the caller."
)
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.argument("method")
@click.argument("url")
def command(file: Path | None, method: str, url: str, as_json: bool, **options: Any) -> None:
    """Say what would become of a request, and why: listener, identity, path, rule, service, endpoints.

    METHOD and URL are the request, such as GET http://svc-b/path; TCP tcp://any is an opaque connection.

    Exits with 0 if it would be allowed, with 1 if it would be refused.
    """
    try:
        loaded = load(find_config(file))
        snapshot = make_snapshot(loaded, identity=False)
    except ConfigErrors as errors:
        click.echo(str(errors), err=True)
        sys.exit(EXIT_CONFIG)
    result = explain(snapshot, method, url, **options)
    click.echo(json.dumps(result, indent=2) if as_json else told(result))
    sys.exit(0 if result["allowed"] else EXIT_FAILURE)


def explain(
    snapshot: dict[str, Any],
    method: str,
    url: str,
    *,
    caller: str | None,
    source: str,
    name: str | None,
    headers: tuple[str, ...],
) -> dict[str, Any]:
    """What would become of the request, as data. Raises `click.UsageError` for what is no request."""
    own = f"spiffe://{snapshot['trust_domain']}/{snapshot['workload']}"
    identity = _identity(snapshot, caller)
    listener = _listener(snapshot, name, identity, own, opaque=method == TCP)
    unix = listener["bind"].get("path") is not None
    shown = identity if listener["tls"] != "none" else None
    result: dict[str, Any] = {
        "listener": listener["name"],
        "role": listener["role"],
        "bind": _bind(listener["bind"]),
        "tls": listener["tls"],
        "caller": caller,
        "identity": shown,
        "request": f"{method} {url}",
    }
    head = b"" if method == TCP else _head(method, url, headers)
    if listener["tls"] == "mesh" and identity is None:
        return result | {"allowed": False, "reason": "tls_no_certificate", "service": None, "endpoints": []}
    try:
        answer: dict[str, Any] = _worker(snapshot).explain(
            listener["name"], head, shown, None if unix else source, listener["bind"]["port"]
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return result | answer | {"allowed": answer["reason"] is None}


def _worker(snapshot: dict[str, Any]) -> Any:
    """A worker of the data plane with this snapshot; TLS, which has no part in what it decides, left out."""
    from fastmesh._core import Area, Worker

    plain = {
        **snapshot,
        "listeners": [{**one, "tls": "none"} for one in snapshot["listeners"]],
        "services": [{**one, "tls": "none"} for one in snapshot["services"]],
    }
    worker = Worker(Area.create(1), 0)
    worker.load(json.dumps(plain).encode())
    return worker


def _identity(snapshot: dict[str, Any], caller: str | None) -> str | None:
    if caller is None or caller == "unauthenticated":
        return None
    try:
        if caller.startswith("spiffe:"):
            spiffe.parse(caller)
            return caller
        return f"spiffe://{snapshot['trust_domain']}/{spiffe.workload(caller)}"
    except spiffe.SpiffeError as error:
        raise click.BadParameter(str(error), param_hint="--from") from None


def _listener(
    snapshot: dict[str, Any], name: str | None, identity: str | None, own: str, opaque: bool
) -> dict[str, Any]:
    """The listener that is called: as named, or the first that fits who calls."""
    listeners: list[dict[str, Any]] = snapshot["listeners"]
    if name is not None:
        for one in listeners:
            if one["name"] == name:
                return one
        known = ", ".join(one["name"] for one in listeners)
        raise click.BadParameter(f"{name!r}, expected one of {known}", param_hint="--listener")
    if identity == own:  # the application beside this sidecar
        roles = ("outbound", "edge", "inbound")
    elif identity is not None:
        roles = ("inbound", "edge", "outbound")
    else:
        roles = ("edge", "outbound", "inbound")
    fitting = [one for one in listeners if (one["protocol"] == "tcp") == opaque] or listeners
    return min(fitting, key=lambda one: roles.index(one["role"]))


def _head(method: str, url: str, headers: tuple[str, ...]) -> bytes:
    """The request as a client sends it: nothing of the path is cleaned up."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.BadParameter(f"{url!r}, expected http://HOST/PATH", param_hint="URL")
    target = url.partition("#")[0].split("://", 1)[1].removeprefix(parts.netloc)
    if method == "CONNECT":
        target = parts.netloc
    elif not target.startswith("/"):
        target = f"/{target}"
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
    for header in headers:
        field, colon, value = header.partition(":")
        if not colon:
            raise click.BadParameter(f"{header!r}, expected 'name: value'", param_hint="-H")
        lines.append(f"{field}: {value.strip()}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def _bind(bind: dict[str, Any]) -> str:
    if bind.get("path") is not None:
        return f"unix:{bind['path']}"
    host = f"[{bind['host']}]" if ":" in bind["host"] else bind["host"]
    return f"{host}:{bind['port']}"


def told(result: dict[str, Any]) -> str:
    """The result for people."""
    rows = [
        ("listener", f"{result['listener']} ({result['role']}, {result['bind']}, tls: {result['tls']})"),
        ("identity", result["identity"] or _nobody(result)),
        ("request", result["request"]),
    ]
    if result.get("path") is not None:
        rows.append(("path", result["path"]))
    if "decision" in result:
        rows.append(("rule", _rule(result)))
    rows.append(("service", result["service"] or "none"))
    if result["allowed"]:
        rows.append(("endpoints", ", ".join(result["endpoints"])))
    rows.append(("result", "allowed" if result["allowed"] else f"refused: {_refusal(result['reason'])}"))
    return "\n".join(f"{key:<11}{value}" for key, value in rows)


def _nobody(result: dict[str, Any]) -> str:
    if result["caller"] is not None and result["tls"] == "none":
        return "none (plaintext: callers of this listener show no certificate)"
    return "none"


def _rule(result: dict[str, Any]) -> str:
    if result["decision"] is None:
        return "none (neither the listener nor the service has rules)"
    who = f"the {result['rules_of']}'s rules"
    said = "no rule holds" if result["rule"] == "default" else f"rule {result['rule']}"
    audit = " (only audited: it passes)" if result["audit"] else ""
    return f"{result['decision']} by {who}: {said}{audit}"


def _refusal(reason: str) -> str:
    from fastmesh._core import REASONS

    status, text = next((status, text) for name, _, status, text in REASONS if name == reason)
    return f"{status} {reason} ({text})" if status else f"{reason} ({text})"
