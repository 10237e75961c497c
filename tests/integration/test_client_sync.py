"""The synchronous Python API, which runs the asynchronous calls on a thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.support.processes import NULL, QUICK, Process
from tests.support.queues import Reach
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, wait_until

import tweezer
from tweezer import BatchStatus, Job, JobStatus
from tweezer.model.ids import short_id
from tweezer.store.acl import RedisUser
from tweezer.store.producers import CancelAnswer

DONE = JobStatus.DONE


@pytest.fixture
def worker(real_redis_url: str, tmp_path: Path) -> Iterator[Process]:
    settings = {
        **QUICK,
        "redis_url": as_user(real_redis_url, RedisUser.WORKER),
        "worker_device": NULL,
        "worker_lanes": 2,
    }
    process = Process(["worker"], settings, tmp_path / "worker.log")
    wait_until(lambda: bool(process.logged("worker.started")) or not process.alive)
    yield process
    process.kill()


@pytest.fixture
def queue(worker: Process, reach: Reach) -> Iterator[tweezer.Queue]:
    with tweezer.connect(**reach("ours")) as queue:
        yield queue


def submit(queue: tweezer.Queue, *jobs: dict[str, Any], **options: Any) -> tweezer.Batch:
    return queue.submit(None, [{"runs": 1, "variables": job} for job in jobs], device=NULL, **options)


def running(batch: tweezer.Batch) -> bool:
    return batch.record().counts[JobStatus.RUNNING] > 0


def test_a_batch_is_submitted_waited_for_and_read(queue: tweezer.Queue) -> None:
    batch = queue.submit(None, [Job(runs=3), {"runs": 4}], device=NULL, name="scan")
    assert batch.wait(PATIENCE_S).status is BatchStatus.DONE
    first, second = batch.results()
    assert (first.counter, second.counter) == ({"0": 3}, {"0": 4})
    assert [job.id for job in queue.batch(batch.id).jobs()] == [first.id, second.id]
    assert queue.job(first.id).status is DONE
    assert queue.result(str(second.id)).counter == {"0": 4}
    assert repr(batch) == f"<batch {short_id(batch.id)}>"


def test_a_notebook_shows_the_current_state_of_a_batch(queue: tweezer.Queue) -> None:
    batch = submit(queue, {}, {"fail": "too hot"}, name="<scan>")
    batch.wait(PATIENCE_S)
    html = batch._repr_html_()
    assert html is not None
    assert short_id(batch.id) in html
    assert "“&lt;scan&gt;”" in html
    assert "2 jobs: 1 DONE, 1 ERROR" in html
    assert "too hot" in html
    assert "too hot" in batch.jobs()._repr_html_()
    assert "100%" in batch.results()._repr_html_()
    assert repr(queue) == "<queue of project 'ours'>"


def test_a_data_frame_has_the_results_so_far(queue: tweezer.Queue) -> None:
    batch = submit(queue, {}, {"fail": "no"}, {"sleep_s": 60})
    wait_until(lambda: batch.record().counts[JobStatus.RUNNING] == 1 and batch.record().counts[JobStatus.PENDING] == 0)
    frame = batch.to_dataframe()
    assert list(frame["status"]) == ["DONE", "ERROR", "RUNNING"]
    assert frame.loc[0, "shots"] == 1
    assert frame["sleep_s"].tolist()[2] == 60
    batch.cancel()


def test_a_wait_shows_its_progress(queue: tweezer.Queue, capsys: pytest.CaptureFixture[str]) -> None:
    batch = submit(queue, {}, {"fail": "no"})
    assert batch.wait(PATIENCE_S, progress=True).status is BatchStatus.DONE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2 jobs · 1 failed · DONE\n" in captured.err
    with pytest.raises(tweezer.WaitTimeout):
        submit(queue, {"sleep_s": 60}).wait(0.1, progress=True)


WAITING = """
import sys, tweezer
with tweezer.connect(sys.argv[1], project="ours") as queue:
    batch = queue.submit(None, [{"runs": 1, "variables": {"sleep_s": 60}}], device="NULL")
    print(batch.id, flush=True)
    batch.wait(progress=True, cancel_on_interrupt=sys.argv[2] == "cancel")
"""


@pytest.mark.parametrize("cancels", [False, True])
def test_an_interrupt_ends_a_wait_and_cancels_only_on_request(
    queue: tweezer.Queue, real_redis_url: str, cancels: bool
) -> None:
    url = as_user(real_redis_url, RedisUser.PRODUCER)
    command = [sys.executable, "-c", WAITING, url, "cancel" if cancels else "leave"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        batch = queue.batch(waiting.stdout.readline().strip())
        assert "0/1 job" in waiting.stderr.readline(), "it waits"
        wait_until(lambda: running(batch))
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=PATIENCE_S)
    assert "KeyboardInterrupt" in errors
    if cancels:
        assert f"Interrupted: batch {short_id(batch.id)} is being cancelled.\n" in errors
        assert batch.wait(PATIENCE_S).status is BatchStatus.CANCELED
    else:
        assert f"Stopped waiting; batch {short_id(batch.id)} continues. Cancel it with batch.cancel() or" in errors
        assert running(batch)
        batch.cancel()


def test_jobs_are_yielded_as_they_end(queue: tweezer.Queue) -> None:
    batch = submit(queue, {"sleep_s": 0.5}, {}, {"fail": "no"})
    seen = [(job.index, job.status) for job in batch.finished(PATIENCE_S)]
    assert sorted(seen) == [(0, DONE), (1, DONE), (2, JobStatus.ERROR)]
    assert seen[-1][0] == 0


def test_an_iteration_may_be_abandoned(queue: tweezer.Queue) -> None:
    batch = submit(queue, {}, {"sleep_s": 60})
    assert next(batch.finished(PATIENCE_S)).index == 0
    for record in batch.changes(PATIENCE_S):
        assert record.counts[DONE] == 1
        break
    batch.cancel()
    assert batch.wait(PATIENCE_S).status is BatchStatus.CANCELED


def test_an_open_batch_is_filled_paused_resumed_and_closed(queue: tweezer.Queue) -> None:
    batch = submit(queue, open=True)
    batch.pause()
    assert batch.add_jobs([{"runs": 1}] * 2, idempotency_key="a") == 0
    assert batch.add_jobs([{"runs": 1}] * 2, idempotency_key="a") == 0
    assert batch.record().status is BatchStatus.PAUSED
    assert batch.cancel_jobs([1, 7]) == [CancelAnswer.CANCELED, CancelAnswer.UNKNOWN]
    batch.resume()
    batch.close()
    record = batch.wait(PATIENCE_S)
    assert (record.jobs, record.counts[DONE], record.counts[JobStatus.CANCELED]) == (2, 1, 1)


def test_batches_are_listed_and_found(queue: tweezer.Queue) -> None:
    first = submit(queue, {}, name="one")
    second = submit(queue, {}, tags=["x"])
    listed = list(queue.batches())
    assert [it.batch.id for it in listed] == [second.id, first.id]
    assert all(isinstance(it.batch, tweezer.Batch) for it in listed)
    assert [it.record.doc.name for it in queue.batches(name="one")] == ["one"]
    assert queue.find("@last").id == second.id
    assert queue.find("one").results(PATIENCE_S)[0].counter == {"0": 1}
    assert queue.job("one/0").batch_id == first.id
    for batch, _ in queue.batches():
        assert batch.wait(PATIENCE_S).status is BatchStatus.DONE
        break  # an iteration may be abandoned


def test_errors_are_those_of_the_asynchronous_calls(queue: tweezer.Queue, reach: Reach) -> None:
    batch = submit(queue, {"sleep_s": 60})
    with pytest.raises(tweezer.WaitTimeout):
        batch.wait(0.05)
    with pytest.raises(tweezer.WaitTimeout):
        list(batch.finished(0.05))
    with pytest.raises(tweezer.InvalidInput, match="device"):
        queue.submit(None, [{"runs": 1}], device="NONE")
    with (
        tweezer.connect(**reach("theirs")) as theirs,
        pytest.raises(tweezer.NotFound),
    ):
        theirs.batch(batch.id).record()
    assert queue.cancel_many([batch.id]) == {}
    batch.wait(PATIENCE_S)
    assert list(queue.cancel_many([str(batch.id)])) == [batch.id]


def test_devices_and_workers_are_listed_and_a_device_is_paused(queue: tweezer.Queue, worker: Process) -> None:
    assert [(device.name, device.lanes) for device in queue.devices()] == [(NULL, 2)]
    assert [f":{worker.pid}:" in about.id for about in queue.workers()] == [True]
    queue.pause_device(NULL, "service")
    assert queue.devices()[0].paused == "service"
    queue.resume_device(NULL)
    assert queue.devices()[0].paused is None


def test_one_queue_serves_many_threads(queue: tweezer.Queue) -> None:
    def work(_: int) -> int:
        return submit(queue, {}, {}, {}).wait(PATIENCE_S).counts[DONE]

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(24))) == 72


def test_closing_leaves_no_thread_behind(worker: Process, reach: Reach) -> None:
    before = threading.active_count()
    for _ in range(5):
        with tweezer.connect(**reach("ours")) as queue:
            assert queue.devices()
            assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_without_redis_a_call_ends_with_an_error(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        tweezer.connect(f"unix://{tmp_path}/nobody.sock", retry_s=0.3) as queue,
        pytest.raises(tweezer.Unavailable, match="cannot be reached"),
    ):
        queue.devices()
    assert time.monotonic() - began < PATIENCE_S / 2, "the call retried for too long"


WAITS = {
    "wait": "batch.wait()",
    "results": "batch.results()",
    "finished": "list(batch.finished())",
    "changes": "list(batch.changes())",
}


@pytest.mark.parametrize("reach", ["redis"], indirect=True)  # it looks at the subscription in Redis
@pytest.mark.parametrize("way", WAITS)
def test_an_interrupt_ends_a_wait_at_once(queue: tweezer.Queue, real_redis_url: str, way: str) -> None:
    """Ctrl-C in a notebook or a script raises KeyboardInterrupt, and the queue closes in order."""
    batch = submit(queue, {"sleep_s": 60})
    wait_until(lambda: running(batch))
    program = f"""
import tweezer
with tweezer.connect({as_user(real_redis_url, RedisUser.PRODUCER)!r}, project="ours") as queue:
    batch = queue.batch({str(batch.id)!r})
    try:
        print("waiting", flush=True)
        {WAITS[way]}
    except KeyboardInterrupt:
        print("interrupted", queue.batch(batch.id).record().status.value, flush=True)
"""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert script.stderr is not None
        assert script.stdout.readline() == "waiting\n"
        with redis.Redis.from_url(real_redis_url) as client:
            channel = f"tweezer:news:{batch.id}"
            wait_until(lambda: client.pubsub_numsub(channel) == [(channel.encode(), 1)])  # it listens
        script.send_signal(signal.SIGINT)
        assert script.stdout.readline() == "interrupted RUNNING\n"
        assert script.wait(10) == 0
        assert script.stderr.read() == ""
    batch.cancel()
    batch.wait(PATIENCE_S)
