"""Nanoseconds per decision of `allow` and `deny` rules: `FASTMESH_PROBE=1` build needed.

    .venv/bin/python bench/micro_policy.py [--rounds N] [--repeat N]

Each line is a listener with so many rules and one request that has to look at them all: the rule that decides
is the last, or none. Parsing is left out, the scan of the path is in. Prints the best and the median of
`repeat` runs; the best is what the code costs, the distance to the median is the noise of the machine.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from fastmesh import _policy

CALLER = "spiffe://mesh.local/svc-a"
HEAD = (
    b"GET /team-99/orders/7f3a/items?page=2 HTTP/1.1\r\nHost: shop-99.internal\r\nUser-Agent: x/1\r\n"
    b"Accept: */*\r\nX-Request-Id: 0f4c2c6a9d7b4f1e\r\nX-Tenant: t-99\r\n\r\n"
)
Rules = dict[str, Any]


def _rules(count: int, **conditions: Any) -> list[Rules]:
    """`count` rules; "%d" in a condition is the rule's number."""

    def filled(value: Any, number: int) -> Any:
        if isinstance(value, str):
            return value.replace("%d", str(number))
        if isinstance(value, list):
            return [filled(one, number) for one in value]
        if isinstance(value, dict):
            return {key: filled(one, number) for key, one in value.items()}
        return value

    return [{key: filled(value, number) for key, value in conditions.items()} for number in range(count)]


def cases() -> list[tuple[str, Rules]]:
    """What is measured: a name, and the rules of the listener."""
    mine = {"from": [CALLER]}
    paths = {"paths": [{"prefix": "/team-%d/"}, {"exact": "/health-%d"}]}
    return [
        ("no rules", {}),
        ("1 rule: from", {"allow": _rules(1, **mine)}),
        ("100 rules: other callers, then mine", {"allow": [*_rules(99, **{"from": ["x-%d"]}), mine]}),
        ("100 rules: from, methods", {"allow": [*_rules(99, **mine, methods=["PUT"]), mine]}),
        ("100 rules: from, methods, paths", {"allow": _rules(100, **mine, methods=["GET"], **paths)}),
        ("256 rules: from, methods, paths", {"allow": _rules(256, **mine, methods=["GET"], **paths)}),
        ("100 rules: hosts, paths", {"allow": _rules(100, hosts=["shop-%d.internal"], **paths)}),
        (
            "100 deny rules, then 100 allow: paths",
            {"deny": _rules(100, paths=[{"prefix": "/no-%d/"}]), "allow": _rules(100, **paths)},
        ),
        (
            "100 rules: headers",
            {"allow": _rules(100, **mine, headers=[{"name": "x-tenant", "exact": "t-%d"}])},
        ),
        (
            "100 rules: paths, 10 of them regexes",
            {
                "allow": [
                    *_rules(10, **mine, paths=[{"regex": "/region-%d/[a-z]+/.*"}]),
                    *_rules(100, **mine, **paths),
                ]
            },
        ),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=200_000, help="decisions in one run")
    options.add_argument("--repeat", type=int, default=15, help="runs")
    args = options.parse_args()
    print(f"{'listener':40} {'best ns':>8} {'median':>8}")
    for name, rules in cases():
        engine = _policy.Engine(rules)
        runs = []
        for _ in range(args.repeat):
            spent, passed = engine.nanoseconds(HEAD, args.rounds, CALLER)
            assert passed, name
            runs.append(spent)
        print(f"{name:40} {min(runs):8.1f} {statistics.median(runs):8.1f}")


if __name__ == "__main__":
    main()
