"""Renews one workload's certificate in a process of its own: `python -P -m fastmesh.certs.renewal PKI NAME`.

For the agent: `cryptography` is too heavy to stay in it. Exit code 0 and one line of JSON on stdout (serial,
not_before, not_after), or exit code 5 and one line on stderr that says why.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.store import Layout

EXIT_PKI = 5


def main(pki: str, workload: str) -> int:
    """The exit code."""
    try:
        if not Layout(Path(pki)).issuer.is_dir():
            raise PkiError(f"no authority here: {Layout(Path(pki)).issuer} does not exist")
        from fastmesh.certs import authority  # half the time of this process: not for a refusal

        made = authority.renew(Path(pki), workload)
    except (PkiError, ValueError) as error:
        return _refused(str(error))
    except OSError as error:
        return _refused(f"{error.filename or pki}: {reason(error)}")
    facts = {"serial": made.serial, "not_before": made.not_before, "not_after": made.not_after}
    print(json.dumps(facts), flush=True)
    return 0


def _refused(why: str) -> int:
    print(" ".join(why.splitlines()), file=sys.stderr)
    return EXIT_PKI


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
