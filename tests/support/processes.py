"""Real processes of the queue for tests: start, stop and kill them, and read their logs.

They serve the package's devices and the test devices below.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import msgspec
import psutil
import structlog
from tests.support.forks import Fork
from tests.support.redis_users import as_user
from tests.support.usage import expected_counts, found_counts
from tests.support.waiting import PATIENCE_S, until, wait_until

import tweezer
from tweezer import logs, tracing
from tweezer.adapters import registry
from tweezer.adapters.lane.lane import LaneOptions
from tweezer.adapters.null import NullAdapter, NullLane
from tweezer.adapters.protocol import Adapter, Capabilities, Report
from tweezer.adapters.registry import EmulatorAdapter
from tweezer.adapters.remote.options import QpuOptions
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase, sqlite_url
from tweezer.ledger.database import Database
from tweezer.model.events import Event
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import BatchDoc, JobWork, Outcome, OutcomeKind
from tweezer.model.specs import DeviceSpecs, read_specs
from tweezer.processes import worker as worker_process
from tweezer.processes.recorder import run_recorder
from tweezer.processes.scheduler import run_scheduler
from tweezer.processes.worker import run_worker
from tweezer.settings import load, to_environment
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.records import JobRecord
from tweezer.worker.config import WorkerConfig

LEASE_S = 1.0
QUICK = {"worker.lease_s": LEASE_S, "worker.drain_s": 1.0, "log.format": "json", "log.level": "INFO"}
"""Settings with short times, by their keys."""

NULL, MISBEHAVING, WITNESSED = "NULL", "MISBEHAVING", "WITNESSED"
QUICK_QPU = "quick-qpu"
"""An adapter for QPUs that does not import Pulser, so that its workers start quickly; see tests/support/fast_qpu.py."""

WITNESS_FILE = "TWEEZER_TEST_WITNESS"
STOPS = "TWEEZER_TEST_STOPS"
HARM = "TWEEZER_TEST_HARM"
"""``raise:duty`` or ``cancel:duty``; see :func:`_harm_a_duty`."""
FAILURES_MAX = "TWEEZER_TEST_FAILURES_MAX"
SOFT_CANCEL_S = "TWEEZER_TEST_SOFT_CANCEL_S"

OWNED = (
    *("tweezer:settings", "tweezer:device", "tweezer:events", "tweezer:scheduler", "tweezer:intake", "arq:"),
    *("tweezer:ended", "tweezer:server", "tweezer:ledger", "tweezer:installation", "tweezer:project:"),
    "tweezer:batches:",
)
"""The prefixes of keys that remain when all work is done."""

REDIS_USERS = {
    **{user.value: user for user in (RedisUser.API, RedisUser.WORKER, RedisUser.RECORDER, RedisUser.COURIER)},
    "scheduler": RedisUser.SCHEDULER,
}
"""The users of Redis as which processes connect."""

Jobs = Iterable[dict[str, Any]]


# --------------------------------------------------------------------------------------- devices of the tests


class MisbehavingAdapter(EmulatorAdapter):
    """Open lanes in child processes that run :mod:`tests.support.misbehaving_backend`."""

    def __init__(self, options: LaneOptions) -> None:
        super().__init__("tests.support.misbehaving_backend:MisbehavingBackend", options)
        self.capabilities = Capabilities(checks_sequence=False)


def hold_file(witness: Path) -> Path:
    """Return the path of a file: while it exists, the job whose index it contains does not end."""
    return witness.with_name(f"{witness.name}.hold")


class WitnessedLane(NullLane):
    """A null lane that records each execution in a file and in the result of the job.

    It appends ``<job id> <execution>`` to the file when an execution ends, before it is settled; the result's
    counter is ``{execution: 1}``.
    """

    _executions = 0

    async def run(self, job: JobWork, report: Report) -> Outcome:
        outcome = await super().run(job, report)
        await until(lambda: not self._is_held(job), "the end of the hold")
        if outcome.kind is not OutcomeKind.DONE:
            return outcome
        WitnessedLane._executions += 1
        execution = f"{os.getpid()}-{WitnessedLane._executions}"
        self._append(f"{job.job_id} {execution}\n")
        assert outcome.result is not None
        signed = msgspec.structs.replace(outcome.result, counter={execution: 1})
        return msgspec.structs.replace(outcome, result=signed)

    @staticmethod
    def _is_held(job: JobWork) -> bool:
        try:
            return hold_file(Path(os.environ[WITNESS_FILE])).read_text("utf-8") == str(job.index)
        except FileNotFoundError:
            return False

    @staticmethod
    def _append(line: str) -> None:
        with Path(os.environ[WITNESS_FILE]).open("a", encoding="utf-8") as file:
            file.write(line)  # one write to a file that is open for appending: lines do not mix


class WitnessedAdapter(NullAdapter):
    """An adapter whose lanes record each execution."""

    async def open_lane(self) -> WitnessedLane:
        return WitnessedLane()


def _witnessed(options: LaneOptions) -> Adapter:
    return WitnessedAdapter()


def _quick_qpu(lanes: LaneOptions, options: QpuOptions) -> Adapter:
    from tests.support.fast_qpu import QuickQpuAdapter  # imported here because it needs an HTTP library

    return QuickQpuAdapter(options, lanes)


def _specs_of_simulator(device: str) -> DeviceSpecs:
    document = json.loads((resources.files("tweezer.qpu_sim") / "device.json").read_text("utf-8"))
    return read_specs(json.dumps({**document, "name": device}))


def serve_devices_of_the_tests() -> None:
    """Register the adapters above, and a device with the name of each."""
    for device, factory in ((MISBEHAVING, MisbehavingAdapter), (WITNESSED, _witnessed)):
        cast(dict[str, registry.AdapterKind], registry.ADAPTERS)[device] = registry.AdapterKind(
            lambda lanes, options, make=factory: make(lanes), registry.NullOptions
        )
        cast(dict[str, str], registry.DEVICE_KINDS)[device] = device
    cast(dict[str, registry.AdapterKind], registry.ADAPTERS)[QUICK_QPU] = registry.AdapterKind(
        _quick_qpu, QpuOptions, specs=_specs_of_simulator, reattaches=True
    )


# ----------------------------------------------------------------------------------- disturbed background tasks


def _harm_a_duty(how: str, name: str) -> None:
    """Make the first step of a background task in this process raise, or cancel its task; log when it runs again."""
    from tweezer import duties
    from tweezer.ledger.recorder import recorder
    from tweezer.processes import runtime
    from tweezer.webhooks import attempts, courier
    from tweezer.worker import worker

    repeat, harmed = duties.repeat, structlog.get_logger("harm")
    calls = itertools.count()

    async def repeat_harmed(duty: str, step: duties.Step, **options: Any) -> None:
        async def harmed_step() -> None:
            call = next(calls)
            if call == 0 and how == "cancel":
                cast("asyncio.Task[None]", asyncio.current_task()).cancel()
                await asyncio.sleep(0)
            if call == 0:
                raise RuntimeError("harmed")
            if call == 1:
                harmed.info("harm.survived", duty=duty)
            await step()

        await repeat(duty, harmed_step if duty == name else step, **options)

    for module in (duties, runtime, courier, attempts, recorder, worker):
        module.repeat = repeat_harmed  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- processes


FILES_MAX = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
FILES = min(1024, FILES_MAX)


class Process(Fork):
    """A worker, the scheduler, the API, a recorder or a courier, as a separate process that logs into a file."""

    def __init__(self, arguments: list[str], settings: dict[str, object], log: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
        environment |= to_environment({name: str(value) for name, value in settings.items()})
        path = filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
        super().__init__(_run_process, arguments, {**environment, "PYTHONPATH": os.pathsep.join(path)}, log)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log entries with this event. A library in a lane may have printed text before them."""
        lines = [line[line.index("{") :] for line in self.text.splitlines() if "{" in line and line.endswith("}")]
        return [entry for entry in map(json.loads, lines) if entry.get("event") == event]

    async def wait_logged(self, event: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait for this many log entries with this event, because an effect may be visible before its entry."""
        await until(lambda: len(self.logged(event)) >= times, f"{event} in the log of process {self.pid}")
        return self.logged(event)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Send SIGSTOP and wait until the process is stopped."""
        self.signal(signal.SIGSTOP)
        about = psutil.Process(self.pid)
        wait_until(lambda: about.status() == psutil.STATUS_STOPPED)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    async def ended(self, within_s: float = PATIENCE_S) -> int:
        """Wait for its end; return the exit status, which is negative for a signal."""
        await until(lambda: not self.alive, f"the end of process {self.pid}", within_s)
        return self.wait(within_s)

    def lanes(self) -> list[psutil.Process]:
        """Return the processes of the worker's lanes."""
        return psutil.Process(self.pid).children(recursive=True)


def runs(process: psutil.Process) -> bool:
    """Return whether the process is running; a zombie is not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def make_key(folder: Path, project: str | None, **options: Any) -> str:
    """Make a key in the ledger of a data folder and return it: of this project, else of an operator."""
    role = Role.OPERATOR if project is None else Role.USER
    place = OpenDatabase(sqlite_url(folder / "ledger.db"))
    with closing(Database.open(place)) as database, database.write() as connection:
        if project is not None:
            project_no(connection, project)
        return create_key(connection, **{"name": "test", "role": role, "project_id": project, **options}).text


class Site:
    """An installation under test: a Redis, a producer's connection to it, and the processes that a test starts.

    At the end it kills all processes, including stopped ones.
    """

    def __init__(self, url: str, folder: Path, **settings: object) -> None:
        self.url = url
        self.folder = folder
        self.api_url = ""
        """URL of the API that producers use; empty: they use Redis."""
        self.queue = self.connect("ours", retry_s=PATIENCE_S)
        self.store = Store.open(Connect(url=url))  # for preparations and checks only
        self.processes: list[Process] = []
        self._settings: dict[str, object] = {**QUICK, **settings}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            sys.stderr.write(f"---- log of process {process.pid}\n{process.text[-4000:]}\n")  # shown when a test fails
        await self.queue.close()
        await self.store.close()

    def connect(self, project: str, **options: Any) -> tweezer.AsyncQueue:
        """Connect to the queue as a producer of this project; the test closes the connection."""
        if self.api_url:
            key = options.pop("key", None) or make_key(self.folder, project)
            return tweezer.connect_async(self.api_url, key=key, project=project, **options)
        return tweezer.connect_async(as_user(self.url, RedisUser.PRODUCER), project=project, **options)

    def spawn(self, *arguments: str, **settings: object) -> Process:
        log = self.folder / f"{len(self.processes)}-{arguments[0]}.log"
        redis_url = as_user(self.url, REDIS_USERS[arguments[0]])
        process = Process(list(arguments), {"redis_url": redis_url, **self._settings, **settings}, log)
        self.processes.append(process)
        return process

    def worker(self, device: str = NULL, *, lanes: int = 1, burst: bool = False, **settings: object) -> Process:
        """Start a worker without waiting for it."""
        options = ["--burst"] if burst else []
        return self.spawn("worker", *options, worker_device=device, worker_lanes=lanes, **settings)

    async def workers(self, count: int, device: str = NULL, *, lanes: int = 1, **settings: Any) -> list[Process]:
        """Start workers and wait until they serve."""
        workers = [self.worker(device, lanes=lanes, **settings) for _ in range(count)]
        for worker in workers:
            await self.serves(worker)
        return workers

    async def api(self, **settings: object) -> tuple[Process, str]:
        """Start an API on an existing ledger and wait until it listens; return it with its URL."""
        process = self.spawn("api", **{"api_port": 0, **settings})

        def listening() -> bool:
            assert process.alive, f"the process ended at its start:\n{process.text}"
            return bool(process.logged("api.listening"))

        await until(listening, "an API that listens")
        return process, str(process.logged("api.listening")[0]["url"])

    async def use_api(self, blank_ledger: Path) -> None:
        """Let producers use an HTTP API from now on, each with a key of its project; ``queue`` has an operator's."""
        shutil.copy(blank_ledger, self.folder / "ledger.db")
        _, url = await self.api(data_dir=self.folder)
        await self.queue.close()
        self.api_url = url
        self.queue = self.connect("ours", key=make_key(self.folder, None), retry_s=PATIENCE_S)

    async def serves(self, process: Process) -> None:
        """Wait until the process has logged that it started."""

        def started() -> bool:
            assert process.alive, f"the process ended at its start:\n{process.text}"
            return any(process.logged(f"{what}.started") for what in ("worker", "scheduler", "recorder", "courier"))

        await until(started, "the start of a process")

    async def submit(self, jobs: Jobs, *, device: str = NULL, **options: Any) -> tweezer.AsyncBatch:
        """Submit a job for each dictionary of variables; the device must have been announced."""
        return await self.queue.submit(None, [{"runs": 1, "variables": job} for job in jobs], device=device, **options)

    async def submit_doc(self, jobs: int, **doc: Any) -> tweezer.AsyncBatch:
        """Submit without the checks of the Python API, which would reject the document."""
        batch_id = await self.store.commands.submit(
            new_batch_id(),
            self.queue.project or "ours",
            BatchDoc(**{"device": NULL, **doc}),
            [tweezer.Job(runs=1)] * jobs,
        )
        return self.queue.batch(batch_id)

    async def running(self, *batches: tweezer.AsyncBatch) -> None:
        """Wait until a job of each batch runs."""

        async def all_run() -> bool:
            return all([(await batch.record()).counts[JobStatus.RUNNING] > 0 for batch in batches])

        await until(all_run, "a running job")

    async def held(self, *batches: tweezer.AsyncBatch) -> None:
        """Wait until a worker has reported for each batch that one of its jobs is on a lane."""

        async def all_reported() -> bool:
            jobs = [job for batch in batches for job in await batch.jobs() if job.status is JobStatus.RUNNING]
            return len({job.batch_id for job in jobs if job.progress is not None}) == len(batches)

        await until(all_reported, "a report of each batch's running job")

    async def renewed(self, batch: tweezer.AsyncBatch, device: str = MISBEHAVING) -> None:
        """Wait until the lease of the batch's first ticket was renewed, so that its lane has run for a while."""
        await self.running(batch)
        redis: Any = self.store.redis
        leases, ticket = self.store.keys(Key.LEASES, device), f"{batch.id}:0"
        first = await redis.zscore(leases, ticket)

        async def later() -> bool:
            return bool((await redis.zscore(leases, ticket) or 0) > first + 1000 * LEASE_S / 2)

        await until(later, "a renewed lease")

    async def holder(self, batch: tweezer.AsyncBatch, ticket: int = 0) -> Process:
        """Wait until a job of the batch runs, and return the process that holds its ticket."""
        await self.running(batch)
        redis: Any = self.store.redis
        lane = ""

        async def held() -> bool:
            nonlocal lane
            record = await redis.hget(self.store.keys(Key.BATCH, batch.id), f"t:{ticket}")
            lane = record.decode().split(" ")[2]  # token, service used, lane: empty while no lane holds the ticket
            return bool(lane)

        await until(held, "a held ticket")
        (process,) = [process for process in self.processes if f":{process.pid}:" in lane]
        await process.wait_logged("batch.taken")  # until then it does not know that it has one, and gives it back
        return process

    async def announce_null(self) -> None:
        """Make the null device known, without a worker."""
        await self.store.tickets.heartbeat(
            "nobody",
            NULL,
            ttl_s=600,
            about_device={"adapter": "null", "exclusive": 0, "checks_sequence": 0, "max_runs": 1000},
            about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )

    async def now_us(self) -> int:
        """Return the time of Redis in microseconds."""
        seconds, microseconds = await cast(Any, self.store.redis).time()
        return int(seconds) * 1_000_000 + int(microseconds)

    async def events(self, batch: tweezer.AsyncBatch | None = None) -> list[Event]:
        """Return all events so far, or those of one batch."""
        entries = await self.store.events.read(most=1_000_000)
        return [event for entry in entries for event in entry.events if batch is None or event.batch_id == batch.id]

    async def starts(self, batch: tweezer.AsyncBatch, index: int = 0) -> list[int]:
        """Return when the executions of a job began, in microseconds of Redis' time."""
        return [e.time_us for e in await self.events(batch) if e.index == index and e.status is JobStatus.RUNNING]

    async def audit(self, batch: tweezer.AsyncBatch) -> list[JobRecord]:
        """Check a batch that has ended against its events, and return its jobs.

        Events are numbered without a gap, each starts at the status at which the previous one ended, and none follows
        a terminal status. The last event agrees with the record, and the counters with the jobs.
        """
        record, jobs = await batch.record(), await batch.jobs()
        events = await self.events(batch)
        assert [event.sequence for event in events] == list(range(1, record.sequence_number + 1))
        assert len({event.id for event in events}) == len(events)
        statuses: dict[int, JobStatus] = {}
        whole: BatchStatus | None = None
        for event in events:
            if event.index is None:
                assert event.previous == (BatchStatus.PENDING if event.jobs is not None else whole) or whole is None
                whole = BatchStatus(event.status)
            else:
                assert event.previous is statuses.get(event.index, JobStatus.PENDING), event
                assert not JobStatus(event.previous).terminal, event
                statuses[event.index] = JobStatus(event.status)
        assert whole is record.status
        assert {job.index: job.status for job in jobs} == statuses
        assert Counter(statuses.values()) == Counter({k: n for k, n in record.counts.items() if n})
        assert len(jobs) == record.jobs
        return jobs

    async def leftovers(self) -> list[str]:
        """Return the keys that should not remain after all work is done.

        All keys must expire, except those of devices and events, and those of batches that the recorder will forget.
        """
        redis: Any = self.store.redis
        ended = set(await redis.zrange("tweezer:ended", 0, -1))
        kept = {
            f"tweezer:batch:{raw.decode()}{part}"
            for raw in ended
            for part in ("", ":spec", ":state", ":result", ":fault", ":remote")
        }
        kept |= {
            raw.decode()
            for raw in await redis.keys("tweezer:batches:*")
            if ended >= set(await redis.zrange(raw, 0, -1))
        }
        found = []
        for raw in await redis.keys("*"):
            name = raw.decode()
            if await redis.pttl(name) == -1 and not name.startswith(OWNED) and name not in kept:
                found.append(name)
        for device in await self.store.reader.device_names():
            found += [
                name
                for kind in ("ready", "due", "leases")
                if await redis.exists(name := f"tweezer:device:{device}:{kind}")
            ]
        return sorted(found)

    async def idle(self) -> None:
        """Wait until the counters of all devices show no work, and check that no key leaks."""

        async def done() -> bool:
            return all(not device.pending and not device.running for device in await self.queue.devices())

        await until(done, "devices without work")
        left = await self.leftovers()
        assert not left, f"keys without an owner: {left}"
        assert await found_counts(self.store) == await expected_counts(self.store)


def statuses(jobs: Iterable[JobRecord]) -> list[JobStatus]:
    return [job.status for job in jobs]


def _tune_worker() -> None:
    """Set constants of a worker that have no setting, from the environment."""
    if text := os.environ.get(FAILURES_MAX):
        worker_process.WorkerConfig = partial(WorkerConfig, failures_max=int(text))  # type: ignore[attr-defined, assignment]
    if text := os.environ.get(SOFT_CANCEL_S):
        worker_process.LaneOptions = partial(LaneOptions, soft_cancel_s=float(text))  # type: ignore[attr-defined, assignment]


def _run_process(arguments: Sequence[str]) -> None:
    """Run a process of the queue until a signal ends it, with the limit on open files that systemd sets."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES_MAX))
    serve_devices_of_the_tests()
    settings = load()
    logs.configure(settings.log.format, settings.log.level)
    tracing.configure(arguments[0])
    if harm := os.environ.get(HARM):
        _harm_a_duty(*harm.split(":"))
    match arguments:
        case ["scheduler"]:
            run_scheduler(settings)
        case ["recorder"]:
            run_recorder(settings)
        case ["courier"]:
            from tweezer.processes.courier import run_courier
            from tweezer.webhooks import outbox
            from tweezer.webhooks.courier import CourierTuning

            outbox.COOL_MAX_S = 3.0  # so that a repaired receiver is soon retried, even after a long storm
            run_courier(settings, tuning=CourierTuning(abandoned_s=2.0, late_s=0.5, claim_s=3.0))
        case ["api"]:
            from tweezer.api.app import run_api

            run_api(settings)
        case ["worker", *options]:
            _tune_worker()
            burst = "--burst" in options
            run_worker(
                settings, device=settings.worker.device, lanes=settings.worker.lanes, version="test", burst=burst
            )
        case _:
            raise ValueError(arguments)
