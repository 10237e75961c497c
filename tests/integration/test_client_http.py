"""The Python API over HTTP: the same records as over Redis, and what goes wrong on the way to a server."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import pickle
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from tests.support.certificates import write_certificate
from tests.support.http_front import Forward, Front, cut
from tests.support.processes import NULL, Site, make_key
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer import JobStatus, Limits
from tweezer.ledger.access.keys import revoke_key
from tweezer.ledger.config import OpenDatabase, sqlite_url
from tweezer.ledger.database import Database
from tweezer.model.errors import NotFound
from tweezer.model.events import JobNews
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.producers import CancelAnswer
from tweezer.store.records import JobRecord
from tweezer.transports import http, http_session

LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture
async def site(sqlite_template: Path, real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site with an API and a null device that no worker serves."""
    async with Site(real_redis_url, tmp_path) as site:
        await site.use_api(sqlite_template)
        await site.announce_null()
        yield site


@pytest.fixture
async def worked(sqlite_template: Path, real_redis_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """A site with an API and a worker for the null device."""
    async with Site(real_redis_url, tmp_path) as site:
        await site.use_api(sqlite_template)
        await site.workers(1, lanes=2)
        yield site


def over_redis(site: Site, project: str = "ours") -> tweezer.AsyncQueue:
    return tweezer.connect_async(as_user(site.url, RedisUser.PRODUCER), project=project)


def front_queue(site: Site, front: Front, **options: Any) -> tweezer.AsyncQueue:
    """Return a queue whose requests go through the proxy."""
    options = {"key": make_key(site.folder, "ours"), "project": "ours", "retry_s": PATIENCE_S, **options}
    return tweezer.connect_async(front.url, **options)


async def submit(queue: tweezer.AsyncQueue, jobs: int = 1, **options: Any) -> tweezer.AsyncBatch:
    return await queue.submit(None, [{"runs": 1}] * jobs, device=NULL, **options)


# --------------------------------------------------------------------------------------------- the same records


def _without_token(job: JobRecord) -> JobRecord:
    """Return the record as it is over HTTP, which does not show fencing tokens."""
    return msgspec.structs.replace(job, token=None)


async def test_records_are_equal_over_both_transports(worked: Site) -> None:
    jobs: list[Any] = [
        {"runs": 3, "variables": {"a": 1.5, "b": [1, 2]}, "seed": 7},
        {"runs": 5, "variables": {"fail": "too hot"}},
        {"variables": {"sleep_s": 60}},
        {"runs": 2, "variables": {"sleep_s": 60}},
        {"runs": 2, "sequence": "its own", "variables": {"sleep_s": 60}},
    ]
    options = {
        "device": NULL,
        "name": "scan",
        "tags": ["a", "b"],
        "priority": "HIGH",
        "open": True,
        "webhook": "https://hooks.example.org/x",
        "backend_configuration": json.dumps({"default_num_shots": 40}),
        "limits": Limits(job_timeout_s=77.5, open_timeout_s=33, transient_retries=1),
    }
    async with over_redis(worked) as direct, worked.connect("ours", retry_s=PATIENCE_S) as remote:
        batch = await remote.submit("text", jobs, **options)  # type: ignore[arg-type]
        same = direct.batch(batch.id)
        await until(lambda: _are(same, {2: JobStatus.RUNNING, 3: JobStatus.RUNNING}))
        answers = await batch.cancel_jobs([2, 4, 9], by="alice")
        assert answers == [CancelAnswer.REQUESTED, CancelAnswer.CANCELED, CancelAnswer.UNKNOWN]
        await until(lambda: _are(same, {2: JobStatus.CANCELED}))
        await batch.pause("wait for the calibration", by="alice")
        record = await batch.record()
        assert record == await same.record()
        assert record.pause is not None
        assert record.pause.by.startswith("alice (key ")
        assert record.pause.reason == "wait for the calibration"
        assert record.cancels[0].by.startswith("alice (key ")
        assert record.cancels[0].ranges == ((2, 2), (4, 4))
        await batch.cancel()
        assert await batch.wait(PATIENCE_S) == await same.wait(PATIENCE_S)
        ended = await batch.jobs()
        assert ended == list(map(_without_token, await same.jobs()))
        assert await remote.job(ended[0].id) == ended[0]
        results = [msgspec.structs.replace(it, record=_without_token(it.record)) for it in await same.results()]
        assert await batch.results() == results
        assert [event async for event in batch.events()] == [event async for event in same.events()]
        assert await remote.devices() == await direct.devices()
        assert await remote.device(NULL) == await direct.device(NULL)


async def test_attempts_and_steps_are_equal_over_both_transports(worked: Site) -> None:
    jobs = [{"runs": 1, "variables": {"retry": "too warm"}}, {"runs": 1, "variables": {"sleep_s": 60}}]
    async with over_redis(worked) as direct, worked.connect("ours", retry_s=PATIENCE_S) as remote:
        batch = await remote.submit(None, jobs, device=NULL, limits=Limits(transient_retries=1))

        async def has_steps() -> bool:
            (job,) = await batch.jobs_at(await batch.record(), [1])
            return job.steps is not None and job.steps.total == 600 and "of 60 s" in str(job.steps)

        async with batch.news() as news:
            await until(has_steps)
            seen: set[str] = set()
            async with asyncio.timeout(PATIENCE_S):
                while not any("of 60 s" in it for it in seen):
                    seen |= {str(it.steps) for it in await news.next(None) if isinstance(it, JobNews)}
        await until(lambda: _are(batch, {0: JobStatus.ERROR}))
        retried = await remote.attempts(f"{batch.id}/0")
        assert [(it.number, it.outcome, str(it.fault)) for it in retried] == [
            (1, "retry", "too warm"),
            (2, "error", "too warm"),
        ]
        (runs,) = await remote.attempts(f"{batch.id}/1")
        assert (runs.outcome, runs.ended) == (None, None)
        await batch.cancel()
        await batch.wait(PATIENCE_S)
        for index in range(2):
            assert await remote.attempts(f"{batch.id}/{index}") == await direct.attempts(f"{batch.id}/{index}")
        with pytest.raises(NotFound):
            await remote.attempts(f"{batch.id}/2")
    async with worked.connect("theirs", retry_s=PATIENCE_S) as stranger:
        with pytest.raises(NotFound):
            await stranger.attempts(f"{batch.id}/0")


async def _are(batch: tweezer.AsyncBatch, wanted: dict[int, JobStatus]) -> bool:
    jobs = await batch.jobs()
    return all(jobs[index].status is status for index, status in wanted.items())


async def test_workers_and_maintenance_are_equal_over_both_transports(worked: Site) -> None:
    begins = datetime.now(UTC) + timedelta(hours=1)
    async with over_redis(worked) as direct:
        window = await worked.queue.plan_maintenance(NULL, begins, begins + timedelta(hours=1), "new lens")
        assert await worked.queue.maintenance(NULL) == await direct.maintenance(NULL) == [window]
        await worked.queue.transport.plan(NULL, window)  # a repeated call, whose first response was lost
        assert await worked.queue.workers() == await direct.workers()
        assert (await worked.queue.devices())[0].window == window
        await worked.queue.drop_maintenance(NULL, window.id)
        assert await direct.maintenance(NULL) == []
        with pytest.raises(NotFound, match=window.id):
            await worked.queue.drop_maintenance(NULL, window.id)


async def test_an_exceeded_quota_is_the_same_error(site: Site) -> None:
    await site.store.quotas.set_limits({"ours": {"queued_jobs": 3}})
    errors = []
    async with over_redis(site) as direct, site.connect("ours") as remote:
        for queue in (direct, remote):
            with pytest.raises(tweezer.QuotaExceeded) as raised:
                await submit(queue, 5)
            errors.append(raised.value)
    assert len({(str(it), it.code, it.quota, it.limit, it.used, it.asked, it.retryable) for it in errors}) == 1


async def test_a_hundred_jobs_and_more_are_read_in_one_stream(site: Site) -> None:
    async with site.connect("ours") as queue:
        batch = await submit(queue, 1500)
        record = await batch.record()
        assert [job.index for job in await batch.jobs_at(record, [0, 7, 8, 9, 1499])] == [0, 7, 8, 9, 1499]
        assert [job.index for job in await batch.jobs()] == list(range(1500))
        every_second = range(0, 1500, 2)
        assert [job.index for job in await batch.jobs_at(record, every_second)] == list(every_second)


@pytest.mark.slow
async def test_a_batch_of_a_hundred_thousand_jobs(site: Site) -> None:
    async with site.connect("ours", retry_s=PATIENCE_S) as queue:
        with pytest.raises(tweezer.InvalidInput, match=r"^jobs: at most 10000 jobs are allowed in one call"):
            await submit(queue, 100_000)
        batch = await submit(queue, 10_000, open=True)
        for turn in range(1, 10):
            assert await batch.add_jobs([{"runs": 1}] * 10_000) == turn * 10_000
        assert len(await batch.jobs()) == 100_000
        answers = await batch.cancel_jobs(range(100_000))
        assert set(answers) == {"canceled"}


async def test_a_body_above_the_limit_of_the_server_is_a_clear_error(site: Site) -> None:
    noise = [os.urandom(600).hex() for _ in range(100)]
    async with site.connect("ours") as queue:
        site_limit = await site.api(data_dir=site.folder, api_body_max_kb=16)
        async with tweezer.connect_async(site_limit[1], key=make_key(site.folder, "ours")) as limited:
            with pytest.raises(tweezer.InvalidInput, match=r"^body: is larger than 16 KiB as sent"):
                await limited.submit(None, [{"runs": 1, "variables": {"x": text}} for text in noise], device=NULL)
        batch = await queue.submit(None, [{"runs": 1, "variables": {"x": text}} for text in noise], device=NULL)
        assert (await batch.jobs())[99].spec.variables == {"x": noise[99]}


# --------------------------------------------------------------------------------------------------------- keys


async def test_without_a_project_the_key_decides(site: Site) -> None:
    async with tweezer.connect_async(site.api_url, key=make_key(site.folder, "ours")) as queue:
        assert queue.project is None
        assert (await (await submit(queue)).record()).project == "ours"


async def test_a_key_of_another_project_sees_and_submits_nothing(site: Site) -> None:
    batch = await submit(site.queue)
    theirs = make_key(site.folder, "theirs")
    async with tweezer.connect_async(site.api_url, key=theirs) as queue:
        with pytest.raises(NotFound, match=f"^there is no batch {batch.id}$"):
            await queue.batch(batch.id).record()
        with pytest.raises(NotFound):
            await queue.batch(batch.id).cancel()
    async with tweezer.connect_async(site.api_url, key=theirs, project="ours") as queue:
        with pytest.raises(tweezer.TweezerError, match="not a project of this key") as raised:
            await submit(queue)
        assert raised.value.code == "foreign_project"


async def test_wrong_expired_and_revoked_keys_are_refused(site: Site) -> None:
    revoked = make_key(site.folder, "ours")
    database = Database.open(OpenDatabase(sqlite_url(site.folder / "ledger.db")))
    with database.write() as connection:
        revoke_key(connection, revoked.split("_")[1])
    database.close()
    expired = make_key(site.folder, "ours", expires_s=1)
    await asyncio.sleep(1.1)
    for key in (f"twz_{'a' * 12}_{'b' * 52}", "nonsense", revoked, expired):
        async with tweezer.connect_async(site.api_url, key=key) as queue:
            with pytest.raises(tweezer.TweezerError, match="does not accept the key") as raised:
                await queue.devices()
            assert raised.value.code == "unauthorized"
            assert not raised.value.retryable
            assert key not in str(raised.value)


async def test_a_key_without_the_role_is_refused(site: Site) -> None:
    async with site.connect("ours") as queue:
        for call in (queue.workers, lambda: queue.pause_device(NULL, "service")):
            with pytest.raises(tweezer.TweezerError, match="operator") as raised:
                await call()
            assert raised.value.code == "forbidden"


async def test_the_key_is_in_no_text(site: Site) -> None:
    key = make_key(site.folder, "ours")
    async with tweezer.connect_async(site.api_url, key=key, retry_s=0) as queue:
        batch = await submit(queue)
        texts = [repr(it) for it in (queue, queue.transport, queue.transport.address, batch)]
        again = pickle.loads(pickle.dumps(batch))  # noqa: S301  the test's own
        assert (await again.record()).id == batch.id
        await again.queue.close()
    async with tweezer.connect_async("http://127.0.0.1:9", key=key, retry_s=0) as queue:
        with pytest.raises(tweezer.TweezerError) as raised:
            await queue.devices()
        error: BaseException | None = raised.value
        while error is not None:
            texts.append(repr(error))
            error = error.__cause__ or error.__context__
    assert not [text for text in texts if key in text or key.split("_")[2] in text]
    logged = "".join(process.text for process in site.processes)
    assert key not in logged


async def test_the_key_of_the_environment_goes_to_its_own_host_only(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWEEZER_API_KEY", make_key(site.folder, "ours"))
    async with tweezer.connect_async(site.api_url) as queue:  # an explicit URL, and no other in the environment
        await queue.devices()
    monkeypatch.setenv("TWEEZER_API_URL", "https://tweezer.example.org")
    with pytest.raises(tweezer.InvalidInput, match=r"^key: is missing; TWEEZER_API_KEY is for the host of"):
        tweezer.connect_async(site.api_url)
    monkeypatch.setenv("TWEEZER_API_URL", site.api_url)
    async with tweezer.connect_async() as queue:
        await queue.devices()
    monkeypatch.setenv("TWEEZER_REDIS_URL", as_user(site.url, RedisUser.PRODUCER))
    async with tweezer.connect_async(site.api_url) as queue:  # an explicit URL wins over both variables
        assert isinstance(queue.transport, http.HttpTransport)


async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere(site: Site) -> None:
    async with Front() as elsewhere:

        async def redirect(request: web.Request, forward: Forward) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": f"{elsewhere.url}{request.path_qs}"})

        async with Front(site.api_url, behave=redirect) as front, front_queue(site, front) as queue:
            with pytest.raises(tweezer.TweezerError, match=r"redirects to http://127\.0\.0\.1,") as raised:
                await submit(queue)
            assert raised.value.code == "redirected"
            assert elsewhere.requests == []


# ------------------------------------------------------------------------------------------------ the way there


async def test_the_api_may_be_below_a_path(site: Site) -> None:
    async with Front(site.api_url, prefix="/lab/tweezer") as front, front_queue(site, front) as queue:
        batch = await submit(queue)
        assert [job.index for job in await batch.jobs()] == [0]
        assert {request.path.startswith("/lab/tweezer/api/") for request in front.requests} == {True}


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again_after_the_time_in_its_response(site: Site, status: int) -> None:
    times: list[float] = []

    async def refuse_first(request: web.Request, forward: Forward) -> web.StreamResponse:
        times.append(time.monotonic())
        if len(times) > 1:
            return await forward()
        body = {"status": "fail", "message": "", "code": "", "data": {"description": "busy", "reason": "busy"}}
        return web.json_response(body, status=status, headers={"Retry-After": "1"})

    async with Front(site.api_url, behave=refuse_first) as front, front_queue(site, front) as queue:
        await queue.devices()
    assert times[1] - times[0] >= 1
    times.clear()
    async with Front(site.api_url, behave=refuse_first) as front, front_queue(site, front, retry_s=0.5) as queue:
        with pytest.raises(tweezer.Unavailable, match="busy") as raised:  # the time would exceed retry_s
            await queue.devices()
        assert raised.value.retry_after_s == 1


async def test_a_submit_whose_response_is_lost_makes_one_batch(site: Site) -> None:
    """Each first response is lost after the API has executed the call."""
    lost: set[str] = set()

    async def lose_first(request: web.Request, forward: Forward) -> web.StreamResponse:
        response = await forward()
        if request.method == "GET" or request.path in lost:
            return response
        lost.add(request.path)
        return cut(request)

    async with Front(site.api_url, behave=lose_first) as front, front_queue(site, front) as queue:
        batch = await submit(queue, open=True)
        assert await batch.add_jobs([{"runs": 1}] * 3) == 1
        assert await batch.cancel_jobs([1, 1]) == ["canceled", "over"]
        await batch.pause()
        await batch.resume()
        await batch.close()
        await batch.cancel()
        assert (await batch.record()).jobs == 4
    assert len(lost) == 7
    assert len({event.batch_id for event in await site.events()}) == 1


async def test_a_stream_of_jobs_that_is_cut_is_read_again(site: Site) -> None:
    cuts = 0

    async def cut_stream(request: web.Request, forward: Forward) -> web.StreamResponse:
        nonlocal cuts
        response = await forward()
        if not request.path.endswith("/jobs") or request.method == "POST" or cuts == 2:
            return response
        cuts += 1
        assert isinstance(response, web.Response)
        assert isinstance(response.body, bytes)
        if cuts == 1:  # a clean end in the wrong place, as some proxies make it
            return web.Response(body=response.body[: response.body.index(b"\n") + 1])
        response.body = response.body[:-20]
        return response

    async with Front(site.api_url, behave=cut_stream) as front, front_queue(site, front) as queue:
        batch = await submit(queue, 5)
        assert [job.index for job in await batch.jobs()] == [0, 1, 2, 3, 4]
    assert cuts == 2


async def test_a_server_that_hangs_is_unavailable_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_session, "ANSWER_S", 0.2)
    monkeypatch.setattr(http_session, "CONNECT_S", 0.2)

    async def hang(request: web.Request, forward: Forward) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async with Front(site.api_url, behave=hang) as front, front_queue(site, front, retry_s=0.1) as queue:
        began = time.monotonic()
        for call in (queue.devices, lambda: submit(queue)):
            with pytest.raises(tweezer.Unavailable, match="does not respond in time"):
                await call()
        assert time.monotonic() - began < PATIENCE_S / 2


async def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with tweezer.connect_async("http://127.0.0.1:9", key="twz_x", retry_s=0.2) as queue:
        with pytest.raises(tweezer.Unavailable, match=r"cannot reach the API at http://127\.0\.0\.1:9: "):
            await queue.devices()


async def test_another_service_is_recognised(site: Site) -> None:
    async def answer(request: web.Request, forward: Forward) -> web.StreamResponse:
        return web.Response(status=404 if "batches" in request.path else 200, text="<html>hello</html>")

    async with Front(site.api_url, behave=answer) as front, front_queue(site, front) as queue:
        for call in (queue.devices, lambda: submit(queue)):
            with pytest.raises(tweezer.TweezerError, match="is not a compatible Tweezer API") as raised:
                await call()
            assert raised.value.code == "not_tweezer"


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504, 522])
async def test_a_call_is_repeated_after_an_outage_that_a_proxy_reports(site: Site, status: int) -> None:
    async def answer(request: web.Request, forward: Forward) -> web.StreamResponse:
        return await forward() if len(front.requests) > 1 else web.Response(status=status, text="<html>wait</html>")

    async with Front(site.api_url, behave=answer) as front, front_queue(site, front) as queue:
        batch = await submit(queue)
        assert (await batch.record()).jobs == 1
    first, again, *_ = front.requests
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"]


async def test_a_limit_of_a_proxy_is_reported_at_once(site: Site) -> None:
    async def answer(request: web.Request, forward: Forward) -> web.StreamResponse:
        return web.Response(status=413, text="<html>413 Request Entity Too Large</html>")

    async with Front(site.api_url, behave=answer) as front, front_queue(site, front) as queue:
        with pytest.raises(tweezer.TweezerError, match=r"a proxy of http://.* refuses a body of this size") as raised:
            await submit(queue, 2)
    assert raised.value.code == "too_large"
    assert len(front.requests) == 1


async def test_a_wait_survives_a_restart_of_the_api(worked: Site) -> None:
    async with worked.connect("ours", retry_s=PATIENCE_S) as queue:
        batch = await queue.submit(None, [{"runs": 1, "variables": {"sleep_s": 2}}, {"runs": 1}], device=NULL)
        wait, collect = asyncio.create_task(batch.wait(PATIENCE_S)), asyncio.create_task(_collect(batch))
        await worked.running(batch)
        port = worked.api_url.rpartition(":")[2]
        (api,) = [process for process in worked.processes if process.logged("api.listening")]
        api.kill()
        await worked.api(data_dir=worked.folder, api_port=port)
        assert (await wait).counts[JobStatus.DONE] == 2
        assert sorted(await collect) == [0, 1]


async def _collect(batch: tweezer.AsyncBatch) -> list[int]:
    return [job.index async for job in batch.finished(PATIENCE_S)]


# ---------------------------------------------------------------------------------------------------------- TLS


async def test_certificates_are_verified(site: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    good, other = (
        write_certificate(tmp_path, LOOPBACK),
        write_certificate(tmp_path / "other", x509.DNSName("other.lab")),
    )
    for files, ca_file, code in (
        (good, good[0], ""),
        (good, None, "certificate"),
        (good, other[0], "certificate"),
        (other, other[0], "certificate"),
    ):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*files)
        async with Front(site.api_url, tls=tls) as front, front_queue(site, front, ca_file=ca_file) as queue:
            if not code:
                assert [device.name for device in await queue.devices()] == [NULL]
                continue
            began = time.monotonic()
            with pytest.raises(tweezer.TweezerError, match="certificate of https://127") as raised:
                await queue.devices()
            assert raised.value.code == code
            assert time.monotonic() - began < PATIENCE_S / 4, "it was repeated"
            assert front.requests == []


async def test_the_store_needs_no_api(site: Site) -> None:
    """The same batch is read by a process that reaches Redis."""
    async with Store.open(Connect(site.url)) as store:
        batch = await submit(site.queue)
        assert (await store.reader.batch(batch.id, project="ours")).jobs == 1
