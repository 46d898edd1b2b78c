"""Who is not let in, and that the reason is exact at both ends."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from kit.svid import (
    A,
    Authority,
    B,
    Identity,
    PythonEnd,
    authority,
    minutes,
    open_pair,
    reason,
    shake,
    svc_a,
    svc_b,
)

from fastmesh import _tls as tls


def stranger() -> Identity:
    """Signed by another authority, but trusting ours."""
    identity = Authority().leaf(A)
    return Identity(identity.chain, identity.key, authority().bundle)


def without_issuer() -> Identity:
    identity = authority().leaf(A)
    leaf = identity.chain[: identity.chain.index(b"-----END CERTIFICATE-----") + 26]
    return Identity(leaf, identity.key, identity.bundle)


BAD: dict[str, tuple[str, Callable[[], Identity]]] = {
    "another authority": ("untrusted", stranger),
    "issuer not sent": ("untrusted", without_issuer),
    "expired": ("expired", lambda: authority().leaf(A, end=minutes(-1))),
    "not yet valid": ("expired", lambda: authority().leaf(A, start=minutes(1))),
    "no URI": ("identity", lambda: authority().leaf()),
    "two URIs": ("identity", lambda: authority().leaf(A, B)),
    "the same URI twice": ("identity", lambda: authority().leaf(A, A)),
    "a second URI that is no SPIFFE ID": ("identity", lambda: authority().leaf(A, "https://mesh.local/x")),
    "another trust domain": ("identity", lambda: authority().leaf("spiffe://mesh.other/svc-a")),
    "no path": ("identity", lambda: authority().leaf("spiffe://mesh.local")),
    "a path with an empty segment": ("identity", lambda: authority().leaf("spiffe://mesh.local//svc-a")),
    "not a SPIFFE ID": ("identity", lambda: authority().leaf("https://mesh.local/svc-a")),
    "an ID that is too long": ("identity", lambda: authority().leaf(A + "a" * 2048)),
    "a CA": ("identity", lambda: authority().leaf(A, ca=True)),
    "a leaf that may sign certificates": ("identity", lambda: authority().leaf(A, signs_certificates=True)),
    "a leaf made for mail": (
        "identity",
        lambda: authority().leaf(A, usage=(ExtendedKeyUsageOID.EMAIL_PROTECTION,)),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_client_that_is_not_let_in(engine: tls.Engine, case: str) -> None:
    why, make = BAD[case]
    client, server = open_pair(engine, make().client(), svc_b().server(), slot=tls.Slot())
    c, s, alert = shake(client, server)
    # in TLS 1.3 the client is done before the server has looked at its certificate
    assert c == 1
    assert reason(s) == f"tls_{why}"
    assert server.peer == b""
    assert reason(client.read(alert)[0]) == "upstream_tls_refused"
    assert reason(client.read()[0]) == "upstream_tls_refused"
    assert reason(server.handshake()[0]) == f"tls_{why}"


@pytest.mark.parametrize("case", BAD)
def test_a_server_that_is_not_trusted(engine: tls.Engine, case: str) -> None:
    why, make = BAD[case]
    client, server = open_pair(engine, svc_a().client(), make().server())
    c, s, _ = shake(client, server)
    assert reason(c) == f"upstream_tls_{why}"
    assert reason(s) == "tls_handshake"


def test_refusals_do_not_stick(engine: tls.Engine) -> None:
    """What was refused once is refused again; who was let in before stays so."""
    server = svc_b().server()
    bad = [make().client() for _, make in BAD.values()]
    good = svc_a().client()
    for _ in range(3):
        for client in bad:
            assert shake(*open_pair(engine, client, server))[1] < 0
            assert shake(*open_pair(engine, good, server))[:2] == (1, 1)


def test_another_service_than_was_dialled(engine: tls.Engine) -> None:
    impostor = authority().leaf("spiffe://mesh.local/svc-x")
    for expected in (B, B + "x", B[:-1], "spiffe://mesh.local/SVC-X", "x" * 2048):
        client, server = open_pair(engine, svc_a().client(), impostor.server(), expect=expected.encode())
        c, s, _ = shake(client, server)
        assert (reason(c), reason(s)) == ("upstream_tls_identity", "tls_handshake")
    for _ in range(2):
        client, server = open_pair(engine, svc_a().client(), svc_b().server(), expect=B.encode())
        assert shake(client, server)[:2] == (1, 1)


def test_the_same_server_may_be_right_for_one_and_wrong_for_another(engine: tls.Engine) -> None:
    client, server = svc_a().client(), svc_b().server()
    for expected, result in ((B, 1), (A, -1), (B, 1), (A, -1)):
        c, _, _ = shake(*open_pair(engine, client, server, expect=expected.encode()))
        assert (c == 1) is (result == 1)


def test_no_certificate(engine: tls.Engine) -> None:
    client = PythonEnd(svc_a().python(ssl.PROTOCOL_TLS_CLIENT, present=False), server=False)
    server = tls.Connection(engine, svc_b().server(), True)
    _, flight = server.handshake(client.handshake())
    s, alert = server.handshake(client.handshake(flight))
    assert reason(s) == "tls_no_certificate"
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        client.read(alert)


def test_tls_1_2_only_client(engine: tls.Engine) -> None:
    context = svc_a().python(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = PythonEnd(context, server=False)
    server = tls.Connection(engine, svc_b().server(), True)
    s, alert = server.handshake(client.handshake())
    assert reason(s) == "tls_version"
    client.handshake(alert)
    assert "ALERT_PROTOCOL_VERSION" in str(client.error)


def test_no_common_group(engine: tls.Engine) -> None:
    context = svc_a().python(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ecdh_curve("secp521r1")
    server = tls.Connection(engine, svc_b().server(), True)
    assert reason(server.handshake(PythonEnd(context, server=False).handshake())[0]) == "tls_version"


def test_tls_1_2_only_server(engine: tls.Engine) -> None:
    context = svc_b().python(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = tls.Connection(engine, svc_a().client(), False)
    c, _ = client.handshake(PythonEnd(context, server=True).handshake(client.handshake()[1]))
    assert reason(c) == "upstream_tls_handshake"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: svc-b\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT svc-b:443 HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00",
        b"\x80\x2e\x01\x03\x01",  # a hello in the form of SSL 2
        b"\x17\x03\x03\x00\x05hello",
        b"\x15\x03\x01\x00\x02\x02\x28",
    ],
)
def test_another_protocol_on_the_port(engine: tls.Engine, data: bytes) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        server = tls.Connection(engine, svc_b().server(), True)
        results = [server.handshake(piece) for piece in pieces]
        assert {(reason(s), out) for s, out in results} == {("tls_not_tls", b"")}


def test_tls_framing_with_rubbish_in_it(engine: tls.Engine) -> None:
    for data in (
        b"\x16\x03\x01\x00\x10" + b"\xff" * 16,
        b"\x16\x03\x01\xff\xff" + bytes(100),
        b"\x16GET / HTTP/1.1",
    ):
        server = tls.Connection(engine, svc_b().server(), True)
        assert reason(server.handshake(data)[0]) in ("tls_handshake", "tls_not_tls", "tls_version")


def test_plain_http_from_the_endpoint(engine: tls.Engine) -> None:
    client = tls.Connection(engine, svc_a().client(), False)
    client.handshake()
    assert reason(client.handshake(b"HTTP/1.1 400 Bad Request\r\n\r\n")[0]) == "upstream_tls_handshake"


def test_ends_during_the_handshake(engine: tls.Engine) -> None:
    client, server = open_pair(engine, svc_a().client(), svc_b().server())
    _, hello = client.handshake()
    # who connects and leaves without a word only probed the port
    assert (
        reason(tls.Connection(engine, svc_b().server(), True).handshake(eof=True)[0]) == "downstream_closed"
    )
    assert reason(server.handshake(hello[:20], eof=True)[0]) == "tls_handshake"
    assert reason(client.handshake(eof=True)[0]) == "upstream_tls_handshake"


def test_hellos_cut_and_changed_never_get_through(engine: tls.Engine) -> None:
    context = svc_b().server()
    _, hello = tls.Connection(engine, svc_a().client(), False).handshake()
    for position in range(len(hello)):
        server = tls.Connection(engine, context, True)
        changed = bytearray(hello)
        changed[position] ^= 0xFF
        result, _ = server.handshake(bytes(changed))
        assert result <= 0
        assert not tls.errors_queued()
