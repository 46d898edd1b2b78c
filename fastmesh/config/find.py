"""Which configuration file a command means."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastmesh.config.errors import ConfigError, ConfigErrors

DEFAULT_FILES: Final = (Path("fastmesh.yaml"), Path("/etc/fastmesh/fastmesh.yaml"))


def find_config(given: Path | None) -> Path:
    """The file that was given, else the first of `DEFAULT_FILES` that is there. Raises `ConfigErrors`."""
    if given is not None:
        return _utf8(given)
    for path in DEFAULT_FILES:
        if _is_there(path):
            return _utf8(path)
    here, system = DEFAULT_FILES
    message = f"does not exist, nor does {system}: give a file with -c, or write one with `fastmesh init`"
    raise ConfigErrors([ConfigError(str(here), 0, 0, message)])


def _utf8(path: Path) -> Path:
    """The path, if it can be written into a snapshot: its directory goes in there, too."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        message = "the path is not in UTF-8, expected one that is: rename the file or its directory"
        raise ConfigErrors([ConfigError(str(path), 0, 0, message)]) from None
    return path


def _is_there(path: Path) -> bool:
    # A dangling link, a directory of that name, and what cannot be looked at are meant too: `load` then says
    # what is wrong with it.
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True
