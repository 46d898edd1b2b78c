"""The identity's rotation: notices what becomes of its files, has it renewed in time, says loudly if it ends.

`tick` is called twice a second and never waits. Three things, each of its own:

  - It watches the entry of the workload. What changes there, by our renewal or by somebody else (another
    host's authority, cert-manager, a mounted secret, `certs revoke`), is loaded and proven by the loader
    once it has stopped changing, and used only if it is proven; else the one in use stays.
  - It renews from the authority in the same directory, if there is one, in a process of its own.
  - It says how far the certificate's life has come, once for each stage.

Times of certificates are compared with the wall clock in every tick, so that a clock that jumps is noticed;
waiting after a failure is measured on the monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastmesh.agent.life import Life, Stage, span, stage_of
from fastmesh.agent.state import ROTATE

if TYPE_CHECKING:
    from fastmesh.agent.configuration import Configuration
    from fastmesh.agent.state import State

POLL_S: Final = 0.5
# An authority's lock is waited for by `certs` for 30 s.
RENEWAL_TIMEOUT_S: Final = 45.0
RETRY_LOAD_S: Final = 2.0
RETRY_LOAD_MOST_S: Final = 60.0
FILES: Final = ("certificate.pem", "key.pem", "bundle.pem", "federated.json", "revoked.json")
_PLACES: Final = ("", "current", "..data", *FILES)
_MAX_WORDS: Final = 4096

Print = tuple[object, ...]


class Rotation:
    """`say` takes lines for the operator; `clock` is Unix time, `steady` the monotonic clock."""

    def __init__(
        self,
        state: State,
        configuration: Configuration,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._configuration = configuration
        self._say = say
        self._clock = clock
        self._steady = steady
        configuration.on_identity = self._loaded_identity
        # What of the entry was loaded last, and what it was at the last look.
        self._taken: Print | None = None
        self._seen: Print | None = None
        self._loading = False
        self._rejections = 0
        self._load_again_at = 0.0
        self._said = ""
        # The certificate that all below is about.
        self._certificate = ""
        self._life: Life | None = None
        self._stage = Stage.FINE
        self._renewal: Renewal | None = None
        self._renewing: Life | None = None  # of the certificate that it began with
        self._failures = 0
        self._retry_at = 0.0
        # What was said of the issuer and the root last: the end, and how far they had come.
        self._authorities: dict[str, tuple[int, Stage]] = {}

    def tick(self) -> None:
        """Look at everything once."""
        identity = (self._state.snapshot or {}).get("identity")
        if self._renewal is not None and self._renewal.ended(self._steady()):
            self._renewed(self._renewal)
        if not identity or not identity.get("pki"):
            return
        if identity["certificate"] != self._certificate:
            self._begin(identity)
        assert self._life is not None
        self._watch(identity)
        self._renew(identity, self._life)
        self._tell(identity, self._life)
        self._tell_of_authorities(identity["spiffe_id"])

    def look_again(self) -> None:
        """The snapshot in use is another one than was made last: what was loaded may not be in it."""
        self._taken = None

    def close(self) -> None:
        """End a renewal under way: it may be killed between any two of its writes."""
        if self._renewal is not None:
            self._renewal.close()
            self._renewal = None

    def _begin(self, identity: Mapping[str, Any]) -> None:
        """Another certificate is in use."""
        life = Life.of(identity)
        if self._life is None or life.end > self._life.end:
            # Whoever renewed it: what kept us from doing so is over. Not if it ends with the same issuer.
            self._state.renewal_error = ""
        self._certificate = identity["certificate"]
        self._life = life
        self._stage = Stage.FINE
        self._failures = 0
        self._retry_at = 0.0

    # the files

    def _watch(self, identity: Mapping[str, Any]) -> None:
        entry = entry_of(identity)
        seen = fingerprint(entry)
        if self._taken is None:
            # The first look. What was loaded before it may be something else by now.
            self._taken = seen if _is_in_use(entry, identity) else ()
            self._seen = seen
        still, self._seen = seen == self._seen, seen
        if self._loading or not still:  # perhaps in the middle of being written
            return
        again = self._rejections and self._steady() >= self._load_again_at
        if seen != self._taken or again:
            self._load(seen)

    def _load(self, seen: Print) -> None:
        self._taken = seen
        self._loading = True
        self._configuration.load_identity()

    def _loaded_identity(self, outcome: str, why: str) -> None:
        """What became of it: the configuration's word."""
        state = self._state
        self._loading = False
        state.identity_reloads[outcome] += 1
        state.identity_error = why
        if outcome == "rejected":
            # Not only when the files change again: the clock, memory or the disk may have been the reason.
            delay = min(RETRY_LOAD_S * 2.0 ** min(self._rejections, 16), RETRY_LOAD_MOST_S)
            self._rejections += 1
            self._load_again_at = self._steady() + delay
            if why != self._said:
                self._say(f"warning: the identity on disk is not taken over, the one in use stays: {why}")
            self._said = why
            return
        if self._said:
            self._say("the identity on disk is good again")
        self._rejections, self._said = 0, ""
        if outcome == "accepted" and state.snapshot is not None:
            identity = state.snapshot["identity"]
            left = span(identity["not_after"] - self._clock())
            self._say(
                f"new identity of {identity['spiffe_id']}, for {left}: snapshot {state.snapshot['number']}"
            )

    # the renewal

    def _renew(self, identity: Mapping[str, Any], life: Life) -> None:
        if self._renewal is not None or self._loading or self._steady() < self._retry_at:
            return
        if not life.due(self._clock()) or not has_authority(identity):
            return
        try:
            self._renewal = Renewal(identity["pki"], identity["workload"], self._steady())
            self._renewing = life
        except OSError as error:
            self._failed(f"the renewal cannot be started: {error.strerror}")

    def _renewed(self, renewal: Renewal) -> None:
        self._renewal = None
        why = renewal.failure
        if why is not None:
            self._failed(why)
            return
        life = self._renewing
        end = renewal.not_after
        if life is not None and end is not None and end <= life.end and self._clock() >= life.not_before:
            # An issuing CA near its end cuts what it issues: without this, renewals would chase its end.
            self._failed("the issuing CA itself ends then; run: fastmesh certs rotate-issuer")
        else:
            self._state.renewals["succeeded"] += 1
            self._state.renewal_error = ""
            # Until the new one is in use; if it cannot be, a next one is tried.
            self._retry_at = self._steady() + (life.backoff(8) if life is not None else RETRY_LOAD_S)
        if self._state.snapshot is not None and self._state.snapshot["identity"]:
            self._load(fingerprint(entry_of(self._state.snapshot["identity"])))

    def _failed(self, why: str) -> None:
        self._state.renewals["failed"] += 1
        self._state.renewal_error = why
        self._failures += 1
        life = self._life
        if life is None:
            return
        delay = life.backoff(self._failures) * random.uniform(0.5, 1.0)
        self._retry_at = self._steady() + delay
        now = self._clock()
        level = "error" if life.stage(now) >= Stage.URGENT else "warning"
        left = f"ends in {span(life.end - now)}" if now < life.end else "is over"
        self._say(
            f"{level}: the certificate could not be renewed: {why}; the one in use {left}, "
            f"next try in {span(max(delay, 1))}"
        )

    # how far it has come

    def _tell(self, identity: Mapping[str, Any], life: Life) -> None:
        now = self._clock()
        stage = life.stage(now)
        if stage == self._stage:
            return
        self._stage = stage
        name = identity["spiffe_id"]
        why = "" if has_authority(identity) else f"; there is no authority in {identity['pki']} to renew it"
        if stage in (Stage.WARNING, Stage.URGENT):
            level = "warning" if stage == Stage.WARNING else "error"
            self._say(f"{level}: the certificate of {name} ends in {span(life.end - now)}{why}")
        elif stage == Stage.OVER:
            self._say(
                f"error: the certificate of {name} IS OVER: no TLS connection is accepted or made until "
                f"there is a new one{why}"
            )
        elif stage == Stage.EARLY:
            self._say(
                f"warning: the certificate of {name} is valid in {span(life.not_before - now)} only: is the "
                "clock of this host right?"
            )

    def _tell_of_authorities(self, name: str) -> None:
        """They have to be replaced by somebody, long before the certificates under them cannot be renewed."""
        now = self._clock()
        for kind, begin, end in self._state.authorities():
            said = (end, stage_of(begin, end, now))
            if self._authorities.get(kind, (end, Stage.FINE)) != said and said[1] in (
                Stage.WARNING,
                Stage.URGENT,
            ):
                level = "warning" if said[1] == Stage.WARNING else "error"
                left = span(end - now)
                self._say(
                    f"{level}: the {kind} above the certificate of {name} ends in {left}; {ROTATE[kind]}"
                )
            self._authorities[kind] = said


class Renewal:
    """`python -P -m fastmesh.certs.renewal PKI WORKLOAD` at work."""

    def __init__(self, pki: str, workload: str, now: float) -> None:
        self._output = os.memfd_create("fastmesh-renewal", os.MFD_CLOEXEC)
        command = [sys.executable, "-P", "-m", "fastmesh.certs.renewal", pki, workload]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
            )
        except OSError:
            os.close(self._output)
            raise
        self._deadline = now + RENEWAL_TIMEOUT_S
        self._expired = False
        self._words = ""

    def ended(self, now: float) -> bool:
        """Whether it has ended; it is ended here when its time is up."""
        if self._process.poll() is None:
            if now < self._deadline:
                return False
            self._expired = True
        self._words = os.pread(self._output, _MAX_WORDS, 0).decode("utf-8", "replace").strip()
        self.close()
        return True

    @property
    def failure(self) -> str | None:
        """Why it failed; None if it did not."""
        code = self._process.returncode
        if self._expired:
            return f"the renewal has not ended within {RENEWAL_TIMEOUT_S:.0f} s; killed"
        if code == 0:
            return None
        if code < 0:
            return f"the renewal was killed by {signal.Signals(-code).name}"
        return " ".join(self._words.splitlines()[-1:]) or f"the renewal ended with {code}"

    @property
    def not_after(self) -> float | None:
        """The end of the new certificate."""
        try:
            return float(json.loads(self._words)["not_after"])
        except (ValueError, LookupError, TypeError):
            return None

    def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        if self._output >= 0:
            os.close(self._output)
            self._output = -1


def entry_of(identity: Mapping[str, Any]) -> Path:
    """The directory of the workload's files."""
    return Path(identity["pki"], "workloads", identity["workload"])


def has_authority(identity: Mapping[str, Any]) -> bool:
    """Whether the authority that renews is in the same directory."""
    try:
        return Path(identity["pki"], "ca", "issuer").is_dir()
    except OSError:  # not ours to look at
        return False


def fingerprint(entry: Path) -> Print:
    """What changes when anything about the files of an entry does: the links that are followed, inodes,
    times and sizes."""
    prints: list[object] = []
    for place in _PLACES:
        try:
            found = (entry / place).stat()
        except OSError as error:
            prints.append(error.errno)
        else:
            prints.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(prints)


def _is_in_use(entry: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the public part of the entry is what the snapshot has."""
    # Not at the top: an agent without an identity does without. Read as the loader reads: nothing that stands
    # there (a FIFO, an endless file) can hold it up.
    from fastmesh.certs import files, store

    with contextlib.suppress(OSError, store.PkiError):
        found = files.read_entry(entry, (store.CERTIFICATE, store.BUNDLE), (store.FEDERATED, store.REVOKED))
        there = {
            "certificate": found[store.CERTIFICATE],
            "bundle": found[store.BUNDLE],
            "federated": store.read_federated(found.get(store.FEDERATED), "", ""),
            "revoked": [*store.read_revoked(found.get(store.REVOKED), "")],
        }
        return all(identity[key] == value for key, value in there.items())
    return False
