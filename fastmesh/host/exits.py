"""Exit codes of `fastmesh serve`, as `fastmesh.cli` documents them; here, because that one imports click."""

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_CONFIG = 2
EXIT_LISTEN = 3
EXIT_BOOT = 4
EXIT_PKI = 5
# Of a worker alone: it ended with something not given back, and said what on stderr.
EXIT_BALANCE = 70
