"""What an adapter is.

An :class:`Adapter` opens lanes; a :class:`Lane` is one execution slot and runs one job at a time. A
worker prepares a batch on a lane once and then runs jobs of it; everything that can go wrong in a run is
*returned* as an :class:`Outcome`, never raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from tweezer.model.messages import BatchWork, JobWork, Outcome, Progress

Report = Callable[[Progress], None]
"""Called by a lane, in the worker's event loop, as a job moves on; must not block."""


class Traits(msgspec.Struct, frozen=True):
    """What a device of this kind is like.

    exclusive: a batch holds the device until it is closed and its jobs are terminal (a QPU).
    checks_sequence: whether batches must carry a Pulser sequence, which producers check before a submit.
    max_runs: the most shots of one job.
    is_emulator: whether it computes what a machine would measure.
    """

    exclusive: bool = False
    checks_sequence: bool = True
    max_runs: int = 1_000_000
    is_emulator: bool = True


class Lane(Protocol):
    """One execution slot. All methods are called from one task, except :meth:`cancel`."""

    async def prepare(self, batch: BatchWork) -> None:
        """Get ready to run jobs of this batch: parse and validate once; free when it is already prepared.

        Raises :class:`~tweezer.model.errors.ExecutionError`; with kind ``user``, ``timeout`` or
        ``out_of_memory`` the batch cannot run; the other kinds are tried again.
        """

    async def run(self, job: JobWork, report: Report) -> Outcome:
        """Run one job of the prepared batch to its end and say how it ended."""

    async def cancel(self) -> None:
        """Stop the running job: softly, then by force. ``run`` then returns ``canceled``, or its result
        when that came first. Does nothing when no job runs."""

    async def close(self) -> None:
        """Stop everything at once and free the slot."""


class Adapter(Protocol):
    """Executes jobs on one kind of device."""

    traits: Traits

    async def open_lane(self) -> Lane:
        """A new lane, warm: what it imports is imported. Raises ``ExecutionError`` when it cannot start."""
