"""The kinds of scalar a setting can be: how its text is read, what is expected, how it is shown.

A kind turns the text of one YAML scalar into a value, or raises `ValueError` with "what was found,
what was expected". Every pattern is matched with `fullmatch` (a `$` would accept a trailing newline).
Durations are milliseconds, percents fractions, sizes bytes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from fastmesh.certs import spiffe
from fastmesh.config.errors import nearest, shown

MAX_DURATION_MS: Final = 30 * 24 * 3600 * 1000  # below 2**32, so that the core can hold it in 32 bits
MAX_UNIX_PATH: Final = 107  # sun_path of sockaddr_un without its NUL


class Kind(msgspec.Struct, frozen=True):
    """A kind of scalar. `pattern` is what an editor can check (JSON Schema); `parse` is what counts.
    `numbers`: the range in which it may be written as a number, which an editor tells from text.
    """

    name: str
    expected: str
    parse: Callable[[str], Any]
    pattern: str | None = None
    show: Callable[[Any], str] = str  # the text that `parse` reads as this value
    numbers: tuple[int, int] | None = None


class Address(msgspec.Struct, frozen=True):
    """Where to listen or to connect: host and port, or the path of a Unix socket (`host` is then empty).

    `keeps_port`: an endpoint that is connected to on the port that the client wanted.
    """

    host: str = ""
    port: int = 0
    path: str | None = None
    keeps_port: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        if self.keeps_port:
            return f"[{self.host}]" if ":" in self.host else self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# -- durations, sizes, percents ---------------------------------------------------------------------

_DURATION_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION_PART: Final = re.compile(r"([0-9]{1,10})(ms|s|m|h|d)")
_DURATION: Final = r"([0-9]{1,10}d)?([0-9]{1,10}h)?([0-9]{1,10}m)?([0-9]{1,10}s)?([0-9]{1,10}ms)?"
_DURATION_EXPECTED: Final = "a duration such as 250ms, 10s or 1m30s"
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")


def parse_duration(text: str) -> int:
    """`1m30s` as milliseconds. Units d, h, m, s, ms, each at most once and in this order."""
    if _NUMBER.fullmatch(text):
        raise ValueError(f"{shown(text)} has no unit, expected {_DURATION_EXPECTED}")
    if not text or re.fullmatch(_DURATION, text) is None:
        raise ValueError(f"{shown(text)} is not a duration, expected {_DURATION_EXPECTED}")
    total = sum(int(n) * _DURATION_UNITS[unit] for n, unit in _DURATION_PART.findall(text))
    if total > MAX_DURATION_MS:
        raise ValueError(f"{shown(text)} is too long, expected at most {format_duration(MAX_DURATION_MS)}")
    return total


def format_duration(milliseconds: int) -> str:
    """The text that `parse_duration` reads as this many milliseconds."""
    text, rest = "", milliseconds
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, _DURATION_UNITS[unit])
        if count:
            text += f"{count}{unit}"
    return text or "0s"


_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")
_PERCENT_EXPECTED: Final = "a percentage from 0% to 100%, such as 1% or 0.5%"


def parse_percent(text: str) -> float:
    """`1%` as the fraction 0.01."""
    match = _PERCENT.fullmatch(text)
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{shown(text)} is not a percentage, expected {_PERCENT_EXPECTED}")
    return float(match[1]) / 100


def format_percent(fraction: float) -> str:
    """The text that `parse_percent` reads as this fraction."""
    return f"{fraction * 100:.6g}%"


# -- names ------------------------------------------------------------------------------------------

# No IPv4 address either, as `spiffe.workload` says.
_DNS_NAME: Final = (
    r"(?![0-9]+(\.[0-9]+)+$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
_SERVICE_RULE: Final = (
    "a DNS name: a-z, 0-9 and dashes inside, in parts of at most 63 characters between dots"
)
_LISTENER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def parse_service_name(text: str) -> str:
    """A service is called by its name; with `tls: mesh` it is the name of the workload that must answer."""
    try:
        return spiffe.workload(text)
    except spiffe.SpiffeError:
        raise ValueError(f"{shown(text)} is not a service name, expected {_SERVICE_RULE}") from None


def parse_listener_name(text: str) -> str:
    """A listener's name is a label of metrics and logs, nothing else."""
    if _LISTENER.fullmatch(text):
        return text
    rule = "letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit"
    raise ValueError(f"{shown(text)} is not a listener name, expected {rule}")


# -- addresses --------------------------------------------------------------------------------------

_PORT: Final = re.compile(r"[0-9]{1,5}")
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(?:\.[A-Za-z0-9_-]{1,63})*\.?"
)
# What inet_aton(3), and with it the resolver, takes for an IPv4 address: 127.1, 010.0.0.1, 0x7f000001.
_NUMERIC: Final = re.compile(r"[0-9.]+|(?:0[xX][0-9A-Fa-f]*|[0-9]+)(?:\.(?:0[xX][0-9A-Fa-f]*|[0-9]+))*\.?")
_ADDRESS_EXPECTED: Final = "host:port, [::1]:port or unix:/path"


def parse_address(text: str) -> Address:
    """`host:port`, `[v6]:port` or `unix:/path`. IP addresses are normalised, so that equal ones are equal."""
    if text.startswith("unix:"):
        return _unix_address(text)
    if "://" in text:
        raise ValueError(f"{shown(text)} is a URL, expected {_ADDRESS_EXPECTED}")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError(f"{shown(text)} is not an address, expected {_ADDRESS_EXPECTED}")
        port = rest[1:]
        host = _ipv6(text, host)
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            what = "has no port" if _HOST.fullmatch(text) else "is not an address"
            raise ValueError(f"{shown(text)} {what}, expected {_ADDRESS_EXPECTED}")
        if ":" in host:
            raise ValueError(
                f"{shown(text)} is not an address, expected an IPv6 address in brackets, such as [::1]:8080"
            )
        host = _host(text, host)
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{shown(port)} is not a port, expected a number up to 65535")
    return Address(host=host, port=int(port))


_IPV4: Final = re.compile(r"([0-9]{1,3}\.){3}[0-9]{1,3}")
_ENDPOINT_EXPECTED: Final = "host:port, [::1]:port, unix:/path, or an IP address alone (on the port dialled)"


def parse_endpoint_address(text: str) -> Address:
    """An address to connect to; `10.0.0.1` and `[::1]` keep the port that the client wanted."""
    if _IPV4.fullmatch(text):
        return Address(host=_host(text, text), keeps_port=True)
    if text.startswith("[") and text.endswith("]"):
        return Address(host=_ipv6(text, text[1:-1]), keeps_port=True)
    return parse_address(text)


def parse_port(text: str) -> int:
    """A TCP port."""
    if not _PORT.fullmatch(text) or text.startswith("0") or int(text) > 65535:
        raise ValueError(f"{shown(text)} is not a port, expected a number from 1 to 65535")
    return int(text)


def _unix_address(text: str) -> Address:
    path = text.removeprefix("unix:")
    if not path or path.endswith("/"):
        raise ValueError(f"{shown(text)} names no file, expected unix:/path")
    if path.startswith("@") or "\0" in path:
        raise ValueError(f"{shown(text)} is an abstract socket name, expected unix:/path of a file")
    return Address(path=path)


def _ipv6(text: str, host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not an address, expected an IPv6 address in the brackets"
        ) from None
    if address.scope_id is not None:
        raise ValueError(f"{shown(text)} has a zone, expected an IPv6 address without one") from None
    return str(address)


def _host(text: str, host: str) -> str:
    if not host:
        raise ValueError(
            f"{shown(text)} has no host, expected {_ADDRESS_EXPECTED} (0.0.0.0 and [::] mean all interfaces)"
        )
    if _NUMERIC.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(
                f"{shown(text)} is not an address, {shown(host)} is no IPv4 address, "
                f"expected {_ADDRESS_EXPECTED}"
            ) from None
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError(
            f"{shown(text)} is not an address, {shown(host)} is no host name, expected {_ADDRESS_EXPECTED}"
        )
    return host.lower()


# -- paths ------------------------------------------------------------------------------------------


def parse_path(text: str) -> str:
    """A file or directory, as written: the snapshot resolves it against the configuration file."""
    if not text:
        raise ValueError("an empty text, expected a path")
    if "\0" in text:
        raise ValueError(f"{shown(text)} is not a path, expected one without NUL")
    if text == "-":
        raise ValueError("'-' is not a path, expected a file (standard output is /dev/stdout)")
    return text


def parse_spiffe_id(text: str) -> str:
    """The whole SPIFFE ID of a workload."""
    try:
        found = spiffe.parse(text)
    except spiffe.SpiffeError as error:
        raise ValueError(
            f"{error}, expected a SPIFFE ID such as spiffe://mesh.local/ns/shop/sa/cart"
        ) from None
    if not found.path:
        raise ValueError(f"{shown(text)} names a trust domain, expected a SPIFFE ID with a path")
    return text


SPIFFE_ID: Final = Kind(
    "SPIFFE ID",
    "a SPIFFE ID such as spiffe://mesh.local/svc-a",
    parse_spiffe_id,
    r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$",
)

# -- access rules -----------------------------------------------------------------------------------

UNAUTHENTICATED: Final = "unauthenticated"
_FROM_EXPECTED: Final = (
    "a workload name, a SPIFFE ID such as spiffe://mesh.local/svc-a, one of them ending in '*', "
    "'*' for any identity, or unauthenticated"
)


def parse_from(text: str) -> str:
    """Whom a rule speaks about. The `*` of a prefix never stands in the trust domain."""
    if text in ("*", UNAUTHENTICATED):
        return text
    # A prefix is fine when one more character would make it whole.
    whole = f"{text[:-1]}x" if text.endswith("*") else text
    try:
        if not whole.startswith("spiffe:"):
            spiffe.workload(whole)
            return text
        if spiffe.parse(whole).path:
            return text
    except spiffe.SpiffeError:
        pass
    raise ValueError(f"{shown(text)} is not an identity, expected {_FROM_EXPECTED}")


_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


def parse_method(text: str) -> str:
    """A method is case-sensitive (RFC 9110, 9.1): `get` would be a rule that never matches."""
    if text not in _METHODS and text.upper() in _METHODS:
        raise ValueError(
            f"{shown(text)} is not a method, expected '{text.upper()}' (methods are case-sensitive)"
        )
    if not _METHOD.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a method, expected a token such as GET")
    if "*" in text:
        raise ValueError(
            f"{shown(text)} is not a method, expected a token such as GET (leave `methods` out for all)"
        )
    return text


_PATH_PATTERN: Final = re.compile(r"/[!$%&'()+,./:;=@_~A-Za-z0-9-]*\*?")
MAX_PATTERN: Final = 1024


def parse_path_pattern(text: str) -> str:
    """A path, exact or a prefix that ends in `*`, in the form that requests are compared in."""
    if not _PATH_PATTERN.fullmatch(text):
        expected = "expected a path such as /health, or a prefix such as /api/*"
        raise ValueError(f"{shown(text)} is not a path, {expected}")
    _bounded_pattern(text)
    from fastmesh._core import normalize_path  # only a file with rules pays for it

    path = text.removesuffix("*")
    # "/.*" is the beginning of "/.git", no dot segment: one more character shows what it is.
    more = "x" if path != text and not path.endswith("/") else ""
    normal = normalize_path(path + more, True)
    if normal is None:
        raise ValueError(f"{shown(text)} never matches: requests for it are refused, expected a plain path")
    if normal != path + more:
        wanted = shown(normal.removesuffix(more) + text[len(path) :])
        raise ValueError(f"{shown(text)} never matches: paths are compared in normal form, expected {wanted}")
    return text


def _bounded_pattern(text: str) -> None:
    if len(text) > MAX_PATTERN:
        raise ValueError(f"{shown(text)} is {len(text)} bytes long, expected at most {MAX_PATTERN}")


def parse_regex(text: str) -> str:
    """A regular expression in the syntax of PCRE2, which the whole text must match."""
    if not text:
        raise ValueError("an empty regex, expected one that something matches")
    _bounded_pattern(text)
    from fastmesh._core import regex_error

    error = regex_error(text)
    if error is not None:
        what, offset = error
        raise ValueError(f"{shown(text)} is not a regex, {what} at byte {offset}")
    return text


_HOST_PATTERN: Final = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_-]{1,63})*")
_HOST_EXPECTED: Final = "a host such as shop.internal, *.internal, 192.0.2.1 or [2001:db8::1], without a port"


def parse_host_pattern(text: str) -> str:
    """A host, exact or `*.suffix`; case means nothing."""
    host = text.lower().removesuffix(".")
    if host.startswith("["):
        if host.endswith("]"):
            return f"[{_ipv6(text, host[1:-1])}]"
    elif len(host) <= 253 and _HOST_PATTERN.fullmatch(host):
        return host
    raise ValueError(f"{shown(text)} is not a host, expected {_HOST_EXPECTED}")


_DNS_DOMAIN: Final = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?){0,7}"
_DOMAIN_EXPECTED: Final = "a domain such as mesh or mesh.internal"
MAX_DOMAIN: Final = 64


def parse_dns_domain(text: str) -> str:
    """A domain that names are put under; short, so that the name of a service fits in front of it."""
    if len(text) > MAX_DOMAIN:
        raise ValueError(
            f"{shown(text)} is {len(text)} characters long, expected a domain of at most {MAX_DOMAIN}"
        )
    if re.fullmatch(_DNS_DOMAIN, text) is None or text.rpartition(".")[2].isdigit():
        raise ValueError(f"{shown(text)} is not a domain, expected {_DOMAIN_EXPECTED}, in lower case")
    return text


def parse_server_name(text: str) -> str:
    """Whom a certificate must be for: one host or IP address."""
    host = parse_host_pattern(f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text)
    if host.startswith("*."):
        raise ValueError(f"{shown(text)} is not a server's name, expected one host without '*'")
    return host.strip("[]")


_CIDR_EXPECTED: Final = "an address or a network such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"


def parse_cidr(text: str) -> str:
    """An IP network; one address is a network too."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            wanted = f"expected {ipaddress.ip_network(text, strict=False)}"
        except ValueError:
            raise ValueError(f"{shown(text)} is not a network, expected {_CIDR_EXPECTED}") from None
        raise ValueError(f"{shown(text)} has address bits behind its prefix, {wanted}") from None
    mapped = network.network_address.ipv4_mapped if network.version == 6 else None
    if mapped is not None and network.prefixlen >= 96:
        raise ValueError(f"{shown(text)} is IPv4 within IPv6, expected {mapped}/{network.prefixlen - 96}")
    return str(network)


_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
# What a rule must not look at: it is gone before rules see it, or has a condition of its own.
_NO_HEADER: Final = {
    "host": "`hosts`",
    "content-length": "another header",
    "transfer-encoding": "another header",
    "connection": "another header",
}


def parse_header_name(text: str) -> str:
    """The name of a header field; case means nothing (RFC 9110, 5.1)."""
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a header name, expected a token such as x-tenant")
    if text.startswith(":"):
        raise ValueError(f"{shown(text)} is not a header name, expected a token such as x-tenant")
    if text.lower() in _NO_HEADER:
        raise ValueError(f"{shown(text)} is not for rules, expected {_NO_HEADER[text.lower()]}")
    return text.lower()


# Said by what it excludes: a set with a large range takes milliseconds to compile, at every start.
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\n-\x1f\x7f]*")


def parse_header_value(text: str) -> str:
    """The value of a header field, compared byte by byte."""
    if not _HEADER_VALUE.fullmatch(text) or text != text.strip(" \t"):
        raise ValueError(f"{shown(text)} is not a header value, expected text without spaces around it")
    _bounded_pattern(text)
    return text


_REQUEST_PATH: Final = re.compile(r"/[!$-~]{0,1023}")


def parse_request_path(text: str) -> str:
    """What follows the host in a URL: a path, perhaps with a query (RFC 9112, 3.2.1), as it is sent."""
    if not _REQUEST_PATH.fullmatch(text):
        rule = "one such as /healthz: it begins with '/', without spaces, '#' and what is not ASCII"
        raise ValueError(f"{shown(text)} is not the path of a request, expected {rule}")
    return text


_GRPC_SERVICE: Final = re.compile(r"[!-~]{0,255}")


def parse_grpc_service(text: str) -> str:
    """The name that a server's health service knows; empty: the whole server."""
    if not _GRPC_SERVICE.fullmatch(text):
        rule = 'a name such as shop.Orders, or "" for the whole server'
        raise ValueError(f"{shown(text)} is not the name of a gRPC service, expected {rule}")
    return text


def parse_rule_name(text: str) -> str:
    """A rule's name is a label of metrics and logs."""
    if _LISTENER.fullmatch(text) and text != "default":
        return text
    rule = "letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit, and not 'default'"
    raise ValueError(f"{shown(text)} is not a rule name, expected {rule}")


# -- the kinds --------------------------------------------------------------------------------------

DURATION: Final = Kind(
    "duration", _DURATION_EXPECTED, parse_duration, rf"^(?=.){_DURATION}$", format_duration
)
PERCENT: Final = Kind(
    "percentage", _PERCENT_EXPECTED, parse_percent, r"^[0-9]{1,3}(\.[0-9]{1,6})?%$", format_percent
)
ADDRESS: Final = Kind(
    "address",
    _ADDRESS_EXPECTED,
    parse_address,
    r"^(unix:.+|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|[A-Za-z0-9_.-]+:[0-9]{1,5})$",
)
ENDPOINT_ADDRESS: Final = Kind(
    "address, or an IP address without a port",
    _ENDPOINT_EXPECTED,
    parse_endpoint_address,
    r"^(unix:.+|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?|[A-Za-z0-9_.-]+:[0-9]{1,5}|([0-9]{1,3}\.){3}[0-9]{1,3})$",
)
PORT: Final = Kind("port", "a port", parse_port, r"^[1-9][0-9]{0,4}$")
PATH: Final = Kind("path", "a path", parse_path, r"^(?!-$).")
SERVICE_NAME: Final = Kind("name", "a service name", parse_service_name, f"^{_DNS_NAME}$")
WORKLOAD: Final = Kind("name", "a workload name", spiffe.workload, f"^{_DNS_NAME}$")
LISTENER_NAME: Final = Kind("name", "a listener name", parse_listener_name, f"^{_LISTENER.pattern}$")
TRUST_DOMAIN: Final = Kind("name", "a trust domain", spiffe.trust_domain, r"^[a-z0-9._-]{1,255}$")
FROM: Final = Kind("identity", _FROM_EXPECTED, parse_from)
METHOD: Final = Kind("method", "a method such as GET", parse_method, r"^[!#$%&'+.^_`|~0-9A-Za-z-]{1,64}$")
PATH_PATTERN: Final = Kind(
    "path pattern",
    "a path such as /health, or a prefix such as /api/*",
    parse_path_pattern,
    f"^{_PATH_PATTERN.pattern}$",
)
REGEX: Final = Kind("regex", "a regular expression (PCRE2)", parse_regex, "^.")
HOST_PATTERN: Final = Kind(
    "host pattern",
    _HOST_EXPECTED,
    parse_host_pattern,
    r"^(\[[0-9A-Fa-f:.]+\]|(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_-]{1,63})*\.?)$",
)
DNS_DOMAIN: Final = Kind(
    "domain",
    _DOMAIN_EXPECTED,
    parse_dns_domain,
    rf"^(?=.{{1,{MAX_DOMAIN}}}$)(?!(.*\.)?[0-9]+$){_DNS_DOMAIN}$",
)
SERVER_NAME: Final = Kind(
    "host name",
    "a host name such as api.example.com, or an IP address",
    parse_server_name,
    r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"
    r"|[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_-]{1,63})*\.?)$",
)
CIDR: Final = Kind(
    "network",
    _CIDR_EXPECTED,
    parse_cidr,
    r"^(([0-9]{1,3}\.){3}[0-9]{1,3}|(?=(.*:){2})[0-9A-Fa-f:.]+)(/[0-9.]+)?$",
)
HEADER_NAME: Final = Kind(
    "header name", "a header name such as x-tenant", parse_header_name, f"^{_HEADER_NAME.pattern}$"
)
HEADER_VALUE: Final = Kind(
    "text", "the value of a header", parse_header_value, r"^([^ \t\r\n](.*[^ \t\r\n])?)?$"
)
REQUEST_PATH: Final = Kind(
    "path", "the path of a request such as /healthz", parse_request_path, f"^{_REQUEST_PATH.pattern}$"
)
GRPC_SERVICE: Final = Kind(
    "name",
    'the name of a gRPC service such as shop.Orders, or ""',
    parse_grpc_service,
    f"^{_GRPC_SERVICE.pattern}$",
)
RULE_NAME: Final = Kind("name", "a rule name", parse_rule_name, rf"^(?!default$){_LISTENER.pattern}$")


def one_of(text: str, choices: tuple[str, ...]) -> str:
    """`text`, when it is one of `choices`."""
    if text in choices:
        return text
    near = nearest(text, choices)
    hint = f" (did you mean {shown(near)}?)" if near else ""
    raise ValueError(f"{shown(text)}, expected {alternatives(choices)}{hint}")


def alternatives(words: tuple[str, ...], last: str = "or") -> str:
    """`a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
