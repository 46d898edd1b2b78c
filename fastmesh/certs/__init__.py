"""Workload identity: SPIFFE ids, the certificate authority, and the directory that holds both.

    spiffe     SPIFFE ids and workload names as text (no files, no certificates)
    files      what makes the directory safe: atomic writes, versions, one lock, append-only files
    record     the append-only record of what was signed
    proof      does a key, certificate and bundle belong together and prove a SPIFFE id now
    store      the layout of the directory; `load_identity`
    authority  makes certificates; needs `cryptography`
    inspection what is in the directory, for people; needs `cryptography`

Every sidecar imports `store`, so it and what it imports at the top stay small: `cryptography` must not be
reached from there (it costs a process 16 MiB by itself, 8 MiB on top of what an agent imports).
"""
