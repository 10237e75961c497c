"""Run by Alembic, within the transaction that :func:`tweezer.ledger.migrate.upgrade` began."""

from __future__ import annotations

from alembic import context

from tweezer.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,  # for its names of indexes and constraints
    transactional_ddl=True,  # SQLite too: its driver begins no transactions of its own here
)
with context.begin_transaction():
    context.run_migrations()
