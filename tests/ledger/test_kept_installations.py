"""This version can read and use the data of earlier versions, in Redis and in the ledger."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis.asyncio
from tests.support import kept_installation
from tests.support.kept_installation import IDEMPOTENCY_KEY, PASSWORD, PROJECT, SECRETS_KEY, describe, load
from tests.support.ledger_rig import LedgerRig
from tests.support.store_rig import DEVICE, StoreRig

from tweezer.ledger.access.credentials import Principal, Role, key_id
from tweezer.ledger.access.keys import look_up_key
from tweezer.ledger.access.links import read_link_keys
from tweezer.ledger.access.projects import find_project
from tweezer.ledger.access.users import find_login, is_password
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, list_letters
from tweezer.ledger.migrate import differences, require_schema, upgrade
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.model.errors import Conflict
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.store.keys import Key
from tweezer.webhooks.deliveries import Deliveries
from tweezer.webhooks.endpoints import find_endpoint
from tweezer.webhooks.secrets import SecretOwner, ensure_secrets

FILES = sorted((Path(__file__).parents[1] / "data").glob("*.json"), key=lambda file: file.stem)


@pytest.fixture
def blank(blank_url: str) -> Iterator[Database]:
    opened = Database.open(OpenDatabase(url=blank_url), create=True)
    yield opened
    opened.close()


@pytest.fixture(params=[*(file.stem for file in FILES), "this version"])
async def kept(
    request: pytest.FixtureRequest, redis_client: redis.asyncio.Redis, blank: Database
) -> AsyncIterator[tuple[LedgerRig, dict[str, Any]]]:
    """An installation of each version, after this version's upgrade, and what it must hold."""
    texts = {file.stem: file.read_text("utf-8") for file in FILES}
    text = texts.get(request.param) or await kept_installation.text_of_this_version()
    expected = await load(text, redis_client, blank)
    upgrade(blank)
    rig = StoreRig(redis_client)
    yield LedgerRig(rig, blank), expected
    await rig.store.news.close()


def test_there_is_a_kept_installation_of_each_release() -> None:
    assert [file.stem for file in FILES] == ["0.1.0"]


async def test_everything_in_a_kept_installation_can_be_read(kept: tuple[LedgerRig, dict[str, Any]]) -> None:
    bench, expected = kept
    require_schema(bench.database)
    assert differences(bench.database) == []
    for name, batch_id in expected["batches"].items():
        assert await describe(bench, UUID(batch_id)) == expected["described"][name], name
    devices = {device.name: device for device in await bench.rig.reader.devices()}
    assert set(devices) == {DEVICE, "QPU"}
    assert [window.reason for window in await bench.rig.reader.windows("QPU")] == ["new atoms"]


async def test_kept_credentials_still_give_access(kept: tuple[LedgerRig, dict[str, Any]]) -> None:
    bench, expected = kept
    vault = Vault.of(SECRETS_KEY, Path())
    with bench.database.write() as connection:
        project = find_project(connection, PROJECT)
        assert (project.limits, project.retention_s) == ({"queued_jobs": 500}, 86_400)
        for key in expected["keys"].values():
            found = look_up_key(connection, key_id(key) or "")
            assert found is not None
            assert found.principal is not None
        assert is_password(PASSWORD, find_login(connection, "ada").password)
        endpoint = find_endpoint(connection, UUID(expected["endpoint"]))
        secrets = ensure_secrets(connection, vault, SecretOwner(project.no, endpoint.id))
        assert [secret.text for secret in secrets] == expected["webhook_secrets"]
        links = read_link_keys(connection, vault)
        assert [base64.b64encode(key.secret).decode() for key in links] == expected["link_keys"]
        letters = list_letters(connection, consumer=Consumer.INTAKE)
        assert [letter.payload for letter in letters] == [b"\x00payload"]
    assert len(Deliveries(bench.database, "test").claim(endpoint.id, most=10, until_ms=2)) == 1


async def test_kept_batches_are_listed_and_found(kept: tuple[LedgerRig, dict[str, Any]]) -> None:
    bench, expected = kept
    caller = Principal("key", Role.USER, frozenset({PROJECT}))
    await bench.rig.store.index.add(bench.rig.store.snapshots.batch_ids())
    in_redis = {batch_id async for batch_id in bench.rig.store.snapshots.batch_ids()}
    batches = {UUID(batch) for batch in expected["batches"].values()}
    for queries, found in ((bench.queries, batches), (None, batches & in_redis)):
        reader = BatchReader(bench.rig.store, queries)
        listed = [record.id async for record in reader.batches(caller, BatchFilter())]
        assert found <= set(listed)
        assert len(listed) == len(set(listed))
        for batch_id in found:
            assert await reader.find(caller, short_id(batch_id)) == batch_id


async def test_kept_work_continues(kept: tuple[LedgerRig, dict[str, Any]]) -> None:
    bench, expected = kept
    rig, batches = bench.rig, {name: UUID(batch) for name, batch in expected["batches"].items()}
    with pytest.raises(Conflict):  # the key is known, with other content
        await kept_installation.submit(rig, 1, idempotency_key=IDEMPOTENCY_KEY)
    await rig.announce(lanes=2)
    leases = rig.keys(Key.LEASES, DEVICE)
    (lease,) = await rig.redis.zrange(leases, 0, -1)
    await rig.redis.zadd(leases, {lease: 1})  # long expired, like that of a file
    await rig.tickets.sweep()
    await rig.commands.close(batches["open"], project=PROJECT)
    await rig.commands.resume(batches["paused"], project=PROJECT)
    await rig.run_all()
    for name in ("running", "waiting", "open", "paused"):
        assert (await rig.batch(batches[name])).status is BatchStatus.DONE, name
        assert set(await rig.statuses(batches[name])) == {JobStatus.DONE}, name
    assert (await rig.batch(batches["later"])).status is BatchStatus.PENDING
    await bench.record()
    for name in ("ended", "canceled", "running", "waiting", "open", "paused", "later"):
        await bench.agree(batches[name])
    bench.counts_add_up()
