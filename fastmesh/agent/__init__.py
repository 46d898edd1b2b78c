"""The agent: the one process of a sidecar that may be slow, large, or gone for a while.

It reads the configuration and hands out snapshots, serves the admin API, and writes the access log. Workers
never wait for it; the supervisor starts it again when it dies. Started as
`python -m fastmesh.agent CHANNEL_FD AREA_FD [ADMIN_FD ...]`.

What makes it small: a configuration is read by a short process of its own (`loader`), so that YAML, schema
and X.509 never stay in memory here. What makes a start quick: that process is started before anything else
is imported.
"""
