"""A lane whose jobs run in a child process.

The process imports its emulator once and is then ready for all jobs. It is replaced when it died, was killed to stop a
job, or ran out of memory; the batch is then prepared again before the next job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from enum import StrEnum
from typing import assert_never

import msgspec
import structlog

from tweezer.adapters.lane.jail import COMPLETE, Jail, JailMode
from tweezer.adapters.lane.messages import (
    Abort,
    Advanced,
    ChildRefused,
    Prepare,
    Prepared,
    Ready,
    Run,
    RunFinished,
    Start,
)
from tweezer.adapters.lane.process import ChildProcess, Died, Nothing
from tweezer.adapters.protocol import OnOutput, Report, describe_timeout
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.lifecycle import Stage
from tweezer.model.messages import BatchWork, Fault, JobWork, Outcome, OutcomeKind, Progress

log = structlog.get_logger(__name__)

_MEMORY = (
    "the job needed more than the {} MB of memory that a lane may use; use fewer qubits or evaluation times, or ask "
    "the operator to raise the lanes' memory limit, TWEEZER_WORKER_MEMORY_LIMIT_MB"
)


class LaneOptions(msgspec.Struct, frozen=True):
    """Options of a lane and its process. Every wait in a lane is bounded by one of them. Times are in seconds.

    Attributes:
        memory_limit_mb: Limit of the process's resident memory in MB (2**20 bytes), checked on Linux only; None: no
            limit.
        threads: Number of threads of the numerical libraries.
        memo_mb: Memory in MB for evolved states that equal jobs share.
        start_timeout_s: Time for the process to start and import its backend.
        prepare_timeout_s: Time to prepare a batch.
        soft_cancel_s: Time between asking a job to stop and killing its process.
        exit_timeout_s: Time to wait for the end of a killed process.
        watch_interval_s: Time between two checks of its memory.
        progress_interval_s: Shortest time between two progress reports of a job.
        jail: Whether the process is jailed.
        private: Folders that the process must never read.
    """

    memory_limit_mb: int | None = 4096
    threads: int = 1
    memo_mb: int = 64
    start_timeout_s: float = 60.0
    prepare_timeout_s: float = 20.0
    soft_cancel_s: float = 1.0
    exit_timeout_s: float = 5.0
    watch_interval_s: float = 0.1
    progress_interval_s: float = 0.2
    jail: JailMode = JailMode.ON
    private: tuple[str, ...] = ()


class _End(StrEnum):
    """Why a request got no answer."""

    CANCELED = "canceled"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    DIED = "died"


_OUTCOMES = {
    _End.CANCELED: (OutcomeKind.CANCELED, FaultKind.TRANSIENT),
    _End.CLOSED: (OutcomeKind.RETRY, FaultKind.TRANSIENT),
    _End.TIMEOUT: (OutcomeKind.ERROR, FaultKind.TIMEOUT),
    _End.OUT_OF_MEMORY: (OutcomeKind.ERROR, FaultKind.OUT_OF_MEMORY),
    _End.DIED: (OutcomeKind.RETRY, FaultKind.CRASH),
}
"""A cancel is not a fault; exceeded time and memory are final; after the loss of its process a job is retried."""


class _Broken(msgspec.Struct, frozen=True):
    """A request that got no answer. The message is for the user."""

    end: _End
    message: str

    @property
    def kind(self) -> FaultKind:
        return _OUTCOMES[self.end][1]

    def outcome(self, preparation_s: float, device_s: float) -> Outcome:
        kind, cause = _OUTCOMES[self.end]
        if kind is OutcomeKind.CANCELED:
            return Outcome(kind, preparation_s=preparation_s, device_s=device_s)
        fault = Fault(cause.value, self.message)
        return Outcome(kind, fault=fault, cause=cause, preparation_s=preparation_s, device_s=device_s)


class ChildLane:
    """A :class:`~tweezer.adapters.protocol.Lane` that runs its jobs in a child process.

    Args:
        backend: The backend's factory, ``module:factory``; see :mod:`tweezer.adapters.lane.backend`.
        options: Options of the lane.
        arguments: Further arguments of the factory.
        gpu: CUDA's name of the only GPU that the process can use; None: it can use none.
    """

    def __init__(
        self, backend: str, options: LaneOptions, arguments: tuple[str, ...] = (), gpu: str | None = None
    ) -> None:
        self._backend = backend
        self._options = options
        self._arguments = arguments
        self.gpu = gpu
        self._child: ChildProcess | None = None
        self._batch: BatchWork | None = None
        self._prepared: BatchWork | None = None
        self._serial = 0
        self._running = False
        self._cancel_requested = False
        self.closed = False
        self.jail = ""
        """The result of :func:`tweezer.adapters.lane.jail.enter` in the process; empty before the first start."""
        self.evolutions = 0
        """How many evolutions the current process had solved when its last job ended. Equal jobs share one."""
        self.on_output: OnOutput | None = None
        """See :class:`tweezer.adapters.protocol.WritingLane`."""

    @classmethod
    async def open(cls, backend: str, options: LaneOptions) -> ChildLane:
        """Return a started lane for a backend (``module:factory``). Raises ``ExecutionError`` if it cannot start."""
        lane = cls(backend, options)
        await lane.warm()
        return lane

    async def warm(self) -> None:
        """Start the process. If it cannot start, close the lane and raise ``ExecutionError``."""
        try:
            await self._warm_child()
        except BaseException:
            await self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The id of the current process, if any."""
        return self._child.pid if self._child is not None else None

    async def prepare(self, batch: BatchWork) -> None:
        """See :meth:`tweezer.adapters.protocol.Lane.prepare`."""
        self._batch = batch
        self._cancel_requested = False
        await self._prepare_child()

    async def run(self, job: JobWork, report: Report, measured: dict[str, int] | None = None) -> Outcome:
        """See :meth:`tweezer.adapters.protocol.Lane.run`. A process that has died is replaced first.

        measured: The bitstrings that a machine measured. The backend, a ``Collector``, then only makes the result.
        """
        if self._batch is None:
            raise ValueError("run() before prepare()")
        self._running, self._cancel_requested = True, False
        began = time.monotonic()
        try:
            try:
                child = await self._prepare_child()
            except ExecutionError as error:
                return self._unprepared(error)
            if self._cancel_requested:
                return Outcome(OutcomeKind.CANCELED, began=False)
            warming_s = time.monotonic() - began
            serial, limit_s = self._next_serial(), self._batch.doc.limits.job_timeout_s
            with self._passing_on(child):
                child.send(Run(serial, job, measured))
                answer = await self._await_answer(child, serial, limit_s, describe_timeout(limit_s), report)
                return await self._outcome(answer, warming_s, time.monotonic() - began)
        finally:
            self._running = False

    @contextlib.contextmanager
    def _passing_on(self, child: ChildProcess) -> Iterator[None]:
        """Pass on what the process writes within the block."""
        child.collect_output()  # of the preparation, which is not the job's
        child.on_output = self.on_output
        try:
            yield
            if child.alive:
                child.collect_output()
        finally:
            child.on_output = None

    async def cancel(self) -> None:
        """Ask the running job to stop and return. If it does not stop within ``soft_cancel_s``, it is killed."""
        if self._running:
            self._cancel_requested = True
            self._wake()

    async def close(self) -> None:
        """Kill the process. If a job is running, ``run`` returns ``retry``."""
        self.closed = True
        self._wake()
        await self._drop_child()

    async def _prepare_child(self) -> ChildProcess:
        """Return a ready process that has prepared the current batch."""
        child = await self._warm_child()
        batch = self._batch
        if batch is None or (self._prepared is not None and self._prepared.batch_id == batch.batch_id):
            return child
        self._prepared = None
        serial = self._next_serial()
        child.send(Prepare(serial, batch))
        limit_s = self._options.prepare_timeout_s
        late = (
            f"preparing the batch took longer than {limit_s:g} s; make its sequence smaller, or ask the operator to "
            "raise TWEEZER_WORKER_PREPARE_TIMEOUT_S"
        )
        answer = await self._await_answer(child, serial, limit_s, late)
        match answer:
            case Prepared():
                self._prepared = batch
                return child
            case ChildRefused():
                raise ExecutionError(answer.kind, answer.fault.message, field=answer.fault.field)
            case _Broken():
                raise ExecutionError(answer.kind, answer.message)
            case _:
                raise await self._fail_protocol(answer)

    async def _warm_child(self) -> ChildProcess:
        """Return the process, with its backend imported. Start a new one if necessary."""
        if self.closed:
            raise ExecutionError(FaultKind.TRANSIENT, "the lane is closed")
        if self._child is not None and self._child.alive:
            return self._child
        if self._child is not None:
            log.warning(
                "lane.died", pid=self._child.pid, end=await self._child.describe_end(self._options.exit_timeout_s)
            )
            await self._drop_child()
        began = time.monotonic()
        try:
            child = self._child = await ChildProcess.spawn(self._options.threads, self.gpu)
        except OSError as error:
            raise ExecutionError(FaultKind.TRANSIENT, f"cannot start the lane's process: {error}") from error
        options = self._options
        jail = Jail(options.jail, str(child.scratch.path), options.private, self.gpu is not None)
        child.send(Start(self._backend, options.memo_mb, options.progress_interval_s, self._arguments, jail))
        limit_s = self._options.start_timeout_s
        answer = await self._await_answer(child, 0, limit_s, f"the lane's process was not ready after {limit_s:g} s")
        match answer:
            case Ready(jail=entered):
                if entered not in (COMPLETE, self.jail):
                    log.warning("lane.not_jailed", pid=child.pid, jail=entered)
                self.jail = entered
                log.info("lane.started", pid=child.pid, backend=self._backend, seconds=time.monotonic() - began)
                return child
            case ChildRefused():
                await self._drop_child()
                raise ExecutionError(answer.kind, answer.fault.message)
            case _Broken():
                await self._drop_child()
                is_retried = answer.kind in (FaultKind.TIMEOUT, FaultKind.CRASH)  # not caused by the batch
                kind = FaultKind.TRANSIENT if is_retried else answer.kind
                raise ExecutionError(kind, answer.message)
            case _:
                raise await self._fail_protocol(answer)

    async def _await_answer(
        self, child: ChildProcess, serial: int, limit_s: float, late: str, report: Report | None = None
    ) -> Ready | Prepared | ChildRefused | RunFinished | _Broken:
        """Return the answer to a request, or the reason why it got no answer; the process is dead then.

        A request that is cancelled or late is asked to stop, and its process is killed if it does not.
        """
        deadline = time.monotonic() + limit_s
        stopping: _Broken | None = None
        try:
            while True:
                if self.closed:
                    return await self._break(_Broken(_End.CLOSED, "the lane was closed while the job ran"))
                now = time.monotonic()
                if stopping is None and (self._cancel_requested or now >= deadline):
                    canceled = _Broken(_End.CANCELED, "the job was cancelled")
                    stopping = canceled if self._cancel_requested else _Broken(_End.TIMEOUT, late)
                    child.send(Abort(serial))
                    deadline = now + self._options.soft_cancel_s
                elif stopping is not None and now >= deadline:
                    return await self._break(stopping)
                message = await child.receive(min(self._options.watch_interval_s, deadline - now))
                match message:
                    case Ready() | Prepared() | ChildRefused():
                        if message.serial == serial:
                            return message
                    case RunFinished():
                        if message.serial == serial:
                            self.evolutions = message.evolutions
                            if stopping is not None and message.outcome.kind is OutcomeKind.CANCELED:
                                return stopping
                            return message
                    case Advanced():
                        if report is not None and message.serial == serial:
                            report(Progress(Stage.ON_DEVICE, message.fraction, message.steps))
                    case Nothing():
                        limit_mb = self._options.memory_limit_mb
                        if limit_mb is not None and child.get_resident_mb() > limit_mb:
                            return await self._break(_Broken(_End.OUT_OF_MEMORY, _MEMORY.format(limit_mb)))
                    case Died():
                        if stopping is not None:
                            return await self._break(stopping)
                        if not self.closed:
                            end = await child.describe_end(self._options.exit_timeout_s)
                            return await self._break(_Broken(_End.DIED, f"the lane's process {end}"))
                    case _:
                        assert_never(message)
        except asyncio.CancelledError:
            child.kill()  # its answer is not awaited any more, so the next request needs a new process
            raise

    async def _outcome(
        self, answer: Ready | Prepared | ChildRefused | RunFinished | _Broken, warming_s: float, took_s: float
    ) -> Outcome:
        """Return the outcome of a job. If it got no answer, its time counts as time on the device."""
        match answer:
            case RunFinished(outcome=outcome):
                if outcome.cause is FaultKind.OUT_OF_MEMORY:
                    await self._drop_child()
                return msgspec.structs.replace(outcome, preparation_s=outcome.preparation_s + warming_s)
            case _Broken():
                return answer.outcome(warming_s, took_s - warming_s)
            case _:
                raise await self._fail_protocol(answer)

    def _unprepared(self, error: ExecutionError) -> Outcome:
        """Return the outcome of a job whose batch could not be prepared again in a new process."""
        if self._cancel_requested:
            return Outcome(OutcomeKind.CANCELED, began=False)
        retry = error.kind in (FaultKind.TRANSIENT, FaultKind.CRASH)
        fault = Fault(error.kind.value, error.problem, error.field)
        return Outcome(OutcomeKind.RETRY if retry else OutcomeKind.ERROR, fault=fault, cause=error.kind)

    async def _break(self, broken: _Broken) -> _Broken:
        """Kill the process for this reason."""
        requested = broken.end in (_End.CANCELED, _End.CLOSED)
        write = log.info if requested else log.warning
        write("lane.broken", pid=self.pid, end=broken.end.value, message=broken.message)
        await self._drop_child()
        return broken

    async def _fail_protocol(self, answer: object) -> ExecutionError:
        await self._drop_child()
        return ExecutionError(
            FaultKind.INTERNAL, f"internal error: the lane's process sent an unexpected {type(answer).__name__}"
        )

    async def _drop_child(self) -> None:
        child, self._child, self._prepared = self._child, None, None
        self.evolutions = 0
        if child is not None:
            await child.stop(self._options.exit_timeout_s)

    def _wake(self) -> None:
        if self._child is not None:
            self._child.wake()

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial
