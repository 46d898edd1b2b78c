"""What the proxy tells: metrics and the access log, read from the memory that the workers write.

Everything here runs in the agent, off the path of requests. It reads what is there; no worker ever waits
for it.
"""
