"""Find the receivers of an event: the endpoints of its project, and the webhook of its batch."""

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
from tweezer.webhooks.endpoints import Endpoint, ensure_batch_endpoints, find_batch_endpoints, list_registered
from tweezer.webhooks.payloads import BatchFacts, Payloads

_FEW = 500  # up to this number, all registered endpoints are cached
_KEPT_MAX = 10_000
_NUMBERS = select(projects.c.id, projects.c.no).where(projects.c.id.in_(bindparam("ids", expanding=True)))

_Webhook = tuple[str, str]  # a project and a URL


class Subscribers(msgspec.Struct, frozen=True):
    """A snapshot of endpoints: registered ones by project, those of batches by project and URL."""

    registered: dict[str, list[Endpoint]]
    of_batches: dict[_Webhook, Endpoint]

    def for_batch(self, project: str, webhook: str | None) -> list[Endpoint]:
        """Return the endpoints that may receive a batch's events; their types are not checked yet."""
        found = self.registered.get(project, [])
        if webhook is None or (own := self.of_batches.get((project, webhook))) is None:
            return found
        return [*found, own]

    def for_notice(self, project: str | None) -> list[Endpoint]:
        """Return the endpoints that may receive a notice: those of its project, or all if it has no project."""
        if project is not None:
            return self.registered.get(project, [])
        return [endpoint for found in self.registered.values() for endpoint in found]


class _Registered(msgspec.Struct, frozen=True):
    """All registered endpoints by project. at: when they were read (monotonic). changes: the count of changes then."""

    by_project: dict[str, list[Endpoint]]
    at: float
    changes: bytes | None


class Subscriptions:
    """The subscribers of events. Endpoints are cached for a second, unless some were changed."""

    def __init__(self, database: Database, payloads: Payloads) -> None:
        self._database = database
        self._payloads = payloads
        self._registered: _Registered | None = None
        self._are_few = True
        self._webhooks: Recent[_Webhook, Endpoint] = Recent(_KEPT_MAX, kept_s=SECRETS_FRESH_S)
        self._changes: bytes | None = None
        self.changes: bytes | None = None
        """The count of changes that was read with the entries or after them."""

    async def find(self, entries: Sequence[Entry]) -> tuple[dict[UUID, BatchFacts], Subscribers]:
        """Return the facts of the entries' batches, and the subscribers. Raises Unavailable."""
        if self.changes != self._changes:
            self._changes = self.changes
            self._webhooks.clear()
        needs_all = any(it.notice is not None and it.notice.project is None for it in entries)
        reading = asyncio.create_task(self._read_all()) if self._are_few or needs_all else None
        try:
            facts = await self._payloads.batches({entry.batch_id for entry in entries if entry.notice is None})
            projects = {about.project for about in facts.values()}
            projects |= {it.notice.project for it in entries if it.notice is not None and it.notice.project is not None}
            of_batches = await self._read_webhooks({(it.project, it.webhook) for it in facts.values() if it.webhook})
            if reading is None:
                registered = await self._database.run_read(read_registered, projects)
            else:
                registered = await reading
        finally:
            if reading is not None:
                await end_tasks(reading)
        return facts, Subscribers(registered, of_batches)

    async def _read_all(self) -> dict[str, list[Endpoint]]:
        kept, changes, now = self._registered, self.changes, time.monotonic()
        if kept is not None and kept.changes == changes and now - kept.at < SECRETS_FRESH_S:
            return kept.by_project
        found = await self._database.run_read(read_registered, None)
        self._are_few = sum(map(len, found.values())) <= _FEW
        self._registered = _Registered(found, now, changes)
        return found

    async def _read_webhooks(self, wanted: Collection[_Webhook]) -> dict[_Webhook, Endpoint]:
        found = {webhook: kept for webhook in wanted if (kept := self._webhooks.get(webhook)) is not None}
        if len(found) < len(wanted):
            began = time.monotonic()
            read = await self._database.run(_ensure_webhooks, self._database, wanted - found.keys())
            for webhook, endpoint in read.items():
                self._webhooks.put(webhook, endpoint, since=began)
            found |= read
        return found


def read_registered(connection: Connection, project_ids: Collection[str] | None) -> dict[str, list[Endpoint]]:
    """Return the registered endpoints of these projects, or of all."""
    numbers = None if project_ids is None else _read_numbers(connection, project_ids).values()
    by_project: dict[str, list[Endpoint]] = {}
    for endpoint in list_registered(connection, numbers):
        by_project.setdefault(endpoint.project, []).append(endpoint)
    return by_project


def _ensure_webhooks(database: Database, wanted: Collection[_Webhook]) -> dict[_Webhook, Endpoint]:
    """Return the endpoints for the webhooks of batches; create those that are missing."""
    with database.read() as connection:
        numbers = _read_numbers(connection, {project for project, _ in wanted})
        known = {(numbers[project], url): (project, url) for project, url in wanted if project in numbers}
        found = {known[key]: endpoint for key, endpoint in find_batch_endpoints(connection, known).items()}
    unknown = set(wanted) - found.keys()
    if not unknown:
        return found
    with database.write() as connection:
        numbers = {project: project_no(connection, project) for project in sorted({project for project, _ in unknown})}
        named = {(numbers[project], url): (project, url) for project, url in unknown}
        return found | {named[key]: it for key, it in ensure_batch_endpoints(connection, named).items()}


def _read_numbers(connection: Connection, project_ids: Collection[str]) -> dict[str, int]:
    rows = connection.execute(_NUMBERS, {"ids": sorted(project_ids)})
    return {row.id: row.no for row in rows}
