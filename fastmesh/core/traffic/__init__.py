"""Floor 3: decisions: routes, balancing, policy, counters."""
