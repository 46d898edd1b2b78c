"""Workload identity: SPIFFE ids, the certificate authority, and the directory that holds both.

    spiffe        SPIFFE ids and workload names as text (no files, no certificates)
    files         what makes the directory safe: atomic writes, versions, one lock, append-only files
    proof         does a key, certificate and bundle belong together and prove a SPIFFE id now
    store         the layout of the directory; `load_identity`

    record        the append-only record of what was signed
    keys          private keys as text and back; which keys are certified
    templates     what stands in each certificate
    signer        opens the authority: its lock, and the keys that sign
    trust         what workloads trust, and how it reaches their entries
    authority     makes the authority, and workloads' certificates
    requests      certificate signing requests
    revocation    the deny list
    rotation      replaces the issuing CA and the root
    bundle        trust bundles for others and from others (PEM, JWK Set)
    verification  judges a certificate file, rule by rule
    inspection    what is in the directory, for people
    renewal       the process in which an agent renews

Every sidecar imports `store`, so the first group stays small: `cryptography` must not be reached from there
(it costs a process 16 MiB by itself, 8 MiB on top of what an agent imports). The rest may use it.
"""
