"""Cancels, retries, archives or deletes all batches that match a filter, in steps of limited size and duration.

The steps of one call go from the newest match to the oldest. Batches that are submitted after the first step began are
left alone. Each step may be repeated: what was done is not done again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Self
from uuid import UUID

import msgspec

from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.queries.filters import BatchFilter
from tweezer.ledger.repetition import UNSUCCESSFUL, retry_batch
from tweezer.model.cancels import UNKNOWN
from tweezer.model.errors import Conflict, InvalidInput, NotFound, TweezerError, Unavailable
from tweezer.model.lifecycle import TERMINAL_BATCH, BatchStatus, JobStatus
from tweezer.store.connection import Store
from tweezer.store.records import BatchRecord
from tweezer.store.scripts import split_pages

if TYPE_CHECKING:  # the base install has no database
    from tweezer.ledger.database import Database

STEP_MAX = 1000
"""Batches on which one step acts."""

DRY_STEP_MAX = 10_000
"""Batches that one step of a dry run counts."""

SHOWN_MAX = 1000
"""Ids that a dry run shows."""

_SEARCH_S, _STEP_S = 5.0, 10.0  # after which a step ends its search, and itself: clients wait 30 s for an answer
_CHECKED = 500  # batches whose repetitions are looked up at a time
_LIVE_BATCH = tuple(status for status in BatchStatus if status not in TERMINAL_BATCH)
_ENDED_BATCH = tuple(status for status in BatchStatus if status in TERMINAL_BATCH)
_CURSOR = re.compile(r"(\d{1,15})\.([0-9a-f]{32})", re.ASCII)


class BulkAction(StrEnum):
    """What to do with each batch that matches."""

    CANCEL = "cancel"
    RETRY = "retry"
    ARCHIVE = "archive"
    DELETE = "delete"


class BulkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a call.

    Attributes:
        wanted: The filter.
        every: The filter may be empty.
        dry_run: Change nothing, and report what would be done.
        after: ``next`` of the step before; empty for the first.
        by: Who cancels, as recorded.
        job_statuses: The statuses of the jobs to retry.
    """

    action: BulkAction
    wanted: BatchFilter
    every: bool = False
    dry_run: bool = False
    after: str = ""
    by: str = UNKNOWN
    job_statuses: tuple[JobStatus, ...] = UNSUCCESSFUL


class BulkOutcome(msgspec.Struct, frozen=True):
    """What a call did to the batches that match a filter, or in a dry run what it would do.

    Attributes:
        count: Number of batches on which it acted.
        ids: Their ids, newest first; in a dry run at most 1,000.
        already: Batches for which nothing was left to do: they had ended, or had been retried or archived before.
        live: Batches that have not ended, and so were neither archived nor deleted.
        failed: Why the action failed, by batch.
        retries: The new batch of each batch that was retried.
        until: Batches that were submitted later than this were left alone.
        next: Where the next step continues; None if there are no further matches.
    """

    count: int
    ids: list[UUID]
    already: list[UUID]
    live: list[UUID]
    failed: dict[UUID, str]
    retries: dict[UUID, UUID]
    until: datetime
    next: str | None = None

    def joined(self, later: BulkOutcome, *, dry_run: bool) -> BulkOutcome:
        """Return the outcome of this step and a later one together."""
        shown = SHOWN_MAX if dry_run else None
        return BulkOutcome(
            count=self.count + later.count,
            ids=(self.ids + later.ids)[:shown],
            already=(self.already + later.already)[:shown],
            live=(self.live + later.live)[:shown],
            failed=self.failed | later.failed,
            retries=self.retries | later.retries,
            until=self.until,
            next=later.next,
        )


class _Position(msgspec.Struct, frozen=True, order=True):
    """The place of a batch among all, by its creation in milliseconds since 1970."""

    created_ms: int
    batch_id: UUID

    @classmethod
    def of(cls, batch: BatchRecord) -> Self:
        return cls(round(batch.created.timestamp() * 1000), batch.id)

    @classmethod
    def read(cls, cursor: str) -> Self:
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise InvalidInput("after", "is not a valid cursor; use `next` of the answer before")
        return cls(int(match[1]), UUID(match[2]))

    def __str__(self) -> str:
        return f"{self.created_ms}.{self.batch_id.hex}"


class _Tally:
    """The outcome of a step while it is being made."""

    def __init__(self) -> None:
        self.done: list[UUID] = []
        self.already: list[UUID] = []
        self.live: list[UUID] = []
        self.failed: dict[UUID, str] = {}
        self.retries: dict[UUID, UUID] = {}

    def as_outcome(self, until: datetime, after: _Position | None, *, dry_run: bool) -> BulkOutcome:
        shown = SHOWN_MAX if dry_run else None
        return BulkOutcome(
            count=len(self.done),
            ids=self.done[:shown],
            already=self.already[:shown],
            live=self.live[:shown],
            failed=self.failed,
            retries=self.retries,
            until=until,
            next=None if after is None else str(after),
        )


class _Act(Protocol):
    """One kind of action. statuses: of the batches on which it can act. searched: those that are searched for."""

    statuses: tuple[BatchStatus, ...]
    searched: tuple[BatchStatus, ...]
    at_once: int

    async def select(self, found: Sequence[BatchRecord], tally: _Tally) -> list[BatchRecord]:
        """Return the batches on which to act, and note those that match but need or allow no action."""
        ...

    async def apply(self, chosen: Sequence[BatchRecord], tally: _Tally) -> None:
        """Act on at most ``at_once`` batches."""
        ...


class BulkActions:
    """The actions of a caller. database: the ledger's; None without one."""

    def __init__(self, store: Store, reader: BatchReader, database: Database | None, caller: Principal) -> None:
        self.store = store
        self.reader = reader
        self.database = database
        self.caller = caller

    async def run(self, request: BulkRequest) -> BulkOutcome:
        """Make one step. Raises InvalidInput for a request that is not valid; Unavailable if nothing was done."""
        act = self._find_act(request)
        wanted = _checked_filter(request, act)
        began, after = time.monotonic(), _Position.read(request.after) if request.after else None
        until_ms = await self.store.index.now_ms() if after is None else after.created_ms
        until = datetime.fromtimestamp(until_ms / 1000, UTC)
        if wanted.created_to is not None:
            until = min(until, wanted.created_to)
        wanted = msgspec.structs.replace(wanted, created_to=until)
        most = DRY_STEP_MAX if request.dry_run else STEP_MAX
        found, has_more = await self._search(wanted, after, most, until=began + _SEARCH_S)
        last = _Position.of(found[-1]) if found else None
        tally = _Tally()
        chosen = [batch for page in split_pages(found, _CHECKED) for batch in await act.select(page, tally)]
        if request.dry_run:
            tally.done += (batch.id for batch in chosen)
        else:
            done = await self._apply(act, chosen, tally, until=began + _STEP_S)
            if done < len(chosen):
                has_more, last = True, _Position.of(chosen[done - 1])
                tally = _without_older(tally, last, found)
        return tally.as_outcome(until, last if has_more else None, dry_run=request.dry_run)

    def _find_act(self, request: BulkRequest) -> _Act:
        match request.action:
            case BulkAction.CANCEL:
                return _Cancel(self.store, request.by)
            case BulkAction.RETRY:
                return _Retry(self, request.job_statuses)
            case BulkAction.ARCHIVE:
                return _Archive(_require_ledger(self.database, "archiving"), self.caller)
            case BulkAction.DELETE:
                return _Delete(self.store, _require_ledger(self.database, "deleting"))

    async def _search(
        self, wanted: BatchFilter, after: _Position | None, most: int, *, until: float
    ) -> tuple[list[BatchRecord], bool]:
        """Return the next matches, and whether there may be more. until: when the search ends, of the monotonic clock.

        All are found before the first of them changes, because the pages of a list shift when their rows change.
        """
        found: list[BatchRecord] = []
        async with contextlib.aclosing(self.reader.batches(self.caller, wanted)) as matches:
            async for batch in matches:
                if after is not None and _Position.of(batch) >= after:
                    continue
                if len(found) == most or (found and time.monotonic() > until):
                    return found, True
                found.append(batch)
        return found, False

    async def _apply(self, act: _Act, chosen: Sequence[BatchRecord], tally: _Tally, *, until: float) -> int:
        """Act on the batches in order until the time is over; return the number of those that were handled."""
        done = 0
        for page in split_pages(chosen, act.at_once):
            if done and time.monotonic() > until:
                break
            try:
                await act.apply(page, tally)
            except Unavailable:
                if not done:
                    raise
                break  # the next step raises it, if it lasts
            done += len(page)
        return done


class _Cancel:
    statuses = searched = _LIVE_BATCH
    at_once = 1

    def __init__(self, store: Store, by: str) -> None:
        self._store = store
        self._by = by

    async def select(self, found: Sequence[BatchRecord], tally: _Tally) -> list[BatchRecord]:
        return list(found)

    async def apply(self, chosen: Sequence[BatchRecord], tally: _Tally) -> None:
        for batch in chosen:
            try:
                await self._store.commands.cancel(batch.id, project=batch.project, by=self._by)
                tally.done.append(batch.id)
            except NotFound:  # lost with the last second of Redis
                tally.failed[batch.id] = f"batch {batch.id} is being restored; try again"
            except Conflict:
                tally.already.append(batch.id)
            except TweezerError as error:
                _note_failure(tally, batch.id, error)


class _Retry:
    statuses = searched = _ENDED_BATCH
    at_once = 1

    def __init__(self, actions: BulkActions, job_statuses: tuple[JobStatus, ...]) -> None:
        self._actions = actions
        self._job_statuses = job_statuses

    async def select(self, found: Sequence[BatchRecord], tally: _Tally) -> list[BatchRecord]:
        failed = [batch for batch in found if any(batch.counts[status] for status in self._job_statuses)]
        repeated = await self._actions.reader.repeated([batch.id for batch in failed])
        tally.already += (batch.id for batch in failed if batch.id in repeated)
        return [batch for batch in failed if batch.id not in repeated]

    async def apply(self, chosen: Sequence[BatchRecord], tally: _Tally) -> None:
        for batch in chosen:
            try:
                # The key depends on the batch alone, so that equal and concurrent calls make one batch.
                tally.retries[batch.id] = await retry_batch(
                    self._actions.store,
                    self._actions.reader,
                    self._actions.caller,
                    batch.id,
                    statuses=self._job_statuses,
                    idempotency_key=f"retry of batch {batch.id}",
                )
                tally.done.append(batch.id)
            except TweezerError as error:
                if error.code == "idempotency":  # a call at the same time retries other jobs of it
                    tally.already.append(batch.id)
                else:
                    _note_failure(tally, batch.id, error)


class _Archive:
    statuses = _ENDED_BATCH
    searched: tuple[BatchStatus, ...] = ()  # those that have not ended are reported
    at_once = 500

    def __init__(self, database: Database, caller: Principal) -> None:
        self._database = database
        self._caller = caller

    async def select(self, found: Sequence[BatchRecord], tally: _Tally) -> list[BatchRecord]:
        from tweezer.ledger.archive import find_archived

        archived = await self._database.run_read(find_archived, [batch.id for batch in found])
        tally.already += (batch.id for batch in found if batch.id in archived)
        return _select_ended([batch for batch in found if batch.id not in archived], tally)

    async def apply(self, chosen: Sequence[BatchRecord], tally: _Tally) -> None:
        from tweezer.ledger.archive import archive

        ids = [batch.id for batch in chosen]
        _note_recorded(tally, ids, (await self._database.run_write(archive, self._caller, ids)).done)


class _Delete:
    statuses = _ENDED_BATCH
    searched: tuple[BatchStatus, ...] = ()  # those that have not ended are reported
    at_once = 50

    def __init__(self, store: Store, database: Database) -> None:
        self._store = store
        self._database = database

    async def select(self, found: Sequence[BatchRecord], tally: _Tally) -> list[BatchRecord]:
        return _select_ended(found, tally)

    async def apply(self, chosen: Sequence[BatchRecord], tally: _Tally) -> None:
        from tweezer.ledger.retention import delete_ended

        ids = [batch.id for batch in chosen]
        try:
            gone = await delete_ended(self._store, self._database, ids)
        except TweezerError as error:
            for batch_id in ids:
                _note_failure(tally, batch_id, error)
            return
        _note_recorded(tally, ids, gone)


def _require_ledger(database: Database | None, doing: str) -> Database:
    if database is None:
        problem = (
            f"{doing} batches needs the ledger, which is not configured here; set TWEEZER_DATABASE_URL, or use the API"
        )
        raise TweezerError(problem, code="no_ledger")
    return database


def _select_ended(found: Sequence[BatchRecord], tally: _Tally) -> list[BatchRecord]:
    tally.live += (batch.id for batch in found if not batch.status.terminal)
    return [batch for batch in found if batch.status.terminal]


def _note_recorded(tally: _Tally, ids: Sequence[UUID], done: Collection[UUID]) -> None:
    """Note the batches that are done. The ledger does not have the end of the others yet."""
    handled = set(done)
    tally.done += (batch_id for batch_id in ids if batch_id in handled)
    for batch_id in ids:
        if batch_id not in handled:
            tally.failed[batch_id] = f"batch {batch_id} has just ended and is being recorded; try again in a moment"


def _note_failure(tally: _Tally, batch_id: UUID, error: TweezerError) -> None:
    if isinstance(error, Unavailable):
        raise error
    tally.failed[batch_id] = error.message


def _without_older(tally: _Tally, last: _Position, found: Sequence[BatchRecord]) -> _Tally:
    """Remove the batches that the next step finds again."""
    older = {batch.id for batch in found if _Position.of(batch) < last}
    tally.already = [batch_id for batch_id in tally.already if batch_id not in older]
    tally.live = [batch_id for batch_id in tally.live if batch_id not in older]
    return tally


def _checked_filter(request: BulkRequest, act: _Act) -> BatchFilter:
    """Return the filter with the statuses that the action needs. Raises InvalidInput."""
    wanted = request.wanted
    if not request.every and msgspec.structs.replace(wanted, projects=()) == BatchFilter():
        raise InvalidInput("all", "is needed to select every batch; add a filter, or set all to true")
    wrong = [status for status in wanted.statuses if status not in act.statuses]
    if wrong:
        able = ", ".join(act.statuses)
        problem = f"{request.action} cannot act on batches that are {wrong[0]}; use {able}, or omit it"
        raise InvalidInput("status", problem)
    return msgspec.structs.replace(wanted, statuses=wanted.statuses or act.searched)
