"""`fastmesh run`: a command with a sidecar of its own, from before its first byte until after its last.

    run                      this package: starts, watches, passes signals on, cleans up (`launcher`)
     ├─ the sidecar          in a session of its own, started again when it dies (`sidecar`)
     ├─ the command          in our process group and session: the terminal serves it as ever (`application`)
     ├─ the witness          in our process group; tells signals to the group from signals to us (`witness`)
     └─ the guard            in a session of its own; cleans up when we are killed (`guard`)

How the command's traffic gets to the sidecar is one module's affair (`takeover`). Standard library only: what
runs as long as the command does must be small. Whatever needs the configuration runs in a child that ends.
"""
