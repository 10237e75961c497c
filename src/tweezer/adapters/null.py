"""The null adapter: does nothing, or what a job's variables request. For benchmarks and tests.

Its lanes run in the worker's process, without Pulser. Its batches need no sequence.

================  ============================================================================
a job's variable  what its run does
================  ============================================================================
(none)            ends at once, without yielding to the event loop; counter ``{"0": runs}``
``sleep_s``       sleeps that many seconds and reports progress; can be cancelled and timed out
``fail``          ends with a ``user`` error that has this message
``retry``         ends with a ``transient`` failure that has this message, to be retried
``crash``         kills the worker's process
================  ============================================================================

A batch whose ``configuration`` is ``{"prepare": "fail"}`` fails to prepare for good; with ``"transient"`` it fails in a
way that is retried.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import time

from tweezer.adapters.protocol import Capabilities, Report, describe_timeout
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.lifecycle import Stage
from tweezer.model.messages import BatchWork, Fault, JobWork, Outcome, OutcomeKind, Progress, Provenance, Result, Steps

_PROGRESS_INTERVAL_S = 0.1
_PROVENANCE = Provenance(backend="null")


class NullLane:
    """A lane that does what the variables of its jobs request."""

    jail = ""

    def __init__(self) -> None:
        self._batch: BatchWork | None = None
        self._stop: asyncio.Event | None = None
        self._canceled = False

    async def prepare(self, batch: BatchWork) -> None:
        self._batch = batch
        match (batch.doc.configuration or {}).get("prepare"):
            case "fail":
                raise ExecutionError(FaultKind.USER, "preparation fails, as requested", field="configuration.prepare")
            case "transient":
                raise ExecutionError(FaultKind.TRANSIENT, "preparation fails this time, as requested")

    async def run(self, job: JobWork, report: Report) -> Outcome:
        variables = job.spec.variables
        if not variables:
            return _done(job.spec.runs)
        if variables.get("crash"):
            os._exit(1)
        device_s = 0.0
        if "sleep_s" in variables:
            began = time.monotonic()
            stopped = await self._sleep(float(variables["sleep_s"]), report)
            device_s = time.monotonic() - began
            if stopped is not None:
                return stopped
        if "fail" in variables:
            return _failed(OutcomeKind.ERROR, FaultKind.USER, str(variables["fail"]))
        if "retry" in variables:
            return _failed(OutcomeKind.RETRY, FaultKind.TRANSIENT, str(variables["retry"]))
        return _done(job.spec.runs, device_s)

    async def cancel(self) -> None:
        if self._stop is not None:
            self._canceled = True
            self._stop.set()

    async def close(self) -> None:
        """Stop the running job, which asks for another attempt."""
        if self._stop is not None:
            self._stop.set()

    async def _sleep(self, sleep_s: float, report: Report) -> Outcome | None:
        """Sleep. Return None at the end, or the outcome if the sleep was cut short."""
        limit_s = self._batch.doc.limits.job_timeout_s if self._batch is not None else sleep_s
        self._stop, self._canceled = asyncio.Event(), False
        began = time.monotonic()
        try:
            while (slept_s := time.monotonic() - began) < sleep_s:
                if slept_s >= limit_s:
                    return _failed(OutcomeKind.ERROR, FaultKind.TIMEOUT, describe_timeout(limit_s))
                report(Progress(Stage.ON_DEVICE, slept_s / sleep_s, _count_steps(slept_s, sleep_s)))
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
    """Opens lanes that do nothing.

    checks_sequence: Batches must carry sequences, which are checked as for an emulator.
    """

    def __init__(self, *, checks_sequence: bool = False) -> None:
        self.capabilities = Capabilities(checks_sequence=checks_sequence)

    async def open_lane(self) -> NullLane:
        return NullLane()


def _count_steps(slept_s: float, sleep_s: float) -> Steps:
    """Return how many tenths of a second of a sleep have passed."""
    total = max(math.ceil(10 * sleep_s), 1)
    return Steps(min(int(10 * slept_s), total), total, f"slept for {slept_s:.1f} of {sleep_s:g} s")


@functools.lru_cache(maxsize=64)
def _done(runs: int | None, device_s: float = 0.0) -> Outcome:
    result = Result(counter={"0": runs or 1}, provenance=_PROVENANCE)
    return Outcome(OutcomeKind.DONE, result=result, device_s=device_s)


def _failed(kind: OutcomeKind, cause: FaultKind, message: str) -> Outcome:
    return Outcome(kind, fault=Fault(cause.value, message), cause=cause)
