"""The sidecar's own resolver: names of services become addresses, everything else is asked of others.

`names` is what it knows, `answer` what it says (no I/O), `forward` whom it asks, `server` how it is asked,
`resolver` when any of it is at work. Only `names`, `words` and `resolver` are imported by every agent; the
rest, and with it dnspython, comes in when a configuration has `dns`.
"""
