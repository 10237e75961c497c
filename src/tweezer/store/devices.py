"""What devices are like, as clients are told it: announced by workers, or given by operators, which goes before; and
when they are under maintenance."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec

from tweezer.model.checks import MAX_REASON_LENGTH, check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.specs import DeviceSpecs
from tweezer.model.webhooks import DeviceData, format_time
from tweezer.model.windows import WINDOWS_MAX, UnavailabilityKind, Window, check_time, new_window_id, window_data
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
        match (await self._scripts.call("forget_specs", device=device))[0]:
            case b"ok":
                return
            case b"none":
                raise Conflict(f"the specs of {device} are those of its workers already")
            case word:
                _refuse(word, device)

    async def plan(self, device: str, window: Window) -> None:
        """Begins nothing from one time to another, and before it nothing that would not end in time. Planning the
        same window again changes nothing. Raises InvalidInput, Conflict when it overlaps with another one, NotFound."""
        begins, ends = (round(at.timestamp() * 1000) for at in (window.begins, window.ends))
        data = msgspec.json.encode(window_data(device, window))
        word, *rest = await self._scripts.call(
            "plan_window",
            device=device,
            window_id=window.id,
            begins_ms=begins,
            ends_ms=ends,
            data=data,
            windows_max=WINDOWS_MAX,
        )
        match word:
            case b"ok":
                return
            case b"past":
                raise InvalidInput("ends_at", "is not to come; maintenance is planned for the future")
            case b"many":
                raise Conflict(f"{device} has {WINDOWS_MAX} windows of maintenance, and may not have more; remove some")
            case b"overlaps":
                begin, end = (format_time(datetime.fromtimestamp(int(at) / 1000, UTC)) for at in rest)
                raise Conflict(
                    f"it overlaps with other maintenance of {device}, from {begin} to {end}: remove that first",
                    code="overlaps",
                )
            case _:
                _refuse(word, device)

    async def drop(self, device: str, window_id: str) -> None:
        """Takes planned maintenance back, or ends it where it is under way. Raises NotFound."""
        (word,) = await self._scripts.call("drop_window", device=device, window_id=window_id)
        if word == b"none":
            raise NotFound("maintenance", window_id)
        if word != b"ok":
            _refuse(word, device)

    async def pause(self, device: str, reason: str, *, until: datetime | None = None) -> None:
        """Grants no more tickets of a device, until a time, if one is given; what runs finishes. Doing it again changes
        why and until when. Raises InvalidInput, and NotFound."""
        if reason != "":
            check_text("reason", reason, MAX_REASON_LENGTH)
        if until is not None:
            check_time("until", until)
        data = _device_data(device, UnavailabilityKind.PAUSED, reason, until)
        until_ms = 0 if until is None else round(until.timestamp() * 1000)
        await self._call("pause_device", device, reason=reason, until_ms=until_ms, data=data)

    async def resume(self, device: str) -> None:
        """Ends a pause; maintenance that is under way goes on."""
        await self._call("resume_device", device)

    async def set_condition(self, device: str, state: str, reason: str) -> None:
        """Whether a machine can run jobs: ``up``, ``down``, or ``unknown``, which changes nothing but what is shown."""
        data = _device_data(device, state, reason or None)
        await self._call("set_condition", device, condition=state, reason=reason, data=data)

    async def _call(self, script: str, device: str, **arguments: Any) -> None:
        (word,) = await self._scripts.call(script, device=device, **arguments)
        if word == b"past":
            raise InvalidInput("until", "is not to come; give a later time, or none to pause until somebody resumes it")
        if word != b"ok":
            _refuse(word, device)

    async def _set(self, device: str, by: str, must_exist: str, about: Mapping[str, Any], specs: DeviceSpecs) -> None:
        row = {**about, "specs": specs.text, "specs_name": specs.name}
        limits = {
            "max_atom_num": specs.max_atom_num,
            "specs_max_runs": specs.max_runs,
            "min_atom_distance": specs.min_atom_distance,
            "max_radial_distance": specs.max_radial_distance,
        }
        row |= {field: limit for field, limit in limits.items() if limit is not None}
        reply = await self._scripts.call(
            "set_specs", device=device, by=by, must_exist=must_exist, name=specs.name, about=row.items()
        )
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


def new_window(begins: datetime, ends: datetime, reason: str) -> Window:
    """A window of maintenance with a new id. Raises InvalidInput that names what is wrong."""
    for field, at in (("begins_at", begins), ("ends_at", ends)):
        check_time(field, at)
    if ends <= begins:
        raise InvalidInput("ends_at", "must be after begins_at")
    if not check_text("reason", reason, MAX_REASON_LENGTH, least=0).strip():
        raise InvalidInput("reason", "is missing; it is shown to all who wait")
    return Window(new_window_id(), _to_the_millisecond(begins), _to_the_millisecond(ends), reason)


def _to_the_millisecond(at: datetime) -> datetime:
    """In UTC, as it is kept."""
    return at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def _refuse(word: bytes, device: str) -> NoReturn:
    match word:
        case b"unknown":
            raise NotFound("device", device)
        case b"exists":
            raise Conflict(f"there is a device {device} already: change its specs or its status instead", code="exists")
        case _:
            raise AssertionError(f"a script answered {word!r}")


def _device_data(device: str, status: str, reason: str | None = None, until: datetime | None = None) -> bytes:
    return msgspec.json.encode(DeviceData(device, status, reason, None if until is None else format_time(until)))
