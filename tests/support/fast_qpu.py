"""A QPU adapter without Pulser: sequences are sent unchanged, and results are the counts of the machine.

``TWEEZER_TEST_STOPS``, for example ``before:0.03,after:0.1``, contains probabilities with which a worker stops itself
right before or after the last check of its lease before a submit. It appends a line to a file each time.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tests.support.processes import STOPS, WITNESS_FILE

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.protocol import Report
from tweezer.adapters.remote.lane import RemoteLane
from tweezer.adapters.remote.options import QpuOptions
from tweezer.adapters.remote.qpu.adapter import QpuAdapter, QpuService
from tweezer.adapters.remote.qpu.api import QpuApi, QpuJob, SubmitContext
from tweezer.model.ids import new_worker_id
from tweezer.model.messages import BatchWork, JobWork, Outcome, OutcomeKind, Provenance, Result


class StoppingApi(QpuApi):
    """An API client whose process sometimes stops itself around the last check of its lease before a submit."""

    async def submit(
        self,
        *,
        nb_run: int,
        pulser_sequence: str,
        context: SubmitContext,
        before_send: Callable[[], None] | None = None,
    ) -> QpuJob:
        stops = dict(part.split(":") for part in os.environ.get(STOPS, "").split(",") if part)

        def may_stop(when: str) -> None:
            if random.random() < float(stops.get(when, 0)):
                self._stop(when, context)

        def check() -> None:
            may_stop("before")
            if before_send is not None:
                before_send()
            may_stop("after")

        return await super().submit(nb_run=nb_run, pulser_sequence=pulser_sequence, context=context, before_send=check)

    @staticmethod
    def _stop(when: str, context: SubmitContext) -> None:
        with Path(os.environ[WITNESS_FILE]).open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {os.getpid()} {when} {context.pasqman_job_id}\n")
        os.kill(os.getpid(), signal.SIGSTOP)


class UnbuiltSequences:
    """A replacement for the child process that builds sequences; it leaves them as they are."""

    jail = ""

    def __init__(self) -> None:
        self._sequence = ""

    async def prepare(self, batch: BatchWork) -> None:
        self._sequence = batch.doc.sequence or ""

    async def run(self, job: JobWork, report: Report, measured: dict[str, int] | None = None) -> Outcome:
        if measured is None:
            return Outcome(OutcomeKind.DONE, result=Result(serialised_results=self._sequence))
        return Outcome(OutcomeKind.DONE, result=Result(measured, provenance=Provenance("a QPU")))

    async def close(self) -> None:
        """Do nothing."""


class QuickQpuAdapter(QpuAdapter):
    """An adapter of QPUs whose lanes need no Pulser."""

    def __init__(self, options: QpuOptions, lanes: LaneOptions) -> None:
        super().__init__(options, lanes)
        self._api = StoppingApi(options, agent=f"tweezer {new_worker_id()}")

    async def open_lane(self) -> RemoteLane:
        return RemoteLane(QpuService(self._api, cast(ChildLane, UnbuiltSequences()), self._options))
