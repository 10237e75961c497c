"""Submits the batches of schedules. Several schedulers may do so at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import structlog

from tweezer.ledger.batch_reader import BatchReader
from tweezer.ledger.database import Database
from tweezer.ledger.queries.queries import Queries
from tweezer.ledger.schedules.records import Creator, Missed, Overlap, ScheduleTick, TickOutcome
from tweezer.ledger.schedules.schedules import unpack_template
from tweezer.ledger.schedules.ticks import (
    ClaimedTick,
    StoppedSchedule,
    TickChange,
    begin_run,
    begin_ticks,
    claim_ticks,
    is_work_due,
    note_told,
    rewind,
    stop_in_project,
    stop_orphans,
    untold_stops,
    write_changes,
)
from tweezer.ledger.schema import now_ms
from tweezer.model.errors import Conflict, NotFound, QueueFull, TweezerError, Unavailable
from tweezer.model.events import Notice
from tweezer.model.webhooks import EventType, ScheduleData, timestamp
from tweezer.store.connection import Store
from tweezer.store.producers import Submission

log = structlog.get_logger(__name__)

_CHECK_S = 10.0  # between checks of creators and of the clock
_AT_ONCE = 200  # ticks in one pass
_CALLS = 16  # to Redis at the same time
_PATIENCE_S = 30.0  # for one tick; less than its lease
_RETRY_MS, _RETRY_MAX_MS = 1000, 30_000
_CONFIRM_MS, _CONFIRM_MAX_MS = 2000, 60_000
_EVENTS = {TickOutcome.SKIPPED: EventType.SCHEDULE_SKIPPED, TickOutcome.FAILED: EventType.SCHEDULE_FAILED}


class ScheduleRunner:
    """Looks for ticks that are due, and submits their batches. clock: the time in milliseconds since 1970."""

    def __init__(self, store: Store, database: Database, *, clock: Callable[[], int] = now_ms) -> None:
        self._store = store
        self._database = database
        self._find_ends = BatchReader(store, Queries(database)).find_ends
        self._clock = clock
        self._check_at = 0.0

    async def look(self) -> int:
        """Handle what is due; return the number of ticks. Raises Unavailable."""
        now, checks = self._clock(), time.monotonic() >= self._check_at
        if not checks and not await self._database.run_read(is_work_due, now):
            return 0
        if checks:
            await self._database.run_write(rewind, now)
            await self._database.run_write(stop_orphans, now)
            self._check_at = time.monotonic() + _CHECK_S
        await self._database.run_write(begin_ticks, now, _AT_ONCE)
        await self.tell_stops()
        claimed = await self._database.run_write(claim_ticks, now, _AT_ONCE)
        await self._handle_all(claimed)
        return len(claimed)

    async def run_now(
        self, schedule: UUID, idempotency_key: str, *, creator: Creator, project_ids: Collection[str] | None
    ) -> UUID:
        """Submit the batch of a schedule now, and return its id. A repeated call with the same key submits no other.

        Raises NotFound, Conflict, Unavailable, and as a submit.
        """
        tick = await self._database.run_write(
            begin_run, schedule, idempotency_key, creator=creator, projects_seen=project_ids
        )
        if isinstance(tick, ScheduleTick):
            return _batch_of(tick)
        try:
            if not tick.recorded:
                await self._submit(tick)
        except Unavailable:  # it may have taken effect
            await self._write([TickChange(tick, tick.outcome, self._clock() + _RETRY_MS)])
            raise
        except TweezerError as error:
            await self._write([self._fail(tick, error.code, error.message)])
            raise
        await self._write([TickChange(tick, TickOutcome.SUBMITTED, self._clock() + _CONFIRM_MS)])
        return tick.batch

    async def _handle_all(self, claimed: list[ClaimedTick]) -> None:
        calls = asyncio.Semaphore(_CALLS)

        async def handle(tick: ClaimedTick) -> TickChange:
            async with calls:
                return await self._handle(tick)

        if claimed:
            await self._write(await asyncio.gather(*map(handle, claimed)))

    async def _write(self, changes: list[TickChange]) -> None:
        now = self._clock()
        written = await self._database.run_write(write_changes, changes, now)
        told = [
            TickChange(msgspec.structs.replace(it.tick, outcome=it.outcome, lease_ms=it.due_ms), it.outcome, None)
            for it in written
            if it.outcome in _EVENTS and it.due_ms is not None and await self._tell(it, now)
        ]
        if told:
            await self._database.run_write(write_changes, told, now)

    async def _handle(self, tick: ClaimedTick) -> TickChange:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                match tick.outcome:
                    case TickOutcome.PENDING:
                        return await self._run(tick)
                    case TickOutcome.SUBMITTED:
                        return await self._confirm(tick)
                    case _:  # its event was not published
                        return self._decide(tick, tick.outcome, tick.code, tick.message)
        except (Unavailable, QueueFull, TimeoutError) as error:
            log.warning("schedule.delayed", schedule=str(tick.schedule), name=tick.name, error=str(error))
            delay_ms = min(_RETRY_MS << min(tick.tries, 10), _RETRY_MAX_MS)
            return TickChange(tick, tick.outcome, self._clock() + delay_ms, tick.code, tick.message)
        except TweezerError as error:
            return self._fail(tick, error.code, error.message)
        except Exception as error:  # a bug, which must not hold up the other schedules
            log.exception("schedule.failed", schedule=str(tick.schedule), name=tick.name, error=str(error))
            return self._fail(tick, "internal", f"internal error: {type(error).__name__}: {error}")

    async def _run(self, tick: ClaimedTick) -> TickChange:
        """Submit the batch of a tick, unless that was done before or a rule skips it."""
        submitted = TickChange(tick, TickOutcome.SUBMITTED, self._clock() + _CONFIRM_MS)
        if tick.recorded or (tick.tries > 1 and await self._is_in_redis(tick.batch)):
            return submitted
        if not tick.manual:
            late_ms = self._clock() - tick.at_ms
            if tick.superseded or (tick.policy is Missed.SKIP and late_ms > tick.grace_ms):
                reason = f"it could not be submitted in time (now {late_ms / 1000:.0f} s late)"
                return self._decide(tick, TickOutcome.SKIPPED, "missed", reason)
            if tick.overlap is Overlap.SKIP and await self._is_last_alive(tick):
                reason = f"batch {tick.last_batch} of the last tick has not ended"
                return self._decide(tick, TickOutcome.SKIPPED, "overlap", reason)
        await self._submit(tick)
        return submitted

    async def _confirm(self, tick: ClaimedTick) -> TickChange:
        """Check that the batch of a submitted tick is in the ledger; if Redis has lost it before, submit it again."""
        if tick.recorded:
            return TickChange(tick, TickOutcome.SUBMITTED, None)
        if not await self._is_in_redis(tick.batch):
            log.warning("schedule.lost", schedule=str(tick.schedule), batch=str(tick.batch))
            await self._submit(tick)
        delay_ms = min(_CONFIRM_MS << min(tick.tries, 10), _CONFIRM_MAX_MS)
        return TickChange(tick, TickOutcome.SUBMITTED, self._clock() + delay_ms)

    async def _submit(self, tick: ClaimedTick) -> None:
        await self._store.admission.submit(
            make_submission(tick), project=tick.project, again=True, find_ends=self._find_ends
        )

    async def _is_in_redis(self, batch_id: UUID) -> bool:
        try:
            await self._store.reader.batch(batch_id, project=None)
        except NotFound:
            return False
        return True

    async def _is_last_alive(self, tick: ClaimedTick) -> bool:
        """Return whether the batch of the last tick has not ended. The ledger may be behind Redis."""
        if tick.last_batch is None or tick.last_over:
            return False
        try:
            return not (await self._store.reader.batch(tick.last_batch, project=None)).status.terminal
        except NotFound:
            return tick.last_over is False  # Redis has lost it, and it is restored from the ledger

    def _fail(self, tick: ClaimedTick, code: str, message: str) -> TickChange:
        log.warning("schedule.failed", schedule=str(tick.schedule), name=tick.name, error=message)
        return self._decide(tick, TickOutcome.FAILED, code, message)

    def _decide(self, tick: ClaimedTick, outcome: TickOutcome, code: str | None, message: str | None) -> TickChange:
        """Return the end of a tick without a batch. It stays due until its event is published."""
        return TickChange(tick, outcome, self._clock() + _RETRY_MS, code, message)

    async def _tell(self, change: TickChange, now: int) -> bool:
        """Publish the event of a skipped or failed tick; return False if that must be repeated.

        A repeated event has the same id, by which receivers recognise it.
        """
        tick = change.tick
        at_us = (now if tick.outcome is not change.outcome else tick.updated_ms) * 1000
        data = ScheduleData(
            project_id=tick.project,
            schedule_id=str(tick.schedule),
            name=tick.name,
            code=change.code or "",
            reason=change.message or "",
            tick_at=timestamp(tick.at_ms * 1000),
            missed=tick.missed,
        )
        subject = f"{tick.schedule}.{tick.at_ms // 1000}"
        return await self._publish(_EVENTS[change.outcome], subject, at_us, data)

    async def tell_stops(self) -> None:
        """Publish that schedules were stopped."""
        stopped = await self._database.run_read(untold_stops)
        told = [it for it in stopped if await self._publish_stop(it)]
        if told:
            await self._database.run_write(note_told, told)

    async def _publish_stop(self, it: StoppedSchedule) -> bool:
        data = ScheduleData(it.project, str(it.id), it.name, "stopped", it.reason)
        return await self._publish(EventType.SCHEDULE_STOPPED, f"{it.id}.stopped", it.since_ms * 1000, data)

    async def _publish(self, type_: EventType, subject: str, time_us: int, data: ScheduleData) -> bool:
        written = msgspec.json.encode(data).decode()
        try:
            await self._store.events.tell(Notice(f"{subject}:{time_us}", type_, data.project_id, time_us, written))
        except TweezerError as error:
            log.warning("schedule.not_told", schedule=data.schedule_id, type=type_.value, error=error.message)
            return False
        return True


async def stop_project(store: Store, database: Database, project_id: str) -> None:
    """Stop the schedules of a project before it is deleted, and publish that. Raises Unavailable."""
    await database.run_write(stop_in_project, project_id)
    await ScheduleRunner(store, database).tell_stops()


def make_submission(tick: ClaimedTick) -> Submission:
    """Return the batch of a tick: that of the template, with tags that lead back to the schedule."""
    template = unpack_template(tick.template)
    at = datetime.fromtimestamp(tick.at_ms / 1000, UTC)
    written = at.isoformat(timespec="milliseconds" if tick.at_ms % 1000 else "seconds").replace("+00:00", "Z")
    return msgspec.structs.replace(
        template,
        tags=(*template.tags, f"schedule:{tick.schedule}", f"tick:{written}"),
        not_before=at,
        batch_id=tick.batch,
        user=tick.user,
    )


def _batch_of(tick: ScheduleTick) -> UUID:
    """Return the batch of an earlier call. Raises Conflict if that call failed, and Unavailable if it has not ended."""
    if tick.batch_id is not None:
        return tick.batch_id
    if tick.outcome is TickOutcome.FAILED:
        raise Conflict(f"the run with this idempotency key failed; run the schedule with another key ({tick.message})")
    raise Unavailable("this run is being submitted; try again")
