"""What `fastmesh inject` and `fastmesh webhook` share: the options that are defaults of annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
import msgspec

from fastmesh.cli.parameters import Checked
from fastmesh.kubernetes.settings import ANNOTATIONS, PREFIX, Pki, Settings

# Option -> its metavar. What differs from workload to workload is left to the annotations.
_OPTIONS = {
    "image": "IMAGE",
    "config": "CONFIGMAP",
    "pki": "WHERE",
    "method": "METHOD",
    "resources": "YAML",
    "admin-port": "PORT",
    "user": "UID",
    "exclude-outbound-ports": "PORTS",
    "exclude-outbound-cidrs": "NETWORKS",
    "exclude-inbound-cidrs": "NETWORKS",
}


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each annotation that makes sense for many pods at once."""
    for name, metavar in reversed(_OPTIONS.items()):
        known = ANNOTATIONS[name]
        option = click.option(
            f"--{name}",
            known.field,
            type=Checked(name, known.parse),
            metavar=metavar,
            help=f"{known.meaning.replace('`', '')} A pod's {PREFIX}{name} wins.",
        )
        function = option(function)
    return function


def given_options(chosen: dict[str, Any]) -> list[str]:
    """The options that were given, as another process is told them."""
    options = {ANNOTATIONS[name].field: name for name in _OPTIONS}
    return [f"--{options[field]}={_text(value)}" for field, value in chosen.items() if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, Pki):
        return ":".join(part for part in value if part)
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def settings_of(chosen: dict[str, Any]) -> Settings:
    """The settings that options choose."""
    given = {key: value for key, value in chosen.items() if value is not None}
    return msgspec.structs.replace(Settings(), **given)
