"""What the agent knows: the snapshot in use (without its key), the workers, how the last reload went.

Written by the channel's messages, read by the admin API and the metrics, all in one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastmesh.agent.health.words import RESULTS
from fastmesh.agent.life import Life, Stage, span, stage_of
from fastmesh.host.endpoints import checked
from fastmesh.host.parts import IDENTITY, blocks, owners, spoken
from fastmesh.host.secrets import redact

if TYPE_CHECKING:
    from fastmesh.agent.dns.words import Counts
    from fastmesh.agent.health.tls import CheckTls

ROTATE: Final = {"issuer": "run: fastmesh certs rotate-issuer", "root": "run: fastmesh certs rotate-root"}


class Worker(NamedTuple):
    slot: int
    pid: int
    state: str  # starting, ready, draining, dead
    restarts: int
    refused: str = ""  # why it does not use the newest snapshot


class TlsCertificate(NamedTuple):
    """A certificate of ordinary TLS, by the name of its file; the beginning and the end are Unix seconds."""

    part: str
    file: str
    begin: int
    end: int

    @property
    def what(self) -> str:
        return f"the certificate {self.file!r} of {spoken(self.part)}"


class Checked:
    """An endpoint that has health checks: what workers think of it, and what its checks came to."""

    def __init__(self, service: str, endpoint: str) -> None:
        self.service = service
        self.endpoint = endpoint
        self.healthy = True
        self.results = dict.fromkeys(RESULTS, 0)

    @property
    def what(self) -> str:
        return f"endpoint {self.endpoint} of service {self.service}"


class State:
    """`snapshot` never holds the private key: it is cut out before the snapshot is kept. `check_tls` is made
    of it before, for services whose health checks need it.
    """

    def __init__(self) -> None:
        self.started = time.time()
        self.config = ""
        self.snapshot: dict[str, Any] | None = None
        self.workers: list[Worker] = []
        self.draining = False
        self.agent_restarts = 0
        # Configurations after the first. accepted: handed to the workers; unchanged: equal to the one in use;
        # rejected: it has errors; refused: a listener of it could not be opened.
        self.reloads = {"accepted": 0, "unchanged": 0, "rejected": 0, "refused": 0}
        # Why the newest configuration is not in use; empty when it is.
        self.errors: list[str] = []
        # Parts loaded alone, because their files had changed, and why the newest of a part is not in use.
        self.identity_reloads = {"accepted": 0, "unchanged": 0, "rejected": 0}
        self.tls_reloads = dict(self.identity_reloads)
        self.part_errors: dict[str, str] = {}
        self.renewals = {"succeeded": 0, "failed": 0}
        self.renewal_error = ""
        # Of the resolver; None as long as there has been none. Why it does not answer; empty when it does.
        self.dns: Counts | None = None
        self.dns_error = ""
        self.checked: list[Checked] = []
        self.check_tls: dict[str, CheckTls] = {}

    def take_snapshot(self, snapshot: dict[str, Any]) -> None:
        if any(service["tls"] != "none" for service, _ in checked(snapshot)):
            from fastmesh.agent.health.tls import check_tls  # brings in `ssl`: only those who need it pay

            self.check_tls = check_tls(snapshot, self.check_tls)
        else:
            self.check_tls = {}
        redact(snapshot)
        self.snapshot = snapshot

    def take_status(self, message: Mapping[str, Any]) -> None:
        self.workers = [
            Worker(
                worker["slot"], worker["pid"], worker["state"], worker["restarts"], worker.get("refused", "")
            )
            for worker in message["workers"]
        ]
        self.draining = message["draining"]
        self.agent_restarts = message.get("agent_restarts", 0)

    @property
    def slots(self) -> int:
        """How many worker slots are in use: shared memory may have room for more."""
        if self.workers:
            return 1 + max(worker.slot for worker in self.workers)
        return self.snapshot["workers"] if self.snapshot is not None else 0

    def services(self) -> list[tuple[str, int]]:
        """Name and counter row of each service of the snapshot."""
        if self.snapshot is None:
            return []
        return [(service["name"], service["slot"]) for service in self.snapshot["services"]]

    def virtual(self) -> dict[str, list[str]]:
        """The virtual addresses of each service of the snapshot that has some."""
        services = (self.snapshot or {}).get("services", ())
        return {one["name"]: one["virtual"] for one in services if one.get("virtual")}

    def rules(self) -> list[tuple[str, str, str, int]]:
        """The counter rows of rules: (listener or service, its name, rule or default, row)."""
        rows: list[tuple[str, str, str, int]] = []
        for kind in ("listener", "service"):
            for owner in (self.snapshot or {}).get(f"{kind}s", ()):
                if owner.get("rule_slot") is None:
                    continue
                rows.append((kind, owner["name"], "default", owner["rule_slot"]))
                for rule in (*(owner["allow"] or ()), *(owner["deny"] or ())):
                    rows.append((kind, owner["name"], rule["name"], rule["slot"]))
        return rows

    def processes(self) -> Iterator[tuple[str, str, int]]:
        """What runs on this host for the proxy: (process, worker slot or "", pid)."""
        yield "supervisor", "", os.getppid()
        yield "agent", "", os.getpid()
        for worker in self.workers:
            if worker.pid:
                yield "worker", str(worker.slot), worker.pid

    def certificates(self) -> list[tuple[str, int]]:
        """What the identity rests on, with its end in Unix seconds: workload, issuer, root."""
        identity = (self.snapshot or {}).get("identity") or {}
        ends = {"workload": "not_after", "issuer": "issuer_not_after", "root": "root_not_after"}
        return [(kind, identity[key]) for kind, key in ends.items() if key in identity]

    def authorities(self) -> list[tuple[str, int, int]]:
        """The CAs that the certificate rests on: `issuer` or `root`, beginning and end in Unix seconds."""
        identity = (self.snapshot or {}).get("identity") or {}
        return [
            (kind, identity[f"{kind}_not_before"], identity[f"{kind}_not_after"])
            for kind in ("issuer", "root")
            if f"{kind}_not_before" in identity
        ]

    def tls_certificates(self) -> list[TlsCertificate]:
        """Those that listeners and services show, each once for each of them."""
        found = {
            (name, block["files"]["certificate"]): (block["not_before"], block["not_after"])
            for name, owner in owners(self.snapshot or {})
            for block in blocks(owner)
            if "not_after" in block
        }
        return [TlsCertificate(*place, *times) for place, times in found.items()]

    @property
    def workload(self) -> str:
        return str((self.snapshot or {}).get("workload") or "")

    def warnings(self, now: float | None = None) -> list[str]:
        """What will keep the proxy from being ready unless somebody acts."""
        now = time.time() if now is None else now
        found = [
            f"worker {worker.slot} goes on with an older snapshot: {worker.refused}"
            for worker in self.workers
            if worker.refused and worker.state == "ready"
        ]
        found += self._identity_warnings(now)
        for one in self.tls_certificates():
            stage = stage_of(one.begin, one.end, now)
            if stage != Stage.FINE:
                left = one.end - now
                found.append(
                    f"{one.what} " + (f"ends in {span(left)}" if left > 0 else f"is over for {span(-left)}")
                )
        found += [f"no endpoint of service {name} is healthy: all are used" for name in self.all_unhealthy()]
        if self.dns_error:
            found.append(self.dns_error)
        for name, why in self.part_errors.items():
            what = "identity" if name == IDENTITY else f"TLS of {spoken(name)}"
            found.append(f"the {what} on disk is not taken over: {why}")
        return found

    def _identity_warnings(self, now: float) -> list[str]:
        found: list[str] = []
        identity = (self.snapshot or {}).get("identity") or {}
        if "not_after" not in identity:
            return found
        life = Life.of(identity)
        stage = life.stage(now)
        if stage in (Stage.WARNING, Stage.URGENT):
            found.append(f"the certificate of {identity['spiffe_id']} ends in {span(life.end - now)}")
        elif stage == Stage.EARLY:
            found.append(
                f"the certificate of {identity['spiffe_id']} is valid in {span(life.not_before - now)} only"
            )
        for kind, begin, end in self.authorities():
            if end - now < life.length:
                found.append(f"the {kind} ends in {span(end - now)}, before a new certificate would")
            elif stage_of(begin, end, now) >= Stage.WARNING:
                found.append(f"the {kind} ends in {span(end - now)}; {ROTATE[kind]}")
        if self.renewal_error:
            found.append(f"the certificate could not be renewed: {self.renewal_error}")
        return found

    def all_unhealthy(self) -> list[str]:
        """The services none of whose endpoints is healthy."""
        healthy: dict[str, bool] = {}
        for one in self.checked:
            healthy[one.service] = healthy.get(one.service, False) or one.healthy
        return [service for service, any_healthy in healthy.items() if not any_healthy]

    def not_ready(self, now: float | None = None) -> list[str]:
        """Why the proxy is not ready; empty when it is."""
        now = time.time() if now is None else now
        reasons = []
        ends = dict(self.certificates())
        if "workload" in ends and now >= ends["workload"]:
            reasons.append(f"the certificate of {self.workload} is over for {span(now - ends['workload'])}")
        if self.draining:
            reasons.append("the proxy is shutting down")
        if self.snapshot is None:
            reasons.append("no configuration is in use yet")
        elif not self.workers:
            reasons.append("no worker has been started yet")
        return reasons + [
            f"worker {worker.slot} is {worker.state}" for worker in self.workers if worker.state != "ready"
        ]
