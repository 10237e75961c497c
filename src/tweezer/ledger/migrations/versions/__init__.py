"""The migration steps. A released step never changes, so it is self-contained and imports nothing from the ledger."""
