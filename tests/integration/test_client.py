"""The asyncio API with a real Redis and a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest
from tests.support.processes import Site, statuses
from tests.support.queues import store_of
from tests.support.redis_users import RedisServer
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer import BatchStatus, Conflict, InvalidInput, Job, JobStatus, Limits, NotFound, Priority
from tweezer.model.ids import job_id, new_batch_id, short_id
from tweezer.store.producers import CancelAnswer

DONE, CANCELED = JobStatus.DONE, JobStatus.CANCELED
HEADER = json.dumps(
    {
        "version": "1",
        "name": "without pulses, and good enough for what producers look at",
        "register": [{"name": "q0", "x": 0.0, "y": 0.0}],
        "channels": {},
        "variables": {},
        "operations": [],
        "measurement": None,
        "device": {"name": "MockDevice"},
    }
)
NOBODY = UUID("01a20000-0000-8000-8000-000000000000")


@pytest.fixture(params=["redis", "http"])
async def site(request: pytest.FixtureRequest, real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site whose producers use Redis, and one whose producers use the HTTP API."""
    async with Site(real_redis_url, tmp_path) as site:
        if request.param == "http":
            await site.use_api(request.getfixturevalue("sqlite_template"))
        yield site
        await site.idle()


redis_only = pytest.mark.parametrize("site", ["redis"], indirect=True)
"""Marks a test of what only producers that use Redis can do or notice."""


@pytest.fixture
async def worked(site: Site) -> Site:
    """A site with a worker of two lanes for the null device."""
    await site.workers(1, lanes=2)
    return site


async def announce(site: Site, device: str, **about: Any) -> None:
    """Announce a device without a worker."""
    await site.store.tickets.heartbeat(
        "nobody",
        device,
        ttl_s=600,
        about_device={"adapter": "null", "exclusive": 0, "checks_sequence": 0, "max_runs": 1000, **about},
        about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
    )


@pytest.fixture
async def unserved(site: Site) -> AsyncIterator[Site]:
    """A site with a null device that has no worker: batches stay pending until the test ends."""
    await announce(site, "NULL")
    yield site
    for batch_id in {event.batch_id for event in await site.events()}:
        if not (await site.store.reader.batch(batch_id, project=None)).status.terminal:
            await site.store.commands.cancel(batch_id, project=None)


def connect(site: Site, **options: Any) -> tweezer.AsyncQueue:
    return site.connect("ours", **options)


# ------------------------------------------------------------------------------------------------- lists and names


async def _listed(queue: tweezer.AsyncQueue, **wanted: Any) -> list[UUID]:
    found = [(batch, record) async for batch, record in queue.batches(**wanted)]
    assert [batch.id for batch, _ in found] == [record.id for _, record in found]
    assert {batch.queue for batch, _ in found} <= {queue}
    return [record.id for _, record in found]


async def test_batches_are_listed_newest_first_and_filtered(worked: Site) -> None:
    queue = worked.queue
    start = datetime.now(UTC) + timedelta(days=1)
    failed = await queue.submit(None, [{"variables": {"fail": "too hot"}}], device="NULL", tags=["a", "b"], name="hot")
    await failed.wait(PATIENCE_S)
    planned = await queue.submit(None, [{}], device="NULL", tags=["a"], not_before=start)
    assert await _listed(queue) == [planned.id, failed.id]
    for wanted, expected in (
        ({"status": "done"}, [failed]),
        ({"status": [BatchStatus.PENDING, "ERROR"]}, [planned]),
        ({"tag": "a"}, [planned, failed]),
        ({"tag": ["a", "b"]}, [failed]),
        ({"name": "hot"}, [failed]),
        ({"name": ["hot", "cold"], "device": "NULL"}, [failed]),
        ({"device": "OTHER"}, []),
        ({"user": "ada"}, []),
        ({"since": start}, []),
        ({"until": start}, [planned, failed]),
    ):
        assert await _listed(queue, **wanted) == [batch.id for batch in expected], wanted
    records = [record async for _, record in queue.batches()]
    assert records == [msgspec.structs.replace(await batch.record(), children=()) for batch in (planned, failed)]
    assert records[0].not_before is not None
    assert timedelta(0) <= records[0].not_before - start < timedelta(milliseconds=1)
    await planned.cancel()


async def test_long_lists_are_read_in_pages(unserved: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tweezer.client, "_BATCHES_PAGE", 3)
    ids = [(await unserved.submit([{}])).id for _ in range(10)]
    found = await _listed(unserved.queue)
    assert sorted(found) == sorted(ids)
    created = {batch_id: (await unserved.queue.batch(batch_id).record()).created for batch_id in ids}
    assert [created[it] for it in found] == sorted(created.values(), reverse=True)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"status": "BROKEN"}, "status"),
        ({"status": 1}, "status"),
        ({"tag": ""}, "tag"),
        ({"tag": {"a": 1}}, "tag"),
        ({"name": ["x" * 256]}, "name"),
        ({"device": 7}, "device"),
        ({"user": "\0"}, "user"),
        ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001
        ({"until": "yesterday"}, "until"),
    ],
)
@redis_only
async def test_arguments_of_a_list_are_checked(site: Site, wanted: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await _listed(site.queue, **wanted)
    assert refused.value.field == field


async def test_a_batch_and_a_job_are_found_by_what_people_call_them(worked: Site) -> None:
    queue = worked.queue
    first = await queue.submit(None, [Job(runs=3), Job(runs=4)], device="NULL", name="a scan / of two")
    second = await queue.submit(None, [Job(runs=5)], device="NULL")
    for text in (first.id, str(first.id), short_id(first.id), short_id(first.id).upper(), "a scan / of two", "@last~1"):
        assert (await queue.find(text)).id == first.id
    assert (await queue.find("@last")).id == second.id
    await first.wait(PATIENCE_S)
    for name in (short_id(first.id), "@last~1", "a scan / of two"):
        assert (await queue.job(f"{name}/1")).id == job_id(first.id, 1)
        assert (await queue.result(f"{name}/1")).counter == {"0": 4}
    for missing in ("nothing", short_id(new_batch_id()), "@last~2"):
        with pytest.raises(NotFound):
            await queue.find(missing)
    for missing in ("@last/1", "@last/99999999", "nothing/0"):
        with pytest.raises(NotFound):
            await queue.job(missing)
    again = await queue.submit(None, [Job(runs=5)], device="NULL", name="a scan / of two")
    with pytest.raises(Conflict, match="is not unique") as several:
        await queue.find("a scan / of two")
    assert str(again.id) in several.value.message
    assert await queue.cancel_many(["@last~2"]) == {first.id: f"batch {first.id} has ended"}
    with pytest.raises(NotFound):
        await queue.cancel_many([again.id, "nothing"])
    await again.wait(PATIENCE_S)


@pytest.mark.parametrize("text", ["", "x" * 256, "\0", 5, None, b"5m2q0xw8kd"])
@redis_only
async def test_what_cannot_name_a_batch_is_refused(site: Site, text: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        await site.queue.find(text)
    assert refused.value.field == "batch"


# -------------------------------------------------------------------------------------------- the lifecycle of a batch


async def test_a_batch_is_submitted_waited_for_and_read(worked: Site) -> None:
    queue = worked.queue
    jobs: list[Any] = [Job(runs=3), {"runs": 4}, {"runs": 5, "variables": {"fail": "too hot"}}]
    batch = await queue.submit(None, jobs, device="NULL", name="scan", tags=["a"], priority="HIGH")
    record = await batch.wait(PATIENCE_S)
    assert (record.status, record.jobs, record.project) == (BatchStatus.DONE, 3, "ours")
    assert (record.doc.name, record.doc.tags, record.priority) == ("scan", ("a",), Priority.HIGH)
    first, second, failed = await batch.results()
    assert (first.counter, second.counter) == ({"0": 3}, {"0": 4})
    assert (failed.status, failed.error) == (JobStatus.ERROR, "too hot")
    with pytest.raises(tweezer.JobFailed, match="too hot"):
        _ = failed.counter
    assert (await queue.job(str(second.id))).status is DONE
    assert (await queue.result(second.id)).counter == {"0": 4}
    again = queue.batch(str(batch.id))
    assert [job.record for job in await again.results()] == [first.record, second.record, failed.record]
    await worked.audit(batch)


async def test_jobs_are_yielded_as_they_end_each_once(worked: Site) -> None:
    sleeps = [0.9, 0.3, 0.05, 0.6, 0.0]
    batch = await worked.submit([{"sleep_s": sleep_s} if sleep_s else {} for sleep_s in sleeps])
    seen = [job.index async for job in batch.finished(PATIENCE_S)]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert seen != [0, 1, 2, 3, 4], "jobs are yielded in the order in which they end"
    assert seen.index(1) < seen.index(3)
    assert [job.index async for job in batch.finished()] == [0, 1, 2, 3, 4], (
        "after their end, jobs are yielded in order"
    )


async def test_the_first_finished_job_is_yielded_while_others_run(worked: Site) -> None:
    batch = await worked.submit([{}, {"sleep_s": 60}])
    async for job in batch.finished(PATIENCE_S):
        assert job.index == 0
        assert (await batch.record()).counts[JobStatus.RUNNING] == 1
        break
    await batch.cancel()
    await batch.wait(PATIENCE_S)


@pytest.mark.parametrize("cancels", [False, True])
async def test_the_end_of_a_task_ends_its_wait_and_cancels_only_on_request(
    worked: Site, capsys: pytest.CaptureFixture[str], cancels: bool
) -> None:
    batch = await worked.submit([{"sleep_s": 60}])
    await worked.running(batch)
    waiting = asyncio.create_task(batch.wait(progress=True, cancel_on_interrupt=cancels))
    shown = ""

    def is_shown() -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return "0/1 job · 1 running" in shown

    await until(is_shown, "the bar")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    shown = capsys.readouterr().err
    if cancels:
        assert shown == f"Interrupted: batch {short_id(batch.id)} is being cancelled.\n"
    else:
        assert shown.startswith(f"Stopped waiting; batch {short_id(batch.id)} continues.")
        assert (await batch.record()).cancels == ()
        await batch.cancel()
    assert (await batch.wait(PATIENCE_S, progress=True)).status is BatchStatus.CANCELED


async def test_a_batch_stays_open_for_jobs_until_it_is_closed(worked: Site) -> None:
    batch = await worked.queue.submit(None, [{"runs": 1}], device="NULL", open=True)
    assert await batch.add_jobs([{"runs": 2}, Job(runs=3)]) == 1
    record = await batch.wait(PATIENCE_S)
    assert record.open
    assert not record.status.terminal
    await batch.close()
    await batch.close()  # changes nothing
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.DONE
    with pytest.raises(tweezer.Conflict):
        await batch.add_jobs([{"runs": 1}])
    assert [job.counter for job in await batch.results()] == [{"0": 1}, {"0": 2}, {"0": 3}]


async def test_a_cancelled_batch_stays_cancelled(worked: Site) -> None:
    batch = await worked.submit([{"sleep_s": 60}] * 5)
    await worked.running(batch)
    await batch.cancel()
    assert (await batch.wait(PATIENCE_S)).status is BatchStatus.CANCELED
    assert statuses(await worked.audit(batch)) == [CANCELED] * 5
    for late in (batch.cancel(), batch.pause(), batch.resume()):
        with pytest.raises(tweezer.Conflict):
            await late
    (first, *_) = await batch.results()
    with pytest.raises(tweezer.JobFailed, match="CANCELED"):
        _ = first.result


async def test_single_jobs_are_cancelled(unserved: Site) -> None:
    batch = await unserved.submit([{}] * 4)
    answers = await batch.cancel_jobs([1, 3, 1, 9])
    assert answers == [CancelAnswer.CANCELED, CancelAnswer.CANCELED, CancelAnswer.OVER, CancelAnswer.UNKNOWN]
    assert statuses(await batch.jobs()) == [JobStatus.PENDING, CANCELED, JobStatus.PENDING, CANCELED]
    with pytest.raises(tweezer.Conflict):
        await unserved.queue.result((await batch.jobs())[0].id)


async def test_many_batches_are_cancelled_and_each_failure_is_reported(unserved: Site) -> None:
    live = [await unserved.submit([{}]) for _ in range(2)]
    over = await unserved.submit([{}])
    await over.cancel()
    errors = await unserved.queue.cancel_many([str(live[0].id), over.id, NOBODY, live[1].id])
    assert set(errors) == {over.id, NOBODY}
    assert "has ended" in errors[over.id]
    assert "there is no batch" in errors[NOBODY]
    assert [(await batch.record()).status for batch in live] == [BatchStatus.CANCELED] * 2
    with pytest.raises(tweezer.NotFound, match="there is no batch no id"):
        await unserved.queue.cancel_many([live[0].id, "no id"])


async def test_a_paused_batch_is_resumed(unserved: Site) -> None:
    batch = await unserved.submit([{}])
    await batch.pause()
    assert (await batch.record()).status is BatchStatus.PAUSED
    await batch.resume()
    assert (await batch.record()).status is BatchStatus.PENDING


async def test_a_batch_reports_why_it_waits(unserved: Site) -> None:
    batch = await unserved.submit([{}])
    assert await batch.waits_for() is None, "the device has a lane"
    await unserved.queue.pause_device("NULL", "new lens")
    assert await batch.waits_for() == "NULL: paused: new lens"
    await batch.cancel()
    assert await batch.waits_for() is None
    await unserved.queue.resume_device("NULL")


async def test_a_forgotten_batch_is_not_found(worked: Site) -> None:
    batch = await worked.submit([{}])
    record = await batch.wait(PATIENCE_S)
    job = (await batch.jobs())[0]
    await worked.store.recovery.forget({batch.id: record.sequence_number}, least_age_s=0)
    for gone in (batch.record(), batch.results(), worked.queue.job(job.id), batch.cancel()):
        with pytest.raises(tweezer.NotFound):
            await gone


async def test_a_batch_that_starts_later_waits_until_then(worked: Site) -> None:
    start = datetime.now(UTC) + timedelta(seconds=0.8)
    batch = await worked.submit([{}], not_before=start)
    await batch.wait(PATIENCE_S)
    assert (await worked.starts(batch))[0] >= start.timestamp() * 1_000_000 - 1000


async def test_devices_and_workers_are_listed(worked: Site) -> None:
    (device,) = await worked.queue.devices()
    assert (device.name, device.adapter, device.lanes, device.paused) == ("NULL", "null", 2, None)
    (worker,) = await worked.queue.workers()
    assert (worker.device, worker.lanes, worker.version) == ("NULL", 2, "test")
    assert f":{worked.processes[-1].pid}:" in worker.id
    await worked.queue.pause_device("NULL", "service")
    assert [device.paused for device in await worked.queue.devices()] == ["service"]
    await worked.queue.resume_device("NULL")
    with pytest.raises(tweezer.NotFound):
        await worked.queue.pause_device("NONE", "service")


# ------------------------------------------------------------------------------------------------- idempotency


async def test_a_repeated_submit_makes_one_batch(unserved: Site) -> None:
    first = await unserved.submit([{}], idempotency_key="k")
    assert (await unserved.submit([{}], idempotency_key="k")).id == first.id
    with pytest.raises(tweezer.Conflict) as raised:
        await unserved.submit([{}, {}], idempotency_key="k")
    assert raised.value.code == "idempotency"
    assert (await first.record()).jobs == 1
    async with unserved.connect("theirs") as theirs:  # idempotency keys belong to a project
        other = await theirs.submit(None, [{"runs": 1}], device="NULL", idempotency_key="k")
    assert other.id != first.id


async def test_repeatedly_added_jobs_are_added_once(unserved: Site) -> None:
    batch = await unserved.submit([{}], open=True)
    for _ in range(2):
        assert await batch.add_jobs([{"runs": 1}] * 3, idempotency_key="more") == 1
    assert (await batch.record()).jobs == 4
    with pytest.raises(tweezer.Conflict):
        await batch.add_jobs([{"runs": 2}], idempotency_key="more")


async def test_without_a_key_two_submits_make_two_batches(unserved: Site) -> None:
    assert (await unserved.submit([{}])).id != (await unserved.submit([{}])).id


# ------------------------------------------------------------------------------------------------ other projects


async def test_batches_of_another_project_do_not_exist(unserved: Site) -> None:
    batch = await unserved.submit([{}], open=True)
    job = (await batch.jobs())[0]
    before = await batch.record()
    async with unserved.connect("theirs") as queue:
        theirs = queue.batch(batch.id)
        calls: list[Callable[[], Awaitable[object]]] = [
            theirs.record,
            theirs.jobs,
            theirs.wait,
            theirs.results,
            theirs.close,
            theirs.cancel,
            theirs.pause,
            theirs.resume,
            lambda: theirs.add_jobs([{"runs": 1}]),
            lambda: theirs.cancel_jobs([0]),
            lambda: queue.job(job.id),
            lambda: queue.result(job.id),
            lambda: anext(theirs.finished()),
        ]
        for call in calls:
            with pytest.raises(tweezer.NotFound):
                await call()
        assert await queue.cancel_many([batch.id]) == {batch.id: f"there is no batch {batch.id}"}
    assert await batch.record() == before


async def test_invalid_and_unknown_ids_are_refused(unserved: Site) -> None:
    queue = unserved.queue
    for wrong in ("seven", cast(Any, 7)):
        with pytest.raises(tweezer.InvalidInput, match="batch_id"):
            queue.batch(wrong)
    with pytest.raises(tweezer.InvalidInput, match="job_id"):
        await queue.job("seven")
    with pytest.raises(tweezer.NotFound):
        await queue.batch(NOBODY).record()
    batch = await unserved.submit([{}])
    with pytest.raises(tweezer.NotFound):
        await queue.job(UUID(int=batch.id.int + 1))  # it has only one job


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("device", {"device": "NO_SUCH"}),
        ("jobs", {"jobs": []}),
        ("jobs[1]", {"jobs": [{"runs": 1}, 3]}),
        ("jobs[0].shots", {"jobs": [{"shots": 3}]}),
        ("jobs[0].runs", {"jobs": [{"runs": 0}]}),
        ("jobs[0].runs", {"jobs": [{"runs": 1001}]}),
        ("jobs[1].runs", {"jobs": [{"runs": 1}, {"runs": 1.5}]}),
        ("jobs[0].seed", {"jobs": [{"runs": 1, "seed": -1}]}),
        ("jobs", {"jobs": [{"runs": 1}] * 10_001}),
        ("sequence", {"sequence": "not JSON"}),
        ("sequence", {"sequence": 7}),
        ("jobs[0].sequence", {"sequence": None}),
        ("priority", {"priority": "URGENT"}),
        ("tags", {"tags": ["a", "a"]}),
        ("not_before", {"not_before": datetime(2026, 1, 1)}),  # noqa: DTZ001  # the fault is the missing time zone
        ("webhook", {"webhook": "ftp://example.org"}),
        ("limits", {"limits": Limits(job_timeout_s=-1)}),
        ("backend_configuration", {"backend_configuration": "{"}),
    ],
)
async def test_bad_input_names_the_field_and_writes_nothing(site: Site, field: str, given: dict[str, Any]) -> None:
    await announce(site, "EMU_FREE", checks_sequence=1)
    request = {"sequence": HEADER, "jobs": [{"runs": 1}], "device": "EMU_FREE", **given}
    with pytest.raises(tweezer.InvalidInput) as raised:
        await site.queue.submit(request.pop("sequence"), request.pop("jobs"), **request)
    assert raised.value.field.startswith(field)
    assert await site.events() == []


async def test_the_error_for_an_unknown_device_lists_the_known_ones(unserved: Site) -> None:
    with pytest.raises(tweezer.InvalidInput, match=r"no device 'NULLL' \(did you mean NULL\?\); the devices are NULL"):
        await unserved.queue.submit(None, [{"runs": 1}], device="NULLL")


async def test_the_device_is_the_one_that_the_sequence_was_built_for(site: Site) -> None:
    jobs = [{"runs": 1}]
    for known, there in ((None, "no worker has announced a device yet"), ("NULL", "the devices are NULL; name one")):
        if known is not None:
            await announce(site, known)
        with pytest.raises(tweezer.InvalidInput, match=rf"^device: .* for 'MockDevice'; {there}"):
            await site.queue.submit(HEADER, jobs)
    with pytest.raises(tweezer.InvalidInput, match=r"^device: is missing; name one, because no sequence is given"):
        await site.queue.submit(None, jobs)
    await announce(site, "MockDevice")
    by_default, named = await site.queue.submit(HEADER, jobs), await site.queue.submit(HEADER, jobs, device="NULL")
    assert [(await batch.record()).device for batch in (by_default, named)] == ["MockDevice", "NULL"]
    await site.queue.cancel_many([by_default.id, named.id])


async def test_jobs_that_are_added_are_checked_too(site: Site) -> None:
    await announce(site, "EMU_FREE", checks_sequence=1)
    batch = await site.queue.submit(HEADER, device="EMU_FREE", open=True)
    for field, jobs in (("jobs[1].runs", [{"runs": 1}, {"runs": 0}]), ("jobs", [])):
        with pytest.raises(tweezer.InvalidInput) as raised:
            await site.queue.batch(batch.id).add_jobs(cast(Any, jobs))
        assert raised.value.field == field
    assert (await batch.record()).jobs == 0
    await batch.close()


def test_an_invalid_url_is_refused() -> None:
    with pytest.raises(tweezer.InvalidInput, match=r"^url: "):
        tweezer.connect_async("localhost:6379")


@redis_only
async def test_the_url_may_come_from_the_environment(unserved: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_REDIS_URL", unserved.url)
    async with tweezer.connect_async() as queue:
        assert [device.name for device in await queue.devices()] == ["NULL"]


@redis_only
async def test_a_live_batch_is_read_without_opening_the_ledger(
    unserved: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The base install cannot open it: it has no SQLAlchemy."""
    monkeypatch.setitem(sys.modules, "tweezer.ledger.queries.queries", None)
    monkeypatch.setenv("TWEEZER_DATABASE_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    async with connect(unserved) as queue:
        batch = await queue.submit(None, [Job(runs=1)], device="NULL")
        assert [event.status async for event in batch.events(follow=False)] == [BatchStatus.PENDING]
        assert len(await batch.jobs()) == 1
        await batch.cancel()
        assert [event.status async for event in batch.events("now", follow=False)] == []
        assert [job.status for job in await batch.results(PATIENCE_S)] == [CANCELED]
        with pytest.raises(tweezer.TweezerError, match=r"reading the ledger needs .*pip install '\.\[server\]'"):
            await queue.batch(NOBODY).record()
    assert not os.listdir(tmp_path)  # noqa: PTH208  a coroutine


async def test_a_full_backlog_is_reported_and_adds_nothing(site: Site) -> None:
    await announce(site, "NULL", max_backlog=3)
    batch = await site.submit([{}] * 2, open=True)
    for late in (site.submit([{}] * 2), batch.add_jobs([{"runs": 1}] * 2)):
        with pytest.raises(tweezer.QueueFull) as raised:
            await late
        assert raised.value.retryable
    assert (await batch.record()).jobs == 2
    await batch.cancel()


# -------------------------------------------------------------------------------------------------------- waiting


async def test_a_wait_that_takes_too_long_raises_and_may_be_repeated(unserved: Site) -> None:
    batch = await unserved.submit([{}])
    for wait in (batch.wait(0.05), batch.results(0.05), anext(batch.finished(0.05))):
        with pytest.raises(tweezer.WaitTimeout) as raised:
            await wait
        assert raised.value.retryable
    await batch.cancel()
    assert (await batch.wait(0.05)).status is BatchStatus.CANCELED


async def reads(site: Site) -> int:
    """Return how often a batch's record was read since the counters of the server were reset."""
    stats = await cast(Any, site.store.redis).info("commandstats")
    return int(stats.get("cmdstat_hgetall", {"calls": 0})["calls"])


@redis_only
async def test_a_wait_is_woken_and_does_not_poll(site: Site) -> None:
    await site.workers(1, worker_lease_s=60)  # it reports progress once a second
    batch = await site.submit([{"sleep_s": 2.0}])
    await cast(Any, site.store.redis).config_resetstat()
    await batch.wait(PATIENCE_S)
    assert await reads(site) <= 10
    woken_us = await site.now_us()
    (ended_us,) = [e.time_us for e in await site.events(batch) if e.status is BatchStatus.DONE and e.index is None]
    assert woken_us - ended_us < 500_000


async def test_a_wait_for_very_many_jobs_reads_much_less_often_than_jobs_end(worked: Site) -> None:
    batch = await worked.submit([{}] * 5000)
    await cast(Any, worked.store.redis).config_resetstat()
    assert (await batch.wait(PATIENCE_S)).counts[DONE] == 5000
    assert await reads(worked) < 500


async def test_many_wait_for_one_batch(worked: Site) -> None:
    batch = await worked.submit([{"sleep_s": 0.3}])
    async with worked.connect("ours") as other:
        records = await asyncio.gather(
            *(batch.wait(PATIENCE_S) for _ in range(20)), other.batch(batch.id).wait(PATIENCE_S)
        )
    assert {record.status for record in records} == {BatchStatus.DONE}


async def test_a_wait_that_is_cancelled_leaves_the_others_alone(worked: Site) -> None:
    batch = await worked.submit([{"sleep_s": 0.6}])
    waits = [asyncio.create_task(batch.wait(PATIENCE_S)) for _ in range(3)]
    await worked.running(batch)
    waits[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits[0]
    assert (await waits[1]).status is (await waits[2]).status is BatchStatus.DONE
    later = await worked.submit([{"sleep_s": 0.1}])
    assert (await later.wait(PATIENCE_S)).status is BatchStatus.DONE


@redis_only
async def test_a_wait_can_be_cancelled_at_any_moment(unserved: Site) -> None:
    """Python 3.11 may swallow a cancellation if a reply of Redis arrives at the same moment."""
    batch = await unserved.submit([{}])
    for turn in range(120):
        wait = asyncio.create_task(batch.wait(PATIENCE_S) if turn % 2 else collected(batch))
        for _ in range(turn // 3):  # each time a little later
            await asyncio.sleep(0)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(wait, 5)


async def test_changes_yields_every_change_of_a_batch(worked: Site) -> None:
    batch = await worked.submit([{"sleep_s": 0.2}] * 4)
    seen = [record async for record in batch.changes(PATIENCE_S)]
    done = [record.counts[DONE] for record in seen]
    assert done == sorted(done)
    assert done[-1] == 4
    assert len(set(done)) >= 3
    assert seen[-1].status is BatchStatus.DONE


# ------------------------------------------------------------------------------------------------- without Redis


@pytest.fixture
def server(tmp_path: Path, real_redis_url: str) -> Iterator[RedisServer]:
    """A server that the test may kill. The fixture of the shared one skips the test if none is installed."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


async def test_calls_wait_until_redis_is_back(server: RedisServer, tmp_path: Path) -> None:
    async with Site(server.url, tmp_path) as site:
        await announce(site, "NULL")
        batch = await site.submit([{}])
        await asyncio.to_thread(server.kill)
        calls = asyncio.gather(batch.record(), site.submit([{}]), batch.jobs(), site.queue.devices(), batch.pause())
        done, _ = await asyncio.wait([calls], timeout=0.3)
        assert not done
        await asyncio.to_thread(server.start)
        record, second, *_ = await calls
        assert record.jobs == 1
        assert (await second.record()).jobs == 1
        assert (await batch.record()).status is BatchStatus.PAUSED


@redis_only
async def test_a_submit_whose_reply_is_lost_is_repeated_and_makes_one_batch(worked: Site) -> None:
    """The connection breaks after Redis has executed the call: it is repeated with its idempotency key."""
    async with connect(worked) as queue:
        scripts: Any = store_of(queue).scripts
        call = scripts.call
        lost: list[Any] = []

        async def lose_first_reply(name: str, **arguments: Any) -> Any:
            answer = await call(name, **arguments)
            if not lost:
                lost.append(answer)
                raise tweezer.Unavailable("the answer was lost")
            return answer

        await queue.devices()
        scripts.call = lose_first_reply
        batch = await queue.submit(None, [{"runs": 1}], device="NULL")
        assert lost
        assert str(batch.id).encode() in lost[0]
        await batch.wait(PATIENCE_S)
    assert len({event.batch_id for event in await worked.events()}) == 1


async def test_after_the_time_for_retries_redis_is_unavailable(server: RedisServer, tmp_path: Path) -> None:
    async with Site(server.url, tmp_path) as site, connect(site, retry_s=0.5) as queue:
        await announce(site, "NULL")
        batch = await queue.submit(None, [{"runs": 1}], device="NULL")
        await asyncio.to_thread(server.kill)
        for call in (batch.record, batch.cancel, batch.wait, lambda: queue.submit(None, [{"runs": 1}], device="NULL")):
            began = time.monotonic()
            with pytest.raises(tweezer.Unavailable) as raised:
                await call()
            assert raised.value.retryable
            assert 0.1 < time.monotonic() - began < PATIENCE_S / 2
        await asyncio.to_thread(server.start)
        assert (await batch.record()).jobs == 1


async def test_a_wait_survives_an_outage_of_redis(server: RedisServer, tmp_path: Path) -> None:
    async with Site(server.url, tmp_path) as site:
        await site.workers(1)
        batch = await site.submit([{"sleep_s": 0.8}, {}])
        waits = [asyncio.create_task(batch.wait(PATIENCE_S)), asyncio.create_task(collected(batch))]
        await site.running(batch)
        await asyncio.to_thread(server.kill)
        await site.processes[0].wait_logged("duty.failed")
        await asyncio.to_thread(server.start)
        record, finished = await asyncio.gather(*waits)
        assert cast(Any, record).status is BatchStatus.DONE
        assert sorted(cast(list[int], finished)) == [0, 1]
        await site.audit(batch)


async def collected(batch: tweezer.AsyncBatch) -> list[int]:
    return [job.index async for job in batch.finished(PATIENCE_S)]


# --------------------------------------------------------------------------------------------------- with Pulser


def test_importing_it_imports_no_pulser() -> None:
    program = (
        "import sys, tweezer, tweezer.sync, tweezer.client;"
        "print([name for name in ('pulser', 'numpy', 'scipy', 'qutip', 'fastapi', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.emulator
async def test_a_pulser_sequence_comes_back_as_pulser_results(site: Site) -> None:
    from pulser import Pulse, Register, Sequence
    from pulser.backend.results import Results
    from pulser.devices import MockDevice

    sequence: Any = Sequence(Register.rectangle(1, 2, spacing=6.0, prefix="q"), MockDevice)
    sequence.declare_channel("rydberg", "rydberg_global")
    omega = sequence.declare_variable("omega", dtype=float)
    sequence.add(Pulse.ConstantPulse(400, omega, 0.0, 0.0), "rydberg")
    await site.workers(1, "EMU_FREE")
    jobs = [{"runs": 50, "variables": {"omega": 3.0}, "seed": 7}] * 2
    batch = await site.queue.submit(sequence, jobs, device="EMU_FREE")
    first, second = await batch.results(PATIENCE_S)
    assert sum(first.counter.values()) == 50
    assert first.counter == second.counter, "equal seeds give equal counters"
    assert first.variables == {"omega": 3.0}
    results = first.results()
    assert isinstance(results, Results)
    assert dict(results.final_bitstrings) == first.counter
    with pytest.raises(tweezer.InvalidInput, match=r"jobs\[0\]\.variables\.omega"):
        await site.queue.submit(sequence, [{"runs": 1}], device="EMU_FREE")
    assert first.result.provenance is not None
    assert first.result.provenance.seed == 7
