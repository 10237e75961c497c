"""Authentication: keys, log-ins, signed links, and the guard against repeated calls."""
