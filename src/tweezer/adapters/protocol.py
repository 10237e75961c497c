"""The interfaces that an adapter implements.

An :class:`Adapter` opens lanes. A :class:`Lane` is one execution slot and runs one job at a time. A worker prepares a
batch on a lane once and then runs jobs of that batch. Failures of a run are *returned* as an
:class:`~tweezer.model.messages.Outcome`, never raised.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, runtime_checkable

import msgspec

from tweezer.model.intents import Intent, Mark
from tweezer.model.messages import BatchWork, JobWork, Outcome, Progress

Report = Callable[[Progress], None]
"""Callback for the progress of a job. A lane calls it in the worker's event loop; it must not block."""


OnOutput = Callable[[bytes], None]
"""Callback for what the process of a lane writes. A lane calls it in the worker's event loop; it must not block."""


class Capabilities(msgspec.Struct, frozen=True):
    """The properties of a kind of device.

    Attributes:
        exclusive: A batch holds the device until it is closed and all its jobs are terminal, as on a QPU.
        checks_sequence: Batches must carry a Pulser sequence, which producers check before they submit it.
        max_runs: The largest number of shots of one job.
        is_emulator: The device computes what a machine would measure.
        reattaches: Jobs continue when their worker stops. They are never submitted twice, and the lanes are
            instances of :class:`~tweezer.adapters.remote.lane.RemoteLane`.
        probe_s: Seconds between two probes of the machine's condition.
    """

    exclusive: bool = False
    checks_sequence: bool = True
    max_runs: int = 1_000_000
    is_emulator: bool = True
    reattaches: bool = False
    probe_s: float = 5.0


def describe_timeout(limit_s: float) -> str:
    """Return the message of a job that exceeded its time limit."""
    return f"the job took longer than {limit_s:g} s; raise job_timeout_s in the batch's limits if it needs more"


class Lane(Protocol):
    """One execution slot.

    All methods are called from one task, except :meth:`cancel`.
    """

    @property
    def jail(self) -> str:
        """``on`` if the lane's process is fully jailed, else what is missing; empty for a lane without a process."""

    async def prepare(self, batch: BatchWork) -> None:
        """Parse and validate a batch, once, so that its jobs can run. Return at once if it is prepared already.

        Args:
            batch: The batch to which the next jobs belong.

        Raises:
            tweezer.model.errors.ExecutionError: The batch could not be prepared. With the kind ``user``, ``timeout`` or
                ``out_of_memory`` it ends in ERROR; with any other kind the worker tries again.
        """

    async def run(self, job: JobWork, report: Report) -> Outcome:
        """Run one job of the prepared batch to its end.

        Args:
            job: The job, with the seed of its random numbers.
            report: Callback for the job's progress.

        Returns:
            How the job ended: ``done`` with a result, ``error`` with a fault, ``canceled``, or ``retry``.
        """

    async def cancel(self) -> None:
        """Stop the running job, softly at first and then by force. Do nothing if no job runs.

        ``run`` then returns ``canceled``, or the job's result if that came first.
        """

    async def close(self) -> None:
        """Stop everything at once and free the slot."""


@runtime_checkable
class WritingLane(Protocol):
    """The additional attribute of a lane that passes on what is written while a job runs.

    Attributes:
        on_output: Receives everything that the lane's process and the emulator in it write to standard output and
            standard error during ``run``, before ``run`` returns. None: it is not passed on.
    """

    on_output: OnOutput | None


class Adapter(Protocol):
    """Executes jobs on one kind of device."""

    capabilities: Capabilities

    async def open_lane(self) -> Lane:
        """Return a new lane that has already imported what it needs.

        Raises:
            tweezer.model.errors.ExecutionError: The lane cannot start.
        """


class DeviceUnavailable(Exception):
    """The machine accepts no jobs now. The current job was definitely not submitted; it returns to the queue."""


class SubmitGuard(Protocol):
    """Records the submit of one job to a machine in the store, so that no job is submitted twice.

    It belongs to the worker that holds the job's ticket. Its methods raise
    :class:`~tweezer.model.errors.Unavailable` when the store cannot be reached.
    """

    async def known(self) -> Intent | None:
        """Return the intent that this or an earlier holder of the job recorded, if any."""

    async def intend(self, *, unsent: bool = False) -> Intent | None:
        """Record durably that the job will be submitted.

        Args:
            unsent: Nothing is sent before :meth:`set_out`, so until then another holder may record its own intent.

        Returns:
            The new intent; or an earlier one, under which the job may have been submitted; or None if the job must not
            be submitted, because the ticket was lost or the job cancelled.
        """

    async def set_out(self) -> bool:
        """Record that an unsent intent is submitted now. Return False if the job belongs to another holder."""

    async def note(self, uid: str, *, named: bool | None = None) -> None:
        """Record the id that the machine gave the job.

        Args:
            uid: The machine's id.
            named: Whether the machine returned our id of the job; None for machines that do not count their jobs.
        """

    async def mark(self) -> Mark:
        """Return the last known job of the machine."""

    async def note_set_back(self, uid: int | None, since: int) -> None:
        """Record that the machine's ids began anew.

        Args:
            uid: The id of the last known job, which showed it.
            since: The id of a job of the machine that is older than any that we submitted after the set-back.
        """

    async def withdraw(self) -> None:
        """Withdraw this holder's own intent, because the job was definitely not submitted."""

    async def note_timeout(self) -> None:
        """Record that the job exceeded its time limit and that the machine is asked to stop it."""

    def left_s(self) -> float:
        """Return for how many seconds the ticket definitely belongs to this holder, by this host's monotonic clock."""

    @property
    def lease_s(self) -> float:
        """The length of a lease in seconds: how long the ticket of a silent holder stays reserved."""


class MachineState(StrEnum):
    """Whether a machine can run jobs. ``unknown`` leaves the last known state in force."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Condition(msgspec.Struct, frozen=True):
    """The condition of a machine.

    Attributes:
        state: Whether it can run jobs.
        reason: The reason, for people, if it is not up.
    """

    state: MachineState
    reason: str = ""


@runtime_checkable
class MachineAdapter(Protocol):
    """The additional interface of an adapter whose machine reports its condition and its specs."""

    async def probe(self) -> Condition:
        """Return the machine's condition now. Failures of the machine are returned as ``unknown``, never raised."""

    async def specs_text(self) -> str:
        """Return the machine's specs: JSON in Pulser's abstract representation of a device.

        Raises:
            tweezer.model.errors.TweezerError: The machine cannot be reached, or returned no specs.
        """

    async def close(self) -> None:
        """Close the connections to the machine."""
