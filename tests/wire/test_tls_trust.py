"""Several trust domains, each judged by its own roots, and the deny list: in handshakes and in resumption."""

from __future__ import annotations

import datetime
import time
from dataclasses import replace

import pytest
from kit.svid import (
    A,
    Authority,
    B,
    Identity,
    authority,
    certificate,
    meet,
    open_pair,
    reason,
    shake,
    svc_a,
    svc_b,
)

from fastmesh import _tls as tls

OTHER = b"other.example"
CART = "spiffe://other.example/ns/shop/sa/cart"


@pytest.fixture(scope="module")
def abroad() -> Authority:
    return Authority()


def cart(abroad: Authority) -> Identity:
    """A workload of the other domain, with that domain's roots."""
    return replace(abroad.leaf(CART), domain=OTHER)


def refused(engine: tls.Engine, client: tls.Context, server: tls.Context, **options: object) -> str:
    """Why the server lets the client not in."""
    c, s = open_pair(engine, client, server, **options)
    _, result, _ = shake(c, s)
    return reason(result)


# federation


def test_federated_domains_meet(engine: tls.Engine, abroad: Authority) -> None:
    """Each end keeps its own roots and has the other's; each learns the other's whole ID."""
    client = svc_a().client(federated={OTHER: abroad.bundle})
    server = cart(abroad).server(federated={b"mesh.local": authority().bundle})
    slot = tls.Slot()
    for resumed in (False, True, True):
        c, s = meet(engine, client, server, slot=slot, expect=CART.encode())
        assert (c.peer, s.peer) == (CART.encode(), A.encode())
        assert (c.resumed, s.resumed) == (resumed, resumed)


def test_federation_is_one_way(engine: tls.Engine, abroad: Authority) -> None:
    client = cart(abroad).client(federated={b"mesh.local": authority().bundle})
    assert refused(engine, client, svc_b().server()) == "tls_untrusted"
    c, s = open_pair(engine, svc_a().client(), cart(abroad).server())
    assert reason(shake(c, s)[0]) == "upstream_tls_untrusted"


@pytest.mark.parametrize("uri", [A, "spiffe://mesh.local/anybody"])
def test_a_federated_root_vouches_for_its_own_domain_only(
    engine: tls.Engine, abroad: Authority, uri: str
) -> None:
    """The other domain's authority signs an ID of ours."""
    liar = Identity(*_parts(abroad.leaf(uri)), authority().bundle)
    server = svc_b().server(federated={OTHER: abroad.bundle})
    assert refused(engine, liar.client(), server) == "tls_untrusted"


def test_the_own_root_does_not_vouch_for_others(engine: tls.Engine, abroad: Authority) -> None:
    liar = Identity(*_parts(authority().leaf(CART)), authority().bundle)
    server = svc_b().server(federated={OTHER: abroad.bundle})
    assert refused(engine, liar.client(), server) == "tls_untrusted"


def test_a_third_domain_is_nobody(engine: tls.Engine, abroad: Authority) -> None:
    server = svc_b().server(federated={OTHER: abroad.bundle})
    third = Identity(*_parts(abroad.leaf("spiffe://third.example/x")), authority().bundle)
    assert refused(engine, third.client(), server) == "tls_untrusted"
    own = Identity(*_parts(authority().leaf("spiffe://other.example.mesh/x")), authority().bundle)
    assert refused(engine, own.client(), server) == "tls_identity"


def test_outbound_demands_the_exact_id_abroad_too(engine: tls.Engine, abroad: Authority) -> None:
    client = svc_a().client(federated={OTHER: abroad.bundle})
    server = cart(abroad).server(federated={b"mesh.local": authority().bundle})
    for expect in (b"spiffe://other.example/ns/shop/sa/cart2", b"spiffe://mesh.local/ns/shop/sa/cart"):
        c, s = open_pair(engine, client, server, expect=expect)
        assert reason(shake(c, s)[0]) == "upstream_tls_identity"


def test_sessions_do_not_outlive_a_federation(engine: tls.Engine, abroad: Authority) -> None:
    client = cart(abroad).client(federated={b"mesh.local": authority().bundle})
    slot = tls.Slot()
    meet(engine, client, svc_b().server(federated={OTHER: abroad.bundle}), slot=slot)
    _, s = meet(engine, client, svc_b().server(federated={OTHER: abroad.bundle}), slot=slot)
    assert s.resumed
    later = svc_b().server(federated={OTHER: abroad.bundle + Authority().bundle})
    _, s = meet(engine, client, later, slot=slot)
    assert not s.resumed
    assert refused(engine, client, svc_b().server(), slot=slot) == "tls_untrusted"


@pytest.mark.parametrize(
    ("federated", "what"),
    [
        ({b"Other": b""}, "not a valid name"),
        ({b"mesh.local": b""}, "twice"),
        ({OTHER: b"no PEM"}, "bundle is not readable"),
        ({OTHER: b""}, "bundle is not readable"),
    ],
)
def test_bad_federation(federated: dict[bytes, bytes], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        svc_b().server(federated=federated)
    assert not tls.errors_queued()


# the deny list


def test_a_revoked_peer_is_refused_both_ways(engine: tls.Engine) -> None:
    server = svc_b().server(revoked=[svc_a().serial, b"\x07"])
    c, s = open_pair(engine, svc_a().client(), server)
    _, result, alert = shake(c, s)
    assert reason(result) == "tls_revoked"
    assert reason(c.read(alert)[0]) == "upstream_tls_refused"
    c, s = open_pair(engine, svc_a().client(revoked=[svc_b().serial]), svc_b().server())
    assert reason(shake(c, s)[0]) == "upstream_tls_revoked"
    meet(engine, svc_a().client(revoked=[svc_a().serial]), svc_b().server(revoked=[svc_b().serial]))


def test_a_long_list(engine: tls.Engine) -> None:
    """In any order, with zeros in front, and one entry twice."""
    other = [bytes([1 + n % 255]) * (1 + n % 20) for n in range(4000)]
    assert refused(
        engine, svc_a().client(), svc_b().server(revoked=[*other, b"\0" + svc_a().serial, *other])
    ) == ("tls_revoked")
    meet(engine, svc_a().client(), svc_b().server(revoked=other))
    meet(engine, svc_a().client(), svc_b().server(revoked=[svc_a().serial[:-1], svc_a().serial + b"\0"][:1]))


@pytest.mark.parametrize("serial", [b"", b"\0", bytes(range(1, 22))])
def test_no_serial(serial: bytes) -> None:
    with pytest.raises(ValueError, match="serial"):
        svc_b().server(revoked=[serial])


def test_an_expired_and_revoked_peer_is_expired(engine: tls.Engine) -> None:
    """The chain comes first: a serial means something below a good one only."""
    old = authority().leaf(A, end=datetime.timedelta(minutes=-1))
    assert refused(engine, old.client(), svc_b().server(revoked=[old.serial])) == "tls_expired"


def test_serials_of_other_domains_mean_nothing(engine: tls.Engine, abroad: Authority) -> None:
    """The list is of the own issuer's serial numbers; another may have used the same."""
    client = cart(abroad).client(federated={b"mesh.local": authority().bundle})
    meet(engine, client, svc_b().server(federated={OTHER: abroad.bundle}, revoked=[cart(abroad).serial]))


def test_a_revoked_peer_does_not_resume_and_others_do(engine: tls.Engine) -> None:
    """A longer deny list bars those on it and takes nobody else's session."""
    keys = tls.Tickets()
    before, slot = svc_b().server(keys=keys), tls.Slot()
    client = svc_a().client()
    meet(engine, client, before, slot=slot)
    longer = svc_b().server(keys=keys, revoked=[b"\x01\x02"])
    assert meet(engine, client, longer, slot=slot)[1].resumed
    last = svc_b().server(keys=keys, revoked=[b"\x01\x02", svc_a().serial])
    assert refused(engine, client, last, slot=slot) == "tls_revoked"


def test_a_client_does_not_resume_with_a_revoked_server(engine: tls.Engine) -> None:
    slot, server = tls.Slot(), svc_b().server()
    meet(engine, svc_a().client(), server, slot=slot)
    c, s = open_pair(engine, svc_a().client(revoked=[svc_b().serial]), server, slot=slot)
    result = shake(c, s)
    assert not s.resumed
    assert reason(result[0]) == "upstream_tls_revoked"


# what a session is worth


def test_a_ticket_ends_with_the_chain(engine: tls.Engine) -> None:
    """An issuer that ends before its leaf: also where only the ticket can know, and in renewed tickets."""
    home = Authority()
    end = datetime.timedelta(seconds=3)
    home.issuer = certificate("issuer", home.key, ("root", home.root_key), ca=True, end=end)
    moment = time.time() + 3
    client = home.leaf(A)
    server = Identity(*_parts(home.leaf(B)), home.bundle)
    keys, slot = tls.Tickets(), tls.Slot()
    meet(engine, client.client(), server.server(keys=keys), slot=slot)
    assert slot.lifetime() <= 3
    assert meet(engine, client.client(), server.server(keys=keys), slot=slot)[1].resumed
    keys.rotate()
    renewed = server.server(keys=keys)  # never saw the chain
    assert meet(engine, client.client(), renewed, slot=slot)[1].resumed
    assert slot.lifetime() <= 3
    while time.time() < moment + 1:
        time.sleep(0.05)  # the X.509 clock is the wall clock
    c, s = open_pair(engine, client.client(), server.server(keys=keys), slot=slot)
    shake(c, s)
    assert not s.resumed


def _parts(identity: Identity) -> tuple[bytes, bytes]:
    return identity.chain, identity.key


# the keys of tickets


def test_a_ticket_lives_for_two_keys(engine: tls.Engine) -> None:
    """One of the key before is taken and renewed; an older one means a full handshake."""
    keys = tls.Tickets()
    server, client = svc_b().server(keys=keys), svc_a().client()
    held, renewed = tls.Slot(), tls.Slot()
    for slot in (held, renewed):
        meet(engine, client, server, slot=slot)
    assert len(keys.names) == 1
    keys.rotate()
    assert len(keys.names) == 2
    assert meet(engine, client, server, slot=renewed)[1].resumed
    keys.rotate()
    assert meet(engine, client, server, slot=renewed)[1].resumed, (
        "renewed under the key that is now the previous"
    )
    _, s = meet(engine, client, server, slot=held)
    assert not s.resumed
    assert meet(engine, client, server, slot=held)[1].resumed
    assert not tls.errors_queued()


def test_workers_share_the_keys(engine: tls.Engine) -> None:
    keys, client, slot = tls.Tickets(), svc_a().client(), tls.Slot()
    first, second = svc_b().server(keys=keys), svc_b().server(keys=keys)
    meet(engine, client, first, slot=slot)
    keys.rotate()
    assert meet(engine, client, second, slot=slot)[1].resumed
    keys.rotate()
    assert meet(engine, client, first, slot=slot)[1].resumed


def test_only_two_keys_are_kept() -> None:
    keys = tls.Tickets()
    seen = [keys.names[0]]
    for _ in range(9):
        keys.rotate()
        assert keys.names[1] == seen[-1]
        seen.append(keys.names[0])
        assert len(keys.names) == 2
    assert len(set(seen)) == 10


def test_a_ticket_of_no_key_is_not_opened_with_zeros(engine: tls.Engine) -> None:
    """Where no key is, a ticket sealed with zeros would otherwise be anybody's passport."""
    client, slot = svc_a().client(), tls.Slot()
    meet(engine, client, svc_b().server(keys=bytes(80)), slot=slot)
    keys = tls.Tickets()
    assert not meet(engine, client, svc_b().server(keys=keys), slot=slot)[1].resumed
