"""Resumption: across workers, and only while the peer would be let in anyway."""

from __future__ import annotations

import datetime
import ssl
import time

from kit.svid import (
    A,
    Authority,
    B,
    Identity,
    PythonEnd,
    authority,
    meet,
    open_pair,
    reason,
    shake,
    svc_a,
    svc_b,
)

from fastmesh import _tls as tls


def resumed(
    engine: tls.Engine, client: tls.Context, server: tls.Context, slot: tls.Slot, **options: object
) -> bool:
    c, s = meet(engine, client, server, slot=slot, **options)
    assert c.resumed == s.resumed
    assert (c.peer, s.peer) == (B.encode(), A.encode())
    assert s.read(c.write(b"ping")[1])[1] == b"ping"
    assert c.read(s.write(b"pong")[1])[1] == b"pong"
    return bool(c.resumed)


def test_another_worker_resumes(engine: tls.Engine) -> None:
    client, first, second = svc_a().client(), svc_b().server(), svc_b().server()
    slot = tls.Slot()
    assert not resumed(engine, client, first, slot, expect=B.encode())
    assert slot
    assert resumed(engine, client, second, slot, expect=B.encode())
    assert resumed(engine, client, first, slot, expect=B.encode())


def test_a_session_serves_many_connections(engine: tls.Engine) -> None:
    """Also at the same time, also after an end without close_notify."""
    client, server, slot = svc_a().client(), svc_b().server(), tls.Slot()
    resumed(engine, client, server, slot)
    kept = [meet(engine, client, server, slot=slot) for _ in range(5)]
    assert all(c.resumed for c, _ in kept)
    kept[0][0].read(eof=True)
    for c, s in kept:
        c.free()
        s.free()
    assert resumed(engine, client, server, slot)


def test_a_server_without_ticket_keys_makes_none(engine: tls.Engine) -> None:
    slot = tls.Slot()
    assert not resumed(engine, svc_a().client(), svc_b().server(keys=None), slot)
    assert not slot


def test_other_ticket_keys(engine: tls.Engine) -> None:
    client, slot = svc_a().client(), tls.Slot()
    resumed(engine, client, svc_b().server(), slot)
    other = svc_b().server(keys=bytes(80))
    assert not resumed(engine, client, other, slot)
    assert resumed(engine, client, other, slot)


def test_a_session_never_serves_another_identity(engine: tls.Engine) -> None:
    client, slot = svc_a().client(), tls.Slot()
    resumed(engine, client, svc_b().server(), slot)
    # the dialled service has changed: the old session proves nothing about the new one
    c, s = open_pair(engine, client, svc_b().server(), slot=slot, expect=b"spiffe://mesh.local/svc-c")
    result, _, _ = shake(c, s)
    assert not s.resumed
    assert reason(result) == "upstream_tls_identity"
    assert not slot


def test_a_server_does_not_go_on_as_another(engine: tls.Engine) -> None:
    """Its workload is another now, its ticket keys are not: who resumed would take it for the one before."""
    client, slot = svc_a().client(), tls.Slot()
    other = authority().leaf("spiffe://mesh.local/svc-x").server()
    assert not resumed(engine, client, svc_b().server(), slot, expect=B.encode())
    c, s, _ = shake(*open_pair(engine, client, other, slot=slot, expect=B.encode()))
    assert (reason(c), reason(s)) == ("upstream_tls_identity", "tls_handshake")


def test_a_renewed_server_goes_on(engine: tls.Engine) -> None:
    client, slot = svc_a().client(), tls.Slot()
    assert not resumed(engine, client, svc_b().server(), slot, expect=B.encode())
    assert resumed(engine, client, authority().leaf(B).server(), slot, expect=B.encode())


def short(uri: str) -> tuple[Identity, float]:
    """An identity that ends in about two seconds, and when."""
    end = datetime.timedelta(seconds=2)
    identity = authority().leaf(uri, end=end)
    return identity, time.time() + end.total_seconds()


def wait_until(moment: float) -> None:
    """The X.509 clock is the wall clock: nothing but waiting makes a certificate expire."""
    while time.time() < moment + 1:
        time.sleep(0.05)


def test_an_expired_client_is_not_resumed(engine: tls.Engine) -> None:
    identity, end = short(A)
    client, server, slot = identity.client(), svc_b().server(), tls.Slot()
    assert not resumed(engine, client, server, slot)
    assert slot.lifetime() <= 2
    assert resumed(engine, client, server, slot)
    # a client that does not care for the ticket's lifetime
    stubborn = PythonEnd(identity.python(ssl.PROTOCOL_TLS_CLIENT), server=False)
    s = tls.Connection(engine, server, True)
    _, flight = s.handshake(stubborn.handshake())
    assert s.handshake(stubborn.handshake(flight))[0] == 1
    wait_until(end)
    c, s = open_pair(engine, client, server, slot=slot)
    assert reason(shake(c, s)[1]) == "tls_expired"
    assert not s.resumed


def test_an_expired_server_is_not_resumed(engine: tls.Engine) -> None:
    identity, end = short(B)
    client, server, slot = svc_a().client(), identity.server(), tls.Slot()
    resumed(engine, client, server, slot)
    assert resumed(engine, client, server, slot)
    wait_until(end)
    c, s = open_pair(engine, client, server, slot=slot)
    assert reason(shake(c, s)[0]) == "upstream_tls_expired"


def test_new_trust_means_a_new_handshake(engine: tls.Engine) -> None:
    """A rotated root: both ends trust both for a while, and what was resumed is verified anew."""
    slot = tls.Slot()
    resumed(engine, svc_a().client(), svc_b().server(), slot)
    both = authority().bundle + Authority().bundle
    server = Identity(svc_b().chain, svc_b().key, both).server()
    client = Identity(svc_a().chain, svc_a().key, both).client()
    assert not resumed(engine, svc_a().client(), server, slot)
    assert not resumed(engine, client, server, slot)
    assert resumed(engine, client, server, slot)


def test_trust_withdrawn_ends_resumption(engine: tls.Engine) -> None:
    slot = tls.Slot()
    client = svc_a().client()
    resumed(engine, client, svc_b().server(), slot)
    server = Identity(svc_b().chain, svc_b().key, Authority().bundle).server()
    c, s = open_pair(engine, client, server, slot=slot)
    assert reason(shake(c, s)[1]) == "tls_untrusted"


def test_a_late_refusal_takes_the_session_along(engine: tls.Engine) -> None:
    slot = tls.Slot()
    client = svc_a().client()
    resumed(engine, client, svc_b().server(), slot)
    server = Identity(svc_b().chain, svc_b().key, Authority().bundle).server()
    c, s = open_pair(engine, client, server, slot=slot)
    _, _, alert = shake(c, s)
    assert reason(c.read(alert)[0]) == "upstream_tls_refused"
    assert not slot


def test_python_resumes_with_us(engine: tls.Engine) -> None:
    context = svc_a().python(ssl.PROTOCOL_TLS_CLIENT)
    server = svc_b().server()
    session = None
    seen = []
    for _ in range(3):
        client = PythonEnd(context, server=False, session=session)
        s = tls.Connection(engine, server, True)
        _, flight = s.handshake(client.handshake())
        result, ticket = s.handshake(client.handshake(flight))
        assert result == 1
        assert client.read(ticket + s.write(b"x")[1]) == b"x"
        session = client.ssl.session
        seen.append((s.resumed, client.ssl.session_reused, s.peer))
    assert seen == [(0, False, A.encode()), (1, True, A.encode()), (1, True, A.encode())]


def test_we_resume_with_python(engine: tls.Engine) -> None:
    context = svc_b().python(ssl.PROTOCOL_TLS_SERVER)
    client, slot = svc_a().client(), tls.Slot()
    seen = []
    for _ in range(3):
        server = PythonEnd(context, server=True)
        c = tls.Connection(engine, client, False, B.encode(), slot)
        result, finished = c.handshake(server.handshake(c.handshake()[1]))
        assert result == 1
        tickets = server.handshake(finished)
        assert c.read(tickets + server.write(b"x"))[1] == b"x"
        seen.append((c.resumed, c.peer))
    assert seen[0] == (0, B.encode())
    assert {r for r, _ in seen[1:]} <= {0, 1}
