"""Large results from a worker through a real Redis to their readers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hiredis
import httpx
import msgspec
import pytest
from click.testing import CliRunner
from tests.support.api_rig import SECRETS_KEY
from tests.support.queues import store_of
from tests.support.redis_users import as_user
from tests.support.ticket_workers import running
from tests.support.waiting import PATIENCE_S, until

from tweezer import AsyncBatch, AsyncQueue, JobStatus, ResultUnavailable, connect, connect_async
from tweezer.adapters.null import NullAdapter, NullLane
from tweezer.adapters.protocol import Report
from tweezer.api.app import create_app
from tweezer.cli import main
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.database import Database
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.messages import MAX_SETTLE_BYTES, JobWork, Outcome, Result
from tweezer.settings import SecretsSettings, Settings, load
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.scripts import Scripts
from tweezer.worker.config import WorkerConfig
from tweezer.worker.worker import TicketWorker

DEVICE = "NULL"
INLINE_KB = 64


def measured(job: JobWork) -> Result:
    """Return a result of the size in the job's variable; it hardly compresses."""
    kib = int(job.spec.variables["kib"])
    return Result(counter={"0": 1}, serialised_results=random.Random(kib).randbytes(512 * kib).hex())


def expected(kib: int) -> str:
    return random.Random(kib).randbytes(512 * kib).hex()


class BulkyLane(NullLane):
    """An adapter with results of any size."""

    async def run(self, job: JobWork, report: Report) -> Outcome:
        outcome = await super().run(job, report)
        return msgspec.structs.replace(outcome, result=measured(job))


class BulkyAdapter(NullAdapter):
    async def open_lane(self) -> BulkyLane:
        return BulkyLane()


class Setting:
    """A Redis, a folder, and a worker that writes into it."""

    def __init__(self, url: str, folder: Path, queue: AsyncQueue) -> None:
        self.url = url
        self.folder = folder
        self.queue = queue

    def store(self, user: RedisUser) -> Store:
        """Return a store for a process of this kind, which the test closes."""
        return Store.open(Connect(as_user(self.url, user), results_dir=self.folder))

    async def submit(self, *kib: int) -> AsyncBatch:
        return await self.queue.submit(None, [{"runs": 1, "variables": {"kib": size}} for size in kib], device=DEVICE)

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    async def in_redis(self, batch: AsyncBatch) -> list[int]:
        """Return the sizes of the results in Redis."""
        redis: Any = store_of(self.queue).redis
        return [len(data) for data in await redis.hvals(store_of(self.queue).keys(Key.RESULT, batch.id))]


@contextlib.asynccontextmanager
async def working(url: str, folder: Path, **settings: Any) -> AsyncIterator[None]:
    worker = TicketWorker(
        Store.open(
            Connect(url=as_user(url, RedisUser.WORKER), results_dir=folder, result_inline_kb=INLINE_KB, **settings)
        ),
        DEVICE,
        BulkyAdapter(),
        adapter_name="null",
        lanes=2,
        config=WorkerConfig(results_s=0.2),
        version="0",
        handle_signals=False,
    )
    async with running(worker):
        yield


@pytest.fixture
async def setting(real_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    monkeypatch.chdir(tmp_path)  # so that the developer's tweezer.toml is not read
    monkeypatch.delenv("TWEEZER_RESULTS_DIR", raising=False)
    folder = tmp_path / "results"
    async with (
        working(real_redis_url, folder),
        connect_async(as_user(real_redis_url, RedisUser.PRODUCER), results_dir=folder) as queue,
    ):

        async def announced() -> bool:
            return bool(await queue.devices())

        await until(announced)
        yield Setting(real_redis_url, folder, queue)


async def test_results_of_all_sizes_come_back(setting: Setting) -> None:
    sizes = [1, 300, 60, 3000, 2]
    batch = await setting.submit(*sizes)
    finished = await batch.results(PATIENCE_S)
    assert [job.result.serialised_results for job in finished] == [expected(kib) for kib in sizes]
    assert len(setting.files()) == 2
    in_redis = await setting.in_redis(batch)
    assert len(in_redis) == len(sizes)
    assert max(in_redis) <= INLINE_KB << 10
    assert [job.result async for job in batch.finished()] == [job.result for job in finished]
    assert (await setting.queue.result(finished[3].id)).result == finished[3].result


async def test_a_synchronous_producer_reads_them_too(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = await setting.submit(300)
    await batch.wait(PATIENCE_S)

    def read(**options: Any) -> str | None:
        with connect(setting.url, **options) as queue:
            return queue.batch(batch.id).results()[0].result.serialised_results

    assert await asyncio.to_thread(read, results_dir=setting.folder) == expected(300)
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(setting.folder.parent))
    assert await asyncio.to_thread(read) == expected(300), "`tweezer up` provides the folder of results"
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(setting.folder / "elsewhere"))
    monkeypatch.setenv("TWEEZER_RESULTS_DIR", str(setting.folder))
    assert await asyncio.to_thread(read) == expected(300)


async def test_a_producer_on_another_host_gets_an_error_with_advice(setting: Setting) -> None:
    batch = await setting.submit(1, 300)
    await batch.wait(PATIENCE_S)
    async with connect_async(as_user(setting.url, RedisUser.PRODUCER)) as queue:
        assert (await queue.result((await batch.jobs())[0].id)).result.serialised_results == expected(1)
        small, large = await queue.batch(batch.id).results()
        assert small.result.serialised_results == expected(1), "a result that cannot be read does not hide the others"
        assert [job.index async for job in queue.batch(batch.id).finished()] == [0, 1]
        for job in (large, await queue.result(large.id)):
            with pytest.raises(ResultUnavailable, match=r"results_dir.*TWEEZER_RESULTS_DIR.*API"):
                _ = job.result
            with pytest.raises(ResultUnavailable):
                _ = job.counter
            assert job.error is not None


async def test_the_command_line_reads_them(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = await setting.submit(300)
    await batch.wait(PATIENCE_S)
    arguments = ["--redis", setting.url, "results", str(batch.id), "--json"]
    monkeypatch.setenv("TWEEZER_RESULTS_DIR", str(setting.folder))
    read = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert read.exit_code == 0, read.output
    assert msgspec.json.decode(read.output)["jobs"][0]["serialised_results"] == expected(300)


async def test_no_settle_carries_more_than_a_mebibyte(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    call = Scripts.call

    async def measuring(self: Scripts, name: str, /, **arguments: Any) -> list[Any]:
        if name == "settle":
            bound = self._scripts[name].bind(arguments)
            sizes.append(len(hiredis.pack_command(("EVALSHA", "0" * 40, 1, self.keys.prefix, *bound))))
        return await call(self, name, **arguments)

    monkeypatch.setattr(Scripts, "call", measuring)
    batch = await setting.submit(*[100] * 200)  # each just below the limit for Redis
    await batch.wait(PATIENCE_S)
    assert setting.files() == []
    assert 10 * (INLINE_KB << 10) < max(sizes) <= MAX_SETTLE_BYTES


async def test_a_job_whose_result_cannot_be_written_is_run_again(
    real_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "disk" / "results"
    (tmp_path / "disk").touch()  # it blocks the folder, like a full disk
    async with (
        working(real_redis_url, folder),
        connect_async(as_user(real_redis_url, RedisUser.PRODUCER), results_dir=folder) as queue,
    ):

        async def announced() -> bool:
            return bool(await queue.devices())

        await until(announced)
        setting = Setting(real_redis_url, folder, queue)
        batch, small = await setting.submit(300), await setting.submit(1)
        assert (await small.results(PATIENCE_S))[0].status is JobStatus.DONE

        async def tried_again() -> bool:
            return (await batch.jobs())[0].attempt >= 2

        await until(tried_again)
        (tmp_path / "disk").unlink()
        (job,) = await batch.results(PATIENCE_S)
        assert job.result.serialised_results == expected(300)

        (tmp_path / "disk").rename(tmp_path / "away")
        (tmp_path / "disk").touch()
        (job,) = await (await setting.submit(301)).results(PATIENCE_S)
        assert job.status is JobStatus.ERROR
        (fault,) = job.record.faults
        assert fault.code == "result_unavailable"
        assert f"{job.id} (" in fault.message
        assert "cannot be written" in fault.message
        assert "Not a directory" in fault.message


@contextlib.asynccontextmanager
async def recording(setting: Setting, database: Database) -> AsyncIterator[None]:
    """Run a recorder that forgets ended batches at once."""
    async with setting.store(RedisUser.RECORDER) as store:
        recorder = asyncio.create_task(Recorder(store, database, namespace="tweezer", grace_s=0).run())
        try:
            yield
        finally:
            recorder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await recorder


@contextlib.asynccontextmanager
async def asking(setting: Setting, database: Database, role: Role) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the API with a key of this role."""
    with database.write() as connection:
        key = create_key(connection, name="test", role=role).text
    headers = {"Authorization": f"Bearer {key}"}
    async with setting.store(RedisUser.API) as store:
        app = create_app(
            Settings(results_dir=setting.folder, secrets=SecretsSettings(key=SECRETS_KEY)), store, database
        )
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
            yield http


async def test_the_api_sends_them_from_redis_and_later_from_the_ledger(setting: Setting, database: Database) -> None:
    batch = await setting.submit(300)
    (job,) = await batch.results(PATIENCE_S)
    path, body = f"/api/v1/jobs/{job.id}/results", {"counter": {"0": 1}, "serialised_results": expected(300)}
    store = store_of(setting.queue)

    async def forgotten() -> bool:
        return not await setting.in_redis(batch)

    async with asking(setting, database, Role.OPERATOR) as http:
        response = await http.get(path)
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.json() == body
        async with recording(setting, database):
            await until(forgotten)
        for encoding in ("gzip", "identity"):
            response = await http.get(path, headers={"Accept-Encoding": encoding})
            assert response.json() == body
        link = (await http.get(f"/api/v1/jobs/{job.id}/results_link")).json()["data"]["results_link"]
        assert (await http.get(link, headers={"Authorization": ""})).json() == body

        await store.results.delete_batch(batch.id)
        response = await http.get(path)
        assert response.status_code == 500
        assert response.json()["data"]["reason"] == "result_unavailable"
        assert str(setting.folder) not in response.text


async def test_the_folder_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWEEZER_RESULTS_DIR", "here")
    connecting: Connect = load().connect()
    assert connecting.results_dir == tmp_path / "here"
