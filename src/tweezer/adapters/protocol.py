"""What an adapter is.

An :class:`Adapter` opens lanes; a :class:`Lane` is one execution slot and runs one job at a time. A
worker prepares a batch on a lane once and then runs jobs of it; everything that can go wrong in a run is
*returned* as an :class:`Outcome`, never raised.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, runtime_checkable

import msgspec

from tweezer.model.intents import Intent, Mark
from tweezer.model.messages import BatchWork, JobWork, Outcome, Progress

Report = Callable[[Progress], None]
"""Called by a lane, in the worker's event loop, as a job moves on; must not block."""


class Capabilities(msgspec.Struct, frozen=True):
    """What a device of this kind is like.

    exclusive: a batch holds the device until it is closed and its jobs are terminal (a QPU).
    checks_sequence: whether batches must carry a Pulser sequence, which producers check before a submit.
    max_runs: the most shots of one job.
    is_emulator: whether it computes what a machine would measure.
    reattaches: its jobs run on, whatever becomes of the worker: they are never submitted twice, and its lanes are
    :class:`~tweezer.adapters.remote.lane.RemoteLane`. probe_s: between looks at how a machine is.
    """

    exclusive: bool = False
    checks_sequence: bool = True
    max_runs: int = 1_000_000
    is_emulator: bool = True
    reattaches: bool = False
    probe_s: float = 5.0


class Lane(Protocol):
    """One execution slot. All methods are called from one task, except :meth:`cancel`."""

    @property
    def jail(self) -> str:
        """``on`` when the lane's process is jailed, else what is missing; empty for a lane without a process."""

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

    capabilities: Capabilities

    async def open_lane(self) -> Lane:
        """Return a new lane, warm: what it imports is imported. Raises ``ExecutionError`` when it cannot start."""


class DeviceUnavailable(Exception):
    """The machine takes no jobs now; the one that it was to have was surely not submitted, and goes back unharmed."""


class SubmitGuard(Protocol):
    """What the holder of a job says of its submit to a machine. Its methods raise ``Unavailable`` of the store's."""

    async def known(self) -> Intent | None:
        """Return what was said of the job before, by whoever held it."""

    async def intend(self, *, unsent: bool = False) -> Intent | None:
        """Say that the job is to be submitted; returns when that cannot be lost any more. An intent that there was,
        and by which it may have been submitted, is returned instead. None: do not submit it, the ticket is lost or the
        job cancelled. unsent: nothing is sent before :meth:`set_out`, so until then another holder may start anew."""

    async def set_out(self) -> bool:
        """Record that the job is submitted now, by an unsent intent; return whether it still belongs to this holder."""

    async def note(self, uid: str, *, named: bool | None = None) -> None:
        """Record the machine's id of the job. named: whether the machine returned the id that we gave the job; None
        where machines do not count their jobs."""

    async def mark(self) -> Mark:
        """Return the last known job of the machine."""

    async def note_set_back(self, uid: int | None, since: int) -> None:
        """Record that the machine's ids began anew, as its last known job (uid) shows. since: a job of the machine that
        is older than any of ours submitted after that."""

    async def withdraw(self) -> None:
        """The job was surely not submitted after all, by who holds this. Takes back only what was said here."""

    async def note_timeout(self) -> None:
        """The job takes longer than its limit, and the machine is asked to stop it."""

    def left_s(self) -> float:
        """For how long the ticket is surely ours: the lease of the device, by this machine's own clock."""

    @property
    def lease_s(self) -> float:
        """How long the lease of a holder that falls silent lasts."""


class MachineState(StrEnum):
    """Whether a machine can run jobs. Unknown is neither: what was known before holds."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Condition(msgspec.Struct, frozen=True):
    """How a machine is. reason: for people, where it is not up."""

    state: MachineState
    reason: str = ""


@runtime_checkable
class MachineAdapter(Protocol):
    """An adapter of a machine, which can be asked how it is."""

    async def probe(self) -> Condition:
        """Return its condition now. Never raises for what the machine does."""

    async def specs_text(self) -> str:
        """Return its specs: Pulser's abstract representation. Raises TweezerError."""

    async def close(self) -> None: ...
