"""The migrations of the ledger's tables, run by Alembic: one file in ``versions`` for each step."""

HEAD = "0011"
"""The last step, which this version of Tweezer needs."""
