"""The part of the schema that says who may do what. Checks of it stand in `rule_checks.py`."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fastmesh.config.schema_types import (
    Cidr,
    From,
    HeaderName,
    HeaderValue,
    HostPattern,
    Method,
    PathPattern,
    Port,
    Regex,
    RuleName,
    Section,
)

MAX_RULES: Final = (
    4096  # rows of the counters that all workers share: all rules, and one for each list's owner
)
MAX_RULES_OF_LIST: Final = 256


class PathMatch(Section, frozen=True, kw_only=True):
    """a path condition

    What a request's path must be, in normal form and without its query. A plain text is short for `path`.
    """

    path: Annotated[
        PathPattern | None,
        Meta(
            description="The whole path; a prefix that ends in `/*` (the segment before it and all below); "
            "or any other beginning that ends in `*`.",
            examples=["/api/*"],
        ),
    ] = None
    regex: Annotated[
        Regex | None,
        Meta(
            description="A regular expression (PCRE2) that the whole path must match.",
            examples=["/v[0-9]+/users"],
        ),
    ] = None


class HeaderMatch(Section, frozen=True, kw_only=True):
    """a header condition

    What a header must be; just one of these. A plain text is short for `exact`.
    """

    exact: Annotated[HeaderValue | None, Meta(description="The whole value.", examples=["eu-1"])] = None
    prefix: Annotated[
        HeaderValue | None, Meta(description="What the value begins with.", examples=["eu-"])
    ] = None
    regex: Annotated[
        Regex | None,
        Meta(description="A regular expression (PCRE2) that the whole value must match.", examples=["eu-.*"]),
    ] = None
    present: Annotated[
        bool | None, Meta(description="`true`: the header is there, whatever it says. `false`: it is not.")
    ] = None


PathCondition = Annotated[PathMatch, Meta(extra={"short": "path"})]
HeaderCondition = Annotated[HeaderMatch, Meta(extra={"short": "exact"})]


class Rule(Section, frozen=True, kw_only=True):
    """a rule

    A rule holds when all its conditions do; of a list in a condition, one entry is enough. The `not_` forms
    hold when no entry does. `methods`, `paths`, `hosts` and `headers` are facts of a request, the others of a
    connection.
    """

    name: Annotated[
        RuleName | None,
        Meta(
            description="Names the rule in metrics and the access log. Left out: `allow-1`, `deny-2`, by its "
            "place.",
            examples=["frontend-reads"],
        ),
    ] = None
    from_: Annotated[
        list[From] | None,
        Meta(
            min_length=1,
            description="Who calls: workload names of the own trust domain or whole SPIFFE IDs. A `*` at "
            "the end makes a prefix; `*` alone is anybody with an identity; `unauthenticated` is anybody "
            "without. Left out: everybody.",
            examples=[["svc-a", "spiffe://mesh.local/ns/shop/*"]],
        ),
    ] = msgspec.field(name="from", default=None)
    methods: Annotated[
        list[Method] | None,
        Meta(min_length=1, description="HTTP methods. Left out: all.", examples=[["GET", "POST"]]),
    ] = None
    paths: Annotated[
        list[PathCondition] | None,
        Meta(
            min_length=1,
            description="Paths of requests: exact, prefixes that end in `*`, or `{regex: …}`. Left out: all.",
            examples=[["/health", "/api/*"]],
        ),
    ] = None
    hosts: Annotated[
        list[HostPattern] | None,
        Meta(
            min_length=1,
            description="Hosts that requests are for, without port; `*.suffix` is every host below it.",
            examples=[["shop.internal", "*.eu.internal"]],
        ),
    ] = None
    headers: Annotated[
        dict[HeaderName, HeaderCondition] | None,
        Meta(
            min_length=1,
            max_length=16,
            description="Headers by name: the exact value, or a mapping. All of them must hold.",
        ),
    ] = None
    ports: Annotated[
        list[Port] | None,
        Meta(
            min_length=1,
            description="Local ports that the caller connected to; of transparent listeners those that it "
            "wanted, which is the application's where their own address is dialled.",
            examples=[[8080]],
        ),
    ] = None
    sources: Annotated[
        list[Cidr] | None,
        Meta(
            min_length=1,
            description="Addresses or networks that the connection comes from.",
            examples=[["10.0.0.0/8", "2001:db8::/32"]],
        ),
    ] = None
    not_from: Annotated[
        list[From] | None, Meta(min_length=1, description="Not these callers, as in `from`.")
    ] = None
    not_methods: Annotated[list[Method] | None, Meta(min_length=1, description="Not these methods.")] = None
    not_paths: Annotated[
        list[PathCondition] | None, Meta(min_length=1, description="Not these paths, as in `paths`.")
    ] = None
    not_hosts: Annotated[
        list[HostPattern] | None, Meta(min_length=1, description="Not these hosts, as in `hosts`.")
    ] = None
    not_headers: Annotated[
        dict[HeaderName, HeaderCondition] | None,
        Meta(min_length=1, max_length=16, description="None of these, as in `headers`."),
    ] = None
    not_ports: Annotated[list[Port] | None, Meta(min_length=1, description="Not these local ports.")] = None
    not_sources: Annotated[
        list[Cidr] | None, Meta(min_length=1, description="Not these networks, as in `sources`.")
    ] = None


RULE_LIST: Final = Meta(min_length=1, max_length=MAX_RULES_OF_LIST)
ALLOW: Final = (
    "Who may do what. Once given, what no rule allows is answered with 403 (TCP: closed). Left out: what no "
    "`deny` rule refuses may pass."
)
DENY: Final = "Who may not do what. A rule here wins over every `allow` rule."
MODE: Final = (
    "`audit`: what the rules refuse passes, is counted and is noted in the access log. `enforce`, or left "
    "out: it is refused."
)
