"""The processes of one host: the supervisor, its workers, and what they need around them.

Standard library and `fastmesh._core` only: every module here is part of the memory of each process, which
is why heavy modules (typing, dataclasses, subprocess, logging, ctypes) are not imported at run time.
"""
