"""The addresses of a host name of the configuration.

Without `dns` the system is asked, as by every program. With it this sidecar is a resolver itself, and
whatever the system does may end there: port 53 is redirected for everybody, or /etc/resolv.conf names us.
Then we would wait for ourselves, or be told our own virtual addresses. So name servers are asked directly,
those that the resolver asks too, through sockets that carry the interception's mark: /etc/hosts first, then
DNS with the search list and the options of /etc/resolv.conf. Nobody else is asked (nsswitch.conf).
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastmesh.config.errors import shown
from fastmesh.config.schema import Config
from fastmesh.config.schema_dns import Dns

if TYPE_CHECKING:
    import dns.resolver

HOSTS: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
# Seconds for all that is asked about one name and version of IP.
LIFETIME_S: Final = 4.5
# As many name servers as the system takes, resolv.conf(5).
MAX_SERVERS: Final = 3
_LOCALHOST: Final = ("127.0.0.1", "::1")
_PORT: Final = 53
_SO_MARK: Final = 36

# Raises OSError, whose text says why there is no address.
Lookup = Callable[[str], list[str]]


def lookup_of(config: Config) -> Lookup:
    """How host names of this configuration are looked up: sorted, IPv4 before IPv6."""
    ask: Lookup = by_system
    if config.dns is not None:
        ask = Direct(config.dns, config.intercept.mark if config.intercept is not None else 0)

    def look_up(host: str) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        # A link-local address needs a zone, which endpoints do not carry: it could not be reached.
        hosts = {one for one in ask(host) if "%" not in one}
        if not hosts:
            raise OSError("it has no address")
        return sorted(hosts, key=lambda one: (ip := ipaddress.ip_address(one)) and (ip.version, int(ip)))

    return look_up


def by_system(host: str) -> list[str]:
    """getaddrinfo(3)."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Direct:
    """Asks name servers itself; never the resolver of `settings`. `mark` is put on its sockets where that is
    allowed."""

    def __init__(
        self, settings: Dns, mark: int, *, hosts: Path = HOSTS, resolv_conf: Path = RESOLV_CONF
    ) -> None:
        self._settings = settings
        self._mark = mark
        self._hosts = hosts
        self._resolv_conf = resolv_conf
        self._resolver: dns.resolver.Resolver | None = None

    def __call__(self, host: str) -> list[str]:
        name = host.rstrip(".").lower()
        if found := self._in_hosts(name):
            return found
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
            return list(_LOCALHOST)
        domain = self._settings.domain
        if f".{name}".endswith(f".{domain}"):
            raise OSError(f"it is one of {shown(domain)}, whose names only this sidecar answers")
        try:
            return self._by_dns(host)
        except ImportError as error:
            raise OSError(f"the package dnspython cannot be imported: {error}") from None

    def _in_hosts(self, name: str) -> list[str]:
        """hosts(5)."""
        found = []
        with contextlib.suppress(OSError):
            for line in self._hosts.read_text(encoding="utf-8", errors="replace").splitlines():
                address, *names = line.partition("#")[0].split() or [""]
                if name in (one.lower() for one in names):
                    with contextlib.suppress(ValueError):
                        found.append(str(ipaddress.ip_address(address)))
        return found

    def _by_dns(self, host: str) -> list[str]:
        import dns.exception
        import dns.resolver

        if self._resolver is None:
            self._resolver = self._configured()
        found: list[str] = []
        why: str | None = None
        for kind in ("A", "AAAA"):
            try:
                answer = self._resolver.resolve(host, kind, search=True, lifetime=LIFETIME_S)
            except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
                continue
            except dns.resolver.NoNameservers:
                why = f"{self._asked()} cannot say"
            except dns.exception.Timeout:
                why = f"no answer from {self._asked()}"
            except dns.exception.DNSException as error:
                why = str(error)
            else:
                found += [record.to_text() for record in answer]
        if not found and why is not None:
            raise OSError(why)
        if not found:
            raise OSError(f"{self._asked()} knows no address of it")
        return found

    def _configured(self) -> dns.resolver.Resolver:
        """What /etc/resolv.conf says, with our sockets, and without ourselves."""
        import dns.exception
        import dns.resolver

        try:
            # This host's name stands in for a search list.
            resolver = dns.resolver.Resolver(configure=False)
        except dns.exception.DNSException as error:
            name = shown(socket.gethostname())
            raise OSError(f"this host is called {name}, which cannot be in DNS ({error})") from None
        try:
            resolver.read_resolv_conf(io.StringIO(self._sound()))
        except dns.resolver.NoResolverConfiguration:
            pass
        except dns.exception.DNSException as error:
            raise OSError(f"{self._resolv_conf} has a domain that cannot be in DNS ({error})") from None
        upstream, listen = self._settings.upstream, self._settings.listen
        if upstream is not None:
            servers = [(upstream.host, upstream.port)]
        else:
            given = (str(one) for one in resolver.nameservers)
            servers = [(host, _PORT) for host in given if (host, _PORT) != (listen.host, listen.port)]
        if not servers:
            raise OSError(
                f"{self._resolv_conf} names no name server but this sidecar: say in dns.upstream who is asked"
            )
        resolver.nameservers = _marked(servers[:MAX_SERVERS], self._mark)
        # Each has its turn before time is up.
        resolver.timeout = min(resolver.timeout, LIFETIME_S / len(resolver.nameservers))
        return resolver

    def _sound(self) -> str:
        """/etc/resolv.conf without name servers that are no addresses: nobody else minds them."""
        lines = []
        with contextlib.suppress(OSError):
            for line in self._resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines():
                word, *rest = line.split() or [""]
                try:
                    if word == "nameserver" and rest:
                        ipaddress.ip_address(rest[0])
                except ValueError:
                    continue
                lines.append(line)
        return "\n".join([*lines, ""])

    def _asked(self) -> str:
        assert self._resolver is not None
        return " or ".join(str(one) for one in self._resolver.nameservers)


def _marked(servers: Iterable[tuple[str, int]], mark: int) -> list[Any]:
    """Name servers that are asked through sockets with a mark, connected: then a port that nobody listens on
    is an error, and no wait."""
    import dns.message
    import dns.nameserver
    import dns.query

    class Server(dns.nameserver.Do53Nameserver):
        def __str__(self) -> str:
            return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

        def query(  # noqa: PLR0917 - as it is called
            self,
            request: dns.message.QueryMessage,
            timeout: float,
            source: str | None,
            source_port: int,
            max_size: bool,
            one_rr_per_rrset: bool = False,
            ignore_trailing: bool = False,
        ) -> dns.message.Message:
            kind = socket.SOCK_STREAM if max_size else socket.SOCK_DGRAM
            info = socket.getaddrinfo(self.address, self.port, type=kind, flags=socket.AI_NUMERICHOST)
            family, _, _, _, address = info[0]
            with socket.socket(family, kind) as sock:
                if mark:
                    with contextlib.suppress(OSError):  # without CAP_NET_ADMIN
                        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
                sock.settimeout(timeout)
                sock.connect(address)
                sock.setblocking(False)
                if max_size:
                    return dns.query.tcp(request, self.address, timeout, self.port, sock=sock)
                return dns.query.udp(
                    request,
                    self.address,
                    timeout,
                    self.port,
                    ignore_unexpected=True,
                    raise_on_truncation=True,
                    ignore_errors=True,
                    sock=sock,
                )

    return [Server(host, port) for host, port in servers]
