"""Times: both ends of every certificate in the chain, to the second, and issuers near their end."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from kit.certs import Forge, plain

from fastmesh.certs import authority, rotation
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, PkiError, load_identity

DAY = 86400
YEAR = 365 * DAY
NOW = int(time.time())


def test_the_leaf_is_good_in_its_first_and_last_second(ca: Path) -> None:
    made = authority.issue(ca, "svc-a", 60)
    for moment in (made.not_before, made.not_after - 0.5, made.not_after):
        assert load_identity(ca, "svc-a", now=moment).not_after == made.not_after
    with pytest.raises(PkiError, match=r"is valid from .* only"):
        load_identity(ca, "svc-a", now=made.not_before - 1)
    with pytest.raises(PkiError, match=r"certificate.*expired at .*; run: fastmesh certs issue svc-a"):
        load_identity(ca, "svc-a", now=made.not_after + 0.5)


def test_it_starts_before_now_for_hosts_whose_clock_is_behind(ca: Path) -> None:
    moment = NOW + 3600
    made = authority.issue(ca, "svc-a", 60, now=moment)
    assert made.not_before == moment - 20
    assert made.not_after == moment + 60


def test_it_does_not_start_before_its_issuer(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", now=NOW)
    made = authority.issue(pki, "svc-a", now=NOW - 15)
    assert made.not_before == NOW - 20
    load_identity(pki, "svc-a", now=NOW - 20)


def test_it_does_not_outlive_its_issuer(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    created = authority.create(pki, "mesh.local", now=NOW - YEAR + 3600)
    made = authority.issue(pki, "svc-a", DAY, now=NOW)
    assert made.capped
    assert made.not_after == created.issuer_not_after < NOW + 3600
    exact = authority.issue(pki, "svc-a", created.issuer_not_after - NOW, now=NOW)
    assert not exact.capped
    load_identity(pki, "svc-a", now=created.issuer_not_after)


@pytest.mark.parametrize("left", [-YEAR, -1, 0, 9])
def test_an_issuer_at_its_end_signs_nothing(tmp_path: Path, left: int) -> None:
    pki = tmp_path / "pki"
    created = authority.create(pki, "mesh.local", now=NOW)
    with pytest.raises(PkiError, match="the issuing CA ended at"):
        authority.issue(pki, "svc-a", now=created.issuer_not_after - left)
    assert not (pki / "workloads").exists()


def test_a_clock_before_the_issuer(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", now=NOW)
    with pytest.raises(PkiError, match=r"the issuing CA is valid from .*; set the clock"):
        authority.issue(pki, "svc-a", now=NOW - DAY)


@pytest.mark.parametrize("moment", [0, -1, 2**31, 2**33, 253402300799, 2**62])
def test_clocks_that_are_far_off(tmp_path: Path, moment: int) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", now=NOW)
    authority.issue(pki, "svc-a", now=NOW)
    with pytest.raises(PkiError):
        authority.issue(pki, "svc-a", now=moment)
    with pytest.raises(PkiError):
        load_identity(pki, "svc-a", now=moment)


@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_a_clock_that_jumps_a_day(tmp_path: Path, jump: int) -> None:
    """Every command names the certificate that is not valid then, or does its work; nothing is lost."""
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", now=NOW)
    authority.issue(pki, "svc-a", 3600, now=NOW)
    moment = NOW + jump
    with pytest.raises(PkiError, match="is valid from" if jump < 0 else "expired at"):
        load_identity(pki, "svc-a", now=moment)
    works = (
        lambda: authority.issue(pki, "svc-b", now=moment),
        lambda: authority.renew(pki, "svc-a", now=moment),
        lambda: rotation.rotate_issuer(pki, now=moment),
        lambda: rotation.introduce(pki, now=moment),
    )
    for work in works:
        if jump < 0:
            with pytest.raises(PkiError, match=r"is valid from .*; set the clock"):
                work()
        else:
            work()
    if jump > 0:
        load_identity(pki, "svc-a", now=moment)
        rotation.switch(pki, now=moment)
        load_identity(pki, "svc-a", now=moment)
    else:
        load_identity(pki, "svc-a", now=NOW)
        assert rotation.state(pki) is None


@pytest.mark.parametrize("moment", [2524607990, 2524608010 + YEAR])
def test_beyond_2049(tmp_path: Path, moment: int) -> None:
    """RFC 5280 section 4.1.2.5 changes the form of times with the year 2050."""
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", now=moment)
    made = authority.issue(pki, "svc-a", now=moment)
    found = load_identity(pki, "svc-a", now=moment)
    assert (found.not_before, found.not_after) == (made.not_before, made.not_after)


def test_an_expired_issuer_in_the_chain(ca: Path) -> None:
    """The leaf alone would be good; a peer would refuse it, so it is refused here, with the issuer's name."""
    forge = Forge(ca)
    forge.issuer = resigned(ca, end=NOW - 5)
    plain(ca / "workloads/svc-a", forge.files(["spiffe://mesh.local/svc-a"]))
    with pytest.raises(PkiError, match=r"the issuer mesh\.local issuer \w+ in .* expired at"):
        load_identity(ca, "svc-a")


def test_expired_roots(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    authority.create(old, "mesh.local", now=NOW - 11 * YEAR)
    authority.create(new, "mesh.local", now=NOW)
    good = Forge(new).files(["spiffe://mesh.local/svc-a"])
    expired = (old / "ca" / BUNDLE).read_text()
    svc = plain(new / "workloads/svc-a", {**good, BUNDLE: expired})
    with pytest.raises(PkiError, match=r"the root mesh\.local root \w+ in .*bundle\.pem expired at"):
        load_identity(new, "svc-a")
    # An expired root beside the right one harms nobody, whichever comes first.
    for bundle in (expired + good[BUNDLE], good[BUNDLE] + expired):
        (svc / BUNDLE).write_text(bundle)
        load_identity(new, "svc-a")


def test_an_expired_root_proves_nothing(tmp_path: Path) -> None:
    """Also when the bundle holds another root, which is valid."""
    pki, other = tmp_path / "pki", tmp_path / "other"
    authority.create(pki, "mesh.local", now=NOW)
    authority.create(other, "mesh.local", now=NOW + 11 * YEAR)
    moment = NOW + 11 * YEAR
    forge = Forge(pki)
    forge.issuer = resigned(pki, end=moment + DAY)
    found = forge.files(["spiffe://mesh.local/svc-a"], end=11 * YEAR + 3600)
    plain(pki / "workloads/svc-a", {**found, BUNDLE: found[BUNDLE] + (other / "ca" / BUNDLE).read_text()})
    with pytest.raises(PkiError, match="does not lead to"):
        load_identity(pki, "svc-a", now=moment)


def resigned(pki: Path, end: int) -> x509.Certificate:
    """The issuer's certificate with another end of life, signed by the root."""
    root_files = (pki / "ca/root" / CERTIFICATE, pki / "ca/root" / KEY)
    issuer = Forge(pki).issuer
    root = x509.load_pem_x509_certificate(root_files[0].read_bytes())
    key = serialization.load_pem_private_key(root_files[1].read_bytes(), None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(issuer.subject)
        .issuer_name(root.subject)
        .public_key(issuer.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(NOW - DAY, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(end, datetime.UTC))
    )
    for extension in issuer.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
