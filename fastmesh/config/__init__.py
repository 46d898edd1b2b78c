"""The configuration: a YAML file into a checked `Config` (`load`), that into a snapshot (`make_snapshot`).

Importing this package is cheap: PyYAML comes in when a file is read, `ssl` when an identity is.
"""

from fastmesh.config.cpus import usable_cpus
from fastmesh.config.errors import ConfigError, ConfigErrors
from fastmesh.config.find import find_config
from fastmesh.config.loader import Loaded, load
from fastmesh.config.snapshot import make_snapshot

__all__ = [
    "ConfigError",
    "ConfigErrors",
    "Loaded",
    "find_config",
    "load",
    "make_snapshot",
    "usable_cpus",
]
