"""Active health checks: the agent asks every endpoint of a service with `health_check` how it is.

`checks` says when, keeps what came of it and tells the workers, by one byte of shared memory for each
endpoint; `ask` is one check: `http1`, or `http2` and `grpc`, the question, `tls` the secrecy. Nothing of this
is on the way of a request; the library `h2`, which only some checks need, is imported when there are such.
"""
