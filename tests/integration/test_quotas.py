"""Quotas with real processes: results do not fill the disk, even if many jobs were accepted."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.support.redis_users import as_user
from tests.support.ticket_workers import running
from tests.support.waiting import PATIENCE_S, until

from tweezer import AsyncQueue, JobStatus, QuotaExceeded, connect_async
from tweezer.adapters.null import NullAdapter, NullLane
from tweezer.adapters.protocol import Report
from tweezer.model.messages import JobWork, Outcome, Result
from tweezer.processes.worker import worker_config
from tweezer.settings import QuotaSettings, RedisSettings, Settings
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.worker.worker import TicketWorker

DEVICE = "NULL"
RESULT_KB = 256
QUOTA_MB = 1


class BulkyLane(NullLane):
    """A lane whose results hardly compress."""

    async def run(self, job: JobWork, report: Report) -> Outcome:
        outcome = await super().run(job, report)
        noise = random.Random(job.index).randbytes(RESULT_KB << 10).hex()
        return msgspec.structs.replace(outcome, result=Result(counter={"0": 1}, serialised_results=noise))


class BulkyAdapter(NullAdapter):
    async def open_lane(self) -> BulkyLane:
        return BulkyLane()


@contextlib.asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[None]:
    worker = TicketWorker(
        Store.open(settings.connect()),
        DEVICE,
        BulkyAdapter(),
        adapter_name="null",
        lanes=2,
        config=worker_config(settings),
        version="0",
        handle_signals=False,
    )
    async with running(worker):
        yield


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def has_device(queue: AsyncQueue) -> bool:
    return await queue.device(DEVICE) is not None


async def test_results_fill_the_results_folder_up_to_the_quota_and_no_further(
    real_redis_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    settings = Settings(
        redis=RedisSettings(url=as_user(real_redis_url, RedisUser.WORKER)),
        results_dir=folder,
        quota=QuotaSettings(results_mb=QUOTA_MB),
    )
    async with working(settings), connect_async(as_user(real_redis_url, RedisUser.PRODUCER), project="lab") as queue:
        await until(lambda: has_device(queue))
        batch = await queue.submit(None, [{"runs": 1}] * 12, device=DEVICE)
        await batch.wait(timeout_s=PATIENCE_S)
        jobs = await batch.jobs()
        done = [job for job in jobs if job.status is JobStatus.DONE]
        refused = [job for job in jobs if job.status is JobStatus.ERROR]
        assert done
        assert len(done) + len(refused) == 12
        assert {fault.code for job in refused for fault in job.faults} == {"quota"}
        # The worker deletes a refused file after its job has ended.
        await until(lambda: len(files_in(folder)) == len(done))
        assert sum(path.stat().st_size for path in files_in(folder)) <= QUOTA_MB << 20

        async with Store.open(Connect(as_user(real_redis_url, RedisUser.OPERATOR))) as store:
            await store.quotas.set_limits({"lab": {"result_bytes": 1}})
        with pytest.raises(QuotaExceeded, match="result_bytes"):
            await queue.submit(None, [{"runs": 1}], device=DEVICE)
