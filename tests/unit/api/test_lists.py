"""Lists, statistics and old batches over the API, with a store in memory and a ledger in a file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
import pytest
from tests.support.api_rig import DEVICE, DONE, FAILED, PROJECT, ApiRig, bearer
from tests.support.ledger_filling import DEVICES, TAGS, Filled, Plan, fill

from tweezer.api.batches.schemas import BatchResponse, JobResponse, ListedBatchResponse
from tweezer.api.http.responses import Pagination
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.ledger.queries.filters import BatchOrder, JobOrder
from tweezer.ledger.queries.queries import Queries
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.errors import Unavailable
from tweezer.model.ids import job_id, new_batch_id, short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, JobSpec, Priority
from tweezer.settings import ApiSettings, Settings
from tweezer.store.records import BatchRecord, JobRecord
from tweezer.store.scripts import Scripts

PLAN = Plan(jobs=300, batches=60, projects=3, live=9)
OWN, OTHER = PLAN.project(1), PLAN.project(0)

T = TypeVar("T")


class Envelope(msgspec.Struct, Generic[T]):
    """Return the body of a successful response."""

    status: str
    message: str
    code: str
    data: T


class Page(Envelope[list[T]], Generic[T]):
    """Return a page of a list."""

    pagination: Pagination


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=0)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


@pytest.fixture
def filled(rig: ApiRig) -> Filled:
    return fill(rig.database, PLAN, tables=False)


@pytest.fixture
def user(rig: ApiRig, filled: Filled) -> str:
    """Return the key of a user of one of the projects."""
    return rig.key(project=OWN)


async def listed(rig: ApiRig, path: str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    answer = await rig.get(path, **options)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    pagination = body["pagination"]
    first, last = pagination["start"], pagination["end"] - 1
    span = f"{first}-{last}" if body["data"] else "*"
    assert answer.headers["content-range"] == f"{span}/{pagination['total']}"
    assert answer.headers["access-control-expose-headers"] == "Content-Range"
    return body["data"], pagination


async def record(rig: ApiRig) -> None:
    recorder = Recorder(rig.store, rig.database, namespace="tweezer")
    await recorder.resume()
    await recorder.catch_up()


async def forget(rig: ApiRig) -> None:
    """Delete everything in Redis but the devices."""
    await record(rig)
    await rig.store.redis.flushall()
    await rig.announce()


# -- lists ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "schema"), [("/api/v1/batches", ListedBatchResponse), ("/api/v2/jobs", JobResponse)])
async def test_a_list_matches_its_schema(rig: ApiRig, filled: Filled, path: str, schema: Any) -> None:
    answer = await rig.get(path)
    page = msgspec.json.decode(answer.content, type=Page[schema])
    assert msgspec.to_builtins(page) == answer.json()
    assert len(page.data) == min(100, page.pagination.total)


@pytest.mark.parametrize("name", ["batches", "jobs"])
async def test_both_versions_of_a_list_are_the_same(rig: ApiRig, filled: Filled, name: str) -> None:
    assert (await rig.get(f"/api/v1/{name}")).json() == (await rig.get(f"/api/v2/{name}")).json()


async def test_a_client_that_follows_the_pages_sees_each_job_once(rig: ApiRig, user: str) -> None:
    found: list[str] = []
    pagination = {"end": 0, "total": 1}
    while pagination["end"] < pagination["total"]:
        page, pagination = await listed(
            rig, "/api/v2/jobs", params={"offset": pagination["end"], "limit": 17}, key=user
        )
        found += [job["id"] for job in page]
    assert len(found) == len(set(found)) == pagination["total"] > 17
    beyond, pagination = await listed(rig, "/api/v2/jobs", params={"offset": 10_000}, key=user)
    assert (beyond, pagination["start"], pagination["end"]) == ([], 10_000, 10_000)


async def test_repeated_parameters_mean_any_of_them(rig: ApiRig, filled: Filled) -> None:
    params = [("status", "ERROR"), ("status", "CANCELED"), ("project_id", OWN), ("project_id", OTHER)]
    jobs, _ = await listed(rig, "/api/v2/jobs", params=params)
    assert {job["status"] for job in jobs} == {"ERROR", "CANCELED"}
    assert {job["project_id"] for job in jobs} == {OWN, OTHER}
    some = [("tag", TAGS[0]), ("tag", TAGS[1])]
    batches, _ = await listed(rig, "/api/v1/batches", params=some)
    assert batches
    assert all({*TAGS[:2]} & {*batch["tags"]} for batch in batches)
    tags = next(batch["tags"] for batch in batches if len(batch["tags"]) > 1)
    batches, _ = await listed(rig, "/api/v1/batches", params=[("all_tags", tag) for tag in tags])
    assert batches
    assert all({*tags} <= {*batch["tags"]} for batch in batches)


@pytest.mark.parametrize("said", [{"open": "True"}, {"open": "true"}, {"open": "1"}, {"complete": "False"}])
async def test_open_accepts_many_spellings_of_a_boolean(rig: ApiRig, filled: Filled, said: dict[str, str]) -> None:
    batches, pagination = await listed(rig, "/api/v1/batches", params=said)
    assert batches
    assert all(batch["open"] and not batch["complete"] for batch in batches)
    closed, rest = await listed(rig, "/api/v1/batches", params={"open": "False"})
    assert not any(batch["open"] for batch in closed)
    assert pagination["total"] + rest["total"] == PLAN.batches


async def test_a_time_without_an_offset_is_utc(rig: ApiRig, filled: Filled) -> None:
    middle = datetime.fromtimestamp(PLAN.now_ms / 1000, UTC) - timedelta(days=15)
    shifted = (middle + timedelta(hours=5)).replace(tzinfo=None).isoformat() + "+05:00"
    for name in ("start_date", "end_date", "min_created_at", "max_created_at"):
        totals = set()
        for text in (middle.isoformat(), middle.replace(tzinfo=None).isoformat(), shifted):
            _, pagination = await listed(rig, "/api/v2/jobs", params={name: text, "limit": 1})
            totals.add(pagination["total"])
        assert len(totals) == 1, name
        assert 0 < totals.pop() < PLAN.jobs, name


async def test_a_prefix_is_taken_with_and_without_dashes(rig: ApiRig, filled: Filled) -> None:
    some = str(filled.batches[20])
    for prefix in (some[:10], some[:10].replace("-", ""), some[:10].upper(), some):
        batches, _ = await listed(rig, "/api/v1/batches", params={"id__starts_with": prefix})
        assert some in {batch["id"] for batch in batches}
        assert all(batch["id"].startswith(prefix.lower()) or "-" not in prefix for batch in batches)
    _, everything = await listed(rig, "/api/v1/batches", params={"id__starts_with": ""})
    assert everything["total"] == PLAN.batches


@pytest.mark.parametrize(
    ("path", "orders"),
    [("/api/v1/batches", BatchOrder), ("/api/v2/jobs", JobOrder)],
)
async def test_a_list_accepts_every_order_in_both_directions(
    rig: ApiRig, filled: Filled, path: str, orders: Any
) -> None:
    for order in orders:
        for direction in ("ASC", "DESC"):
            rows, _ = await listed(rig, path, params={"order_by": order.value, "order_by_direction": direction})
            shown = [row[order.value] for row in rows if row.get(order.value) not in (None, [], "")]
            if order.value in {"created_at", "start_timestamp", "end_datetime", "jobs_count", "runs", "id"}:
                assert shown == sorted(shown, reverse=direction == "DESC"), order


@pytest.mark.parametrize(
    ("path", "params", "field"),
    [
        ("/api/v1/batches", {"limit": 0}, "limit"),
        ("/api/v1/batches", {"limit": 101}, "limit"),
        ("/api/v2/jobs", {"limit": "all"}, "limit"),
        ("/api/v2/jobs", {"offset": -1}, "offset"),
        ("/api/v2/jobs", {"offset": 10**30}, "offset"),
        ("/api/v2/jobs", {"order_by": "sequence"}, "order_by"),
        ("/api/v2/jobs", {"start_date": "20301101"}, "start_date"),  # not seconds since 1970
        ("/api/v1/batches", {"min_created_at": "2030"}, "min_created_at"),
        ("/api/v1/batches", {"max_created_at": "1790000000.5"}, "max_created_at"),
        ("/api/v2/jobs/counts", {"end_date": "-1"}, "end_date"),
        ("/api/v1/devices/job_counts", {"scope": "DAY", "start_date": "17"}, "start_date"),
        ("/api/v2/deliveries", {"since": "20301101"}, "since"),
        ("/api/v1/batches", {"order_by": "creation_order"}, "order_by"),
        ("/api/v2/jobs", {"order_by_direction": "UP"}, "order_by_direction"),
        ("/api/v2/jobs", {"id": "x"}, "id"),
        ("/api/v2/jobs", {"id__starts_with": "xyz"}, "id__starts_with"),
        ("/api/v2/jobs", {"id__starts_with": "0" * 33}, "id__starts_with"),
        ("/api/v2/jobs", {"status": "PAUSED"}, "status"),
        ("/api/v1/batches", {"status": "done"}, "status"),
        ("/api/v1/batches", {"queue_priority": "CRITICAL"}, "queue_priority"),
        ("/api/v1/batches", {"open": "maybe"}, "open"),
        ("/api/v1/batches", {"open": "true", "complete": "true"}, "query"),
        ("/api/v1/batches", {"min_jobs": -1}, "min_jobs"),
        ("/api/v2/jobs", {"max_runs": 10**40}, "max_runs"),
        ("/api/v2/jobs", {"start_date": "yesterday"}, "start_date"),
        ("/api/v2/jobs", {"end_date": "0001-01-01T00:00:00+14:00"}, "end_date"),
        ("/api/v2/jobs", {"end_date": "9999-12-31T23:59:59-14:00"}, "end_date"),
        ("/api/v2/jobs", {"user_id": "a\x00b"}, "user_id"),
        ("/api/v2/jobs", {"project_id": "\x00"}, "project_id"),
        ("/api/v1/batches", {"tag": "t" * 201}, "tag"),
        ("/api/v1/batches", {"all_tags": ["t"] * 21}, "all_tags"),
        ("/api/v2/jobs", {"batch_id": ["0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"] * 301}, "batch_id"),
        ("/api/v2/jobs/counts", {"status": "x"}, "status"),
        ("/api/v1/devices/job_counts", {}, "scope"),
        ("/api/v1/devices/job_counts", {"scope": "YEAR"}, "scope"),
        (f"/api/v1/devices/{DEVICE}/average_queue_time", {"hours": 0}, "hours"),
    ],
)
async def test_a_bad_parameter_is_named(rig: ApiRig, path: str, params: dict[str, Any], field: str) -> None:
    answer = await rig.get(path, params=params)
    assert answer.status_code == 422, answer.text
    assert answer.json()["data"]["field"] == field
    assert "detail" in answer.json()


@pytest.mark.parametrize(
    "text", ["%'\"; DROP TABLE jobs; --", "💥", "ü" * 200, "\\", "\ud800".encode("utf-8", "replace")]
)
async def test_any_text_may_be_searched_for(rig: ApiRig, filled: Filled, text: Any) -> None:
    for name in ("user_id", "project_id", "device_type", "tag", "all_tags"):
        for path in ("/api/v1/batches", "/api/v2/jobs", "/api/v2/jobs/counts"):
            assert (await rig.get(path, params={name: text})).status_code == 200
    _, pagination = await listed(rig, "/api/v2/jobs")
    assert pagination["total"] == PLAN.jobs


# -- whose it is ----------------------------------------------------------------------------------------


async def test_a_user_lists_its_own_project_only(rig: ApiRig, filled: Filled, user: str) -> None:
    for path in ("/api/v1/batches", "/api/v2/jobs"):
        rows, pagination = await listed(rig, path, key=user)
        assert {row["project_id"] for row in rows} == {OWN}
        _, operators = await listed(rig, path, params={"project_id": OWN})
        assert pagination["total"] == operators["total"]


async def test_a_foreign_project_lists_like_one_that_does_not_exist(rig: ApiRig, filled: Filled, user: str) -> None:
    batch_id, _ = filled.of_project(0)[5]
    for path in ("/api/v1/batches", "/api/v2/jobs", "/api/v2/jobs/counts", "/api/v1/batches/last_activity"):
        foreign = await rig.get(path, params={"project_id": OTHER}, key=user)
        unknown = await rig.get(path, params={"project_id": "elsewhere"}, key=user)
        assert (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content)
        assert foreign.status_code == 200
    foreign = await rig.get("/api/v2/jobs", params={"batch_id": str(batch_id)}, key=user)
    unknown = await rig.get("/api/v2/jobs", params={"batch_id": str(new_batch_id())}, key=user)
    assert foreign.content == unknown.content


@pytest.mark.parametrize("route", ["/api/v2/jobs/{}", "/api/v2/jobs/{}/transitions", "/api/v1/jobs/{}/status"])
async def test_a_foreign_job_is_not_found_live_or_recorded(rig: ApiRig, filled: Filled, user: str, route: str) -> None:
    recorded = job_id(filled.of_project(0)[5][0], 0)
    live = job_id(await rig.submit(1, project=OTHER), 0)
    for identity in (recorded, live):
        assert (await rig.get(route.format(identity))).status_code == 200
        foreign = await rig.get(route.format(identity), key=user)
        assert foreign.status_code == 404
        nothing = new_batch_id()
        unknown = await rig.get(route.format(nothing), key=user)
        assert foreign.text.replace(str(identity), str(nothing)) == unknown.text


async def test_nothing_of_a_foreign_job_or_batch_leaves_redis(rig: ApiRig, filled: Filled, user: str) -> None:
    replies: list[Any] = []
    call = Scripts.call

    async def noting(self: Scripts, name: str, /, **arguments: Any) -> list[Any]:
        reply = await call(self, name, **arguments)
        replies.append(reply)
        return reply

    batch_id = await rig.submit(1, project=OTHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripts, "call", noting)
        await rig.get(f"/api/v2/jobs/{job_id(batch_id, 0)}", key=user)
        await rig.get(f"/api/v2/batches/{batch_id}", key=user)
    assert replies == [[None], []]


# -- what was not recorded yet, and what Redis has forgotten ----------------------------------------------


JOB_LISTS: list[dict[str, Any]] = [
    {},
    {"limit": 2, "offset": 3},
    {"order_by_direction": "ASC"},
    {"order_by_direction": "ASC", "limit": 3, "offset": 1, "order_by": "creation_order"},
    {"status": "DONE"},
    {"status": ["ERROR", "PENDING"], "order_by": "status"},
    {"min_runs": 12, "max_runs": 14},
    {"max_runs": 100},
    {"errors": "true"},
    {"errors": "false", "limit": 2},
    {"id__starts_with": "ffff"},
    {"project_id": PROJECT, "device_type": DEVICE, "queue_priority": "HIGH", "tag": ["t", "x"], "all_tags": "u"},
    {"project_id": "elsewhere"},
    {"device_type": "OTHER"},
    {"queue_priority": "LOW"},
    {"tag": "x"},
    {"all_tags": ["t", "x"]},
    {"origin": "CLIENT", "user_id": "ada"},
    {"origin": "AZURE"},
    {"user_id": "nobody"},
    {"start_date": "2020-01-01"},
    {"end_date": "2020-01-01"},
    {"min_created_at": "2020-01-01", "max_created_at": "2999-01-01"},
    *({"order_by": order.value, "order_by_direction": way} for order in JobOrder for way in ("ASC", "DESC")),
]


async def mixed_batch(rig: ApiRig) -> UUID:
    """Submit jobs that are done, that failed, and that wait."""
    doc = BatchDoc(device=DEVICE, sequence="{}", tags=("t", "u"), user="ada")
    specs = [JobSpec(runs=runs, variables={"x": index}) for index, runs in enumerate([12, 15, 10, None, 13, 12, 14])]
    batch_id = await rig.submit(specs, doc=doc, priority=Priority.HIGH)
    await rig.run(DONE, FAILED, DONE)
    return batch_id


async def test_the_jobs_of_a_batch_are_listed_before_they_are_recorded(rig: ApiRig) -> None:
    batch_id = await mixed_batch(rig)
    params = {"batch_id": str(batch_id), "order_by": "creation_order", "order_by_direction": "ASC"}
    jobs, pagination = await listed(rig, "/api/v2/jobs", params=params, key=rig.key())
    assert [job["creation_order"] for job in jobs] == list(range(7))
    assert [job["status"] for job in jobs[:4]] == ["DONE", "ERROR", "DONE", "RUNNING"]
    assert pagination == {"total": 7, "start": 0, "end": 7}
    assert (await listed(rig, "/api/v2/jobs"))[0] == []


async def test_the_jobs_of_a_batch_are_listed_identically_live_and_recorded(rig: ApiRig) -> None:
    batch_id = await mixed_batch(rig)
    live = [await listed(rig, "/api/v2/jobs", params={"batch_id": str(batch_id), **params}) for params in JOB_LISTS]
    await forget(rig)
    for params, before in zip(JOB_LISTS, live, strict=True):
        assert await listed(rig, "/api/v2/jobs", params={"batch_id": str(batch_id), **params}) == before, params
    totals = {pagination["total"] for _, pagination in live}
    assert len(totals) > 5, "the lists are too much alike to show anything"


async def test_one_project_filters_the_jobs_of_one_batch_at_a_time(
    rig: ApiRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: Counter[UUID] = Counter()
    most: Counter[UUID] = Counter()
    read_jobs = ReadModel.jobs

    async def counted(live: ReadModel, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        filters = len(indices) > 1  # otherwise it is the page that is shown, or the last one
        reading[batch.id] += filters
        most[batch.id] = max(most[batch.id], reading[batch.id])
        await asyncio.sleep(0.01)
        jobs = await read_jobs(live, batch, indices)
        reading[batch.id] -= filters
        return jobs

    monkeypatch.setattr(ReadModel, "jobs", counted)
    monkeypatch.setattr("tweezer.api.read_model._PAGE", 2)
    batch_id, other_id = await rig.submit(9), await rig.submit(1, project="another")
    first, second, other = rig.key(), rig.key(), rig.key(project="another")
    path = f"/api/v2/jobs?order_by=status&limit=1&batch_id={batch_id}"
    answers = [rig.get(path, key=key) for key in (first, second, first)]
    answers.append(rig.get(f"/api/v2/jobs?order_by=status&batch_id={other_id}", key=other))
    totals = [answer.json()["pagination"]["total"] for answer in await asyncio.gather(*answers)]
    assert totals == [9, 9, 9, 1]
    assert most[batch_id] == 1
    assert rig.app.state.live._scans == {}


@pytest.mark.parametrize(
    "route",
    [
        "/api/v2/batches/{batch}",
        "/api/v1/batches/{batch}/status",
        *(f"/api/v2/jobs/{{{index}}}" for index in range(4)),
        *(f"/api/v1/jobs/{{{index}}}/status" for index in range(4)),
        "/api/v1/jobs/{0}/results",
    ],
)
async def test_batches_that_redis_has_forgotten_come_from_the_ledger(rig: ApiRig, route: str) -> None:
    batch_id = await mixed_batch(rig)
    path = route.format(*(job_id(batch_id, index) for index in range(4)), batch=batch_id)
    key = rig.key()
    live = await rig.get(path, key=key)
    assert live.status_code == 200
    await forget(rig)
    recorded = await rig.get(path, key=key)
    assert (recorded.status_code, recorded.json()) == (200, live.json())
    assert (await rig.get(path, key=rig.key(project="other"))).status_code == 404


async def test_a_link_to_a_result_outlives_redis(rig: ApiRig) -> None:
    batch_id = await mixed_batch(rig)
    await forget(rig)
    link = (await rig.data(f"/api/v1/jobs/{job_id(batch_id, 0)}/results_link"))["results_link"]
    assert link is not None
    assert (await rig.data(f"/api/v1/jobs/{job_id(batch_id, 1)}/results_link"))["results_link"] is None


async def test_single_responses_match_their_schemas(rig: ApiRig) -> None:
    batch_id = await mixed_batch(rig)
    for index in range(7):
        answer = await rig.get(f"/api/v2/jobs/{job_id(batch_id, index)}")
        job = msgspec.json.decode(answer.content, type=Envelope[JobResponse])
        assert msgspec.to_builtins(job) == answer.json()
    answer = await rig.get(f"/api/v2/batches/{batch_id}")
    batch = msgspec.json.decode(answer.content, type=Envelope[BatchResponse])
    assert msgspec.to_builtins(batch) == answer.json()


async def test_concurrent_requests_for_jobs_share_a_round_trip(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_ids = [await rig.submit(3) for _ in range(10)]
    key = rig.key()
    calls: list[str] = []
    call = Scripts.call

    async def counting(self: Scripts, name: str, /, **arguments: Any) -> list[Any]:
        calls.append(name)
        return await call(self, name, **arguments)

    monkeypatch.setattr(Scripts, "call", counting)
    ids = [job_id(batch_id, index) for batch_id, index in itertools.product(batch_ids, range(3))]
    answers = await asyncio.gather(*(rig.get(f"/api/v2/jobs/{identity}", key=key) for identity in ids))
    assert [UUID(answer.json()["data"]["id"]) for answer in answers] == ids
    assert 0 < calls.count("look_up_jobs") < len(ids) / 2


async def test_a_failed_read_fails_for_every_request_that_shares_it(
    rig: ApiRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await rig.submit(2)

    async def fail(self: Scripts, name: str, /, **arguments: Any) -> list[Any]:
        raise Unavailable("Redis cannot be reached: gone")

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "call", fail)
        answers = await asyncio.gather(*(rig.get(f"/api/v2/jobs/{job_id(batch_id, index)}") for index in range(2)))
        assert [answer.status_code for answer in answers] == [503, 503]
        assert answers[0].json()["data"]["description"] == "Redis cannot be reached", "the log has the cause"
    assert (await rig.get(f"/api/v2/jobs/{job_id(batch_id, 0)}")).status_code == 200


# -- counts and statistics ------------------------------------------------------------------------------


async def test_counts_have_every_status_and_add_up_to_the_total(rig: ApiRig, filled: Filled, user: str) -> None:
    for name, statuses in (("batches", BatchStatus), ("jobs", JobStatus)):
        for params in ({}, {"device_type": DEVICES[0]}, {"tag": TAGS[0]}):
            counts = await rig.data(f"/api/v2/{name}/counts", params=params, key=user)
            _, pagination = await listed(rig, f"/api/v2/{name}", params=params, key=user)
            assert set(counts) == set(statuses)
            assert sum(counts.values()) == pagination["total"]


async def test_the_transitions_of_a_job_are_listed_once_they_are_recorded(rig: ApiRig) -> None:
    batch_id = await rig.submit(1)
    path, key = f"/api/v2/jobs/{job_id(batch_id, 0)}/transitions", rig.key()
    assert await rig.data(path, key=key) == []
    await rig.run(DONE)
    await forget(rig)
    told = await rig.data(path, key=key)
    assert [(each["type"], each["previous_status"], each["status"]) for each in told] == [
        ("job.running", "PENDING", "RUNNING"),
        ("job.done", "RUNNING", "DONE"),
    ]
    assert [(each["worker"], each["lane"], each["reason"]) for each in told] == [("lane", 0, None)] * 2
    assert [each["event_id"].split(":")[1] for each in told] == [str(each["sequence_number"]) for each in told]
    job = await rig.data(f"/api/v2/jobs/{job_id(batch_id, 0)}", key=key)
    assert told[0]["timestamp"][:22] == job["start_timestamp"][:22]


async def test_every_caller_can_read_the_queue_of_a_device(rig: ApiRig) -> None:
    await rig.submit([JobSpec(runs=10), JobSpec(runs=5), JobSpec()], priority=Priority.HIGH)
    await rig.submit(4, project="other")
    await record(rig)
    size = await rig.data(f"/api/v1/devices/{DEVICE}/queue_size", key=rig.key())
    assert {queue["queue"]: queue for queue in size["device_queues"]} == {
        "HIGH": {"queue": "HIGH", "number_of_batches": 1, "number_of_jobs": 3, "number_of_shots": 15},
        "MEDIUM": {"queue": "MEDIUM", "number_of_batches": 1, "number_of_jobs": 4, "number_of_shots": 40},
        "LOW": {"queue": "LOW", "number_of_batches": 0, "number_of_jobs": 0, "number_of_shots": 0},
    }


async def test_the_average_queue_time_of_a_device_covers_the_last_day(rig: ApiRig) -> None:
    path = f"/api/v1/devices/{DEVICE}/average_queue_time"
    nothing = {"device_type": DEVICE, "average_queue_time": None, "jobs_count": 0}
    assert await rig.data(path, key=rig.key()) == nothing
    await mixed_batch(rig)
    await record(rig)
    told = await rig.data(path, params={"hours": 1}, key=rig.key())
    assert told["jobs_count"] == 3
    assert 0 <= told["average_queue_time"] < 10


@pytest.mark.parametrize("figure", ["queue_size", "average_queue_time"])
async def test_an_unknown_device_has_no_figures(rig: ApiRig, figure: str) -> None:
    answer = await rig.get(f"/api/v1/devices/NONE/{figure}")
    assert answer.status_code == 404
    assert answer.json()["data"]["description"] == "there is no device NONE"


@pytest.mark.parametrize(("scope", "digits"), [("HOUR", ":00:00Z"), ("DAY", "T00:00:00Z"), ("MONTH", "-01T00:00:00Z")])
async def test_jobs_are_counted_by_hour_day_and_month(rig: ApiRig, user: str, scope: str, digits: str) -> None:
    end = datetime.fromtimestamp(PLAN.now_ms / 1000, UTC)
    params = {"scope": scope, "start_date": (end - timedelta(days=90)).isoformat(), "end_date": end.isoformat()}
    told = await rig.data("/api/v1/devices/job_counts", params=params, key=user)
    _, pagination = await listed(rig, "/api/v2/jobs", key=user)
    assert told["job_date_scope"] == scope
    assert all(each["datetime"].endswith(digits) for each in told["count"])
    assert sum(count for each in told["count"] for count in each["devices"].values()) == pagination["total"]
    assert await rig.data("/api/v1/devices/job_counts", params={"scope": scope, "project_id": OTHER}, key=user) == {
        "job_date_scope": scope,
        "count": [],
    }


async def test_the_last_activity_of_each_project_is_listed(rig: ApiRig, user: str) -> None:
    all_of_them = await rig.data("/api/v1/batches/last_activity")
    assert [each["project_id"] for each in all_of_them] == [PLAN.project(number) for number in range(3)]
    own = await rig.data("/api/v1/batches/last_activity", key=user)
    assert own == [all_of_them[1]]
    assert datetime.fromisoformat(own[0]["last_activity_date"]).tzinfo is not None
    both = [("project_id", OWN), ("project_id", OTHER)]
    assert await rig.data("/api/v1/batches/last_activity", params=both) == all_of_them[:2]


async def test_a_service_without_its_ledger_is_not_ready(rig: ApiRig) -> None:
    assert (await rig.get("/ready")).status_code == 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Queries, "ping", _fail)
        assert (await rig.get("/ready")).status_code == 503
    assert (await rig.get("/ready")).status_code == 200


def _fail(_: Queries) -> None:
    raise Unavailable("the ledger's database cannot be used: gone")


async def test_operators_list_the_work_of_all_projects(rig: ApiRig, filled: Filled) -> None:
    _, pagination = await listed(rig, "/api/v2/jobs", key=rig.key(Role.OPERATOR, project=None))
    assert pagination["total"] == PLAN.jobs


@contextlib.contextmanager
def moved_away(file: Path) -> Iterator[None]:
    """The file is moved away meanwhile, and the API does not create a new one."""
    elsewhere = file.rename(file.with_name("elsewhere"))
    yield
    assert not file.exists()
    elsewhere.rename(file)


async def test_a_ledger_whose_file_was_missing_works_again_when_it_is_back(rig: ApiRig) -> None:
    assert (await rig.get("/api/v2/jobs")).status_code == 200
    with moved_away(Path(rig.database.engine.url.database or "")):
        assert (await rig.get("/api/v2/jobs")).status_code == 503
    assert (await rig.get("/api/v2/jobs")).status_code == 200


async def test_a_batch_is_found_by_its_short_id_and_its_name(rig: ApiRig) -> None:
    await rig.announce()
    key = rig.key()
    older = await rig.submit(doc=BatchDoc(device=DEVICE, sequence="{}", name="a / b"))
    newer = await rig.submit()
    await rig.submit(project="another")
    for text, batch_id in ((short_id(older), older), ("a / b", older), ("@last", newer), (str(newer), newer)):
        found = await rig.data("/api/v2/batches/find", params={"text": text}, key=key)
        assert found == {"id": str(batch_id)}
    for path in (f"/api/v2/batches/{short_id(older)}", f"/api/v1/batches/{short_id(older)}", "/api/v2/batches/@last~1"):
        assert (await rig.data(path, key=key))["id"] == str(older)
    closed = await rig.http.patch(f"/api/v2/batches/{short_id(older)}/cancel", headers=bearer(key))
    assert closed.json()["data"]["status"] == "CANCELED"


@pytest.mark.parametrize("key_of", ["another project", "an operator"])
async def test_a_short_id_is_resolved_within_the_projects_of_the_caller(rig: ApiRig, key_of: str) -> None:
    batch_id = await rig.submit(doc=BatchDoc(device=DEVICE, sequence="{}", name="mine"))
    await record(rig)
    key = rig.key(project="another") if key_of == "another project" else rig.key(Role.OPERATOR, project=None)
    for path in (f"/api/v2/batches/{short_id(batch_id)}", "/api/v2/batches/find?text=mine"):
        assert (await rig.get(path, key=key)).status_code == (404 if key_of == "another project" else 200)


async def test_an_ambiguous_name_is_a_conflict_that_lists_the_batches(rig: ApiRig) -> None:
    batches = [await rig.submit(doc=BatchDoc(device=DEVICE, sequence="{}", name="twice")) for _ in range(2)]
    answer = await rig.get("/api/v2/batches/find", params={"text": "twice"}, key=rig.key())
    assert answer.status_code == 409
    assert answer.json()["data"]["reason"] == "ambiguous"
    assert all(str(batch_id) in answer.json()["data"]["description"] for batch_id in batches)


@pytest.mark.parametrize(
    "path", ["find", "find?text=", f"find?text={'x' * 256}", "find?text=%00", "nonsense", "@first", "UUUUUUUUUU"]
)
async def test_a_text_that_cannot_name_a_batch_is_refused(rig: ApiRig, path: str) -> None:
    assert (await rig.get(f"/api/v2/batches/{path}")).status_code == 422


async def test_a_role_that_reads_no_batches_finds_none(rig: ApiRig) -> None:
    key = rig.key(Role.METRICS, project=None)
    for path in ("5m2q0xw8kd", "find?text=@last"):
        assert (await rig.get(f"/api/v2/batches/{path}", key=key)).status_code == 403


async def test_batches_are_listed_by_name(rig: ApiRig) -> None:
    batches = [await rig.submit(doc=BatchDoc(device=DEVICE, sequence="{}", name=name)) for name in ("a", "b", "c")]
    await record(rig)
    found, _ = await listed(rig, "/api/v2/batches", params={"name": ["a", "c"]}, key=rig.key())
    assert {batch["id"] for batch in found} == {str(batches[0]), str(batches[2])}


async def test_a_batch_shows_its_start_time_and_what_it_waits_for(rig: ApiRig) -> None:
    start = datetime(2099, 1, 31, 8, tzinfo=UTC)
    planned = await rig.submit(not_before=start)
    running = await rig.submit()
    await rig.take()
    behind = await rig.submit()
    await record(rig)
    shown = {batch["id"]: batch for batch in (await listed(rig, "/api/v2/batches", key=rig.key()))[0]}
    for batch_id in (planned, running, behind):
        batch = await rig.data(f"/api/v2/batches/{batch_id}")
        assert batch["waits_for"] == shown[str(batch_id)]["waits_for"]
        assert batch["not_before"] == shown[str(batch_id)]["not_before"]
    assert shown[str(planned)]["not_before"] == "2099-01-31T08:00:00Z"
    assert shown[str(planned)]["waits_for"] == "its start time, 2099-01-31 08:00 UTC"
    assert (shown[str(running)]["not_before"], shown[str(running)]["waits_for"]) == (None, None)
    waits_for = f"{DEVICE}: its lane is busy; other batches have 1 pending job"
    assert shown[str(behind)]["waits_for"] == waits_for
    await rig.store.commands.pause(behind, project=PROJECT)
    paused = await rig.data(f"/api/v2/batches/{behind}")
    assert paused["waits_for"] == "someone to resume it: the batch is paused"
