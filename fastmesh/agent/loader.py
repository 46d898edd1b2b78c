"""Reads a configuration, or parts of one alone, in a process of its own:
`python -m fastmesh.agent.loader RESULT_FD < request`, or at an agent's start a copy of it (`answer`).

The request is a JSON object: the file (`config`, absolute), `workers` and `workload` (null: as it says), the
`number` that the snapshot gets, and of the snapshot in use its `digest`, `slots`, `rule_slots`,
`health_slots` and `virtual`. The result is the body of the frame that goes to the supervisor: "snapshot",
"unchanged", "config_error" or "pki_error".
With a `snapshot` in the request (the one in use, without its keys) only the files of those of its `parts` are
read anew, and everything else stays as it is: the configuration may be in the middle of somebody's work. The
result is "parts" then, with those that are new: the supervisor has the rest, and its keys. Why others may not
become new is in `refused`, of "unchanged" as well.

A process that ends gives all its memory back, cannot be slowed down by the agent, and may be killed when a
name server does not answer. It ends with the agent, too: nobody is left to wait for its result.
"""

from __future__ import annotations

import gc
import json
import os
import select
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from fastmesh.host.channel import encode, snapshot_frame


def load(request: dict[str, Any]) -> bytes:
    """The result for a request."""
    from fastmesh.config import ConfigErrors, load, make_snapshot

    try:
        if request.get("snapshot"):
            return _parts(request)
        snapshot = make_snapshot(
            load(Path(request["config"]), request.get("workload")),
            request["number"],
            request["workers"],
            request["slots"],
            rule_slots=request["rule_slots"],
            health_slots=request["health_slots"],
            virtual=request["virtual"],
        )
    except ConfigErrors as error:
        errors = [str(one) for one in error.errors]
        return encode({"type": "config_error", "errors": errors, "initial": request["digest"] is None})
    except Exception as error:
        # The module is there if its error is: a configuration without an identity does not import it.
        store = sys.modules.get("fastmesh.certs.store")
        if store is None or not isinstance(error, store.PkiError):
            raise
        return encode({"type": "pki_error", "message": str(error)})
    if snapshot["digest"] == request["digest"]:
        return encode({"type": "unchanged"})
    return snapshot_frame(encode(snapshot))


def _parts(request: dict[str, Any]) -> bytes:
    """What becomes of parts of the snapshot with what their files hold now."""
    from fastmesh.certs.errors import PkiError
    from fastmesh.config.snapshot import digest_of
    from fastmesh.host.parts import only, with_parts

    snapshot = request["snapshot"]
    new: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in request["parts"]:
        before = only(snapshot, name)
        if not before:  # a reload has taken it away
            continue
        try:
            found = {name: _part(name, before, snapshot["trust_domain"], Path(request["config"]).parent)}
        except PkiError as error:
            refused[name] = str(error)
            continue
        if digest_of(with_parts(before, found)) != digest_of(before):
            new |= found
    if not new:
        return encode({"type": "unchanged", "refused": refused})
    digest = digest_of(with_parts(snapshot, new))
    number = request["number"]
    return encode({"type": "parts", "number": number, "digest": digest, "parts": new, "refused": refused})


def _part(name: str, before: dict[str, Any], trust_domain: str | None, home: Path) -> dict[str, Any]:
    """One part as its files have it now. Raises PkiError if they may not be used."""
    from fastmesh.config.snapshot import identity_of
    from fastmesh.config.tls_files import again
    from fastmesh.host.parts import IDENTITY, owners

    if name != IDENTITY:
        ((_, owner),) = owners(before)
        return again(owner, home)
    identity = before[IDENTITY]
    return identity_of(Path(identity["pki"]), identity["workload"], trust_domain, identity["spiffe_id"])


def _end_with_reader(result_fd: int) -> None:
    """End the process, whatever it waits for, once nobody holds the other end of the pipe."""
    poll = select.poll()
    poll.register(result_fd, 0)  # POLLERR is always reported
    poll.poll()
    os._exit(1)


def answer(request: dict[str, Any], result_fd: int) -> NoReturn:
    """Load, write the result, and end this process."""
    threading.Thread(target=_end_with_reader, args=(result_fd,), daemon=True).start()
    # The process ends before there is much to collect.
    gc.disable()
    try:
        result = load(request)
    except Exception as error:
        traceback.print_exc()
        what = f"{request['config']}: an error inside fastmesh, not in the file: {error!r}"
        result = encode({"type": "config_error", "errors": [what], "initial": request["digest"] is None})
    with open(result_fd, "wb") as out:
        out.write(result)
    # Freeing every object one by one would only keep the agent waiting.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    answer(json.load(sys.stdin), int(sys.argv[1]))
