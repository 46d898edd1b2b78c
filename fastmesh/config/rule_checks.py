"""What is wrong with `allow` and `deny` rules beyond a single value: rules that can never hold, above all.

A rule that never holds is an error, not a silent hole: whoever wrote it thinks that it does something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastmesh.config.errors import shown
from fastmesh.config.invalid import INVALID, Report
from fastmesh.config.positions import Where
from fastmesh.config.roles import client_cert, leading_to, listener_tls, opaque
from fastmesh.config.schema import Listener, Service
from fastmesh.config.schema_rules import MAX_RULES, HeaderMatch, PathMatch, Rule
from fastmesh.config.values import UNAUTHENTICATED, alternatives

HTTP_KEYS: Final = ("methods", "paths", "hosts", "headers")
CONNECTION_KEYS: Final = ("from", "ports", "sources")
LISTS: Final = ("allow", "deny")
CLIENT_CERT: Final = "x-forwarded-client-cert"


def conditions(rule: Rule) -> dict[str, Any]:
    """The conditions that a rule has, by their key in the file."""
    keys = (*CONNECTION_KEYS, *HTTP_KEYS)
    named = {key: getattr(rule, "from_" if key == "from" else key) for key in keys}
    named |= {f"not_{key}": getattr(rule, f"not_{key}") for key in keys}
    return {key: value for key, value in named.items() if value is not None and value is not INVALID}


def rule_name(kind: str, index: int, rule: Rule) -> str:
    """The name of a rule: its own, or that of its place."""
    return rule.name or f"{kind}-{index + 1}"


def check_rules(
    numbered: Sequence[tuple[int, Listener]], services: dict[str, Service], report: Report
) -> None:
    """Report what is wrong with the rules of all listeners (with their index in the file) and services."""
    total = 0
    listeners = [listener for _, listener in numbered]
    for index, listener in numbered:
        total += _Owner(("listeners", index), listener, [listener], "listener", report).run()
    for name, service in services.items():
        leading = leading_to(listeners, name)
        total += _Owner(("services", name), service, leading, "service", report).run()
    if total > MAX_RULES:
        report(("listeners",), f"{total} rules in all (each list's owner counts as one), at most {MAX_RULES}")


class _Owner:
    """The rules of one listener or service. `listeners`: those that lead to it, itself if it is one."""

    def __init__(
        self, where: Where, owner: Listener | Service, listeners: list[Listener], what: str, report: Report
    ) -> None:
        self.where = where
        self.owner = owner
        self.listeners = listeners
        self.what = what
        self.report = report
        self.opaque = bool(listeners) and all(map(opaque, listeners))
        self.tls = {listener_tls(one) for one in listeners}

    def run(self) -> int:
        """How many counter rows the rules need."""
        rules = list(self.rules())
        if not rules:
            if self.owner.mode is not None and self.owner.allow is None and self.owner.deny is None:
                message = f"mode: {self.owner.mode} without rules, expected allow or deny beside it"
                self.report((*self.where, "mode"), message)
            return 0
        names: set[str] = set()
        for kind, index, rule in rules:
            where = (*self.where, kind, index)
            name = rule_name(kind, index, rule)
            if rule.name is not INVALID and name in names:
                wanted = "expected a name of its own"
                self.report((*where, "name"), f"two rules named {shown(name)} in one {self.what}, {wanted}")
            names.add(name)
            self.rule(where, rule)
        return len(rules) + 1

    def rules(self) -> Iterator[tuple[str, int, Rule]]:
        for kind in LISTS:
            items = getattr(self.owner, kind)
            if items is not None and items is not INVALID:
                yield from ((kind, index, rule) for index, rule in enumerate(items) if rule is not INVALID)

    def rule(self, where: Where, rule: Rule) -> None:
        given = conditions(rule)
        if not given and all(value is None for value in _values(rule)):
            wanted = alternatives((*CONNECTION_KEYS, *HTTP_KEYS))
            self.report(where, f"a rule without conditions, expected at least one of {wanted}")
        for key, value in given.items():
            self.matches((*where, key), value)
            if self.opaque and key.removeprefix("not_") in HTTP_KEYS:
                noun = key.removeprefix("not_")
                message = f"{key} in a rule of a tcp {self.what}, expected only from, ports or sources"
                self.report((*where, key), f"{message} (opaque TCP has no {noun})")
        self.callers(where, rule)
        self.proofs(where, rule)
        self.contradictions(where, given)
        self.local_ports(where, rule)

    def matches(self, where: Where, value: Any) -> None:
        """Conditions on paths and headers say one thing each."""
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for index, one in items:
            if isinstance(one, PathMatch):
                keys: tuple[str, ...] = ("path", "regex")
            elif isinstance(one, HeaderMatch):
                keys = ("exact", "prefix", "regex", "present")
            else:
                continue
            count = sum(getattr(one, key) is not None for key in keys)
            if count != 1:
                what = "several" if count else "none"
                self.report((*where, index), f"{what} of {alternatives(keys)}, expected just one")

    def callers(self, where: Where, rule: Rule) -> None:
        if rule.from_ is None or rule.from_ is INVALID or not self.listeners or INVALID in rule.from_:
            return
        # An outbound listener's caller is the application itself, which has no certificate to show.
        if self.tls <= {"none", "terminate", "passthrough"} and UNAUTHENTICATED not in rule.from_:
            message = "from in a rule for callers that have no identity"
            wanted = f"expected tls: mesh or permissive on an inbound listener, or {UNAUTHENTICATED}"
            self.report((*where, "from"), f"{message}, {wanted}")
        if self.tls == {"mesh"} and set(rule.from_) == {UNAUTHENTICATED}:
            message = f"from: {UNAUTHENTICATED} where every caller has an identity (tls: mesh)"
            self.report((*where, "from"), f"{message}, expected tls: permissive, or identities")

    def proofs(self, where: Where, rule: Rule) -> None:
        """What a caller says of itself under a name that is taken from it before the endpoint sees it."""
        if where[-2] != "allow" or not isinstance(rule.headers, dict) or CLIENT_CERT not in rule.headers:
            return
        if any(
            one.forwarded is not INVALID and client_cert(one) in ("set", "remove") for one in self.listeners
        ):
            message = f"{CLIENT_CERT} in an allow rule where it is removed from what callers send"
            self.report((*where, "headers", CLIENT_CERT), f"{message}, expected from")

    def contradictions(self, where: Where, given: dict[str, Any]) -> None:
        for key in (*CONNECTION_KEYS, *HTTP_KEYS):
            without = given.get(f"not_{key}")
            if without is None or isinstance(without, dict) or INVALID in without:
                continue
            if _is_everything(key, without):
                self.report((*where, f"not_{key}"), f"the rule never holds: not_{key} leaves nothing")
                continue
            wanted = given.get(key)
            if wanted is not None and all(one in without for one in wanted):
                message = f"the rule never holds: all that {key} names is in not_{key} too"
                self.report((*where, f"not_{key}"), message)

    def local_ports(self, where: Where, rule: Rule) -> None:
        binds = [one.bind for one in self.listeners if one.bind is not INVALID]
        if rule.ports is None or rule.ports is INVALID or INVALID in rule.ports:
            return
        if not binds or len(binds) != len(self.listeners):
            return
        if any(one.transparent is not False for one in self.listeners):
            return  # the port that the client wanted
        known = {bind.port for bind in binds if bind.path is None}
        if 0 in known or any(port in known for port in rule.ports):
            return
        found = alternatives(tuple(map(str, sorted(known)))) if known else "none: it is a Unix socket"
        self.report((*where, "ports"), f"the rule never holds: the local port is {found}")


def _is_everything(key: str, values: Sequence[Any]) -> bool:
    if key == "from":
        return "*" in values and UNAUTHENTICATED in values
    if key == "paths":
        return any(one is not INVALID and one.path == "/*" for one in values)
    return key == "sources" and "0.0.0.0/0" in values and "::/0" in values


def _values(rule: Rule) -> Iterator[Any]:
    return (getattr(rule, name) for name in rule.__struct_fields__ if name != "name")
