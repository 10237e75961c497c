"""Access to Redis: its keys, the scripts that change batches and jobs, and the stream of events."""
