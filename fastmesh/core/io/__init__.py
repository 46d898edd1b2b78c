"""Floor 4: what moves: connections, pools, exchanges, tunnels, listeners, the loop."""
