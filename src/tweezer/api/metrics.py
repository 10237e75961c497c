"""Metrics for Prometheus: the current state of the queue, and the response times of this API process.

Only the response times are kept in memory. The cost of a scrape is bounded, however long the queue is: one script and
one INFO in Redis; in the ledger, a few rows for each device and counts over indexes that stop at a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from itertools import accumulate

import structlog
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, LetterCounts, count_letters
from tweezer.ledger.health import read_recorder_position
from tweezer.ledger.queries.statistics import DeviceTotals, device_totals
from tweezer.ledger.schedules.ticks import ScheduleHealth, read_schedule_health
from tweezer.ledger.schema import TIME_BOUNDS_MS
from tweezer.model.errors import TweezerError
from tweezer.store.connection import Store
from tweezer.store.measures import Measures, measure
from tweezer.store.streams.feed import START
from tweezer.webhooks.health import WebhookHealth, read_webhook_health

log = structlog.get_logger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PATIENCE_S = 3.0  # for each of Redis and the ledger; Prometheus gives up after 10 s by default
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class AnswerTimes:
    """Times until responses began, by route template, method and status: counts in buckets, and sums."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], list[int]] = {}
        self._sums_s: dict[tuple[str, str, int], float] = {}

    def note(self, route: str, method: str, status: int, took_s: float) -> None:
        key = (route, method, status)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(_BOUNDS_S) + 1)
            self._sums_s[key] = 0.0
        counts[bisect_left(_BOUNDS_S, took_s)] += 1
        self._sums_s[key] += took_s

    def families(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "tweezer_api_answer_seconds",
            "Time until a response of this API process began; held requests (long polls) included",
            labels=("route", "method", "status"),
        )
        bounds = (*map(str, _BOUNDS_S), "+Inf")
        for (route, method, status), counts in self._counts.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric((route, method, str(status)), buckets, self._sums_s[route, method, status])
        yield family


class TimingMiddleware:
    """ASGI middleware: measure the time until each response begins.

    The route is ``none`` for a request that was rejected before its route was known. The status is 0 if the client
    disconnected before it received a response.
    """

    def __init__(self, app: ASGIApp, *, times: AnswerTimes) -> None:
        self._app = app
        self._times = times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        def note() -> None:
            method = scope["method"]
            route = getattr(scope.get("route"), "path", "none")
            took_s = time.perf_counter() - began
            self._times.note(route, method if method in _METHODS else "other", status, took_s)

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                note()
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            if status == 0:
                note()


class Metrics:
    """The metrics in Prometheus' text format."""

    def __init__(self, store: Store, database: Database, *, namespace: str, times: AnswerTimes) -> None:
        self._store = store
        self._database = database
        self._namespace = namespace
        self._times = times

    async def text(self) -> bytes:
        """Return the current metrics; those of Redis or of the ledger are left out while it does not respond."""
        families = [*self._times.families()]
        position: str | None = None
        delivered: str | None = None
        async with _trying("the ledger"):
            position = await self._database.run(read_recorder_position, self._database, self._namespace) or START
            webhooks = await self._database.run(read_webhook_health, self._database, self._namespace)
            families.extend(_webhook_families(webhooks))
            families.extend(_dead_letter_families(await self._database.run_read(count_letters)))
            families.extend(_schedule_families(await self._database.run_read(read_schedule_health)))
            families.extend(_ended_families(await self._database.run_read(device_totals)))
            delivered = webhooks.position
        families.append(_gauge("ledger_up", "Whether the ledger responded", delivered is not None))
        measures: Measures | None = None
        async with _trying("Redis"):
            measures = await measure(self._store.scripts, position, delivered)
            families.extend(_queue_families(measures))
            if delivered is not None:
                families.extend(_lag_families(measures))
            families.extend(_memory_families(await self._store.reader.server_info()))
        families.append(_gauge("redis_up", "Whether Redis responded", measures is not None))
        return generate_latest(_Collected(families))


class _Collected(Collector):
    """Finished metric families, as the collector that the library expects."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


@contextlib.asynccontextmanager
async def _trying(what: str) -> AsyncIterator[None]:
    """Log a failure or a timeout of the block instead of raising it: its metrics are left out."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            yield
    except (TweezerError, TimeoutError) as error:
        log.warning("metrics.left_out", of=what, error=str(error) or f"no response within {_PATIENCE_S:g} s")


def _webhook_families(webhooks: WebhookHealth) -> Iterator[Metric]:
    deliveries = GaugeMetricFamily(
        "tweezer_deliveries",
        "Webhook deliveries that are pending, exhausted or held, each counted up to 100000",
        labels=("status",),
    )
    for status in ("pending", "exhausted", "held"):
        deliveries.add_metric((status,), getattr(webhooks, status))
    yield deliveries
    yield _gauge(
        "deliveries_overdue", "Pending webhook deliveries that have been due for more than a minute", webhooks.overdue
    )
    yield _gauge("endpoints_disabled", "Webhook endpoints that are disabled", webhooks.disabled)
    yield _gauge(
        "endpoints_failing", "Webhook endpoints whose attempts have all failed for ten minutes", webhooks.failing
    )


def _dead_letter_families(letters: Mapping[Consumer, LetterCounts]) -> Iterator[Metric]:
    parked = GaugeMetricFamily(
        "tweezer_dead_letters", "Stream entries and messages that are parked now", labels=("consumer",)
    )
    total = CounterMetricFamily(
        "tweezer_dead_letters_parked", "Stream entries and messages that could not be processed", labels=("consumer",)
    )
    evicted = CounterMetricFamily(
        "tweezer_dead_letters_evicted", "Dead letters deleted because of their number or age", labels=("consumer",)
    )
    for consumer, it in letters.items():
        parked.add_metric((consumer.value,), it.letters)
        total.add_metric((consumer.value,), it.total)
        evicted.add_metric((consumer.value,), it.evicted)
    yield from (parked, total, evicted)


def _schedule_families(health: ScheduleHealth) -> Iterator[Metric]:
    statuses = GaugeMetricFamily("tweezer_schedules", "Schedules by status", labels=("status",))
    for status, count in health.statuses.items():
        statuses.add_metric((status.value,), count)
    ticks = CounterMetricFamily("tweezer_schedule_ticks", "Ticks of schedules by outcome", labels=("outcome",))
    for outcome, count in health.ticks.items():
        ticks.add_metric((outcome.value,), count)
    yield from (statuses, ticks)
    yield _gauge("schedule_tick_lag_seconds", "How long after its time the last tick was submitted", health.last_lag_s)
    yield _gauge("schedule_overdue_seconds", "Age of the oldest tick that no scheduler has handled", health.overdue_s)


def _ended_families(totals: Mapping[str, DeviceTotals]) -> Iterator[Metric]:
    ended = CounterMetricFamily("tweezer_jobs_ended", "Jobs that have ended", labels=("device", "status"))
    queued = HistogramMetricFamily(
        "tweezer_job_queue_seconds", "Time from submit to begin, of jobs that have ended", labels=("device",)
    )
    ran = HistogramMetricFamily("tweezer_job_run_seconds", "Time on the device, of jobs that ended", labels=("device",))
    bounds = (*(str(bound / 1000) for bound in TIME_BOUNDS_MS), "+Inf")
    for device, it in totals.items():
        for status, count in it.ended.items():
            ended.add_metric((device, status.value.lower()), count)
        for family, times in ((queued, it.queued), (ran, it.ran)):
            family.add_metric((device,), list(zip(bounds, accumulate(times.counts), strict=True)), times.sum_s)
    yield from (ended, queued, ran)


def _queue_families(measures: Measures) -> Iterator[Metric]:
    jobs = _by_device("jobs", "Pending and running jobs", "status")
    tickets = _by_device("tickets", "Tickets: ready to be taken, due later, or leased to a lane", "state")
    lanes = _by_device(
        "lanes", "Lanes of live workers: busy, free, or draining (free, but accepting no more work)", "state"
    )
    workers = _by_device("workers", "Live workers")
    up = _by_device("device_up", "Whether the device starts jobs: it has workers, and is neither paused nor down")
    answers = _by_device("machine_answers", "Whether the machine of the device answered when it was last asked")
    paused = _by_device("device_paused", "Whether the device is paused")
    wait = _by_device(
        "longest_wait_seconds", "Time since submission of the longest-waiting job at the front of the queue"
    )
    lost = CounterMetricFamily(
        "tweezer_leases_lost", "Leases that expired, so that their tickets were taken back", labels=("device",)
    )
    stale = CounterMetricFamily(
        "tweezer_settles_stale", "Settles rejected because their ticket has another holder", labels=("device",)
    )
    late = CounterMetricFamily(
        "tweezer_batches_late", "Batches that had not started by their schedule threshold", labels=("device",)
    )
    expired = CounterMetricFamily(
        "tweezer_batches_expired", "Batches that timed out because they did not start in time", labels=("device",)
    )
    stopped = CounterMetricFamily(
        "tweezer_batches_stopped", "Batches paused or cancelled because too many jobs failed", labels=("device",)
    )
    for device in measures.devices:
        name = device.name
        for status, count in (("pending", device.pending), ("running", device.running)):
            jobs.add_metric((name, status), count)
        for state, count in (("ready", device.ready), ("due", device.due), ("leased", device.leased)):
            tickets.add_metric((name, state), count)
        free = max(device.lanes - device.busy - device.draining, 0)
        for state, count in (("busy", device.busy), ("free", free), ("draining", device.draining)):
            lanes.add_metric((name, state), count)
        workers.add_metric((name,), device.workers)
        up.add_metric((name,), device.up)
        if device.answers is not None:
            answers.add_metric((name,), device.answers)
        paused.add_metric((name,), device.paused)
        wait.add_metric((name,), device.longest_wait_s or 0.0)
        lost.add_metric((name,), device.lost)
        stale.add_metric((name,), device.stale)
        late.add_metric((name,), device.late)
        expired.add_metric((name,), device.expired)
        stopped.add_metric((name,), device.stopped)
    yield from (jobs, tickets, lanes, workers, up, answers, paused, wait, lost, stale, late, expired, stopped)
    yield _gauge("stream_entries", "Entries in the event stream", measures.stream)
    yield _gauge("ended_batches", "Batches that have ended and are still in Redis", measures.ended)
    yield _gauge(
        "gate_shut",
        "Whether the gate is shut: no work is handed out until Redis is restored from the ledger",
        measures.gate_shut,
    )
    yield _gauge("recorder_active", "Whether a recorder is running", measures.recorder_active)
    yield _gauge("scheduler_active", "Whether a scheduler is running", measures.scheduler_active)


def _lag_families(measures: Measures) -> Iterator[Metric]:
    yield _gauge(
        "recorder_lag_seconds",
        "Age of the oldest stream entry that is not recorded in the ledger",
        measures.unrecorded_s,
    )
    yield _gauge(
        "recorder_lag_entries",
        "Stream entries that are not recorded in the ledger, counted up to 1000",
        measures.unrecorded,
    )
    waiting = "that no courier has turned into deliveries"
    yield _gauge("courier_lag_seconds", f"Age of the oldest stream entry {waiting}", measures.undelivered_s)
    yield _gauge("courier_lag_entries", f"Stream entries {waiting}, counted up to 1000", measures.undelivered)


def _memory_families(info: dict[str, int]) -> Iterator[Metric]:
    yield _gauge("redis_memory_bytes", "Memory that Redis uses", int(info.get("used_memory", 0)))
    yield _gauge(
        "redis_memory_limit_bytes", "Redis' maxmemory setting; 0 means no limit", int(info.get("maxmemory", 0))
    )


def _by_device(name: str, description: str, *more: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tweezer_{name}", description, labels=("device", *more))


def _gauge(name: str, description: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tweezer_{name}", description, value=value)
