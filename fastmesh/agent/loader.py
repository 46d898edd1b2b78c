"""Reads a configuration, or an identity alone, in a process of its own:
`python -m fastmesh.agent.loader RESULT_FD < request`.

The request is a JSON object: the file (`config`, absolute), `workers` (null: as the file says), the `number`
that the snapshot gets, and of the snapshot in use its `digest`, `slots` and `rule_slots`. The result is the
body of the frame that goes to the supervisor: "snapshot", "unchanged", "config_error" or "pki_error".
With a `snapshot` in the request (the one in use, without its keys) only its identity is read anew, and
everything else stays as it is: the file may be in the middle of somebody's work. The result is "identity"
then, with what is new in the snapshot: the supervisor has the rest, and its keys.

A process that ends gives all its memory back, cannot be slowed down by the agent, and may be killed when a
name server does not answer. It ends with the agent, too: nobody is left to wait for its result.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from fastmesh.host.channel import encode, snapshot_frame


def load(request: dict[str, Any]) -> bytes:
    """The result for a request."""
    from fastmesh.config import ConfigErrors, load, make_snapshot

    try:
        if request.get("snapshot"):
            return _renewed(request)
        snapshot = make_snapshot(
            load(Path(request["config"])),
            request["number"],
            request["workers"],
            request["slots"],
            rule_slots=request["rule_slots"],
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


def _renewed(request: dict[str, Any]) -> bytes:
    """What the snapshot is with the identity that its directory holds now."""
    from fastmesh.config.snapshot import digest_of, identity_of

    snapshot = request["snapshot"]
    before = snapshot["identity"]
    identity = identity_of(
        Path(before["pki"]), before["workload"], snapshot["trust_domain"], before["spiffe_id"]
    )
    digest = digest_of({**snapshot, "identity": identity})
    if digest == request["digest"]:
        return encode({"type": "unchanged"})
    return encode({"type": "identity", "number": request["number"], "digest": digest, "identity": identity})


def _end_with_reader(result_fd: int) -> None:
    """End the process, whatever it waits for, once nobody holds the other end of the pipe."""
    poll = select.poll()
    poll.register(result_fd, 0)  # POLLERR is always reported
    poll.poll()
    os._exit(1)


def main(result_fd: int) -> None:
    threading.Thread(target=_end_with_reader, args=(result_fd,), daemon=True).start()
    request = json.load(sys.stdin)
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
    main(int(sys.argv[1]))
