"""Acting on all batches that match, in Python and on the command line, over Redis and HTTP, on both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from tests.support.processes import NULL, Site
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer import BatchStatus, InvalidInput, JobStatus, NotFound
from tweezer.cli import main
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.model.ids import new_batch_id, short_id
from tweezer.model.messages import BatchDoc
from tweezer.store.acl import RedisUser

FAILS = {"fail": "too hot"}
Reach = Callable[[str], dict[str, Any]]
"""Returns the arguments of ``connect_async`` for a project."""


@pytest.fixture
async def site(real_redis_url: str, tmp_path: Path, ledger_url: str) -> AsyncIterator[Site]:
    """A site with a recorder, an API, and a worker for the null device."""
    async with Site(real_redis_url, tmp_path, database_url=ledger_url) as site:
        recorder = site.spawn("recorder")
        await site.workers(1, lanes=2)
        await site.serves(recorder)
        yield site


@pytest.fixture(params=["redis", "http"])
async def reach(request: pytest.FixtureRequest, site: Site, ledger_url: str) -> Reach:
    if request.param == "redis":
        url = as_user(site.url, RedisUser.OPERATOR)
        return lambda project: {"url": url, "project": project, "database_url": ledger_url}
    _, url = await site.api()
    return lambda project: {"url": url, "project": project, "key": _key(ledger_url, project)}


@pytest.fixture
async def queue(reach: Reach) -> AsyncIterator[tweezer.AsyncQueue]:
    async with tweezer.connect_async(**reach("ours"), retry_s=PATIENCE_S) as queue:
        yield queue


def _key(ledger_url: str, project: str, role: Role = Role.USER) -> str:
    database = Database.open(OpenDatabase(url=ledger_url))
    with database.write() as connection:
        project_no(connection, project)
        key = create_key(connection, name="test", role=role, project_id=project).text
    database.close()
    return key


async def _submit(queue: tweezer.AsyncQueue, *variables: dict[str, Any], **options: Any) -> tweezer.AsyncBatch:
    jobs = [{"runs": 1, "variables": each} for each in variables or ({},)]
    return await queue.submit(None, jobs, device=NULL, **options)


async def _ended(queue: tweezer.AsyncQueue, *variables: dict[str, Any], **options: Any) -> tweezer.AsyncBatch:
    batch = await _submit(queue, *variables, **options)
    await batch.wait(PATIENCE_S)
    return batch


async def _submit_many(site: Site, count: int, tag: str) -> list[UUID]:
    """Submit batches quickly, without the Python API."""
    ids = [new_batch_id() for _ in range(count)]
    for batch_id in ids:
        await site.store.commands.submit(batch_id, "ours", BatchDoc(NULL, tags=(tag,)), [tweezer.Job(runs=1)])
    return ids


async def test_what_did_not_succeed_is_retried_once(queue: tweezer.AsyncQueue, reach: Reach) -> None:
    failed = await _ended(queue, {}, FAILS, tags=["x"], name="scan")
    good = await _ended(queue, tags=["x"])
    async with tweezer.connect_async(**reach("theirs"), retry_s=PATIENCE_S) as theirs:
        foreign = await _ended(theirs, FAILS, tags=["x"])
    plan = await queue.retry_matching(tag="x", dry_run=True)
    assert (plan.count, plan.ids, plan.retries) == (1, [failed.id], {})
    outcome = await queue.retry_matching(tag="x")
    assert (outcome.count, outcome.ids, outcome.failed, outcome.next) == (1, [failed.id], {}, None)
    child = queue.batch(outcome.retries[failed.id])
    record = await child.wait(PATIENCE_S)
    assert (record.doc.parent_id, record.doc.name, record.jobs) == (str(failed.id), "scan", 1)
    again = await queue.retry_matching(tag="x", until=outcome.until)
    assert (again.count, again.already) == (0, [failed.id])
    assert good.id not in outcome.ids
    assert foreign.id not in plan.ids


async def test_a_single_batch_can_be_retried_again_and_again(queue: tweezer.AsyncQueue) -> None:
    failed = await _ended(queue, {}, FAILS)
    first, second = await failed.retry(), await failed.retry(status="error")
    assert first.id != second.id
    assert [job.spec.parent_id for job in await first.jobs()] == [str((await failed.jobs())[1].id)]
    keyed = [await failed.retry(idempotency_key="once") for _ in range(2)]
    assert keyed[0].id == keyed[1].id
    with pytest.raises(InvalidInput, match=r"^status: no job of batch .* is CANCELED; there is nothing to retry"):
        await failed.retry(status="CANCELED")
    opened = await _submit(queue, FAILS, open=True)
    await until(lambda: _has(opened, JobStatus.ERROR))
    with pytest.raises(tweezer.Conflict, match="is open; add the jobs to it"):
        await opened.retry()
    with pytest.raises(NotFound):
        await queue.batch(new_batch_id()).retry()


async def _has(batch: tweezer.AsyncBatch, status: JobStatus) -> bool:
    return bool((await batch.record()).counts[status])


async def test_cancelled_batches_are_deleted_and_running_ones_are_kept(queue: tweezer.AsyncQueue, site: Site) -> None:
    running = await _submit(queue, {"sleep_s": 60}, tags=["x"])
    await site.running(running)
    waiting = [await _submit(queue, {"sleep_s": 60}, tags=["x"]) for _ in range(3)]
    outcome = await queue.cancel_matching(tag="x", status="pending", by="alice")
    ended = {batch.id for batch in waiting} & set(outcome.ids)
    assert ended, "at most two of them run"
    record = await queue.batch(outcome.ids[0]).record()
    assert (record.status, record.cancels[0].by.split()[0]) == (BatchStatus.CANCELED, "alice")

    async def deleted() -> bool:
        """Delete what is recorded so far."""
        return not (await queue.delete_matching(tag="x")).failed

    await until(deleted)
    left = [batch.id async for batch, _ in queue.batches(tag="x")]
    assert running.id in left
    assert not ended.intersection(left)
    assert (await queue.delete_matching(tag="x", dry_run=True)).live == left
    assert await queue.delete_many([running.id]) == {running.id: f"batch {running.id} has not ended; cancel it first"}
    assert (await queue.cancel_matching(tag="x")).ids == left


async def test_ended_batches_are_archived_by_filter_and_by_id(
    queue: tweezer.AsyncQueue, reach: Reach, site: Site
) -> None:
    async with tweezer.connect_async(**reach("theirs"), retry_s=PATIENCE_S) as theirs:
        foreign = await _ended(theirs, tags=["x"])
    running = await _submit(queue, {"sleep_s": 60}, tags=["x"])
    await site.running(running)
    first, last = await _ended(queue, tags=["x"]), await _ended(queue)
    assert (await queue.archive_matching(tag="x", dry_run=True)).ids == [first.id]

    async def archived() -> bool:
        """Archive what is recorded so far."""
        return not (await queue.archive_matching(tag="x")).failed

    await until(archived)
    outcome = await queue.archive_matching(tag="x")
    assert (outcome.ids, outcome.already, outcome.live) == ([], [first.id], [running.id])
    assert first.id in [batch.id async for batch, _ in queue.batches(tag="x")], "it is still listed as a batch"
    unknown = new_batch_id()
    missing = {batch_id: f"there is no batch {batch_id}" for batch_id in (unknown, foreign.id)}
    assert await queue.archive_many([unknown, first.id, foreign.id]) == missing
    assert list(await queue.archive_many([running.id])) == [running.id]
    await until(lambda: _is_archived(queue, last))
    assert (await queue.archive_matching(all=True)).already == [last.id, first.id]


async def _is_archived(queue: tweezer.AsyncQueue, batch: tweezer.AsyncBatch) -> bool:
    """Try to archive the batch, and return whether its end was recorded."""
    return await queue.archive_many([batch.id]) == {}


async def test_several_batches_are_deleted_by_id(queue: tweezer.AsyncQueue, reach: Reach) -> None:
    async with tweezer.connect_async(**reach("theirs"), retry_s=PATIENCE_S) as theirs:
        foreign = await _ended(theirs)
    *batches, last = [await _ended(queue) for _ in range(3)]
    unknown = new_batch_id()
    missing = {batch_id: f"there is no batch {batch_id}" for batch_id in (unknown, foreign.id)}
    assert await queue.delete_many([unknown, foreign.id, unknown]) == missing
    await until(lambda: _is_recorded(queue, last))  # and so are those that ended before
    wanted: list[UUID | str] = [short_id(batches[0].id), str(unknown), batches[1].id]
    assert await queue.delete_many(wanted) == {unknown: missing[unknown]}
    listed = [record.id async for _, record in queue.batches()]
    assert not {batch.id for batch in batches}.intersection(listed)


async def _is_recorded(queue: tweezer.AsyncQueue, batch: tweezer.AsyncBatch) -> bool:
    """Try to delete the batch, and return whether its end was recorded."""
    return await queue.delete_many([batch.id]) == {}


async def test_batches_submitted_during_a_call_are_left_alone(queue: tweezer.AsyncQueue, site: Site) -> None:
    """Two producers keep submitting, while all batches are cancelled again and again."""
    await site.store.devices.pause(NULL, "so that nothing starts")
    submitted: list[UUID] = []
    is_over = False

    async def produce() -> None:
        while not is_over:
            submitted.extend(await _submit_many(site, 5, "x"))

    producers = [asyncio.create_task(produce()) for _ in range(2)]
    cancelled: list[UUID] = []
    for _ in range(5):
        await until(lambda: len(submitted) > len(cancelled))
        before = list(submitted)
        outcome = await queue.cancel_matching(tag="x")
        assert not outcome.failed
        assert not set(before) - {*outcome.ids, *cancelled}, "all that existed before the call"
        cancelled.extend(outcome.ids)
    is_over = True
    await asyncio.gather(*producers)
    cancelled += (await queue.cancel_matching(tag="x")).ids
    assert sorted(cancelled) == sorted(submitted), "each was cancelled once"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_call_handles_more_than_one_request_can(queue: tweezer.AsyncQueue, site: Site) -> None:
    await site.store.devices.pause(NULL, "so that nothing starts")
    ids = await _submit_many(site, 2500, "x")
    other = await _submit_many(site, 1, "y")
    plan = await queue.cancel_matching(tag="x", dry_run=True)
    assert (plan.count, len(plan.ids)) == (2500, 1000)
    outcome = await queue.cancel_matching(tag="x")
    assert (outcome.count, outcome.failed) == (2500, {})
    assert sorted(outcome.ids) == sorted(ids)
    retried = await queue.retry_matching(tag="x")
    assert (retried.count, retried.failed, len(retried.retries)) == (2500, {}, 2500)
    assert (await queue.retry_matching(tag="x", until=outcome.until)).count == 0

    async def all_deleted() -> bool:
        return not (await queue.delete_matching(tag="x", status="CANCELED")).failed

    await until(all_deleted, within_s=150)  # in a burst the recorder gives way to the workers, for a minute at most
    left = {batch.id async for batch, _ in queue.batches()}
    assert left == {*other, *retried.retries.values()}


# --- the command line


class Terminal:
    """The commands of a user, over Redis or HTTP."""

    def __init__(self, given: dict[str, Any], folder: Path) -> None:
        self._options = ["--project", "ours"]
        self._environment = {"TWEEZER_DATA_DIR": str(folder / "nothing here")}
        if "key" in given:
            self._environment |= {"TWEEZER_API_URL": given["url"], "TWEEZER_API_KEY": given["key"]}
        else:
            self._environment |= {"TWEEZER_REDIS_URL": given["url"], "TWEEZER_DATABASE_URL": given["database_url"]}

    async def run(self, *arguments: str, code: int = 0, input: str | None = None) -> Result:
        runner = CliRunner(env=self._environment)
        ran = await asyncio.to_thread(runner.invoke, main, [*self._options, *arguments], input=input)
        assert ran.exit_code == code, ran.output
        return ran

    async def json(self, *arguments: str) -> Any:
        return json.loads((await self.run(*arguments, "--json")).stdout)


@pytest.fixture
async def terminal(reach: Reach, tmp_path: Path) -> Terminal:
    return Terminal(reach("ours"), tmp_path)


async def test_a_command_shows_what_matches_and_asks_before_it_acts(
    terminal: Terminal, queue: tweezer.AsyncQueue, site: Site
) -> None:
    await site.store.devices.pause(NULL, "so that nothing starts")
    await _submit_many(site, 3, "x")
    ids = [batch.id async for batch, _ in queue.batches(tag="x")][::-1]  # two may be of the same millisecond
    shown = (await terminal.run("cancel", "--tag", "x", "--dry-run")).stdout.splitlines()
    assert shown[0] == "This would cancel 3 batches:"
    assert [line.strip() for line in shown[1:]] == [short_id(batch_id) for batch_id in reversed(ids)]
    refused = await terminal.run("cancel", "--tag", "x", input="n\n", code=130)
    assert refused.stdout.startswith("Cancel 3 batches? [y/N]: n")
    assert (await queue.batch(ids[0]).record()).status is BatchStatus.PENDING
    accepted = await terminal.run("cancel", "--tag", "x", "--by", "alice", input="y\n")
    assert accepted.stdout.splitlines()[-1] == "Cancelled 3 batches."
    assert (await terminal.run("cancel", "--tag", "x")).stdout == "No batch to cancel matches.\n"
    assert (await terminal.json("cancel", "--tag", "x", "--yes"))["count"] == 0
    found = await terminal.json("retry", "--tag", "x", "--dry-run")
    assert (found["dry_run"], found["count"], found["ids"]) == (True, 3, [str(batch_id) for batch_id in ids[::-1]])
    retried = await terminal.run("retry", "--tag", "x", "--yes")
    lines = retried.stdout.splitlines()
    assert lines[0].startswith(f"{short_id(ids[2])} is retried as ")
    assert lines[-1] == "Retried 3 batches."
    again = await terminal.run("retry", "--status", "canceled", "--yes")
    assert again.stdout == "No batch to retry matches; 3 had been retried before.\n"

    (last,) = await _submit_many(site, 1, "y")
    await queue.batch(last).cancel()
    await until(lambda: _is_recorded(queue, queue.batch(last)))
    archived = await terminal.run("archive", "--tag", "x", "--yes")
    assert archived.stdout == "Archived 3 batches; 3 have not ended and are kept.\n"
    assert (await terminal.run("archive", short_id(ids[0]))).stdout == f"archived {short_id(ids[0])}\n"
    again = await terminal.run("archive", "--tag", "x")
    assert again.stdout == "No batch to archive matches; 3 had been archived before; 3 have not ended and are kept.\n"
    deleted = await terminal.run("delete", "--tag", "x", "--yes")
    assert deleted.stdout == "Deleted 3 batches; 3 have not ended and are kept.\n"


async def test_commands_on_single_batches_print_ids(terminal: Terminal, queue: tweezer.AsyncQueue) -> None:
    failed, good = await _ended(queue, FAILS), await _ended(queue)
    new = (await terminal.run("retry", str(failed.id), "--job-status", "error")).stdout.strip()
    assert (await queue.batch(new).record()).doc.parent_id == str(failed.id)
    refused = await terminal.run("retry", str(good.id), code=1)
    assert refused.stderr.startswith(f"Error: status: no job of batch {good.id} is ERROR or CANCELED")
    both = await terminal.run("retry", str(failed.id), str(good.id), code=1)
    assert len(both.stdout.split()) == 1
    assert "1 of 2 batches could not be retried" in both.stderr

    last = await _ended(queue)
    await until(lambda: _is_recorded(queue, last))
    assert (await terminal.run("delete", str(good.id), "--yes")).stdout == f"deleted {short_id(good.id)}\n"
    missing = await terminal.run("delete", str(good.id), "--yes", code=1)
    assert missing.stderr == f"Error: there is no batch {good.id}\n"
