"""Request and response schemas of the routes of devices."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta

from tweezer.api.batches.filters import DeviceOrder
from tweezer.api.http.responses import Count, Moment, RecordResponse, Seconds, Source, doc
from tweezer.ledger.queries.statistics import QueueTime
from tweezer.model.ids import device_id
from tweezer.model.webhooks import format_time
from tweezer.store.records import DeviceRecord

_NAME = Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Name of the device.", examples=["EMU_FREE"])
_SPECS = doc("The specs: the string that `to_abstract_repr()` of a Pulser device returns.")


_AWARE = Meta(tz=True)
_REASON = Annotated[
    str, Meta(max_length=500, description="The reason, which all users can see.", examples=["new lens"])
]


class DeviceStatus(StrEnum):
    """Whether a device runs jobs: `UP` while workers serve it, its machine is up, and it is neither paused nor under
    maintenance."""

    UP = "UP"
    DOWN = "DOWN"


class StatusBody(msgspec.Struct, frozen=True):
    """The new status of a device; `reason` and `until` apply to `DOWN`."""

    status: Annotated[DeviceStatus, doc("The new status.", "DOWN")]
    reason: _REASON = ""
    until: Annotated[
        Annotated[datetime, _AWARE] | None,
        doc("When the device resumes automatically; null: only when it is set `UP`."),
    ] = None


class StatusesBody(msgspec.Struct, frozen=True):
    """The new status of several devices; `reason` and `until` apply to `DOWN`."""

    device_type_names: Annotated[
        list[str],
        Meta(min_length=1, max_length=100, description="Names or ids of the devices.", examples=[["EMU_FREE"]]),
    ]
    status: Annotated[DeviceStatus, doc("The new status.", "DOWN")]
    reason: _REASON = ""
    until: Annotated[
        Annotated[datetime, _AWARE] | None,
        doc("When the devices resume automatically; null: only when they are set `UP`."),
    ] = None


class MaintenanceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A maintenance window to plan. Times need an offset from UTC."""

    begins_at: Annotated[datetime, _AWARE, doc("When the maintenance begins.", "2026-11-22T10:00:00Z")]
    ends_at: Annotated[datetime, _AWARE, doc("When the maintenance ends.", "2026-11-22T14:00:00Z")]
    reason: Annotated[
        str,
        Meta(min_length=1, max_length=500, description="The reason, which all users can see.", examples=["new lens"]),
    ]
    id: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$")] | None,
        doc("Id of the window, 8 hexadecimal digits, so that a repeated request plans it once; null: a new id.", None),
    ] = None


class SpecsBody(msgspec.Struct, frozen=True):
    """Specs of a device."""

    specs: Annotated[str, _SPECS]


class NewDevice(msgspec.Struct, frozen=True):
    """A device to create. The other fields of Pasqal's API are ignored."""

    device_type: Annotated[str, _NAME]
    specs: Annotated[str, _SPECS]
    status: Annotated[DeviceStatus, doc("The initial status; `DOWN` pauses the device.")] = DeviceStatus.UP
    is_emulator: Annotated[
        bool, doc("Whether the device is an emulator. A device that is not an emulator runs one batch at a time.")
    ] = True
    active: Annotated[
        bool, doc("Whether the device is listed by default; if false, it is listed only with `include_legacy`.")
    ] = True

    def about(self) -> dict[str, Any]:
        """Return the device's record until a worker announces it. A QPU runs one batch at a time."""
        return {
            "is_emulator": int(self.is_emulator),
            "exclusive": int(not self.is_emulator),
            "checks_sequence": 1,
            "max_runs": 1_000_000,
            **({} if self.active else {"inactive": 1}),
        }


class MaintenanceResponse(RecordResponse, frozen=True):
    """A maintenance window of a device."""

    id: Annotated[str, doc("Id of the window.", "5f3a90c1")]
    begins_at: Annotated[Moment, Source("begins"), doc("When the maintenance begins.")]
    ends_at: Annotated[Moment, Source("ends"), doc("When the maintenance ends.")]
    reason: Annotated[str, doc("The reason, which all users can see.", "new lens")]


class GeometryResponse(RecordResponse, frozen=True):
    """The limits on registers; null means no limit."""

    max_atoms: Annotated[Count | None, doc("The largest number of atoms.", 25)]
    min_distance: Annotated[float | None, doc("The smallest distance between two atoms, in µm.", 4.0)]
    max_radius: Annotated[float | None, doc("The largest distance of an atom from the centre, in µm.", 35.0)]


class DeviceResponse(RecordResponse, frozen=True):
    """A device that workers serve or have served, or that an operator has created."""

    id: Annotated[UUID, doc("Id of the device.", "a4b1f9c2-3a60-5d0e-b7c5-3d1d8f1e2a90")]
    name: Annotated[str, doc("Name of the device.", "EMU_FREE")]
    device_type: Annotated[str, Source("name"), doc("The same as `name`.", "EMU_FREE")]
    status: Annotated[
        DeviceStatus,
        doc(
            "`DOWN` while an operator has paused the device, it is under maintenance, its machine is down, or no "
            "worker serves it. Its jobs then stay pending.",
            "UP",
        ),
    ]
    status_reason: Annotated[str | None, doc("Why the device is `DOWN`, for people; null while it is `UP`.", None)]
    status_until: Annotated[Moment | None, doc("When the device is expected to be `UP` again; null if unknown.", None)]
    status_unknown: Annotated[
        str | None,
        Source("unsure"),
        doc(
            "Why the state of its machine is unknown, for people; does not affect `status`. Null if it is known.", None
        ),
    ]
    average_queue_time: Annotated[
        Count | None,
        doc("Average seconds from submission to start, over the jobs that ended in the last day; null if none.", 12),
    ]
    max_atom_num: Annotated[
        Count | None, doc("The largest number of atoms; null if there is no limit, or if the specs are unknown.", 25)
    ]
    max_runs: Annotated[Count | None, doc("The largest number of shots of a job; null if unknown.", 1000)]
    is_emulator: Annotated[bool, doc("Whether the device is an emulator.", True)]
    created_at: Annotated[
        Moment | None, Source("created"), doc("When the device was first announced or created; null if unknown.")
    ]
    paused_because: Annotated[
        str | None, doc("The operator's reason for a pause; null if the device is not paused.", None)
    ]
    maintenance: Annotated[
        MaintenanceResponse | None,
        doc("The current or next maintenance window; see `GET /api/v1/devices/{device}/maintenance` for all.", None),
    ]
    lanes: Annotated[Count, doc("Number of lanes (execution slots) of its live workers.", 2)]
    pending: Annotated[Count, doc("Number of its pending jobs.", 16)]
    running: Annotated[Count, doc("Number of its running jobs.", 2)]
    adapter: Annotated[str, doc("Kind of adapter that serves the device.", "qutip")]
    exclusive: Annotated[bool, doc("Whether one batch has the device to itself.", False)]
    checks_sequence: Annotated[bool, doc("Whether sequences are checked; if false, any text is accepted.", True)]
    specs_name: Annotated[
        str | None, doc("Name of the device in sequences that are built for it; null without specs.", "EMU_FREE")
    ]
    geometry: Annotated[GeometryResponse, doc("The limits on registers.")]
    paused_until: Annotated[Moment | None, doc("When a pause ends; null if an operator must end it.", None)]
    down_because: Annotated[str | None, Source("down"), doc("Why its machine runs no jobs; null if it is up.", None)]
    status_unknown_since: Annotated[
        Moment | None, Source("unsure_since"), doc("Since when the state of its machine is unknown.", None)
    ]
    job_s: Annotated[Seconds | None, doc("Average duration of its recent jobs, in seconds; null if unknown.", 0.42)]
    active: Annotated[bool, doc("Whether the device is listed without `include_legacy`.", True)]
    reattaches: Annotated[bool, doc("Whether its jobs continue when the worker is lost.", False)]
    set_back_at: Annotated[
        Moment | None,
        Source("set_back"),
        doc("When a restart of the job ids of its machine was last noticed; null if never.", None),
    ]

    @classmethod
    def from_device(cls, record: DeviceRecord, waited: QueueTime | None) -> DeviceResponse:
        now = datetime.now(UTC)
        hold, window = record.unavailability(now), record.window
        return cls.from_record(
            record,
            id=device_id(record.name),
            status=DeviceStatus.UP if hold is None else DeviceStatus.DOWN,
            status_reason=None if hold is None else hold.describe(format_time),
            status_until=None if hold is None else hold.until,
            average_queue_time=None if waited is None or waited.seconds is None else round(waited.seconds),
            max_runs=record.max_runs or None,
            paused_because=record.paused or None,
            maintenance=None if window is None or window.ends <= now else MaintenanceResponse.from_record(window),
            geometry=GeometryResponse.from_record(record.geometry),
        )

    def place(self, order: DeviceOrder) -> Any:
        """Return the value to sort by; devices without one come last."""
        return self.created_at if order is DeviceOrder.CREATED else getattr(self, order.value)


class WorkerResponse(RecordResponse, frozen=True):
    """A live worker, as its last heartbeat described it."""

    id: Annotated[str, doc("Id of the worker.", "lab-1:4711:0f3a")]
    device: Annotated[str, doc("Name of the device that it serves.", "EMU_FREE")]
    lanes: Annotated[Count, doc("Number of its lanes.", 2)]
    busy: Annotated[Count, doc("Number of its lanes that execute a batch.", 1)]
    host: Annotated[str, doc("Name of its machine.", "lab-1")]
    version: Annotated[str, doc("Version of Tweezer.", "0.1.0")]
    record_version: Annotated[Count, doc("Version of the records that it reads.", 2)]
    draining: Annotated[bool, doc("Whether it ends when its jobs have ended.", False)]
    started: Annotated[Moment, doc("When it was started.")]
    jail: Annotated[str, doc("`on` if its lanes are jailed, else what is missing; empty if unknown.", "on")]


class DeviceSpecsResponse(msgspec.Struct, frozen=True):
    """The specs of a device."""

    device_type: Annotated[str, doc("Name of the device.", "EMU_FREE")]
    specs: Annotated[
        str, doc("The specs: Pulser's abstract representation of the device, as a string.", '{"name": "EMU_FREE"}')
    ]
