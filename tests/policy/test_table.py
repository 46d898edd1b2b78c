"""Every (rule, request) pair of `cases.yaml`, asked of the engine that the data plane runs."""

from __future__ import annotations

from typing import Any

import pytest
from kit.rules import Case, Group, engine, groups

GROUPS = groups()


def test_the_table_is_large() -> None:
    assert sum(len(group.cases) for group in GROUPS) >= 200


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.about)
def test_table(group: Group) -> None:
    rules = engine(group.config)
    wrong = [f"{case.line}: {got}" for case in group.cases if (got := ask(rules, case)) is not None]
    assert not wrong, "\n".join(wrong)


def ask(rules: Any, case: Case) -> str | None:
    """What is wrong with the engine's answer; None: nothing."""
    if case.target == "opaque":
        got = rules.opaque(case.identity, case.source, case.port)
    else:
        got = rules.ask(case.head, case.identity, case.source, case.port)
    reason = got["reason"] or "ok"
    if reason != case.outcome:
        return f"{reason} ({got})"
    if case.rule is not None and got["rule"] != case.rule:
        return f"by {got['rule']}"
    if reason == "ok" and case.target != "opaque" and case.method != "CONNECT":
        target = got["target"].decode()
        wanted = case.forwarded
        if target != wanted:
            return f"as {target}, not {wanted}"
    return None
