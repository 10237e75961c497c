"""Every public function with wrong values for each argument: InvalidInput names it, and nothing is written."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import math
import reprlib
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from tests.support.hostile_values import (
    CONTROLS,
    ELEMENTS,
    HALF,
    NESTED,
    NO_FLAG,
    NO_ID,
    NO_LIST,
    NO_SECONDS,
    NO_TEXT,
    NO_TEXT_AT_ALL,
    NO_TIME,
    NUL,
)
from tests.support.queues import Reach
from tests.support.redis_users import as_user

import tweezer
from tweezer import Job
from tweezer.ledger.config import sqlite_url
from tweezer.model.ids import new_batch_id
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store

DEVICE = "EMU_FREE"
HEADER = json.dumps(
    {
        "version": "1",
        "name": "without pulses",
        "register": [{"name": "q0", "x": 0.0, "y": 0.0}],
        "channels": {},
        "variables": {},
        "operations": [],
        "measurement": None,
        "device": {"name": "MockDevice"},
    }
)
LATER = datetime.now(UTC) + timedelta(days=1)

NO_COUNT: list[Any] = [-1, 1.5, True, "3", math.nan, math.inf, 2**70, [], {}, NESTED, object()]

SUBMIT: dict[str, list[Any]] = {
    "sequence": [7, math.nan, b"{}", [], {"version": "1"}, "", "not JSON", object(), *CONTROLS, NESTED, "[" * 10_000],
    "jobs": [
        *(*NO_LIST, Job(runs=1), [None], [7], ["abc"], [[]], [{7: 1}], [Job(runs=cast(Any, "5"))], [Job(runs=True)]),
        *([{"runs": 1, field: value}] for field in ("runs", "seed") for value in (math.nan, math.inf, NESTED, NUL)),
        *([Job(runs=1, variables=cast(Any, value))] for value in (7, NESTED, {"a": NESTED}, {NUL: 1.0}, {"a": HALF})),
        *(ELEMENTS, NESTED, [Job(runs=1)] * 1_000_000),
    ],
    "device": [*NO_TEXT_AT_ALL, "NO_SUCH"],
    "priority": [None, 7, math.nan, "", "URGENT", [], {}, object(), *CONTROLS],
    "open": NO_FLAG,
    "name": NO_TEXT_AT_ALL,
    "tags": [*NO_LIST, [7], [None], [["a"]], [""], ["a", "a"], *([it] for it in CONTROLS), ELEMENTS, NESTED],
    "webhook": [*NO_TEXT_AT_ALL, "ftp://example.org"],
    "backend_configuration": [*NO_TEXT_AT_ALL, "{", '{"a":' * 10_000],
    "limits": [
        *(0, 7, "", "abc", {"job_timeout": 5}, {"job_timeout_s": "5"}, {7: 5}, NESTED, ELEMENTS),
        *(tweezer.Limits(job_timeout_s=math.nan), object()),
    ],
    "start_at": NO_TIME,
    "not_before": NO_TIME,
    **{
        name: [*NO_SECONDS, 0 if name == "queue_timeout_s" else -1, 1e12]
        for name in ("schedule_threshold_s", "queue_timeout_s", "keep_s")
    },
    "failure_threshold": [*NO_COUNT, 0],
    "on_failures": [*NO_TEXT_AT_ALL, "stop", "pause now"],
    "retries": [
        *(7, "", "abc", [("per_job", 1)], {"per_jobs": 5}, {7: 5}, NESTED, ELEMENTS, object()),
        *({name: value} for name in ("per_job", "total") for value in NO_COUNT),
    ],
    "depends_on": [
        *NO_LIST,
        *([it] for it in (None, 7, "", [], ("a",), {"when": "DONE"}, NESTED, *CONTROLS)),
        ELEMENTS,
    ],
    "idempotency_key": NO_TEXT_AT_ALL,
}
NO_TEXTS = [it for it in NO_TEXT_AT_ALL if it != ["text"]]
NO_JOB_STATUS = [*NO_TEXT_AT_ALL, "DONE", ["ERROR", "DONE"], [], [7], ELEMENTS, NESTED]
MATCHING: dict[str, list[Any]] = {
    "status": [*NO_TEXT_AT_ALL, "QUEUED", ["DONE", "QUEUED"], [7], ELEMENTS, NESTED],
    **{name: [*NO_TEXTS, ["a", 7], ELEMENTS, NESTED] for name in ("device", "tag", "name", "user")},
    "since": NO_TIME,
    "until": NO_TIME,
}
BULK: dict[str, list[Any]] = {**MATCHING, "all": NO_FLAG, "dry_run": NO_FLAG}
BATCH: dict[str, dict[str, list[Any]]] = {
    "record": {},
    "waits_for": {},
    "add_jobs": {"jobs": [*SUBMIT["jobs"], []], "idempotency_key": NO_TEXT_AT_ALL},
    "close": {},
    "cancel": {"by": NO_TEXT_AT_ALL},
    "cancel_jobs": {
        "indices": [*NO_LIST, ["a"], [None], [-1], [1.0], [math.nan], [True], [2**70], ELEMENTS, NESTED],
        "by": NO_TEXT_AT_ALL,
    },
    "retry": {"status": NO_JOB_STATUS, "idempotency_key": NO_TEXT_AT_ALL},
    "pause": {"reason": NO_TEXT, "by": NO_TEXT_AT_ALL},
    "resume": {},
    "set_priority": {"priority": SUBMIT["priority"]},
    "set_tags": {"tags": SUBMIT["tags"]},
    "changes": {"timeout_s": NO_SECONDS},
    "wait": {"timeout_s": NO_SECONDS, "progress": NO_FLAG, "cancel_on_interrupt": NO_FLAG},
    "jobs": {},
    "to_dataframe": {},
    "finished": {"timeout_s": NO_SECONDS},
    "events": {"after": [7, "", "abc", b"now", [], object(), *CONTROLS], "follow": NO_FLAG, "timeout_s": NO_SECONDS},
    "results": {"timeout_s": NO_SECONDS},
}
SCHEDULE: dict[str, list[Any]] = {
    "name": [*NO_TEXT_AT_ALL, " a", "0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"],
    "cron": NO_TEXT_AT_ALL,
    "time_zone": NO_TEXT_AT_ALL,
    "every_s": [*NO_SECONDS, 0, 59, 60.5, -1, 1e12, 2**70],
    "overlap": [*NO_TEXT_AT_ALL, "SKIP", "run_once", [], {}],
    "missed": [*NO_TEXT_AT_ALL, "queue", [], {}],
    "grace_s": [*NO_SECONDS, 0, 9.5, -1, 1e12, 2**70],
    "batch": [7, True, "abc", [], ["device"], [("device", DEVICE)], {"devices": DEVICE}, {7: 1}, NESTED, object()],
}
QUEUE: dict[str, dict[str, list[Any]]] = {
    "close": {},
    "submit": SUBMIT,
    "check": SUBMIT,
    "batch": {"batch_id": NO_ID},
    "find": {"batch": NO_TEXT_AT_ALL},
    "batches": {**MATCHING, "depends_on": [7, None, [7], [None], [""], ELEMENTS, NESTED, object(), *CONTROLS]},
    "job": {"job_id": NO_ID},
    "attempts": {"job_id": NO_ID},
    "logs": {"job_id": NO_ID, "after": [None, -1, 1.5, True, "1", math.nan, 2**70, [], object()]},
    "result": {"job_id": NO_ID},
    "cancel_many": {"batch_ids": [*NO_LIST, *([it] for it in NO_TEXT_AT_ALL), NESTED], "by": NO_TEXT_AT_ALL},
    "cancel_matching": BULK | {"by": NO_TEXT_AT_ALL},
    "retry_matching": BULK | {"job_status": NO_JOB_STATUS},
    "archive_many": {"batch_ids": [*NO_LIST, *([it] for it in NO_TEXT_AT_ALL), NESTED]},
    "archive_matching": BULK,
    "delete_many": {"batch_ids": [*NO_LIST, *([it] for it in NO_TEXT_AT_ALL), NESTED]},
    "delete_matching": BULK,
    "devices": {},
    "device": {"name": NO_TEXT_AT_ALL},
    "workers": {},
    "pause_device": {"name": NO_TEXT_AT_ALL, "reason": NO_TEXT, "until": NO_TIME},
    "resume_device": {"name": NO_TEXT_AT_ALL},
    "maintenance": {"name": NO_TEXT_AT_ALL},
    "plan_maintenance": {
        "name": NO_TEXT_AT_ALL,
        "begins": [None, *NO_TIME],
        "ends": [None, *NO_TIME],
        "reason": [*NO_TEXT_AT_ALL, "  "],
    },
    "drop_maintenance": {"name": NO_TEXT_AT_ALL, "window_id": NO_TEXT_AT_ALL},
    "create_schedule": {
        **SCHEDULE,
        "name": [None, *SCHEDULE["name"]],
        "sequence": SUBMIT["sequence"],
        "jobs": SUBMIT["jobs"],
    },
    "schedules": {},
    "schedule": {"schedule": [None, *NO_TEXT_AT_ALL]},
    "change_schedule": {
        **SCHEDULE,
        "schedule": [None, *NO_TEXT_AT_ALL],
        "sequence": SUBMIT["sequence"],
        "jobs": [it for it in SUBMIT["jobs"] if it is not None],
        "revision": [*NO_COUNT, 0],
    },
    "pause_schedule": {"schedule": [None, *NO_TEXT_AT_ALL], "reason": NO_TEXT, "by": NO_TEXT_AT_ALL},
    "resume_schedule": {"schedule": [None, *NO_TEXT_AT_ALL], "by": NO_TEXT_AT_ALL},
    "run_schedule": {
        "schedule": [None, *NO_TEXT_AT_ALL],
        "idempotency_key": NO_TEXT_AT_ALL,
        "by": NO_TEXT_AT_ALL,
    },
    "delete_schedule": {"schedule": [None, *NO_TEXT_AT_ALL]},
}
CONNECT: dict[str, list[Any]] = {
    "url": [*NO_TEXT_AT_ALL, "http://tweezer.example.org", "localhost:6379"],
    "key": NO_TEXT,
    "ca_file": [7, True, b"file", ["file"], "", object()],
    "project": [*NO_TEXT_AT_ALL, "a b", "x" * 65],
    "namespace": [*NO_TEXT_AT_ALL, "a:b", "x" * 33],
    "retry_s": [None, *NO_SECONDS],
    "results_dir": [7, True, b"folder", ["folder"], "", "a\0b", object()],
    "database_url": NO_TEXT_AT_ALL,
}
VALID: dict[str, dict[str, Any]] = {
    "submit": {"sequence": HEADER, "jobs": [Job(runs=1)], "device": DEVICE},
    "check": {"sequence": HEADER, "jobs": [Job(runs=1)], "device": DEVICE},
    "add_jobs": {"jobs": [Job(runs=1)]},
    "cancel_jobs": {"indices": [0]},
    "cancel_many": {"batch_ids": []},
    "archive_many": {"batch_ids": []},
    "delete_many": {"batch_ids": []},
    "logs": {"job_id": "0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"},
    "pause_device": {"name": DEVICE, "reason": "new lens"},
    "plan_maintenance": {"name": DEVICE, "begins": LATER, "ends": LATER + timedelta(hours=1), "reason": "new lens"},
    "drop_maintenance": {"name": DEVICE, "window_id": "5f3a90c1"},
    "create_schedule": {
        "name": "nightly",
        "sequence": HEADER,
        "jobs": [Job(runs=1)],
        "every_s": 3600,
        "batch": {"device": DEVICE},
    },
    "change_schedule": {"schedule": "hourly", "jobs": [Job(runs=1)], "batch": {"device": DEVICE}},
    **{f"{verb}_schedule": {"schedule": "hourly"} for verb in ("pause", "resume", "run")},
}
LONG = 2000
"""A message with more characters is too long to read."""


def cases(functions: dict[str, dict[str, list[Any]]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, arguments in functions.items():
        for argument, wrong in arguments.items():
            for value in wrong:
                yield name, argument, {**VALID.get(name, {}), argument: value}


async def announce(url: str) -> None:
    async with Store.open(Connect(url)) as store:
        about = {"adapter": "null", "exclusive": 0, "checks_sequence": 1, "max_runs": 1000}
        worker = {"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1}
        await store.tickets.heartbeat("nobody", DEVICE, ttl_s=600, about_device=about, about_worker=worker)


async def events(url: str) -> int:
    async with Store.open(Connect(url)) as store:
        return len(await store.events.read(most=1000))


def complaint(error: Exception | None, name: str, argument: str, given: dict[str, Any]) -> str | None:
    """Return what is wrong with the error of a call; None for InvalidInput with the right field."""
    if isinstance(error, tweezer.InvalidInput) and error.field.startswith(argument):
        return None if len(str(error)) < LONG else f"{name}({argument}): {len(str(error))} characters"
    return f"{name}({argument}={reprlib.repr(given[argument])}): {type(error).__name__}: {error}"


async def outcome(function: Callable[..., Any], given: dict[str, Any]) -> Exception | None:
    """Return the error of a call, after awaiting its result or reading its first item."""
    try:
        answer = function(**given)
        if hasattr(answer, "__anext__"):
            await anext(answer)
        elif inspect.isawaitable(answer):
            await answer
        elif hasattr(answer, "__next__"):
            next(answer)
    except Exception as error:  # noqa: BLE001  the test checks its type
        return error
    return None


def public(kind: type) -> set[str]:
    return {
        f"{name}({argument})"
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
        for argument in inspect.signature(function).parameters
        if argument != "self"
    }


@pytest.mark.parametrize(("kind", "functions"), [(tweezer.Batch, BATCH), (tweezer.Queue, QUEUE)])
def test_the_tables_have_every_argument_of_the_public_functions(
    kind: type, functions: dict[str, dict[str, list[Any]]]
) -> None:
    assert public(kind) == {f"{name}({argument})" for name, table in functions.items() for argument in table}
    asynchronous = {tweezer.Batch: tweezer.AsyncBatch, tweezer.Queue: tweezer.AsyncQueue}[kind]
    assert public(kind) <= public(asynchronous)
    assert set(inspect.signature(tweezer.connect).parameters) == set(CONNECT)


@pytest.mark.parametrize("open_queue", [tweezer.connect, tweezer.connect_async])
async def test_connecting_refuses_wrong_arguments(open_queue: Any) -> None:
    wrong = [
        complaint(await outcome(open_queue, given), name, argument, given)
        for name, argument, given in cases({"connect": CONNECT})
    ]
    assert list(filter(None, wrong)) == []


@pytest.fixture
def ledger(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a ledger for queues that are opened over Redis, which have schedules only with one."""
    return sqlite_url(Path(shutil.copy(sqlite_template, tmp_path / "direct.db")))


async def test_asynchronous_calls_refuse_wrong_arguments(real_redis_url: str, reach: Reach, ledger: str) -> None:
    await announce(real_redis_url)
    given = reach("ours")
    async with tweezer.connect_async(**given, database_url=None if "key" in given else ledger) as queue:
        batch = await queue.submit(HEADER, device=DEVICE, open=True)
        schedule = await queue.create_schedule(**{**VALID["create_schedule"], "name": "hourly"})
        written = await events(real_redis_url)
        wrong = [
            complaint(await outcome(getattr(target, name), given), name, argument, given)
            for target, functions in ((queue, QUEUE), (batch, BATCH))
            for name, argument, given in cases(functions)
        ]
        assert list(filter(None, wrong)) == []
        assert await events(real_redis_url) == written
        assert await queue.maintenance(DEVICE) == []
        assert [it.revision for it in await queue.schedules()] == [schedule.revision]
        assert (await queue.devices())[0].paused is None
        await batch.cancel()


def test_synchronous_calls_refuse_wrong_arguments(real_redis_url: str, ledger: str) -> None:
    asyncio.run(announce(real_redis_url))
    with tweezer.connect(as_user(real_redis_url, RedisUser.PRODUCER), database_url=ledger) as queue:
        batch = queue.submit(HEADER, device=DEVICE, open=True)
        queue.create_schedule(**{**VALID["create_schedule"], "name": "hourly"})
        wrong = [
            complaint(asyncio.run(outcome(getattr(target, name), given)), name, argument, given)
            for target, functions in ((queue, QUEUE), (batch, BATCH))
            for name, argument, given in cases(functions)
        ]
        assert list(filter(None, wrong)) == []
        batch.cancel()


JOB_ID = "01a22a95-f4fa-8e78-bcf7-757a82000000"
CALLS: dict[str, dict[str, Any]] = VALID | {
    "device": {"name": DEVICE},
    "find": {"batch": "@last"},
    "job": {"job_id": JOB_ID},
    "attempts": {"job_id": JOB_ID},
    "result": {"job_id": JOB_ID},
    "resume_device": {"name": DEVICE},
    "maintenance": {"name": DEVICE},
    "cancel_many": {"batch_ids": [JOB_ID]},
    "set_priority": {"priority": "HIGH"},
    "set_tags": {"tags": ["a"]},
    "schedule": {"schedule": "hourly"},
    "delete_schedule": {"schedule": "hourly"},
}
"""Valid arguments of the calls that need some."""

ALLOWED_WHEN_CLOSED = {"close", "batch"}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_every_call_on_a_closed_queue_advises_to_connect_again(real_redis_url: str, asynchronous: bool) -> None:
    await announce(real_redis_url)
    url = as_user(real_redis_url, RedisUser.PRODUCER)
    queue: Any = tweezer.connect_async(url) if asynchronous else tweezer.connect(url)
    submitted = queue.submit(HEADER, device=DEVICE, open=True)
    batch = await submitted if asynchronous else submitted
    closed = queue.close()
    if asynchronous:
        await closed
    calls = [(queue, name) for name in QUEUE.keys() - ALLOWED_WHEN_CLOSED] + [(batch, name) for name in BATCH]
    for target, name in [*calls, (queue.batch(JOB_ID), "record")]:
        error = await outcome(getattr(target, name), CALLS.get(name, {}))
        assert isinstance(error, tweezer.TweezerError), name
        assert error.code == "queue_closed", name
        assert error.message == (
            f"the queue is closed; open another one with connect{'_async' if asynchronous else ''}(), and find a batch "
            'again with queue.find("ID")'
        )
    gc.collect()  # a coroutine that was never awaited would warn here
    assert repr(queue) == "<closed queue of project 'default'>"
    if not asynchronous:
        assert batch._repr_html_() is None, "notebooks then show the repr"


async def test_right_arguments_of_all_kinds_are_accepted(real_redis_url: str, reach: Reach) -> None:
    await announce(real_redis_url)
    async with tweezer.connect_async(**reach("ours"), retry_s=1) as queue:
        batch = await queue.submit(HEADER, (Job(runs=1) for _ in range(2)), tags={"a"}, open=True, device=DEVICE)
        assert (await batch.record()).jobs == 2
        assert await batch.cancel_jobs([]) == []
        assert await batch.cancel_jobs(range(2)) == ["canceled", "canceled"]
        assert (await batch.wait(0)).open
        assert (await batch.wait(-1.5)).open, "with a deadline in the past, the batch is read once"
        await batch.close()
        lenient = await queue.submit(
            "\ufeff" + HEADER,
            [{"runs": 500.0}],
            device=DEVICE,
            priority="high",
            limits={"job_timeout_s": 60},
            backend_configuration="\ufeff{}",
        )
        record = await lenient.record()
        assert (record.priority, record.doc.limits) == (tweezer.Priority.HIGH, tweezer.Limits(job_timeout_s=60))
        assert (record.doc.sequence, record.doc.backend_configuration) == (HEADER, "{}")
        assert [job.spec.runs for job in await lenient.jobs()] == [500]
        assert list(await queue.cancel_many({str(new_batch_id())})) != []


def test_a_project_comes_from_the_environment_and_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_PROJECT_ID", "a b")
    with pytest.raises(tweezer.InvalidInput, match="project"):
        tweezer.connect_async()
