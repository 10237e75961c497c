"""Queries of the ledger on both databases, compared with the same queries over all its records in Python."""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import pytest
from sqlalchemy import event, func, select, update
from tests.support.ledger_filling import DEVICES, SEQUENCE, TAGS, Filled, Plan, fill

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database, load
from tweezer.ledger.queries import lists, statistics
from tweezer.ledger.queries.filters import BatchFilter, BatchOrder, JobFilter, JobOrder, Origin, PageRequest, job_key
from tweezer.ledger.queries.queries import Queries
from tweezer.ledger.queries.statistics import Span
from tweezer.ledger.schema import projects
from tweezer.model.ids import job_id, new_batch_id, short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Priority, decode_result
from tweezer.store.records import BatchRecord, JobRecord

PLAN = Plan(jobs=600, batches=60, projects=3, live=9)
OPERATOR = Principal("operator", Role.OPERATOR)
USER = Principal("user", Role.USER, frozenset({PLAN.project(1)}))
MEMBER = Principal("member", Role.USER, frozenset({PLAN.project(0), PLAN.project(2)}))
STRANGER = Principal("stranger", Role.USER, frozenset({"elsewhere"}))
CALLERS = {"operator": OPERATOR, "user": USER, "member": MEMBER}
NOW = datetime.fromtimestamp(PLAN.now_ms / 1000, UTC)
SOME_TIME = NOW - timedelta(days=11, hours=5)
ALL = PageRequest(limit=100_000)
RANK = {Priority.LOW: 0, Priority.MEDIUM: 1, Priority.HIGH: 2}
NEVER = 1_000_000  # more jobs, or pages, than there are


class Ledger:
    """A filled ledger with all its records."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.filled: Filled = fill(database, PLAN, tables=False)
        self.queries = Queries(database)
        self.batches: dict[UUID, BatchRecord] = {}
        self.jobs: list[JobRecord] = []
        for batch_id in self.filled.batches:
            batch = self.queries.batch(OPERATOR, batch_id)
            assert batch is not None
            self.batches[batch_id] = batch
            self.jobs += self.queries.batch_jobs(batch, range(batch.jobs))

    def wanted_jobs(self, caller: Principal, wanted: JobFilter) -> list[JobRecord]:
        mine = (job for job in self.jobs if caller.sees(job.project))
        return [job for job in mine if wanted.takes_from(self.batches[job.batch_id]) and wanted.takes(job)]

    def wanted_batches(self, caller: Principal, takes: Callable[[BatchRecord], bool]) -> set[UUID]:
        return {batch.id for batch in self.batches.values() if caller.sees(batch.project) and takes(batch)}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A ledger for all tests that only read, on both databases."""
    template = request.getfixturevalue(f"{request.param}_template")
    if request.param == "sqlite":
        url = f"sqlite:///{shutil.copy(template, tmp_path_factory.mktemp('queries') / 'ledger.db')}"
    else:
        url = request.getfixturevalue("postgres_server").create("queries", template)
    database = Database.open(OpenDatabase(url=url), create=True)
    yield Ledger(database)
    database.close()


@pytest.fixture
def own_ledger(database: Database) -> Ledger:
    """A ledger that the test may change."""
    return Ledger(database)


def _first(ledger: Ledger, status: JobStatus) -> JobRecord:
    return next(job for job in ledger.jobs if job.status is status)


def _job_filters(ledger: Ledger) -> dict[str, JobFilter]:
    """Return each filter alone."""
    some = ledger.jobs[77]
    few = tuple(job.id for job in ledger.jobs[10:200:37])
    return {
        "nothing": JobFilter(),
        "ids": JobFilter(ids=(*few, new_batch_id())),
        "a short prefix": JobFilter(id_prefix=some.id.hex[:2]),
        "a prefix": JobFilter(id_prefix=some.id.hex[:9]),
        "a whole id": JobFilter(id_prefix=some.id.hex),
        "a batch": JobFilter(batches=(some.batch_id,)),
        "batches": JobFilter(batches=ledger.filled.batches[5:50:7]),
        "many batches": JobFilter(batches=ledger.filled.batches[::4]),
        "a project": JobFilter(projects=(PLAN.project(1),)),
        "projects": JobFilter(projects=(PLAN.project(1), PLAN.project(2), "elsewhere")),
        "a user": JobFilter(users=(PLAN.user(1, 2),)),
        "users": JobFilter(users=(PLAN.user(1, 2), PLAN.user(0, 0))),
        "a device": JobFilter(devices=(DEVICES[1],)),
        "devices": JobFilter(devices=DEVICES[1:3]),
        "a status": JobFilter(statuses=(JobStatus.ERROR,)),
        "statuses": JobFilter(statuses=(JobStatus.PENDING, JobStatus.RUNNING)),
        "a priority": JobFilter(priorities=(Priority.HIGH,)),
        "an origin": JobFilter(origins=(Origin.CLIENT,)),
        "another origin": JobFilter(origins=(Origin.AZURE, Origin.UNKNOWN)),
        "least runs": JobFilter(runs_min=100),
        "most runs": JobFilter(runs_max=99),
        "runs": JobFilter(runs_min=50, runs_max=500),
        "failed": JobFilter(failed=True),
        "not failed": JobFilter(failed=False),
        "started": JobFilter(started_from=SOME_TIME),
        "ended": JobFilter(ended_to=SOME_TIME),
        "created after": JobFilter(created_from=SOME_TIME),
        "created before": JobFilter(created_to=SOME_TIME),
        "created at": JobFilter(created_from=some.created, created_to=some.created),
        "a tag": JobFilter(tags_any=(TAGS[3],)),
        "any tag": JobFilter(tags_any=TAGS[3:9]),
        "all tags": JobFilter(tags_all=ledger.batches[_tagged(ledger, 2)].doc.tags[:2]),
        "tags both ways": JobFilter(tags_any=TAGS, tags_all=ledger.batches[_tagged(ledger, 1)].doc.tags[:1]),
        "an unknown tag": JobFilter(tags_any=("nobody's",)),
    }


def _tagged(ledger: Ledger, count: int) -> UUID:
    return next(batch.id for batch in ledger.batches.values() if len(batch.doc.tags) >= count)


Wanted = TypeVar("Wanted", JobFilter, BatchFilter)


def _criteria(wanted: JobFilter | BatchFilter) -> dict[str, Any]:
    named = ((name, getattr(wanted, name)) for name in wanted.__struct_fields__)
    return {name: value for name, value in named if value not in ((), "", None)}


def _combined(one: Wanted, other: Wanted) -> Wanted:
    """Return the filter with all criteria of both; of a criterion that both have, that of the other."""
    return msgspec.structs.replace(one, **_criteria(other))


def _random_page(chance: random.Random) -> PageRequest:
    limit, offset = chance.choice((7, 25)), chance.choice((0, 0, 5, 90))
    return PageRequest(descending=chance.random() < 0.5, limit=limit, offset=offset)


# -- jobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", CALLERS)
def test_each_filter_finds_the_jobs_that_it_means(ledger: Ledger, who: str) -> None:
    for name, wanted in _job_filters(ledger).items():
        found = ledger.queries.jobs(CALLERS[who], wanted, paging=ALL)
        expected = ledger.wanted_jobs(CALLERS[who], wanted)
        assert {job.id: job for job in found.rows} == {job.id: job for job in expected}, name
        assert found.total == len(found.rows) == len(expected), name


def test_two_filters_together_select_and_order_jobs_exactly(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of filters, each with another order and page, from a scan of all jobs or batch after batch."""
    monkeypatch.setattr(lists, "_FEW_JOBS", 0)
    chance = random.Random(3)
    for one, other in itertools.combinations(_job_filters(ledger).values(), 2):
        wanted, paging = _combined(one, other), _random_page(chance)
        caller, order = chance.choice([*CALLERS.values()]), chance.choice([*JobOrder])
        key, found = _job_order_key(ledger, order), {job.id: job for job in ledger.wanted_jobs(caller, wanted)}
        ids = _in_order({job.id: key(job) for job in found.values()}, descending=paging.descending)
        rows = [found[identity] for identity in ids[paging.offset : paging.offset + paging.limit]]
        counts = Counter(job.status for job in found.values())
        large_batch, few_pages = chance.choice(((NEVER, 0), (0, 0), (0, NEVER), (0, NEVER)))
        monkeypatch.setattr(lists, "_LARGE_BATCH", large_batch)
        monkeypatch.setattr(lists, "_FEW_PAGES", few_pages)
        how = (wanted, order, paging, large_batch, few_pages)
        assert ledger.queries.jobs(caller, wanted, order, paging) == lists.ListPage(rows, len(ids)), how
        assert ledger.queries.job_counts(caller, wanted) == {status: counts[status] for status in JobStatus}, how


def test_only_jobs_of_matching_large_batches_are_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    def joins(wanted: JobFilter, large_batch: int, few_pages: int = NEVER) -> int:
        monkeypatch.setattr(lists, "_LARGE_BATCH", large_batch)
        monkeypatch.setattr(lists, "_FEW_PAGES", few_pages)
        statements.clear()
        ledger.queries.jobs(OPERATOR, wanted)
        return sum("jobs.id BETWEEN batches.id" in statement for statement in statements)

    monkeypatch.setattr(lists, "_FEW_JOBS", 0)
    mine = JobFilter(users=(PLAN.user(1, 2),), statuses=(JobStatus.DONE,))
    event.listen(ledger.database.engine, "before_cursor_execute", note)
    try:
        assert joins(mine, 0) == 2, "the total, and the page"
        assert joins(mine, 0, 0) == 1, "the total; a page of a long list comes from the index"
        assert joins(mine, NEVER) == 0
        assert joins(msgspec.structs.replace(mine, batches=ledger.filled.batches[:3]), NEVER, 0) >= 1
        assert joins(JobFilter(devices=DEVICES, runs_min=50), 0) == 0, "all batches match"
        assert joins(JobFilter(statuses=(JobStatus.DONE,), runs_min=50), 0) == 0, "jobs of every batch may match"
    finally:
        event.remove(ledger.database.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("order", JobOrder)
def test_sqlite_finds_the_batches_before_their_jobs(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, order: JobOrder
) -> None:
    if not ledger.database.is_sqlite:
        pytest.skip("PostgreSQL is asked for this order by a lateral join")
    monkeypatch.setattr(lists, "_FEW_JOBS", 0)
    monkeypatch.setattr(lists, "_LARGE_BATCH", 0)
    plans: list[str] = []

    def explain(connection: Any, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "JOIN jobs ON jobs.id BETWEEN batches.id" in statement:
            steps = connection.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append(next(step[-1] for step in steps if " batches" in step[-1] or " jobs" in step[-1]))

    event.listen(ledger.database.engine, "before_cursor_execute", explain)
    try:
        ledger.queries.jobs(OPERATOR, JobFilter(tags_any=(TAGS[3],)), order)
    finally:
        event.remove(ledger.database.engine, "before_cursor_execute", explain)
    assert len(plans) == 2, "the total, and the page"
    assert all(" batches" in plan for plan in plans), plans


def test_every_filter_finds_something_and_leaves_something_out(ledger: Ledger) -> None:
    """Otherwise the tests above would show nothing."""
    empty = {"another origin", "an unknown tag"}
    for name, wanted in _job_filters(ledger).items():
        found = len(ledger.wanted_jobs(OPERATOR, wanted))
        assert (found == 0) == (name in empty), name
        assert (found == PLAN.jobs) == (name in {"nothing", "an origin", "a short prefix"}), name


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order", JobOrder)
def test_jobs_come_in_the_order_that_is_asked_for(ledger: Ledger, order: JobOrder, *, descending: bool) -> None:
    key = _job_order_key(ledger, order)
    expected = _in_order({job.id: key(job) for job in ledger.jobs}, descending=descending)
    found = ledger.queries.jobs(OPERATOR, JobFilter(), order, PageRequest(descending=descending, limit=100_000))
    assert [job.id for job in found.rows] == expected


def _job_order_key(ledger: Ledger, order: JobOrder) -> Callable[[JobRecord], Any]:
    of_batch: dict[JobOrder, Callable[[BatchRecord], Any]] = {
        JobOrder.DEVICE: lambda batch: batch.device,
        JobOrder.USER: lambda batch: batch.doc.user,
        JobOrder.PRIORITY: lambda batch: RANK[batch.priority],
    }
    if order in of_batch:
        return lambda job: of_batch[order](ledger.batches[job.batch_id])
    return job_key(order) or (lambda _: 0)


def _in_order(keys: dict[UUID, Any], *, descending: bool) -> list[UUID]:
    """Sort by key and id, with records without a key last."""
    with_key = sorted(((key, identity) for identity, key in keys.items() if key is not None), reverse=descending)
    without = sorted((identity for identity, key in keys.items() if key is None), reverse=descending)
    return [identity for _, identity in with_key] + without


@pytest.mark.parametrize("merged_max", [0, 50])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("who", CALLERS)
def test_the_pages_of_a_list_are_the_list(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, who: str, merged_max: int, *, descending: bool
) -> None:
    monkeypatch.setattr(lists, "MERGED_MAX", merged_max)
    wanted, caller = JobFilter(statuses=(JobStatus.DONE,), runs_min=50), CALLERS[who]
    expected = _in_order({job.id: job.created for job in ledger.wanted_jobs(caller, wanted)}, descending=descending)
    found: list[UUID] = []
    while True:
        paging = PageRequest(descending=descending, limit=23, offset=len(found))
        page = ledger.queries.jobs(caller, wanted, paging=paging)
        assert page.total == len(expected)
        found += [job.id for job in page.rows]
        if len(found) >= page.total:
            break
    assert found == expected
    beyond = ledger.queries.jobs(caller, wanted, paging=PageRequest(offset=len(expected) + 5))
    assert (beyond.rows, beyond.total) == ([], len(expected))


def test_a_page_and_its_total_are_of_one_moment(own_ledger: Ledger) -> None:
    with own_ledger.database.read() as connection:
        before = connection.execute(select(func.count()).select_from(projects)).scalar_one()
        with own_ledger.database.write() as other:
            other.execute(projects.insert(), {"id": "new", "name": "new", "created_ms": 1})
        assert connection.execute(select(func.count()).select_from(projects)).scalar_one() == before


@pytest.mark.parametrize("text", ["%'\"; DROP TABLE jobs; --", "💥", "ü" * 200, "\\", "$1 %s :x"])
def test_any_text_may_be_searched_for(ledger: Ledger, text: str) -> None:
    for wanted in (JobFilter(users=(text,)), JobFilter(tags_all=(text, "")), JobFilter(devices=(text, DEVICES[0]))):
        assert ledger.queries.jobs(OPERATOR, wanted).total == len(ledger.wanted_jobs(OPERATOR, wanted))
    assert ledger.queries.jobs(OPERATOR, JobFilter()).total == PLAN.jobs


# -- batches --------------------------------------------------------------------------------------------


def _batch_filters(ledger: Ledger) -> dict[str, tuple[BatchFilter, Callable[[BatchRecord], bool]]]:
    some = ledger.batches[ledger.filled.batches[30]]
    ids = ledger.filled.batches[5:50:7]
    two = ledger.batches[_tagged(ledger, 2)].doc.tags[:2]
    return {
        "nothing": (BatchFilter(), lambda _: True),
        "ids": (BatchFilter(ids=ids), lambda batch: batch.id in ids),
        "a prefix": (BatchFilter(id_prefix=some.id.hex[:9]), lambda batch: batch.id.hex[:9] == some.id.hex[:9]),
        "projects": (BatchFilter(projects=(PLAN.project(1),)), lambda batch: batch.project == PLAN.project(1)),
        "users": (BatchFilter(users=(PLAN.user(1, 2),)), lambda batch: batch.doc.user == PLAN.user(1, 2)),
        "devices": (BatchFilter(devices=DEVICES[:2]), lambda batch: batch.device in DEVICES[:2]),
        "a short id": (BatchFilter(short_id=short_id(some.id)), lambda batch: batch.id == some.id),
        "a name": (BatchFilter(names=("batch 30",)), lambda batch: batch.doc.name == "batch 30"),
        "names": (BatchFilter(names=("batch 7", "batch 8")), lambda it: it.doc.name in {"batch 7", "batch 8"}),
        "all of these or live": (
            BatchFilter(statuses=(BatchStatus.ERROR,), open=False, jobs_min=3, with_live=True),
            lambda batch: (
                not batch.status.terminal or (batch.status is BatchStatus.ERROR and not batch.open and batch.jobs >= 3)
            ),
        ),
        "statuses": (
            BatchFilter(statuses=(BatchStatus.PENDING, BatchStatus.PAUSED)),
            lambda batch: batch.status in {BatchStatus.PENDING, BatchStatus.PAUSED},
        ),
        "open": (BatchFilter(open=True), lambda batch: batch.open),
        "closed": (BatchFilter(open=False), lambda batch: not batch.open),
        "least jobs": (BatchFilter(jobs_min=10), lambda batch: batch.jobs >= 10),
        "most jobs": (BatchFilter(jobs_max=9), lambda batch: batch.jobs <= 9),
        "priorities": (BatchFilter(priorities=(Priority.LOW,)), lambda batch: batch.priority is Priority.LOW),
        "origins": (BatchFilter(origins=(Origin.AZURE,)), lambda _: False),
        "started": (
            BatchFilter(started_from=SOME_TIME),
            lambda batch: batch.started is not None and batch.started >= SOME_TIME,
        ),
        "ended": (
            BatchFilter(ended_to=SOME_TIME),
            lambda batch: batch.ended is not None and batch.ended <= SOME_TIME,
        ),
        "created": (
            BatchFilter(created_from=some.created, created_to=NOW - timedelta(days=2)),
            lambda batch: some.created <= batch.created <= NOW - timedelta(days=2),
        ),
        "any tag": (BatchFilter(tags_any=TAGS[:4]), lambda batch: bool({*TAGS[:4]} & {*batch.doc.tags})),
        "all tags": (BatchFilter(tags_all=two), lambda batch: {*two} <= {*batch.doc.tags}),
    }


@pytest.mark.parametrize("who", CALLERS)
def test_each_filter_finds_the_batches_that_it_means(ledger: Ledger, who: str) -> None:
    for name, (wanted, takes) in _batch_filters(ledger).items():
        found = ledger.queries.batches(CALLERS[who], wanted, paging=ALL)
        expected = ledger.wanted_batches(CALLERS[who], takes)
        assert {batch.id for batch in found.rows} == expected, name
        assert found.total == len(found.rows) == len(expected), name
        if not wanted.with_live:
            assert {
                it.id for it in ledger.batches.values() if CALLERS[who].sees(it.project) and wanted.takes(it)
            } == expected
        assert who != "operator" or expected or name == "origins", f"{name} finds nothing: the test shows nothing"


def test_a_listed_batch_is_the_batch_without_its_sequence(ledger: Ledger) -> None:
    for batch in ledger.queries.batches(OPERATOR, BatchFilter(), paging=ALL).rows:
        whole = ledger.batches[batch.id]
        assert whole.doc.sequence == SEQUENCE
        assert batch == msgspec.structs.replace(whole, doc=msgspec.structs.replace(whole.doc, sequence=None))


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order", BatchOrder)
def test_batches_come_in_the_order_that_is_asked_for(ledger: Ledger, order: BatchOrder, *, descending: bool) -> None:
    key = _BATCH_ORDER_KEYS[order]
    expected = _in_order({batch.id: key(batch) for batch in ledger.batches.values()}, descending=descending)
    found = ledger.queries.batches(OPERATOR, BatchFilter(), order, PageRequest(descending=descending))
    assert [batch.id for batch in found.rows] == expected


_BATCH_ORDER_KEYS: dict[BatchOrder, Callable[[BatchRecord], Any]] = {
    BatchOrder.CREATED: lambda batch: batch.created,
    BatchOrder.UPDATED: lambda batch: batch.updated,
    BatchOrder.STARTED: lambda batch: batch.started,
    BatchOrder.ENDED: lambda batch: batch.ended,
    BatchOrder.STATUS: lambda batch: batch.status.letter,
    BatchOrder.OPEN: lambda batch: batch.open,
    BatchOrder.JOBS: lambda batch: batch.jobs,
    BatchOrder.DEVICE: lambda batch: batch.device,
    BatchOrder.USER: lambda batch: batch.doc.user,
    BatchOrder.PRIORITY: lambda batch: RANK[batch.priority],
    BatchOrder.ORIGIN: lambda _: 0,
    BatchOrder.ID: lambda _: 0,
}


def test_two_filters_together_select_and_order_batches_exactly(ledger: Ledger) -> None:
    """Every pair of filters, each with another order and page."""
    chance = random.Random(4)
    for (one, takes), (other, also_takes) in itertools.combinations(_batch_filters(ledger).values(), 2):
        if _criteria(one).keys() & _criteria(other).keys():
            continue
        wanted, paging = _combined(one, other), _random_page(chance)
        caller, order = chance.choice([*CALLERS.values()]), chance.choice([*BatchOrder])
        found = ledger.wanted_batches(caller, takes) & ledger.wanted_batches(caller, also_takes)
        keys = {identity: _BATCH_ORDER_KEYS[order](ledger.batches[identity]) for identity in found}
        ids = _in_order(keys, descending=paging.descending)
        page = ledger.queries.batches(caller, wanted, order, paging)
        how = (wanted, order, paging)
        assert [batch.id for batch in page.rows] == ids[paging.offset : paging.offset + paging.limit], how
        assert page.total == len(ids), how
        counts = Counter(ledger.batches[identity].status for identity in ids)
        assert ledger.queries.batch_counts(caller, wanted) == {status: counts[status] for status in BatchStatus}, how


# -- by id ----------------------------------------------------------------------------------------------


def test_a_job_is_the_same_by_its_id_and_in_a_list(ledger: Ledger) -> None:
    listed = {job.id: job for job in ledger.queries.jobs(OPERATOR, JobFilter(), paging=ALL).rows}
    for job in ledger.jobs[::13]:
        assert ledger.queries.job(OPERATOR, job.id) == listed[job.id] == job


def test_a_job_that_failed_because_of_its_batch_shows_why(ledger: Ledger) -> None:
    batch = next(each for each in ledger.batches.values() if each.status is BatchStatus.ERROR and each.jobs)
    assert batch.fault is not None
    for job in (ledger.queries.job(OPERATOR, job_id(batch.id, 0)), *ledger.queries.batch_jobs(batch, [0])):
        assert job is not None
        assert job.faults == (batch.fault,)
    assert ledger.queries.jobs(OPERATOR, JobFilter(batches=(batch.id,))).rows[0].faults == (batch.fault,)


def test_jobs_of_a_batch_come_as_they_were_asked_for(ledger: Ledger) -> None:
    batch = max(ledger.batches.values(), key=lambda batch: batch.jobs)
    found = ledger.queries.batch_jobs(batch, [5, 0, batch.jobs - 1, batch.jobs])
    assert [job.index for job in found] == [5, 0, batch.jobs - 1]
    assert ledger.queries.batch_jobs(batch, []) == []


def test_a_result_is_what_was_recorded(ledger: Ledger) -> None:
    packed = ledger.queries.packed_result(_first(ledger, JobStatus.DONE).id)
    assert packed is not None
    assert decode_result(packed).counter == {"01": 60, "10": 40}
    for status in (JobStatus.ERROR, JobStatus.PENDING):
        assert ledger.queries.packed_result(_first(ledger, status).id) is None


def test_batches_of_other_projects_are_not_found(ledger: Ledger) -> None:
    for caller, project in ((USER, 0), (MEMBER, 1), (STRANGER, 2)):
        batch_id, _ = ledger.filled.of_project(project)[3]
        queries = ledger.queries
        assert queries.batch(caller, batch_id) is None
        assert queries.job(caller, job_id(batch_id, 0)) is None
        theirs = (PLAN.project(project),)
        assert queries.jobs(caller, JobFilter(projects=theirs)) == lists.ListPage([], 0)
        assert queries.batches(caller, BatchFilter(projects=theirs)) == lists.ListPage([], 0)
        assert queries.jobs(caller, JobFilter(batches=(batch_id,))) == lists.ListPage([], 0)
        assert queries.batches(caller, BatchFilter(ids=(batch_id,))) == lists.ListPage([], 0)
        assert not any(queries.job_counts(caller, JobFilter(projects=theirs)).values())
        assert not any(queries.batch_counts(caller, BatchFilter(projects=theirs)).values())
    assert ledger.queries.batch(OPERATOR, new_batch_id()) is None
    assert ledger.queries.job(OPERATOR, new_batch_id()) is None


def test_a_user_without_projects_finds_nothing(ledger: Ledger) -> None:
    nobody = Principal("nobody", Role.USER)
    assert ledger.queries.jobs(nobody, JobFilter()) == lists.ListPage([], 0)
    assert ledger.queries.job(nobody, ledger.jobs[0].id) is None
    assert not any(ledger.queries.job_counts(nobody, JobFilter()).values())
    assert statistics.last_activity(ledger.database, nobody) == []


# -- counts and transitions -----------------------------------------------------------------------------


@pytest.mark.parametrize("who", CALLERS)
def test_counters_equal_the_counted_rows(ledger: Ledger, who: str) -> None:
    caller = CALLERS[who]
    for wanted in (
        JobFilter(),
        JobFilter(devices=DEVICES[:2]),
        JobFilter(statuses=(JobStatus.DONE, JobStatus.PENDING)),
        JobFilter(projects=(PLAN.project(1),), devices=(DEVICES[0],), statuses=(JobStatus.ERROR,)),
    ):
        expected = Counter(job.status for job in ledger.wanted_jobs(caller, wanted))
        assert ledger.queries.job_counts(caller, wanted) == {status: expected[status] for status in JobStatus}
        counted = msgspec.structs.replace(wanted, origins=(Origin.CLIENT,))  # the counters do not have it
        assert ledger.queries.job_counts(caller, counted) == {status: expected[status] for status in JobStatus}
    of_batches = Counter(batch.status for batch in ledger.batches.values() if caller.sees(batch.project))
    assert ledger.queries.batch_counts(caller, BatchFilter()) == {status: of_batches[status] for status in BatchStatus}


def test_the_transitions_of_a_job_are_only_its_own(own_ledger: Ledger) -> None:
    batch = next(batch for batch in own_ledger.batches.values() if batch.jobs > 11)
    rows = [
        (7, "0PR 1PR 10PR 11PR", 10),
        (8, "1RP 0RD 10RE 1PR", 20),
        (9, "2-9PC 11RC 1RD RD", 30),
    ]
    columns = ("position", "batch", "project", "sequence_number", "time_us", "words")
    identity = own_ledger.database.id(batch.id)
    with own_ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM transitions")
        load(
            connection, "transitions", columns, [(at, identity, 1, first, at * 100, words) for at, words, first in rows]
        )

    def list_events(index: int) -> list[tuple[int, str]]:
        return [(event.sequence, event.type) for event in own_ledger.queries.transitions(job_id(batch.id, index))]

    assert list_events(0) == [(10, "job.running"), (21, "job.done")]
    assert list_events(1) == [(11, "job.running"), (20, "job.pending"), (23, "job.running"), (39, "job.done")]
    assert list_events(5) == [(33, "job.canceled")]
    assert list_events(10) == [(12, "job.running"), (22, "job.error")]
    assert list_events(11) == [(13, "job.running"), (38, "job.canceled")]
    assert list_events(12) == []


# -- devices and projects -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_waiting_work_of_a_device_is_listed_by_priority(ledger: Ledger, device: str) -> None:
    waiting: defaultdict[Priority, list[JobRecord]] = defaultdict(list)
    for job in ledger.jobs:
        batch = ledger.batches[job.batch_id]
        if batch.device == device and job.status is JobStatus.PENDING:
            waiting[batch.priority].append(job)
    assert statistics.queue_sizes(ledger.database, device) == {
        priority: statistics.QueueSize(
            batches=len({job.batch_id for job in waiting[priority]}),
            jobs=len(waiting[priority]),
            shots=sum(job.spec.runs or 0 for job in waiting[priority]),
        )
        for priority in Priority
    }


def test_some_work_waits(ledger: Ledger) -> None:
    sizes = [size for device in DEVICES for size in statistics.queue_sizes(ledger.database, device).values()]
    assert any(size.jobs for size in sizes)
    assert all(size == statistics.QueueSize() for size in statistics.queue_sizes(ledger.database, "NONE").values())


def test_the_queue_time_is_the_mean_over_those_that_began(ledger: Ledger) -> None:
    since = NOW - timedelta(days=20)
    hour = since.replace(minute=0, second=0, microsecond=0)
    waited = [
        job.queue_s
        for job in ledger.jobs
        if job.ended and job.ended >= hour and job.queue_s and ledger.batches[job.batch_id].device == DEVICES[0]
    ]
    found = statistics.queue_times(ledger.database, since)[DEVICES[0]]
    assert found.jobs == len(waited) > 0
    assert found.seconds == pytest.approx(sum(waited) / len(waited))
    assert "NONE" not in statistics.queue_times(ledger.database, since)


@pytest.mark.parametrize("span", Span)
@pytest.mark.parametrize("who", CALLERS)
def test_jobs_are_counted_by_span_and_device(ledger: Ledger, who: str, span: Span) -> None:
    since, until, caller = NOW - timedelta(days=20), NOW - timedelta(days=1), CALLERS[who]
    expected: defaultdict[datetime, Counter[str]] = defaultdict(Counter)
    for job in ledger.jobs:
        hour = until.replace(minute=59, second=59, microsecond=999_999)
        if caller.sees(job.project) and span.start(since) <= job.created <= hour:
            expected[span.start(job.created)][ledger.batches[job.batch_id].device] += 1
    found = statistics.job_counts(ledger.database, caller, (), span, since, until)
    assert {each.start: each.devices for each in found} == expected
    assert [each.start for each in found] == sorted(expected)
    assert statistics.job_counts(ledger.database, caller, ("elsewhere",), span, since, until) == []


def test_the_last_activity_is_listed_for_the_callers_projects(own_ledger: Ledger) -> None:
    with own_ledger.database.write() as connection:
        connection.execute(update(projects).where(projects.c.id == PLAN.project(2)).values(last_activity_ms=None))
    found = statistics.last_activity(own_ledger.database, MEMBER)
    assert [(each.project, each.time) for each in found] == [(PLAN.project(0), NOW), (PLAN.project(2), None)]
    (only,) = statistics.last_activity(own_ledger.database, OPERATOR, (PLAN.project(1), "elsewhere"))
    assert only.project == PLAN.project(1)
    assert statistics.last_activity(own_ledger.database, USER, (PLAN.project(0),)) == []
