"""Emulators: every lane is a child process that has the emulator's libraries imported."""

from __future__ import annotations

from tweezer.adapters.child import ChildLane, LaneOptions
from tweezer.adapters.protocol import Traits

QUTIP_BACKEND = "tweezer.adapters.qutip_backend:open_backend"
"""The backend of EMU_FREE: pulser-simulation, which solves with QuTiP."""


class EmulatorAdapter:
    """Runs Pulser sequences on an emulator; any number of batches share its lanes."""

    def __init__(self, backend: str = QUTIP_BACKEND, options: LaneOptions | None = None) -> None:
        self.traits = Traits()
        self._backend = backend
        self._options = options or LaneOptions()

    async def open_lane(self) -> ChildLane:
        """A new process, warm. Raises ``ExecutionError`` when it cannot start."""
        return await ChildLane.open(self._backend, self._options)
