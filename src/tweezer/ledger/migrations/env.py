"""The environment of the migrations, run by Alembic in the transaction of :func:`tweezer.ledger.migrate.upgrade`."""

from __future__ import annotations

from alembic import context

from tweezer.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,  # for the names of indexes and constraints
    transactional_ddl=True,  # also for SQLite, whose driver begins no transactions here
)
with context.begin_transaction():
    context.run_migrations()
