"""What devices are like, as clients are told it: announced by workers, or given by operators, which goes before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.specs import DeviceSpecs
from tweezer.store.scripts import Scripts


class Devices:
    """Changes of what is known of devices. Specs must have been checked with Pulser: clients read those of all."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def announce(self, device: str, about: Mapping[str, Any], specs: DeviceSpecs) -> None:
        """A worker serves a device like this; specs of an operator stay. Raises InvalidInput("specs", …) when another
        device has the name in the specs."""
        await self._set(device, "worker", "either", about, specs)

    async def create(self, device: str, about: Mapping[str, Any], specs: DeviceSpecs) -> None:
        """There is such a device, though no worker has served it yet. Raises InvalidInput as above, and Conflict."""
        await self._set(device, "operator", "no", about, specs)

    async def give_specs(self, device: str, specs: DeviceSpecs) -> None:
        """Clients are told these specs, whatever workers announce. Raises InvalidInput as above, and NotFound."""
        await self._set(device, "operator", "yes", {}, specs)

    async def forget_specs(self, device: str) -> None:
        """Clients are told again what workers announce. Raises NotFound, and Conflict if that is so already."""
        match (await self._scripts.call("forget_specs", device))[0]:
            case b"ok":
                return
            case b"none":
                raise Conflict(f"the specs of {device} are those of its workers already")
            case word:
                _refuse(word, device)

    async def _set(self, device: str, by: str, known: str, about: Mapping[str, Any], specs: DeviceSpecs) -> None:
        row = {**about, "specs": specs.text, "specs_name": specs.name}
        row |= {} if specs.max_atom_num is None else {"max_atom_num": specs.max_atom_num}
        row |= {} if specs.max_runs is None else {"specs_max_runs": specs.max_runs}
        pairs = [part for pair in row.items() for part in pair]
        reply = await self._scripts.call("set_specs", device, by, known, specs.name, *pairs)
        match reply[0]:
            case b"ok" | b"kept":
                return
            case b"taken":
                raise InvalidInput(
                    "specs",
                    f"have the name {specs.name!r}, which those of the device {reply[1].decode()} have: give each "
                    "device specs with a name of their own, for sequences say by it which device they are for",
                )
            case word:
                _refuse(word, device)


def _refuse(word: bytes, device: str) -> NoReturn:
    match word:
        case b"unknown":
            raise NotFound("device", device)
        case b"exists":
            raise Conflict(f"there is a device {device} already: change its specs or its status instead", code="exists")
        case _:
            raise AssertionError(f"a script answered {word!r}")
