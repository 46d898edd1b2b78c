"""What Python sees of the data plane. The implementation is `_core.pyx`; keep both in one commit."""

from typing import Any, Final, Literal

RUN_CONTROL: Final[int]
RUN_DRAINED: Final[int]

# (metric name without the `fastmesh_` prefix, kind, help, labels); several rows may share a name.
COUNTERS: Final[tuple[tuple[str, Literal["counter", "gauge"], str, dict[str, str]], ...]]
SERVICE_COUNTERS: Final[tuple[tuple[str, Literal["counter", "gauge"], str, dict[str, str]], ...]]
# (name, side, HTTP status, text, gRPC status) by reason number; number 0 is "none".
REASONS: Final[tuple[tuple[str, str, int, str, int], ...]]
# Upper bounds of the latency histogram in seconds, without the last (infinite) one.
LATENCY_BOUNDS: Final[tuple[float, ...]]
# Upper bounds of the histogram of detection delays in seconds, without the last (infinite) one.
DETECT_BOUNDS: Final[tuple[float, ...]]
# What is counted for each rule of `allow` and `deny`.
DECISIONS: Final[tuple[str, ...]]

class Area:
    """Counters and access log rings in memory shared by the processes of one sidecar."""

    fd: int
    workers: int
    services: int
    rules: int
    checkable: int
    ticket_turn: int
    @staticmethod
    def create(
        workers: int, services: int = 1024, rules: int = 4096, listeners: int = 1024, health: int = 16384
    ) -> Area: ...
    @staticmethod
    def attach(fd: int) -> Area: ...
    def rotate_tickets(self) -> None:
        """New session tickets get a new key; those of the one until now are still taken, and renewed."""

    def worker_counters(self, slot: int) -> list[int]:
        """The values of a worker slot, aligned with COUNTERS."""

    def reason_counters(self, slot: int) -> list[int]:
        """How often each reason ended something in a worker slot, aligned with REASONS."""

    def service_counters(self, slot: int, service: int) -> list[int]:
        """The values of a service row in a worker slot, aligned with SERVICE_COUNTERS."""

    def service_latency(self, slot: int, service: int) -> tuple[list[int], float]:
        """Non-cumulative bucket counts (one more than LATENCY_BOUNDS) and the sum in seconds."""

    def detect_delays(self, slot: int) -> tuple[list[int], float]:
        """Non-cumulative bucket counts (one more than DETECT_BOUNDS) and the sum in seconds: how long the
        worker took to tell protocols.
        """

    def learned(self, slot: int) -> list[tuple[str | None, int, bool, int, int]]:
        """Where the worker could not tell the protocol in time: destination (None: the service was the
        listener's), row of the service, whether the server speaks first, connections that were waited for
        in vain, and connections that were not waited for.
        """

    def rule_counters(self, slot: int, rule: int) -> list[int]:
        """The values of a rule's row in a worker slot, aligned with DECISIONS."""

    def healthy(self, slot: int) -> bool:
        """What workers think of a checked endpoint; `slot` is its byte, of `checkable` ones."""

    def set_healthy(self, slot: int, healthy: bool) -> None:
        """Say it to the workers of all snapshots. It stays when this process has gone."""

    def shares(self, listener: int) -> list[int | None]:
        """By worker slot: how many connections of that listener it has or is about to get; None: others hand
        none to it.
        """

    def forget(self, slot: int, listeners: int) -> None:
        """The worker of this slot has died: of the first `listeners` listeners it has no connection, and
        nobody hands one to it.
        """

    def log_read(self, slot: int, limit: int = 1000) -> list[dict[str, object]]:
        """Take up to `limit` access log records out of a slot's ring, oldest first."""

    def log_dropped(self, slot: int) -> int:
        """Records that found the slot's ring full."""

class Worker:
    """One event loop of the data plane. Used by one thread of one process."""

    def __init__(self, area: Area, slot: int) -> None: ...
    def load(self, snapshot: bytes) -> None:
        """Take a snapshot (JSON); the first before `run`. Raises ValueError or OSError with the reason."""

    def siblings(self, inbox: int, outboxes: list[int]) -> None:
        """Share connections with the workers of all slots; once, before `listen`.

        What they hand to us comes to `inbox`; `outboxes` are where we send to, by slot (ours is not used).
        All stay the caller's.
        """

    def settle(self) -> None:
        """A sibling has died: what it was about to hand to us, and did not, will not come."""

    def listen(self, name: str, fd: int, number: int = -1) -> None:
        """Accept on a non-blocking listening socket, which stays the caller's, for the listener `name`.

        `number` is what all workers call it: with siblings its connections are shared out.
        """

    def run(self, control_fd: int) -> int:
        """Serve until `control_fd` is readable (RUN_CONTROL) or a drain has ended (RUN_DRAINED)."""

    def explain(
        self,
        listener: str,
        data: bytes,
        identity: str | None = None,
        source: str | None = None,
        port: int = 0,
        destination: tuple[str, int] | None = None,
    ) -> dict[str, Any]:
        """What the snapshot in force would make of a connection of this caller that begins with `data`: a
        request head, a TLS hello, or other bytes. TLS that ends at the listener is off already. On a
        transparent listener `destination` is where the client wanted to go (None: to the listener itself).

        reason (None: it goes on), protocol (http, opaque), service, endpoints, path, decision, rule,
        rules_of, audit.
        """

    def withdraw(self) -> None:
        """Inbound listeners stop accepting and let exchanges finish; outbound ones serve on."""

    def drain(self, deadline_ms: int) -> None:
        """Stop accepting, once the accept queues are empty, and let exchanges finish."""

    def close(self) -> dict[str, int]:
        """Free everything. Returns the balance counters: all zero when nothing leaked."""

def regex_error(pattern: str) -> tuple[str, int] | None:
    """What is wrong with a regex of a rule, and at which of its bytes; None: nothing."""

def normalize_path(path: str, keep_slashes: bool = False) -> str | None:
    """A path without its query in the form that rules compare and endpoints get; None: it is refused."""

def identity_error(identity: dict[str, Any], trust_domain: str) -> str | None:
    """What a worker would have against the identity of a snapshot; None: nothing."""

def tls_material_error(certificate: str | None, key: str | None, ca: str | None) -> str | None:
    """What is wrong with a certificate and its key, or with the roots to trust (PEM); None: nothing."""

def certificate_times(pem: str) -> tuple[int, int]:
    """When the first certificate in `pem` is valid: Unix seconds, the second one is out of it."""

def set_title(title: str) -> None:
    """Set the title of this process as ps shows it."""
