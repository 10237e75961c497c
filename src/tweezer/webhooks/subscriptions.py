"""Who listens to what some entries of the stream are about: read with as little waiting as there can be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from uuid import UUID

import msgspec
from sqlalchemy import Connection, bindparam, select

from tweezer.duties import end_tasks
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.access.vault import SECRETS_FRESH_S
from tweezer.ledger.database import Database
from tweezer.ledger.schema import projects
from tweezer.model.lru import Recent
from tweezer.store.streams.feed import Entry
from tweezer.webhooks.endpoints import Endpoint, batch_endpoints, endpoints_of, find_batch_endpoints
from tweezer.webhooks.payloads import BatchFacts, Payloads

_FEW = 500  # registered endpoints that are kept, all of them
_KEPT_MAX = 10_000

_Webhook = tuple[str, str]  # a project and a URL


class _Kept(msgspec.Struct, frozen=True):
    """Registered endpoints by project, as they were read at that time (monotonic), and the count of changes then."""

    registered: dict[str, list[Endpoint]]
    at: float
    changes: bytes | None


class Listeners:
    """Knows endpoints for a second, if nobody says that some were changed."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._kept: _Kept | None = None
        self._are_few = True
        self._webhooks: Recent[_Webhook, Endpoint] = Recent(_KEPT_MAX, kept_s=SECRETS_FRESH_S)
        self._changes: bytes | None = None
        self.changes: bytes | None = None
        """The count of changes, which came with the entries or after them."""

    async def look_up(self, entries: Sequence[Entry]) -> tuple[dict[UUID, BatchFacts], Audience]:
        """What is known of the entries' batches, and who listens. Raises Unavailable."""
        if self.changes != self._changes:
            self._changes = self.changes
            self._webhooks.clear()
        everybody = any(it.notice is not None and it.notice.project is None for it in entries)
        reading = asyncio.create_task(self._all()) if self._are_few or everybody else None
        try:
            facts = await self._payloads.batches({entry.batch_id for entry in entries if entry.notice is None})
            projects = {about.project for about in facts.values()}
            projects |= {it.notice.project for it in entries if it.notice is not None and it.notice.project is not None}
            of_batches = await self._of_batches({(it.project, it.webhook) for it in facts.values() if it.webhook})
            if reading is None:
                registered = await self._database.run(read_registered, self._database, projects)
            else:
                registered = await reading
        finally:
            if reading is not None:
                await end_tasks(reading)
        return facts, Audience(registered, of_batches)

    async def _all(self) -> dict[str, list[Endpoint]]:
        kept, changes, now = self._kept, self.changes, time.monotonic()
        if kept is not None and kept.changes == changes and now - kept.at < SECRETS_FRESH_S:
            return kept.registered
        found = await self._database.run(read_registered, self._database, None)
        self._are_few = sum(map(len, found.values())) <= _FEW
        self._kept = _Kept(found, now, changes)
        return found

    async def _of_batches(self, wanted: Collection[_Webhook]) -> dict[_Webhook, Endpoint]:
        found = {webhook: kept for webhook in wanted if (kept := self._webhooks.get(webhook)) is not None}
        if len(found) < len(wanted):
            began = time.monotonic()
            read = await self._database.run(read_webhooks, self._database, wanted - found.keys())
            for webhook, endpoint in read.items():
                self._webhooks.put(webhook, endpoint, since=began)
            found |= read
        return found


_NUMBERS = select(projects.c.id, projects.c.no).where(projects.c.id.in_(bindparam("ids", expanding=True)))


class Audience(msgspec.Struct, frozen=True):
    """Endpoints as they stood when it was read: registered ones by project, those of batches by project and URL."""

    registered: dict[str, list[Endpoint]]
    of_batches: dict[tuple[str, str], Endpoint]

    def of_batch(self, project: str, webhook: str | None) -> list[Endpoint]:
        """Those that may be told of a batch's events; their types are still to be looked at."""
        found = self.registered.get(project, [])
        if webhook is None or (own := self.of_batches.get((project, webhook))) is None:
            return found
        return [*found, own]

    def of_notice(self, project: str | None) -> list[Endpoint]:
        """Those that may be told of a notice: of its project, or all where it is everybody's."""
        if project is not None:
            return self.registered.get(project, [])
        return [endpoint for found in self.registered.values() for endpoint in found]


def read_registered(database: Database, project_ids: Collection[str] | None) -> dict[str, list[Endpoint]]:
    """The registered endpoints of these projects, or of all. Blocks; raises Unavailable."""
    with database.read() as connection:
        numbers = None if project_ids is None else _numbers(connection, project_ids).values()
        found = endpoints_of(connection, numbers)
    by_project: dict[str, list[Endpoint]] = {}
    for endpoint in found:
        by_project.setdefault(endpoint.project, []).append(endpoint)
    return by_project


def read_webhooks(database: Database, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Endpoint]:
    """The endpoints of projects and URLs with which batches were submitted; they are made if they are not there.
    Blocks; raises Unavailable."""
    with database.read() as connection:
        numbers = _numbers(connection, {project for project, _ in wanted})
        known = {(numbers[project], url): (project, url) for project, url in wanted if project in numbers}
        found = {known[key]: endpoint for key, endpoint in find_batch_endpoints(connection, known).items()}
    unknown = set(wanted) - found.keys()
    return found | _new_endpoints(database, unknown) if unknown else found


def _new_endpoints(database: Database, webhooks: Collection[tuple[str, str]]) -> dict[tuple[str, str], Endpoint]:
    with database.write() as connection:
        numbers = {project: project_no(connection, project) for project in sorted({project for project, _ in webhooks})}
        found = batch_endpoints(connection, {(numbers[project], url) for project, url in webhooks})
        return {
            (project, url): endpoint
            for project, url in webhooks
            if (endpoint := found.get((numbers[project], url))) is not None
        }


def _numbers(connection: Connection, project_ids: Collection[str]) -> dict[str, int]:
    rows = connection.execute(_NUMBERS, {"ids": sorted(project_ids)})
    return {row.id: row.no for row in rows}
