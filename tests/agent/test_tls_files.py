"""The files of ordinary TLS: watched, read again, and taken over by the agent alone if they are right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.agent import CONFIG, Agent
from kit.limits import wait_until
from kit.public import Shop
from prometheus_client.parser import text_string_to_metric_families

DAY = 86_400


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


def edge(*pairs: dict[str, str], **tls: Any) -> dict[str, Any]:
    """A listener that shows these certificates."""
    return {**CONFIG["listeners"][0], "tls": {"certificates": [*pairs], **tls}}


def text_of(pair: dict[str, str]) -> dict[str, str]:
    return {which: Path(path).read_text() for which, path in pair.items()}


def value(agent: Agent, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(agent.get("/metrics").text):
        for sample in family.samples:
            if sample.name == f"fastmesh_{name}" and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def wait_count(agent: Agent, result: str, count: int) -> None:
    wait_until(lambda: value(agent, "tls_reloads_total", result=result) == count, f"{count} {result}")


def parts(agent: Agent) -> dict[str, Any]:
    """What is new in the next snapshot."""
    new = agent.frame("parts").message
    assert new.keys() == {"type", "number", "digest", "parts", "refused"}
    found: dict[str, Any] = new["parts"]
    return found


def shown(agent: Agent) -> dict[str, Any]:
    """The snapshot as the agent tells it: what it has kept."""
    found: dict[str, Any] = agent.get("/config").json["snapshot"]
    return found


def test_a_certificate_renewed_in_place(agent: Agent, shop: Shop) -> None:
    pair = shop.issue("one", "one.example")
    first = agent.serving({**CONFIG, "listeners": [edge(pair, client_ca=str(shop.ca))]})
    agent.write("listeners: [in the middle of somebody's work")
    shop.issue("one", "one.example")
    new = text_of(pair)
    found = parts(agent)
    assert found.keys() == {"listener/edge"}
    assert found["listener/edge"].keys() == {"tls_contexts", "tls_settings"}
    (context,) = found["listener/edge"]["tls_contexts"]
    assert {which: context[which] for which in new} == new
    assert found["listener/edge"]["tls_settings"] == first["listeners"][0]["tls_settings"]
    wait_count(agent, "accepted", 1)
    after = shown(agent)
    assert after["number"] == first["number"] + 1
    assert after["listeners"][0]["tls_contexts"] == [{**context, "key": "[redacted]"}]
    assert "new TLS of listener edge, for 23 h 59 min: snapshot 2" in agent.stderr()
    assert new["key"].splitlines()[1] not in agent.get("/config").text + agent.stderr()
    agent.stop()


def test_a_touched_file_changes_nothing(agent: Agent, shop: Shop) -> None:
    pair = shop.issue("one", "one.example")
    agent.serving({**CONFIG, "listeners": [edge(pair)]})
    shop.issue("one", "one.example")
    parts(agent)
    wait_count(agent, "accepted", 1)
    os.utime(pair["certificate"], (1, 1))
    wait_count(agent, "unchanged", 1)
    assert shown(agent)["number"] == 2
    assert "snapshot 3" not in agent.stderr()
    agent.stop()


def test_a_mounted_secret_is_swapped(agent: Agent, shop: Shop) -> None:
    """Kubernetes: links through `..data`, which is replaced in one step."""
    mounted = shop.directory / "mounted"
    mounted.mkdir()

    def version(name: str) -> dict[str, str]:
        (mounted / name).mkdir()
        made = text_of(shop.issue("one", "one.example"))
        (mounted / name / "tls.crt").write_text(made["certificate"])
        (mounted / name / "tls.key").write_text(made["key"])
        (mounted / "..new").symlink_to(name)
        (mounted / "..new").rename(mounted / "..data")
        return made

    version("..1")
    for name in ("tls.crt", "tls.key"):
        (mounted / name).symlink_to(f"..data/{name}")
    pair = {"certificate": str(mounted / "tls.crt"), "key": str(mounted / "tls.key")}
    agent.serving({**CONFIG, "listeners": [edge(pair)]})
    second = version("..2")
    (context,) = parts(agent)["listener/edge"]["tls_contexts"]
    assert {which: context[which] for which in second} == second
    wait_count(agent, "accepted", 1)
    assert value(agent, "tls_reloads_total", result="rejected") == 0
    agent.stop()


Harm = Callable[[Shop, dict[str, str]], str]


def half_written(shop: Shop, pair: dict[str, str]) -> str:
    text = text_of(shop.issue("one", "one.example"))["certificate"]
    Path(pair["certificate"]).write_text(text[: len(text) // 2])
    return "is not readable as"


def wrong_key(shop: Shop, pair: dict[str, str]) -> str:
    Path(pair["key"]).write_text(text_of(shop.issue("other", "one.example"))["key"])
    return "the private key does not belong to the certificate"


def expired(shop: Shop, pair: dict[str, str]) -> str:
    shop.issue("one", "one.example", days=-1)
    return "ended "


def gone(shop: Shop, pair: dict[str, str]) -> str:
    Path(pair["key"]).unlink()
    return "cannot be read (No such file or directory)"


def no_file(shop: Shop, pair: dict[str, str]) -> str:
    Path(pair["certificate"]).unlink()
    os.mkfifo(pair["certificate"])
    return "is no regular file"


@pytest.mark.parametrize(
    "harm", [half_written, wrong_key, expired, gone, no_file], ids=lambda harm: harm.__name__
)
def test_what_is_not_right_is_refused_by_name_and_the_old_one_stays(
    agent: Agent, shop: Shop, harm: Harm
) -> None:
    pair = shop.issue("one", "one.example")
    first = text_of(pair)
    agent.serving({**CONFIG, "listeners": [edge(pair)]})
    agent.status("ready")
    said = harm(shop, pair)
    wait_until(lambda: (value(agent, "tls_reloads_total", result="rejected") or 0) >= 2, "a second look")
    lines = [line for line in agent.stderr().splitlines() if "not taken over" in line]
    assert len(lines) == 1, "it is said once"
    assert "warning: the TLS of listener edge on disk is not taken over, the one in use stays: " in lines[0]
    assert said in lines[0]
    assert shown(agent)["listeners"][0]["tls_contexts"][0]["certificate"] == first["certificate"]
    ready = agent.get("/readyz")
    assert (ready.status, len(ready.json["warnings"])) == (200, 1)
    assert said in ready.json["warnings"][0]
    if harm is no_file:
        Path(pair["certificate"]).unlink()
    shop.issue("one", "one.example")
    (context,) = parts(agent)["listener/edge"]["tls_contexts"]
    assert context["certificate"] == text_of(pair)["certificate"]
    wait_until(lambda: "the TLS of listener edge on disk is good again" in agent.stderr(), "the end of it")
    assert agent.get("/readyz").json == {"status": "ready"}
    agent.stop()


def test_each_listener_and_service_stands_alone(agent: Agent, shop: Shop) -> None:
    """What is wrong with one keeps none of the others from its new certificate."""
    pairs = {name: shop.issue(name, f"{name}.example") for name in ("bad", "good", "us")}
    listeners = [
        {**edge(pairs["bad"]), "name": "bad"},
        {**edge(pairs["good"]), "name": "good", "bind": "127.0.0.1:8081"},
    ]
    tls = {"server_name": "api.example", "ca": str(shop.ca), **pairs["us"]}
    services = {**CONFIG["services"], "api": {"endpoints": ["127.0.0.1:9001"], "tls": tls}}
    agent.serving({"listeners": listeners, "services": services})
    wrong_key(shop, pairs["bad"])
    for name in ("good", "us"):
        shop.issue(name, f"{name}.example")
    found: dict[str, Any] = {}
    while found.keys() != {"listener/good", "service/api"}:
        found |= parts(agent)
    assert found["service/api"]["tls_context"]["key"] == text_of(pairs["us"])["key"]
    assert found["service/api"]["tls_context"]["server_name"] == "api.example"
    wait_count(agent, "rejected", 1)
    (warning,) = agent.get("/readyz").json["warnings"]
    assert warning.startswith("the TLS of listener bad on disk is not taken over: ")
    agent.stop()


def test_the_roots_that_a_service_trusts(agent: Agent, shop: Shop, tmp_path: Path) -> None:
    tls = {"server_name": "api.example", "ca": "../shop/ca.pem"}
    services = {"web": {"endpoints": ["127.0.0.1:9001"], "tls": tls}}
    agent.serving({**CONFIG, "services": services})
    other = Shop(tmp_path / "other")
    shop.ca.write_text(shop.ca.read_text() + other.ca.read_text())
    assert parts(agent)["service/web"]["tls_context"]["ca"] == shop.ca.read_text()
    wait_until(lambda: "new TLS of service web: snapshot 2" in agent.stderr(), "that it is said")
    agent.stop()


def test_a_change_before_the_first_look_is_not_missed(
    agent: Agent, start_agent: Callable[..., Agent], shop: Shop
) -> None:
    """As while no agent runs: the next one gets the snapshot in use and compares."""
    pair = shop.issue("one", "one.example")
    snapshot = agent.serving({**CONFIG, "listeners": [edge(pair)]})
    agent.process.kill()
    shop.issue("one", "one.example")
    resumed = start_agent(admin_first=True)
    resumed.channel.send({"type": "resume", "config": str(agent.path), "workers": 1, "snapshot": snapshot})
    resumed.frame("ready")
    (context,) = parts(resumed)["listener/edge"]["tls_contexts"]
    assert context["certificate"] == text_of(pair)["certificate"]
    resumed.stop()


def test_a_reload_has_what_was_taken_over(agent: Agent, shop: Shop) -> None:
    """Read by whichever way, it is the same; and the file's other changes have waited for it."""
    pair = shop.issue("one", "one.example")
    config = {**CONFIG, "listeners": [edge(pair)]}
    first = agent.serving(config)
    agent.write({**config, "drain": "77s"})
    shop.issue("one", "one.example")
    parts(agent)
    wait_count(agent, "accepted", 1)
    assert shown(agent)["drain_ms"] == first["drain_ms"]
    agent.write(config)
    agent.channel.send({"type": "reload"})
    agent.frame("unchanged")
    agent.write({**config, "drain": "77s"})
    agent.channel.send({"type": "reload"})
    third = agent.frame("snapshot").message["snapshot"]
    assert (third["number"], third["drain_ms"]) == (3, 77_000)
    agent.stop()


def test_how_long_certificates_last(agent: Agent, shop: Shop) -> None:
    """Told as a metric, at 20 % and 5 % and at the end of a life in the log and by /readyz."""
    soon, sooner = shop.issue("soon", "a.example", days=0.3), shop.issue("sooner", "b.example", days=0.1)
    fine, now = shop.issue("fine", "c.example"), shop.issue("now", "d.example", days=8 / DAY)
    tls = {"server_name": "api.example", "ca": str(shop.ca), **fine}
    agent.serving(
        {
            "listeners": [edge(soon, sooner, now)],
            "services": {"web": {"endpoints": ["127.0.0.1:9000"], "tls": tls}},
        }
    )
    agent.status("ready")
    for pair, listener, service, left in (
        (soon, "edge", "", 0.3 * DAY),
        (sooner, "edge", "", 0.1 * DAY),
        (fine, "", "web", DAY),
    ):
        labels = {"listener": listener, "service": service, "certificate": pair["certificate"]}
        found = value(agent, "tls_certificate_expiry_seconds", **labels)
        end = value(agent, "tls_certificate_expiry_timestamp_seconds", **labels)
        assert found is not None
        assert end is not None
        assert left - 60 < found <= left
        assert end > 1.7e9
    wait_until(lambda: "IS OVER" in agent.stderr(), "the end")
    said = [line.removeprefix("fastmesh: ") for line in agent.stderr().splitlines() if "certificate " in line]
    assert len([line for line in said if line.startswith("warning: ")]) == 1
    assert f"warning: the certificate {soon['certificate']!r} of listener edge ends in 7 h 1" in said[0]
    assert any(
        f"error: the certificate {sooner['certificate']!r} of listener edge ends" in one for one in said
    )
    assert f"error: the certificate {now['certificate']!r} of listener edge IS OVER" in said
    ready = agent.get("/readyz")
    assert (ready.status, len(ready.json["warnings"])) == (200, 3)
    assert "of listener edge is over for" in ready.json["warnings"][2]
    assert "fine" not in json.dumps(ready.json)
    left = value(agent, "tls_certificate_expiry_seconds", certificate=now["certificate"])
    assert left is not None
    assert left <= 0
    agent.stop()
