"""Schedules with real processes: the same over both transports, and one batch for each tick if a process dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from tests.support.processes import NULL, Site
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer.cli import main
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.schedules.records import Schedule, ScheduleStatus, TickOutcome
from tweezer.ledger.schedules.ticks import LEASE_MS
from tweezer.ledger.schema import now_ms
from tweezer.model.errors import Conflict, InvalidInput, NotFound, TweezerError
from tweezer.store.acl import RedisUser


@pytest.fixture
async def site(sqlite_template: Path, real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site with an API, and a null device that no worker serves."""
    async with Site(real_redis_url, tmp_path) as site:
        await site.use_api(sqlite_template)
        await site.announce_null()
        yield site


def ledger_url(site: Site) -> str:
    return f"sqlite:///{site.folder / 'ledger.db'}"


def over_redis(site: Site, **options: Any) -> tweezer.AsyncQueue:
    options = {"project": "ours", "database_url": ledger_url(site)} | options
    return tweezer.connect_async(as_user(site.url, RedisUser.PRODUCER), **options)


async def create(queue: tweezer.AsyncQueue, name: str = "nightly", **options: Any) -> Schedule:
    timing = {} if "cron" in options else {"every_s": 60}
    return await queue.create_schedule(name, None, [{"runs": 1}], batch={"device": NULL}, **timing | options)


def make_due(site: Site) -> None:
    """Let the next tick of all schedules be now."""
    database = Database.open(OpenDatabase(ledger_url(site)))
    with database.write() as connection:
        now = now_ms()
        statement = "UPDATE schedules SET next_ms = :now, anchor_ms = :now - every_s * 1000"
        connection.execute(text(statement), {"now": now})
    database.close()


async def test_schedules_are_equal_over_both_transports(site: Site) -> None:
    async with over_redis(site) as direct, site.connect("ours", retry_s=PATIENCE_S) as remote:
        made = await create(remote, "a", cron="30 2 * * *", time_zone="Europe/Paris")
        other = await create(direct, "b")
        assert await remote.schedules() == await direct.schedules()
        for schedule in ("a", "b", made.id, str(other.id)):
            assert await remote.schedule(schedule) == await direct.schedule(schedule)
        assert (await direct.schedule("a")) == made
        batch = await remote.run_schedule("a", idempotency_key="x")
        assert (await direct.run_schedule("a", idempotency_key="x")).id == batch.id
        record = await batch.record()
        assert f"schedule:{made.id}" in record.doc.tags
        paused = await direct.pause_schedule("a", "new lens", by="alice")
        assert (paused.status, paused.reason, paused.changed_by) == (ScheduleStatus.PAUSED, "new lens", "alice")
        assert (await remote.resume_schedule("a")).status is ScheduleStatus.ACTIVE
        changed = await remote.change_schedule(
            "a", every_s=3600, jobs=[{"runs": 2}, {"runs": 3}], batch={"device": NULL}
        )
        assert (changed.every_s, changed.cron) == (3600, None)
        assert changed.template is not None
        assert [job["runs"] for job in changed.template["jobs"]] == [2, 3]
        with pytest.raises(Conflict, match="has been changed in the meantime"):
            await direct.change_schedule("a", name="c", revision=made.revision)
        await remote.delete_schedule("a")
        await direct.delete_schedule("b")
        assert await remote.schedules() == []
        assert await batch.record() == record


async def test_errors_are_equal_over_both_transports(site: Site) -> None:
    async with over_redis(site) as direct, site.connect("ours", retry_s=PATIENCE_S) as remote:
        cases: list[dict[str, Any]] = [
            {"cron": "61 * * * *"},
            {"cron": "* * * * *", "every_s": 60},
            {"every_s": 59},
            {"cron": "* * * * *", "time_zone": "Mars"},
            {"overlap": "x"},
            {"missed": "x"},
            {"grace_s": 1},
            {"name": ""},
        ]
        for case in cases:
            found = []
            for queue in (direct, remote):
                with pytest.raises(InvalidInput) as raised:
                    await create(queue, **case)
                found.append((raised.value.field, str(raised.value)))
            assert found[0] == found[1]
        for queue in (direct, remote):
            with pytest.raises(NotFound, match="there is no schedule nightly"):
                await queue.schedule("nightly")
            with pytest.raises(InvalidInput, match="start_at: is not possible in a schedule"):
                await queue.create_schedule(
                    "x", None, [{"runs": 1}], every_s=60, batch={"device": NULL, "start_at": datetime.now(UTC)}
                )
            with pytest.raises(InvalidInput, match="jobs"):
                await queue.create_schedule("x", None, [{"runs": 0}], every_s=60, batch={"device": NULL})


async def test_schedules_without_a_ledger_are_refused(real_redis_url: str) -> None:
    async with tweezer.connect_async(real_redis_url) as queue:
        with pytest.raises(TweezerError, match="schedules are in the ledger, which is not configured here") as raised:
            await queue.schedules()
    assert raised.value.code == "no_ledger"


async def test_the_blocking_client_has_schedules(site: Site) -> None:
    def work() -> tuple[Schedule, Any]:
        url = as_user(site.url, RedisUser.PRODUCER)
        with tweezer.connect(url, project="ours", database_url=ledger_url(site)) as queue:
            queue.create_schedule("nightly", None, [{"runs": 1}], every_s=60, batch={"device": NULL})
            batch = queue.run_schedule("nightly")
            return queue.schedule("nightly"), batch.record()

    schedule, record = await asyncio.to_thread(work)
    assert schedule.ticks[0].batch_id == record.id


async def test_two_schedulers_one_of_which_is_killed_submit_one_batch_for_each_tick(site: Site) -> None:
    async with over_redis(site) as queue:
        for number in range(20):
            await create(queue, f"s-{number}", overlap="queue", every_s=3600)
        settings = {"database_url": ledger_url(site)}
        first, second = site.spawn("scheduler", **settings), site.spawn("scheduler", **settings)
        await site.serves(first)
        await site.serves(second)
        for _ in range(2):
            await asyncio.to_thread(make_due, site)
            await _handled(queue)
        await asyncio.to_thread(make_due, site)
        await until(lambda: _some_submitted(queue, 41), "the third tick")
        first.kill()
        await _handled(queue, PATIENCE_S + LEASE_MS / 1000)
        ticks = [(await queue.schedule(it.id)).ticks for it in await queue.schedules()]
        batches = [tick.batch_id for found in ticks for tick in found]
        assert all(tick.outcome is TickOutcome.SUBMITTED for found in ticks for tick in found)
        there = [record.id async for _, record in queue.batches()]
        assert sorted(there) == sorted(filter(None, batches))
        assert len(there) == 60


async def test_the_command_line_has_schedules(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = site.folder / "sequence.json"
    sequence.write_text("{}", "utf-8")
    monkeypatch.setenv("TWEEZER_REDIS_URL", site.url)
    monkeypatch.setenv("TWEEZER_DATABASE_URL", ledger_url(site))

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["schedules", *words])
        assert result.exit_code == code, result.output
        return result.output

    def work() -> None:
        assert "No schedules" in run("list")
        options = ("--device", NULL, "--runs", "5", "--cron", "30 2 * * *", "--time-zone", "Europe/Paris")
        assert run("create", "nightly", str(sequence), *options).startswith("Created nightly (")
        assert "30 2 * * * Europe/Paris" in run("list")
        assert "nightly is paused" in run("pause", "nightly", "--reason", "new lens")
        assert "new lens" in run("show", "nightly")
        assert "Next tick" in run("resume", "nightly")
        batch = run("run", "nightly").strip()
        assert f'"{batch}"' in run("show", "nightly", "--json")
        assert "there is no schedule other" in run("show", "other", code=1)
        assert "cron: the field minute is not valid" in run(
            "create", "x", str(sequence), "--device", NULL, "--runs", "5", "--cron", "61 * * * *", code=1
        )
        assert run("delete", "nightly", "--yes") == "Deleted nightly.\n"

    await asyncio.to_thread(work)


async def _some_submitted(queue: tweezer.AsyncQueue, least: int) -> bool:
    return len([record async for _, record in queue.batches()]) >= least


async def _handled(queue: tweezer.AsyncQueue, within_s: float = PATIENCE_S) -> None:
    """Wait until no tick is due or pending."""

    async def is_handled() -> bool:
        found = await queue.schedules()
        return all(
            it.last is not None
            and it.last.outcome is not TickOutcome.PENDING
            and it.next_at is not None
            and it.next_at.timestamp() * 1000 > now_ms()
            for it in found
        )

    await until(is_handled, "the ticks", within_s)
