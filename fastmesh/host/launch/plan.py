"""What `fastmesh run` was asked for, from the command line to the process that does it."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Mode = Literal["cgroup", "isolate", "explicit"]


class Plan:
    """`config` is absolute; `environment` is set for the command beside what it inherits.

    `proxied`: the command is told of the sidecar by its environment, and nothing is taken over. For a command
    in a network namespace of its own: `inside` are the listeners to open in there, by name with their
    addresses, `names` the address of the sidecar's resolver in there, if it has one, and `published` the
    addresses on which the application listens there, for the sidecar.
    """

    def __init__(
        self,
        *,
        command: list[str],
        config: str,
        workload: str | None,
        mode: Mode,
        proxied: bool,
        timeout_s: float,
        environment: dict[str, str],
        inside: list[tuple[str, str, int]],
        published: list[tuple[str, int]],
        names: tuple[str, int] | None = None,
    ) -> None:
        self.command = command
        self.config = config
        self.workload = workload
        self.mode: Mode = mode
        self.proxied = proxied
        self.timeout_s = timeout_s
        self.environment = environment
        self.inside = inside
        self.published = published
        self.names = names

    @property
    def label(self) -> str:
        """Names the run in titles and messages."""
        return self.workload or self.config.rpartition("/")[2]

    def encode(self) -> str:
        return json.dumps(vars(self))

    @staticmethod
    def decode(text: str) -> Plan:
        fields = json.loads(text)
        fields["inside"] = [tuple(one) for one in fields["inside"]]
        fields["published"] = [tuple(one) for one in fields["published"]]
        fields["names"] = fields["names"] and tuple(fields["names"])
        return Plan(**fields)
