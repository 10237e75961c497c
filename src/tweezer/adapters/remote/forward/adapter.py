"""The adapter of a device whose jobs another server runs: any number of lanes, jobs that survive their worker."""

from __future__ import annotations

from tweezer.adapters.lane.lane import LaneOptions
from tweezer.adapters.protocol import Condition, MachineState, Traits
from tweezer.adapters.remote.forward.api import ForwardApi
from tweezer.adapters.remote.forward.errors import ForwardError
from tweezer.adapters.remote.forward.lane import ForwardLane
from tweezer.adapters.remote.forward.options import ForwardOptions
from tweezer.model.ids import new_worker_id


class ForwardAdapter:
    """An :class:`~tweezer.adapters.protocol.Adapter`, and a :class:`~tweezer.adapters.protocol.Machine`.

    Its lanes are no processes: each is a job that is followed.
    """

    def __init__(self, options: ForwardOptions, lanes: LaneOptions) -> None:
        self.traits = Traits(
            is_emulator=options.is_emulator, max_runs=options.max_runs, reattaches=True, probe_s=options.probe_s
        )
        self._options = options
        self._api = ForwardApi(options, agent=f"tweezer {new_worker_id()}")

    async def open_lane(self) -> ForwardLane:
        return ForwardLane(self._api, self._options)

    async def specs_text(self) -> str:
        return await self._api.specs()

    async def probe(self) -> Condition:
        """How the device is there. While it is down jobs wait here, where they can still be cancelled unsent."""
        try:
            device = await self._api.device()
        except ForwardError as error:
            return Condition(MachineState.UNKNOWN, error.message)
        if device is None:
            return Condition(MachineState.DOWN, f"the server has no device {self._options.device}")
        if device.status == "DOWN":
            return Condition(MachineState.DOWN, f"{self._options.device} is down on the server")
        return Condition(MachineState.UP)

    async def close(self) -> None:
        await self._api.close()
