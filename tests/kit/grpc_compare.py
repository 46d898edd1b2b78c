"""Through the mesh equals direct: observations of the same scenario, made comparable, and compared.

What may differ is said here and nowhere else: fields that a proxy adds to a message (`added_by_proxies`), how
much of a deadline is left, and what a scenario names as `loose`.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from kit.grpc_scenarios import Scenario
from kit.limits import DEADLINE

ADDED = {"via", "forwarded", "x-request-id", "traceparent", "tracestate"}

MOST = 80  # lines of a difference that are shown


def added_by_proxies(key: str) -> bool:
    """Is this a field by which proxies tell of themselves and of the caller? None of the scenarios' is."""
    return key in ADDED or key.startswith("x-forwarded-")


def metadata(pairs: list[list[Any]]) -> list[list[Any]]:
    """Fields without the proxies' own. Only the order of values of one key means something."""
    kept = [[key, "a date" if key == "date" else value] for key, value in pairs if not added_by_proxies(key)]
    return sorted(kept, key=lambda pair: pair[0])


def deadline(left: float | None, asked: float | None) -> str:
    """What is left of a deadline at the service, as a word that two runs agree on."""
    if left is None or asked is None:
        return "none" if left is asked else f"{left} s left of {asked}"
    # Below what was asked by what the way took; units of grpc-timeout round up by less than 1 %.
    sound = asked - DEADLINE <= left <= asked * 1.01 + 0.1
    return f"within {asked} s" if sound else f"{left} s left of {asked}"


def normalise(scenario: Scenario, observation: dict[str, Any]) -> dict[str, Any]:
    """An observation without what two runs of the same may differ in."""
    calls = []
    for call in observation["calls"]:
        one = {**call, "initial": metadata(call["initial"]), "trailing": metadata(call["trailing"])}
        if call.get("service"):
            seen = dict(call["service"])
            seen["metadata"] = metadata(seen["metadata"])
            seen["deadline"] = deadline(seen["deadline"], scenario.deadline)
            one["service"] = seen
        for loose in scenario.loose:
            where, _, key = loose.rpartition(".")
            (one.get(where) or {} if where else one).pop(key, None)
        calls.append(one)
    # Calls that ran at once are all alike, or are told apart by what they are.
    return {"calls": sorted(calls, key=lambda one: json.dumps(one, sort_keys=True))}


def lines(value: Any, name: str = "") -> list[str]:
    """A value as lines `path = leaf`, for a diff that a person reads."""
    if isinstance(value, dict):
        return [line for key in sorted(value) for line in lines(value[key], f"{name}.{key}" if name else key)]
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return [line for index, one in enumerate(value) for line in lines(one, f"{name}[{index}]")]
    return [f"{name} = {value!r}"]


def difference(scenario: Scenario, direct: dict[str, Any], proxied: dict[str, Any]) -> str:
    """Where the two differ, as a diff; empty where they do not."""
    left, right = (lines(normalise(scenario, one)) for one in (direct, proxied))
    found = list(difflib.unified_diff(left, right, "direct", "proxied", lineterm="", n=2))
    return "\n".join(found[:MOST] + [f"... and {len(found) - MOST} lines more"] * (len(found) > MOST))


def compare(scenario: Scenario, direct: dict[str, Any], proxied: dict[str, Any]) -> None:
    """AssertionError with a diff where the mesh shows, or where even the direct call is not the scenario."""
    for call in direct["calls"]:
        assert call["code"] == scenario.code, f"{scenario.name} ended with {call['code']} without any proxy"
        assert call.get("service") or not scenario.recorded, f"the service never saw {scenario.name}"
    found = difference(scenario, direct, proxied)
    assert not found, f"{scenario.name} is another call through the proxy:\n{found}"
