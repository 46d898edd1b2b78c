"""Virtual addresses: derived from names alone, one for each, and never taken away."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmesh.config import ConfigErrors, make_snapshot, virtual
from fastmesh.config.dns_checks import check_dns
from fastmesh.config.invalid import INVALID
from fastmesh.config.loader import loads
from fastmesh.config.schema import MAX_SERVICES
from fastmesh.config.values import Address
from fastmesh.config.virtual import answered, assign, networks, room, virtual_addresses

DEFAULT = ipaddress.ip_network("240.77.0.0/16")
DEFAULT6 = ipaddress.ip_network("fd77:6d65:7368::/64")

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=2).map(".".join)
name_lists = st.lists(names, unique=True, max_size=14)


def config(text: str, **more: Any) -> Any:
    lines = "listeners: [{name: a, bind: '127.0.0.1:1', role: outbound}]\n"
    return loads((lines + text).encode(), Path("/x.yaml"))


def services(*names: str) -> str:
    return "services:\n" + "".join(f"  {name}: {{endpoints: ['127.0.0.1:9000']}}\n" for name in names)


DNS = "dns: {listen: '127.0.0.1:15053'}\n"


def test_none_without_dns() -> None:
    assert virtual_addresses(config(services("web")).config) == {}


def test_they_are_what_they_have_always_been() -> None:
    """Written down: a sidecar of another version must find the same ones."""
    found = virtual_addresses(config(DNS + services("svc-a", "svc-b", "api.shop")).config)
    assert found == {
        "svc-a": ("240.77.118.57", "fd77:6d65:7368:0:b08d:d910:1716:54eb"),
        "svc-b": ("240.77.9.116", "fd77:6d65:7368:0:1e68:f43f:e4f0:f48a"),
        "api.shop": ("240.77.67.236", "fd77:6d65:7368:0:7953:4ed:2b9b:7ad8"),
    }


@settings(deadline=None)
@given(name_lists, st.randoms(use_true_random=False), st.sampled_from(["10.0.0.0/28", "10.0.0.0/16"]))
def test_one_each_whatever_the_order(found: list[str], random: Any, network: str) -> None:
    """In a network that is nearly full, too: 14 names for 14 addresses."""
    where = ipaddress.ip_network(network)
    addresses = assign(found, where, {})
    assert list(addresses) == found
    assert len(set(addresses.values())) == len(found)
    for text in addresses.values():
        address = ipaddress.ip_address(text)
        assert address in where
        assert address not in (where.network_address, where.broadcast_address)
    random.shuffle(found)
    assert assign(found, where, {}) == addresses


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), names), max_size=40))
def test_nothing_moves(steps: list[tuple[bool, str]]) -> None:
    """Names come and go, in a network that makes them meet all the time; those that stay, stay."""
    network = ipaddress.ip_network("10.0.0.0/27")
    now: dict[str, str] = {}
    for add, name in steps:
        wanted = [*now, name] if add else [one for one in now if one != name]
        if len(set(wanted)) > room(network):
            continue
        after = assign(wanted, network, now)
        assert set(after) == set(wanted)
        assert len(set(after.values())) == len(after)
        assert {one: after[one] for one in now if one in after} == {
            one: address for one, address in now.items() if one in after
        }
        now = after


@settings(deadline=None)
@given(name_lists.filter(bool), names)
def test_sidecars_with_other_services_agree(found: list[str], other: str) -> None:
    """Of names that are alone at their first hash, whatever else there is."""
    network = ipaddress.ip_network("10.0.0.0/20")
    alone = {name: assign([name], network, {})[name] for name in {*found, other}}
    together = assign(dict.fromkeys([*found, other]), network, {})
    firsts = list(alone.values())
    for name, address in alone.items():
        if firsts.count(address) == 1:
            assert together[name] == address


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("10.0.0.0/8", 65536 * 254),
        ("240.77.0.0/16", 256 * 254),
        ("10.1.2.0/23", 2 * 254),
        ("10.1.2.0/24", 254),
        ("10.1.2.128/25", 126),
        ("10.1.2.0/30", 2),
        ("fd77::/64", 2**64 - 2),
        ("fd77::/120", 254),
    ],
)
def test_every_place_of_a_network(text: str, places: int) -> None:
    network = ipaddress.ip_network(text)
    assert room(network) == places
    seen = set()
    for index in {*range(min(places, 1000)), places // 2, places - 1}:
        address = ipaddress.ip_address(virtual._address(network, index))
        assert address in network
        assert address not in (network[0], network[-1])
        assert virtual._index(network, str(address)) == index
        assert network.version == 6 or int(address) % 256 not in (0, 255)
        seen.add(address)
    assert len(seen) >= min(places, 1000)


def test_as_many_as_there_may_be() -> None:
    many = [f"svc-{number}" for number in range(MAX_SERVICES)]
    found = assign(many, DEFAULT, {})
    assert len(set(found.values())) == MAX_SERVICES
    # How many cannot have their first hash: the birthday bound says 8.
    moved = [name for name in many if assign([name], DEFAULT, {})[name] != found[name]]
    assert len(moved) < 30
    assert assign(many, DEFAULT6, {}) == {name: assign([name], DEFAULT6, {})[name] for name in many}


def test_of_two_that_meet_the_one_that_was_there_stays() -> None:
    network = ipaddress.ip_network("10.0.0.0/24")
    first, second = meeting(network)
    assert first < second
    alone = assign([second], network, {})
    assert assign([first, second], network, alone)[second] == alone[second]
    # Without a memory the alphabet decides; with one it does not matter who is asked about first.
    assert assign([second, first], network, {})[first] == assign([first], network, {})[first]


def meeting(network: Any) -> tuple[str, str]:
    seen: dict[str, str] = {}
    for number in range(1000):
        name = f"n{number:04}"
        other = seen.setdefault(assign([name], network, {})[name], name)
        if other != name:
            return other, name
    raise AssertionError("no two names meet")


def test_what_was_in_another_network_is_forgotten() -> None:
    network = ipaddress.ip_network("10.0.0.0/24")
    assert assign(["web"], network, {"web": "240.77.1.1"}) == assign(["web"], network, {})
    assert assign(["web"], network, {"web": "fd77::1"}) == assign(["web"], network, {})
    assert assign(["web"], network, {"web": "10.0.0.255"}) == assign(["web"], network, {})
    assert assign(["a", "web"], network, {"web": "10.0.0.9", "a": "10.0.0.9"})["a"] == "10.0.0.9"


def test_the_snapshot_has_them_and_keeps_them() -> None:
    small = "dns: {listen: '127.0.0.1:15053', virtual: 10.99.0.0/24}\n"
    first, second = meeting(ipaddress.ip_network("10.99.0.0/24"))
    before = make_snapshot(config(small + services(second)))
    had = {one["name"]: one["virtual"] for one in before["services"]}
    assert before["dns"]["answers"] == had
    after = make_snapshot(config(small + services(first, second)), virtual=had)
    assert after["services"][1]["virtual"] == had[second]
    assert after["services"][0]["virtual"][0] != had[second][0]
    fresh = make_snapshot(config(small + services(first, second)))
    assert fresh["services"][1]["virtual"] != had[second]
    assert fresh["digest"] != after["digest"]


def test_a_snapshot_without_dns_has_none() -> None:
    snapshot = make_snapshot(config(services("web")))
    assert snapshot["dns"] is None
    assert snapshot["services"][0]["virtual"] == []


def test_own_addresses_are_answered_unless_they_are_shared() -> None:
    four, six, other = Address("10.1.1.1", 80), Address("fd00::1", 80), Address("10.1.1.2", 80)
    found = {
        "alone": SimpleNamespace(addresses=[four, six, Address("10.1.1.1", 81)]),
        "half": SimpleNamespace(addresses=[other, Address("10.1.1.3", 80)]),
        "shared": SimpleNamespace(addresses=[other]),
        "none": SimpleNamespace(addresses=[]),
        "older": SimpleNamespace(),
        "odd": SimpleNamespace(addresses=[Address("host.example", 80), Address(path="/run/x")]),
    }
    virtual = {name: (f"240.77.0.{index}", f"fd77::{index}") for index, name in enumerate(found, 1)}
    assert answered(SimpleNamespace(services=found), virtual) == {  # type: ignore[arg-type]
        "alone": ["10.1.1.1", "fd00::1"],
        "half": ["10.1.1.3"],
        "shared": list(virtual["shared"]),
        "none": list(virtual["none"]),
        "older": list(virtual["older"]),
        "odd": list(virtual["odd"]),
    }


def test_own_addresses_are_not_virtual_ones() -> None:
    reported: list[Any] = []
    dns_only = config("dns: {listen: '127.0.0.1:53'}\n").config
    own = [Address("240.77.0.1", 80), INVALID, Address("10.0.0.1", 80), Address(path="/run/x")]
    found: Any = {
        "web": SimpleNamespace(endpoints=INVALID, addresses=own),
        "odd": SimpleNamespace(endpoints=[INVALID], addresses=INVALID),
    }
    check_dns(dns_only, found, lambda *report: reported.append(report))
    ((where, text),) = reported
    assert where == ("services", "web", "addresses", 0)
    assert "is in the network of virtual addresses 240.77.0.0/16" in text


def test_one_port_of_an_address_each_is_not_shared() -> None:
    found = {
        "one": SimpleNamespace(addresses=[Address("10.1.1.1", 80)]),
        "two": SimpleNamespace(addresses=[Address("10.1.1.1", 81)]),
    }
    virtual = dict.fromkeys(found, ("240.77.0.1", "fd77::1"))
    assert answered(SimpleNamespace(services=found), virtual) == {  # type: ignore[arg-type]
        "one": ["10.1.1.1"],
        "two": ["10.1.1.1"],
    }


def test_an_endpoint_that_resolves_to_a_virtual_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sidecar is the name server, and the service is named as its own host."""
    text = f"{DNS}services:\n  api.example: {{endpoints: ['api.example:443']}}\n"
    monkeypatch.setattr("fastmesh.config.lookup.Direct.__call__", lambda *_: ["240.77.3.4"])
    with pytest.raises(ConfigErrors) as caught:
        make_snapshot(config(text))
    (error,) = caught.value.errors
    assert error.message == (
        "host name 'api.example' is the virtual address 240.77.3.4 to this system, "
        "expected an IP address, or a name that no service has"
    )
    assert (error.line, error.column) == (4, 29)


def test_networks_of_a_configuration() -> None:
    found = config("dns: {listen: '127.0.0.1:53', virtual: 10.9.0.0/16, virtual6: 'fd01::/48'}\n").config.dns
    assert [str(one) for one in networks(found)] == ["10.9.0.0/16", "fd01::/48"]


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 30))
def test_too_small_a_network_is_an_error(length: int) -> None:
    have = 2 ** (32 - length) - 2
    text = f"dns: {{listen: '127.0.0.1:53', virtual: 10.0.0.0/{length}}}\n" + services(
        *(f"s{number}" for number in range(8))
    )
    if have >= 8:
        config(text)
        return
    with pytest.raises(ConfigErrors, match=f"has {have} addresses for 8 services, expected a larger network"):
        config(text)
