"""The test kit: real processes and scripted peers, without a sleep in it.

Everything here waits for a condition with a deadline, takes ports that no other test process uses, and
records what it saw, so that a test is a script of bytes and a list of expectations. Tests import from
the submodules; `tests/conftest.py` provides the fixtures (`kit.fixtures`).
"""
