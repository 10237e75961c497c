"""Jobs that another Tweezer runs, over its HTTP API: forwarded once, and followed across crashes, cuts and cancels.

There are two installations, each with its own Redis; that of the other server shows which jobs arrived.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pulser import Pulse, Register, Sequence
from pulser.devices import MockDevice
from tests.compat.proxy import Fault, Proxy
from tests.support.processes import LEASE_S, NULL, Process, Site
from tests.support.redis_users import RedisServer
from tests.support.waiting import until

from tweezer.client import AsyncBatch
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.model.errors import InvalidInput
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, JobSpec, Limits

pytestmark = [pytest.mark.emulator, pytest.mark.slow]

DEVICE, EMU_FREE = "FAR_AWAY", "EMU_FREE"


def sequence() -> str:
    made = Sequence(Register({"q0": (0.0, 0.0), "q1": (8.0, 0.0)}), MockDevice)
    made.declare_channel("ch", "rydberg_global")
    amplitude = made.declare_variable("omega", dtype=float)
    made.add(Pulse.ConstantPulse(300, amplitude, 0.0, 0.0), "ch")
    made.measure("ground-rydberg")
    return made.to_abstract_repr()


class Pair:
    """An installation that forwards jobs, and one that runs them."""

    def __init__(self, near: Site, far: Site, api: Process, url: str, key: str) -> None:
        self.near = near
        self.far = far
        self.api = api
        self.url = url
        self._key = key

    async def serving(self, *, to: str = NULL, lanes: int = 4, base_url: str = "", **options: Any) -> Process:
        """Start a forwarder and wait until it serves."""
        given = {"base_url": base_url or self.url, "device": to, "api_key": self._key, "idempotency_s": 86_400}
        quick = {"poll_s": 0.1, "probe_s": 0.2, "retry_s": 0.3, "ask_again_s": 0.3, "lag_s": 5.0, "submit_timeout_s": 5}
        devices = {DEVICE: {"adapter": "forward", "options": given | quick | options}}
        process = self.near.spawn("worker", worker_device=DEVICE, worker_lanes=lanes, devices=json.dumps(devices))
        await self.near.serves(process)
        return process

    async def submit(self, *jobs: dict[str, Any], **doc: Any) -> AsyncBatch:
        """Submit jobs of the null adapter, which have no sequence, by their variables."""
        specs = [JobSpec(runs=10, variables=variables) for variables in jobs]
        doc = {"device": DEVICE, **doc}
        batch_id = await self.near.store.commands.submit(new_batch_id(), "ours", BatchDoc(**doc), specs)
        return self.near.queue.batch(batch_id)

    async def sent(self, batch: AsyncBatch, index: int = 0) -> AsyncBatch:
        """Wait until the server has a job, and return the batch there."""

        async def known() -> bool:
            intent = await self.near.store.remote.known(batch.id, index)
            return intent is not None and intent.uid is not None

        await until(known, "a job that was sent on")
        intent = await self.near.store.remote.known(batch.id, index)
        assert intent is not None
        assert intent.uid is not None
        return self.far.queue.batch(intent.uid)

    async def arrived(self) -> int:
        """Return how many batches the server ever received: none is forgotten within a day."""
        redis: Any = self.far.store.redis
        return len({name.split(b":")[2] for name in await redis.keys("tweezer:batch:*")})

    async def down(self) -> str | None:
        (device,) = [it for it in await self.near.queue.devices() if it.name == DEVICE]
        return device.down


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'far.db')}"


@pytest.fixture
def key(database_url: str) -> Iterator[str]:
    database = Database.open(OpenDatabase(url=database_url))
    with database.write() as connection:
        create_project(connection, "Ours", "ours")
        made = create_key(connection, name="forwarder", project_id="ours").text
    yield made
    database.close()


@pytest.fixture
def durable_redis(valkey_server: RedisServer) -> Iterator[RedisServer]:
    """The Redis of the forwarder, which must not lose what it has forwarded."""
    with RedisServer(kind="valkey", appendfsync="everysec") as server:
        yield server


@pytest.fixture
async def pair(
    durable_redis: RedisServer, real_redis_url: str, database_url: str, key: str, tmp_path: Path
) -> AsyncIterator[Pair]:
    for name in ("near", "far"):
        (tmp_path / name).mkdir()
    async with (
        Site(durable_redis.url, tmp_path / "near") as near,
        Site(real_redis_url, tmp_path / "far", database_url=database_url, data_dir=tmp_path / "far") as far,
    ):
        await far.workers(1, lanes=4)
        api, url = await far.api()
        yield Pair(near, far, api, url, key)


async def test_a_sequence_is_run_by_another_server_and_its_results_come_back(pair: Pair) -> None:
    await pair.far.workers(1, EMU_FREE)
    await pair.serving(to=EMU_FREE)
    jobs = [{"runs": 20, "variables": {"omega": omega}, "seed": 7} for omega in (1.0, 9.0)]
    with pytest.raises(InvalidInput, match=r"jobs\[0\]\.runs"):
        await pair.near.queue.submit(sequence(), [{"runs": 10_000_000}], device=DEVICE)
    batch = await pair.near.queue.submit(sequence(), jobs, device=DEVICE)
    finished = await batch.results(60)
    assert [job.status for job in finished] == [JobStatus.DONE] * 2
    for index, job in enumerate(finished):
        assert sum(job.counter.values()) == 20
        assert dict(job.results().final_bitstrings) == job.counter
        made = job.result.provenance
        assert made is not None
        assert (made.server, made.seed) == (pair.url, 7)
        (there,) = await (await pair.sent(batch, index)).jobs()
        assert made.remote_id == str(there.id)
    assert await pair.arrived() == 2
    await pair.near.audit(batch)


async def test_jobs_of_a_batch_run_in_parallel_and_each_is_forwarded_once(pair: Pair) -> None:
    await pair.serving(lanes=4)
    batch = await pair.submit(*[{"sleep_s": 0.2}] * 12)
    await batch.wait(60)
    assert [job.status for job in await pair.near.audit(batch)] == [JobStatus.DONE] * 12
    assert await pair.arrived() == 12
    await pair.near.idle()


async def test_jobs_of_a_killed_forwarder_are_followed_and_not_sent_again(pair: Pair) -> None:
    first = await pair.serving(lanes=2)
    batch = await pair.submit({"sleep_s": 4}, {"sleep_s": 4})
    there = [await pair.sent(batch, index) for index in (0, 1)]
    await pair.far.running(*there)
    first.kill()
    await pair.serving(lanes=2)
    await batch.wait(60)
    jobs = await pair.near.audit(batch)
    assert [(job.status, job.attempt) for job in jobs] == [(JobStatus.DONE, 1)] * 2
    assert await pair.arrived() == 2


async def test_the_job_of_a_drained_forwarder_continues(pair: Pair) -> None:
    first = await pair.serving()
    batch = await pair.submit({"sleep_s": 3})
    await pair.far.running(await pair.sent(batch))
    first.terminate()
    assert await first.ended() == 0
    assert [job.status for job in await batch.jobs()] == [JobStatus.RUNNING]
    await pair.serving()
    await batch.wait(60)
    assert [job.status for job in await pair.near.audit(batch)] == [JobStatus.DONE]
    assert await pair.arrived() == 1


async def test_a_forwarder_that_was_stopped_for_long_cancels_nothing(pair: Pair) -> None:
    first = await pair.serving()
    batch = await pair.submit({"sleep_s": 3 * LEASE_S})
    await pair.far.running(await pair.sent(batch))
    first.freeze()
    await pair.serving()
    await batch.wait(60)
    first.thaw()
    await first.wait_logged("lease.lost")
    assert [job.status for job in await pair.near.audit(batch)] == [JobStatus.DONE]
    assert await pair.arrived() == 1


async def test_a_cancel_is_forwarded(pair: Pair) -> None:
    await pair.serving()
    batch = await pair.submit({"sleep_s": 60})
    there = await pair.sent(batch)
    await pair.far.running(there)
    await batch.cancel()
    assert (await batch.wait(20)).status is BatchStatus.CANCELED
    assert (await there.wait(20)).status is BatchStatus.CANCELED


async def test_a_job_cancelled_by_another_client_there_is_an_error_here_and_not_sent_again(pair: Pair) -> None:
    await pair.serving()
    batch = await pair.submit({"sleep_s": 60})
    there = await pair.sent(batch)
    await pair.far.running(there)
    await there.cancel()
    await batch.wait(20)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "displaced")
    assert await pair.arrived() == 1


async def test_the_error_of_a_forwarded_job_comes_back_unchanged(pair: Pair) -> None:
    await pair.serving()
    batch = await pair.submit({"fail": "it broke over there"})
    await batch.wait(20)
    (job,) = await batch.jobs()
    assert [str(fault) for fault in job.faults] == ["it broke over there"]


async def test_a_refusal_by_the_server_is_an_error_with_our_name_of_the_field(pair: Pair) -> None:
    await pair.far.workers(1, EMU_FREE)
    await pair.serving(to=EMU_FREE)
    batch = await pair.submit({"omega": 1.0}, {"omega": "high"}, sequence=sequence())  # the checks here accept it
    await batch.wait(60)
    done, refused = await batch.jobs()
    assert done.status is JobStatus.DONE
    assert (refused.faults[0].code, refused.faults[0].field) == ("refused", "jobs[1].variables.omega")
    assert await pair.arrived() == 1


async def test_a_forwarded_job_that_takes_too_long_is_stopped_there(pair: Pair) -> None:
    await pair.serving()
    batch = await pair.submit({"sleep_s": 60}, limits=Limits(job_timeout_s=0.5))
    await batch.wait(20)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "timeout")
    assert (await (await pair.sent(batch)).wait(20)).status is BatchStatus.CANCELED


@pytest.mark.parametrize("idempotency_s", [86_400, 0])
async def test_a_submit_whose_answer_was_lost_arrives_once(pair: Pair, idempotency_s: int) -> None:
    await pair.far.serves(pair.far.spawn("recorder"))
    with Proxy(pair.url) as proxy:
        proxy.faults += [Fault.BEFORE_THE_ANSWER, Fault.IN_THE_BODY] if idempotency_s else [Fault.BEFORE_THE_ANSWER]
        await pair.serving(base_url=proxy.base, idempotency_s=idempotency_s)
        batch = await pair.submit({"sleep_s": 0.1})
        await batch.wait(30)
        assert [job.status for job in await batch.jobs()] == [JobStatus.DONE]
        assert not proxy.faults or idempotency_s
    assert await pair.arrived() == 1


async def test_a_submit_that_was_cut_and_did_not_arrive_is_unknown_without_idempotency(pair: Pair) -> None:
    with Proxy(pair.url) as proxy:
        proxy.faults += [Fault.IN_THE_BODY]
        await pair.serving(base_url=proxy.base, idempotency_s=0, lag_s=0, submit_timeout_s=0.5)
        batch = await pair.submit({})
        await batch.wait(30)
        (job,) = await batch.jobs()
        assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "unknown")
    assert await pair.arrived() == 0


async def test_an_api_that_is_down_for_a_while_is_waited_for(pair: Pair) -> None:
    await pair.serving()
    running = await pair.submit({"sleep_s": 2})
    await pair.sent(running)
    port = pair.url.rpartition(":")[2]
    pair.api.kill()
    waiting = await pair.submit({})

    async def unsure() -> bool:
        (device,) = [it for it in await pair.near.queue.devices() if it.name == DEVICE]
        return device.unsure is not None

    await until(unsure, "a device of which it is not known how it is")
    pair.far.spawn("api", api_port=port)
    for batch in (running, waiting):
        await batch.wait(60)
        assert [job.status for job in await batch.jobs()] == [JobStatus.DONE]
    assert await pair.arrived() == 2


async def test_jobs_wait_here_while_the_device_is_down_there(pair: Pair) -> None:
    await pair.far.queue.pause_device(NULL, "maintenance")
    await pair.serving()
    await until(_is(pair, down=True), "a device that is down")
    batch = await pair.submit({})
    assert await pair.arrived() == 0
    await pair.far.queue.resume_device(NULL)
    await batch.wait(30)
    assert await pair.arrived() == 1
    assert await pair.down() is None


def _is(pair: Pair, *, down: bool) -> Any:
    async def condition() -> bool:
        return (await pair.down() is not None) is down

    return condition
