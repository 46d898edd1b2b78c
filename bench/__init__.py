"""The bench: what fastmesh costs, beside other proxies, in units of the floor (`floor.c`) or of HAProxy.

`python -m bench --help`; how it measures and how to read it: docs/internals/performance.md.
Nothing here is imported by fastmesh, and nothing here imports fastmesh: it is started as any user starts it.
"""
