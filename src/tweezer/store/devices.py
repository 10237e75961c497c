"""Changes of devices: their specs, announced by workers or set by operators, and their pauses and maintenance."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tweezer.model.checks import MAX_REASON_LENGTH, check_text
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.specs import DeviceSpecs
from tweezer.model.summaries import format_count
from tweezer.model.webhooks import format_time
from tweezer.model.windows import WINDOWS_MAX, DeviceState, UnavailabilityKind, Window, check_time
from tweezer.store.scripts import Scripts


class Devices:
    """Changes devices. Specs must have been checked with Pulser, because clients read the specs of all devices."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def announce(self, device: str, about: Mapping[str, Any], specs: DeviceSpecs) -> None:
        """Store the properties and specs of a device that a worker serves; an operator's specs take precedence.

        Raises InvalidInput("specs", …) when another device has the name in the specs.
        """
        await self._set(device, "worker", "either", about, specs)

    async def create(self, device: str, about: Mapping[str, Any], specs: DeviceSpecs) -> None:
        """Create a device that no worker has served yet. Raises InvalidInput as :meth:`announce`, and Conflict."""
        await self._set(device, "operator", "no", about, specs)

    async def give_specs(self, device: str, specs: DeviceSpecs) -> None:
        """Set specs that override those of workers. Raises InvalidInput as :meth:`announce`, and NotFound."""
        await self._set(device, "operator", "yes", {}, specs)

    async def forget_specs(self, device: str) -> None:
        """Remove an operator's specs, so that those of workers apply. Raises NotFound, and Conflict without any."""
        await self._call("forget_specs", device)

    async def plan(self, device: str, window: Window) -> None:
        """Plan maintenance: within the window no job begins, and before it none that would not end in time.

        Planning the same window again changes nothing. Raises InvalidInput; Conflict if it overlaps with another
        window, or there are too many; NotFound.
        """
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
        """Remove planned maintenance, or end it if it is in progress. Raises NotFound."""
        await self._call("drop_window", device, window_id=window_id)

    async def pause(self, device: str, reason: str, *, until: datetime | None = None) -> None:
        """Pause a device: it grants no tickets until it is resumed or the given time; running jobs finish.

        Pausing it again changes the reason and the time. Raises InvalidInput, and NotFound.
        """
        if reason != "":
            check_text("reason", reason, MAX_REASON_LENGTH)
        if until is not None:
            check_time("until", until)
        data = _pack_state(device, UnavailabilityKind.PAUSED, reason, until)
        until_ms = 0 if until is None else _milliseconds(until)
        await self._call("pause_device", device, reason=reason, until_ms=until_ms, data=data)

    async def resume(self, device: str) -> None:
        """End a pause; maintenance that is in progress continues. Raises NotFound."""
        await self._call("resume_device", device)

    async def forget(self, device: str) -> None:
        """Remove a device that no worker serves and that has no work. Raises NotFound, and Conflict."""
        await self._call("forget_device", device)

    async def set_condition(self, device: str, state: str, reason: str) -> None:
        """Store whether a machine can run jobs: ``up``, ``down``, or ``unknown``, which changes only what is shown."""
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
        """Call a script; raise the error for the word with which it refuses."""
        word, *details = await self._scripts.call(script, device=device, **arguments)
        match script, word:
            case _, b"ok" | b"kept":
                return
            case _, b"unknown":
                raise NotFound("device", device)
            case "drop_window", b"none":
                raise NotFound("maintenance", arguments["window_id"])
            case "forget_specs", b"none":
                raise Conflict(f"no operator has set the specs of {device}, so there is nothing to remove")
            case "forget_device", b"served":
                raise Conflict(
                    f"{device} is served by {format_count(int(details[0]), 'worker')}; stop every worker first "
                    "(`tweezer workers` lists them)",
                    code="served",
                )
            case "forget_device", b"busy":
                pending, running, tickets = map(int, details)
                work = f"{pending} pending and {running} running jobs" if pending + running else f"{tickets} tickets"
                raise Conflict(
                    f"{device} has {work}; wait for its batches, or cancel them, before it is forgotten", code="busy"
                )
            case "plan_window", b"past":
                raise InvalidInput("ends_at", "is in the past; a maintenance window must end in the future")
            case "plan_window", b"many":
                raise Conflict(
                    f"{device} already has {WINDOWS_MAX} maintenance windows, the maximum; remove some first"
                )
            case "plan_window", b"overlaps":
                begin, end = (format_time(datetime.fromtimestamp(int(at) / 1000, UTC)) for at in details)
                raise Conflict(
                    f"the window overlaps with maintenance of {device} from {begin} to {end}; remove that window first",
                    code="overlaps",
                )
            case "pause_device", b"past":
                raise InvalidInput("until", "must be in the future; omit it to pause until someone resumes the device")
            case "set_specs", b"exists":
                raise Conflict(f"device {device} already exists; change its specs or its status instead", code="exists")
            case "set_specs", b"taken":
                raise InvalidInput(
                    "specs",
                    f"the name {arguments['name']!r} is already used by the specs of device {details[0].decode()}; "
                    "sequences identify their device by this name, so it must be different for each device",
                )
            case _:
                raise AssertionError(f"a script returned {word!r}")


def new_window(begins: datetime, ends: datetime, reason: str, *, window_id: str | None = None) -> Window:
    """Make a maintenance window, by default with a new id. Raises InvalidInput."""
    for field, at in (("begins_at", begins), ("ends_at", ends)):
        check_time(field, at)
    if ends <= begins:
        raise InvalidInput("ends_at", "must be after begins_at")
    if not check_text("reason", reason, MAX_REASON_LENGTH, least=0).strip():
        raise InvalidInput("reason", "is missing; it is shown to users whose jobs wait")
    return Window(window_id or secrets.token_hex(4), _to_the_millisecond(begins), _to_the_millisecond(ends), reason)


def _to_the_millisecond(at: datetime) -> datetime:
    """Convert a time to UTC, in whole milliseconds, as it is stored."""
    return at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _pack_state(device: str, status: str, reason: str | None = None, until: datetime | None = None) -> bytes:
    return msgspec.json.encode(DeviceState(device, status, reason, None if until is None else format_time(until)))
