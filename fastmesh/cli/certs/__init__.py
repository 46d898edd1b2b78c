"""`fastmesh certs`: the mesh's certificate authority on this machine.

    common     options, errors and passphrases
    authority  init, rotate-issuer, rotate-root
    workloads  issue, renew, revoke, list, show
    trust      bundle, verify

Results go to stdout, remarks and errors to stderr. Whatever is wrong with the directory is one sentence and
exit code 5, whatever is wrong with the command line exit code 2.
"""

from __future__ import annotations

import click

from fastmesh.cli.certs import authority, trust, workloads


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are needed


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Run the mesh's certificate authority.

    `init` makes it once; `issue` gives each workload a key and a short-lived certificate. Exit code 5: the
    authority or an identity is missing, unreadable or invalid.
    """


for _one in (
    authority.init,
    workloads.issue,
    workloads.list_,
    workloads.show,
    trust.verify,
    workloads.renew,
    workloads.revoke,
    trust.bundle,
    authority.rotate_issuer,
    authority.rotate_root,
):
    command.add_command(_one)
