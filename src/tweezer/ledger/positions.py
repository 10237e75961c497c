"""How far the readers of the stream of events have come, by what is committed in the ledger."""

from __future__ import annotations

from sqlalchemy import Connection, select

from tweezer.ledger.schema import couriers


def courier_position(connection: Connection, namespace: str) -> int:
    """Return the number of the last entry of the stream whose deliveries are all written; 0 if there is none."""
    query = select(couriers.c.position).where(couriers.c.namespace == namespace)
    return connection.execute(query).scalar() or 0
