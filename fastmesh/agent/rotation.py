"""The rotation of certificates: notices what becomes of their files, has the identity renewed in time, says
loudly if one ends.

`tick` is called twice a second and never waits. Three things, each of its own:

  - It watches the entry of the workload, and the files of each listener and service with ordinary TLS. What
    changes there, by our renewal or by somebody else (another host's authority, cert-manager, an ACME
    client, a mounted secret, `certs revoke`), is loaded and proven by the loader once it has stopped
    changing, and used only if it is proven; else the one in use stays. Each of these parts stands alone.
  - It renews the identity from the authority in the same directory, if there is one, in a process of its own.
  - It says how far the certificates' lives have come, once for each stage.

Times of certificates are compared with the wall clock in every tick, so that a clock that jumps is noticed;
waiting after a failure is measured on the monotonic clock.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastmesh.agent.life import Life, Stage, span, stage_of
from fastmesh.agent.state import ROTATE
from fastmesh.agent.watch import RETRY_LOAD_S, Watch, is_in_use, places_of
from fastmesh.host.parts import IDENTITY, spoken

if TYPE_CHECKING:
    from fastmesh.agent.configuration import Configuration, Outcomes
    from fastmesh.agent.state import State

POLL_S: Final = 0.5
# An authority's lock is waited for by `certs` for 30 s.
RENEWAL_TIMEOUT_S: Final = 45.0
_MAX_WORDS: Final = 4096


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
        configuration.on_parts = self._loaded
        # By the names of the parts, of this snapshot.
        self._watches: dict[str, Watch] = {}
        self._watched: Mapping[str, Any] | None = None
        # The certificate that all below is about.
        self._certificate = ""
        self._life: Life | None = None
        self._stage = Stage.FINE
        self._renewal: Renewal | None = None
        self._renewing: Life | None = None  # of the certificate that it began with
        self._failures = 0
        self._retry_at = 0.0
        # What was said of those that others replace: the end, and how far they had come.
        self._told: dict[str, tuple[int, Stage]] = {}

    def tick(self) -> None:
        """Look at everything once."""
        identity = (self._state.snapshot or {}).get(IDENTITY)
        if self._renewal is not None and self._renewal.ended(self._steady()):
            self._renewed(self._renewal)
        own = identity if identity and identity.get("pki") else None
        if own is not None and own["certificate"] != self._certificate:
            self._begin(own)
        self._watch()
        if own is not None:
            assert self._life is not None
            self._renew(own, self._life)
            self._tell(own, self._life)
        self._tell_of_others()

    def look_again(self) -> None:
        """The snapshot in use is another one than was made last: what was loaded may not be in it."""
        for watch in self._watches.values():
            watch.forget()

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

    def _watch(self) -> None:
        snapshot, home = self._state.snapshot, self._home
        if snapshot is None:
            return
        if snapshot is not self._watched:
            known = self._watches
            self._watches = {}
            for name, places in places_of(snapshot, home):
                watch = known.get(name)
                same = watch is not None and watch.places == places
                self._watches[name] = watch if watch is not None and same else Watch(name, places)
            self._watched = snapshot
            self._note_errors()
        due = [
            name
            for name, watch in self._watches.items()
            if watch.due(partial(is_in_use, snapshot, name, home), self._steady())
        ]
        if due:
            self._load(*due)

    @property
    def _home(self) -> Path:
        return Path(self._state.config).parent

    def _load(self, *names: str) -> None:
        for name in names:
            self._watches[name].begin()
        self._configuration.load_parts(names)

    def _loaded(self, outcomes: Outcomes) -> None:
        """What became of them: the configuration's word."""
        for name, (outcome, why) in sorted(outcomes.items()):
            counts = self._state.identity_reloads if name == IDENTITY else self._state.tls_reloads
            counts[outcome] += 1
            watch = self._watches.get(name)
            if watch is not None and (line := watch.ended(outcome, why, self._steady())):
                self._say(line)
            if outcome == "accepted":
                self._say_new(name)
        self._note_errors()

    def _note_errors(self) -> None:
        self._state.part_errors = {name: watch.error for name, watch in self._watches.items() if watch.error}

    def _say_new(self, name: str) -> None:
        snapshot = self._state.snapshot
        assert snapshot is not None
        if name == IDENTITY:
            identity = snapshot[IDENTITY]
            what, ends = f"identity of {identity['spiffe_id']}", [identity["not_after"]]
        else:
            what = f"TLS of {spoken(name)}"
            ends = [one.end for one in self._state.tls_certificates() if one.part == name]
        left = f", for {span(min(ends) - self._clock())}" if ends else ""
        self._say(f"new {what}{left}: snapshot {snapshot['number']}")

    # the renewal

    def _renew(self, identity: Mapping[str, Any], life: Life) -> None:
        if self._renewal is not None or self._steady() < self._retry_at or self._watches[IDENTITY].loading:
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
        if IDENTITY in self._watches:
            self._load(IDENTITY)

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

    def _tell_of_others(self) -> None:
        """What somebody else has to replace: those above our certificate long before it cannot be renewed."""
        now = self._clock()
        identity = (self._state.snapshot or {}).get(IDENTITY) or {}
        ends = [
            (f"the {kind} above the certificate of {identity['spiffe_id']}", begin, end, f"; {ROTATE[kind]}")
            for kind, begin, end in self._state.authorities()
        ]
        ends += [(one.what, one.begin, one.end, "") for one in self._state.tls_certificates()]
        told: dict[str, tuple[int, Stage]] = {}
        for what, begin, end, remedy in ends:
            stage = stage_of(begin, end, now)
            told[what] = (end, stage)
            if stage == Stage.FINE or self._told.get(what) == told[what]:
                continue
            level = "warning" if stage == Stage.WARNING else "error"
            how_far = "IS OVER" if stage == Stage.OVER else f"ends in {span(end - now)}"
            self._say(f"{level}: {what} {how_far}{remedy}")
        self._told = told


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


def has_authority(identity: Mapping[str, Any]) -> bool:
    """Whether the authority that renews is in the same directory."""
    try:
        return Path(identity["pki"], "ca", "issuer").is_dir()
    except OSError:  # not ours to look at
        return False
