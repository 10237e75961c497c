"""What devices are like, as clients are told it: announced by workers, or given by operators, which goes before; and
when they are under maintenance."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tweezer.model.checks import MAX_REASON_LENGTH, check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.specs import DeviceSpecs
from tweezer.model.webhooks import format_time
from tweezer.model.windows import WINDOWS_MAX, DeviceState, UnavailabilityKind, Window, check_time
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
        await self._call("forget_specs", device)

    async def plan(self, device: str, window: Window) -> None:
        """Begins nothing from one time to another, and before it nothing that would not end in time. Planning the
        same window again changes nothing. Raises InvalidInput, Conflict when it overlaps with another one, NotFound."""
        await self._call(
            "plan_window",
            device,
            window_id=window.id,
            begins_ms=_milliseconds(window.begins),
            ends_ms=_milliseconds(window.ends),
            data=_pack_state(device, UnavailabilityKind.MAINTENANCE, window.reason, window.ends),
            windows_max=WINDOWS_MAX,
        )

    async def drop(self, device: str, window_id: str) -> None:
        """Takes planned maintenance back, or ends it where it is under way. Raises NotFound."""
        await self._call("drop_window", device, window_id=window_id)

    async def pause(self, device: str, reason: str, *, until: datetime | None = None) -> None:
        """Grants no more tickets of a device, until a time, if one is given; what runs finishes. Doing it again changes
        why and until when. Raises InvalidInput, and NotFound."""
        if reason != "":
            check_text("reason", reason, MAX_REASON_LENGTH)
        if until is not None:
            check_time("until", until)
        data = _pack_state(device, UnavailabilityKind.PAUSED, reason, until)
        until_ms = 0 if until is None else _milliseconds(until)
        await self._call("pause_device", device, reason=reason, until_ms=until_ms, data=data)

    async def resume(self, device: str) -> None:
        """Ends a pause; maintenance that is under way goes on."""
        await self._call("resume_device", device)

    async def set_condition(self, device: str, state: str, reason: str) -> None:
        """Whether a machine can run jobs: ``up``, ``down``, or ``unknown``, which changes nothing but what is shown."""
        data = _pack_state(device, state, reason or None)
        await self._call("set_condition", device, condition=state, reason=reason, data=data)

    async def _set(self, device: str, by: str, must_exist: str, about: Mapping[str, Any], specs: DeviceSpecs) -> None:
        limits = {
            "max_atom_num": specs.max_atom_num,
            "specs_max_runs": specs.max_runs,
            "min_atom_distance": specs.min_atom_distance,
            "max_radial_distance": specs.max_radial_distance,
        }
        row = {**about, "specs": specs.text, "specs_name": specs.name}
        row |= {field: limit for field, limit in limits.items() if limit is not None}
        await self._call("set_specs", device, by=by, must_exist=must_exist, name=specs.name, about=row.items())

    async def _call(self, script: str, device: str, **arguments: Any) -> None:
        """Call a script; raise the error for a word by which it refuses."""
        word, *details = await self._scripts.call(script, device=device, **arguments)
        match script, word:
            case _, b"ok" | b"kept":
                return
            case _, b"unknown":
                raise NotFound("device", device)
            case "drop_window", b"none":
                raise NotFound("maintenance", arguments["window_id"])
            case "forget_specs", b"none":
                raise Conflict(f"the specs of {device} are those of its workers already")
            case "plan_window", b"past":
                raise InvalidInput("ends_at", "is not to come; maintenance is planned for the future")
            case "plan_window", b"many":
                raise Conflict(f"{device} has {WINDOWS_MAX} windows of maintenance, and may not have more; remove some")
            case "plan_window", b"overlaps":
                begin, end = (format_time(datetime.fromtimestamp(int(at) / 1000, UTC)) for at in details)
                raise Conflict(
                    f"it overlaps with other maintenance of {device}, from {begin} to {end}: remove that first",
                    code="overlaps",
                )
            case "pause_device", b"past":
                raise InvalidInput(
                    "until", "is not to come; give a later time, or none to pause until somebody resumes it"
                )
            case "set_specs", b"exists":
                raise Conflict(
                    f"there is a device {device} already: change its specs or its status instead", code="exists"
                )
            case "set_specs", b"taken":
                raise InvalidInput(
                    "specs",
                    f"have the name {arguments['name']!r}, which those of the device {details[0].decode()} have: give "
                    "each device specs with a name of their own, for sequences say by it which device they are for",
                )
            case _:
                raise AssertionError(f"a script answered {word!r}")


def new_window(begins: datetime, ends: datetime, reason: str) -> Window:
    """A window of maintenance with a new id. Raises InvalidInput that names what is wrong."""
    for field, at in (("begins_at", begins), ("ends_at", ends)):
        check_time(field, at)
    if ends <= begins:
        raise InvalidInput("ends_at", "must be after begins_at")
    if not check_text("reason", reason, MAX_REASON_LENGTH, least=0).strip():
        raise InvalidInput("reason", "is missing; it is shown to all who wait")
    return Window(secrets.token_hex(4), _to_the_millisecond(begins), _to_the_millisecond(ends), reason)


def _to_the_millisecond(at: datetime) -> datetime:
    """In UTC, as it is kept."""
    return at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _pack_state(device: str, status: str, reason: str | None = None, until: datetime | None = None) -> bytes:
    return msgspec.json.encode(DeviceState(device, status, reason, None if until is None else format_time(until)))
