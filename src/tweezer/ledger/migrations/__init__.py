"""How the ledger's tables came to be: one file a step in ``versions``, run by Alembic."""

HEAD = "0005"
"""The newest step: what this version of Tweezer needs."""
