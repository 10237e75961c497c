"""The courier with a real Redis and both databases, with healthy and misbehaving receivers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import redis.asyncio
from aiohttp import web
from sqlalchemy import delete
from tests.support.redis_users import as_user
from tests.support.store_rig import StoreRig
from tests.support.waiting import PATIENCE_S, until
from tests.support.webhook_receiver import Received, Receiver

from tweezer.duties import end_tasks
from tweezer.ledger.access.links import ResultLinks
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.database import Database
from tweezer.ledger.dead_letters import Consumer, Letter, list_letters, request_retry
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.ledger.recorder.restore import append_lost_events
from tweezer.ledger.schema import deliveries, endpoints
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.errors import Unavailable
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.streams.feed import COURIERS, START, EntryGroup, position_number
from tweezer.webhooks import courier as couriers
from tweezer.webhooks import outbox as outboxes
from tweezer.webhooks.attempts import Deliverer
from tweezer.webhooks.courier import Courier, CourierTuning
from tweezer.webhooks.deliveries import Alarms, AttemptOutcome, ClaimedDelivery, Deliveries, NewDelivery, read_log
from tweezer.webhooks.endpoints import Endpoint, create_endpoint, disable_endpoint, enable_endpoint, find_endpoint
from tweezer.webhooks.outbox import Outbox, RetrySchedule
from tweezer.webhooks.payloads import Payloads
from tweezer.webhooks.secrets import SecretCache, SecretOwner, ensure_secrets, rotate_secret
from tweezer.webhooks.sender import Sender
from tweezer.webhooks.subscriptions import read_registered

NAMESPACE = "test"
POLICY = WebhookPolicy.parse("127.0.0.0/8", "443")
NEVER_S = 3600.0
SOON_S = 20.0  # much less than the time after which entries count as abandoned


class Post:
    """A store, a ledger, and couriers that a test starts one by one."""

    def __init__(self, rig: StoreRig, store: Store, database: Database, folder: Path) -> None:
        self.rig = rig
        self.store = store
        self.database = database
        self.vault = Vault.of("", folder)
        self.running: list[tuple[Courier, list[asyncio.Task[Any]]]] = []

    async def start(
        self,
        *,
        delays_s: tuple[float, ...] = (0.0, 0.01, 0.01),
        connections: int = 4,
        timeout_s: float = 5.0,
        attempts: int = 64,
        **tuning: Any,
    ) -> Courier:
        deliverer = self.deliverer(attempts=attempts, timeout_s=timeout_s)
        courier = self.courier(deliverer, delays_s=delays_s, connections=connections, **tuning)
        tasks = [asyncio.create_task(courier.run()), asyncio.create_task(deliverer.write_outcomes())]
        self.running.append((courier, tasks))
        return courier

    def courier(
        self, deliverer: Deliverer, *, delays_s: tuple[float, ...] = (0.0,), connections: int = 4, **tuning: Any
    ) -> Courier:
        links = ResultLinks(self.database, lambda: self.vault, base_url="http://api.test", link_s=3600)
        return Courier(
            self.store,
            self.database,
            Payloads(self.store, self.database, links),
            deliverer,
            namespace=NAMESPACE,
            reader=f"courier-{len(self.running)}",
            schedule=RetrySchedule(delays_s),
            connections=connections,
            tuning=CourierTuning(**{"wait_s": 0.05, **tuning}),
        )

    def deliverer(self, *, attempts: int = 64, timeout_s: float = 5.0) -> Deliverer:
        return Deliverer(
            self.store,
            self.database,
            Deliveries(self.database, NAMESPACE),
            Sender(POLICY, timeout_s=timeout_s),
            SecretCache(self.database, self.vault),
            connections=attempts,
            disable_s=NEVER_S,
        )

    async def kill(self, courier: Courier) -> None:
        """End the courier like a crash: it gives nothing back."""
        for other, tasks in self.running:
            if other is courier:
                await end_tasks(*tasks)

    async def close(self) -> None:
        for courier, tasks in self.running:
            await end_tasks(*tasks)
            with contextlib.suppress(Exception):
                await courier.close()

    def endpoint(self, url: str, *types: str, project: str = "a") -> Endpoint:
        with self.database.write() as connection:
            project_no(connection, project)
            return create_endpoint(connection, POLICY, project_id=project, url=url, types=types)

    def secret(self, endpoint: Endpoint | None = None, project: str = "a") -> str:
        with self.database.write() as connection:
            no = project_no(connection, project)
            owner = SecretOwner(no, None if endpoint is None else endpoint.id)
            return ensure_secrets(connection, self.vault, owner)[0].text

    def rows(self) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(deliveries.select().order_by(deliveries.c.created_ms)))

    def statuses(self) -> list[str]:
        return [row.status for row in self.rows()]

    def find(self, endpoint: Endpoint) -> Endpoint:
        with self.database.read() as connection:
            return find_endpoint(connection, endpoint.id)

    async def batch(self, jobs: int, webhook: str | None = None, *, project: str = "a") -> UUID:
        doc = BatchDoc(device="EMU", sequence="{}", webhook=webhook)
        return await self.rig.commands.submit(new_batch_id(), project, doc, [JobSpec(runs=10)] * jobs)


@pytest.fixture
async def post(real_redis_url: str, database: Database, tmp_path: Path) -> AsyncIterator[Post]:
    client: Any = redis.asyncio.Redis.from_url(real_redis_url)
    rig = StoreRig(client)
    await rig.announce(lanes=2)
    url = as_user(real_redis_url, RedisUser.COURIER, namespace=NAMESPACE)
    async with Store.open(Connect(url=url, namespace=NAMESPACE)) as store:
        made = Post(rig, store, database, tmp_path)
        yield made
        await made.close()
    await rig.store.news.close()
    await client.aclose()


def ping(event: str) -> ClaimedDelivery:
    return ClaimedDelivery(uuid4(), event, "ping", '{"type":"ping","data":{}}')


def all_delivered(post: Post, count: int) -> Callable[[], bool]:
    return lambda: post.statuses().count("D") == count


def assert_chained(received: list[Received]) -> None:
    """Check that each webhook of a batch to a receiver names the previous one."""
    chain = sorted((it.data["sequence"], it.data["previous_sequence"]) for it in received)
    assert [before for _, before in chain] == [None, *(number for number, _ in chain[:-1])]


async def test_the_webhook_of_a_batch_gets_the_ends_of_its_jobs_and_all_events_of_the_batch(post: Post) -> None:
    async with Receiver() as receiver:
        batch_id = await post.batch(3, receiver.url())
        await post.rig.run_all()
        await post.start()
        await until(all_delivered(post, 6), "six deliveries")
    assert receiver.types == {"batch.created": 1, "batch.running": 1, "job.done": 3, "batch.done": 1}
    secret = post.secret()
    for it in receiver.received:
        it.verify(secret)
        assert it.data["batch_id"] == str(batch_id)
    assert {it.id for it in receiver.received} < {event.id for event in await post.rig.events(batch_id)}
    done = next(it for it in receiver.received if it.type == "job.done")
    assert done.data["result"]["counter"] == {"01": 10}
    assert done.data["result"]["link"].startswith("http://api.test/")


async def test_each_event_names_the_previous_one_at_the_same_endpoint(post: Post) -> None:
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/ends"), "job.done", "batch.done")
        post.endpoint(receiver.url("/all"))
        await post.batch(5)
        await post.rig.run_all()
        await post.start()
        await until(all_delivered(post, 6 + 8), "the deliveries")
        for path in ("/ends", "/all"):
            chain = sorted(
                (it.data["sequence"], it.data["previous_sequence"]) for it in receiver.received if it.path == path
            )
            assert [before for _, before in chain] == [None, *(number for number, _ in chain[:-1])]


async def test_several_couriers_send_each_event_once_and_in_one_chain(post: Post) -> None:
    async with Receiver() as receiver:
        endpoint = post.endpoint(receiver.url(), "job.running", "job.done", "batch.done")
        for _ in range(3):
            await post.start(entries=3)
        batches = [await post.batch(20) for _ in range(5)]
        await post.rig.run_all()
        await until(all_delivered(post, 5 * 41), "all deliveries")
        assert set(receiver.ids.values()) == {1}
        assert {row.endpoint for row in post.rows()} == {endpoint.id}
        for batch_id in batches:
            assert_chained([it for it in receiver.received if it.data["batch_id"] == str(batch_id)])


async def test_a_courier_waits_while_events_are_new_and_then_reads_them(post: Post) -> None:
    async with Receiver() as receiver:
        post.endpoint(receiver.url(), "batch.created")

        async def step(**tuning: Any) -> asyncio.Task[int]:
            """Begin a step with one new batch, and return once its events are processed."""
            courier = post.courier(post.deliverer(), **tuning)
            post.running.append((courier, []))
            await courier.join()
            await post.batch(1)
            stepping = asyncio.create_task(courier.step())

            async def is_processed() -> bool:
                group = (await post.rig.redis.xinfo_groups(post.rig.keys(Key.EVENTS)))[0]
                return bool(group["lag"] == 0 and group["pending"] == 0)

            await until(is_processed, "the entry")
            return stepping

        resting = await step(rest_s=1000.0, fresh_s=1000.0)
        assert not (await asyncio.wait([resting], timeout=0.1))[0]
        await end_tasks(resting)
        assert await (await step(rest_s=1000.0, fresh_s=0.0)) == 1
        assert await (await step(rest_s=0.0, fresh_s=1000.0)) == 1


async def test_a_failed_attempt_is_repeated_with_the_same_id_and_body_and_all_are_kept(post: Post) -> None:
    async with Receiver() as receiver:
        tries: dict[str, int] = {}

        def twice_bad(it: Received) -> int:
            tries[it.id] = tries.get(it.id, 0) + 1
            return 500 if tries[it.id] < 3 else 200

        receiver.answer = twice_bad
        post.endpoint(receiver.url(), "batch.done")
        await post.batch(1)
        await post.rig.run_all()
        courier = await post.start()

        async def delivered() -> bool:
            await courier.sweep()
            return post.statuses() == ["D"]

        await until(delivered, "the third attempt")
    assert len(receiver.received) == 3
    assert len({(it.id, it.body) for it in receiver.received}) == 1
    (row,) = post.rows()
    assert [attempt.status for attempt in read_log(row.log)] == [500, 500, 200]
    assert row.attempts == 3


async def test_a_delivery_ends_when_its_schedule_is_exhausted(post: Post) -> None:
    async with Receiver(lambda _: 500) as receiver:
        post.endpoint(receiver.url(), "batch.done")
        await post.batch(1)
        await post.rig.run_all()
        courier = await post.start(delays_s=(0.0, 0.0))

        async def exhausted() -> bool:
            await courier.sweep()
            return post.statuses() == ["E"]

        await until(exhausted, "the end of the schedule")
    assert len(receiver.received) == 2
    assert [attempt.next_ms is None for attempt in read_log(post.rows()[0].log)] == [False, True]


async def test_a_receiver_that_answers_410_is_disabled_and_others_continue(post: Post) -> None:
    async with Receiver(lambda it: 410 if it.path == "/gone" else 200) as receiver:
        gone = post.endpoint(receiver.url("/gone"), "job.done")
        post.endpoint(receiver.url("/owner"), "endpoint.disabled")
        await post.start(connections=1)
        await post.batch(3)
        await post.rig.run_all()
        await until(lambda: receiver.types["endpoint.disabled"] == 1, "the notice")
        (notice,) = [it for it in receiver.received if it.type == "endpoint.disabled"]
        assert notice.data["endpoint_id"] == str(gone.id)
        await post.batch(1)
        await post.rig.run_all()
        await until(lambda: post.statuses().count("H") == 4, "what is held back")
    assert sum(it.path == "/gone" for it in receiver.received) == 1


async def test_a_dead_receiver_gets_nothing_for_a_while_and_others_do_not_wait(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "_COOL_S", 600.0)
    async with Receiver(lambda it: None if it.path == "/dead" else 200) as receiver:
        post.endpoint(receiver.url("/dead"), "job.done")
        post.endpoint(receiver.url("/well"), "job.done")
        await post.start(timeout_s=1.5, delays_s=(0.0, 600.0), connections=2)
        await post.batch(300)
        await post.rig.run_all()
        await until(lambda: post.statuses().count("D") == 300, "the healthy one's deliveries")
        await until(lambda: sum(it.path == "/dead" for it in receiver.received) >= 5, "five tries")
    assert sum(it.path == "/dead" for it in receiver.received) < 10
    assert post.statuses().count("P") == 300


async def test_dead_receivers_of_one_project_do_not_delay_others(post: Post) -> None:
    async with Receiver(lambda it: None if it.path.startswith("/dead") else 200) as receiver:
        for number in range(4):
            post.endpoint(receiver.url(f"/dead/{number}"), "batch.created", project="a")
        post.endpoint(receiver.url("/well"), "batch.created", project="b")
        await post.start(attempts=4, timeout_s=NEVER_S)
        await post.batch(1, project="a")
        await until(lambda: len(receiver.received) == 2, "half of the attempts at once")
        await post.batch(1, project="b")
        await until(all_delivered(post, 1), "the other project's delivery")
    assert sum(it.path.startswith("/dead") for it in receiver.received) == 2


async def test_retry_after_is_respected(post: Post) -> None:
    async with Receiver(lambda _: web.Response(status=429, headers={"Retry-After": "3000"})) as receiver:
        post.endpoint(receiver.url(), "batch.done")
        await post.batch(1)
        await post.rig.run_all()
        await post.start()
        await until(lambda: post.rows() != [] and post.rows()[0].attempts == 1, "the attempt")
        row = post.rows()[0]
        (attempt,) = read_log(row.log)
        assert attempt.next_ms == row.due_ms
        assert row.due_ms - attempt.at_ms >= 3_000_000


async def test_webhooks_are_written_before_they_are_sent_so_that_each_id_has_one_body(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tries = Deliveries.write, []

    def fail_at_first(self: Deliveries, rows: Sequence[NewDelivery], position: int | None) -> set[UUID]:
        tries.append(rows)
        if len(tries) == 1:
            raise Unavailable("the ledger is away")
        return write(self, rows, position)

    monkeypatch.setattr(Deliveries, "write", fail_at_first)
    async with Receiver() as receiver:
        post.endpoint(receiver.url(), "batch.created")
        await post.start(abandoned_s=0.3)
        await post.batch(2)
        await until(lambda: len(tries) == 1, "the write that fails")
        await post.rig.run_all()  # a body made now would have other counts of jobs
        await until(all_delivered(post, 1), "the delivery")
    (row,) = post.rows()
    assert [it.body.decode() for it in receiver.received] == [row.body]


async def test_another_courier_sends_the_deliveries_of_a_killed_one(post: Post) -> None:
    async with Receiver(lambda _: None) as receiver:
        post.endpoint(receiver.url(), "job.done")
        await post.batch(4)
        await post.rig.run_all()
        first = await post.start(connections=2)
        await until(lambda: len(receiver.received) == 2, "two attempts that hang")
        await post.kill(first)
        with post.database.write() as connection:  # the hold of the killed courier has expired
            connection.execute(deliveries.update().values(due_ms=1))
        receiver.answer = lambda _: 200
        second = await post.start()
        await second.sweep()
        await until(all_delivered(post, 4), "the deliveries")


async def test_entries_that_a_killed_courier_read_but_did_not_write_are_written_by_another(post: Post) -> None:
    async with Receiver() as receiver:
        post.endpoint(receiver.url(), "job.done")
        await post.batch(2)
        await post.rig.run_all()
        entries = await post.rig.store.events.read()
        await EntryGroup(post.rig.store.scripts, COURIERS, "dead").join(START)
        await post.rig.redis.xreadgroup("couriers", "dead", {"test:events": ">"})
        assert (await post.rig.redis.xpending("test:events", "couriers"))["pending"] >= len(entries)
        await post.start(abandoned_s=0.05)
        await until(all_delivered(post, 2), "the deliveries")

        async def acknowledged() -> bool:
            return bool((await post.rig.redis.xpending("test:events", "couriers"))["pending"] == 0)

        await until(acknowledged)
    assert set(receiver.ids.values()) == {1}


async def test_deliveries_that_exceed_a_couriers_memory_wait_in_the_ledger(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tweezer.webhooks.outbox.QUEUE_MAX", 10)
    monkeypatch.setattr("tweezer.webhooks.outbox._CLAIM", 20)
    async with Receiver() as receiver:
        post.endpoint(receiver.url(), "job.done")
        await post.start()
        await post.batch(200)
        await post.rig.run_all()
        await until(all_delivered(post, 200), "all deliveries")
    assert set(receiver.ids.values()) == {1}


async def test_both_secrets_sign_while_one_is_rotated(post: Post) -> None:
    async with Receiver() as receiver:
        endpoint = post.endpoint(receiver.url(), "batch.created")
        old = post.secret(endpoint)
        with post.database.write() as connection:
            new = rotate_secret(connection, post.vault, endpoint.secret_owner).secret
        await post.start()
        await post.batch(1)
        await until(lambda: len(receiver.received) == 1)
        receiver.received[0].verify(old)
        receiver.received[0].verify(new)


async def test_projects_get_events_of_only_their_batches_and_of_all_devices(post: Post) -> None:
    async with Receiver() as receiver:
        for project in ("a", "b"):
            post.endpoint(receiver.url(f"/{project}"), "batch.created", "device.paused", "device.up", project=project)
        await post.start()
        await post.batch(1, project="a")
        await post.rig.devices.pause("EMU", "the laser warms up")
        await post.rig.devices.pause("EMU", "the laser warms up")
        await post.rig.devices.resume("EMU")
        await until(all_delivered(post, 5), "the deliveries")
    received = sorted((it.path, it.type) for it in receiver.received)
    both = [(path, type_) for path in ("/a", "/b") for type_ in ("device.paused", "device.up")]
    assert received == sorted([("/a", "batch.created"), *both])
    paused = next(it for it in receiver.received if it.type == "device.paused")
    assert paused.data == {"device": "EMU", "status": "paused", "reason": "the laser warms up", "until": None}


async def test_an_enabled_endpoint_gets_new_events(post: Post) -> None:
    async with Receiver() as receiver:
        endpoint = post.endpoint(receiver.url(), "batch.created")
        with post.database.write() as connection:
            disable_endpoint(connection, endpoint.id, "maintenance")
        await post.start()
        await post.batch(1)
        await until(lambda: post.statuses() == ["H"])
        with post.database.write() as connection:
            enable_endpoint(connection, endpoint.id)
        await Alarms(post.rig.store).note_change()
        await post.batch(1)
        await until(lambda: sorted(post.statuses()) == ["D", "H"])


async def test_an_attempt_that_cannot_begin_before_its_deadline_is_skipped(post: Post) -> None:
    async with Receiver(lambda _: None) as receiver:
        endpoint = post.endpoint(receiver.url())
        deliverer = post.deliverer(attempts=1)
        first = asyncio.create_task(deliverer.send(endpoint, ping("e:1"), time.monotonic() + 60))
        try:
            await until(lambda: len(receiver.received) == 1, "the first attempt")
            assert await deliverer.send(endpoint, ping("e:2"), time.monotonic() + 0.05) is None
        finally:
            await end_tasks(first)
            await deliverer.close()
    assert receiver.ids == {"e:1": 1}


async def test_an_endpoint_is_given_up_at_once_and_disabled_after_the_notice_is_written(post: Post) -> None:
    endpoint, deliverer = post.endpoint("http://127.0.0.1:1/"), post.deliverer()
    events = post.rig.store.events
    assert await deliverer.claim(endpoint.id, 1, deliverer.new_claim()) is not None
    await asyncio.gather(*(deliverer.give_up(endpoint.id, "410") for _ in range(3)))
    assert await deliverer.claim(endpoint.id, 1, deliverer.new_claim()) is None
    assert post.find(endpoint).disabled is None
    (notice,) = [entry.notice for entry in await events.read() if entry.notice is not None]
    await deliverer.disable(notice)
    disabled = post.find(endpoint)
    assert (disabled.disabled is not None, disabled.disabled_why) == (True, "410")
    with post.database.write() as connection:
        enable_endpoint(connection, endpoint.id)
    await deliverer.disable(notice)  # a courier may receive the same notice again
    assert post.find(endpoint).disabled is None
    await deliverer.close()


async def test_the_event_of_a_disabled_endpoint_is_repeated_if_redis_lost_it(post: Post) -> None:
    endpoint, events = post.endpoint("http://127.0.0.1:1/"), post.rig.store.events
    for _ in range(2):  # two couriers may do this, or one courier twice
        deliverer = post.deliverer()
        await deliverer.give_up(endpoint.id, "410")
        await deliverer.close()
    first, again = [entry.notice for entry in await events.read() if entry.notice is not None]
    assert first.id == again.id
    assert post.find(endpoint).disabled is None


async def test_an_endpoint_removed_at_the_last_moment_does_not_block_others(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Receiver() as receiver:
        removed = post.endpoint(receiver.url("/removed"), "batch.created")
        post.endpoint(receiver.url("/well"), "batch.created")
        write = Deliveries.write

        def write_late(self: Deliveries, rows: Sequence[NewDelivery], position: int | None) -> set[UUID]:
            with post.database.write() as connection:
                connection.execute(delete(endpoints).where(endpoints.c.id == removed.id))
            return write(self, rows, position)

        monkeypatch.setattr(Deliveries, "write", write_late)
        await post.start()
        await post.batch(1)
        await until(all_delivered(post, 1), "the other's delivery")
    assert {it.path for it in receiver.received} >= {"/well"}


async def test_more_receivers_than_the_cache_holds_all_get_their_events(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(couriers, "_OUTBOXES_KEPT", 2)
    async with Receiver() as receiver:
        for number in range(9):
            post.endpoint(receiver.url(f"/{number}"), "batch.created")
        await post.start()
        for _ in range(3):
            await post.batch(1)
        await until(all_delivered(post, 27), "all deliveries")
    assert set(receiver.ids.values()) == {9}


async def test_results_of_attempts_that_could_not_be_written_are_written_later(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, errors = Deliveries.record, [RuntimeError("a bug"), RuntimeError("another")]

    def fail_at_first(self: Deliveries, outcomes: Sequence[AttemptOutcome]) -> None:
        if errors:
            raise errors.pop()
        finish(self, outcomes)

    monkeypatch.setattr(Deliveries, "record", fail_at_first)
    async with Receiver() as receiver:
        post.endpoint(receiver.url(), "batch.created")
        await post.start()
        await post.batch(1)
        await until(all_delivered(post, 1), "the note")
    assert set(receiver.ids.values()) == {1}


async def test_dead_receivers_are_forgotten_when_they_may_be_retried(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "_COOL_S", 0.0)
    outbox = Outbox(
        post.endpoint("http://127.0.0.1:1/"),
        deliverer := post.deliverer(),
        connections=1,
        schedule=RetrySchedule((0.0,)),
    )
    outbox.offer([ping(f"e:{number}") for number in range(10)], deliverer.new_claim())
    assert not outbox.is_idle
    await until(lambda: outbox.is_idle, "the end of all attempts")
    await outbox.close()
    await deliverer.close()


async def test_the_position_is_written_together_with_the_deliveries(post: Post) -> None:
    courier = await post.start()
    await post.batch(1)
    entries = await post.rig.store.events.read()
    position = Deliveries(post.database, NAMESPACE).position
    await until(lambda: position() == position_number(entries[-1].id))
    with post.database.read() as connection:
        assert read_registered(connection, None) == {}
    assert msgspec.json.encode(position()) != b"0"
    await post.kill(courier)


async def test_an_event_that_cannot_be_sent_is_parked_and_others_are_sent(post: Post) -> None:
    """Once the record is repaired, the event is sent with all those that waited behind it."""
    recorder = Recorder(post.rig.store, post.database, namespace=NAMESPACE)
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/a"))
        post.endpoint(receiver.url("/b"), project="b")
        bad = await post.batch(2)
        name = post.rig.keys(Key.BATCH, bad)
        doc = await post.rig.redis.hget(name, "doc")
        await post.rig.redis.hset(name, "doc", b"\xc1")
        await post.rig.redis.xadd(post.rig.keys(Key.EVENTS), {"x": "y"})
        await post.rig.redis.xadd(
            post.rig.keys(Key.EVENTS), {"n": "endpoint.disabled", "i": "x:1", "p": "no", "t": 1, "d": "{}"}
        )
        for _ in range(2):
            await post.start()
        await post.batch(2, project="b")
        await until(all_delivered(post, 1), "the batch of others")
        for command in (post.rig.commands.pause, post.rig.commands.resume):
            await command(bad, project=None)
        await post.batch(1, project="b")
        await until(all_delivered(post, 2), "and the next one")
        assert {it.path for it in receiver.received} == {"/b"}

        def parked() -> list[Letter]:
            with post.database.read() as connection:
                return list_letters(connection, consumer=Consumer.COURIER)

        assert [letter.batch for letter in parked()] == [bad, None, None]
        await until(lambda: parked()[0].waiting == 2, "later events wait")
        with post.database.write() as connection:
            request_retry(connection, [letter.id for letter in parked()])
        await post.rig.redis.hset(name, "doc", doc)
        courier = post.running[0][0]
        await courier.retry_letters()
        assert len(parked()) == 3, "the first letter waits for the recorder; the others fail again"
        await recorder.resume()
        await recorder.catch_up()
        await courier.retry_letters()
        assert [letter.batch for letter in parked()] == [None, None]
        await until(all_delivered(post, 2 + 3), "all that waited")
        await post.rig.run_all()
        await until(lambda: post.statuses().count("D") > 5 and "P" not in post.statuses(), "the rest")
        of_bad = [it for it in receiver.received if it.data.get("batch_id") == str(bad)]
        assert_chained(of_bad)
        assert min(of_bad, key=lambda it: it.data["sequence"]).type == "batch.created"
        assert set(receiver.ids.values()) == {1}


async def held(post: Post) -> bool:
    """Return whether a courier has entries that are not acknowledged."""
    return bool((await post.rig.redis.xpending(post.rig.keys(Key.EVENTS), COURIERS))["pending"])


async def holds(post: Post, reader: str) -> bool:
    """Return whether this reader has entries that are not acknowledged."""
    readers = await post.rig.redis.xinfo_consumers(post.rig.keys(Key.EVENTS), COURIERS)
    return any(it["name"] == reader.encode() and it["pending"] for it in readers)


def lose_a_reply(courier: Courier) -> list[int]:
    """Lose the next reply with entries, like a cut connection; count its entries."""
    read, lost = courier._group.read, list[int]()

    async def lose(**options: Any) -> Any:
        given = await read(**options)
        if given.entries and not lost:
            lost.append(len(given.entries))
            raise Unavailable("the connection was cut")
        return given

    courier._group.read = lose  # type: ignore[method-assign]
    return lost


async def test_deliveries_on_a_cut_connection_are_sent_at_once(post: Post) -> None:
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/all"), "batch.created")
        courier = await post.start(abandoned_s=NEVER_S)
        lost = lose_a_reply(courier)
        for _ in range(3):
            await post.batch(1)
        await until(all_delivered(post, 3), "what was lost on the way", SOON_S)
    assert lost
    assert len(receiver.received) == 3


async def test_two_couriers_with_alternating_entries_process_them_in_order(post: Post) -> None:
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/all"), "batch.created")
        one, other = (
            post.courier(post.deliverer(), abandoned_s=NEVER_S),
            post.courier(post.deliverer(), abandoned_s=NEVER_S),
        )
        one._group._reader, other._group._reader = "one", "other"
        await one.join()
        for turn in range(4):
            await post.batch(1)
            await (one if turn % 2 else other)._group.read(most=1, wait_s=0.01)
        for courier in (one, other):
            courier._may_hold = True
            tasks = [asyncio.create_task(courier.run()), asyncio.create_task(courier._deliverer.write_outcomes())]
            post.running.append((courier, tasks))
        await until(all_delivered(post, 4), "what both held", SOON_S)


async def test_a_courier_does_not_skip_what_a_restarted_server_forgot_that_another_one_holds(post: Post) -> None:
    events = post.rig.keys(Key.EVENTS)
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/all"), "batch.created")
        dead, waiting = (post.courier(post.deliverer(), abandoned_s=NEVER_S) for _ in range(2))
        dead._group._reader, waiting._group._reader = "dead", "waiting"
        post.running += [(dead, []), (waiting, [])]
        await dead.join()
        await post.batch(1)
        (held_entry,) = (await dead._group.read(most=10, wait_s=0.01)).entries
        await post.batch(1)
        step = asyncio.create_task(waiting.step())
        await until(partial(holds, post, "waiting"), "its entry")
        # What a restart leaves that lost the last second: another server, and nothing of the entry that was held.
        async with post.rig.redis.pipeline(transaction=True) as restart:
            restart.set(post.rig.keys(Key.SERVER), "1 another")
            restart.xdel(events, held_entry.id)
            restart.xack(events, COURIERS, held_entry.id)
            await restart.execute()
        with pytest.raises(Unavailable, match="restarted"):
            await step
        # So that the recorder appends the lost entry again.
        assert waiting._deliveries.position() < position_number(held_entry.id)
        assert await waiting.step() == 1
        assert len(post.rows()) == 1


async def test_what_redis_loses_before_the_first_delivery_is_written_is_delivered(post: Post) -> None:
    recorder = Recorder(post.rig.store, post.database, namespace=NAMESPACE)
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/all"), "batch.created")
        first, second = (post.courier(post.deliverer()) for _ in range(2))
        post.running += [(first, []), (second, [])]
        await post.batch(1)
        await first.join()
        await post.batch(1)
        await recorder.resume()
        await recorder.catch_up()
        kept, lost = await post.store.events.read()
        await post.rig.redis.xdel(post.rig.keys(Key.EVENTS), lost.id)
        assert await restore_events(post, recorder, after=kept.id) == 1
        await second.join()
        assert await second.step() == 2
        assert len(post.rows()) == 2


@pytest.mark.parametrize("joins", [False, True])
async def test_events_from_before_the_first_courier_are_not_restored(post: Post, joins: bool) -> None:
    recorder = Recorder(post.rig.store, post.database, namespace=NAMESPACE)
    await post.batch(1)
    await recorder.resume()
    await recorder.catch_up()
    await post.rig.redis.delete(post.rig.keys(Key.EVENTS))
    if joins:
        courier = post.courier(post.deliverer())
        post.running.append((courier, []))
        await courier.join()
    assert await restore_events(post, recorder, after=START) == 0


async def restore_events(post: Post, recorder: Recorder, *, after: str) -> int:
    return await append_lost_events(
        post.rig.store, post.database, namespace=NAMESPACE, after=after, recorded=recorder.position
    )


async def test_a_courier_that_is_stopped_leaves_nothing_for_others_to_wait_for(post: Post) -> None:
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/all"), "batch.created")
        leaving = await post.start(abandoned_s=NEVER_S)
        await until(lambda: leaving._joined)
        read = leaving._group.read

        async def hold(**options: Any) -> Any:
            if (given := await read(**options)).entries:
                await asyncio.Event().wait()  # its reply arrives while it is being stopped
            return given

        leaving._group.read = hold  # type: ignore[method-assign]
        await post.batch(1)
        await until(partial(held, post), "an entry that it was given")
        await post.kill(leaving)
        await post.start(abandoned_s=NEVER_S)
        await post.batch(1)
        await leaving.close()
        await until(all_delivered(post, 2), "the entry of the one that left, and the next", SOON_S)


async def test_a_courier_that_is_stopped_while_it_writes_leaves_nothing_on_hold(post: Post) -> None:
    async with Receiver() as receiver:
        post.endpoint(receiver.url("/all"), "batch.created")
        leaving = await post.start(abandoned_s=NEVER_S)
        write, is_written, is_stopping = leaving._deliveries.write, threading.Event(), threading.Event()

        def write_slowly(rows: Any, position: Any) -> Any:
            not_ours = write(rows, position)
            is_written.set()
            assert is_stopping.wait(PATIENCE_S)
            return not_ours

        leaving._deliveries.write = write_slowly  # type: ignore[method-assign]
        await post.batch(1)
        await until(is_written.is_set, "the row is written")
        stopping = asyncio.create_task(post.kill(leaving))
        await asyncio.sleep(0)  # until it is asked to stop
        is_stopping.set()
        await stopping
        await leaving.close()
        await post.start(abandoned_s=NEVER_S)
        await until(all_delivered(post, 1), "what was written as it stopped", SOON_S)
    assert len(receiver.received) == 1
