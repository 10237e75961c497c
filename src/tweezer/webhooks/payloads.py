"""Write the payloads of webhooks: the data of events, from batches in Redis or in the ledger."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from tweezer.ledger.access.links import ResultLinks, Signer
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.database import Database
from tweezer.ledger.queries.queries import Queries
from tweezer.model.cancels import read_attempts
from tweezer.model.events import Event
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.lru import Recent
from tweezer.model.messages import (
    MAX_JOBS_PER_BATCH,
    Fault,
    decode_doc,
    decode_fault,
    decode_result,
    decode_spec,
    result_file,
    result_json,
)
from tweezer.model.webhooks import COUNTER_MAX_BYTES, BatchData, JobData, ResultLink, fit, format_time, timestamp
from tweezer.store.connection import Store
from tweezer.store.records import STATE_FIELDS, moment, moment_us, read_state, shares_fault
from tweezer.store.scripts import split_pages
from tweezer.store.snapshots import Snapshot, SnapshotRequest

_FACTS_MAX = 10_000  # batches that are cached
_PAGE = 1000  # events or batches that are described at once
_QUICK_BYTES = 256 << 10  # packed results below this size take a few milliseconds, which is not worth a thread

_BEGUN, _ENDED = (STATE_FIELDS.index(name) for name in ("begun", "ended"))
_COUNTERS = {it: it.value.lower() for it in JobStatus}


class BatchFacts(msgspec.Struct, frozen=True):
    """The constant facts of a batch. tags: as submitted; they may have been replaced since."""

    project: str
    webhook: str | None
    device: str
    name: str | None
    tags: tuple[str, ...]
    created: datetime
    trace: str | None


class Payloads:
    """The source of events' data. All methods raise Unavailable."""

    def __init__(self, store: Store, database: Database, links: ResultLinks) -> None:
        self._reader = BatchReader(store, Queries(database))
        self._links = links
        self._facts: Recent[UUID, BatchFacts] = Recent(_FACTS_MAX)
        self._just_read: dict[UUID, Snapshot] = {}

    async def batches(self, batch_ids: Collection[UUID]) -> dict[UUID, BatchFacts]:
        """Return the facts of batches. Deleted batches are left out, unless they are still cached."""
        found = {it: facts for it in batch_ids if (facts := self._facts.get(it)) is not None}
        unknown = [it for it in batch_ids if it not in found]
        if unknown:
            self._just_read.clear()
        for page in split_pages(unknown, _PAGE):
            wanted = [SnapshotRequest(batch_id, MAX_JOBS_PER_BATCH, (), doc=True) for batch_id in page]
            for batch_id, snapshot in (await self._reader.snapshots(wanted)).items():
                found[batch_id] = _read_facts(snapshot)
                self._facts.put(batch_id, found[batch_id])
                self._just_read[batch_id] = snapshot
        return found

    async def describe(self, events: Sequence[Event]) -> list[JobData | BatchData | None]:
        """Return the data of each event, without the previous sequence number; None if its batch or job was deleted."""
        if not events:
            return []
        signer = await self._links.signer()
        described: list[JobData | BatchData | None] = []
        for page in split_pages(events, _PAGE):
            facts = await self.batches({event.batch_id for event in page})
            snapshots = await self._read_events(page)
            for gone in facts.keys() - snapshots.keys():
                self._facts.pop(gone)
            writer = _PayloadWriter(facts, snapshots, signer, self._links.base_url)
            if sum(len(packed) for it in snapshots.values() for packed in it.results.values()) <= _QUICK_BYTES:
                described += writer.write(page)
            else:
                described += await asyncio.to_thread(writer.write, page)
        return described

    async def _read_events(self, events: Sequence[Event]) -> dict[UUID, Snapshot]:
        """Return the current batches and jobs of the events."""
        touched: dict[UUID, set[int]] = defaultdict(set)
        newest: dict[UUID, int] = {}
        for event in events:
            newest[event.batch_id] = max(newest.get(event.batch_id, 0), event.sequence)
            if event.index is not None:
                touched[event.batch_id].add(event.index)
        known = {
            batch_id: snapshot
            for batch_id, snapshot in self._just_read.items()
            if batch_id in newest and batch_id not in touched and snapshot.sequence_number >= newest[batch_id]
        }
        wanted = [
            SnapshotRequest(batch_id, MAX_JOBS_PER_BATCH, sorted(touched.get(batch_id, ())), specs=True)
            for batch_id in newest
            if batch_id not in known
        ]
        self._just_read.clear()
        return known | await self._reader.snapshots(wanted, newest) if wanted else known


class _PayloadWriter:
    """A writer of the data of some events, from the snapshots that were read for them."""

    def __init__(
        self, facts: Mapping[UUID, BatchFacts], snapshots: Mapping[UUID, Snapshot], signer: Signer, base_url: str
    ) -> None:
        self._batches = {it: _Batch(facts[it], snapshot) for it, snapshot in snapshots.items() if it in facts}
        self._signer = signer
        self._base_url = base_url

    def write(self, events: Sequence[Event]) -> list[JobData | BatchData | None]:
        """Return the data of each event; None if its batch or job was deleted."""
        described: list[JobData | BatchData | None] = []
        last: UUID | None = None
        batch: _Batch | None = None
        for event in events:
            if event.batch_id is not last:  # events of one entry share it
                last = event.batch_id
                batch = self._batches.get(last)
            if batch is None or (event.index is not None and event.index not in batch.snapshot.specs):
                described.append(None)
            elif event.index is None:
                described.append(fit(_batch_data(event, batch)))
            else:
                described.append(fit(self._job_data(event, event.index, batch)))
        return described

    def _job_data(self, event: Event, index: int, batch: _Batch) -> JobData:
        assert event.previous is not None, "only the first event of a batch has no status before it"
        of, status = batch.snapshot, JobStatus(event.status)
        created_us, _, spec = of.specs[index].partition(b" ")
        happened_ms = event.time_us // 1000
        begun_ms, ended_ms = _times(of.states.get(index))
        over = status.terminal
        started_ms = happened_ms if status is JobStatus.RUNNING else begun_ms if over else None
        identity = str(job_id(event.batch_id, index))
        return JobData(
            project_id=batch.facts.project,
            batch_id=batch.id,
            job_id=identity,
            index=index,
            status=status,
            previous_status=JobStatus(event.previous),
            sequence=event.sequence,
            previous_sequence=None,
            device=batch.facts.device,
            tags=batch.tags,
            runs=decode_spec(spec).runs,
            created_at=_written_ms(int(created_us) // 1000),
            started_at=None if started_ms is None else _written_ms(started_ms),
            ended_at=_written_ms(ended_ms or happened_ms) if over else None,
            errors=batch.get_faults(index, status) if over else (),
            result=self._result(identity, of.results.get(index), event) if status is JobStatus.DONE else None,
        )

    def _result(self, job: str, packed: bytes | None, event: Event) -> ResultLink | None:
        """Return a link to the result. It is valid from the time of the event, so that every courier writes the same
        link."""
        if packed is None:
            return None
        link = self._signer.link(self._base_url, job, event.time_us // 1_000_000)
        until = _written_ms(link.expires * 1000)
        file = result_file(packed)
        if file is not None:
            return ResultLink(link.url, until, file.size, file.sha256.hex(), content_encoding="gzip")
        result = decode_result(packed)
        body = result_json(result)
        small = len(body) <= COUNTER_MAX_BYTES or len(msgspec.json.encode(result.counter)) <= COUNTER_MAX_BYTES
        counter = result.counter if small else None
        return ResultLink(link.url, until, len(body), hashlib.sha256(body).hexdigest(), counter=counter)


class _Batch:
    """The data that the events of one batch share."""

    def __init__(self, facts: BatchFacts, snapshot: Snapshot) -> None:
        fields = snapshot.fields
        self.fault = decode_fault(fields["fault"]) if "fault" in fields else None
        self.cancels = read_attempts(fields.get("cancels", b"").decode())
        self.id = str(snapshot.batch_id)
        self.facts = facts
        self.snapshot = snapshot
        self.tags = _tags(snapshot, facts.tags)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return () if self.fault is None else (self.fault,)

    def get_faults(self, index: int, status: JobStatus) -> tuple[Fault, ...]:
        """Return the fault of a job, or that of its batch where the job shares it."""
        own = self.snapshot.faults.get(index)
        if own is not None:
            return (decode_fault(own),)
        if self.fault is None:
            return ()
        words = read_state(self.snapshot.states.get(index))
        requested, ended = moment(words.get("cancel")), moment(words.get("ended"))
        cancels = [it for it in self.cancels if it.concerns(index, requested, ended)]
        return self.faults if shares_fault(status, cancels) else ()

    def number(self, name: str) -> int:
        return int(self.snapshot.fields.get(name, b"0"))

    def moment(self, name: str) -> datetime | None:
        return moment(self.snapshot.fields.get(name, b"0").decode())


def _batch_data(event: Event, batch: _Batch) -> BatchData:
    status, happened = BatchStatus(event.status), _event_time(event)
    started = batch.moment("started")
    over = status.terminal
    return BatchData(
        project_id=batch.facts.project,
        batch_id=batch.id,
        name=batch.facts.name,
        status=status,
        previous_status=None if event.previous is None else BatchStatus(event.previous),
        sequence=event.sequence,
        previous_sequence=None,
        device=batch.facts.device,
        tags=batch.tags,
        open=batch.number("open") == 1,
        jobs={it: batch.number(name) for it, name in _COUNTERS.items()},
        created_at=format_time(batch.facts.created),
        started_at=None if started is None or started > happened else format_time(started),
        ended_at=format_time(batch.moment("ended") or happened) if over else None,
        errors=batch.faults if over else (),
    )


def _times(state: bytes | None) -> tuple[int | None, int | None]:
    """Return when a job was last started and when it ended, in milliseconds since 1970."""
    if state is None:
        return None, None
    words = state.split()
    begun, ended = words[_BEGUN], words[_ENDED]
    return None if begun == b"-" else int(begun), None if ended == b"-" else int(ended)


@functools.lru_cache(maxsize=4096)
def _written_ms(milliseconds: int) -> str:
    """Format a time. Cached, because jobs of a batch or ticket share many times."""
    return timestamp(milliseconds * 1000)


def _read_facts(snapshot: Snapshot) -> BatchFacts:
    assert snapshot.doc is not None, "the doc was requested"
    doc, fields = decode_doc(snapshot.doc), snapshot.fields
    return BatchFacts(
        project=fields["project"].decode(),
        webhook=doc.webhook,
        device=fields["device"].decode(),
        name=doc.name,
        tags=doc.tags,
        created=moment_us(fields["created"].decode()),
        trace=doc.trace,
    )


def _tags(snapshot: Snapshot, submitted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the current tags: Redis stores replaced tags beside the doc, the ledger within it."""
    if "tags" in snapshot.fields:
        return msgspec.json.decode(snapshot.fields["tags"], type=tuple[str, ...])
    return submitted if snapshot.doc is None else decode_doc(snapshot.doc).tags


def _event_time(event: Event) -> datetime:
    """Return the time of an event, to the millisecond as in records."""
    return moment_us(str(event.time_us))
