"""Queries of the ledger: batches, jobs, events and statistics."""
