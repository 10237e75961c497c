"""Redis: every key, every transition, and the reader of events."""
