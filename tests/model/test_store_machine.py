"""A state machine that acts on the store like producers, workers, crashes and lost replies, in any order.

Beside it runs a small model in Python, which follows :data:`JOB_TABLE` and :data:`BATCH_TABLE`. What a script may
choose (which job it hands out) is read from its reply and checked against the model; the model predicts everything
else. After each step the whole content of Redis is compared with the model and with itself.

Batches may depend on others, and may have other rules. Redis may lose its last writes, which the ledger then restores.
Time does not pass: leases are long, and due times are moved into the past.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from uuid import UUID

import fakeredis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace
from redis.asyncio import Redis
from tests.support.effort import effort
from tests.support.power_loss import Checkpoint, Recorded, checkpoint, fall_back, recorded
from tests.support.records import read_record
from tests.support.usage import expected_counts, found_counts

from tweezer.duties import Backoff
from tweezer.model.errors import Conflict, FaultKind, Unavailable
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import (
    BATCH_TABLE,
    JOB_BY_LETTER,
    JOB_TABLE,
    BatchEvent,
    BatchStatus,
    JobEvent,
    JobStatus,
    Stage,
)
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Limits, Outcome, OutcomeKind, Priority, Result
from tweezer.model.rules import Dependency, OnFailures, Rules, When
from tweezer.store.connection import Store
from tweezer.store.keys import Key
from tweezer.store.producers import CancelAnswer
from tweezer.store.scripts import CRASHES_MAX, LOST_MAX, StoreConfig
from tweezer.store.workers import Grant, HeldJob, JobProgress, NextStep, Settlement

T = TypeVar("T")

DEVICE = "EMU"
LEASE_S = 10_000.0
PROJECTS = ("a", "b")
BATCHES_MAX = 4
JOBS_MAX = 40
RETRY_S = 5_000.0
FAULT = Fault("internal", "it failed")
UNMET = Fault("dependency", "its message depends on the end of another batch")
FAILED = Fault("failures", "its message has the number of failed jobs")
EXPIRED = Fault("expired", "its message has the queue timeout")
BY_RULES = (UNMET, FAILED, EXPIRED)

# What a lane may report: an outcome, and for a retry whether the lane crashed, and whether the retry has a delay.
REPORTS = {
    "done": Outcome(OutcomeKind.DONE, result=Result(counter={"0": 1})),
    "error": Outcome(OutcomeKind.ERROR, fault=FAULT, cause=FaultKind.USER),
    "canceled": Outcome(OutcomeKind.CANCELED),
    "retry": Outcome(OutcomeKind.RETRY, fault=FAULT, cause=FaultKind.TRANSIENT),
    "retry later": Outcome(OutcomeKind.RETRY, fault=FAULT, cause=FaultKind.TRANSIENT, retry_in_s=RETRY_S),
    "crash": Outcome(OutcomeKind.RETRY, fault=FAULT, cause=FaultKind.CRASH),
}
ENDS = {"done": JobEvent.FINISH, "error": JobEvent.FAIL, "canceled": JobEvent.STOP}

_namespaces, _runs = itertools.count(), itertools.count()


BEGINS = itertools.count(1)


@dataclass
class Job:
    """A job in the model.

    ``token`` is that of the ticket that began or settled it last; ``begun`` is the number of its last begin, among all
    begins.
    """

    status: JobStatus = JobStatus.PENDING
    attempt: int = 0
    token: str | None = None
    begun: int = 0
    cancel_requested: bool = False
    delayed: bool = False
    crashes: int = 0
    lost: int = 0
    transient: int = 0


@dataclass
class Batch:
    """A batch in the model.

    ``transitions`` counts those of the batch and of its jobs. ``waits`` has the batches that it waits for.
    ``uncounted`` is the number of jobs that had failed when its failure threshold began to count, and ``is_overdue``
    whether its queue timeout has passed.
    """

    id: UUID
    project: str
    retries: int
    open: bool
    jobs: list[Job]
    status: BatchStatus = BatchStatus.PENDING
    end: BatchEvent = BatchEvent.COMPLETE
    began: bool = False
    failures: int = 0
    fault: Fault | None = None
    transitions: int = 1
    waits: dict[UUID, When] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    uncounted: int = 0
    retried: int = 0
    is_overdue: bool = False

    def apply(self, event: BatchEvent) -> None:
        after = BATCH_TABLE.get((self.status, event), self.status)
        if event is BatchEvent.RESUME and self.status is BatchStatus.PAUSED and not self.began:
            after = BatchStatus.PENDING
        self.transitions += after is not self.status
        self.status = after

    def apply_to(self, index: int, event: JobEvent, *, token: str | None = None) -> None:
        job = self.jobs[index]
        after = JOB_TABLE.get((job.status, event), job.status)
        if job.status is JobStatus.RUNNING and after is JobStatus.PENDING and job.cancel_requested:
            after = JobStatus.CANCELED
        self.transitions += after is not job.status
        job.status = after
        if event is JobEvent.BEGIN:
            self.began = True
            job.attempt += 1
            job.token = token
            job.begun = next(BEGINS)
            self.apply(BatchEvent.BEGIN)

    def cancel(self, index: int) -> None:
        job = self.jobs[index]
        job.cancel_requested = job.cancel_requested or job.status is JobStatus.RUNNING
        self.apply_to(index, JobEvent.CANCEL)

    def doom(self) -> None:
        if self.status.terminal:
            return
        self.open = False
        self.fault = FAULT
        if self.end is BatchEvent.COMPLETE:
            self.end = BatchEvent.DOOM
        for index in self.of(JobStatus.PENDING):
            self.apply_to(index, JobEvent.DOOM)

    def bar(self) -> None:
        """Cancel the batch, because another one did not end as required."""
        self.open = False
        self.fault = self.fault or UNMET
        self.end = BatchEvent.CANCEL
        for index in self.of(JobStatus.PENDING):
            self.apply_to(index, JobEvent.CANCEL)
        self.conclude()

    def use_retry(self) -> bool:
        """Count a retry; return False if the batch may have no further one."""
        if self.rules.total_retries is None:
            return True
        if self.retried >= self.rules.total_retries:
            return False
        self.retried += 1
        return True

    def limit_failures(self) -> None:
        """Pause or cancel the batch if so many jobs have failed."""
        failed, threshold = len(self.of(JobStatus.ERROR)), self.rules.failure_threshold
        if threshold is None or failed - self.uncounted < threshold or self.end is not BatchEvent.COMPLETE:
            return
        if self.rules.on_failures is OnFailures.PAUSE and not self.open and not self.busy:
            return
        self.uncounted = failed
        if self.rules.on_failures is OnFailures.PAUSE:
            self.apply(BatchEvent.PAUSE)
        else:
            self.cancel_all(FAILED)

    def cancel_all(self, fault: Fault | None = None) -> None:
        self.open = False
        self.fault = self.fault or fault
        if self.end is BatchEvent.COMPLETE:
            self.end = BatchEvent.CANCEL
        for index in self.of(JobStatus.PENDING, JobStatus.RUNNING):
            self.cancel(index)

    def expire(self) -> None:
        """End the batch, because it did not start in time."""
        assert self.is_overdue
        assert not self.began
        self.end = BatchEvent.OVERDUE
        self.cancel_all(EXPIRED)

    @property
    def may_expire(self) -> bool:
        """Whether it has a deadline."""
        timed = self.rules.queue_timeout_s is not None
        return timed and not self.began and not self.status.terminal and not self.waits

    def satisfies(self, when: When) -> bool:
        """Return whether the end of this batch satisfies a dependency."""
        match when:
            case When.DONE:
                return self.status is BatchStatus.DONE
            case When.ENDED:
                return True
            case When.ERROR:
                return self.status is not BatchStatus.DONE or bool(self.of(JobStatus.ERROR))

    @property
    def is_complete(self) -> bool:
        """Whether it has no work left, and nothing to wait for."""
        return not self.open and not self.busy and (not self.waits or self.end is not BatchEvent.COMPLETE)

    def conclude(self) -> None:
        """Apply rule 14."""
        if self.is_complete and not self.status.terminal:
            self.apply(self.end)
        if self.status.terminal:
            self.waits = {}

    def follow(self, ledger: Batch, holders: list[Holder]) -> set[int]:
        """Apply what the ledger restores after a loss; return the jobs that end by it."""
        self.jobs += [Job() for _ in ledger.jobs[len(self.jobs) :]]
        ended = {index for index in self.of(JobStatus.PENDING, JobStatus.RUNNING) if ledger.jobs[index].status.terminal}
        for index in ended:
            self.jobs[index] = copy.copy(ledger.jobs[index])
        moved = [index for index in self.of(JobStatus.PENDING, JobStatus.RUNNING) if self.is_behind(ledger, index)]
        self.open = self.open and ledger.open
        self.began = self.began or ledger.began
        self.fault = self.fault or ledger.fault
        if self.end is BatchEvent.COMPLETE:
            self.end = ledger.end
        self.waits = {parent: when for parent, when in self.waits.items() if parent in ledger.waits}
        if ledger.transitions > self.transitions:
            self.uncounted, self.retried, self.is_overdue = ledger.uncounted, ledger.retried, ledger.is_overdue
        self.status, self.transitions = ledger.status, ledger.transitions
        for index in moved:
            job = self.jobs[index] = copy.copy(ledger.jobs[index])
            job.delayed = False
            for holder in holders:
                holder.held.discard(index)
            by = [holder for holder in holders if holder.grant.token == job.token]
            if job.status is JobStatus.RUNNING and by:
                by[0].held.add(index)
            elif job.status is JobStatus.RUNNING:
                self.apply_to(index, JobEvent.GIVE_BACK)
        return ended

    def is_behind(self, ledger: Batch, index: int) -> bool:
        """Return whether the ledger knows more of a live job."""
        mine, theirs = self.jobs[index], ledger.jobs[index]
        before, after = int(mine.token or 0), int(theirs.token or 0)
        if after == before:
            return after > 0 and mine.status is JobStatus.RUNNING and theirs.status is JobStatus.PENDING
        return theirs.begun > mine.begun

    def of(self, *statuses: JobStatus) -> list[int]:
        return [index for index, job in enumerate(self.jobs) if job.status in statuses]

    @property
    def busy(self) -> bool:
        return bool(self.of(JobStatus.PENDING, JobStatus.RUNNING))


@dataclass
class Holder:
    """A worker that took a ticket. ``held`` are its jobs if its token is the current one."""

    grant: Grant
    batch: Batch
    held: set[int]
    lapsed: bool = False
    last: tuple[dict[int, str], int] | None = None
    stale: bool = field(default=False)

    @property
    def name(self) -> str:
        return str(self.grant.ticket)


@dataclass
class World:
    """The model of everything that Redis holds."""

    batches: list[Batch] = field(default_factory=list)
    forgotten: list[Batch] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)
    device_paused: bool = False
    shut: bool = False
    newer: set[UUID] = field(default_factory=set)  # batches that were submitted after the last restart of Redis
    unswept: set[tuple[UUID, UUID]] = field(default_factory=set)  # batches that a sweep releases from another one


def pick(among: list[T], at: int) -> T:
    return among[at % len(among)]


NUMBERS = st.integers(0, 1000)
WANTED = st.sampled_from([1, 2, 4, 4, 6, 6, 0])
REPORTED = st.lists(st.sampled_from(sorted(REPORTS)), min_size=1, max_size=4)
RULES = st.builds(
    Rules,
    queue_timeout_s=st.sampled_from([None, LEASE_S]),
    failure_threshold=st.sampled_from([None, 1, 2]),
    total_retries=st.sampled_from([None, 0, 2]),
) | st.builds(Rules, failure_threshold=st.integers(1, 2), on_failures=st.just(OnFailures.CANCEL))
FAILURES = st.tuples(st.integers(1, 3), st.sampled_from([0.0, RETRY_S]))  # the limit in a row, and the backoff


class StoreMachine(RuleBasedStateMachine):
    """The actions of producers and workers, and accidents, on one device."""

    url: str | None = None  # None is fakeredis

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Any = self.do(self._connect())  # the stubs of redis-py do not distinguish sync from async
        self.store = Store(self.redis, namespace=f"machine{next(_namespaces)}")
        self.key = self.store.keys
        self.world = World()
        self.saved: tuple[Checkpoint, World] | None = None
        self.ledger: dict[UUID, Recorded] = {}  # of batches that Redis has forgotten
        self.position = "0-0"
        self.told: dict[UUID, dict[int | None, JobStatus | BatchStatus]] = {}
        self.sequence: dict[UUID, int] = {}
        self.ended: dict[tuple[UUID, int], bytes] = {}

    async def _connect(self) -> Redis:
        return fakeredis.FakeAsyncRedis() if self.url is None else Redis.from_url(self.url)

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.do(self.store.close())
        self.runner.close()

    # -------------------------------------------------------------------------------------------- the model

    @property
    def batches(self) -> list[Batch]:
        return self.world.batches

    @property
    def forgotten(self) -> list[Batch]:
        return self.world.forgotten

    @property
    def holders(self) -> list[Holder]:
        return self.world.holders

    @property
    def live(self) -> list[Holder]:
        """Return the holders whose token is the current one of their ticket."""
        return [holder for holder in self.holders if not holder.stale]

    def lose(self, holder: Holder) -> None:
        """Take the ticket from this holder."""
        holder.stale = True
        holder.held = set()

    def holds(self, batch: Batch, index: int) -> bool:
        return any(holder.batch is batch and index in holder.held for holder in self.live)

    def give_back(self, holder: Holder, event: JobEvent) -> None:
        """Do what the scripts do with a held set: reclaim it, or take it back."""
        batch = holder.batch
        for index in holder.held:
            job = batch.jobs[index]
            ran = job.status is JobStatus.RUNNING
            if ran and event is JobEvent.RECLAIM:
                job.lost += 1
            given_up = job.lost >= LOST_MAX and ran and not job.cancel_requested
            batch.apply_to(index, JobEvent.FAIL if given_up else event)
            if ran and event is JobEvent.GIVE_BACK and job.status is JobStatus.PENDING:
                job.attempt -= 1
        self.lose(holder)

    def reclaim_lapsed(self) -> int:
        lapsed = [holder for holder in self.live if holder.lapsed and not self.world.shut]
        for holder in lapsed:
            self.give_back(holder, JobEvent.RECLAIM)
            holder.batch.limit_failures()
            self.conclude(holder.batch)
        return len(lapsed)

    def conclude(self, batch: Batch) -> None:
        batch.conclude()
        self.follow_ends()

    def follow_ends(self) -> None:
        """Apply the ends of batches to those that depend on them, except those that are left for the sweep."""
        while any(self.follow_end(batch, parent) for batch in self.batches for parent in batch.waits):
            pass

    def follow_end(self, batch: Batch, parent_id: UUID) -> bool:
        """Return whether a batch that waits was released from another one, or cancelled because of it."""
        parent = self.find(parent_id)
        if parent is None or not parent.status.terminal or (batch.id, parent_id) in self.world.unswept:
            return False
        if self.world.shut:
            self.world.unswept.add((batch.id, parent_id))
            return False
        when = batch.waits[parent_id]
        if parent.satisfies(when):
            batch.waits = {each: when for each, when in batch.waits.items() if each != parent_id}
            batch.conclude()
        else:
            batch.bar()
        return True

    def find(self, batch_id: UUID) -> Batch | None:
        return next((batch for batch in self.batches + self.forgotten if batch.id == batch_id), None)

    def swept(self) -> None:
        """Apply the ends that were left for a sweep."""
        if not self.world.shut:
            self.world.unswept.clear()
            self.follow_ends()

    def expired(self) -> list[Batch]:
        """Apply the ends of batches that a sweep or a take found overdue; return these batches."""
        found = []
        for batch in self.batches:
            if batch.may_expire and batch.is_overdue:
                record = self.do(self.store.reader.batch(batch.id, project=batch.project))
                if record.status is BatchStatus.TIMED_OUT:
                    batch.expire()
                    found.append(batch)
        for batch in found:
            self.conclude(batch)
        return found

    def claimed(self, holder: Holder, jobs: list[HeldJob]) -> None:
        """Check what a script handed out, and apply it to the model."""
        batch, token = holder.batch, holder.grant.token
        indices = {job.index for job in jobs}
        assert len(indices) == len(jobs)
        assert not batch.waits, "no job of a batch that waits runs"
        assert batch.began or not batch.is_overdue, "no job of a batch that did not start in time runs"
        new = indices - holder.held
        for index in new:
            job = batch.jobs[index]
            assert job.status is JobStatus.PENDING, "only pending jobs are handed out"
            assert not self.holds(batch, index), "a job has one holder"
            assert not job.delayed, "a retry waits for its time"
            assert job.token != token, "a token runs a job once"
            assert job.attempt == 0 or indices == {index}, "a job with an earlier attempt is handed out alone"
        if new:
            assert batch.status is not BatchStatus.PAUSED
            assert not self.world.device_paused
            assert not self.world.shut
        holder.held = indices
        if not any(batch.jobs[index].status is JobStatus.RUNNING for index in indices):
            batch.apply_to(min(indices), JobEvent.BEGIN, token=token)
        for given in jobs:
            job = batch.jobs[given.index]
            assert (given.attempt, given.cancel_requested) == (job.attempt, job.cancel_requested)
            assert given.spec == JobSpec(runs=1 + given.index)

    # ------------------------------------------------------------------------------------------- producers

    @initialize(jobs=st.integers(4, 16), open=st.booleans(), lanes=st.integers(1, 3))
    def begin(self, jobs: int, open: bool, lanes: int) -> None:
        self.do(self.store.tickets.publish_settings(StoreConfig(restore_wait_s=LEASE_S)))
        self.do(self.store.recovery.mark_ledger())
        self.announce(lanes)
        self.submit(jobs, open, "a", Priority.MEDIUM, 1, [], Rules())

    @precondition(lambda self: len(self.batches) < BATCHES_MAX)
    @rule(
        jobs=st.sampled_from([0, 1, 2, 5, 12]),
        open=st.booleans(),
        project=st.sampled_from(PROJECTS),
        priority=st.sampled_from(Priority),
        retries=st.integers(0, 2),
        after=st.lists(st.tuples(NUMBERS, st.sampled_from(When)), max_size=2),
        rules=RULES,
    )
    def submit_another(
        self,
        jobs: int,
        open: bool,
        project: str,
        priority: Priority,
        retries: int,
        after: list[tuple[int, When]],
        rules: Rules,
    ) -> None:
        self.submit(jobs, open, project, priority, retries, after, rules)

    def submit(
        self,
        jobs: int,
        open: bool,
        project: str,
        priority: Priority,
        retries: int,
        after: list[tuple[int, When]],
        rules: Rules,
    ) -> None:
        candidates = [batch for batch in self.batches + self.forgotten if batch.project == project]
        parents = {pick(candidates, at).id: when for at, when in after} if candidates else {}
        doc = BatchDoc(
            device=DEVICE,
            sequence="{}",
            limits=Limits(open_timeout_s=LEASE_S, transient_retries=retries),
            rules=replace(rules, depends_on=tuple(Dependency(*it) for it in parents.items())),
        )
        specs = [JobSpec(runs=1 + index) for index in range(jobs)]
        batch_id = self.do(
            self.store.commands.submit(
                new_batch_id(), project, doc, specs, priority=priority, open=open, ended=self.recorded_ends(parents)
            )
        )
        batch = Batch(batch_id, project, retries, open, [Job() for _ in specs], rules=rules)
        for parent_id, when in parents.items():
            parent = self.find(parent_id)
            assert parent is not None
            batch.waits[parent_id] = when
        self.batches.append(batch)
        if parents:
            self.swept()
        self.conclude(batch)
        self.world.newer.add(batch_id)

    def recorded_ends(self, batch_ids: Iterable[UUID]) -> dict[UUID, str]:
        """Return how these batches ended, as an up-to-date ledger would return it, without those that are live."""
        found = {batch_id: self.find(batch_id) for batch_id in batch_ids}
        return {
            batch_id: batch.status.letter + ("F" if batch.of(JobStatus.ERROR) else "")
            for batch_id, batch in found.items()
            if batch is not None and batch.status.terminal
        }

    @precondition(lambda self: self.batches)
    @rule(at=NUMBERS, jobs=st.integers(1, 6))
    def add(self, at: int, jobs: int) -> None:
        batch = pick(self.batches, at)
        first = len(batch.jobs)
        if first + jobs > JOBS_MAX:
            return
        specs = [JobSpec(runs=1 + first + n) for n in range(jobs)]
        if self.refused_while_shut(batch, self.store.commands.add_jobs(batch.id, specs, project=batch.project)):
            return
        if batch.open:
            assert self.do(self.store.commands.add_jobs(batch.id, specs, project=batch.project)) == first
            batch.jobs += [Job() for _ in specs]
        else:
            with pytest.raises(Conflict):
                self.do(self.store.commands.add_jobs(batch.id, specs, project=batch.project))

    @precondition(lambda self: self.batches)
    @rule(
        at=NUMBERS,
        command=st.sampled_from(["close", "pause", "pause", "resume", "resume", "cancel_batch", "forget", "forget"]),
    )
    def command(self, at: int, command: str) -> None:
        getattr(self, command)(pick(self.batches, at))

    def close(self, batch: Batch) -> None:
        if self.refused_while_shut(batch, self.store.commands.close(batch.id, project=batch.project)):
            return
        self.do(self.store.commands.close(batch.id, project=batch.project))
        batch.open = False
        self.conclude(batch)

    def cancel_batch(self, batch: Batch) -> None:
        if self.refused(batch, lambda: self.store.commands.cancel(batch.id, project=batch.project)):
            return
        batch.cancel_all()
        self.conclude(batch)

    @precondition(lambda self: self.batches)
    @rule(at=NUMBERS, indices=st.lists(st.integers(0, 12), min_size=1, max_size=5))
    def cancel_some(self, at: int, indices: list[int]) -> None:
        self.cancel_jobs(pick(self.batches, at), indices)

    @precondition(lambda self: self.under_way())
    @rule(at=NUMBERS)
    def cancel_what_is_under_way(self, at: int) -> None:
        batch, index = pick(self.under_way(), at)
        self.cancel_jobs(batch, [index])

    def under_way(self) -> list[tuple[Batch, int]]:
        """Return the jobs that run, are held, or wait for a retry."""
        return [
            (batch, index)
            for batch in self.batches
            for index in batch.of(JobStatus.PENDING, JobStatus.RUNNING)
            if batch.jobs[index].delayed or self.holds(batch, index)
        ]

    def cancel_jobs(self, batch: Batch, indices: list[int]) -> None:
        if self.refused_while_shut(batch, self.store.commands.cancel_jobs(batch.id, indices, project=batch.project)):
            return
        expected = []
        for index in indices:
            status = batch.jobs[index].status if index < len(batch.jobs) else None
            match status:
                case None:
                    expected.append(CancelAnswer.UNKNOWN)
                    continue
                case JobStatus.PENDING:
                    expected.append(CancelAnswer.CANCELED)
                case JobStatus.RUNNING:
                    expected.append(CancelAnswer.REQUESTED)
                case _:
                    expected.append(CancelAnswer.OVER)
            batch.cancel(index)
        self.conclude(batch)
        assert self.do(self.store.commands.cancel_jobs(batch.id, indices, project=batch.project)) == expected

    def pause(self, batch: Batch) -> None:
        if not self.refused(batch, lambda: self.store.commands.pause(batch.id, project=batch.project)):
            batch.apply(BatchEvent.PAUSE)

    def resume(self, batch: Batch) -> None:
        if not self.refused(batch, lambda: self.store.commands.resume(batch.id, project=batch.project)):
            if batch.status is BatchStatus.PAUSED:
                batch.uncounted = len(batch.of(JobStatus.ERROR))
            batch.apply(BatchEvent.RESUME)

    def forget(self, batch: Batch) -> None:
        ledger = self.do(recorded(self.store, batch.id))
        number = ledger[0].sequence_number
        assert self.do(self.store.recovery.forget({batch.id: number - 1}, least_age_s=0)) == []
        gone = self.do(self.store.recovery.forget({batch.id: number}, least_age_s=0))
        assert gone == ([batch.id] if batch.status.terminal else [])
        if not gone:
            return
        self.ledger[batch.id] = ledger
        self.batches.remove(batch)
        self.forgotten.append(batch)
        for holder in self.live:
            if holder.batch is batch:
                self.lose(holder)

    def refused(self, batch: Batch, call: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Return whether the call must change nothing because the batch ended or the gate is shut; else make it."""
        if self.refused_while_shut(batch, call()):
            return True
        if not batch.status.terminal:
            self.do(call())
            return False
        with pytest.raises(Conflict):
            self.do(call())
        return True

    def refused_while_shut(self, batch: Batch, call: Coroutine[Any, Any, Any]) -> bool:
        """Return whether no call may change the batch, because it is older than the restart and the gate is shut."""
        if not self.world.shut or batch.id in self.world.newer:
            call.close()
            return False
        self.is_unavailable(call)
        return True

    def is_unavailable(self, call: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(Unavailable):
            self.do(call)

    # --------------------------------------------------------------------------------------------- workers

    @rule(lanes=st.integers(1, 3), paused=st.sampled_from([True, False, False]))
    def change_device(self, lanes: int, paused: bool) -> None:
        self.announce(lanes)
        if paused:
            self.do(self.store.devices.pause(DEVICE, "maintenance"))
        else:
            self.do(self.store.devices.resume(DEVICE))
        self.world.device_paused = paused

    def announce(self, lanes: int) -> None:
        self.do(
            self.store.tickets.heartbeat(
                "w",
                DEVICE,
                ttl_s=LEASE_S,
                about_device={"adapter": "null", "exclusive": 0},
                about_worker={"lanes": lanes, "started": 1},
            )
        )

    @rule(at=NUMBERS, reports=REPORTED, want=WANTED, used_s=st.sampled_from([0.0, 0.3, 2.0]))
    def work(self, at: int, reports: list[str], want: int, used_s: float) -> None:
        """Let a worker settle some of its jobs; there is such a worker if there is work."""
        if not self.live:
            self.take(1)
        if self.live:
            holder = pick(self.live, at)
            self.settle_as(holder, dict(zip(sorted(holder.held), reports, strict=False)), want, used_s)

    @rule(at=NUMBERS, lanes=st.integers(1, 2), want=WANTED)
    def work_well(self, at: int, lanes: int, want: int) -> None:
        """Let free lanes take tickets, and a worker settle all its jobs."""
        self.take(lanes)
        if self.live:
            holder = pick(self.live, at)
            self.settle_as(holder, dict.fromkeys(holder.held, "done"), want, 0.0)

    @rule(lanes=st.integers(1, 2))
    def take_more(self, lanes: int) -> None:
        self.take(lanes)

    def take(self, lanes: int) -> None:
        names = [f"lane:{n}" for n in range(lanes)]
        taken = self.do(self.store.tickets.take(DEVICE, names, lease_s=LEASE_S))
        self.reclaim_lapsed()
        self.expired()
        assert taken.paused is (self.world.device_paused or self.world.shut)
        assert len(taken.grants) <= (0 if taken.paused else lanes)
        if len(taken.grants) < lanes and not taken.paused:
            assert self.members(Key.READY, DEVICE) == set(), "a free lane leaves no ready ticket"
        for grant in taken.grants:
            (batch,) = (each for each in self.batches if each.id == grant.batch_id)
            assert grant.ticket not in [holder.grant.ticket for holder in self.live], "a ticket has one holder"
            assert all(grant.token != holder.grant.token for holder in self.holders if holder.batch is batch)
            assert len(grant.jobs) == 1
            holder = Holder(grant, batch, set())
            self.claimed(holder, grant.jobs)
            self.holders.append(holder)

    @precondition(lambda self: any(holder.last for holder in self.holders))
    @rule(at=NUMBERS)
    def settle_again(self, at: int) -> None:
        """Repeat a settle whose reply was lost; the ticket may have retired, or another worker may hold it."""
        holder = pick([holder for holder in self.holders if holder.last], at)
        assert holder.last is not None
        self.settle_as(holder, *holder.last, 0.0)

    def settle_as(self, holder: Holder, outcomes: dict[int, str], want: int, used_s: float) -> None:
        settlements = [Settlement.of(index, REPORTS[report]) for index, report in outcomes.items()]
        call = self.store.tickets.settle(
            holder.grant.ticket, holder.grant.token, settlements, want=want, used_s=used_s, lease_s=LEASE_S
        )
        if self.world.shut:
            self.is_unavailable(call)
            return
        turn = self.do(call)
        refused = sum(self.settled(holder, index, report) for index, report in outcomes.items())
        assert turn.refused == refused
        if not holder.stale:
            holder.batch.limit_failures()
        if holder.stale:
            assert turn.next is (NextStep.STALE if refused or not outcomes else NextStep.RETIRED)
            return
        holder.last, holder.lapsed = (outcomes, want), False
        batch = holder.batch
        running = {index for index in holder.held if batch.jobs[index].status is JobStatus.RUNNING}
        if want == 0:
            assert turn.next is not NextStep.JOBS
            self.give_back(holder, JobEvent.GIVE_BACK)
        elif turn.next is NextStep.JOBS:
            assert running <= {job.index for job in turn.jobs}, "what runs stays with its holder"
            assert len(turn.jobs) <= max(want, len(holder.held))
            self.claimed(holder, turn.jobs)
        else:
            assert not running, "what runs stays with its holder"
            self.lose(holder)
        self.conclude(batch)
        if turn.next is NextStep.RETIRED and not batch.status.terminal and batch.status is not BatchStatus.PAUSED:
            assert all(self.holds(batch, index) for index in batch.of(JobStatus.PENDING))

    def settled(self, holder: Holder, index: int, report: str) -> bool:
        """Apply an outcome to the model; return whether it must be refused."""
        batch, token = holder.batch, holder.grant.token
        if batch in self.forgotten:
            return True
        job = batch.jobs[index]
        if index not in holder.held:
            return job.token != token
        holder.held.remove(index)
        batch.failures = 0
        if job.status.terminal:
            return True
        if job.status is JobStatus.PENDING:
            batch.apply_to(index, JobEvent.BEGIN, token=token)
        job.token = token
        event = ENDS.get(report, JobEvent.RETRY)
        if event is JobEvent.RETRY:
            if report == "crash":
                job.crashes += 1
                exhausted = job.crashes >= CRASHES_MAX
            else:
                job.transient += 1
                exhausted = job.transient > batch.retries
            if not job.cancel_requested and (exhausted or not batch.use_retry()):
                event = JobEvent.FAIL
        batch.apply_to(index, event)
        job.delayed = report == "retry later" and job.status is JobStatus.PENDING
        return False

    @precondition(lambda self: self.holders)
    @rule(at=NUMBERS, begun=st.integers(0, 3))
    def renew(self, at: int, begun: int) -> None:
        holder = pick(self.holders, at)
        batch = holder.batch
        progress = [JobProgress(index, Stage.ON_DEVICE, 0.5) for index in sorted(holder.held)[:begun]]
        renewal = self.do(self.store.tickets.renew(holder.grant.ticket, holder.grant.token, progress, lease_s=LEASE_S))
        if holder.stale:
            assert renewal is None
            return
        holder.lapsed = False
        assert renewal is not None
        assert renewal.is_reported is not self.world.shut
        if self.world.shut:
            return
        for job in progress:
            if batch.jobs[job.index].status is JobStatus.PENDING:
                batch.apply_to(job.index, JobEvent.BEGIN, token=holder.grant.token)
        jobs = {index: batch.jobs[index] for index in holder.held}
        assert renewal.stop == {index for index, job in jobs.items() if job.cancel_requested or job.status.terminal}

    @precondition(lambda self: self.live)
    @rule(at=NUMBERS, way=st.sampled_from(["drain", "drain", "release", "release", "fail"]), failures=FAILURES)
    def give_up(self, at: int, way: str, failures: tuple[int, float]) -> None:
        self.give_up_as(pick(self.live, at), way, failures)

    @precondition(lambda self: any(holder.stale for holder in self.holders))
    @rule(at=NUMBERS, way=st.sampled_from(["drain", "release", "fail"]), failures=FAILURES)
    def give_up_too_late(self, at: int, way: str, failures: tuple[int, float]) -> None:
        holder = pick([holder for holder in self.holders if holder.stale], at)
        self.give_up_as(holder, way, failures)

    def give_up_as(self, holder: Holder, way: str, failures: tuple[int, float]) -> None:
        if self.world.shut:
            ticket, token = holder.grant.ticket, holder.grant.token
            self.is_unavailable(self.store.tickets.drain(ticket, token))
            self.is_unavailable(self.store.tickets.fail_batch(ticket, token, FAULT))
            return
        match way:
            case "drain":
                self.drain(holder)
            case "release":
                self.release(holder, *failures)
            case "fail":
                self.fail_batch(holder)

    def drain(self, holder: Holder) -> None:
        assert self.do(self.store.tickets.drain(holder.grant.ticket, holder.grant.token)) is not holder.stale
        if not holder.stale:
            self.give_back(holder, JobEvent.GIVE_BACK)
            self.conclude(holder.batch)

    def release(self, holder: Holder, failures_max: int, retry_in_s: float) -> None:
        batch = holder.batch
        doomed = self.do(
            self.store.tickets.release(
                holder.grant.ticket,
                holder.grant.token,
                FAULT,
                backoff=Backoff(base_s=retry_in_s, cap_s=retry_in_s),
                failures_max=failures_max,
            )
        )
        if holder.stale:
            assert not doomed
            return
        attempts = {index: batch.jobs[index].attempt for index in holder.held}
        self.give_back(holder, JobEvent.GIVE_BACK)
        for index, attempt in attempts.items():
            batch.jobs[index].attempt = attempt  # unlike a drain, a failure counts
        batch.failures += 1
        assert doomed is (batch.failures >= failures_max and not batch.status.terminal)
        if doomed:
            batch.doom()
        self.conclude(batch)

    def fail_batch(self, holder: Holder) -> None:
        batch = holder.batch
        answer = self.do(self.store.tickets.fail_batch(holder.grant.ticket, holder.grant.token, FAULT))
        assert answer is not holder.stale
        if holder.stale:
            return
        for index in holder.held:
            if batch.jobs[index].status is JobStatus.RUNNING:
                batch.apply_to(index, JobEvent.FAIL)
        batch.doom()
        self.lose(holder)
        self.conclude(batch)

    # --------------------------------------------------------------------------------- accidents and time

    @precondition(lambda self: self.live)
    @rule(at=NUMBERS)
    def lapse(self, at: int) -> None:
        """Let a worker crash, stop, or not reach Redis for longer than its lease."""
        holder = pick(self.live, at)
        self.do(self.redis.zadd(self.key(Key.LEASES, DEVICE), {holder.name: 1}, xx=True))
        holder.lapsed = True

    @rule()
    def sweep(self) -> None:
        found = self.do(self.store.tickets.sweep())
        self.swept()
        assert len(found.reclaimed) == self.reclaim_lapsed()
        assert found.timed_out == len(self.expired())
        assert self.world.shut or not any(batch.may_expire and batch.is_overdue for batch in self.batches)

    @precondition(lambda self: any(batch.may_expire for batch in self.batches))
    @rule(at=NUMBERS)
    def be_overdue(self, at: int) -> None:
        """Let the queue timeout of a batch that has not started pass."""
        batch = pick([batch for batch in self.batches if batch.may_expire], at)
        name = self.key(Key.BATCH, batch.id)
        rules = json.loads(self.do(self.redis.hget(name, "rules")))
        self.do(self.redis.hset(name, "rules", json.dumps(rules | {"expires": 1})))
        self.do(self.redis.zadd(self.key(Key.DEADLINES), {str(batch.id): 1}, xx=True))
        batch.is_overdue = True

    @rule()
    def wait(self) -> None:
        """Make everything due that waits for a time."""
        delays = [self.key(Key.DELAY, batch.id) for batch in self.batches]
        for name in (self.key(Key.DUE, DEVICE), *delays):
            members = self.do(self.redis.zrange(name, 0, -1))
            if members:
                self.do(self.redis.zadd(name, dict.fromkeys(members, 1)))
        for batch in self.batches:
            for job in batch.jobs:
                job.delayed = False

    @rule(shut=st.booleans())
    def start_again(self, shut: bool) -> None:
        """Restart Redis without a loss: with ``shut`` a client has shut the gate, else the gate is open again."""
        if shut:
            self.arrive()
        else:
            self.open_gate()

    def arrive(self) -> None:
        self.do(self.store.scripts.call("arrive", run_id=f"run {next(_runs)}"))
        self.world.shut, self.world.newer = True, set()

    def open_gate(self) -> None:
        self.do(self.store.recovery.open_gate())
        self.world.shut = False

    @rule()
    def sync(self) -> None:
        """Let Redis write everything to the disk."""
        self.saved = self.do(checkpoint(self.store)), copy.deepcopy(self.world)

    @precondition(lambda self: self.saved)
    @rule()
    def lose_power(self) -> None:
        """Restart Redis with what was on the disk; the ledger has everything."""
        assert self.saved is not None
        keys, world = self.saved[0], copy.deepcopy(self.saved[1])
        then = {batch.id: batch for batch in world.batches}
        before = {batch.id for batch in world.forgotten}
        lost = [batch for batch in self.batches + self.forgotten if batch.id not in before]
        ledger = {batch.id: self.do(recorded(self.store, batch.id)) for batch in self.batches} | self.ledger
        ends = self.recorded_ends(batch.id for batch in self.batches + self.forgotten)
        taken = {holder.grant.token for holder in world.holders}
        late = [holder for holder in self.holders if holder.grant.token not in taken]
        self.do(fall_back(self.store, keys))
        self.world = world
        self.arrive()
        self.position = self.do(self.store.events.last())
        for was in lost:
            batch = then.get(was.id) or Batch(was.id, was.project, was.retries, was.open, [], waits=was.waits)
            batch.rules = was.rules
            restored, jobs = ledger[was.id]
            of_parents = {parent: end for parent, end in ends.items() if parent in was.waits}
            assert self.do(self.store.recovery.restore(replace(restored, ended=of_parents), jobs)) == 0
            holders = [holder for holder in self.live if holder.batch is batch]
            ended = batch.follow(was, holders)
            for holder in holders:
                holder.held -= ended
            batch.conclude()
            self.told[batch.id] = {None: was.status, **{at: job.status for at, job in enumerate(was.jobs)}}
            self.sequence[batch.id] = was.transitions
            if was.id not in then:
                self.batches.append(batch)
        known = {batch.id: batch for batch in self.batches + self.forgotten}
        for holder in late:
            self.holders.append(Holder(holder.grant, known[holder.batch.id], set(), last=holder.last, stale=True))
        self.follow_ends()
        self.open_gate()

    @precondition(lambda self: not self.world.shut and any(self.idles(batch) for batch in self.batches))
    @rule(at=NUMBERS)
    def run_out(self, at: int) -> None:
        """Let the deadline of an open batch without work pass."""
        batch = pick([batch for batch in self.batches if self.idles(batch)], at)
        assert self.do(self.redis.zadd(self.key(Key.IDLE), {str(batch.id): 1}, xx=True, ch=True)) == 1
        found = self.do(self.store.tickets.sweep())
        batch.open = False
        batch.apply(BatchEvent.EXPIRE)
        self.conclude(batch)
        self.swept()
        assert (found.timed_out, len(found.reclaimed)) == (1 + len(self.expired()), self.reclaim_lapsed())

    def idles(self, batch: Batch) -> bool:
        return batch.open and not batch.busy and not batch.waits and batch.status is not BatchStatus.PAUSED

    # -------------------------------------------------------------------------------------------- invariants

    def members(self, key: Key, *parts: object) -> set[str]:
        found: Iterable[bytes] = self.do(self.redis.zrange(self.key(key, *parts), 0, -1))
        return {member.decode() for member in found}

    @invariant()
    def counters_of_projects_equal_what_is_there(self) -> None:
        assert self.do(found_counts(self.store)) == self.do(expected_counts(self.store))

    @invariant()
    def batches_are_as_foretold(self) -> None:
        for batch in self.batches:
            record = self.do(self.store.reader.batch(batch.id, project=batch.project))
            assert (record.status, record.open, set(record.waits_for)) == (batch.status, batch.open, set(batch.waits))
            if batch.fault in BY_RULES and record.fault is not None:
                assert record.fault.code == batch.fault.code
            else:
                assert record.fault == batch.fault
            statuses = Counter(job.status for job in batch.jobs)
            assert record.counts == {status: statuses[status] for status in JobStatus}
            assert record.sequence_number == batch.transitions
            assert record.status.terminal is (batch.is_complete or batch.status is BatchStatus.TIMED_OUT)
            assert record.retried == batch.retried
            assert (record.ended is not None) is record.status.terminal
        ended = {str(batch.id) for batch in self.batches if batch.status.terminal}
        assert self.members(Key.ENDED) == ended
        assert self.members(Key.DEADLINES) == {str(batch.id) for batch in self.batches if batch.may_expire}

    @invariant()
    def batches_that_wait_are_found_by_those_they_wait_for(self) -> None:
        waiting = {(str(batch.id), str(parent)) for batch in self.batches for parent in batch.waits}
        for batch in self.batches + self.forgotten:
            dependents = {each for each, parent in waiting if parent == str(batch.id)}
            assert self.members(Key.DEPENDENTS, batch.id) >= dependents
            if not batch.status.terminal:
                assert self.members(Key.DEPENDENTS, batch.id) == dependents
        for batch in self.batches:
            for parent_id in batch.waits:
                parent = self.find(parent_id)
                assert parent is not None
                assert not parent.status.terminal or (batch.id, parent_id) in self.world.unswept

    @invariant()
    def jobs_are_as_foretold_and_terminal_is_final(self) -> None:
        for batch in self.batches:
            raw = self.hash(Key.STATE, batch.id)
            assert raw.keys() <= {str(index).encode() for index in range(len(batch.jobs))}
            for index, job in enumerate(batch.jobs):
                state = raw.get(str(index).encode(), b"P 0")
                letter, attempt, *_ = state.decode().split()
                assert (JOB_BY_LETTER[letter], int(attempt)) == (job.status, job.attempt)
                if job.status.terminal:
                    assert self.ended.setdefault((batch.id, index), state) == state
            done = {str(index).encode() for index in batch.of(JobStatus.DONE)}
            assert self.hash(Key.RESULT, batch.id).keys() == done

    @invariant()
    def no_job_is_in_two_places_and_none_is_lost(self) -> None:
        for batch in self.batches:
            row = self.do(read_record(self.store, batch.id))
            held: dict[str, set[int]] = {}
            for name in self.do(self.redis.keys(self.key(Key.HELD, batch.id, "*"))):
                number = name.decode().rpartition(":")[2]
                held[f"{batch.id}:{number}"] = set(map(int, self.do(self.redis.smembers(name))))
            back = [int(index) for index in self.do(self.redis.lrange(self.key(Key.BACK, batch.id), 0, -1))]
            delayed = [int(index) for index in self.members(Key.DELAY, batch.id)]
            fresh = range(int(row.get("cursor", 0)), len(batch.jobs))
            places = Counter(itertools.chain(back, delayed, fresh, *held.values()))
            assert all(count == 1 for count in places.values())
            assert held == {holder.name: holder.held for holder in self.live if holder.batch is batch and holder.held}
            in_hands = set().union(*held.values())
            for index in batch.of(JobStatus.RUNNING):
                assert index in in_hands
            for index in batch.of(JobStatus.PENDING):
                assert index in places
            assert (int(row.get("back", 0)), int(row.get("delayed", 0))) == (len(back), len(delayed))

    @invariant()
    def tickets_are_in_one_place_and_work_has_one(self) -> None:
        ready, due, leases = (self.members(key, DEVICE) for key in (Key.READY, Key.DUE, Key.LEASES))
        assert ready.isdisjoint(due)
        assert leases.isdisjoint(ready | due)
        assert leases == {holder.name for holder in self.live}
        for batch in self.batches:
            row = self.do(read_record(self.store, batch.id))
            tickets = {f"{batch.id}:{name[2:]}" for name in row if name.startswith("t:")}
            if not batch.status.terminal:
                assert tickets == {name for name in ready | due | leases if name.startswith(str(batch.id))}
            for holder in self.live:
                if holder.batch is batch:
                    token = row[f"t:{holder.grant.ticket.number}"].split()[0].decode()
                    assert token == holder.grant.token
            waiting = [index for index in batch.of(JobStatus.PENDING) if not self.holds(batch, index)]
            if batch.waits:
                assert not tickets
            elif waiting and batch.status is not BatchStatus.PAUSED:
                assert tickets, "work without a ticket is never done"

    @invariant()
    def counters_of_the_device_are_the_sum_of_its_batches(self) -> None:
        device = self.do(self.store.reader.device(DEVICE))
        assert device is not None
        assert device.pending == sum(len(batch.of(JobStatus.PENDING)) for batch in self.batches)
        assert device.running == sum(len(batch.of(JobStatus.RUNNING)) for batch in self.batches)
        assert self.do(self.redis.llen(self.key(Key.BELL, DEVICE))) <= 1

    @invariant()
    def events_are_one_a_transition_and_replay_to_what_is(self) -> None:
        for entry in self.do(self.store.events.read(self.position, most=1000)):
            self.position = entry.id
            for event in entry.events:
                told = self.told.setdefault(event.batch_id, {})
                assert event.sequence == self.sequence.get(event.batch_id, 0) + 1
                self.sequence[event.batch_id] = event.sequence
                if event.index is None:
                    assert told.get(None) == event.previous
                else:
                    assert told.get(event.index, JobStatus.PENDING) == event.previous
                    assert not JobStatus(event.previous or "").terminal
                told[event.index] = event.status
        for batch in self.batches + self.forgotten:
            told = self.told[batch.id]
            assert self.sequence[batch.id] == batch.transitions
            assert told[None] is batch.status
            assert [told.get(index, JobStatus.PENDING) for index in range(len(batch.jobs))] == [
                job.status for job in batch.jobs
            ]

    def hash(self, key: Key, batch_id: UUID) -> dict[bytes, bytes]:
        return cast(dict[bytes, bytes], self.do(self.redis.hgetall(self.key(key, batch_id))))


def configured(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )


# Hypothesis shrinks a failure for a while before it reports it: hence the long time limit.


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_store_behaves_like_the_model() -> None:
    run_state_machine_as_test(StoreMachine, settings=configured(effort(short=25, full=60)))


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(600)
def test_a_real_server_behaves_like_the_model(real_redis_url: str) -> None:
    class OnServer(StoreMachine):
        url = real_redis_url

    run_state_machine_as_test(OnServer, settings=configured(effort(short=12, full=30)))


def test_a_ticket_restored_after_a_power_loss_may_run_jobs_that_a_later_one_began() -> None:
    """Its token is the older one, and its execution the later one; the ledger wins nevertheless."""
    world = StoreMachine()
    try:
        world.begin(jobs=4, open=False, lanes=1)
        world.take_more(lanes=1)
        world.sync()
        world.lapse(at=0)
        world.work_well(at=0, lanes=1, want=1)
        world.lose_power()
        world.events_are_one_a_transition_and_replay_to_what_is()
        world.sync()
        world.work_well(at=0, lanes=1, want=1)
        world.lose_power()
        world.events_are_one_a_transition_and_replay_to_what_is()
        world.jobs_are_as_foretold_and_terminal_is_final()
    finally:
        world.teardown()
