"""The adapter of a QPU with Pasqal's on-premises API: one slot, jobs that survive their worker."""

from __future__ import annotations

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.protocol import Condition, MachineState, Traits
from tweezer.adapters.remote.qpu.answers import Operational
from tweezer.adapters.remote.qpu.api import QpuApi
from tweezer.adapters.remote.qpu.errors import QpuError
from tweezer.adapters.remote.qpu.lane import QpuLane
from tweezer.adapters.remote.qpu.options import QpuOptions
from tweezer.model.errors import ExecutionError, FaultKind
from tweezer.model.ids import new_worker_id

BUILDER = "tweezer.adapters.remote.sequence_builder:open_backend"
"""The backend that builds sequences, in a process of its own."""


class QpuAdapter:
    """An :class:`~tweezer.adapters.protocol.Adapter`, and a :class:`~tweezer.adapters.protocol.Machine`."""

    def __init__(self, options: QpuOptions, lanes: LaneOptions) -> None:
        self.traits = Traits(exclusive=True, is_emulator=False, reattaches=True, probe_s=options.probe_s)
        self._options = options
        self._lane_options = lanes
        self._api = QpuApi(options, agent=f"tweezer {new_worker_id()}")

    async def open_lane(self) -> QpuLane:
        """Asks the machine what it is like. Raises ``ExecutionError``: transient while it cannot be asked,
        internal when it refuses to say."""
        try:
            specs = await self._api.system()
        except QpuError as error:
            kind = FaultKind.TRANSIENT if error.retryable else FaultKind.INTERNAL
            raise ExecutionError(kind, error.message) from error
        builder = ChildLane(BUILDER, self._lane_options, (specs,))
        await builder.warm()
        return QpuLane(self._api, builder, self._options)

    async def specs_text(self) -> str:
        return await self._api.system()

    async def probe(self) -> Condition:
        try:
            status = await self._api.operational()
        except QpuError as error:
            return Condition(MachineState.UNKNOWN, error.message)
        if status is Operational.UP:
            return Condition(MachineState.UP)
        return Condition(MachineState.DOWN, "the machine says that it is down")

    async def close(self) -> None:
        await self._api.close()
