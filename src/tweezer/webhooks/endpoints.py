"""Endpoints: URLs that receive webhooks. They are registered for a project, or come with submitted batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, delete, func, select, update

from tweezer.ledger.access.projects import find_project, insert_unless_there
from tweezer.ledger.schema import Lettered, as_datetime, deliveries, endpoints, now_ms, projects
from tweezer.model.addresses import WebhookPolicy, check_url
from tweezer.model.checks import check_characters, check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.webhooks import USUAL_TYPES, EventType
from tweezer.store.scripts import split_pages
from tweezer.webhooks.deliveries import HELD, PENDING
from tweezer.webhooks.secrets import SecretOwner

ENDPOINTS_MAX = 50
"""The most endpoints that can be registered for one project."""

URL_MAX = 2000
DESCRIPTION_MAX = 200

_WHY_MAX = 200
_AT_ONCE = 500  # ids in one statement
_OF_BATCHES = UUID("7c0f3f0e-52a5-4f0b-9a3b-6f0c2f6f5d11")  # namespace of the ids of endpoints that come with batches
_CHOICES = [it for it in EventType if it is not EventType.PING]


class EndpointKind(Lettered):
    """The kind of an endpoint. Project: registered for a project. Batch: the webhook of submitted batches."""

    PROJECT = "project"
    BATCH = "batch"


class Endpoint(msgspec.Struct, frozen=True):
    """A URL that receives webhooks. types: empty means USUAL_TYPES. failing: since when every attempt has failed."""

    id: UUID
    kind: EndpointKind
    project: str
    project_no: int
    url: str
    types: tuple[EventType, ...]
    description: str
    created: datetime
    failing: datetime | None = None
    disabled: datetime | None = None
    disabled_why: str | None = None

    @property
    def secret_owner(self) -> SecretOwner:
        """The owner of the secrets that sign its webhooks: a registered endpoint itself, otherwise the project."""
        return SecretOwner(self.project_no, self.id if self.kind is EndpointKind.PROJECT else None)

    @property
    def subscribed(self) -> frozenset[str]:
        """The types of events that are sent to it."""
        return frozenset(self.types) or USUAL_TYPES


def create_endpoint(
    connection: Connection,
    policy: WebhookPolicy,
    *,
    project_id: str,
    url: str,
    types: Sequence[str] = (),
    description: str = "",
) -> Endpoint:
    """Create an endpoint of a project. Raises InvalidInput("url" | "types" | "description", …), NotFound, Conflict."""
    checked = _checked(policy, url=url, types=types, description=description)
    project = find_project(connection, project_id)
    alone = select(projects.c.no).where(projects.c.no == project.no).with_for_update(key_share=True)
    connection.execute(alone)  # otherwise two concurrent calls would get the same count
    of_project = (endpoints.c.project == project.no) & (endpoints.c.kind == EndpointKind.PROJECT.letter)
    if connection.execute(select(func.count()).where(of_project)).scalar_one() >= ENDPOINTS_MAX:
        raise Conflict(f"at most {ENDPOINTS_MAX} endpoints are allowed for project {project_id}; delete one first")
    identity = uuid4()
    insert_unless_there(connection, endpoints, _row(identity, EndpointKind.PROJECT, project.no, **checked))
    return find_endpoint(connection, identity)


def list_endpoints(
    connection: Connection,
    project_ids: Collection[str] | None = None,
    *,
    kind: EndpointKind | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Endpoint]:
    """Return the endpoints of these projects, or of all: registered ones, then those of batches, newest first."""
    order = (endpoints.c.kind.desc(), endpoints.c.created_ms.desc(), endpoints.c.id)
    statement = _select(project_ids, kind).order_by(*order).limit(limit).offset(offset or None)
    return [_endpoint(row) for row in connection.execute(statement)]


def count_endpoints(
    connection: Connection, project_ids: Collection[str] | None = None, *, kind: EndpointKind | None = None
) -> int:
    """Return the number of endpoints that :func:`list_endpoints` returns without a limit."""
    return connection.execute(select(func.count()).select_from(_select(project_ids, kind).subquery())).scalar_one()


def find_endpoint(connection: Connection, identity: UUID, project_ids: Collection[str] | None = None) -> Endpoint:
    """Return the endpoint. Raises NotFound, also if it belongs to another project."""
    row = connection.execute(_select(project_ids).where(endpoints.c.id == identity)).one_or_none()
    if row is None:
        raise NotFound("endpoint", str(identity))
    return _endpoint(row)


def change_endpoint(
    connection: Connection,
    policy: WebhookPolicy,
    identity: UUID,
    *,
    url: str | None = None,
    types: Sequence[str] | None = None,
    description: str | None = None,
) -> Endpoint:
    """Change an endpoint; None leaves a value unchanged.

    Raises InvalidInput as :func:`create_endpoint` does, NotFound, and Conflict for the webhook of batches.
    """
    given = {"url": url, "types": types, "description": description}
    checked = _checked(policy, **{name: value for name, value in given.items() if value is not None})
    if find_endpoint(connection, identity).kind is EndpointKind.BATCH:
        raise Conflict(
            f"endpoint {identity} is the webhook of batches and cannot be changed; disable or delete it instead"
        )
    if checked:
        connection.execute(update(endpoints).where(endpoints.c.id == identity).values(**checked))
    return find_endpoint(connection, identity)


def disable_endpoint(
    connection: Connection, identity: UUID, why: str, *, failing_since_ms: int | None = None
) -> Endpoint | None:
    """Disable an endpoint, and hold its pending deliveries; return None if it was disabled already.

    failing_since_ms: disable it only if all attempts have failed since this time, which :func:`note_failure` returned;
    otherwise return None.
    Raises NotFound, InvalidInput("why", …).
    """
    check_characters("why", why)
    working = (endpoints.c.id == identity) & endpoints.c.disabled_ms.is_(None)
    if failing_since_ms is not None:
        working &= endpoints.c.failing_ms == failing_since_ms
    values = {"disabled_ms": now_ms(), "disabled_why": why[:_WHY_MAX]}
    changed = connection.execute(update(endpoints).where(working).values(**values)).rowcount
    if not changed and failing_since_ms is not None:
        return None
    waiting = (deliveries.c.endpoint == identity) & (deliveries.c.status == PENDING)
    connection.execute(update(deliveries).where(waiting).values(status=HELD, due_ms=None))
    found = find_endpoint(connection, identity)
    return found if changed else None


def enable_endpoint(connection: Connection, identity: UUID) -> Endpoint:
    """Enable an endpoint: new events are sent to it again, held ones only on request. Raises NotFound."""
    values = {"disabled_ms": None, "disabled_why": None, "failing_ms": None}
    disabled = (endpoints.c.id == identity) & endpoints.c.disabled_ms.is_not(None)
    connection.execute(update(endpoints).where(disabled).values(**values))
    return find_endpoint(connection, identity)


def delete_endpoint(connection: Connection, identity: UUID) -> None:
    """Delete an endpoint with its secrets and deliveries. Raises NotFound."""
    if not connection.execute(delete(endpoints).where(endpoints.c.id == identity)).rowcount:
        raise NotFound("endpoint", str(identity))


# -- for couriers -------------------------------------------------------------------------------------------


def list_registered(connection: Connection, project_nos: Collection[int] | None = None) -> list[Endpoint]:
    """Return the endpoints registered for these projects (by number), or for all; disabled ones included."""
    if project_nos is None:
        return [_endpoint(row) for row in connection.execute(_REGISTERED)]
    return [_endpoint(row) for row in connection.execute(_REGISTERED_FOR, {"nos": sorted(project_nos)})]


def find_batch_endpoints(
    connection: Connection, wanted: Collection[tuple[int, str]]
) -> dict[tuple[int, str], Endpoint]:
    """Return the existing endpoints of batches, by project number and URL."""
    ids = {uuid5(_OF_BATCHES, f"{no} {url}"): (no, url) for no, url in wanted}
    return {ids[identity]: it for identity, it in _by_id(connection, ids).items()}


def ensure_batch_endpoints(
    connection: Connection, wanted: Collection[tuple[int, str]]
) -> dict[tuple[int, str], Endpoint]:
    """Return the endpoints of batches, by project number and URL; create those that are missing.

    Endpoints of deleted projects are left out. Safe to call concurrently.
    """
    ids = {uuid5(_OF_BATCHES, f"{no} {url}"): (no, url) for no, url in wanted}
    found = _by_id(connection, ids)
    missing = sorted(ids.keys() - found)
    if not missing:
        return {ids[identity]: it for identity, it in found.items()}
    numbers = {ids[identity][0] for identity in missing}
    there = set(connection.execute(select(projects.c.no).where(projects.c.no.in_(numbers))).scalars())
    for identity in missing:
        no, url = ids[identity]
        if no in there:
            insert_unless_there(connection, endpoints, _row(identity, EndpointKind.BATCH, no, url=url))
    found |= _by_id(connection, missing)
    return {ids[identity]: it for identity, it in found.items()}


def note_failure(connection: Connection, identity: UUID, at_ms: int) -> int:
    """Note a failed attempt; return the time (ms since 1970) of the first failure since the last success."""
    unknown = (endpoints.c.id == identity) & endpoints.c.failing_ms.is_(None)
    connection.execute(update(endpoints).where(unknown).values(failing_ms=at_ms))
    since = connection.execute(select(endpoints.c.failing_ms).where(endpoints.c.id == identity)).scalar()
    return at_ms if since is None else since


def note_success(connection: Connection, identities: Collection[UUID]) -> None:
    """Note a successful attempt for each of these endpoints."""
    for some in split_pages(sorted(identities), _AT_ONCE):
        failing = endpoints.c.id.in_(some) & endpoints.c.failing_ms.is_not(None)
        connection.execute(update(endpoints).where(failing).values(failing_ms=None))


# -----------------------------------------------------------------------------------------------------------


def _checked(policy: WebhookPolicy, **given: Any) -> dict[str, Any]:
    """Check the given values; return them as columns."""
    checked = dict(given)
    if "url" in given:
        check_text("url", given["url"], URL_MAX)
        check_url(given["url"], policy, "url")
    if "types" in given:
        checked["types"] = " ".join(_types(given["types"]))
    if "description" in given:
        check_text("description", given["description"], DESCRIPTION_MAX, least=0)
    return checked


def _types(given: Sequence[str]) -> list[EventType]:
    """Return each type once, in the order of EventType. Raises InvalidInput."""
    for name in given:
        if name == EventType.PING:
            raise InvalidInput("types", "ping cannot be subscribed to; it is sent on request")
        if name not in _CHOICES:
            raise InvalidInput("types", f"{name[:40]!r} is not a type of event; use any of {', '.join(_CHOICES)}")
    return [it for it in _CHOICES if it in given]


def _row(
    identity: UUID, kind: EndpointKind, project_no: int, *, url: str, types: str = "", description: str = ""
) -> dict[str, Any]:
    return {
        "id": identity,
        "project": project_no,
        "kind": kind.letter,
        "url": url,
        "types": types,
        "description": description,
        "created_ms": now_ms(),
    }


def _select(project_ids: Collection[str] | None, kind: EndpointKind | None = None) -> Select[Any]:
    conditions: list[ColumnElement[bool]] = []
    if project_ids is not None:
        conditions.append(projects.c.id.in_(sorted(project_ids)))
    if kind is not None:
        conditions.append(endpoints.c.kind == kind.letter)
    named = select(endpoints, projects.c.id.label("project_id"))
    return named.join(projects, endpoints.c.project == projects.c.no).where(*conditions)


def _by_id(connection: Connection, identities: Collection[UUID]) -> dict[UUID, Endpoint]:
    found: dict[UUID, Endpoint] = {}
    for some in split_pages(sorted(identities), _AT_ONCE):
        rows = connection.execute(_BY_ID, {"ids": some})
        found.update((row.id, _endpoint(row)) for row in rows)
    return found


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        id=row.id,
        kind=EndpointKind.from_letter(row.kind),
        project=row.project_id,
        project_no=row.project,
        url=row.url,
        types=tuple(map(EventType, row.types.split())),
        description=row.description,
        created=as_datetime(row.created_ms),
        failing=as_datetime(row.failing_ms),
        disabled=as_datetime(row.disabled_ms),
        disabled_why=row.disabled_why,
    )


# Built once, because couriers execute them for every few events.
_BY_ID = _select(None).where(endpoints.c.id.in_(bindparam("ids", expanding=True)))
_REGISTERED = _select(None, EndpointKind.PROJECT)
_REGISTERED_FOR = _REGISTERED.where(endpoints.c.project.in_(bindparam("nos", expanding=True)))
