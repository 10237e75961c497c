"""The gate: after a restart of Redis, no job is handed out until the ledger has restored what Redis lost."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError
from tests.support.power_loss import recorded
from tests.support.redis_users import RedisServer
from tests.support.waiting import until

from tweezer.cli.local.redis_server import ServerKind
from tweezer.model.errors import NotFound, TweezerError, Unavailable
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import Fault, JobSpec, OutcomeKind, Priority
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.scripts import StoreConfig
from tweezer.store.workers import Grant, JobProgress

if TYPE_CHECKING:
    from tests.support.store_rig import StoreRig

FAULT = Fault("internal", "it failed")


@pytest.fixture
async def shut(rig: StoreRig) -> StoreRig:
    """A rig with a ledger, whose Redis has restarted."""
    await rig.recovery.mark_ledger()
    assert await rig.start_again("the first") == b"shut"
    await rig.recovery.open_gate()
    await rig.silence()
    return rig


async def test_a_new_server_shuts_the_gate_once(rig: StoreRig) -> None:
    await rig.recovery.mark_ledger()
    assert [await rig.start_again(run) for run in ("one", "one", "two", "one")] == [b"shut", b"same", b"shut", b"shut"]
    assert (await rig.recovery.gate()).is_shut
    assert 0 < await rig.redis.pttl(rig.keys(Key.GATE)) <= 30_000


async def test_without_a_ledger_the_gate_stays_open(rig: StoreRig) -> None:
    assert await rig.start_again() == b"new"
    assert not (await rig.recovery.gate()).is_shut


async def test_an_operator_may_disable_the_gate(rig: StoreRig) -> None:
    await rig.tickets.publish_settings(StoreConfig(restore_wait_s=0))
    await rig.recovery.mark_ledger()
    assert await rig.start_again() == b"new"
    assert not (await rig.recovery.gate()).is_shut


async def test_a_repeated_submit_waits_for_the_ledger(shut: StoreRig) -> None:
    rig = shut
    await rig.start_again()
    with pytest.raises(Unavailable, match="Redis has restarted"):
        await rig.submit(1, batch_id=(repeated := new_batch_id()), again=True)
    new = await rig.submit(1)
    await rig.recovery.open_gate()
    await rig.submit(1, batch_id=repeated, again=True)
    assert await rig.run_all() == [new, repeated]


async def test_nothing_is_granted_while_the_gate_is_shut(shut: StoreRig) -> None:
    rig = shut
    batch_id = await rig.submit(2)
    await rig.start_again()
    taken = await rig.tickets.take("EMU", ["lane"], lease_s=15)
    assert (taken.grants, taken.paused) == ([], True)
    assert taken.due_s is not None
    assert 0 < taken.due_s <= 30
    await rig.silence()
    await rig.recovery.open_gate()
    assert await rig.bell() == 1
    assert await rig.run_all() == [batch_id]


async def is_open(rig: StoreRig) -> bool:
    return not (await rig.recovery.gate()).is_shut


async def test_the_gate_opens_by_itself(shut: StoreRig) -> None:
    rig = shut
    batch_id = await rig.submit(1)
    await rig.start_again()
    await rig.redis.pexpire(rig.keys(Key.GATE), 1)
    await until(lambda: is_open(rig), "the gate to open")
    assert await rig.run_all() == [batch_id]


Change = Callable[["StoreRig", UUID, Grant], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "settle": lambda rig, _, grant: rig.settle(grant, {0: OutcomeKind.DONE}),
    "drain": lambda rig, _, grant: rig.tickets.drain(grant.ticket, grant.token),
    "release": lambda rig, _, grant: rig.release(grant, FAULT),
    "fail": lambda rig, _, grant: rig.tickets.fail_batch(grant.ticket, grant.token, FAULT),
    "note_timeout": lambda rig, _, grant: rig.tickets.note_timeout(grant.ticket, grant.token, 0),
    "intend": lambda rig, _, grant: rig.store.scripts.call(
        "intend", ticket=str(grant.ticket), token=grant.token, index=0, name="name", sent="0"
    ),
    "add_jobs": lambda rig, batch_id, _: rig.commands.add_jobs(batch_id, [JobSpec()], project="a"),
    "close": lambda rig, batch_id, _: rig.commands.close(batch_id, project="a"),
    "cancel": lambda rig, batch_id, _: rig.commands.cancel(batch_id, project="a"),
    "cancel_jobs": lambda rig, batch_id, _: rig.commands.cancel_jobs(batch_id, [0, 1], project="a"),
    "pause": lambda rig, batch_id, _: rig.commands.pause(batch_id, project="a"),
    "resume": lambda rig, batch_id, _: rig.commands.resume(batch_id, project="a"),
    "set_tags": lambda rig, batch_id, _: rig.commands.set_tags(batch_id, ["new"], project="a"),
    "set_priority": lambda rig, batch_id, _: rig.commands.set_priority(batch_id, Priority.LOW, project="a"),
    "end": lambda rig, batch_id, _: rig.commands.end(batch_id, BatchStatus.ERROR, project="a", fault=FAULT),
    "report": lambda rig, batch_id, _: rig.commands.report(batch_id, 0, status=JobStatus.ERROR, project="a"),
}
FROM_USERS = [name for name in CHANGES if name not in ("settle", "drain", "release", "fail", "note_timeout", "intend")]


@pytest.mark.parametrize("change", CHANGES)
async def test_no_call_changes_an_older_batch_while_the_gate_is_shut(shut: StoreRig, change: str) -> None:
    rig = shut
    batch_id = await rig.submit(5, open=True)
    grant = await rig.take()
    await rig.start_again()
    before = await rig.snapshot()
    with pytest.raises(Unavailable, match="Redis has restarted"):
        await CHANGES[change](rig, batch_id, grant)
    assert await rig.snapshot() == before
    await rig.recovery.open_gate()
    await CHANGES[change](rig, batch_id, grant)


@pytest.mark.parametrize("change", FROM_USERS)
async def test_a_batch_that_redis_lost_is_unavailable_until_the_gate_opens(shut: StoreRig, change: str) -> None:
    rig = shut
    batch_id, grant = new_batch_id(), cast(Grant, None)
    await rig.start_again()
    with pytest.raises(Unavailable):
        await CHANGES[change](rig, batch_id, grant)
    await rig.recovery.open_gate()
    with pytest.raises(NotFound):
        await CHANGES[change](rig, batch_id, grant)


async def test_jobs_for_a_batch_that_redis_lost_are_not_admitted_until_the_gate_opens(shut: StoreRig) -> None:
    """Their checks read the batch before they call the script that checks the gate."""
    await shut.start_again()
    with pytest.raises(Unavailable, match="Redis has restarted"):
        await shut.store.admission.add_jobs(new_batch_id(), [JobSpec()], project="a")
    await shut.recovery.open_gate()
    with pytest.raises(NotFound):
        await shut.store.admission.add_jobs(new_batch_id(), [JobSpec()], project="a")


def test_the_header_of_each_script_describes_its_behaviour_while_the_gate_is_shut() -> None:
    folder = resources.files("tweezer.store") / "lua"
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
    changing = re.compile(r"\b(finish|save|move_job|begin_job|end_job|write_state)\(|key\(KEY\.(state|remote|batch), ")
    without = {name for name, text in texts.items() if changing.search(text) and "\n-- Gate  " not in text}
    assert without == {"look_up_batch.lua", "look_up_jobs.lua"}, "these only read"


async def test_a_holder_keeps_its_lease_while_the_gate_is_shut_and_reports_again(
    shut: StoreRig,
) -> None:
    rig = shut
    batch_id = await rig.submit(10)
    grant = await rig.take()
    await rig.settle(grant, {0: OutcomeKind.DONE}, want=3)
    progress = JobProgress(2, Stage.ON_DEVICE)
    await rig.start_again()
    await rig.lapse(grant)
    renewal = await rig.tickets.renew(grant.ticket, grant.token, [progress], lease_s=15)
    assert renewal is not None
    assert not renewal.is_reported
    assert (await rig.job(batch_id, 2)).status is JobStatus.PENDING
    await rig.recovery.open_gate()
    assert await rig.swept() == (0, 0, 0), "the lease was kept"
    await rig.renew(grant, progress)
    assert (await rig.job(batch_id, 2)).status is JobStatus.RUNNING
    await rig.run(grant, want=10)
    assert (await rig.batch(batch_id)).counts[JobStatus.DONE] == 10


async def test_batches_that_are_new_are_submitted_and_changed_while_the_gate_is_shut(shut: StoreRig) -> None:
    rig = shut
    await rig.start_again()
    batch_id = await rig.submit(2, open=True)
    await rig.commands.add_jobs(batch_id, [JobSpec()], project="a")
    await rig.commands.cancel(batch_id, project="a")
    assert (await rig.batch(batch_id)).status is BatchStatus.CANCELED


async def test_deadlines_and_leases_wait_while_the_gate_is_shut(shut: StoreRig) -> None:
    rig = shut
    idle, busy = await rig.submit(0, open=True), await rig.submit(1)
    grant = await rig.take()
    await rig.run_out(idle)
    await rig.lapse(grant)
    await rig.start_again()
    assert await rig.grants() == []
    assert await rig.swept() == (0, 0, 0)
    assert await rig.statuses(busy) == [JobStatus.RUNNING]
    await rig.recovery.open_gate()
    assert await rig.swept() == (1, 1, 0)


async def test_the_gate_stays_shut_during_a_restore(rig: StoreRig) -> None:
    batch_id = await rig.submit(1)
    ledger = await recorded(rig.store, batch_id)
    for _ in range(2):
        await rig.recovery.restore(*ledger)
        assert await rig.grants() == []
        assert await rig.redis.pttl(rig.keys(Key.GATE)) > 25_000
        await rig.redis.pexpire(rig.keys(Key.GATE), 5_000)
    await rig.recovery.open_gate()
    assert await rig.run_all() == [batch_id]


async def test_one_recorder_is_active(rig: StoreRig) -> None:
    claim, release = rig.recovery.claim_recorder, rig.recovery.release_recorder
    assert [await claim("a", 60), await claim("b", 60), await claim("a", 60)] == [True, False, True]
    assert 0 < await rig.redis.pttl(rig.keys(Key.RECORDER)) <= 60_000
    await release("b")
    assert not await claim("b", 60)
    await release("a")
    assert [await claim("b", 60), await claim("a", 60)] == [True, False]


async def test_a_silent_recorder_is_replaced(rig: StoreRig) -> None:
    await rig.recovery.claim_recorder("a", 60)
    await rig.redis.pexpire(rig.keys(Key.RECORDER), 1)
    await until(lambda: rig.recovery.claim_recorder("b", 60), "the successor")
    assert not await rig.recovery.claim_recorder("a", 60)


# ------------------------------------------------------------------------------------------------------- connections


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("valkey", marks=pytest.mark.valkey)]
)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisServer]:
    request.getfixturevalue(f"{request.param}_server")  # it skips or fails if the binary is missing
    async with RedisServer(tmp_path, kind=cast(ServerKind, request.param)) as started:
        yield started


async def reach(store: Store) -> None:
    """Call until the server answers: connections from before a restart fail when they are used."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Unavailable):
                return await store.reader.ping()


async def test_the_first_client_of_a_restarted_server_shuts_the_gate(server: RedisServer) -> None:
    async with Store.open(Connect(url=server.url)) as ours, Store.open(Connect(url=server.url)) as theirs:
        await ours.recovery.mark_ledger()
        assert not (await theirs.recovery.gate()).is_shut
        server.restart()
        await reach(theirs)
        assert (await theirs.tickets.take("EMU", ["lane"], lease_s=15)).paused
        await theirs.recovery.open_gate()
        await reach(ours)
        assert not (await ours.recovery.gate()).is_shut


async def test_the_first_mark_of_the_ledger_is_on_disk_and_later_ones_do_not_wait(valkey_server: RedisServer) -> None:
    async with Store.open(Connect(url=valkey_server.url, namespace="marked")) as store:
        waits = []
        for _ in range(2):
            await store.recovery.mark_ledger()
            calls: dict[str, Any] = await store.redis.info("commandstats")
            waits.append(calls["cmdstat_waitaof"]["calls"])
    assert waits[0] == waits[1]


async def test_a_listener_that_is_the_first_client_shuts_the_gate_too(server: RedisServer) -> None:
    async with Store.open(Connect(url=server.url)) as store, Redis.from_url(server.url) as plain:
        await store.recovery.mark_ledger()
        async with store.news.pool("EMU") as heard:
            await heard.next(5)
            server.restart()
            assert await heard.next(30) == []  # it listens again
            assert await plain.exists(store.keys(Key.GATE))


async def test_a_full_memory_does_not_prevent_the_gate_from_shutting(server: RedisServer) -> None:
    async with Store.open(Connect(url=server.url)) as store:
        await store.recovery.mark_ledger()
        server.restart()
        async with Redis.from_url(server.url) as plain:
            await plain.config_set("maxmemory", 1)
        await reach(store)
        assert (await store.recovery.gate()).is_shut
        with pytest.raises(OutOfMemoryError):
            await cast(Any, store.redis).set("a write", "that needs memory")
        await store.recovery.open_gate()
        assert not (await store.recovery.gate()).is_shut


@pytest.mark.parametrize("database", [0, 3])
async def test_a_user_without_the_right_to_info_connects(server: RedisServer, database: int) -> None:
    async with Redis.from_url(server.url) as plain:
        await plain.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~tweezer:*", "&*", "+@all", "-info")
    url = f"redis://app:pw@127.0.0.1:{server.port}/{database}"
    async with Store.open(Connect(url=url)) as store:
        await store.reader.ping()
        await store.recovery.mark_ledger()


async def test_a_wrong_password_is_reported_as_such(server: RedisServer) -> None:
    async with Store.open(Connect(url=f"redis://:wrong@127.0.0.1:{server.port}/0")) as store:
        with pytest.raises(TweezerError) as refusal:
            await store.reader.ping()
    assert refusal.value.code == "redis_auth"


async def test_a_connection_that_was_cut_off_while_it_arrived_is_not_used(server: RedisServer) -> None:
    async with Store.open(Connect(url=server.url)) as store, Redis.from_url(server.url) as plain:
        await store.recovery.mark_ledger()
        server.restart()
        with contextlib.suppress(Unavailable):
            await store.reader.ping()  # the old connection turns out to be broken
        await plain.execute_command("CLIENT", "PAUSE", 500)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await store.reader.ping()
        assert (await store.tickets.take("EMU", ["lane"], lease_s=15)).paused


async def test_a_server_that_loads_its_file_is_unavailable_and_then_shuts_the_gate(server: RedisServer) -> None:
    async with Store.open(Connect(url=server.url)) as store:
        await store.recovery.mark_ledger()
        server.stop()
        with pytest.raises(Unavailable):
            await store.reader.ping()
        server.start()
        await reach(store)
        assert (await store.recovery.gate()).is_shut


async def test_a_replica_is_read_and_refuses_writes(server: RedisServer) -> None:
    async with Redis.from_url(server.url) as plain, Store.open(Connect(url=server.url)) as store:
        await plain.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert (await store.reader.server_info())["role"] == "slave"
        with pytest.raises(Unavailable, match="replica"):
            await store.tickets.ring("EMU")
        await plain.execute_command("REPLICAOF", "NO", "ONE")
        await store.tickets.ring("EMU")
