"""Jobs of a QPU when holders stop, die and are overtaken at the worst moments, and Redis loses their writes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.power_loss import AppendOnlyFile
from tests.support.processes import QUICK_QPU, Process, Site
from tests.support.qpu_process import QpuProcess
from tests.support.redis_users import RedisServer
from tests.support.waiting import until

from tweezer import AsyncBatch, BatchStatus, JobStatus
from tweezer.model.ids import job_id

DEVICE = "FRESNEL"
SEQUENCE = (Path(__file__).parents[1] / "chaos" / "sequence.json").read_text("utf-8")


class Laboratory:
    """A QPU, its workers without Pulser, and a Redis whose file can lose its end."""

    def __init__(self, qpu: QpuProcess, redis: RedisServer, site: Site, witness: Path) -> None:
        self.qpu = qpu
        self.file = AppendOnlyFile(redis)
        self.site = site
        self.witness = witness

    async def worker(self, stops: str = "", **options: float) -> Process:
        given = {"base_url": self.qpu.url, "poll_s": 0.03, "probe_s": 0.5, "submit_timeout_s": 1.0, "retry_s": 0.5}
        devices = {DEVICE: {"adapter": QUICK_QPU, "options": {**given, **options}}}
        process = self.site.spawn(
            "worker", worker_device=DEVICE, devices=json.dumps(devices), test_stops=stops, test_witness=self.witness
        )
        await self.site.serves(process)
        return process

    async def submit(self, jobs: int = 1) -> AsyncBatch:
        return await self.site.queue.submit(SEQUENCE, [{"runs": 20}] * jobs, device=DEVICE)

    async def keep(self) -> None:
        """Protect everything that Redis has acknowledged from the loss of the end of its file."""
        pipeline = self.site.store.redis.pipeline(transaction=False)
        pipeline.execute_command("SET", "kept", 1, "PX", 1)
        pipeline.execute_command("WAITAOF", 1, 0, 10_000)  # otherwise a busy Redis may not have written its file yet
        await pipeline.execute()
        self.file.keep()

    async def forgotten(self) -> AsyncBatch:
        """Submit a batch of one job, which the machine has and Redis lost; its device is paused."""
        devices = self.site.store.devices
        await devices.pause(DEVICE, "for a moment")
        batch = await self.submit()
        await self.keep()
        await devices.resume(DEVICE)
        await self.on_machine(batch)
        self.file.restart(losing_s=0.001)
        await batch.record()  # it retries until Redis answers
        assert await self.site.store.remote.known(batch.id, 0) is None
        return batch

    async def on_machine(self, batch: AsyncBatch, index: int = 0) -> None:
        """Wait until the machine runs a job of the batch and its id is known."""

        async def known() -> bool:
            intent = await self.site.store.remote.known(batch.id, index)
            return intent is not None and intent.uid is not None

        await until(known, "a job on the machine")

    async def stopped(self, times: int = 1) -> None:
        """Wait until a worker has stopped itself."""
        await until(lambda: self.witness.exists() and len(self.witness.read_text().splitlines()) == times, "a stop")

    def submits(self) -> list[int]:
        return [tally.submits for tally in self.qpu.read_tallies().values()]

    def stops(self) -> int:
        """Return the cancels that were sent, and the jobs that a submit displaced."""
        return sum(tally.cancels + tally.displaced for tally in self.qpu.read_tallies().values())


@pytest.fixture
def qpu(tmp_path: Path) -> Iterator[QpuProcess]:
    folder = tmp_path / "qpu"
    folder.mkdir()
    with QpuProcess(folder) as process:
        yield process


@pytest.fixture
async def lab(qpu: QpuProcess, valkey_server: RedisServer, tmp_path: Path) -> AsyncIterator[Laboratory]:
    with RedisServer(tmp_path / "redis", kind="valkey", options={"auto-aof-rewrite-percentage": "0"}) as redis:
        async with Site(redis.url, tmp_path) as site:
            yield Laboratory(qpu, redis, site, tmp_path / "witness")


async def test_a_submit_that_redis_lost_is_found_on_the_machine(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="3")
    worker = await lab.worker()
    batch = await lab.forgotten()
    await lab.site.store.devices.resume(DEVICE)
    (job,) = await batch.results(60)
    assert job.status is JobStatus.DONE
    assert await worker.wait_logged("qpu.found")
    assert (lab.submits(), lab.stops()) == ([1], 0)


async def test_an_older_last_known_job_still_finds_all_later_jobs(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="0.5")
    worker = await lab.worker()
    batch = await lab.submit(4)

    async def first_is_done() -> bool:
        return (await batch.jobs())[0].status.terminal

    await until(first_is_done, "the end of the first job")
    await lab.keep()
    await lab.on_machine(batch, 2)
    lab.file.restart(losing_s=0.001)
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE] * 4
    assert await worker.wait_logged("qpu.found")
    assert (lab.submits(), lab.stops()) == ([1] * 4, 0)


async def test_a_lost_submit_is_found_behind_jobs_that_came_before_the_search(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="1")
    worker = await lab.worker()
    batch = await lab.forgotten()
    urgent = await lab.site.queue.submit(SEQUENCE, [{"runs": 20}] * 3, device=DEVICE, priority="HIGH")
    await lab.site.store.devices.resume(DEVICE)
    assert [job.status for job in await urgent.results(60)] == [JobStatus.DONE] * 3
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE]
    assert await worker.wait_logged("qpu.found")
    assert (lab.submits(), lab.stops()) == ([1] * 4, 0)


@pytest.mark.slow
async def test_an_intent_on_the_disk_survives_redis(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="3")
    worker = await lab.worker()
    batch = await lab.submit()
    await lab.on_machine(batch)
    worker.kill()
    lab.file.restart()
    await lab.worker()
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE]
    assert (lab.submits(), lab.stops()) == ([1], 0)


async def test_a_holder_stopped_before_its_last_check_leaves_the_submit_to_the_next(lab: Laboratory) -> None:
    await lab.worker(stops="before:1")
    batch = await lab.submit()
    await lab.stopped()
    second = await lab.worker(submit_timeout_s=10.0)
    await second.wait_logged("remote.intent_without_a_job")
    lab.site.processes[0].thaw()
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE]
    assert await second.wait_logged("remote.submitted")
    assert lab.submits() == [1]


async def test_a_submit_that_arrives_during_the_next_holders_search_is_found(lab: Laboratory) -> None:
    await lab.worker(stops="after:1", submit_timeout_s=10.0)
    batch = await lab.submit()
    await lab.stopped()
    second = await lab.worker(submit_timeout_s=10.0)
    await second.wait_logged("remote.intent_without_a_job")
    lab.site.processes[0].thaw()
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE]
    assert not second.logged("remote.submitted")
    assert lab.submits() == [1]


async def test_a_submit_that_arrives_after_it_was_given_up_is_the_only_one(lab: Laboratory) -> None:
    await lab.worker(stops="after:1")
    batch = await lab.submit()
    await lab.stopped()
    await lab.worker()
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "unknown")
    assert lab.submits() == []
    lab.site.processes[0].thaw()
    await until(lambda: lab.submits() == [1], "the late submit")
    assert (await batch.record()).status is BatchStatus.DONE


async def test_a_drain_during_a_submit_leaves_a_job_that_is_found_later(lab: Laboratory) -> None:
    lab.qpu.misbehave(answer_seconds="0.8", job_seconds="2")
    first = await lab.worker()
    batch = await lab.submit()
    await until(lambda: lab.submits() == [1], "a submit")
    first.terminate()
    await first.ended()
    lab.qpu.misbehave(answer_seconds="0")
    await lab.worker()
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE]
    assert (lab.submits(), lab.stops()) == ([1], 0)


async def test_a_holder_that_was_stopped_cancels_no_job_of_the_next(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="8")
    first = await lab.worker()
    batch = await lab.submit()
    await lab.on_machine(batch)
    first.freeze()
    second = await lab.worker()

    async def taken_over() -> bool:
        return await lab.site.holder(batch) is second

    await until(taken_over, "another holder")
    first.thaw()
    await first.wait_logged("lease.lost")
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE]
    assert (lab.submits(), lab.stops()) == ([1], 0)
    (attempt,) = await lab.site.queue.attempts(f"{batch.id}/0")
    assert attempt.outcome == "done"
    assert attempt.worker is not None
    assert f":{second.pid}:" in attempt.worker


async def test_the_job_of_a_dead_worker_is_followed_before_another_batch_can_displace_it(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="4")
    first = await lab.worker()
    batch = await lab.submit()
    await lab.on_machine(batch)
    other = await lab.submit()
    first.kill()
    await lab.worker()
    assert [job.status for job in [*await batch.results(60), *await other.results(60)]] == [JobStatus.DONE] * 2
    assert (lab.submits(), lab.stops()) == ([1, 1], 0)


async def test_the_next_worker_stops_the_job_of_a_batch_that_was_cancelled_without_a_worker(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="60")
    first = await lab.worker()
    batch = await lab.submit(3)
    await lab.on_machine(batch)
    first.terminate()
    await first.ended()
    await batch.cancel()
    await lab.worker()
    assert (await batch.wait(60)).status is BatchStatus.CANCELED
    (tally,) = lab.qpu.read_tallies().values()
    assert (tally.submits, tally.ended) == (1, {"CANCELED": 1})


async def test_a_paused_device_gets_a_worker_for_its_running_job(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="4")
    first = await lab.worker()
    batch = await lab.submit(2)
    await lab.on_machine(batch)
    await lab.site.store.devices.pause(DEVICE, "maintenance")
    first.kill()
    await lab.worker()

    async def first_is_done() -> bool:
        return (await batch.jobs())[0].status is JobStatus.DONE

    await until(first_is_done, "the end of the job")
    assert lab.submits() == [1]
    await lab.site.store.devices.resume(DEVICE)
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE] * 2


async def test_a_paused_batch_gets_a_worker_for_its_job_on_the_machine(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="4")
    first = await lab.worker()
    batch = await lab.submit(2)
    await lab.on_machine(batch)
    await batch.pause()
    first.kill()
    await lab.worker()

    async def first_is_done() -> bool:
        return (await batch.jobs())[0].status is JobStatus.DONE

    await until(first_is_done, "the end of the job")
    assert (await batch.record()).status is BatchStatus.PAUSED
    assert lab.submits() == [1]


@pytest.mark.parametrize("end", ["drain", "kill"])
async def test_no_foreign_job_runs_between_two_of_an_open_batch_whose_worker_is_replaced(
    lab: Laboratory, end: str
) -> None:
    first = await lab.worker()
    batch = await lab.site.queue.submit(SEQUENCE, [{"runs": 20}], device=DEVICE, open=True)

    async def is_idle() -> bool:
        return (await batch.record()).counts[JobStatus.DONE] == 1

    await until(is_idle, "the end of the first job")
    other = await lab.site.queue.submit(SEQUENCE, [{"runs": 20}], device=DEVICE, priority="HIGH")
    if end == "drain":
        first.terminate()
        await first.ended()
    else:
        first.kill()
    await lab.worker()
    await batch.add_jobs([{"runs": 20}])
    await batch.close()
    assert [job.status for job in [*await batch.results(60), *await other.results(60)]] == [JobStatus.DONE] * 3
    names = [str(job_id(batch.id, 0)), str(job_id(batch.id, 1)), str(job_id(other.id, 0))]
    assert list(lab.qpu.read_tallies()) == names


async def test_jobs_survive_a_proxy_that_rejects_their_submits(lab: Laboratory) -> None:
    worker = await lab.worker()
    lab.qpu.misbehave(turn_away=1.0)
    batch = await lab.submit(2)
    await until(lambda: len(worker.logged("remote.not_submitted")) >= 2, "submits that are turned away")
    lab.qpu.misbehave(turn_away=0.0)
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE] * 2
    assert lab.submits() == [1, 1]


# --- a set-back: the machine's job ids begin anew


def set_back(lab: Laboratory) -> None:
    lab.qpu.ask("POST", "/sim/reset")


def stranger(lab: Laboratory) -> int:
    """Submit a job as a client that gives its jobs no name; return its id."""
    answer = lab.qpu.ask("POST", "/api/v1/jobs", {"nb_run": 7, "pulser_sequence": SEQUENCE})
    return int(answer["data"]["uid"])


def status_of(lab: Laboratory, uid: int) -> str:
    return str(lab.qpu.ask("GET", f"/api/v1/jobs/{uid}")["data"]["status"])


async def test_a_lost_submit_is_found_on_a_machine_whose_ids_restarted(lab: Laboratory) -> None:
    worker = await lab.worker()
    await (await lab.submit(6)).results(60)
    set_back(lab)
    lab.qpu.misbehave(job_seconds="3")
    batch = await lab.forgotten()
    worker.kill()
    await lab.site.store.devices.resume(DEVICE)
    second = await lab.worker()
    (job,) = await batch.results(60)
    assert job.status is JobStatus.DONE
    assert await second.wait_logged("qpu.found")
    assert await second.wait_logged("qpu.set_back")
    assert (lab.submits(), lab.stops()) == ([1] * 7, 0)


async def test_the_job_of_a_lost_reply_is_found_on_a_machine_whose_ids_restarted(lab: Laboratory) -> None:
    worker = await lab.worker()
    await (await lab.submit(6)).results(60)
    set_back(lab)
    lab.qpu.misbehave(lose_replies=1.0)
    (job,) = await (await lab.submit()).results(60)
    assert job.status is JobStatus.DONE
    assert await worker.wait_logged("qpu.set_back")
    assert lab.submits() == [1] * 7


async def test_a_foreign_job_with_the_id_of_our_job_is_neither_followed_nor_cancelled(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="60")
    first = await lab.worker()
    batch = await lab.submit()
    await lab.on_machine(batch)
    first.kill()
    set_back(lab)
    assert stranger(lab) == 1
    await batch.cancel_jobs([0])
    await lab.worker()
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "unknown")
    assert status_of(lab, 1) == "RUNNING"


async def test_a_job_is_cancelled_only_after_the_machine_confirmed_that_it_is_ours(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="60")
    worker = await lab.worker(ask_again_s=0.1)
    batch = await lab.submit()
    await lab.on_machine(batch)
    lab.qpu.misbehave(read_errors=1.0)
    set_back(lab)
    assert stranger(lab) == 1
    await worker.wait_logged("remote.not_polled")
    await batch.cancel_jobs([0])
    failed = len(worker.logged("remote.not_polled"))
    await until(lambda: len(worker.logged("remote.not_polled")) >= failed + 3, "reads after the cancel")
    lab.qpu.misbehave(read_errors=0.0)
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "unknown")
    assert status_of(lab, 1) == "RUNNING"
