"""Jobs on a QPU: submitted once, and followed across crashes, drains and losses.

The machine is simulated by a separate process, whose journal shows the requests that it really got.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pulser import Pulse, Register, Sequence
from pulser.json.abstract_repr.deserializer import deserialize_device
from tests.support.processes import Process, Site
from tests.support.qpu_process import QpuProcess
from tests.support.redis_users import RedisServer
from tests.support.waiting import until

from tweezer.cli.local.redis_server import ServerKind
from tweezer.client import AsyncBatch
from tweezer.model.cancels import CancelOutcome
from tweezer.model.errors import InvalidInput
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Limits

pytestmark = [pytest.mark.emulator, pytest.mark.slow]

DEVICE = "FRESNEL"
SPECS = (resources.files("tweezer.qpu_sim") / "device.json").read_text("utf-8")


def sequence(*, variable: bool = False, atoms: int = 3) -> str:
    device = deserialize_device(SPECS)
    register = Register({f"q{place}": (7.0 * place, 0.0) for place in range(atoms)})
    made = Sequence(register, device)
    made.declare_channel("ch", "rydberg_global")
    amplitude = made.declare_variable("omega", dtype=float) if variable else 3.0
    made.add(Pulse.ConstantPulse(300, amplitude, 0.0, 0.0), "ch")
    made.measure("ground-rydberg")
    return made.to_abstract_repr()


class Laboratory:
    """A QPU, a Redis that keeps acknowledged writes, and an installation."""

    def __init__(self, qpu: QpuProcess, redis: RedisServer, site: Site) -> None:
        self.qpu = qpu
        self.redis = redis
        self.site = site

    def worker(self, *, specs: Path | None = None, **options: Any) -> Process:
        given = {"base_url": self.qpu.url, "poll_s": 0.05, "probe_s": 0.2, "submit_timeout_s": 2.0, "retry_s": 0.5}
        device: dict[str, Any] = {"adapter": "qpu", "options": {**given, "ask_again_s": 0.3, **options}}
        if specs is not None:
            device["specs"] = str(specs)
        return self.site.spawn("worker", worker_device=DEVICE, devices=json.dumps({DEVICE: device}))

    async def serving(self, **options: Any) -> Process:
        process = self.worker(**options)
        await self.site.serves(process)
        return process

    async def submit(self, jobs: int = 1, **options: Any) -> AsyncBatch:
        given = [{"runs": 20} for _ in range(jobs)]
        return await self.site.queue.submit(sequence(), given, device=DEVICE, **options)

    async def on_machine(self, batch: AsyncBatch, index: int = 0) -> None:
        """Wait until the machine runs a job of the batch and its uid is known."""

        async def known() -> bool:
            intent = await self.site.store.remote.known(batch.id, index)
            return intent is not None and intent.uid is not None

        await until(known, "a job on the machine")

    def submits(self) -> list[int]:
        return [tally.submits for tally in self.qpu.read_tallies().values()]


@pytest.fixture
def qpu(tmp_path: Path) -> Iterator[QpuProcess]:
    folder = tmp_path / "qpu"
    folder.mkdir()
    with QpuProcess(folder) as process:
        yield process


both_kinds = pytest.mark.parametrize("durable_redis", ["redis", "valkey"], indirect=True)
"""Run on redis-server before 7.2, which must sync each write, and on Valkey, which supports WAITAOF."""


@pytest.fixture
def durable_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis that does not lose submits: Valkey, unless a test is of ``both_kinds``."""
    kind: ServerKind = getattr(request, "param", "valkey")
    request.getfixturevalue(f"{kind}_server")
    with RedisServer(
        kind=kind,
        appendfsync="always" if kind == "redis" else "everysec",
        workers_read_settings=kind == "redis",
    ) as server:
        yield server


@pytest.fixture
async def lab(qpu: QpuProcess, durable_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Laboratory]:
    async with Site(durable_redis.url, tmp_path) as site:
        yield Laboratory(qpu, durable_redis, site)


@both_kinds
async def test_a_job_is_built_submitted_once_and_its_counter_comes_back(lab: Laboratory) -> None:
    await lab.serving()
    jobs = [{"runs": 20, "variables": {"omega": omega}} for omega in (1.0, 2.0)]
    batch = await lab.site.queue.submit(sequence(variable=True), jobs, device=DEVICE)
    finished = await batch.results(60)
    assert [job.status for job in finished] == [JobStatus.DONE] * 2
    for job in finished:
        assert sum(job.counter.values()) == 20
        assert dict(job.results().final_bitstrings) == job.counter
        assert job.result.provenance is not None
        assert job.result.provenance.remote_id is not None
    assert lab.submits() == [1, 1]


@both_kinds
async def test_the_job_of_a_killed_worker_is_followed_by_the_next_and_not_submitted_again(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="3")
    first = await lab.serving()
    batch = await lab.submit()
    await lab.on_machine(batch)
    first.kill()
    await lab.serving()
    (job,) = await batch.results(60)
    assert job.status is JobStatus.DONE
    assert job.record.attempt == 1
    assert lab.submits() == [1]
    assert [tally.cancels + tally.displaced for tally in lab.qpu.read_tallies().values()] == [0]


async def test_the_job_of_a_drained_worker_continues_and_is_followed_by_the_next(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="4")
    first = await lab.serving()
    batch = await lab.submit()
    await lab.on_machine(batch)
    first.terminate()
    await first.ended()
    assert [job.status for job in await batch.jobs()] == [JobStatus.RUNNING]
    await lab.serving()
    (job,) = await batch.results(60)
    assert job.status is JobStatus.DONE
    assert lab.submits() == [1]


@both_kinds
async def test_a_lost_reply_is_recovered_by_the_jobs_own_id(lab: Laboratory) -> None:
    await lab.serving()
    await (await lab.submit()).results(60)
    lab.qpu.misbehave(lose_replies=1.0)
    batch = await lab.submit()
    (job,) = await batch.results(60)
    assert job.status is JobStatus.DONE
    assert lab.submits() == [1, 1]


async def test_two_workers_serve_a_machine_one_after_the_other(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="0.05")
    await lab.serving()
    await lab.serving()
    batches = [await lab.submit(4) for _ in range(3)]
    for batch in batches:
        assert [job.status for job in await batch.results(60)] == [JobStatus.DONE] * 4
    assert lab.submits() == [1] * 12
    assert sum(tally.displaced for tally in lab.qpu.read_tallies().values()) == 0


async def test_a_cancel_reaches_the_machine_and_measurements_are_kept(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="20")
    await lab.serving()
    batch = await lab.submit()

    async def measures() -> bool:
        (job,) = await batch.jobs()
        return bool(job.progress) and job.steps is not None and job.steps.total == 20

    await until(measures, "a job that has measured something")
    await batch.cancel(by="alice")
    record = await batch.wait(60)
    assert record.status is BatchStatus.CANCELED
    (tally,) = lab.qpu.read_tallies().values()
    assert tally.cancels >= 1
    assert tally.ended == {"CANCELED": 1}
    (job,) = await batch.results()
    assert job.record.cancel_outcome is CancelOutcome.STOPPED
    assert [attempt.by for attempt in job.record.cancels] == ["alice"]
    assert 0 < sum(job.counter.values()) < 20
    assert dict(job.results().final_bitstrings) == job.counter


async def test_a_cancel_before_the_submit_prevents_it(lab: Laboratory) -> None:
    await lab.serving()
    lab.qpu.misbehave(read_errors=1.0)  # so that the worker does not know whether the machine is up
    batch = await lab.submit()

    async def prepares() -> bool:
        return (await batch.record()).counts[JobStatus.RUNNING] == 1

    await until(prepares, "a job that is prepared")
    await batch.cancel_jobs([0])
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.cancel_outcome) == (JobStatus.CANCELED, CancelOutcome.PREVENTED)
    assert lab.submits() == []


async def test_a_cancel_that_the_machine_does_not_confirm_ends_as_unconfirmed(lab: Laboratory) -> None:
    lab.qpu.misbehave(hang=1.0)
    await lab.serving(confirm_s=1.0)
    batch = await lab.submit()
    await lab.on_machine(batch)
    lab.qpu.misbehave(submit_errors=1.0)  # cancels fail, too
    await batch.cancel()
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "unconfirmed")
    assert job.cancel_outcome is CancelOutcome.UNCONFIRMED
    assert lab.submits() == [1]


async def test_the_next_worker_recognises_a_requested_stop(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="60")
    first = await lab.serving()
    batch = await lab.submit()
    await lab.on_machine(batch)
    lab.qpu.misbehave(read_errors=0.5)  # a cancel is sent after a read that shows our job; its result remains unknown

    async def stopped() -> bool:
        return any(tally.cancels for tally in lab.qpu.read_tallies().values())

    await batch.cancel()
    await until(stopped, "a cancel that reached the machine")
    lab.qpu.misbehave(read_errors=1.0)
    first.kill()
    lab.qpu.misbehave(read_errors=0.0)
    await lab.serving()
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.cancel_outcome) == (JobStatus.CANCELED, CancelOutcome.STOPPED)


async def test_a_late_cancel_keeps_the_result(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="2", late_cancels=1.0)
    await lab.serving()
    batch = await lab.submit()
    await lab.on_machine(batch)
    await batch.cancel()
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.cancel_outcome) == (JobStatus.DONE, CancelOutcome.TOO_LATE)


async def test_a_job_that_another_client_stops_is_an_error_and_not_run_again(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="60")
    await lab.serving()
    batch = await lab.submit()
    await lab.on_machine(batch)
    intent = await lab.site.store.remote.known(batch.id, 0)
    assert intent is not None
    async with lab.qpu.api() as stranger:
        await stranger.cancel(int(intent.uid or 0))
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert job.status is JobStatus.ERROR
    assert job.faults[0].code == "displaced"
    assert lab.submits() == [1]


async def test_a_job_that_takes_too_long_is_stopped_on_the_machine(lab: Laboratory) -> None:
    lab.qpu.misbehave(hang=1.0)
    await lab.serving()
    batch = await lab.submit(limits=Limits(job_timeout_s=0.5))
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "timeout")
    assert ([attempt.by for attempt in job.cancels], job.cancel_outcome) == (["timeout"], CancelOutcome.STOPPED)
    assert [tally.ended for tally in lab.qpu.read_tallies().values()] == [{"CANCELED": 1}]


async def test_measurements_before_a_timeout_are_kept(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="20")
    await lab.serving()
    batch = await lab.submit(limits=Limits(job_timeout_s=4.0))
    (job,) = await batch.results(60)
    assert (job.status, job.record.faults[0].code) == (JobStatus.ERROR, "timeout")
    assert 0 < sum(job.counter.values()) < 20
    assert dict(job.results().final_bitstrings) == job.counter


async def test_the_next_worker_recognises_a_timeout(lab: Laboratory) -> None:
    lab.qpu.misbehave(job_seconds="60")
    first = await lab.serving()
    batch = await lab.submit(limits=Limits(job_timeout_s=3.0))
    await lab.on_machine(batch)
    lab.qpu.misbehave(read_errors=1.0)  # so that the caller does not learn its outcome

    async def noted() -> bool:
        (job,) = await batch.jobs()
        return bool(job.cancels)

    await until(noted, "a timeout")
    first.kill()
    lab.qpu.misbehave(read_errors=0.0)
    await lab.serving()
    await batch.wait(60)
    (job,) = await batch.jobs()
    assert (job.status, job.faults[0].code) == (JobStatus.ERROR, "timeout")
    assert ([attempt.by for attempt in job.cancels], job.cancel_outcome) == (["timeout"], CancelOutcome.STOPPED)


async def test_nothing_is_submitted_while_the_machine_is_down(lab: Laboratory) -> None:
    await lab.serving()

    async def device() -> Any:
        (found,) = [it for it in await lab.site.queue.devices() if it.name == DEVICE]
        return found

    async def is_down() -> bool:
        return (await device()).down is not None

    async def is_up() -> bool:
        return (await device()).down is None

    lab.qpu.ask("PUT", "/sim/status", {"operational_status": "DOWN"})
    await until(is_down, "a device that is down")
    batch = await lab.submit(2)
    assert lab.submits() == []
    assert (await batch.record()).status is BatchStatus.PENDING
    lab.qpu.ask("PUT", "/sim/status", {"operational_status": "UP"})
    await until(is_up, "a device that is up")
    assert [job.status for job in await batch.results(60)] == [JobStatus.DONE] * 2
    notices = [entry.notice.type for entry in await lab.site.store.events.read(most=1000) if entry.notice]
    assert notices == ["device.down", "device.up"]


@pytest.mark.parametrize("has_specs", [False, True])
async def test_a_machine_that_cannot_be_reached_is_waited_for_and_shown_as_unknown(
    lab: Laboratory, tmp_path: Path, has_specs: bool
) -> None:
    (specs := tmp_path / "specs.json").write_text(SPECS)
    (await lab.serving()).kill()
    lab.qpu.kill()
    worker = lab.worker(specs=specs if has_specs else None)

    async def unsure() -> str | None:
        (device,) = await lab.site.queue.devices()
        return device.unsure

    async def is_unknown() -> bool:
        assert worker.alive, worker.text
        return "no answer from" in (await unsure() or "")

    async def is_known() -> bool:
        return await unsure() is None

    await until(is_unknown, "a device of which nothing is known")
    lab.qpu.start()
    await lab.site.serves(worker)
    await until(is_known, "a device that is known")


async def test_a_worker_that_the_machine_refuses_does_not_wait(lab: Laboratory, tmp_path: Path) -> None:
    (specs := tmp_path / "specs.json").write_text(SPECS)
    worker = lab.worker(specs=specs, base_url=f"{lab.qpu.url}/elsewhere")
    assert await worker.ended() != 0
    assert "404" in worker.text


async def test_a_sequence_that_does_not_fit_the_machine_is_refused_at_submit(lab: Laboratory) -> None:
    await lab.serving()
    with pytest.raises(InvalidInput, match="runs"):
        await lab.site.queue.submit(sequence(), [{"runs": 1_000_000}], device=DEVICE)
    document = json.loads(sequence())
    document["register"] = [{"name": f"q{place}", "x": 7.0 * place, "y": 0.0} for place in range(100)]
    with pytest.raises(InvalidInput, match="has 100 atoms"):
        await lab.site.queue.submit(json.dumps(document), [{"runs": 10}], device=DEVICE)
    for spacing, says in ((2.0, "2 µm apart"), (30.0, "60 µm from the centre")):
        document["register"] = [{"name": f"q{place}", "x": spacing * place, "y": 0.0} for place in range(3)]
        with pytest.raises(InvalidInput, match=says):
            await lab.site.queue.submit(json.dumps(document), [{"runs": 10}], device=DEVICE)
    assert lab.submits() == []


async def test_an_open_batch_keeps_the_machine_until_it_is_closed(lab: Laboratory) -> None:
    await lab.serving()
    first = await lab.submit(1, open=True)
    await first.wait(60)
    second = await lab.submit(1)
    await first.add_jobs([{"runs": 10}, {"runs": 10}])
    await first.wait(60)
    assert (await second.record()).status is BatchStatus.PENDING
    await first.close()
    assert [job.status for job in await second.results(60)] == [JobStatus.DONE]
    assert (await first.record()).status is BatchStatus.DONE
    assert (await first.record()).idle_s > 0


async def test_an_idle_open_batch_gets_a_warning_and_gives_up_the_machine(lab: Laboratory) -> None:
    await lab.serving()
    idle = await lab.submit(1, open=True, limits=Limits(open_timeout_s=2.0))
    await idle.wait(60)
    waiting = await lab.submit(1)
    assert [job.status for job in await waiting.results(60)] == [JobStatus.DONE]
    assert (await idle.record()).status is BatchStatus.TIMED_OUT
    types = [event.type for event in await lab.site.events(idle)]
    assert types[-2:] == ["batch.idle", "batch.timed_out"]


async def test_a_worker_of_a_machine_refuses_a_redis_that_may_lose_writes(qpu: QpuProcess, tmp_path: Path) -> None:
    with RedisServer(kind="redis", appendfsync="everysec") as server:
        async with Site(server.url, tmp_path) as site:
            worker = Laboratory(qpu, server, site).worker()
            assert await worker.ended() != 0
            assert "appendfsync" in worker.text
