"""How far the readers of the stream of events are, by what is committed in the ledger."""

from __future__ import annotations

from sqlalchemy import Connection, select

from tweezer.ledger.schema import couriers, recorder
from tweezer.store.streams.feed import START, position_number


def courier_position(connection: Connection, namespace: str) -> int:
    """Return the number of the last entry of the stream whose deliveries are all written; 0 if there is none."""
    query = select(couriers.c.position).where(couriers.c.namespace == namespace)
    return connection.execute(query).scalar() or 0


def recorder_position(connection: Connection, namespace: str) -> int:
    """Return the number of the last entry of the stream that is recorded; 0 if there is none."""
    query = select(recorder.c.position).where(recorder.c.namespace == namespace)
    return position_number(connection.execute(query).scalar() or START)
