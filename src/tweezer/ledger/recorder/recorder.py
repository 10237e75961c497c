"""The recorder, which reads the stream of events and writes the ledger. One is active; others are on standby."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import Connection, select

from tweezer.duties import repeat
from tweezer.ledger.config import DeadLetterBounds
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import (
    Consumer,
    DeadLetterQueue,
    Letter,
    NewLetter,
    WaitingEntries,
    describe_error,
    drop_letters,
    is_unusable,
    pack_letter,
    unpack_letter,
)
from tweezer.ledger.installation import join
from tweezer.ledger.quotas import QuotaPublisher
from tweezer.ledger.recorder.changes import Changes, JobIds, KnownBatch, make_changes, touched
from tweezer.ledger.recorder.restore import append_lost_events, restore
from tweezer.ledger.recorder.writing import Writer
from tweezer.ledger.retention import Forgetter
from tweezer.ledger.schema import batches, projects
from tweezer.logs import PacedLog
from tweezer.model.errors import TweezerError, Unavailable, Unreadable
from tweezer.model.events import Word, read_words
from tweezer.model.ids import is_project_id, new_worker_id
from tweezer.store.connection import Store
from tweezer.store.reader import Owners
from tweezer.store.scripts import split_pages
from tweezer.store.snapshots import SnapshotRequest
from tweezer.store.streams.feed import START, Entry, position_number

log = structlog.get_logger(__name__)

NICENESS = 10
"""The recorder's nice value, so that workers and Redis precede it on a busy core."""

_KNOWN_MAX = 20_000  # cached batches
_PAGE = 100  # batches that are adopted at once
_RECALLED_AT_ONCE = 500


class RecorderTuning(msgspec.Struct, frozen=True):
    """Tuning of the recorder.

    Attributes:
        entries: Approximate number of entries per transaction.
        jobs: Approximate number of jobs per transaction.
        gather_s: How long entries are gathered when it is up to date, in seconds.
        lease_s: How long a standby waits before it replaces a silent recorder, in seconds.
        look_s: How often it checks for a restart of Redis and tidies, in seconds.
        rest: While it is behind and new events arrive, it pauses after each transaction, for this multiple of the
            transaction's duration, but for ``look_s`` at most.
        give_way_s: If it is this far behind, in seconds, it does not pause.
    """

    entries: int = 2000
    jobs: int = 20_000
    gather_s: float = 0.05
    lease_s: float = 5.0
    look_s: float = 2.0
    rest: float = 20.0
    give_way_s: float = 60.0


class Recorder:
    """Records the stream from the ledger's position on. While it writes one part of the stream it reads the next."""

    def __init__(
        self,
        store: Store,
        database: Database,
        *,
        namespace: str,
        grace_s: float = 86_400.0,
        tuning: RecorderTuning | None = None,
        bounds: DeadLetterBounds | None = None,
    ) -> None:
        self._store = store
        self._database = database
        self._namespace = namespace
        bounds = bounds or DeadLetterBounds()
        self._writer = Writer(database, namespace, bounds)
        self._dead_letters = DeadLetterQueue(database, Consumer.RECORDER, bounds)
        self._owners = Owners(store.scripts)
        self._parked: dict[UUID, str | None] = {}
        self._tended = 0.0
        self._grace_s = grace_s
        self._forgetter = Forgetter(store, database, grace_s=grace_s)
        self._quotas = QuotaPublisher(store, database)
        self._tuning = tuning or RecorderTuning()
        self._id = new_worker_id()
        self._ids = JobIds(text=not database.is_sqlite)
        self._known: dict[UUID, KnownBatch] = {}
        self._paced = PacedLog(log)
        self._writing: asyncio.Task[None] | None = None
        self._read_to = START
        self._looked = 0.0
        self._newest = START
        self._behind = False
        self._active = False
        self.position = START
        """Id of the last recorded entry."""

    async def run(self) -> None:
        """Record until cancelled. Errors are logged, and the work is retried."""
        try:
            await repeat("recorder", self._take_turn)
        finally:
            await self._abandon()
            with contextlib.suppress(TweezerError):
                await self._store.recovery.release_recorder(self._id)

    async def _take_turn(self) -> None:
        """Record for a while, if this recorder is the active one."""
        was, self._active = self._active, False  # after a failure it resumes
        if not was:  # check this before keeping the right installation's recorder from becoming active
            await join(self._store, self._database)
        if not await self._store.recovery.claim_recorder(self._id, self._tuning.lease_s):
            await asyncio.sleep(self._tuning.lease_s / 3)
            return
        if not was:
            await self.resume()
            log.info("recorder.active", position=self.position)
        await self._record()
        self._active = True

    async def resume(self) -> None:
        """Continue from the ledger's position, because another recorder may have been active.

        A ledger that is new or was restored from a backup may be behind the beginning of the stream. In that case all
        batches in Redis are recorded in their current state, without the missing transitions. Raises Superseded,
        Unavailable.
        """
        await self._abandon()
        self._known.clear()
        position = await self._database.run(self._writer.position, START)
        self._parked, _ = await self._database.run(partial(self._dead_letters.read, retry_others=True))
        await join(self._store, self._database)
        trimmed = await self._store.recovery.mark_ledger()
        if position_number(trimmed) > position_number(position):
            log.warning("recorder.behind_the_stream", recorded=position, stream_begins=trimmed)
            page: list[UUID] = []
            async for batch_id in self._store.snapshots.batch_ids():
                page.append(batch_id)
                if len(page) == _PAGE:
                    await self._adopt(page, position)
                    page = []
            await self._adopt(page, position)
            await self._database.run(self._writer.move, position, trimmed)
            position = trimmed
        self.position = self._read_to = position
        self._looked = self._tended = 0.0

    async def step(self) -> int | None:
        """Read up to one transaction of entries, and start to write them once the previous part is written.

        Returns the number of entries read, or 0 once everything is written; None if Redis has lost the entry at the
        position: then restore. Raises Superseded, Unavailable: then resume. Entries that cannot be recorded are
        parked.
        """
        try:
            return await self._step()
        except Exception as error:
            if not is_unusable(error):
                raise
            log.warning("recorder.bisecting", error=describe_error(error))
        await self.resume()
        entries = await self._store.events.follow(self._read_to, most=self._tuning.entries)
        if entries:
            await self._record_apart(_cut(entries, self._tuning.jobs))
        return None if entries is None else len(entries)

    async def _step(self) -> int | None:
        entries = await self._store.events.follow(self._read_to, most=self._tuning.entries)
        if not entries:
            await self._written()
            return None if entries is None else 0
        part = _cut(entries, self._tuning.jobs)
        self._behind = len(part) < len(entries) or len(part) == self._tuning.entries
        changes = await self._read(part)
        await self._written()
        before, self._read_to = self._read_to, part[-1].id
        self._writing = asyncio.create_task(self._write(changes, before, self._read_to))
        return len(part)

    async def catch_up(self) -> None:
        """Record all current entries. Raises as :meth:`step`, and Unavailable if Redis has lost entries."""
        while (read := await self.step()) != 0:
            if read is None:
                raise Unavailable("Redis has lost events that the ledger has; the recorder must restore them first")

    async def _record(self) -> None:
        """Record for about a third of a lease."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._tuning.lease_s / 3
        while loop.time() < until:
            began = loop.time()
            if began - self._tended >= self._tuning.look_s:
                await self.tend_letters()
                self._tended = began
            read = await self.step()
            if read is None:
                await self._restore()
            elif read == 0:
                await self._look()
                left = max(until - loop.time(), 0.001)
                await self._store.events.wait(self._read_to, timeout_s=min(left, self._tuning.look_s))
                await asyncio.sleep(self._tuning.gather_s)
            elif self._behind and await self._should_give_way():
                await self._written()
                pause_s = self._tuning.rest * (loop.time() - began)
                await asyncio.sleep(min(pause_s, self._tuning.look_s))  # longer, and a standby would replace it

    async def _should_give_way(self) -> bool:
        """Return whether new events are arriving and the recorder is not too far behind."""
        before, self._newest = self._newest, await self._store.events.last()
        behind_ms = (position_number(self._newest) - position_number(self._read_to)) >> 20
        return self._newest != before and behind_ms < self._tuning.give_way_s * 1000

    async def tidy(self) -> bool:
        """Trim the stream and forget some ended batches, once everything is recorded; return whether to continue."""
        if self.position != START:
            await self._store.tickets.trim(self.position)
        forgotten = await self._forgetter.forget(self._parked.keys())
        if forgotten.unrecorded:  # the ledger should have them: it was changed or restored from a backup
            log.warning("recorder.adopts", batches=len(forgotten.unrecorded))
            await self._adopt(forgotten.unrecorded, self.position)
        return bool(forgotten.gone)

    async def _look(self) -> None:
        """Open the gate after a restart of Redis, and tidy, once everything is recorded."""
        now = asyncio.get_running_loop().time()
        if now - self._looked < self._tuning.look_s:
            return
        gate = await self._store.recovery.gate()
        if gate.is_shut:
            if await self._store.events.follow(self._read_to, most=1) is None:  # Redis has restarted again
                return
            if await self._store.recovery.open_gate(gate):
                log.info("recorder.opened_gate")
        await self._quotas.look()
        if not await self.tidy():
            self._looked = now

    async def _restore(self) -> None:
        """Restore what Redis lost of the last writes from the ledger, and continue from its remaining entries."""
        gate = await self._store.recovery.gate()
        left = await self._store.events.last(self.position)
        log.warning("recorder.redis_lost_events", recorded=self.position, redis_has=left)
        # If Redis has lost everything, batches that ended long ago are not restored.
        grace_ms = None if left != START else round(self._grace_s * 1000)
        # The events precede the batches, because restored batches make new events, and couriers read them in order.
        again = await append_lost_events(
            self._store, self._database, namespace=self._namespace, after=left, recorded=self.position
        )
        restored = await restore(self._store, self._database, after=left, ended_within_ms=grace_ms)
        await self._database.run(self._writer.move, self.position, left)
        await self.resume()
        await self._store.quotas.forget_count()
        await self._store.recovery.open_gate(gate)
        log.warning("recorder.restored", batches=restored, events_restored=again)

    async def _write(self, changes: Changes, before: str, after: str) -> None:
        await self._database.run(self._writer.write, changes, before, after)
        self.position = after
        for batch_id, it in changes.submitted.items():
            about = {"project": it.project, "user": it.user, "device": it.device}
            self._paced.info("batch.submitted", range(it.jobs), batch=str(batch_id), **about)

    async def _written(self) -> None:
        """Wait for the write in progress, and raise its error."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    async def _abandon(self) -> None:
        with contextlib.suppress(Exception):  # the part was not recorded, and is read again
            await self._written()

    async def _read(self, part: Sequence[Entry]) -> Changes:
        """Return the changes of the entries.

        Entries that cannot be read are parked. Only the transitions of a parked batch are recorded; the rest waits.
        """
        letters = [pack_letter(entry, entry.problem) for entry in part if entry.problem]
        entries = [entry for entry in part if not entry.is_restored and entry.problem is None]
        looked_at = touched(entry for entry in entries if entry.batch_id not in self._parked)
        await self._recall([batch for batch in looked_at if batch not in self._known])
        changes = await self._changes(entries, looked_at)
        for entry in entries:
            if entry.batch_id in self._parked:
                before = changes.behind.get(entry.batch_id)
                changes.behind[entry.batch_id] = WaitingEntries.append(before, entry)
                if self._parked[entry.batch_id] is None:  # its project is unknown, so not even transitions are recorded
                    letters.append(pack_letter(entry, "waits behind an earlier parked entry of its batch"))
        changes.letters.extend(letters)
        return changes

    async def _record_apart(self, entries: Sequence[Entry]) -> None:
        """Record entries of which some cannot be recorded: bisect them, and park those that fail alone."""
        try:
            await self._write(await self._read(entries), self.position, entries[-1].id)
        except Exception as error:
            if not is_unusable(error):
                raise
            self._known.clear()
            if len(entries) > 1:
                half = len(entries) // 2
                await self._record_apart(entries[:half])
                await self._record_apart(entries[half:])
            else:
                await self._park(entries[0], error)
        self._read_to = self.position

    async def _park(self, entry: Entry, error: Exception) -> None:
        """Park an entry and its batch; the transitions are recorded if possible."""
        batch_id = entry.batch_id
        project = None if entry.notice is not None else await self._find_project(batch_id)
        letter = pack_letter(entry, describe_error(error), project)
        if entry.notice is None:
            self._parked[batch_id] = project
        changes = await self._changes([entry] if project is not None else [], {})
        changes.letters.append(letter)
        await self._write(changes, self.position, entry.id)

    async def _find_project(self, batch_id: UUID) -> str | None:
        """Return the project of a batch, if it can be read."""
        try:
            await self._recall([batch_id])
            if (known := self._known.get(batch_id)) is not None:
                return known.project
            project = (await self._owners.projects([batch_id])).get(batch_id, "")
        except (Unreadable, UnicodeDecodeError):
            return None
        return project if is_project_id(project) else None

    async def tend_letters(self) -> None:
        """Read which batches are parked, and retry the letters for which that was requested."""
        await self._written()
        self._parked, due = await self._database.run(self._dead_letters.read)
        for letter in due:
            try:
                await self._retry(letter)
            except Exception as error:
                if not is_unusable(error):
                    raise
                self._known.clear()
                await self._database.run(self._dead_letters.note_failure, letter, error)
                log.warning("dead_letter.failed_again", letter=letter.id, error=describe_error(error))
            else:
                log.info("dead_letter.recorded", letter=letter.id)
        if due:
            self._parked, _ = await self._database.run(self._dead_letters.read)

    async def _retry(self, letter: Letter) -> None:
        """Record a parked entry, and the current state of its batch."""
        entries = [unpack_letter(letter)] if letter.position else []
        ids = {letter.batch} if letter.batch is not None else {it.batch_id for it in entries if it.notice is None}
        for batch_id in ids:
            self._parked.pop(batch_id, None)
            self._known.pop(batch_id, None)
        await self._write(await self._read(entries), self.position, self.position)
        for batch_id in ids:
            await self._adopt_at_once([batch_id], self.position)
        await self._database.run_write(drop_letters, [letter.id])

    async def _adopt(self, batch_ids: Sequence[UUID], position: str) -> None:
        """Record the current state of batches; park those that cannot be recorded."""
        wanted = [batch_id for batch_id in batch_ids if batch_id not in self._parked]
        try:
            await self._adopt_at_once(wanted, position)
        except Exception as error:
            if not is_unusable(error):
                raise
            self._known.clear()
            if len(wanted) > 1:
                half = len(wanted) // 2
                await self._adopt(wanted[:half], position)
                await self._adopt(wanted[half:], position)
                return
            (batch_id,) = wanted
            project = self._parked[batch_id] = await self._find_project(batch_id)
            letter = NewLetter(f"batch {batch_id}", describe_error(error), b"", batch_id, project)
            await self._database.run(self._writer.write, Changes(letters=[letter]), position, position)

    async def _adopt_at_once(self, batch_ids: Sequence[UUID], position: str) -> None:
        for batch_id in batch_ids:
            self._known.pop(batch_id, None)
        await self._recall(batch_ids)
        jobs = {batch_id: known.jobs if (known := self._known.get(batch_id)) else 0 for batch_id in batch_ids}
        changes = await self._changes((), {batch_id: set(range(count)) for batch_id, count in jobs.items()})
        await self._database.run(self._writer.write, changes, position, position)

    async def _changes(self, entries: Sequence[Entry], looked_at: dict[UUID, set[int]]) -> Changes:
        wanted = []
        for batch_id, indices in looked_at.items():
            known = self._known.get(batch_id)
            if known is None:
                wanted.append(SnapshotRequest(batch_id, None, ()))
            else:
                wanted.append(SnapshotRequest(batch_id, known.jobs, known.find_open(indices)))
        snapshots = await self._store.snapshots.take(wanted)
        return make_changes(entries, snapshots, self._known, looked_at, self._ids, self._parked)

    async def _recall(self, batch_ids: Sequence[UUID]) -> None:
        """Look up batches that may be in the ledger."""
        if len(self._known) + len(batch_ids) > _KNOWN_MAX:
            await self._written()  # else the look-up could miss batches that are not written yet
            self._known.clear()
        for page in split_pages(batch_ids, _RECALLED_AT_ONCE):
            self._known.update(await self._database.run_read(_read_known, page))


def _read_known(connection: Connection, batch_ids: Sequence[UUID]) -> dict[UUID, KnownBatch]:
    columns = (batches.c.id, projects.c.id, batches.c.device, batches.c.user, batches.c.priority, batches.c.jobs)
    query = select(*columns).join(projects).where(batches.c.id.in_(batch_ids))
    return {row[0]: KnownBatch(*row[1:]) for row in connection.execute(query)}


def _cut(entries: list[Entry], most: int) -> list[Entry]:
    """Return the first entries with about ``most`` jobs, at least one entry."""
    jobs = 0.0
    for at, entry in enumerate(entries):
        if jobs > most:
            return entries[:at]
        jobs += sum(map(_weigh, read_words(entry.words)))
    return entries


def _weigh(word: Word) -> float:
    """Return the number of jobs in a word; half a job for a single transition: jobs mostly begin and end together."""
    if word.submitted is not None:
        return word.submitted
    return word.count if word.count > 1 else 0.5
