"""The steps. Each is frozen once it was released: it spells out what it does and imports nothing of the ledger."""
