"""`fastmesh demo`: a whole small mesh on this machine, with traffic, for a few seconds.

client      a few lines of HTTP on asyncio streams: what the applications and the traffic use
apps        the two applications: svc-a calls svc-b and knows nothing of TLS
mesh        processes: the authority, the applications, the sidecars; up, and down without a trace
traffic     requests to svc-a in closed loops, each timed and checked
numbers     what the sidecars count, read from their admin APIs
show        the live table, or plain lines where nobody looks at a terminal
run         the story, from start to summary
"""
