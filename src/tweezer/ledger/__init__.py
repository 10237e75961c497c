"""The ledger: the SQL record of batches, jobs, transitions and results, on SQLite or PostgreSQL."""
