"""Receivers misbehave, couriers are killed and Redis restarts: healthy receivers still get every webhook."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from sqlalchemy import select
from tests.support.effort import effort
from tests.support.processes import NULL, Site
from tests.support.redis_users import RedisServer
from tests.support.waiting import until
from tests.support.webhook_receiver import Received, Receiver

from tweezer import AsyncBatch
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schema import deliveries, projects, transitions
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.errors import NotFound
from tweezer.model.events import Event, read_events
from tweezer.model.webhooks import EventType
from tweezer.store.keys import Key
from tweezer.webhooks.deliveries import DELIVERED, EXHAUSTED, HELD, PENDING, read_log
from tweezer.webhooks.endpoints import Endpoint, create_endpoint, list_endpoints
from tweezer.webhooks.secrets import ensure_secrets

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(900)]

POLICY = WebhookPolicy.parse("127.0.0.0/8", "443")
ALL = tuple(it for it in EventType if it is not EventType.PING)
SCHEDULE_S = (0.0, 0.2, 0.5, 1.0, 1.0, 1.0)
CONNECTIONS, TIMEOUT_S, SLOW_S = 4, 5.0, 0.2
KILLS, RESTARTS = effort(short=(8, 2), full=(20, 3))
COURIERS = 2
BATCHES, JOBS = effort(short=15, full=30), 12
STANDSTILL_S = 120.0
"""The longest time without progress: a dead courier's webhooks are free after HOLD_S, and the next sweep finds them."""
LOST_S = 0.7
"""In one of its restarts, Redis loses the writes of about this many seconds."""

WELL = ("/well", "/well/theirs", "/well/webhook")
DELAYED = ("/slow", "/repaired")
STATUS = {"/error": 500, "/hang": None, "/reset": None, "/redirect": 302}
GONE, GONE_AFTER = "/gone", 10


def _lasting(it: Received) -> dict[str, Any]:
    """Return the parts that never change. Others may: a courier may die after it sent a webhook and before it recorded
    this, and a webhook sent again has the current state of the batch.
    """
    return {name: value for name, value in it.data.items() if name not in ("jobs", "open", "tags")}


class Receivers:
    """Healthy and misbehaving receivers on one port, distinguished by path."""

    def __init__(self) -> None:
        self.repaired = False
        self._gone = 0
        self.receiver = Receiver(self._answer)

    def _answer(self, it: Received) -> int | web.StreamResponse | None:
        match it.path:
            case "/error":
                return 500
            case "/hang":
                return None
            case "/reset":
                return Reset()
            case "/redirect":
                return web.Response(status=302, headers={"Location": "/well"})
            case "/slow":
                return Slow()
            case "/repaired":
                return 200 if self.repaired else 503
            case "/gone":
                self._gone += 1
                return 500 if self._gone <= GONE_AFTER else 410
            case _:
                return 204


class Reset(web.Response):
    """A response that closes the connection."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        assert request.transport is not None
        request.transport.abort()
        return await super().prepare(request)


class Slow(web.Response):
    """A slow response."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        await asyncio.sleep(SLOW_S)
        return await super().prepare(request)


class File:
    """Redis' append-only file, whose end can be cut off."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._sizes: list[tuple[float, int]] = []

    def look(self) -> None:
        self._sizes.append((time.monotonic(), self._path().stat().st_size))

    def restart(self, *, losing_s: float = 0.0) -> None:
        """Kill Redis and start it without the writes of the last seconds."""
        self._server.kill()
        if losing_s:
            before = time.monotonic() - losing_s
            os.truncate(self._path(), max(size for at, size in self._sizes if at <= before))
            self._sizes.clear()
        self._server.restart()

    def _path(self) -> Path:
        (path,) = self._server.data.rglob("*.incr.aof")
        return path


@pytest.fixture
def server(tmp_path: Path, real_redis_url: str) -> Iterator[RedisServer]:
    """A private server that may be killed. The fixture of the shared one skips the test if none is installed."""
    with RedisServer(tmp_path / "redis", kind="redis", options={"auto-aof-rewrite-percentage": "0"}) as server:
        yield server


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(OpenDatabase(f"sqlite:///{tmp_path / 'ledger.db'}"), create=True)
    upgrade(opened)
    yield opened
    opened.close()


def register(database: Database, receiver: Receiver) -> None:
    """Register the endpoints of two projects: each has a healthy one, and the first also has all that misbehave."""
    with database.write() as connection:
        for project, path in (
            ("ours", WELL[0]),
            ("theirs", WELL[1]),
            *(("ours", path) for path in (*DELAYED, *STATUS, GONE)),
        ):
            project_no(connection, project)
            types = ALL if path == WELL[0] else ()
            create_endpoint(connection, POLICY, project_id=project, url=receiver.url(path), types=types)


class Storm:
    """Mishaps of couriers and Redis, chosen with a seed."""

    def __init__(self, site: Site, file: File, seed: int) -> None:
        self._site = site
        self._file = file
        self._random = random.Random(seed)
        self.couriers = [site.spawn("courier") for _ in range(COURIERS)]
        self.kills = 0
        self.restarts = 0
        self.lost_us = (0, 0)

    @property
    def is_over(self) -> bool:
        return self.kills >= KILLS and self.restarts >= RESTARTS

    async def strike(self) -> None:
        """Kill a courier and start another one, or at certain times restart Redis."""
        self._file.look()
        up = [courier for courier in self.couriers if courier.logged("courier.started")]
        if self.restarts < RESTARTS and self.kills >= (self.restarts + 1) * KILLS // (RESTARTS + 1):
            self.restarts += 1
            losing_s = LOST_S if self.restarts == 2 else 0.0
            now_us = time.time_ns() // 1000
            await asyncio.to_thread(self._file.restart, losing_s=losing_s)
            if losing_s:
                self.lost_us = (now_us - 2_000_000, time.time_ns() // 1000)
        elif up and self.kills < KILLS:
            victim = self._random.choice(up)
            victim.kill()
            self.kills += 1
            self.couriers[self.couriers.index(victim)] = self._site.spawn("courier")


async def test_in_a_storm_every_event_reaches_healthy_receivers_with_one_id(
    server: RedisServer, database: Database, tmp_path: Path
) -> None:
    seed = random.randrange(1_000_000)
    print("seed of the storm:", seed)  # noqa: T201  # shown when the test fails
    draw = random.Random(seed)
    receivers = Receivers()
    settings = {
        "database_url": str(database.engine.url),
        "data_dir": tmp_path,
        "webhook_allow": "127.0.0.0/8",
        "webhook_schedule_s": list(SCHEDULE_S),
        "webhook_timeout_s": TIMEOUT_S,
        "webhook_endpoint_connections": CONNECTIONS,
    }
    async with (
        receivers.receiver as receiver,
        Site(server.url, tmp_path, **settings) as site,
        site.connect("theirs") as theirs,
    ):
        register(database, receiver)
        await site.serves(site.spawn("recorder"))
        await site.workers(1, lanes=4)
        batches: list[AsyncBatch] = []
        with_webhook: set[UUID] = set()
        began = time.monotonic()
        storm = Storm(site, File(server), seed)
        await until(lambda: has_joined(site), "a courier that reads the events")
        while not storm.is_over or len(batches) < BATCHES:
            if len(batches) < BATCHES:
                webhook = draw.choice([None, receiver.url(WELL[2])])
                jobs = [{"runs": 1, "variables": {"sleep_s": draw.uniform(0.0, 0.05)}} for _ in range(JOBS)]
                queue = draw.choice([site.queue, site.queue, theirs]) if webhook is None else site.queue
                batches.append(await queue.submit(None, jobs, device=NULL, webhook=webhook))
                if webhook:
                    with_webhook.add(batches[-1].id)
            await storm.strike()
            receivers.repaired = storm.kills > KILLS / 2
            await asyncio.sleep(draw.uniform(0.2, 0.5))  # the interval between mishaps, not a wait for a condition
        print(f"the storm lasted {time.monotonic() - began:.0f} s")  # noqa: T201
        ended = {batch.id for batch in batches if await is_over(batch)}
        print(f"{len(batches) - len(ended)} batches were lost with the end of the file")  # noqa: T201
        checks = Checks(database, receiver, tmp_path, ended, with_webhook)
        await drained(checks.running)
        await drained(checks.missing)
        await drained(checks.undelivered)
        checks.check_receipts(storm.lost_us)
        checks.check_attempts()
        checks.check_gone()


async def has_joined(site: Site) -> bool:
    """Return whether the stream is kept for couriers."""
    redis: Any = site.store.redis
    stream = site.store.keys(Key.EVENTS)
    return bool(await redis.exists(stream) and await redis.xinfo_groups(stream))


async def drained(left: Callable[[], Counter[str]]) -> None:
    """Wait until nothing is left; fail if the number does not decrease for STANDSTILL_S."""
    least, deadline = math.inf, 0.0
    while remains := left():
        if remains.total() < least:
            least, deadline = remains.total(), time.monotonic() + STANDSTILL_S
        assert time.monotonic() < deadline, f"{left.__name__}: no progress for {STANDSTILL_S:g} s: {remains}"
        await asyncio.sleep(0.3)  # the receivers need their share of this process


async def is_over(batch: AsyncBatch) -> bool:
    """Wait for the end of the batch; return False if Redis lost the batch before it was recorded."""
    try:
        return (await batch.wait(STANDSTILL_S)).status.terminal
    except NotFound:
        return False


class Checks:
    """Compare the events in the ledger with what the receivers got."""

    def __init__(
        self,
        database: Database,
        receiver: Receiver,
        folder: Path,
        batches: Collection[UUID],
        webhooks: Collection[UUID],
    ) -> None:
        self._database = database
        self._receiver = receiver
        self._vault = Vault.of("", folder)
        self._batches = batches
        self._webhooks = webhooks

    def running(self) -> Counter[str]:
        """Return the batches whose end is not recorded."""
        over = {event.batch_id for event, _ in self._events() if event.index is None and event.status.terminal}
        return Counter(str(batch_id) for batch_id in set(self._batches) - over)

    def missing(self) -> Counter[str]:
        """Return the number of events that have not reached healthy receivers, by path."""
        return +Counter({path: len(self._missing(path)) for path in WELL})

    def undelivered(self) -> Counter[str]:
        """Return the number of unfinished deliveries to healthy, slow, repaired or gone receivers, by path."""
        paths = {endpoint.id: self._path(endpoint) for endpoint in self._endpoints()}
        pending = Counter(paths[row.endpoint] for row in self._rows() if row.status == PENDING)
        slow = Counter({path: len(self._missing(path)) for path in DELAYED[:1]})
        return +(Counter({path: pending[path] for path in (*WELL, *DELAYED, GONE)}) | slow)

    def check_receipts(self, lost_us: tuple[int, int]) -> None:
        """Check the signatures, that each event has one id, that the chain has no gap, and that each event happened.

        Events that Redis lost before they were recorded are an exception.
        """
        secrets = self._secrets()
        happened = {event.id for event, _ in self._events()}
        lost: set[str] = set()
        for it in self._receiver.received:
            it.verify(secrets[it.path])
            if it.type.startswith(("job.", "batch.")) and it.id not in happened:
                assert lost_us[0] <= int(it.id.rpartition(":")[2]) <= lost_us[1], f"{it.id} never happened"
                lost.add(it.data["batch_id"])
        for path in WELL:
            by_batch: dict[str, dict[int, Received]] = defaultdict(dict)
            for it in self._receiver.received:
                if it.path == path and it.data.get("batch_id", "") not in {"", *lost}:
                    first = by_batch[it.data["batch_id"]].setdefault(it.data["sequence"], it)
                    assert (it.id, _lasting(it)) == (first.id, _lasting(first))
            for received in by_batch.values():
                chain = [(received[sequence].data["previous_sequence"], sequence) for sequence in sorted(received)]
                assert [before for before, _ in chain] == [None, *(sequence for _, sequence in chain[:-1])]
        times = Counter((it.path, it.id) for it in self._receiver.received if it.path in WELL)
        print(f"{len(happened)} events, {len(times)} of them at healthy receivers")  # noqa: T201
        print(f"{times.total() - len(times)} repeats, {len(lost)} batches whose events were lost")  # noqa: T201

    def check_attempts(self) -> None:
        """Check that the status of each delivery follows from its attempts, and that each recorded attempt was made."""
        made = Counter((it.path, it.id) for it in self._receiver.received)
        recorded: Counter[tuple[str, str]] = Counter()
        statuses: dict[str, Counter[str]] = defaultdict(Counter)
        paths = {endpoint.id: self._path(endpoint) for endpoint in self._endpoints()}
        for row in self._rows():
            path, log = paths[row.endpoint], read_log(row.log)
            statuses[path][row.status] += 1
            recorded[path, row.event] = len(log)
            assert row.attempts == len(log) <= made[path, row.event]
            assert [attempt.number for attempt in log] == list(range(1, len(log) + 1))
            if path in STATUS:
                assert {attempt.status for attempt in log} <= {STATUS[path]}
                assert row.status == (EXHAUSTED if len(log) == len(SCHEDULE_S) else PENDING)
                assert (row.due_ms is None) == (row.status == EXHAUSTED)
            elif path in WELL:
                assert (row.status, log[-1].status) == (DELIVERED, 204)
        assert statuses["/error"][EXHAUSTED] or statuses["/error"][PENDING]
        # A killed courier could not record its last attempts.
        print(f"{recorded.total()} attempts recorded, {made.total() - recorded.total()} more were made")  # noqa: T201
        assert made.total() - recorded.total() <= KILLS * CONNECTIONS * len(paths)

    def check_gone(self) -> None:
        """Check that a receiver that answered 410 gets nothing more, and that its project is informed."""
        (gone,) = [endpoint for endpoint in self._endpoints() if self._path(endpoint) == GONE]
        assert gone.disabled is not None
        assert {row.status for row in self._rows() if row.endpoint == gone.id} <= {HELD, EXHAUSTED}
        notices = {it.id for it in self._receiver.received if it.type == "endpoint.disabled" and it.path == WELL[0]}
        assert len(notices) == 1

    def _missing(self, path: str) -> set[str]:
        subscribed = (endpoint.subscribed for endpoint in self._endpoints() if self._path(endpoint) == path)
        types = next(subscribed, frozenset(EventType))  # a batch's webhook has no endpoint before its first event
        received = {it.id for it in self._receiver.received if it.path == path}
        return {
            event.id
            for event, project in self._events()
            if event.type in types and self._concerns(path, event, project)
        } - received

    def _concerns(self, path: str, event: Event, project: str) -> bool:
        if path == WELL[2]:
            return event.batch_id in self._webhooks
        return project == ("theirs" if path == WELL[1] else "ours")

    def _events(self) -> list[tuple[Event, str]]:
        table = transitions.c
        query = select(table.batch, table.sequence_number, table.time_us, table.words, projects.c.id)
        with self._database.read() as connection:
            rows = connection.execute(query.join(projects, projects.c.no == table.project)).all()
        return [(event, project) for *entry, project in rows for event in read_events(*entry)]

    def _rows(self) -> list[Any]:
        with self._database.read() as connection:
            return list(connection.execute(deliveries.select()))

    def _endpoints(self) -> list[Endpoint]:
        with self._database.read() as connection:
            return list_endpoints(connection)

    def _secrets(self) -> dict[str, str]:
        """Return the signing secret of each path; batches of two projects never share one."""
        with self._database.write() as connection:
            return {
                self._path(it): ensure_secrets(connection, self._vault, it.secret_owner)[0].text
                for it in list_endpoints(connection)
            }

    @staticmethod
    def _path(endpoint: Endpoint) -> str:
        return f"/{endpoint.url.split('/', 3)[3]}"
