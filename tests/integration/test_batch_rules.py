"""The rules of a batch in every entry point, dry runs, and changes of batches that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
import pytest
from click.testing import CliRunner
from tests.support.processes import NULL, Site, make_key
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer import Conflict, InvalidInput, Limits, Priority, QuotaExceeded
from tweezer.cli import main
from tweezer.intake import submit_batch
from tweezer.model.ids import new_batch_id, short_id
from tweezer.model.rules import Dependency, OnFailures, Rules, When
from tweezer.store.acl import RedisUser

START = (datetime.now(UTC) + timedelta(hours=5)).replace(microsecond=0)
PARENT, OTHER = "parent", "other"


@pytest.fixture
async def site(sqlite_template: Path, real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site with an API and a null device that no worker serves."""
    async with Site(real_redis_url, tmp_path) as site:
        await site.use_api(sqlite_template)
        await site.announce_null()
        yield site


def over_redis(site: Site) -> tweezer.AsyncQueue:
    return tweezer.connect_async(as_user(site.url, RedisUser.PRODUCER), project="ours")


@pytest.fixture(params=["redis", "http"])
async def queue(site: Site, request: pytest.FixtureRequest) -> AsyncIterator[tweezer.AsyncQueue]:
    opened = over_redis(site) if request.param == "redis" else site.connect("ours", retry_s=PATIENCE_S)
    async with opened as queue:
        yield queue


async def submit(queue: tweezer.AsyncQueue, jobs: int = 1, **options: Any) -> tweezer.AsyncBatch:
    return await queue.submit(None, [{"runs": 1}] * jobs, device=NULL, **options)


# ------------------------------------------------------------------------------------- each field, everywhere


class Field(NamedTuple):
    """A field of a submit: its value in JSON, the options of the command line, and what the batch has then."""

    body: dict[str, Any]
    options: tuple[str, ...]
    expect: dict[str, Any]


def fields(parents: dict[str, UUID]) -> dict[str, Field]:
    """Return every field of the rules, with ids of existing batches for those that need some."""
    parent, other = parents[PARENT], parents[OTHER]
    at = START.isoformat()
    return {
        "start_at": Field({"start_at": at}, ("--start-at", at), {"not_before": START}),
        "not_before": Field({"not_before": at}, ("--not-before", at), {"not_before": START}),
        "schedule_threshold_s": Field(
            {"start_at": at, "schedule_threshold_s": 60},
            ("--start-at", at, "--schedule-threshold", "1min"),
            {"not_before": START, "rules": Rules(schedule_threshold_s=60)},
        ),
        "queue_timeout_s": Field(
            {"queue_timeout_s": 7200}, ("--queue-timeout", "2h"), {"rules": Rules(queue_timeout_s=7200)}
        ),
        "failure_threshold": Field(
            {"failure_threshold": 3}, ("--failure-threshold", "3"), {"rules": Rules(failure_threshold=3)}
        ),
        "on_failures": Field(
            {"failure_threshold": 1, "on_failures": "cancel"},
            ("--failure-threshold", "1", "--on-failures", "cancel"),
            {"rules": Rules(failure_threshold=1, on_failures=OnFailures.CANCEL)},
        ),
        "retries": Field(
            {"retries": {"per_job": 1, "total": 9}},
            ("--retries-per-job", "1", "--retries-total", "9"),
            {"limits": Limits(transient_retries=1), "rules": Rules(total_retries=9)},
        ),
        "depends_on": Field(
            {"depends_on": [str(parent), {"batch": str(other), "when": "ENDED"}]},
            ("--depends-on", PARENT, "--depends-on", f"{short_id(other)}:ended"),
            {"rules": Rules(depends_on=(Dependency(parent), Dependency(other, When.ENDED)))},
        ),
        "keep_s": Field({"keep_s": 0}, ("--keep", "0"), {"rules": Rules(keep_s=0)}),
    }


FIELDS = list(fields({PARENT: UUID(int=0), OTHER: UUID(int=0)}))


async def by_python(site: Site, field: Field, queue: tweezer.AsyncQueue) -> UUID:
    times: dict[str, Any] = dict.fromkeys(field.body.keys() & {"start_at", "not_before"}, START)
    return (await submit(queue, **field.body | times)).id


async def over_the_library(site: Site, field: Field) -> UUID:
    async with over_redis(site) as queue:
        return await by_python(site, field, queue)


async def over_the_remote_library(site: Site, field: Field) -> UUID:
    async with site.connect("ours", retry_s=PATIENCE_S) as queue:
        return await by_python(site, field, queue)


async def over_http(site: Site, field: Field) -> UUID:
    status, answer = await call(
        site, "POST", "/api/v1/batches", {"device_type": NULL, "jobs": [{"runs": 1}], **field.body}
    )
    assert status == 200, answer
    return UUID(answer["data"]["id"])


async def over_arq(site: Site, field: Field) -> UUID:
    context = {"store": site.store, "job_id": str(new_batch_id()), "job_try": 1, "find_ends": None}
    message = {"device": NULL, "project": "ours", "jobs": [{"runs": 1}], **field.body}
    return UUID(await submit_batch(context, message))


async def over_the_command_line(site: Site, field: Field) -> UUID:
    printed = await run(site, "submit", "-", "--device", NULL, "--runs", "1", *field.options)
    return UUID(printed.strip())


def body(**fields: Any) -> dict[str, Any]:
    """Return the body of a submit over HTTP."""
    return {"device_type": NULL, "jobs": [{"runs": 1}], **fields}


async def call(site: Site, method: str, path: str, content: Any = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {make_key(site.folder, 'ours')}"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{site.api_url}{path}", json=content, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def run(site: Site, *arguments: str, fails: bool = False) -> str:
    """Run a command over Redis and return what it prints."""
    url = as_user(site.url, RedisUser.OPERATOR)
    given = ["--redis", url, "--project", "ours", *arguments]
    ran = await asyncio.to_thread(lambda: CliRunner().invoke(main, given, input="{}"))
    assert (ran.exit_code != 0) is fails, ran.output
    return ran.output if fails else ran.stdout


Submit = Callable[[Site, Field], Awaitable[UUID]]
ENTRIES: list[Submit] = [over_the_library, over_the_remote_library, over_http, over_arq, over_the_command_line]


@pytest.mark.parametrize("submit_by", ENTRIES, ids=lambda it: it.__name__)
async def test_each_field_is_accepted_and_arrives_in_the_record(site: Site, submit_by: Submit) -> None:
    async with over_redis(site) as direct, site.connect("ours", retry_s=PATIENCE_S) as remote:
        parents = {name: (await submit(direct, name=name)).id for name in (PARENT, OTHER)}
        for name, field in fields(parents).items():
            batch = await submit_by(site, field)
            record, same = await direct.batch(batch).record(), await remote.batch(batch).record()
            assert record == same, name
            found = {"not_before": record.not_before, "limits": record.doc.limits, "rules": record.doc.rules}
            assert found == {"not_before": None, "limits": Limits(), "rules": None} | field.expect, name


# ------------------------------------------------------------------------------------------- what is refused


async def test_the_current_and_the_older_name_must_agree(queue: tweezer.AsyncQueue) -> None:
    batch = await submit(
        queue, start_at=START, not_before=START, limits={"transient_retries": 1}, retries={"per_job": 1}
    )
    assert (await batch.record()).not_before == START
    for options, field in (
        ({"start_at": START, "not_before": START + timedelta(hours=1)}, "not_before"),
        ({"limits": {"transient_retries": 2}, "retries": {"per_job": 1}}, "limits.transient_retries"),
    ):
        with pytest.raises(InvalidInput, match=r"contradicts .*; it is the older name of .*, so omit it") as refused:
            await submit(queue, **options)
        assert refused.value.field == field


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"queue_timeout_s": 0}, "queue_timeout_s", "above 0"),
    ({"failure_threshold": 0}, "failure_threshold", "whole number from 1"),
    ({"failure_threshold": 1, "on_failures": "stop"}, "on_failures", "must be one of pause, cancel, got 'stop'"),
    ({"on_failures": "cancel"}, "on_failures", "has no effect without failure_threshold"),
    ({"schedule_threshold_s": 5}, "schedule_threshold_s", "has no effect without start_at"),
    ({"retries": {"per_job": 21}}, "retries.per_job", "whole number from 0 to 20"),
    ({"retries": {"total": -1}}, "retries.total", "whole number from 0"),
    ({"keep_s": -1}, "keep_s", "from 0"),
    ({"depends_on": [str(UUID(int=7))]}, "depends_on[0]", "there is no batch"),
    ({"depends_on": [{"batch": str(UUID(int=7)), "when": "NOW"}]}, "depends_on[0].when", "must be one of DONE, ENDED"),
]


async def test_an_invalid_rule_is_refused_with_its_name_in_the_library(queue: tweezer.AsyncQueue) -> None:
    for options, field, problem in WRONG:
        for act in (queue.submit, queue.check):
            with pytest.raises(InvalidInput) as refused:
                await act(None, [{"runs": 1}], device=NULL, **options)
            assert refused.value.field == field
            assert problem in refused.value.problem


async def test_an_invalid_rule_is_refused_with_its_name_over_http_and_arq(site: Site) -> None:
    for options, field, problem in WRONG:
        for query in ("", "?dry_run=true"):
            status, answer = await call(site, "POST", f"/api/v1/batches{query}", body(**options))
            assert (status, answer["data"]["field"]) == (400, field)
            assert problem in answer["data"]["description"]
        with pytest.raises(InvalidInput) as refused:
            await over_arq(site, Field(options, (), {}))
        assert (refused.value.field, problem in refused.value.problem) == (field, True)


async def test_an_invalid_rule_is_refused_with_the_name_of_its_option(site: Site) -> None:
    for options, name, problem in (
        (("--failure-threshold", "0"), "--failure-threshold", "whole number from 1"),
        (("--on-failures", "cancel"), "--on-failures", "has no effect without --failure-threshold"),
        (("--schedule-threshold", "5min"), "--schedule-threshold", "has no effect without --start-at"),
        (("--retries-total", "-1"), "--retries-total", "whole number from 0"),
        (("--depends-on", "nobody"), "--depends-on", "there is no batch 'nobody' in this project"),
        (("--depends-on", f"{UUID(int=7)}:ended"), "--depends-on", "there is no batch"),
    ):
        output = await run(site, "submit", "-", "--device", NULL, "--runs", "1", *options, fails=True)
        assert f"Error: {name}: " in output
        assert problem in output


async def test_a_batch_is_named_in_several_ways_by_one_that_depends_on_it(queue: tweezer.AsyncQueue) -> None:
    parent = await submit(queue, name="calibration")
    record = await parent.record()
    for named in (parent, parent.id, str(parent.id), short_id(parent.id), "calibration", record, Dependency(parent.id)):
        for item in (named, (named, "ended"), {"batch": named, "when": When.ERROR}):
            if isinstance(named, Dependency) and item is not named:
                continue
            rules = (await (await submit(queue, depends_on=[item])).record()).doc.rules
            assert rules is not None
            assert rules.depends_on[0].batch == parent.id
    await submit(queue, name="calibration")
    for wrong in (["calibration"], [7], [None], [("a", "DONE", 1)], [{"when": "DONE"}], "calibration", parent):
        with pytest.raises(InvalidInput, match="depends_on"):
            await submit(queue, depends_on=wrong)


# ------------------------------------------------------------------------------------------------- dry runs


async def test_a_dry_run_returns_what_the_submit_would_make_and_writes_nothing(queue: tweezer.AsyncQueue) -> None:
    parent = await submit(queue, name="calibration")
    options: dict[str, Any] = {
        "priority": "high",
        "retries": {"per_job": 2, "total": 5},
        "queue_timeout_s": 60,
        "depends_on": [parent],
        "start_at": START - timedelta(days=1),
    }
    before = len([each async for each in queue.batches()])
    checked = await queue.check(None, [{"runs": 1}] * 3, device=NULL, **options)
    assert (checked.project, checked.device, checked.jobs, checked.priority) == ("ours", NULL, 3, Priority.HIGH)
    assert checked.limits == Limits(transient_retries=2)
    assert checked.rules == Rules(queue_timeout_s=60, total_retries=5, depends_on=(Dependency(parent.id),))
    assert checked.waits_for == f"the end of {short_id(parent.id)}"
    assert checked.warnings == ("start_at is in the past, so the batch may start at once",)
    assert len([each async for each in queue.batches()]) == before
    await parent.cancel()
    (first, _) = (await queue.check(None, [{"runs": 1}], device=NULL, **options)).warnings
    assert first.startswith("the batch would be cancelled at once: batch ")


async def test_a_dry_run_checks_quotas_and_the_device(site: Site, queue: tweezer.AsyncQueue) -> None:
    await site.store.quotas.set_limits({"ours": {"queued_jobs": 2}})
    with pytest.raises(QuotaExceeded, match="queued_jobs"):
        await queue.check(None, [{"runs": 1}] * 3, device=NULL)
    with pytest.raises(InvalidInput, match="there is no device"):
        await queue.check(None, [{"runs": 1}], device="NOWHERE")
    await site.store.devices.pause(NULL, "new lens", until=None)
    checked = await queue.check(None, [{"runs": 1}], device=NULL)
    assert checked.warnings == ("NULL is not available now: paused: new lens",)


async def test_the_command_line_shows_a_dry_run(site: Site) -> None:
    shown = await run(site, "submit", "-", "--device", NULL, "--runs", "1", "--queue-timeout", "2h", "--dry-run")
    assert "queue timeout  2 h" in shown
    assert shown.splitlines()[-1] == "Nothing was submitted: this was a dry run."
    assert "no batches yet" in await run(site, "batches")


async def test_a_repeated_batch_keeps_the_rules_but_does_not_wait_again(site: Site) -> None:
    async with over_redis(site) as queue:
        parent = await submit(queue)
        batch = await submit(
            queue, depends_on=[parent], start_at=START, schedule_threshold_s=9, keep_s=7, retries={"total": 4}
        )
        path = f"/api/v1/batches/{batch.id}/rebatch"
        status, checked = await call(site, "POST", f"{path}?dry_run=true")
        assert (status, checked["data"]["dry_run"], checked["data"]["keep_s"]) == (200, True, 7)
        status, answer = await call(site, "POST", path)
        assert status == 200
        again = await queue.batch(answer["data"]["id"]).record()
        assert (again.doc.rules, again.not_before) == (Rules(total_retries=4, keep_s=7), None)
        assert (await batch.record()).children == (again.id,)


# ------------------------------------------------------------------------------------- changes and lists


async def test_priority_and_tags_of_a_batch_change_while_it_waits(queue: tweezer.AsyncQueue) -> None:
    batch = await submit(queue, tags=["old"])
    await batch.set_priority("high")
    await batch.set_tags(["new", "paper"])
    record = await batch.record()
    assert (record.priority, record.doc.tags) == (Priority.HIGH, ("new", "paper"))
    for wrong in ("URGENT", None, 7):
        with pytest.raises(InvalidInput, match="must be one of HIGH, MEDIUM, LOW") as refused:
            await batch.set_priority(wrong)  # type: ignore[arg-type]
        assert refused.value.field == "priority"
    with pytest.raises(InvalidInput, match="duplicate"):
        await batch.set_tags(["a", "a"])
    await batch.cancel()
    with pytest.raises(Conflict, match="has ended"):
        await batch.set_priority("LOW")
    await batch.set_tags([])
    assert (await batch.record()).doc.tags == ()
    with pytest.raises(tweezer.NotFound):
        await queue.batch(new_batch_id()).set_priority("LOW")


async def test_the_command_line_changes_priority_and_tags(site: Site) -> None:
    async with over_redis(site) as queue:
        batch = await submit(queue, tags=["old"])
        identity = short_id(batch.id)
        changed = await run(site, "change", identity, "--priority", "high", "--tag", "a", "--tag", "b")
        assert changed == f"{identity} changed\n"
        record = await batch.record()
        assert (record.priority, record.doc.tags) == (Priority.HIGH, ("a", "b"))
        await run(site, "change", identity, "--no-tags")
        assert (await batch.record()).doc.tags == ()
        assert "nothing to change" in await run(site, "change", identity, fails=True)


async def test_lists_find_the_batches_that_depend_on_one(site: Site, queue: tweezer.AsyncQueue) -> None:
    site.spawn("recorder", data_dir=site.folder)
    parent, other = await submit(queue, name="calibration"), await submit(queue)
    child = await submit(queue, depends_on=[parent, (other, "ENDED")])
    await submit(queue, depends_on=[other])

    async def found(**filters: Any) -> list[UUID]:
        return [batch.id async for batch, _ in queue.batches(**filters)]

    assert await found(depends_on=parent) == await found(depends_on=["calibration"]) == [child.id]
    assert len(await found(depends_on=[parent.id, other])) == 2

    async def listed() -> bool:
        _, answer = await call(site, "GET", f"/api/v1/batches?depends_on={parent.id}")
        return [row["id"] for row in answer["data"]] == [str(child.id)]

    await until(listed, "the list from the ledger")
    assert short_id(child.id) in await run(site, "batches", "--depends-on", "calibration")


async def test_status_shows_why_a_batch_waits(site: Site) -> None:
    async with over_redis(site) as queue:
        parents = [await submit(queue, name=name) for name in ("aurora-1", "aurora-2", "aurora-3")]
        batch = await submit(queue, depends_on=parents, failure_threshold=2, keep_s=3600)
        late = await submit(queue, queue_timeout_s=60)
        assert "expires        unless it starts by " in await run(site, "status", short_id(late.id))
        shown = await run(site, "status", short_id(batch.id))
        assert f"the end of aurora-1 ({short_id(parents[0].id)}) and 2 more batches" in shown
        assert "pause after 2 failed jobs" in shown
        assert "archived     1 h after its end" in shown
        assert "after 3 batches" in await run(site, "batches")


async def test_a_late_batch_is_reported_over_both_transports(site: Site, queue: tweezer.AsyncQueue) -> None:
    site.spawn("recorder", data_dir=site.folder)
    batch = await submit(queue, start_at=datetime.now(UTC) - timedelta(hours=1), schedule_threshold_s=1)
    await site.store.tickets.sweep()

    async def reported() -> bool:
        return [event.type async for event in batch.events(follow=False)] == ["batch.created", "batch.late"]

    await until(reported, "the event batch.late")
