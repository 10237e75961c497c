"""The log of deliveries: list, find and resend them."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, insert, select, tuple_, update

from tweezer.ledger.schema import Lettered, as_datetime, deliveries, endpoints, now_ms, projects
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.webhooks import EventType, PingData, envelope, timestamp
from tweezer.webhooks.deliveries import PENDING, Attempt, delivery_id, read_log
from tweezer.webhooks.endpoints import Endpoint

LIMIT_MAX = 100
"""The most rows of a page."""

_CURSOR = re.compile(r"(\d{1,15})-([0-9a-f]{32})", re.ASCII)
_COLUMNS = [column for column in deliveries.c if column.name != "body"]


class DeliveryStatus(Lettered):
    """The status of a delivery.

    Pending: more attempts will follow. Delivered: the receiver responded with 2xx. Exhausted: all attempts failed.
    Held: not sent, because the endpoint is disabled.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    EXHAUSTED = "exhausted"
    HELD = "held"


class Delivery(msgspec.Struct, frozen=True):
    """The delivery of one event to one endpoint.

    event: its id, sent as ``webhook-id``. attempts: the number in the current retry schedule. log: all attempts. due:
    when the next attempt is due. sequence: the number of the event in its batch. body: as sent; None in lists.
    """

    id: UUID
    endpoint: UUID
    project: str
    batch: UUID | None
    event: str
    type: str
    status: DeliveryStatus
    attempts: int
    log: tuple[Attempt, ...]
    created: datetime
    due: datetime | None
    sequence: int | None
    body: str | None = None


class DeliveryPage(msgspec.Struct, frozen=True):
    """A page of deliveries, newest first. after: the cursor of the next page; None on the last page."""

    rows: list[Delivery]
    after: str | None


class DeliveryFilter(msgspec.Struct, frozen=True):
    """A filter of deliveries; all conditions must match. since: created at this time or later."""

    endpoint: UUID | None = None
    batch: UUID | None = None
    status: DeliveryStatus | None = None
    type: str | None = None
    since: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        equals = {
            deliveries.c.endpoint: self.endpoint,
            deliveries.c.batch: self.batch,
            deliveries.c.status: None if self.status is None else self.status.letter,
            deliveries.c.type: self.type,
        }
        given: list[ColumnElement[bool]] = [column == value for column, value in equals.items() if value is not None]
        if self.since is not None:
            given.append(deliveries.c.created_ms >= _milliseconds(self.since))
        return given


def list_deliveries(
    connection: Connection,
    project_ids: Collection[str] | None = None,
    wanted: DeliveryFilter | None = None,
    *,
    limit: int = LIMIT_MAX,
    after: str | None = None,
) -> DeliveryPage:
    """Return a page of deliveries of these projects, or of all. Raises InvalidInput("after", …)."""
    place = tuple_(deliveries.c.created_ms, deliveries.c.id)
    statement = _select(project_ids).where(*(wanted or DeliveryFilter()).conditions())
    if after:
        statement = statement.where(place < _read_cursor(after))
    order = (deliveries.c.created_ms.desc(), deliveries.c.id.desc())
    rows = connection.execute(statement.order_by(*order).limit(limit + 1)).all()
    shown = rows[:limit]
    more = f"{shown[-1].created_ms}-{shown[-1].id.hex}" if len(rows) > limit else None
    return DeliveryPage([_delivery(row) for row in shown], more)


def find_delivery(connection: Connection, identity: UUID, project_ids: Collection[str] | None = None) -> Delivery:
    """Return the delivery with its body. Raises NotFound, also if it belongs to another project."""
    statement = _select(project_ids).add_columns(deliveries.c.body).where(deliveries.c.id == identity)
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise NotFound("delivery", str(identity))
    return _delivery(row, row.body)


def resend(connection: Connection, identity: UUID) -> Delivery:
    """Make a delivery due now, with a new retry schedule, in any status. Raises NotFound, Conflict.

    The caller must arm an alarm.
    """
    found = find_delivery(connection, identity)
    _refuse_disabled(connection, found.endpoint)
    connection.execute(update(deliveries).where(deliveries.c.id == identity).values(_restart()))
    return find_delivery(connection, identity)


def resend_since(connection: Connection, endpoint: UUID, since: datetime, *, all: bool = False) -> int:
    """Make deliveries due again that were created since a time and not delivered, or all; return how many.

    Pings are left out. Raises NotFound, Conflict. The caller must arm an alarm.
    """
    _refuse_disabled(connection, endpoint)
    wanted = [*DeliveryFilter(endpoint=endpoint, since=since).conditions(), deliveries.c.type != EventType.PING]
    if not all:
        wanted.append(deliveries.c.status != DeliveryStatus.DELIVERED.letter)
    return connection.execute(update(deliveries).where(*wanted).values(_restart())).rowcount


def ping(connection: Connection, endpoint: Endpoint) -> UUID:
    """Write a ping that is due now; return the delivery's id. Raises Conflict, NotFound.

    The caller must arm an alarm.
    """
    _refuse_disabled(connection, endpoint.id)
    event, now = f"ping:{uuid4()}", now_ms()
    body = envelope(EventType.PING, timestamp(now * 1000), PingData(str(endpoint.id)))
    row: dict[str, Any] = {
        "id": delivery_id(endpoint.id, event),
        "endpoint": endpoint.id,
        "project": endpoint.project_no,
        "event": event,
        "type": EventType.PING,
        "body": body.decode(),
        "created_ms": now,
    }
    connection.execute(insert(deliveries).values(row | _restart()))
    return delivery_id(endpoint.id, event)


def _restart() -> dict[str, Any]:
    return {"status": PENDING, "attempts": 0, "due_ms": now_ms()}


def _refuse_disabled(connection: Connection, endpoint: UUID) -> None:
    """Raise Conflict if the endpoint is disabled. Locks the row, so that it is not disabled before this transaction
    ends."""
    statement = select(endpoints.c.disabled_why, endpoints.c.disabled_ms).where(endpoints.c.id == endpoint)
    row = connection.execute(statement.with_for_update(read=True)).one_or_none()
    if row is None:
        raise NotFound("endpoint", str(endpoint))
    if row.disabled_ms is not None:
        raise Conflict(f"endpoint {endpoint} is disabled ({row.disabled_why}); enable it first", code="disabled")


def _select(project_ids: Collection[str] | None) -> Select[Any]:
    statement = select(*_COLUMNS, projects.c.id.label("project_id"))
    statement = statement.join(projects, deliveries.c.project == projects.c.no)
    return statement if project_ids is None else statement.where(projects.c.id.in_(sorted(project_ids)))


def _read_cursor(text: str) -> tuple[int, UUID]:
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidInput("after", "is not a valid cursor; use `after` from the previous page")
    return int(match[1]), UUID(match[2])


def _milliseconds(moment: datetime) -> int:
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round(aware.timestamp() * 1000)


def _delivery(row: Row[Any], body: str | None = None) -> Delivery:
    return Delivery(
        id=row.id,
        endpoint=row.endpoint,
        project=row.project_id,
        batch=row.batch,
        event=row.event,
        type=row.type,
        status=DeliveryStatus.from_letter(row.status),
        attempts=row.attempts,
        log=tuple(read_log(row.log)),
        created=as_datetime(row.created_ms),
        due=as_datetime(row.due_ms),
        sequence=row.sequence_number,
        body=body,
    )
