"""What the processes of one pod have to know of it: written by `inject`, read by `fastmesh pod-config`.

It is a description of the pod, not of settings: which settings follow from it is for the fastmesh in the
sidecar's image to say (`render`). And the places of files that both agree on.
"""

from __future__ import annotations

from typing import Final

import msgspec

CONFIG_FILE: Final = "fastmesh.yaml"
MESH_DIRECTORY: Final = "/etc/fastmesh/mesh"
POD_DIRECTORY: Final = "/etc/fastmesh/pod"
PKI_DIRECTORY: Final = "/etc/fastmesh/pki"


class Direction(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One direction of what is intercepted: `ports` of inbound traffic, and what is left out of it."""

    ports: list[int] = []
    exclude_ports: list[int] = []
    exclude_cidrs: list[str] = []


class ProbePort(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A port of the sidecar that hands the kubelet's requests for `paths`, and nothing else, to port `to`."""

    port: int
    to: int
    paths: list[str] = []
    grpc: bool = False


class Pod(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One pod. `user` is whose traffic is never intercepted: the sidecar's. `workers`: how many it has where
    the mesh's configuration does not say."""

    workload: str
    admin: int
    method: str
    user: int | None = None
    pki: bool = False
    workers: int | None = None
    inbound: Direction = Direction()
    outbound: Direction = Direction()
    probes: list[ProbePort] = []

    def text(self) -> str:
        return msgspec.json.encode(self).decode()


def parse(text: str) -> Pod:
    """Raises ValueError with what is wrong."""
    try:
        return msgspec.json.decode(text, type=Pod)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
