"""A lane and its process, with every kind of misbehaviour of the backend."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.waiting import PATIENCE_S, until

from tweezer.adapters.lane.jail import JailMode
from tweezer.adapters.lane.jail.home import Scratch
from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.registry import QUTIP_BACKEND
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import (
    BatchDoc,
    BatchWork,
    Fault,
    JobSpec,
    JobWork,
    Limits,
    Outcome,
    OutcomeKind,
    Progress,
    Result,
)

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a jail for lanes")
MODULE = "tests.support.misbehaving_backend"
BACKEND = f"{MODULE}:MisbehavingBackend"
OPTIONS = LaneOptions(soft_cancel_s=0.3, watch_interval_s=0.05, progress_interval_s=0.01, start_timeout_s=60)


def batch(sequence: str = "{}", limits: Limits | None = None) -> BatchWork:
    return BatchWork(new_batch_id(), BatchDoc(device="EMU_FREE", sequence=sequence, limits=limits or Limits()))


def job(act: str, value: Any = None) -> JobWork:
    return JobWork(job_id(new_batch_id(), 0), 0, JobSpec(variables={"act": act, "value": value}), seed=1)


def ignore(progress: Progress) -> None:
    """Ignore a report."""


def running(pid: int) -> bool:
    """Return whether the process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def exists(path: str) -> bool:
    return Path(path).exists()


async def run_act(lane: ChildLane, act: str, value: Any = None) -> dict[str, int]:
    """Run an act of the backend and return its counter."""
    await lane.prepare(batch())
    outcome = await lane.run(job(act, value), ignore)
    assert outcome.result is not None, outcome
    assert outcome.result.counter is not None
    return outcome.result.counter


@pytest.fixture(autouse=True)
def python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lanes import the backend, and programs import this module."""
    inherited = os.environ.get("PYTHONPATH")
    folders = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent)))
    monkeypatch.setenv("PYTHONPATH", f"{folders}{os.pathsep}{inherited}" if inherited else folders)


@pytest.fixture
async def lane(python_path: None) -> AsyncIterator[ChildLane]:
    lane = await ChildLane.open(BACKEND, OPTIONS)
    yield lane
    await lane.close()


async def begin(lane: ChildLane, work: JobWork) -> asyncio.Task[Outcome]:
    """Start a job and wait for its first report, so that it has begun."""
    reported = asyncio.Event()
    task = asyncio.create_task(lane.run(work, lambda progress: reported.set()))
    await asyncio.wait_for(reported.wait(), PATIENCE_S)
    return task


def get_pid(lane: ChildLane) -> int:
    assert lane.pid is not None
    return lane.pid


async def collected(lane: ChildLane, act: str, value: Any = None) -> tuple[Outcome, bytes]:
    """Run an act of the backend; return its outcome, and what it wrote."""
    chunks: list[bytes] = []
    await lane.prepare(batch())
    lane.on_output = chunks.append
    outcome = await lane.run(job(act, value), ignore)
    lane.on_output = None
    return outcome, b"".join(chunks)


async def test_everything_that_is_written_while_a_job_runs_is_passed_on_before_its_end(lane: ChildLane) -> None:
    for number in range(20):
        outcome, output = await collected(lane, "print", f"job {number}\n")
        assert outcome.kind is OutcomeKind.DONE
        assert sorted(output.splitlines()) == [b"a library in C", b"an error", f"job {number}".encode()]


async def test_output_outside_of_jobs_belongs_to_none(lane: ChildLane) -> None:
    _, output = await collected(lane, "print", "")
    assert b"output of a library" not in output
    assert await run_act(lane, "print", "unread\n")
    _, output = await collected(lane, "write", b"received\n".hex())
    assert output == b"received\n"


async def test_the_last_words_of_a_process_that_dies_are_passed_on(lane: ChildLane) -> None:
    for act, value in (("print and exit", None), ("signal", signal.SIGSEGV)):
        outcome, output = await collected(lane, act, value)
        assert outcome.cause is FaultKind.CRASH
        assert b"last words" in output or b"Segmentation fault" in output  # from Python's fault handler


async def test_what_is_written_after_a_run_was_abandoned_is_not_passed_on(lane: ChildLane) -> None:
    chunks: list[bytes] = []
    await lane.prepare(batch())
    lane.on_output = chunks.append
    running = asyncio.create_task(lane.run(job("print and wait"), ignore))
    await until(lambda: bool(chunks))
    running.cancel()
    await asyncio.wait([running])
    assert lane._child is not None
    assert lane._child.on_output is None


@pytest.mark.parametrize("ticks", range(4))
async def test_a_cancel_that_meets_a_message_is_not_lost(lane: ChildLane, ticks: int) -> None:
    await lane.prepare(batch())
    child = lane._child
    assert child is not None
    receiving = asyncio.create_task(child.receive(PATIENCE_S))
    await asyncio.sleep(0)
    child.wake()
    for _ in range(ticks):
        await asyncio.sleep(0)
    is_in_time = receiving.cancel()
    await asyncio.wait([receiving])
    assert receiving.cancelled() is is_in_time


async def test_a_flood_of_output_neither_blocks_the_worker_nor_is_lost(lane: ChildLane) -> None:
    longest_s, before, over = 0.0, time.monotonic(), asyncio.Event()

    async def watch() -> None:
        nonlocal longest_s, before
        while not over.is_set():
            await asyncio.sleep(0)
            longest_s, before = max(longest_s, time.monotonic() - before), time.monotonic()

    watching = asyncio.create_task(watch())
    outcome, output = await collected(lane, "flood", 100)
    over.set()
    await watching
    assert outcome.kind is OutcomeKind.DONE
    assert len(output) == 100 << 16
    assert longest_s < 1.0


async def test_the_output_of_a_library_does_not_corrupt_the_protocol(lane: ChildLane) -> None:
    await lane.prepare(batch())
    for _ in range(3):
        outcome = await lane.run(job("echo"), ignore)
        assert outcome.kind is OutcomeKind.DONE


DRAW = """
import sys
from tweezer.adapters.lane.child_main import _load
_load(sys.argv[1])
print(*sys.modules)
from pulser import MockDevice, Pulse, Register, Register3D, Sequence
register = Register.square(2, spacing=5.0, prefix="q")
sequence = Sequence(register, MockDevice)
sequence.declare_channel("channel", "rydberg_global")
sequence.add(Pulse.ConstantPulse(200, 1, 0, 0), "channel")
sequence.draw(show=False)
register.draw(show=False)
Register3D.cubic(2, spacing=5.0, prefix="q").draw()
print(*sys.modules)
"""


@pytest.mark.emulator
def test_a_lane_imports_matplotlib_only_to_draw() -> None:
    command = [sys.executable, "-W", "ignore", "-c", DRAW, QUTIP_BACKEND]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"MPLBACKEND": "Agg"})
    before, after = (set(line.split()) for line in ran.stdout.splitlines())
    assert {"pulser_simulation", "qutip"} <= before
    assert not {"matplotlib", "mpl_toolkits", "setuptools", "redis", "pydantic"} & before
    assert {"matplotlib.pyplot", "mpl_toolkits.mplot3d"} <= after


async def test_a_batch_is_prepared_once(lane: ChildLane) -> None:
    work = batch()
    for _ in range(3):
        await lane.prepare(work)
    outcome = await lane.run(job("echo"), ignore)
    assert outcome.result == Result({"prepared": 1})
    await lane.prepare(batch())
    assert (await lane.run(job("echo"), ignore)).result == Result({"prepared": 2})


async def test_the_process_has_its_own_session_and_ignores_the_terminals_signals(lane: ChildLane) -> None:
    pid = get_pid(lane)
    assert os.getsid(pid) == pid
    await lane.prepare(batch())
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE
    assert lane.pid == pid


async def test_secrets_do_not_reach_the_process_of_a_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_SECRET", "hush")
    monkeypatch.setenv("PGPASSWORD", "hush")
    monkeypatch.setenv("OMP_REMOTE", "redis://:hush@127.0.0.1")
    lane = await ChildLane.open(BACKEND, LaneOptions(threads=3))
    environment = await run_act(lane, "environment")
    await lane.close()
    assert not [entry for entry in environment if "hush" in entry or entry.startswith("TWEEZER_")]
    assert "OMP_NUM_THREADS=3" in environment
    assert "PYTHONHASHSEED=0" in environment


@LINUX
async def test_a_lane_cannot_reach_files_network_or_processes(lane: ChildLane, tmp_path: Path) -> None:
    secret = tmp_path / "secrets.key"
    secret.write_text("hush")
    got = await run_act(lane, "escape", str(secret))
    assert {name: error for name, error in got.items() if error not in {errno.EPERM, errno.EACCES}} == {}
    assert lane.jail == "on"
    assert secret.read_text() == "hush"


@LINUX
async def test_a_jailed_lane_can_do_what_libraries_need(lane: ChildLane) -> None:
    assert {name: error for name, error in (await run_act(lane, "use what libraries need")).items() if error} == {}


@LINUX
@pytest.mark.parametrize(("mode", "seccomp"), [(JailMode.ON, "2"), (JailMode.OFF, "0")])
async def test_the_jail_is_off_only_if_the_operator_disables_it(mode: JailMode, seccomp: str) -> None:
    lane = await ChildLane.open(BACKEND, msgspec.structs.replace(OPTIONS, jail=mode))
    status = read(f"/proc/{get_pid(lane)}/status")
    await lane.close()
    assert lane.jail == mode.value
    assert f"\nSeccomp:\t{seccomp}\n" in status


@LINUX
async def test_a_lane_does_not_start_if_the_data_folder_is_within_its_readable_folders() -> None:
    within = str(Path(__file__).parent / "data")
    with pytest.raises(
        ExecutionError, match=r"cannot be hidden from lanes, because it is inside .*; set TWEEZER_DATA_DIR"
    ):
        await ChildLane.open(BACKEND, msgspec.structs.replace(OPTIONS, private=(within,)))


async def test_the_scratch_folder_is_removed_with_the_lane(lane: ChildLane) -> None:
    (entry,) = [entry for entry in await run_act(lane, "environment") if entry.startswith("TMPDIR=")]
    folder = entry.removeprefix("TMPDIR=")
    assert exists(folder)
    await lane.close()
    assert not exists(folder)


def test_scratch_folders_of_killed_workers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    orphan = tmp_path / "tweezer-lane-orphan"
    orphan.mkdir()
    first = Scratch()
    second = Scratch()
    assert sorted(tmp_path.iterdir()) == sorted([first.path, second.path])
    first.remove()
    second.remove()
    assert list(tmp_path.iterdir()) == []


async def test_a_refusal_names_the_field(lane: ChildLane) -> None:
    await lane.prepare(batch())
    outcome = await lane.run(job("refuse"), ignore)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.USER)
    assert outcome.fault == Fault("invalid", "is missing", "variables.omega")


async def test_an_unexpected_exception_is_internal_and_the_process_survives(lane: ChildLane) -> None:
    await lane.prepare(batch())
    pid = lane.pid
    outcome = await lane.run(job("fault"), ignore)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.INTERNAL)
    assert outcome.fault is not None
    assert "KeyError: 'an unexpected error'" in outcome.fault.message
    assert "Traceback" not in outcome.fault.message
    assert lane.pid == pid


@pytest.mark.parametrize(
    ("act", "value", "words"),
    [
        ("exit", 3, "exited with code 3"),
        ("signal", signal.SIGSEGV, "was killed by SIGSEGV"),
        ("signal", signal.SIGKILL, "was killed by SIGKILL (perhaps by the system, for lack of memory)"),
    ],
)
async def test_a_process_that_dies_during_a_job_is_a_crash_and_is_replaced(
    lane: ChildLane, act: str, value: int, words: str
) -> None:
    await lane.prepare(batch())
    pid = lane.pid
    outcome = await lane.run(job(act, value), ignore)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.RETRY, FaultKind.CRASH)
    assert outcome.fault is not None
    assert words in outcome.fault.message
    again = await lane.run(job("echo"), ignore)
    assert again.result == Result({"prepared": 1})  # the lane prepared the batch again in the new process
    assert lane.pid != pid


async def test_a_process_killed_between_jobs_is_replaced_silently(lane: ChildLane) -> None:
    await lane.prepare(batch())
    pid = get_pid(lane)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not running(pid))
    outcome = await lane.run(job("echo"), ignore)
    assert outcome.kind in (OutcomeKind.DONE, OutcomeKind.RETRY)  # the lane may notice the death only during the job
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE


async def test_a_job_that_checks_for_a_cancel_is_cancelled_softly(lane: ChildLane) -> None:
    await lane.prepare(batch())
    pid = lane.pid
    task = await begin(lane, job("solve"))
    await lane.cancel()
    assert (await asyncio.wait_for(task, PATIENCE_S)).kind is OutcomeKind.CANCELED
    assert lane.pid == pid
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE


async def test_a_job_that_never_checks_for_a_cancel_is_killed(lane: ChildLane) -> None:
    await lane.prepare(batch())
    pid = get_pid(lane)
    task = await begin(lane, job("ignore cancels"))
    began = time.monotonic()
    await lane.cancel()
    assert (await asyncio.wait_for(task, PATIENCE_S)).kind is OutcomeKind.CANCELED
    assert time.monotonic() - began < OPTIONS.soft_cancel_s + PATIENCE_S / 2
    assert not running(pid)
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE


async def test_a_cancel_without_a_job_does_not_affect_the_next_job(lane: ChildLane) -> None:
    await lane.prepare(batch())
    await lane.cancel()
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE
    await lane.cancel()
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE


async def test_a_cancel_does_not_wait_for_the_replacement_of_the_process(lane: ChildLane) -> None:
    await lane.prepare(batch())
    await lane.run(job("exit", 1), ignore)
    task = asyncio.create_task(lane.run(job("echo"), ignore))
    await until(lambda: lane.pid is not None)
    await lane.cancel()
    assert (await asyncio.wait_for(task, PATIENCE_S)).kind is OutcomeKind.CANCELED


@pytest.mark.parametrize("act", ["solve", "ignore cancels"])
async def test_a_job_ends_at_its_time_limit(lane: ChildLane, act: str) -> None:
    await lane.prepare(batch(limits=Limits(job_timeout_s=0.2)))
    outcome = await asyncio.wait_for(lane.run(job(act), ignore), PATIENCE_S)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.TIMEOUT)
    assert outcome.device_s > 0
    assert outcome.fault is not None
    assert outcome.fault.message.startswith("the job took longer than 0.2 s; raise job_timeout_s")
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE


async def test_a_job_that_takes_too_much_memory_ends_with_advice() -> None:
    lane = await ChildLane.open(BACKEND, LaneOptions(memory_limit_mb=400, watch_interval_s=0.02))
    await lane.prepare(batch())
    pid = get_pid(lane)
    outcome = await asyncio.wait_for(lane.run(job("hog"), ignore), PATIENCE_S)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.OUT_OF_MEMORY)
    assert outcome.fault is not None
    assert "400 MB" in outcome.fault.message
    assert "fewer qubits" in outcome.fault.message
    assert not running(pid)
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE
    await lane.close()


async def test_a_memory_error_is_out_of_memory_and_the_process_is_replaced(lane: ChildLane) -> None:
    await lane.prepare(batch())
    pid = get_pid(lane)
    outcome = await lane.run(job("memory_error"), ignore)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.ERROR, FaultKind.OUT_OF_MEMORY)
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE
    assert lane.pid != pid


async def test_progress_is_reported_but_not_too_often(lane: ChildLane) -> None:
    await lane.prepare(batch(limits=Limits(job_timeout_s=0.5)))
    fractions: list[float | None] = []
    await lane.run(job("solve"), lambda progress: fractions.append(progress.fraction))
    assert set(fractions) == {0.5}
    assert 2 <= len(fractions) <= 0.9 / OPTIONS.progress_interval_s


@pytest.mark.parametrize(
    ("sequence", "kind", "words"),
    [
        ("refuse", FaultKind.USER, "sequence: is not accepted here"),
        ("fault", FaultKind.INTERNAL, "KeyError"),
        ("crash", FaultKind.CRASH, "exited with code 4"),
    ],
)
async def test_the_error_for_a_batch_that_cannot_be_prepared_has_a_reason(
    lane: ChildLane, sequence: str, kind: FaultKind, words: str
) -> None:
    with pytest.raises(ExecutionError) as raised:
        await lane.prepare(batch(sequence))
    assert raised.value.kind is kind
    assert words in raised.value.message
    await lane.prepare(batch())
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE


async def test_preparing_has_a_time_limit() -> None:
    lane = await ChildLane.open(BACKEND, LaneOptions(prepare_timeout_s=0.2, soft_cancel_s=0.1))
    with pytest.raises(ExecutionError, match=r"longer than 0\.2 s") as raised:
        await asyncio.wait_for(lane.prepare(batch("hang")), PATIENCE_S)
    assert raised.value.kind is FaultKind.TIMEOUT
    await lane.close()


async def test_a_lane_remains_usable_after_its_task_is_cancelled(lane: ChildLane) -> None:
    await lane.prepare(batch())
    pid = get_pid(lane)
    task = await begin(lane, job("solve"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not running(pid))
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.DONE


async def test_closing_a_lane_gives_its_job_back_and_leaves_no_process(lane: ChildLane) -> None:
    await lane.prepare(batch())
    pid = get_pid(lane)
    task = await begin(lane, job("ignore cancels"))
    await lane.close()
    outcome = await asyncio.wait_for(task, PATIENCE_S)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.RETRY, FaultKind.TRANSIENT)
    assert not running(pid)
    assert (await lane.run(job("echo"), ignore)).kind is OutcomeKind.RETRY


@pytest.mark.parametrize("backend", ["no_such_module:backend", f"{MODULE}:no_such_factory", "os:getpid"])
async def test_a_backend_that_cannot_be_loaded_is_reported(backend: str) -> None:
    with pytest.raises(ExecutionError, match="cannot load the emulator") as raised:
        await ChildLane.open(backend, OPTIONS)
    assert raised.value.kind is FaultKind.INTERNAL


async def test_starting_has_a_time_limit() -> None:
    with pytest.raises(ExecutionError, match=r"not ready after 0\.01 s") as raised:
        await ChildLane.open(BACKEND, LaneOptions(start_timeout_s=0.01, soft_cancel_s=0.01))
    assert raised.value.kind is FaultKind.TRANSIENT


async def test_a_lane_dies_with_its_worker_even_in_the_middle_of_a_job() -> None:
    program = f"""
import asyncio
from {Path(__file__).stem} import BACKEND, ChildLane, OPTIONS, batch, begin, job
async def main():
    lane = await ChildLane.open(BACKEND, OPTIONS)
    await lane.prepare(batch())
    task = await begin(lane, job("ignore cancels"))
    print("pid", lane.pid, flush=True)
    await task
asyncio.run(main())
"""
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert worker.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while not (line := await worker.stdout.readline()).startswith(b"pid "):
            assert line, "the worker ended early"
    pid = int(line.split()[1])
    assert running(pid)
    worker.kill()
    await until(lambda: not running(pid))
    await worker.wait()


async def test_a_lane_ends_with_its_socket_even_in_the_middle_of_a_job(lane: ChildLane) -> None:
    """Where the kernel cannot send a signal at the worker's death, the closed socket ends the process."""
    await lane.prepare(batch())
    pid = get_pid(lane)
    task = await begin(lane, job("ignore cancels"))
    assert lane._child is not None
    lane._child._writer.close()
    await until(lambda: not running(pid))
    assert (await asyncio.wait_for(task, PATIENCE_S)).kind is OutcomeKind.RETRY
