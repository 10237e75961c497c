"""How the Python client reaches the queue: over Redis and the ledger directly, or over the HTTP API."""
