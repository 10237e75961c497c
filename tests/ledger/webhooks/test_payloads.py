"""The content of webhooks: read from Redis, and from the ledger once Redis has forgotten the batch."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import msgspec
import pytest
from tests.support.api_rig import HOST, SECRETS_KEY, ApiRig
from tests.support.ledger_rig import LedgerRig
from tests.support.store_rig import DEVICE

from tweezer.ledger.access.links import ResultLinks
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.database import Database
from tweezer.model.errors import FaultKind
from tweezer.model.events import Event
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.lru import Recent
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Outcome, OutcomeKind, Result, result_file, result_json
from tweezer.model.rules import Rules
from tweezer.model.webhooks import BODY_MAX_BYTES, BatchData, EventType, JobData, body, schema, timestamp
from tweezer.settings import ApiSettings, Settings
from tweezer.store.keys import Key
from tweezer.store.results import Results, ResultsFolder
from tweezer.webhooks.payloads import Payloads

Data = JobData | BatchData
BASE = "https://tweezer.test"
DONE = Outcome(OutcomeKind.DONE, result=Result(counter={"01": 7, "10": 3}), device_s=1.0)
BROKEN = Outcome(OutcomeKind.ERROR, fault=Fault("user", "it broke", "variables.omega"), cause=FaultKind.USER)


def open_vault() -> Vault:
    return Vault.of(SECRETS_KEY, Path())


class Teller:
    """Make the webhooks of a bench's events, as a courier does."""

    def __init__(self, bench: LedgerRig) -> None:
        self.bench = bench
        self.rig = bench.rig
        self.links = ResultLinks(bench.database, open_vault, base_url=BASE, link_s=1000)
        self.payloads = self.another()

    def another(self) -> Payloads:
        """Return a teller without a cache."""
        return Payloads(self.rig.store, self.bench.database, self.links)

    async def events(self, batch_id: UUID) -> dict[str, Event]:
        """Return the payloads by type; of several of one type the last."""
        entries = await self.rig.store.events.read(most=10_000)
        events = [event for it in entries if it.batch_id == batch_id for event in it.events]
        return {event.type: event for event in events if event.type in set(EventType)}

    async def data(self, event: Event) -> Any:
        (data,) = await self.payloads.describe([event])
        assert data is not None
        check(event, data)
        return data

    async def submit(self, jobs: int = 1, *, project: str = "a", **about: Any) -> UUID:
        doc = BatchDoc(device=DEVICE, **{"sequence": "{}", **about})
        return await self.rig.commands.submit(new_batch_id(), project, doc, [JobSpec(runs=10)] * jobs)

    async def forget(self, batch_id: UUID) -> None:
        await self.bench.record()
        assert await self.rig.forget(batch_id)


def check(event: Event, data: Data) -> None:
    """Check that the body matches the schema, is short, and has the given number of the previous event."""
    text = body(event.type, timestamp(event.time_us), data, event.sequence - 1)
    assert len(text.encode()) < BODY_MAX_BYTES
    told = json.loads(text)
    jsonschema.validate(told, schema(event.type), jsonschema.Draft202012Validator)
    assert (told["type"], told["data"]["previous_sequence"]) == (event.type, event.sequence - 1)


@pytest.fixture
def teller(bench: LedgerRig) -> Teller:
    return Teller(bench)


@pytest.fixture(params=["redis", "ledger"])
def settled(request: pytest.FixtureRequest, teller: Teller) -> Callable[[UUID], Awaitable[None]]:
    """Leave a finished batch in Redis, or only in the ledger."""

    async def settle(batch_id: UUID) -> None:
        if request.param == "ledger":
            await teller.forget(batch_id)

    return settle


Settled = Callable[[UUID], Awaitable[None]]


async def test_the_webhook_of_a_done_job_has_its_times_and_its_result(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit(tags=("x", "y"), webhook="https://hooks.test/")
    grant = await teller.rig.take()
    await teller.rig.settle(grant, {0: DONE})
    record = (await teller.rig.reader.jobs(await teller.rig.batch(batch_id), [0]))[0]
    event = (await teller.events(batch_id))["job.done"]
    await settled(batch_id)
    told = await teller.data(event)
    answer = result_json(DONE.result or Result())
    assert told.result.link.startswith(f"{BASE}/api/v1/jobs/{job_id(batch_id, 0)}/results?issued=")
    assert told.result.link_expires_at == timestamp((event.time_us // 1_000_000 + 1000) * 1_000_000)
    assert (told.result.size, told.result.sha256) == (len(answer), hashlib.sha256(answer).hexdigest())
    assert (told.result.counter, told.result.content_encoding) == ({"01": 7, "10": 3}, "identity")
    assert told == JobData(
        project_id="a",
        batch_id=str(batch_id),
        job_id=str(job_id(batch_id, 0)),
        index=0,
        status=JobStatus.DONE,
        previous_status=JobStatus.RUNNING,
        sequence=event.sequence,
        previous_sequence=None,
        device=DEVICE,
        tags=("x", "y"),
        runs=10,
        created_at=iso(record.created),
        started_at=iso(record.started),
        ended_at=iso(record.ended),
        result=told.result,
    )


async def test_the_webhook_of_a_failed_job_has_its_errors(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit()
    await teller.rig.settle(await teller.rig.take(), {0: BROKEN})
    event = (await teller.events(batch_id))["job.error"]
    await settled(batch_id)
    told = await teller.data(event)
    assert (told.status, told.errors, told.result) == (JobStatus.ERROR, (BROKEN.fault,), None)


async def test_a_job_that_ended_with_its_batch_has_the_fault_of_the_batch(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit(2)
    fault = Fault("user", "this cannot run", "sequence")
    assert await teller.rig.release(await teller.rig.take(), fault, failures_max=1)
    events = await teller.events(batch_id)
    await settled(batch_id)
    job, batch = await teller.data(events["job.error"]), await teller.data(events["batch.error"])
    assert (job.errors, job.started_at, job.ended_at is None) == ((fault,), None, False)
    assert (batch.errors, batch.jobs[JobStatus.ERROR]) == ((fault,), 2)


async def test_a_job_that_a_rule_of_its_batch_cancelled_has_the_fault_of_the_batch(
    teller: Teller, settled: Settled
) -> None:
    batch_id = await teller.rig.submit(
        2, rules=Rules(schedule_threshold_s=1, queue_timeout_s=60), not_before=datetime(2020, 1, 1, tzinfo=UTC)
    )
    await teller.rig.swept()
    await teller.rig.let_expire(batch_id)
    await teller.rig.swept()
    fault = (await teller.rig.batch(batch_id)).fault
    events = await teller.events(batch_id)
    await settled(batch_id)
    job, batch = await teller.data(events["job.canceled"]), await teller.data(events["batch.timed_out"])
    assert (job.errors, batch.errors) == ((fault,), (fault,))
    late = await teller.data(events["batch.late"])
    assert (late.status, late.previous_status, late.errors) == (BatchStatus.PENDING, BatchStatus.PENDING, ())


async def test_a_job_that_a_user_cancelled_has_no_fault(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit(1)
    await teller.rig.commands.cancel(batch_id, project=None)
    events = await teller.events(batch_id)
    await settled(batch_id)
    assert (await teller.data(events["job.canceled"])).errors == ()


async def test_an_old_event_contains_nothing_that_happened_later(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit()
    await teller.rig.settle(await teller.rig.take(), {0: BROKEN})
    events = await teller.events(batch_id)
    await settled(batch_id)
    running = await teller.data(events["job.running"])
    assert (running.status, running.previous_status) == (JobStatus.RUNNING, JobStatus.PENDING)
    assert (running.ended_at, running.errors, running.result) == (None, (), None)
    assert running.started_at == timestamp(events["job.running"].time_us // 1000 * 1000)
    created = await teller.data(events["batch.created"])
    assert (created.status, created.previous_status, created.ended_at) == (BatchStatus.PENDING, None, None)
    begun = await teller.data(events["batch.running"])
    assert begun.started_at == running.started_at
    assert begun.ended_at is None


async def test_the_webhook_of_a_batch_has_the_current_counts(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit(2, name="rabi")
    grant = await teller.rig.take()
    turn = await teller.rig.settle(grant, {0: DONE})
    created = await teller.data((await teller.events(batch_id))["batch.created"])
    assert (created.jobs[JobStatus.DONE], created.open, created.name) == (1, False, "rabi")
    await teller.rig.settle(grant, {turn.jobs[0].index: BROKEN})
    record = await teller.rig.batch(batch_id)
    event = (await teller.events(batch_id))["batch.done"]
    await settled(batch_id)
    told = await teller.data(event)
    assert told.jobs == dict.fromkeys(JobStatus, 0) | {JobStatus.DONE: 1, JobStatus.ERROR: 1}
    assert (told.created_at, told.started_at, told.ended_at) == (
        iso(record.created),
        iso(record.started),
        iso(record.ended),
    )


async def test_tags_are_the_current_ones(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit(tags=("old",))
    await teller.payloads.batches([batch_id])
    await teller.rig.run_all()
    await teller.rig.commands.set_tags(batch_id, ["new"], project=None)
    event = (await teller.events(batch_id))["batch.done"]
    await settled(batch_id)
    assert (await teller.data(event)).tags == ("new",)


async def test_a_large_result_is_described_as_it_is_sent(teller: Teller, settled: Settled, tmp_path: Path) -> None:
    teller.rig.store.results = Results(ResultsFolder(tmp_path), inline_max=10)
    batch_id = await teller.submit()
    assert DONE.result is not None
    packed = await teller.rig.store.results.pack(batch_id, 0, DONE.result)
    await teller.rig.settle(await teller.rig.take(), {0: OutcomeKind.DONE})
    await teller.rig.redis.hset(teller.rig.keys(Key.RESULT, batch_id), 0, packed)
    event = (await teller.events(batch_id))["job.done"]
    await settled(batch_id)
    told = (await teller.data(event)).result
    file = result_file(packed)
    assert file is not None
    content = (tmp_path / file.name).read_bytes()
    assert (told.size, told.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (told.content_encoding, told.counter) == ("gzip", None)
    assert gzip.decompress(content) == result_json(DONE.result)


async def test_a_small_counter_is_included(teller: Teller) -> None:
    small = Result(counter={"0" * 100: 1}, serialised_results="x" * 10_000)
    large = Result(counter={f"{number:012b}": 1 for number in range(300)})
    batch_id = await teller.submit(2)
    grant = await teller.rig.take()
    await teller.rig.settle(grant, {0: msgspec.structs.replace(DONE, result=small)})
    first = (await teller.events(batch_id))["job.done"]
    await teller.rig.settle(grant, {1: msgspec.structs.replace(DONE, result=large)})
    second = (await teller.events(batch_id))["job.done"]
    assert (await teller.data(first)).result.counter == small.counter
    assert (await teller.data(second)).result.counter is None


async def test_expensive_results_are_described_in_a_thread(teller: Teller) -> None:
    await teller.submit(8)
    grant = (await teller.rig.grants())[0]
    heavy = Result(counter={"1": 1}, serialised_results=hashlib.shake_128(b"").hexdigest(40_000))
    jobs = grant.jobs
    while jobs:
        outcomes = {job.index: msgspec.structs.replace(DONE, result=heavy) for job in jobs}
        jobs = (await teller.rig.settle(grant, outcomes, want=8)).jobs
    events = [event for it in await teller.rig.store.events.read() for event in it.events if event.type == "job.done"]
    told = await teller.payloads.describe(events)
    assert len(told) == 8
    size = len(result_json(heavy))
    assert {it.result.size for it in told if isinstance(it, JobData) and it.result} == {size}


async def test_deleted_batches_are_left_out(teller: Teller) -> None:
    kept, gone = await teller.submit(), await teller.submit()
    first, second = (await teller.events(kept))["batch.created"], (await teller.events(gone))["batch.created"]
    assert set(await teller.payloads.batches([kept, gone])) == {kept, gone}
    assert [it is None for it in await teller.payloads.describe([first, second])] == [False, False]  # read just now
    await teller.rig.redis.delete(teller.rig.keys(Key.BATCH, gone))
    assert [it is None for it in await teller.payloads.describe([first, second])] == [False, True]
    assert set(await teller.payloads.batches([kept, gone])) == {kept}


async def test_the_facts_of_a_batch_are_read_once(teller: Teller, settled: Settled) -> None:
    batch_id = await teller.submit(webhook="https://hooks.test/", name="n", tags=("t",))
    await teller.rig.run_all()
    await settled(batch_id)
    facts = (await teller.payloads.batches([batch_id]))[batch_id]
    assert (facts.project, facts.webhook, facts.device, facts.name, facts.tags) == (
        *("a", "https://hooks.test/", DEVICE, "n"),
        ("t",),
    )
    await teller.rig.redis.flushall()
    teller.bench.database.close()
    assert await teller.payloads.batches([batch_id]) == {batch_id: facts}


async def test_the_number_of_cached_batches_is_limited(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller.payloads, "_facts", Recent(2))
    monkeypatch.setattr("tweezer.webhooks.payloads._PAGE", 1)
    ids = [await teller.submit() for _ in range(3)]
    assert list(await teller.payloads.batches(ids)) == ids
    await teller.rig.redis.flushall()
    assert set(await teller.payloads.batches(ids)) == {ids[1], ids[2]}
    assert (await teller.payloads.describe([])) == []


async def test_the_ledger_wins_if_redis_lost_the_end(teller: Teller) -> None:
    batch_id = await teller.submit()
    grant = await teller.rig.take()
    dumps = {name: await teller.rig.redis.dump(name) for name in await teller.rig.redis.keys("*")}
    await teller.rig.settle(grant, {0: DONE})
    event = (await teller.events(batch_id))["job.done"]
    await teller.bench.record()
    for name, dump in dumps.items():
        await teller.rig.redis.restore(name, 0, dump, replace=True)
    told = await teller.data(event)
    assert (told.status, told.result.counter) == (JobStatus.DONE, {"01": 7, "10": 3})


HUGE = 100_000


@pytest.mark.parametrize("letter", ["x", "é", "\u4e2d", "\U0001f52d", '"', "\x01"])
async def test_every_body_is_bounded(teller: Teller, letter: str) -> None:
    tags = tuple(f"{number}{letter * 100}" for number in range(50))
    batch_id = await teller.submit(3, name=letter * HUGE, tags=tags)
    grant = await teller.rig.take()
    counter = {f"{number}{letter * 50}": 1 for number in range(HUGE // 50)}
    await teller.rig.settle(grant, {0: msgspec.structs.replace(DONE, result=Result(counter=counter))})
    long = Fault(letter * HUGE, letter * HUGE, letter * HUGE)
    await teller.rig.settle(grant, {1: msgspec.structs.replace(BROKEN, fault=long)})
    await teller.rig.release(grant, long, failures_max=1)
    events = await teller.events(batch_id)
    assert {"job.done", "job.error", "batch.error"} <= set(events)
    for event in events.values():
        told = await teller.data(event)
        assert told.tags == tags[: len(told.tags)]
        assert len(told.tags) > 5
    assert (await teller.data(events["job.error"])).errors[0].message.endswith(f"{letter}…")
    assert (await teller.data(events["job.done"])).result.link


async def test_a_link_in_a_webhook_works_at_the_api(database: Database) -> None:
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=0)), database)
    await rig.announce()
    batch_id = await rig.submit()
    await rig.run()
    links = ResultLinks(database, open_vault, base_url=HOST, link_s=1000)
    payloads = Payloads(rig.store, database, links)
    events = [event for it in await rig.store.events.read() for event in it.events if event.type == "job.done"]
    (told,) = await payloads.describe(events)
    assert isinstance(told, JobData)
    assert told.result is not None
    answer = await rig.stranger.get(told.result.link)
    assert answer.status_code == 200
    assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (told.result.size, told.result.sha256)
    assert answer.json()["counter"] == told.result.counter
    other = told.result.link.replace(str(batch_id), str(new_batch_id()))
    assert (await rig.stranger.get(other)).status_code == 403
    await rig.close()


def iso(moment: datetime | None) -> str:
    assert moment is not None
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
