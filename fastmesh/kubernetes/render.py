"""The configuration of one pod: the mesh's, which all pods share, with what this pod is.

Settings of the pod are laid over the file: mappings are merged, lists are added to, a single value takes the
place of the one that was there. Where nothing that arrives is taken over, transparent listeners for it would
have nothing to hear: a pod without ports (a Job) is without them. Nothing is checked here: whoever loads the
result does.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import yaml

from fastmesh.config.document import decode
from fastmesh.config.errors import ConfigError, ConfigErrors
from fastmesh.kubernetes import nodes
from fastmesh.kubernetes.pod import PKI_DIRECTORY, Pod
from fastmesh.kubernetes.probes import GRPC_PATH


def render(data: bytes, name: str, pod: Pod, address: str) -> str:
    """The text of the pod's configuration; `address`: the pod's own.

    Raises `ConfigErrors` for what is no YAML, and ValueError for an `address` that is none.
    """
    found = nodes.compose(decode(data, name), name)
    if len(found) != 1 or not isinstance(found[0].root, yaml.MappingNode):
        message = "expected one document, a mapping with listeners and services"
        raise ConfigErrors([ConfigError(name, 1, 1, message)])
    root = found[0].root
    _lay(root, settings(pod, address))
    said = nodes.value(root)
    if pod.workers is not None and "workers" not in said:
        _lay(root, {"workers": pod.workers})
    if "inbound" not in (said.get("intercept") or {}):
        _leave_out(root)
    return nodes.written(root)


def settings(pod: Pod, address: str) -> dict[str, Any]:
    """What a pod says of the configuration, in the shape of a configuration."""
    # The kubelet asks at the pod's first address: on all addresses of its family, loopback for those within.
    everywhere = "[::]" if ipaddress.ip_address(address).version == 6 else "0.0.0.0"
    intercept: dict[str, Any] = {
        "method": pod.method,
        "outbound": _left_out(pod.outbound.exclude_ports, pod.outbound.exclude_cidrs),
    }
    if pod.inbound.ports:
        intercept["inbound"] = {"ports": pod.inbound.ports, **_left_out([], pod.inbound.exclude_cidrs)}
    if pod.user is not None:
        intercept["exempt_uids"] = [pod.user]
    over: dict[str, Any] = {"workload": pod.workload}
    if pod.pki:
        over["pki"] = PKI_DIRECTORY
    over |= {"admin": f"{everywhere}:{pod.admin}", "intercept": intercept}
    if pod.probes:
        over["listeners"] = [
            {
                "name": f"kubelet-{probe.to}",
                "bind": f"{everywhere}:{probe.port}",
                "protocol": "http",
                "to": f"kubelet-{probe.to}",
                "allow": [
                    *([{"methods": ["GET"], "paths": list(probe.paths)}] if probe.paths else []),
                    *([{"methods": ["POST"], "paths": [GRPC_PATH]}] if probe.grpc else []),
                ],
            }
            for probe in pod.probes
        ]
        over["services"] = {
            f"kubelet-{probe.to}": {"endpoints": [f"{_loopback(address)}:{probe.to}"]} for probe in pod.probes
        }
    return over


def _left_out(ports: list[int], cidrs: list[str]) -> dict[str, Any]:
    return {**({"exclude_ports": ports} if ports else {}), **({"exclude_cidrs": cidrs} if cidrs else {})}


def _loopback(address: str) -> str:
    return "[::1]" if ":" in address else "127.0.0.1"


def _leave_out(root: yaml.MappingNode) -> None:
    """The transparent listeners for what arrives."""
    for key, listeners in root.value:
        if key.value == "listeners" and isinstance(listeners, yaml.SequenceNode):
            listeners.value = [one for one in listeners.value if not _is_inbound(nodes.value(one))]


def _is_inbound(listener: Any) -> bool:
    return (
        isinstance(listener, dict)
        and listener.get("role") == "inbound"
        and listener.get("transparent") is True
    )


def _lay(at: yaml.MappingNode, over: dict[str, Any]) -> None:
    for name, wanted in over.items():
        index = next((i for i, (key, _) in enumerate(at.value) if key.value == name), None)
        if index is None:
            at.flow_style = False
            at.value.append((nodes.node(name), nodes.node(wanted)))
            continue
        key, before = at.value[index]
        if isinstance(wanted, dict) and isinstance(before, yaml.MappingNode):
            _lay(before, wanted)
        elif isinstance(wanted, list) and isinstance(before, yaml.SequenceNode):
            there = nodes.value(before)
            before.value += [nodes.node(one) for one in wanted if one not in there]
        else:
            at.value[index] = (key, nodes.node(wanted))
