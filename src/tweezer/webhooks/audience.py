"""Who is told of an event: the endpoints of its project, and the webhook that its batch was submitted with."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, bindparam, select

from tweezer.ledger.access.projects import project_no
from tweezer.ledger.database import Database
from tweezer.ledger.schema import projects
from tweezer.webhooks.endpoints import Endpoint, batch_endpoints, endpoints_of, find_batch_endpoints

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
