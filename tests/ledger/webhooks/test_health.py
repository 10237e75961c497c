"""The health of webhooks: counts and their indexes, failing receivers, and secrets that cannot be decrypted."""

from __future__ import annotations

import base64
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import insert, text, update

from tweezer.ledger.access.projects import create_project
from tweezer.ledger.access.vault import KEY_FILE, Vault
from tweezer.ledger.database import Database
from tweezer.ledger.schema import couriers, deliveries, endpoints, now_ms
from tweezer.model.addresses import WebhookPolicy
from tweezer.store.streams.feed import START, position_number
from tweezer.webhooks.deliveries import Deliveries, NewDelivery, delivery_id
from tweezer.webhooks.endpoints import Endpoint, create_endpoint, disable_endpoint
from tweezer.webhooks.health import (
    OVERDUE_S,
    ReceiverHealth,
    SecretHealth,
    WebhookHealth,
    read_receiver_health,
    read_secret_health,
    read_webhook_health,
)
from tweezer.webhooks.secrets import SecretOwner, ensure_secrets

KEY, OTHER_KEY = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))


@pytest.fixture
def endpoint(database: Database) -> Endpoint:
    with database.write() as connection:
        create_project(connection, "ours", "ours")
        return create_endpoint(connection, WebhookPolicy(), project_id="ours", url="https://hooks.example.org/")


def write(database: Database, endpoint: Endpoint, due_ms: int | None) -> None:
    event = str(uuid4())
    row = NewDelivery(
        delivery_id(endpoint.id, event), endpoint.id, endpoint.project_no, None, None, event, "ping", "{}", due_ms
    )
    Deliveries(database, "test").write([row], None)


def test_without_couriers_and_webhooks_every_measure_is_zero(database: Database) -> None:
    assert read_webhook_health(database, "test") == WebhookHealth(START, 0, 0, 0, 0, 0, 0)
    assert read_receiver_health(database) == ReceiverHealth(0, 0, [])


def test_deliveries_are_counted_by_their_next_step(database: Database, endpoint: Endpoint) -> None:
    now = now_ms()
    for due_ms in (now + 60_000, now, now - round(OVERDUE_S * 1000) - 1000):
        write(database, endpoint, due_ms)
    with database.write() as connection:
        other = create_endpoint(connection, WebhookPolicy(), project_id="ours", url="https://hooks.example.com/")
    write(database, other, now)
    with database.write() as connection:
        exhausted = deliveries.c.due_ms > now
        connection.execute(update(deliveries).where(exhausted).values(status="E", due_ms=None))
        connection.execute(insert(couriers).values(namespace="test", position=position_number("7-1"), updated_ms=1))
        disable_endpoint(connection, other.id, "for a test")
    assert read_webhook_health(database, "test") == WebhookHealth(
        "7-1", pending=2, overdue=1, exhausted=1, held=1, disabled=1, failing=0
    )
    assert read_webhook_health(database, "other").position == START


def test_the_counts_use_indexes(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("what PostgreSQL does depends on how much there is")
    with database.read() as connection:
        for where, index in (
            ("deliveries WHERE due_ms IS NOT NULL", "ix_deliveries_due"),
            ("deliveries WHERE status IN ('E', 'H')", "ix_deliveries_given_up"),
            ("endpoints WHERE disabled_ms IS NOT NULL", "ix_endpoints_disabled_ms"),
            ("endpoints WHERE failing_ms IS NOT NULL AND failing_ms < 1", "ix_endpoints_failing_ms"),
        ):
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN SELECT 1 FROM {where}")).all()  # noqa: S608
            assert index in plan[0][-1]


def test_receivers_that_have_failed_for_long_are_named(database: Database, endpoint: Endpoint) -> None:
    def failing_since(ms: int) -> ReceiverHealth:
        with database.write() as connection:
            connection.execute(update(endpoints).values(failing_ms=ms))
        return read_receiver_health(database)

    assert failing_since(now_ms() - 60_000) == ReceiverHealth(1, 0, [])
    assert failing_since(now_ms() - 3_600_000) == ReceiverHealth(1, 1, [f"{endpoint.id} of project ours"])
    with database.write() as connection:
        disable_endpoint(connection, endpoint.id, "for a test")
    assert read_receiver_health(database).failing == 0


def test_secrets_that_the_key_does_not_decrypt_are_counted(
    database: Database, endpoint: Endpoint, tmp_path: Path
) -> None:
    place = str(tmp_path / KEY_FILE)
    assert read_secret_health(database, "", tmp_path) == SecretHealth(0, 0, place, missing=True)
    for owner, key in ((None, KEY), (endpoint.id, OTHER_KEY)):
        with database.write() as connection:
            ensure_secrets(connection, Vault.of(key, tmp_path), SecretOwner(endpoint.project_no, owner))
    assert read_secret_health(database, KEY, tmp_path) == SecretHealth(2, 1, "TWEEZER_SECRETS_KEY", missing=False)
    assert read_secret_health(database, f"{KEY},{OTHER_KEY}", tmp_path).sealed == 0
    assert read_secret_health(database, "", tmp_path) == SecretHealth(2, 2, place, missing=True)
    assert list(tmp_path.glob("*.key")) == []
