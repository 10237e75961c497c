"""Emulators: every lane is a child process that has the emulator's libraries imported."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.lane.process import GPU_VARIABLE
from tweezer.adapters.protocol import Capabilities
from tweezer.model.errors import InvalidInput

QUTIP_BACKEND = "tweezer.adapters.emulators.qutip_backend:open_backend"
"""The backend of EMU_FREE: pulser-simulation, which solves with QuTiP."""

EMU_SV_BACKEND = "tweezer.adapters.emulators.emu_sv_backend:open_backend"
"""The backend of EMU_SV."""

EMU_MPS_BACKEND = "tweezer.adapters.emulators.emu_mps_backend:open_backend"
"""The backend of EMU_MPS and EMU_TN."""

MACHINE_BACKEND = "tweezer.adapters.emulators.machine_backend:open_backend"
"""The backend of EMU_FRESNEL; it takes the specs of a machine."""


class EmulatorAdapter:
    """Runs Pulser sequences on an emulator; any number of batches share its lanes.

    arguments: of the backend's factory. gpus: as CUDA names them; each lane gets that which fewest lanes have.
    """

    def __init__(
        self,
        backend: str = QUTIP_BACKEND,
        options: LaneOptions | None = None,
        *,
        arguments: tuple[str, ...] = (),
        gpus: Sequence[str] = (),
    ) -> None:
        self.capabilities = Capabilities()
        self._backend = backend
        self._options = options or LaneOptions()
        self._arguments = arguments
        self._gpus = tuple(gpus)
        self._lanes: list[ChildLane] = []

    async def open_lane(self) -> ChildLane:
        """A new process, warm. Raises ``ExecutionError`` when it cannot start."""
        self._lanes = [lane for lane in self._lanes if not lane.closed]
        taken = [lane.gpu for lane in self._lanes]
        gpu = min(self._gpus, key=taken.count, default=None)
        lane = ChildLane(self._backend, self._options, self._arguments, gpu)
        self._lanes.append(lane)
        await lane.warm()
        return lane


def gpu_names(count: int) -> list[str]:
    """So many of the GPUs that this process may use, by CUDA's names. Raises InvalidInput naming ``options.gpus``."""
    allowed = os.environ.get(GPU_VARIABLE)
    if allowed is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    if len(names) < count:
        raise InvalidInput("options.gpus", f"asks for {count}, but {GPU_VARIABLE} of this process names {len(names)}")
    return names[:count]
