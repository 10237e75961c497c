"""The health of webhooks in all projects, for operators. Deliveries are counted by an index, up to a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, case, func, select

from tweezer.ledger.access.links import count_sealed_link_keys
from tweezer.ledger.access.vault import KEY_FILE, Vault
from tweezer.ledger.database import Database
from tweezer.ledger.positions import courier_position
from tweezer.ledger.schema import GIVEN_UP, deliveries, endpoints, now_ms, projects
from tweezer.store.streams.feed import START, position_id
from tweezer.webhooks.deliveries import EXHAUSTED, HELD
from tweezer.webhooks.secrets import count_sealed_secrets

COUNTED_MOST = 100_000
OVERDUE_S = 60.0
FAILING_S = 600.0

_NAMED_MOST = 3


class WebhookHealth(msgspec.Struct, frozen=True):
    """Counts of deliveries and endpoints.

    position: the id of the last stream entry whose deliveries are all written. pending, exhausted, held: deliveries,
    each counted up to 100,000. overdue: pending deliveries that have been due for more than a minute. disabled:
    endpoints. failing: endpoints whose attempts have all failed for ten minutes.
    """

    position: str
    pending: int
    overdue: int
    exhausted: int
    held: int
    disabled: int
    failing: int


class ReceiverHealth(msgspec.Struct, frozen=True):
    """Counts of receivers. endpoints: all. failing: those whose attempts have all failed for ten minutes. named: some
    of these."""

    endpoints: int
    failing: int
    named: list[str]


class SecretHealth(msgspec.Struct, frozen=True):
    """The state of the secrets.

    total: secrets that sign webhooks. sealed: those that the key cannot decrypt. place: where the key is. missing:
    whether there is no key yet.
    """

    total: int
    sealed: int
    place: str
    missing: bool


def read_webhook_health(database: Database, namespace: str) -> WebhookHealth:
    """Count deliveries and disabled endpoints. Raises Unavailable."""
    disabled = select(endpoints.c.disabled_ms).where(endpoints.c.disabled_ms.is_not(None)).limit(COUNTED_MOST)
    failing = select(endpoints.c.failing_ms).where(_is_failing()).limit(COUNTED_MOST)
    with database.read() as connection:
        position = courier_position(connection, namespace)
        pending, overdue = _pending(connection)
        given_up = _given_up(connection)
        return WebhookHealth(
            position_id(position) if position else START,
            pending,
            overdue,
            given_up.get(EXHAUSTED, 0),
            given_up.get(HELD, 0),
            *(
                connection.execute(select(func.count()).select_from(some.subquery())).scalar_one()
                for some in (disabled, failing)
            ),
        )


def read_receiver_health(database: Database) -> ReceiverHealth:
    """Count endpoints, and those that fail. Raises Unavailable."""
    failing = _is_failing()
    named = select(endpoints.c.id, projects.c.id).join(projects, endpoints.c.project == projects.c.no)
    count = select(func.count()).select_from(endpoints)
    with database.read() as connection:
        rows = connection.execute(named.where(failing).order_by(endpoints.c.failing_ms).limit(_NAMED_MOST))
        return ReceiverHealth(
            connection.execute(count).scalar_one(),
            connection.execute(count.where(failing)).scalar_one(),
            [f"{identity} of project {project}" for identity, project in rows],
        )


def read_secret_health(database: Database, keys_text: str, data_dir: Path) -> SecretHealth:
    """Try to decrypt every secret with the key of the settings, without creating a key file.

    Raises Unavailable, and InvalidInput if the key is not valid.
    """
    file = data_dir.absolute() / KEY_FILE
    missing = not keys_text.strip() and not file.exists()
    vault = None if missing else Vault.of(keys_text, data_dir)
    with database.read() as connection:
        counts = count_sealed_secrets(connection, vault), count_sealed_link_keys(connection, vault)
    total, sealed = map(sum, zip(*counts, strict=True))
    return SecretHealth(total, sealed, "TWEEZER_SECRETS_KEY" if keys_text.strip() else str(file), missing)


def _is_failing() -> ColumnElement[bool]:
    since = now_ms() - FAILING_S * 1000
    return endpoints.c.failing_ms.is_not(None) & (endpoints.c.failing_ms < since) & endpoints.c.disabled_ms.is_(None)


def _pending(connection: Connection) -> tuple[int, int]:
    """Count the pending deliveries, and those that are overdue."""
    due = select(deliveries.c.due_ms).where(deliveries.c.due_ms.is_not(None)).limit(COUNTED_MOST).subquery()
    late = case((due.c.due_ms < now_ms() - OVERDUE_S * 1000, 1), else_=0)
    counted: Select[Any] = select(func.count(), func.coalesce(func.sum(late), 0)).select_from(due)
    pending, overdue = connection.execute(counted).one()
    return pending, overdue


def _given_up(connection: Connection) -> dict[str, int]:
    some = select(deliveries.c.status).where(GIVEN_UP).limit(COUNTED_MOST).subquery()
    counted = select(some.c.status, func.count()).group_by(some.c.status)
    return {status: count for status, count in connection.execute(counted)}  # noqa: C416  for mypy, rows are not pairs
