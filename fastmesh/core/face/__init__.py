"""Floor 5: what Python sees: with the GIL, and never on the request path."""
