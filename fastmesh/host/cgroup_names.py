"""Which cgroups rules can name: for the configuration, and for processes that do not import it."""

from __future__ import annotations

import re

# One directory of the hierarchy. nft reads more into any other character.
_PART = r"[A-Za-z0-9_.@:\\+=,~-]+"
# A cgroup below the root, or its directory.
PATH = re.compile(rf"/?{_PART}(/{_PART})*/?")
_LONGEST = 1024


def is_cgroup(path: str) -> bool:
    """Whether rules can name a cgroup of this path below the root."""
    return len(path) <= _LONGEST and bool(PATH.fullmatch(path)) and not {".", ".."} & set(path.split("/"))
