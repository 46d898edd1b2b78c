"""Which protocol two ends agree on (RFC 7301): of what a context knows, what each connection may speak."""

from __future__ import annotations

import ssl

import pytest
from kit.svid import H1, H2_H1, PythonEnd, meet, open_pair, reason, shake, svc_a, svc_b

from fastmesh import _tls as tls

NONE, HTTP1, HTTP2, OPAQUE = 0, tls.ALPN_H1, tls.ALPN_H2, tls.ALPN_OPAQUE
BOTH = HTTP1 | HTTP2
H2 = b"\x02h2"


@pytest.mark.parametrize("old", [False, True], ids=["1.3", "1.2"])
@pytest.mark.parametrize(
    ("client", "server", "agreed"),
    [
        (BOTH, BOTH, HTTP2),
        (HTTP1, BOTH, HTTP1),
        (HTTP2, BOTH, HTTP2),
        (NONE, BOTH, NONE),
        (BOTH, HTTP1, HTTP1),
        (BOTH, HTTP2, HTTP2),
        (NONE, HTTP1, NONE),
        (BOTH, HTTP1 | OPAQUE, HTTP1),
        (HTTP2, HTTP1 | OPAQUE, NONE),
        (HTTP1, OPAQUE, NONE),
        (BOTH, OPAQUE, NONE),
        (NONE, OPAQUE, NONE),
    ],
)
def test_what_connections_may_speak(
    engine: tls.Engine, client: int, server: int, agreed: int, old: bool
) -> None:
    """Contexts that all connections share; with no protocol agreed on the data flows all the same."""
    contexts = svc_a().client(old=old), svc_b().server(old=old)
    ends = meet(engine, *contexts, alpn=client, server_alpn=server)
    assert [end.alpn for end in ends] == [agreed, agreed]
    assert ends[1].read(ends[0].write(b"hello")[1])[:2] == (5, b"hello")
    assert [end.alpn for end in ends] == [agreed, agreed]


@pytest.mark.parametrize(("client", "server"), [(HTTP1, HTTP2), (HTTP2, HTTP1), (BOTH, NONE)])
def test_without_a_common_protocol_there_is_no_connection(
    engine: tls.Engine, client: int, server: int
) -> None:
    ends = open_pair(engine, svc_a().client(), svc_b().server(), alpn=client, server_alpn=server)
    c, s, _ = shake(*ends)
    assert (reason(c), reason(s)) == ("upstream_tls_handshake", "tls_handshake")
    assert not tls.errors_queued()


@pytest.mark.parametrize(
    ("client", "server", "mask", "agreed"),
    [
        (H1, H2_H1, BOTH, HTTP1),
        (H2, H2_H1, BOTH, HTTP2),
        (H2, H2_H1, HTTP1, NONE),
        (None, H2_H1, BOTH, NONE),
        (H2_H1, None, BOTH, NONE),
        (H1 + H2, H2_H1, BOTH, HTTP2),
        (H2_H1, H1 + H2, BOTH, HTTP1),
    ],
)
def test_a_connection_speaks_nothing_that_its_context_does_not_know(
    engine: tls.Engine, client: bytes | None, server: bytes | None, mask: int, agreed: int
) -> None:
    """Of what both may speak, the server's preference decides."""
    ends = meet(engine, svc_a().client(alpn=client), svc_b().server(alpn=server), alpn=mask)
    assert [end.alpn for end in ends] == [agreed, agreed]


@pytest.mark.parametrize("alpn", [b"\x03h2", H2 + b"\x09http/1.1", b"h2", H2_H1 * 10])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_list_that_is_none_makes_no_context(side: str, alpn: bytes) -> None:
    with pytest.raises(ValueError, match="refuses"):
        getattr(svc_a(), side)(alpn=alpn)


@pytest.mark.parametrize("old", [False, True], ids=["1.3", "1.2"])
def test_a_resumed_session_agrees_anew(engine: tls.Engine, old: bool) -> None:
    """What was spoken before is no part of a session (RFC 7301 3.1), in engine direction."""
    client, server, slot = svc_a().client(old=old), svc_b().server(old=old), tls.Slot()
    pairs = [
        (BOTH, BOTH, HTTP2),
        (HTTP1, BOTH, HTTP1),
        (BOTH, BOTH, HTTP2),
        (NONE, BOTH, NONE),
        (HTTP2, BOTH, HTTP2),
        (BOTH, HTTP1, HTTP1),
        (BOTH, OPAQUE, NONE),
        (HTTP2, HTTP1 | OPAQUE, NONE),
        (BOTH, BOTH, HTTP2),
    ]
    for number, (offered, taken, agreed) in enumerate(pairs):
        ends = meet(engine, client, server, slot=slot, alpn=offered, server_alpn=taken)
        assert [end.resumed for end in ends] == [number > 0] * 2, number
        assert [end.alpn for end in ends] == [agreed, agreed], number
        assert ends[1].read(ends[0].write(b"hello")[1])[:2] == (5, b"hello")


def test_a_session_does_not_help_who_has_no_common_protocol(engine: tls.Engine) -> None:
    client, server, slot = svc_a().client(), svc_b().server(), tls.Slot()
    meet(engine, client, server, slot=slot)
    c, s, _ = shake(*open_pair(engine, client, server, slot=slot, alpn=HTTP2, server_alpn=HTTP1))
    assert (reason(c), reason(s)) == ("upstream_tls_handshake", "tls_handshake")


@pytest.mark.parametrize(
    ("offered", "mask", "agreed"),
    [
        (["h2", "http/1.1"], BOTH, "h2"),
        (["http/1.1", "h2"], BOTH, "h2"),
        (["h2", "http/1.1"], HTTP1, "http/1.1"),
        (["spdy/1", "h2c", "http/1.0", "http/1.1"], BOTH, "http/1.1"),
        (["h2"], HTTP1 | OPAQUE, None),
        (["postgresql"], HTTP1 | OPAQUE, None),
        (None, BOTH, None),
    ],
)
def test_a_client_nobody_here_wrote(
    engine: tls.Engine, offered: list[str] | None, mask: int, agreed: str | None
) -> None:
    context = svc_a().python(ssl.PROTOCOL_TLS_CLIENT)
    if offered is not None:
        context.set_alpn_protocols(offered)
    client, server = (
        PythonEnd(context, server=False),
        tls.Connection(engine, svc_b().server(), True, alpn=mask),
    )
    _, flight = server.handshake(client.handshake())
    assert server.handshake(client.handshake(flight))[0] == 1
    assert client.ssl.selected_alpn_protocol() == agreed
    assert server.alpn == {"h2": HTTP2, "http/1.1": HTTP1, None: NONE}[agreed]


@pytest.mark.parametrize("offered", [["h2"], ["spdy/1", "h2c"]])
def test_a_client_nobody_here_wrote_is_told_why(engine: tls.Engine, offered: list[str]) -> None:
    context = svc_a().python(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(offered)
    client, server = (
        PythonEnd(context, server=False),
        tls.Connection(engine, svc_b().server(), True, alpn=HTTP1),
    )
    result, alert = server.handshake(client.handshake())
    assert reason(result) == "tls_handshake"
    client.handshake(alert)
    assert "no application protocol" in str(client.error).lower().replace("_", " ")


@pytest.mark.parametrize(
    ("known", "mask", "agreed"),
    [
        (["h2", "http/1.1"], BOTH, HTTP2),
        (["http/1.1"], BOTH, HTTP1),
        (["h2", "http/1.1"], HTTP1, HTTP1),
        (["h2", "http/1.1"], NONE, NONE),
        (None, BOTH, NONE),
        (None, HTTP2, NONE),
    ],
)
def test_a_server_nobody_here_wrote(
    engine: tls.Engine, known: list[str] | None, mask: int, agreed: int
) -> None:
    """One that takes no notice of what is offered leaves it open: that is HTTP/1.1."""
    context = svc_b().python(ssl.PROTOCOL_TLS_SERVER)
    if known is not None:
        context.set_alpn_protocols(known)
    client = tls.Connection(engine, svc_a().client(), False, slot=tls.Slot(), alpn=mask)
    server = PythonEnd(context, server=True)
    c, finished = client.handshake(server.handshake(client.handshake()[1]))
    assert c == 1
    assert client.read(server.handshake(finished) + server.write(b"hello"))[:2] == (5, b"hello")
    assert client.alpn == agreed
