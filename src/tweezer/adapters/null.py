"""The null adapter: does nothing, or what a job's variables ask for. For benchmarks and tests.

Its lanes run in the worker's own process, without Pulser, and its batches need no sequence.

==============  ===========================================================================
a job's variable  what its run does
==============  ===========================================================================
(none)          ends at once, without giving way to other tasks; counter ``{"0": runs}``
``sleep_s``     sleeps that long, reporting progress; can be cancelled and timed out
``fail``        ends in an error of the user, with this text
``retry``       asks for another attempt after a transient failure, with this text
``crash``       kills the worker's process
==============  ===========================================================================

A batch whose ``configuration`` is ``{"prepare": "fail"}`` cannot be prepared; with ``"transient"`` it
cannot be prepared this time.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time

from tweezer.adapters.protocol import Capabilities, Report
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.lifecycle import Stage
from tweezer.model.messages import BatchWork, Fault, JobWork, Outcome, OutcomeKind, Progress, Provenance, Result

_PROGRESS_INTERVAL_S = 0.1
_PROVENANCE = Provenance(backend="null")


class NullLane:
    """A lane that does what its jobs' variables ask for."""

    jail = ""

    def __init__(self) -> None:
        self._batch: BatchWork | None = None
        self._stop: asyncio.Event | None = None
        self._canceled = False

    async def prepare(self, batch: BatchWork) -> None:
        self._batch = batch
        match (batch.doc.configuration or {}).get("prepare"):
            case "fail":
                raise ExecutionError(FaultKind.USER, "cannot be prepared, as it asked", field="configuration.prepare")
            case "transient":
                raise ExecutionError(FaultKind.TRANSIENT, "cannot be prepared this time, as it asked")

    async def run(self, job: JobWork, report: Report) -> Outcome:
        variables = job.spec.variables
        if not variables:
            return _done(job.spec.runs)
        if variables.get("crash"):
            os._exit(1)
        if "sleep_s" in variables:
            stopped = await self._sleep(float(variables["sleep_s"]), report)
            if stopped is not None:
                return stopped
        if "fail" in variables:
            return _failed(OutcomeKind.ERROR, FaultKind.USER, str(variables["fail"]))
        if "retry" in variables:
            return _failed(OutcomeKind.RETRY, FaultKind.TRANSIENT, str(variables["retry"]))
        return _done(job.spec.runs)

    async def cancel(self) -> None:
        if self._stop is not None:
            self._canceled = True
            self._stop.set()

    async def close(self) -> None:
        """A job that sleeps is given back."""
        if self._stop is not None:
            self._stop.set()

    async def _sleep(self, sleep_s: float, report: Report) -> Outcome | None:
        """Sleep; None at the end of it, or the outcome of being cut short."""
        limit_s = self._batch.doc.limits.job_timeout_s if self._batch is not None else sleep_s
        self._stop, self._canceled = asyncio.Event(), False
        began = time.monotonic()
        try:
            while (slept_s := time.monotonic() - began) < sleep_s:
                if slept_s >= limit_s:
                    return _failed(OutcomeKind.ERROR, FaultKind.TIMEOUT, f"the job took longer than {limit_s:g} s")
                report(Progress(Stage.ON_DEVICE, slept_s / sleep_s))
                pause_s = min(_PROGRESS_INTERVAL_S, min(sleep_s, limit_s) - slept_s)
                try:
                    await asyncio.wait_for(self._stop.wait(), pause_s)
                except TimeoutError:
                    continue
                if self._canceled:
                    return Outcome(OutcomeKind.CANCELED, device_s=time.monotonic() - began)
                return _failed(OutcomeKind.RETRY, FaultKind.TRANSIENT, "the lane was closed while the job ran")
        finally:
            self._stop = None
        return None


class NullAdapter:
    """Lanes that do nothing. checks_sequence: whether batches must carry sequences all the same."""

    def __init__(self, *, checks_sequence: bool = False) -> None:
        self.capabilities = Capabilities(checks_sequence=checks_sequence)

    async def open_lane(self) -> NullLane:
        return NullLane()


@functools.lru_cache(maxsize=64)
def _done(runs: int | None) -> Outcome:
    return Outcome(OutcomeKind.DONE, result=Result(counter={"0": runs or 1}, provenance=_PROVENANCE))


def _failed(kind: OutcomeKind, cause: FaultKind, message: str) -> Outcome:
    return Outcome(kind, fault=Fault(cause.value, message), cause=cause)
