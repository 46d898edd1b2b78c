"""`fastmesh explain`: what would become of a request, asked of the engine that serves requests.

The configuration becomes a snapshot, as for `serve` but without certificates and sockets, and a worker of the
data plane that never runs decides: detection of the protocol, parser, routing, path normalisation and rules
are the real ones. Only TLS that ends at the listener is told here: what a caller must show, not what its
certificate is worth.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import click

from fastmesh.certs import spiffe
from fastmesh.cli import EXIT_CONFIG, EXIT_FAILURE
from fastmesh.cli.parameters import config_option
from fastmesh.config import ConfigErrors, find_config, load, make_snapshot
from fastmesh.config.roles import leading_to, service_alpn
from fastmesh.config.transparent import PASSTHROUGH

TCP: Final = "TCP"
# The schemes of what is asked, and which of them say that the caller speaks TLS.
SCHEMES: Final = {"http": False, "https": True, "tcp": False, "tls": True}
# A byte that neither HTTP nor TLS begins with.
OPAQUE: Final = b"\0"
# Listeners that end TLS with an identity in it.
_MESH: Final = ("mesh", "permissive")


@click.command()
@config_option
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

    METHOD and URL are the request, such as GET http://svc-b/path; TCP tcp://any is an opaque connection. A
    caller without identity speaks TLS with https:// (TCP tls://NAME for other protocols in it); one with an
    identity proves it to every listener that asks for one.

    Exits with 0 if it would be allowed, with 1 if it would be refused.
    """
    try:
        loaded = load(find_config(file))
        snapshot = make_snapshot(loaded, identity=False)
    except ConfigErrors as errors:
        click.echo(str(errors), err=True)
        sys.exit(EXIT_CONFIG)
    demanding = [one.name for one in loaded.config.listeners if one.tls and one.tls.client_ca]
    config = loaded.config
    alpn = {
        name: service_alpn(one, leading_to(config.listeners, name)) for name, one in config.services.items()
    }
    result = explain(snapshot, method, url, client_ca=demanding, alpn=alpn, **options)
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
    client_ca: Collection[str] = (),
    alpn: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """What would become of the request, as data. `client_ca`: the listeners that want certificates of an
    authority of their own, which a `caller` is taken to have; `alpn`: what services with ordinary TLS are
    offered. Raises `click.UsageError` for what is no request."""
    own = f"spiffe://{snapshot['trust_domain']}/{snapshot['workload']}"
    identity = _identity(snapshot, caller)
    parts = _parts(method, url)
    secure = SCHEMES[parts.scheme]
    listener = _listener(snapshot, name, identity, own, opaque=method == TCP, secure=secure)
    unix = listener["bind"].get("path") is not None
    shown = identity if listener["tls"] in _MESH else None
    result: dict[str, Any] = {
        "listener": listener["name"],
        "role": listener["role"],
        "bind": _bind(listener["bind"]),
        "tls": listener["tls"],
        "caller": caller,
        "identity": shown,
        "request": f"{method} {url}",
    }
    data = OPAQUE if method == TCP else _head(method, url, parts.netloc, headers)
    refused = _handshake(listener["tls"], secure, identity, listener["name"] in client_ca)
    if refused is not None:
        nothing: dict[str, Any] = {"protocol": None, "service": None, "endpoints": [], "speaks": []}
        return result | nothing | {"reason": refused, "allowed": False}
    if secure and listener["tls"] in ("none", "passthrough"):
        data = _hello(parts.hostname or "")
    wanted = _destination(snapshot, listener, parts)
    answer: dict[str, Any] = _worker(snapshot).explain(
        listener["name"], data, shown, None if unix else _address(source), listener["bind"]["port"], wanted
    )
    if answer["service"] == PASSTHROUGH and wanted is not None:
        answer["endpoints"] = [_bind({"host": wanted[0], "port": wanted[1]})]
    speaks: list[str] = []
    if answer["protocol"] == "http" and answer["reason"] is None:
        (service,) = [one for one in snapshot["services"] if one["name"] == answer["service"]]
        grpc = _is_grpc(headers, listener["grpc_web"])
        speaks = _spoken(service, (alpn or {}).get(service["name"], []), grpc)
    return result | answer | {"speaks": speaks, "allowed": answer["reason"] is None}


def _is_grpc(headers: tuple[str, ...], grpc_web: bool) -> bool:
    """Whether the request arrives at the service as gRPC."""
    for header in headers:
        name, _, value = header.partition(":")
        kind = value.partition(";")[0].strip().lower().partition("+")[0]
        if name.lower() == "content-type":
            return kind == "application/grpc" or (
                grpc_web and kind in ("application/grpc-web", "application/grpc-web-text")
            )
    return False


def _spoken(service: dict[str, Any], alpn: list[str], grpc: bool) -> list[str]:
    """What an endpoint of the service is spoken to in, by the names of ALPN; with two it has the choice."""
    if service["protocol"] not in ("auto", "tcp"):
        return ["http/1.1" if service["protocol"] == "http1" else "h2"]
    if service["tls"] == "none":
        return ["h2" if grpc else "http/1.1"]
    return ["h2", "http/1.1"] if service["tls"] == "mesh" else alpn or ["http/1.1"]


def _handshake(tls: str, secure: bool, identity: str | None, demanding: bool) -> str | None:
    """Why the listener does not let the caller in, before anything is asked; None: it does."""
    mesh = tls in _MESH
    if (mesh and identity is not None) or tls in ("none", "passthrough"):
        return None
    if not secure:
        return None if tls == "permissive" else "tls_not_tls"
    return "tls_no_certificate" if mesh or (demanding and identity is None) else None


def _hello(host: str) -> bytes:
    """What a TLS client sends first to a server of that name; addresses are no names (RFC 6066 3)."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    name: str | None = host
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        name = None
    sent = ssl.MemoryBIO()
    try:
        client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    except ValueError:
        raise click.BadParameter(f"{host!r} is no host name", param_hint="URL") from None
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def _address(source: str) -> str:
    """An address as the data plane sees it: an IPv4 address in an IPv6 one is what it is."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        raise click.BadParameter(f"{source!r} is no IP address", param_hint="--source") from None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _worker(snapshot: dict[str, Any]) -> Any:
    """A worker of the data plane with this snapshot; TLS that ends at it, which has no part in what it
    decides, left out."""
    from fastmesh._core import Area, Worker

    plain = {
        **snapshot,
        "listeners": [
            {**one, "tls": one["tls"] if one["tls"] == "passthrough" else "none"}
            for one in snapshot["listeners"]
        ],
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
    snapshot: dict[str, Any],
    name: str | None,
    identity: str | None,
    own: str,
    *,
    opaque: bool,
    secure: bool,
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
    fitting = [
        one for one in listeners if one["tls"] == "passthrough" or (one["protocol"] == "tcp") == opaque
    ] or listeners
    secure = secure or identity not in (None, own)
    return min(fitting, key=lambda one: (roles.index(one["role"]), (one["tls"] != "none") != secure))


def _parts(method: str, url: str) -> SplitResult:
    """The scheme, and where the request goes."""
    wanted = ("tcp", "tls") if method == TCP else ("http", "https")
    try:
        parts = urlsplit(url)
        if parts.scheme in wanted and parts.netloc:
            return parts
    except ValueError:
        pass
    raise click.BadParameter(f"{url!r}, expected {wanted[0]}://HOST or {wanted[1]}://HOST", param_hint="URL")


def _head(method: str, url: str, netloc: str, headers: tuple[str, ...]) -> bytes:
    """The request as a client sends it: nothing of the path is cleaned up."""
    target = url.partition("#")[0].split("://", 1)[1].removeprefix(netloc)
    if method == "CONNECT":
        target = netloc
    elif not target.startswith("/"):
        target = f"/{target}"
    fields = []
    for header in headers:
        field, colon, value = header.partition(":")
        if not colon:
            raise click.BadParameter(f"{header!r}, expected 'name: value'", param_hint="-H")
        fields.append((field, value.strip()))
    if all(field.lower() != "host" for field, _ in fields):
        fields.insert(0, ("Host", netloc))
    lines = [f"{method} {target} HTTP/1.1", *(f"{field}: {value}" for field, value in fields), ""]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _destination(
    snapshot: dict[str, Any], listener: dict[str, Any], parts: SplitResult
) -> tuple[str, int] | None:
    """Where the client of a transparent listener wants to go: an address of the URL, or of the service that
    the URL names. None: to the listener itself."""
    if not listener.get("transparent"):
        return None
    host = parts.hostname or ""
    port = parts.port or (443 if SCHEMES[parts.scheme] else 80)
    if listener["role"] == "inbound" and port == listener["bind"]["port"]:
        return None
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host)), port
    if listener["role"] == "inbound":
        return "127.0.0.1", port  # only the port counts
    for service in snapshot["services"]:
        if service["name"] == host:
            for one in (*service.get("addresses", ()), *service["endpoints"]):
                if one["family"] != "unix" and (parts.port is None or one["port"] in (0, parts.port)):
                    return one["host"], one["port"] or port
    what = f"{host!r} is neither an IP address nor a service with the address that is dialled"
    raise click.BadParameter(f"{what}: a transparent listener knows destinations", param_hint="URL")


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
    if result["protocol"] == "opaque":
        rows.append(("protocol", "opaque bytes: what rules say of requests does not hold"))
    if result.get("path") is not None:
        rows.append(("path", result["path"]))
    if "decision" in result:
        rows.append(("rule", _rule(result)))
    rows.append(("service", result["service"] or "none"))
    if result["allowed"]:
        rows.append(("endpoints", ", ".join(result["endpoints"])))
    if result["speaks"]:
        one, *other = ("HTTP/2" if protocol == "h2" else "HTTP/1.1" for protocol in result["speaks"])
        rows.append(("upstream", f"{one}, or {other[0]} by the endpoint's choice" if other else one))
    rows.append(("result", "allowed" if result["allowed"] else f"refused: {_refusal(result)}"))
    return "\n".join(f"{key:<11}{value}" for key, value in rows)


def _nobody(result: dict[str, Any]) -> str:
    if result["caller"] is None or result["tls"] in _MESH:
        return "none"
    why = {
        "none": "plaintext: callers of this listener show no certificate",
        "terminate": "certificates that are shown here give none",
        "passthrough": "TLS passes through unopened",
    }
    return f"none ({why[result['tls']]})"


def _rule(result: dict[str, Any]) -> str:
    if result["decision"] is None:
        return "none (neither the listener nor the service has rules)"
    who = f"the {result['rules_of']}'s rules"
    said = "no rule holds" if result["rule"] == "default" else f"rule {result['rule']}"
    audit = " (only audited: it passes)" if result["audit"] else ""
    return f"{result['decision']} by {who}: {said}{audit}"


def _refusal(result: dict[str, Any]) -> str:
    from fastmesh._core import REASONS

    reason = result["reason"]
    status, text = next((status, text) for name, _, status, text, _ in REASONS if name == reason)
    # Opaque connections are closed: there is nobody to read a status.
    shown = f"{status} " if status and result["protocol"] == "http" else ""
    return f"{shown}{reason} ({text})"
