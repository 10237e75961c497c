"""The rows of deliveries, as couriers write them. A row decides what is sent, to which endpoint and when."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any
from uuid import UUID, uuid4, uuid5

import msgspec
from arq.connections import ArqRedis
from sqlalchemy import Connection, delete, func, select, text, tuple_, update
from sqlalchemy.exc import IntegrityError

from tweezer.ledger.database import Database
from tweezer.ledger.positions import courier_position
from tweezer.ledger.schema import deliveries, endpoints, now_ms
from tweezer.model.wire import deserialize, serialize
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.scripts import split_pages, translating

PENDING, DELIVERED, EXHAUSTED, HELD = "P", "D", "E", "H"

_PAGE = 500  # rows of one statement
_DELETED_AT_ONCE = 5000
_UNUSED_S = 86_400  # the age at which endpoints of batches without deliveries are deleted; new ones await their first

_INSERT = (
    "INSERT INTO deliveries (id, endpoint, project, batch, sequence_number, event, type, body, status, attempts,"
    " created_ms, due_ms, trace)"
)
_IF_NEW = " ON CONFLICT DO NOTHING RETURNING id"
_FINISH = (
    "UPDATE deliveries SET status = new.column2, attempts = new.column3, log = new.column4,"
    " due_ms = CAST(new.column5 AS BIGINT) FROM ("
)
_MOVE = text(
    "INSERT INTO couriers (namespace, position, updated_ms) VALUES (:namespace, :position, :now)"
    " ON CONFLICT (namespace) DO UPDATE SET position = excluded.position, updated_ms = excluded.updated_ms"
    " WHERE couriers.position < excluded.position"
)
_THESE = (
    ") AS new WHERE deliveries.id = new.column1"
    # A delayed courier may report a failure after another one has delivered it.
    " AND (deliveries.status <> 'D' OR new.column2 = 'D')"
)


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One attempt to deliver.

    at_ms: when it began, since 1970. status: of the HTTP response, None without a response. error: why it failed, if
    the status does not show that. ms: its duration. answer: the first characters of the response body. next_ms: when
    the next attempt is due, None if this was the last.
    """

    number: int
    at_ms: int
    status: int | None
    ms: int
    error: str | None
    answer: str
    next_ms: int | None


class NewDelivery(msgspec.Struct, frozen=True):
    """A delivery to write. due_ms: when the first attempt is due, or when the claim of the courier that writes the row
    ends; None: the delivery is held. trace: of its batch."""

    id: UUID
    endpoint: UUID
    project: int
    batch: UUID | None
    sequence: int | None
    event: str
    type: str
    body: str
    due_ms: int | None
    trace: str | None = None


class ClaimedDelivery(msgspec.Struct, frozen=True):
    """A delivery that a courier has claimed in order to attempt it."""

    id: UUID
    event: str
    type: str
    body: str
    trace: str | None = None
    attempts: int = 0
    log: bytes | None = None


class AttemptOutcome(msgspec.Struct, frozen=True):
    """The state of a delivery after an attempt."""

    id: UUID
    status: str
    attempts: int
    log: bytes
    due_ms: int | None


def delivery_id(endpoint: UUID, event: str) -> UUID:
    """Return the id of the delivery of an event to an endpoint; it is always the same, so that there is only one."""
    return uuid5(endpoint, event)


def read_log(log: bytes | None) -> list[Attempt]:
    """Return the logged attempts, oldest first."""
    return [] if log is None else msgspec.msgpack.decode(log, type=list[Attempt])


def write_log(attempts: Iterable[Attempt]) -> bytes:
    return msgspec.msgpack.encode(list(attempts))


class Deliveries:
    """The rows of deliveries in the ledger. All methods block, and raise Unavailable."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    def position(self) -> int:
        """Return the number of the last entry of the stream whose deliveries are all written."""
        with self._database.read() as connection:
            return courier_position(connection, self._namespace)

    def previous(self, wanted: Collection[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], int]:
        """Return, by batch and endpoint, the number of the last event with a delivery there."""
        found = {}
        with self._database.read() as connection:
            for page in split_pages(list(wanted), _PAGE):
                query = (
                    select(deliveries.c.batch, deliveries.c.endpoint, func.max(deliveries.c.sequence_number))
                    .where(tuple_(deliveries.c.batch, deliveries.c.endpoint).in_(page))
                    .group_by(deliveries.c.batch, deliveries.c.endpoint)
                )
                found.update({(batch, endpoint): last for batch, endpoint, last in connection.execute(query)})
        return found

    def previous_before(self, batch: UUID, endpoint: UUID, sequence: int) -> int | None:
        """Return the number of the last event before this one with a delivery there."""
        table = deliveries.c
        before = (table.batch == batch, table.endpoint == endpoint, table.sequence_number < sequence)
        with self._database.read() as connection:
            return connection.execute(select(func.max(table.sequence_number)).where(*before)).scalar()

    def write(self, rows: Sequence[NewDelivery], position: int | None) -> set[UUID]:
        """Insert missing rows, and store the position up to which all rows are written.

        Returns the ids of rows that were not inserted: those that existed, which another courier sends, and those whose
        endpoint was deleted in the meantime.
        """
        try:
            return self._write(rows, position)
        except IntegrityError:
            return self._write(rows, position, looking=True)

    def _write(self, rows: Sequence[NewDelivery], position: int | None, *, looking: bool = False) -> set[UUID]:
        now = now_ms()
        with self._database.write() as connection:
            wanted = rows
            if looking:
                there = _lock_existing(connection, {row.endpoint for row in rows})
                wanted = [row for row in rows if row.endpoint in there]
            written = _execute_values(connection, _INSERT, [self._row(row, now) for row in wanted], _IF_NEW)
            if position is not None:
                connection.execute(_MOVE, {"namespace": self._namespace, "position": position, "now": now})
        if len(written) == len(rows):
            return set()
        return {row.id for row in rows} - {_as_uuid(identity) for (identity,) in written}

    def _row(self, new: NewDelivery, now: int) -> tuple[Any, ...]:
        id_of = self._database.id
        return (
            id_of(new.id),
            id_of(new.endpoint),
            new.project,
            None if new.batch is None else id_of(new.batch),
            new.sequence,
            new.event,
            new.type,
            new.body,
            HELD if new.due_ms is None else PENDING,
            0,
            now,
            new.due_ms,
            new.trace,
        )

    def claim(self, endpoint: UUID, most: int, until_ms: int) -> list[ClaimedDelivery]:
        """Claim due deliveries to the endpoint: no other courier claims them until that time."""
        table = deliveries.c
        now = now_ms()
        due = (
            select(table.id)
            .where(table.endpoint == endpoint, table.due_ms <= now)
            .order_by(table.due_ms)
            .limit(most)
            .scalar_subquery()
        )
        statement = (
            update(deliveries)
            .where(table.id.in_(due), table.status == PENDING, table.due_ms <= now)
            .values(due_ms=until_ms)
            .returning(table.id, table.event, table.type, table.body, table.trace, table.attempts, table.log)
        )
        with self._database.write() as connection:
            return [ClaimedDelivery(*row) for row in connection.execute(statement)]

    def record(self, outcomes: Sequence[AttemptOutcome]) -> None:
        """Write the outcomes of attempts. A successful delivery stays successful."""
        if not outcomes:
            return
        id_of = self._database.id
        rows = [(id_of(it.id), it.status, it.attempts, it.log, it.due_ms) for it in outcomes]
        with self._database.write() as connection:
            _execute_values(connection, _FINISH, rows, _THESE)

    def postpone(self, ids: Sequence[UUID], due_ms: int) -> None:
        """Release claimed deliveries that were not attempted; they are due at that time."""
        with self._database.write() as connection:
            for page in split_pages(ids, _PAGE):
                which = (deliveries.c.id.in_(page), deliveries.c.status == PENDING)
                connection.execute(update(deliveries).where(*which).values(due_ms=due_ms))

    def overdue(self, before_ms: int) -> list[UUID]:
        """Return the endpoints with deliveries that were due before that time."""
        query = select(deliveries.c.endpoint).where(deliveries.c.due_ms < before_ms).distinct()
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def hold_pending(self, endpoint: UUID) -> int:
        """Hold all pending deliveries to a disabled endpoint; return how many."""
        which = (deliveries.c.endpoint == endpoint, deliveries.c.status == PENDING)
        with self._database.write() as connection:
            return connection.execute(update(deliveries).where(*which).values(status=HELD, due_ms=None)).rowcount


def _lock_existing(connection: Connection, identities: Collection[UUID]) -> set[UUID]:
    """Return the endpoints that still exist, and lock them against deletion until this transaction ends."""
    found: set[UUID] = set()
    for page in split_pages(list(identities), _PAGE):
        these = select(endpoints.c.id).where(endpoints.c.id.in_(page))
        found.update(connection.execute(these.with_for_update(read=True, key_share=True)).scalars())
    return found


def _as_uuid(found: UUID | bytes) -> UUID:
    """Convert an id that the driver returned."""
    return found if isinstance(found, UUID) else UUID(bytes=found)


def delete_old_deliveries(database: Database, *, kept_s: int) -> int:
    """Delete finished deliveries that are older than kept_s (0: none), and endpoints of batches without deliveries.

    Returns the number of deleted deliveries.
    """
    total = _delete_over(database, now_ms() - kept_s * 1000) if kept_s else 0
    with database.write() as connection:
        before = now_ms() - max(kept_s, _UNUSED_S) * 1000
        unused = ~select(deliveries.c.id).where(deliveries.c.endpoint == endpoints.c.id).exists()
        connection.execute(
            delete(endpoints).where(
                endpoints.c.kind == "B", endpoints.c.created_ms < before, endpoints.c.disabled_ms.is_(None), unused
            )
        )
    return total


def _delete_over(database: Database, before: int) -> int:
    over = (deliveries.c.created_ms < before, deliveries.c.status != PENDING)
    total, deleted = 0, _DELETED_AT_ONCE
    while deleted == _DELETED_AT_ONCE:
        with database.write() as connection:
            ids = select(deliveries.c.id).where(*over).limit(_DELETED_AT_ONCE).scalar_subquery()
            deleted = connection.execute(delete(deliveries).where(deliveries.c.id.in_(ids))).rowcount
        total += deleted
    return total


def _execute_values(connection: Connection, before: str, rows: Sequence[tuple[Any, ...]], after: str) -> list[Any]:
    """Execute a statement with many rows in few calls; return the rows that it returns.

    With a call for each row, the driver would compete with the event loop for the interpreter.
    """
    returned: list[Any] = []
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    for page in split_pages(rows, _PAGE):
        marks = f"({', '.join([mark] * len(page[0]))})"
        result = connection.exec_driver_sql(
            f"{before} VALUES {', '.join([marks] * len(page))}{after}", tuple(chain.from_iterable(page))
        )
        if result.returns_rows:
            returned += result.all()
    return returned


DELIVER = "deliver"
"""The arq function that an alarm calls, with the id of the endpoint as text."""

_ALARM_KEPT_S = 7 * 86_400  # how late an alarm may be: all couriers may be stopped over a weekend


class Alarms:
    """Alarms that wake couriers when a delivery is due: deferred arq jobs on their queue. Methods raise Unavailable.

    The row in the ledger decides: a lost alarm only delays the delivery until the couriers' sweep, and an unnecessary
    alarm costs nothing.
    """

    def __init__(self, store: Store) -> None:
        self._queue = store.keys(Key.COURIER)
        self._endpoints = store.keys(Key.ENDPOINTS)
        self._arq = ArqRedis(store.redis.connection_pool, serialize, deserialize)

    async def note_change(self) -> None:
        """Note that endpoints changed, so that couriers read them again before they deliver later events."""
        with translating():
            await self._arq.incr(self._endpoints)

    async def arm(self, endpoint: UUID, due_ms: int | None) -> None:
        """Wake a courier for the endpoint at that time (milliseconds since 1970), or now.

        Alarms for the same endpoint and second are merged. An alarm never fires early. An alarm for now is always a
        separate job, because the courier that an earlier job woke may have read the ledger already.
        """
        now = time.time()
        due_s = 0 if due_ms is None else -(-due_ms // 1000)
        wait_s = max(due_s - now, 0.0)
        # arq stores the jobs of all queues under one prefix; the name of the queue separates installations.
        job = f"{self._queue}:{endpoint}:{due_s if wait_s else uuid4()}"
        with translating():
            await self._arq.enqueue_job(
                DELIVER,
                str(endpoint),
                _job_id=job,
                _queue_name=self._queue,
                _defer_until=datetime.fromtimestamp(due_s, UTC) if wait_s else None,
                _expires=wait_s + _ALARM_KEPT_S,
            )
