"""The sources of bitstrings: a random generator, or an emulator in a child process."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from typing import Protocol

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.registry import QUTIP_BACKEND
from tweezer.duties import end_tasks
from tweezer.model.errors import ExecutionError
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork, OutcomeKind

_STRINGS = 8


class CannotRun(Exception):
    """The job cannot be executed, for this reason; it ends in ``ERROR``."""


class Counters(Protocol):
    """Measures one job at a time. The calling task may be cancelled."""

    async def measure(self, uid: int, sequence: str, qubits: int, runs: int) -> dict[str, int]:
        """Return bitstring → number of shots. Raises CannotRun."""

    async def close(self) -> None: ...


class MadeUp:
    """Draws a few bitstrings of the right length with a seed. Nothing is computed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    async def measure(self, uid: int, sequence: str, qubits: int, runs: int) -> dict[str, int]:
        chance = random.Random(f"{self._seed}:{uid}")
        counter: dict[str, int] = {}
        left = runs
        while left:
            bits = format(chance.getrandbits(qubits), f"0{qubits}b")
            count = chance.randint(1, left) if len(counter) < _STRINGS - 1 else left
            counter[bits] = counter.get(bits, 0) + count
            left -= count
        return counter

    async def close(self) -> None:
        pass


class Emulated:
    """Emulates the sequence with QuTiP in a lane. The lane starts at once; the first job waits for it."""

    def __init__(self, seed: int, options: LaneOptions) -> None:
        """Start the lane; needs a running event loop."""
        self._seed = seed
        self._options = options
        self._opening = asyncio.create_task(ChildLane.open(QUTIP_BACKEND, options))
        self._turn = asyncio.Lock()

    async def measure(self, uid: int, sequence: str, qubits: int, runs: int) -> dict[str, int]:
        """Measure one job after the other. If the calling task is cancelled, the job stops before the next one."""
        stop = asyncio.Event()
        running = asyncio.create_task(self._run(uid, sequence, runs, stop))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            running.add_done_callback(_retrieve_exception)
            raise

    async def close(self) -> None:
        await end_tasks(self._opening)
        if not self._opening.cancelled() and self._opening.exception() is None:
            await self._opening.result().close()

    async def _run(self, uid: int, sequence: str, runs: int, stop: asyncio.Event) -> dict[str, int]:
        async with self._turn:
            try:
                lane = await self._get_lane()
                batch_id = new_batch_id()
                await lane.prepare(BatchWork(batch_id, BatchDoc(device="QPU", sequence=sequence)))
            except ExecutionError as error:
                raise CannotRun(error.message) from error
            if stop.is_set():
                raise CannotRun("the job was cancelled")
            seed = zlib.crc32(f"{self._seed}:{uid}".encode())
            work = JobWork(job_id(batch_id, 0), 0, JobSpec(runs=runs), seed)
            stopping = asyncio.create_task(_cancel_when(stop, lane))
            try:
                outcome = await lane.run(work, lambda progress: None)
            finally:
                await end_tasks(stopping)
            if outcome.kind is OutcomeKind.DONE and outcome.result is not None and outcome.result.counter is not None:
                return outcome.result.counter
            raise CannotRun(
                str(outcome.fault) if outcome.fault is not None else f"the emulation ended as {outcome.kind}"
            )

    async def _get_lane(self) -> ChildLane:
        """Return the lane. Start it again if the last start failed."""
        if self._opening.done() and self._opening.exception() is not None:
            self._opening = asyncio.create_task(ChildLane.open(QUTIP_BACKEND, self._options))
        return await asyncio.shield(self._opening)


def take_part(counter: dict[str, int], runs: int, seed: int) -> dict[str, int]:
    """Return the counter of the first ``runs`` runs of a counter, in an order that the seed defines."""
    chance = random.Random(seed)
    return dict(Counter(chance.sample(list(counter), counts=list(counter.values()), k=runs)))


async def _cancel_when(stop: asyncio.Event, lane: ChildLane) -> None:
    await stop.wait()
    await lane.cancel()


def _retrieve_exception(task: asyncio.Task[dict[str, int]]) -> None:
    """Retrieve the exception of a task that is not awaited, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
