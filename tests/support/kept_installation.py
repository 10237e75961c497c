"""An installation as a file: the content of its Redis and its ledger, so that tests can load it in a later version.

``python -m tests.support.kept_installation FILE`` makes the file of the version that is checked out. Make it once,
when a version is released, and never change it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import pytest
from redis.asyncio import Redis
from sqlalchemy import MetaData, insert, select
from tests.support.ledger_rig import LedgerRig
from tests.support.store_rig import DEVICE, StoreRig

from tweezer.ledger import migrate
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key, create_session
from tweezer.ledger.access.links import ensure_link_keys
from tweezer.ledger.access.projects import create_project, set_limits, set_retention
from tweezer.ledger.access.users import add_to_project, create_user, hash_password
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.config import DeadLetterBounds, OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, NewLetter, park
from tweezer.ledger.migrate import schema_version
from tweezer.ledger.schema import metadata
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.errors import NotFound
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import BatchDoc, JobSpec, Limits, OutcomeKind, Priority
from tweezer.model.windows import Window
from tweezer.store.records import JobRecord
from tweezer.store.workers import JobProgress
from tweezer.webhooks.deliveries import Deliveries, NewDelivery, delivery_id
from tweezer.webhooks.endpoints import create_endpoint
from tweezer.webhooks.secrets import SecretOwner, ensure_secrets

SECRETS_KEY = base64.b64encode(bytes(32)).decode()
PROJECT, PASSWORD, IDEMPOTENCY_KEY = "lab", "correct horse battery", "once"
DONE, FAILED = OutcomeKind.DONE, OutcomeKind.ERROR
_KEPT_S = 3600  # keys that expire do so this long after they were loaded


async def furnish(bench: LedgerRig) -> dict[str, Any]:
    """Store something of every kind, and return what a reader must find."""
    rig, database = bench.rig, bench.database
    vault = Vault.of(SECRETS_KEY, Path())
    await rig.announce(lanes=2)
    with database.write() as connection:
        project = create_project(connection, "The lab", PROJECT)
        set_limits(connection, PROJECT, {"queued_jobs": 500})
        set_retention(connection, PROJECT, 86_400)
        user = create_user(connection, "ada", hash_password(PASSWORD))
        add_to_project(connection, "ada", PROJECT)
        key = create_key(connection, name="laptop", role=Role.USER, project_id=PROJECT).text
        operator = create_key(connection, name="operator", role=Role.OPERATOR, project_id=None).text
        session = create_session(connection, user.id, session_s=10**9).text
        endpoint = create_endpoint(connection, WebhookPolicy(), project_id=PROJECT, url="https://hooks.example.org/")
        secrets = ensure_secrets(connection, vault, SecretOwner(project.no, endpoint.id))
        links = ensure_link_keys(connection, vault)
        letter = NewLetter("message-1", "it cannot be read", b"\x00payload")
        park(connection, Consumer.INTAKE, [letter], DeadLetterBounds())
    delivery = NewDelivery(
        *(delivery_id(endpoint.id, "event-1"), endpoint.id, project.no, None, None, "event-1", "ping", "{}", 1)
    )
    Deliveries(database, "test").write([delivery], None)
    await rig.devices.pause(DEVICE, "calibration", until=datetime(2100, 1, 1, tzinfo=UTC))
    await rig.devices.resume(DEVICE)
    await rig.announce("QPU", worker="w2")
    await rig.devices.pause("QPU", "the laser is off")
    begins = datetime(2100, 1, 1, tzinfo=UTC)
    await rig.devices.plan("QPU", Window("yearly", begins, begins + timedelta(days=2), "new atoms"))

    batches = {
        "ended": await submit(rig, 3, name="a sweep", tags=("sweep", "é"), user="ada", priority=Priority.HIGH),
        "forgotten": await submit(rig, 2, name="only the ledger knows it"),
    }
    for _ in range(2):
        grant = await rig.take()
        jobs = grant.jobs
        for kind in (DONE, FAILED, DONE):
            if jobs:
                jobs = (await rig.settle(grant, {jobs[0].index: kind}, used_s=0.1)).jobs
    batches["canceled"] = await submit(rig, 2)
    await rig.commands.cancel(batches["canceled"], project=PROJECT)
    await bench.record()
    assert await rig.forget(batches["forgotten"])

    batches["running"] = await submit(rig, 3)
    grant = await rig.take()
    (job,) = (await rig.settle(grant, {grant.jobs[0].index: DONE}, want=1)).jobs
    await rig.renew(grant, JobProgress(job.index, Stage.ON_DEVICE, 0.4))
    await bench.record()  # everything below is in Redis only

    batches["waiting"] = await submit(rig, 2, idempotency_key=IDEMPOTENCY_KEY)
    batches["later"] = await submit(rig, 1, not_before=datetime(2100, 1, 1, tzinfo=UTC))
    batches["open"] = await submit(rig, 1, open=True)
    batches["paused"] = await submit(rig, 1)
    await rig.commands.pause(batches["paused"], project=PROJECT)
    return {
        "batches": {name: str(batch_id) for name, batch_id in batches.items()},
        "keys": {"user": key, "operator": operator, "session": session},
        "endpoint": str(endpoint.id),
        "webhook_secrets": [secret.text for secret in secrets],
        "link_keys": [base64.b64encode(each.secret).decode() for each in links],
    }


async def submit(
    rig: StoreRig, jobs: int, *, name: str = "", tags: tuple[str, ...] = (), user: str | None = None, **options: Any
) -> UUID:
    doc = BatchDoc(
        device=DEVICE, sequence='{"a": "é"}', name=name, tags=tags, user=user, limits=Limits(job_timeout_s=600.0)
    )
    specs = [JobSpec(runs=10 + number, variables={"omega": 1.5 * number}, seed=number) for number in range(jobs)]
    return await rig.commands.submit(new_batch_id(), PROJECT, doc, specs, **options)


async def describe(bench: LedgerRig, batch_id: UUID) -> dict[str, Any]:
    """Return what users read of a batch, from Redis or from the ledger."""
    try:
        live = await bench.rig.batch(batch_id)
    except NotFound:
        live = None
    batch = live or bench.batch(batch_id)
    assert batch is not None
    jobs = bench.jobs(batch_id) if live is None else await bench.rig.jobs(batch_id)
    doc = batch.doc
    return {
        "status": batch.status.value,
        "open": batch.open,
        "priority": batch.priority.value,
        "created": batch.created.isoformat(),
        "ended": batch.ended and batch.ended.isoformat(),
        "doc": [doc.device, doc.sequence, doc.name, list(doc.tags), doc.user, doc.limits.job_timeout_s],
        "jobs": [
            [
                job.status.value,
                job.spec.runs,
                job.spec.variables,
                job.spec.seed,
                await _result(bench, live is None, job),
            ]
            for job in jobs
        ],
    }


async def _result(bench: LedgerRig, is_recorded: bool, job: JobRecord) -> Any:
    if job.faults:
        return [fault.message for fault in job.faults]
    if job.status is not JobStatus.DONE:
        return None
    if is_recorded:
        packed = bench.queries.packed_result(job.id)
    else:
        packed = (await bench.rig.reader.packed_results(job.batch_id, [job.index]))[job.index]
    assert packed is not None
    return (await bench.rig.store.results.unpack(packed)).counter


# ------------------------------------------------------------------------------------------------------- the file


async def save(bench: LedgerRig, expected: dict[str, Any]) -> str:
    """Return the content of Redis and the ledger as text."""
    described = {name: await describe(bench, UUID(batch)) for name, batch in expected["batches"].items()}
    redis = bench.rig.redis
    keys = {
        name: {"value": value, "expires": await redis.pttl(name) >= 0}
        for name, value in (await bench.rig.snapshot()).items()
    }
    with bench.database.read() as connection:
        tables = {
            table.name: [dict(row._mapping) for row in connection.execute(select(table))]
            for table in metadata.sorted_tables
        }
    whole = {
        "expected": {**expected, "described": described},
        "schema": schema_version(bench.database),
        "redis": keys,
        "ledger": tables,
    }
    return json.dumps(_plain(whole), indent=1, ensure_ascii=False) + "\n"


async def load(text: str, redis: Redis, blank: Database) -> dict[str, Any]:
    """Load a saved text into an empty Redis and a ledger without tables; return what a reader must find."""
    saved = _revive(json.loads(text))
    client: Any = redis  # the stubs of redis-py do not distinguish sync from async
    for name, entry in saved["redis"].items():
        match entry["value"]:
            case dict() as fields:
                await client.hset(name, mapping=fields)
            case bytes() as value:
                await client.set(name, value)
            case set() as members:
                await client.sadd(name, *members)
            case [[_, float()], *_] as scored:
                await client.zadd(name, dict(scored))
            case [[_, dict()], *_] as entries:
                for entry_id, fields in entries:
                    await client.xadd(name, fields, id=entry_id)
            case elements:
                await client.rpush(name, *elements)
        if entry["expires"]:
            await client.expire(name, _KEPT_S)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(migrate, "HEAD", saved["schema"])
        migrate.upgrade(blank)
    tables = MetaData()
    with blank.write() as connection:
        tables.reflect(connection)
        for name, rows in saved["ledger"].items():
            if rows:
                connection.execute(insert(tables.tables[name]), [_row(row, blank) for row in rows])
    expected: dict[str, Any] = saved["expected"]
    return expected


def _row(row: dict[str, Any], database: Database) -> dict[str, Any]:
    as_bytes = database.is_sqlite  # where a UUID is sixteen bytes
    return {name: value.bytes if as_bytes and isinstance(value, UUID) else value for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Return the value as JSON; types that JSON lacks become an object with one name that begins with a dollar."""
    match value:
        case bytes():
            try:
                return {"$text": value.decode()}
            except UnicodeDecodeError:
                return {"$base64": base64.b64encode(value).decode()}
        case UUID():
            return {"$uuid": str(value)}
        case set():
            return {"$set": [_plain(each) for each in sorted(value)]}
        case dict() if all(isinstance(name, str) for name in value):
            return {name: _plain(each) for name, each in value.items()}
        case dict():
            return {"$pairs": [[_plain(name), _plain(each)] for name, each in value.items()]}
        case list() | tuple():
            return [_plain(each) for each in value]
        case _:
            return value


def _revive(value: Any) -> Any:
    match value:
        case {"$text": str(text)}:
            return text.encode()
        case {"$base64": str(text)}:
            return base64.b64decode(text)
        case {"$uuid": str(text)}:
            return UUID(text)
        case {"$set": list(members)}:
            return {_revive(each) for each in members}
        case {"$pairs": list(pairs)}:
            return {_revive(name): _revive(each) for name, each in pairs}
        case dict():
            return {name: _revive(each) for name, each in value.items()}
        case list():
            return [_revive(each) for each in value]
        case _:
            return value


async def text_of_this_version() -> str:
    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(OpenDatabase(url=f"sqlite:///{folder}/ledger.db"), create=True)
        migrate.upgrade(database)
        redis = fakeredis.FakeAsyncRedis()
        bench = LedgerRig(StoreRig(redis), database)
        text = await save(bench, await furnish(bench))
        await redis.aclose()
        database.close()
    return text


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(asyncio.run(text_of_this_version()), encoding="utf-8")
