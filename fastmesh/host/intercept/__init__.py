"""Transparent interception: the rules that lead an application's traffic through the proxy.

    selection   whose traffic: a user's, a cgroup's, or everybody's in a network namespace
    plan        what is to be in force, from a configuration and a selection; nothing is done yet
    ruleset     a plan as one transaction for nft, in a table of our own
    nft         the program nft, and what its errors mean
    routes      policy routes, which tproxy needs
    namespace   being in another network namespace for a while, alone
    cgroups     the cgroup hierarchy (version 2), and making nft find it
    apply       up, down, and what is in force
    words       what is in force, for people
    hosts       a second host for a moment, for the proof
    probe       the proof: a connection that must arrive at the proxy

What is in force is kept by the kernel alone: the table says whose it is and what it should contain. Names,
marks and routing tables follow from the selection, so that `down` needs no configuration and no file of
state. None of this is imported by the processes that carry traffic.
"""

from fastmesh.host.intercept.apply import down, rules_in_force, up
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.plan import Plan
from fastmesh.host.intercept.selection import Selection

__all__ = ["InterceptError", "Plan", "Selection", "down", "rules_in_force", "up"]
