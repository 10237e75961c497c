"""What the routes of devices take and answer with."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta

from tweezer.api.batches.filters import DeviceOrder
from tweezer.api.http.responses import Count, Moment, RecordResponse, Source, doc
from tweezer.ledger.queries.statistics import QueueTime
from tweezer.model.ids import device_id
from tweezer.model.webhooks import format_time
from tweezer.store.records import DeviceRecord

_NAME = Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Its name.", examples=["EMU_FREE"])
_SPECS = doc("Pulser's `device.to_abstract_repr()`, as a string.")


_AWARE = Meta(tz=True)
_REASON = Annotated[str, Meta(max_length=500, description="Shown to all.", examples=["new lens"])]


class DeviceStatus(StrEnum):
    """Whether a device works: ``UP`` while workers serve it, its machine runs jobs, and no operator holds it."""

    UP = "UP"
    DOWN = "DOWN"


class StatusBody(msgspec.Struct, frozen=True):
    """The status that a device is to have; reason and until are of DOWN."""

    status: DeviceStatus
    reason: _REASON = ""
    until: Annotated[datetime, _AWARE, doc("When it is UP again by itself.")] | None = None


class StatusesBody(msgspec.Struct, frozen=True):
    """The status that some devices are to have."""

    device_type_names: Annotated[list[str], Meta(min_length=1, max_length=100, examples=[["EMU_FREE"]])]
    status: DeviceStatus
    reason: _REASON = ""
    until: Annotated[datetime, _AWARE, doc("When they are UP again by themselves.")] | None = None


class MaintenanceBody(msgspec.Struct, frozen=True):
    """Planned maintenance of a device."""

    begins_at: Annotated[datetime, _AWARE, Meta(examples=["2026-11-22T10:00:00Z"])]
    ends_at: Annotated[datetime, _AWARE, Meta(examples=["2026-11-22T14:00:00Z"])]
    reason: Annotated[str, Meta(min_length=1, max_length=500, description="Shown to all.", examples=["new lens"])]


class SpecsBody(msgspec.Struct, frozen=True):
    """Specs of a device."""

    specs: Annotated[str, _SPECS]


class NewDevice(msgspec.Struct, frozen=True):
    """A device that no worker serves yet. What else Pasqal's reference has of it is passed over."""

    device_type: Annotated[str, _NAME]
    specs: Annotated[str, _SPECS]
    status: DeviceStatus = DeviceStatus.UP
    is_emulator: bool = True
    active: Annotated[bool, doc("If not, it is listed with `include_legacy` only.")] = True

    def about(self) -> dict[str, Any]:
        """Return the device's record until a worker announces it: a machine serves one batch at a time."""
        return {
            "is_emulator": int(self.is_emulator),
            "exclusive": int(not self.is_emulator),
            "checks_sequence": 1,
            "max_runs": 1_000_000,
            **({} if self.active else {"inactive": 1}),
        }


class MaintenanceResponse(RecordResponse, frozen=True):
    """When a device is not to be used."""

    id: Annotated[str, Meta(examples=["5f3a90c1"])]
    begins_at: Annotated[Moment, Source("begins")]
    ends_at: Annotated[Moment, Source("ends")]
    reason: Annotated[str, Meta(examples=["new lens"])]


class DeviceResponse(RecordResponse, frozen=True):
    """A device: workers serve it, or did, or an operator has created it."""

    id: Annotated[UUID, Meta(examples=["a4b1f9c2-3a60-5d0e-b7c5-3d1d8f1e2a90"])]
    name: Annotated[str, Meta(examples=["EMU_FREE"])]
    device_type: Annotated[str, Source("name"), doc("The same.", "EMU_FREE")]
    status: Annotated[
        DeviceStatus,
        doc(
            "`DOWN` while an operator holds it, it is under maintenance, its machine is down, or no worker "
            "serves it; jobs wait then.",
            "UP",
        ),
    ]
    status_reason: Annotated[str | None, doc("Why it is `DOWN`, for people; null while it is `UP`.", None)]
    status_until: Annotated[Moment | None, doc("When that is planned to be over; null where nobody has said.", None)]
    status_unknown: Annotated[
        str | None,
        Source("unsure"),
        doc("Why it is not known how its machine is, which changes nothing but this; null while it is known.", None),
    ]
    average_queue_time: Annotated[
        Count | None,
        doc("Seconds from submit to start, of the jobs that ended in the last day; null when none did.", 12),
    ]
    max_atom_num: Annotated[Count | None, doc("Null without limit, and without specs.", 25)]
    max_runs: Annotated[Count | None, doc("The most shots of a job; null while no worker says.", 1000)]
    is_emulator: Annotated[bool, Meta(examples=[True])]
    created_at: Annotated[Moment | None, Source("created"), doc("When it was first announced.")]
    paused_because: Annotated[str | None, doc("The operator's reason.", None)]
    maintenance: Annotated[
        MaintenanceResponse | None,
        doc("What is under way or planned next; `/api/v1/devices/{device}/maintenance` has all.", None),
    ]
    lanes: Annotated[Count, doc("Execution slots of its live workers.", 2)]
    pending: Annotated[Count, doc("Its pending jobs.", 16)]
    running: Annotated[Count, doc("Its running jobs.", 2)]

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
        )

    def place(self, order: DeviceOrder) -> Any:
        """Return the value to sort by; devices without one come last."""
        return self.created_at if order is DeviceOrder.CREATED else getattr(self, order.value)


class DeviceSpecsResponse(msgspec.Struct, frozen=True):
    """What clients are told that a device is like."""

    device_type: Annotated[str, Meta(examples=["EMU_FREE"])]
    specs: Annotated[str, doc("Pulser's abstract representation of the device, as a string.", '{"name": "EMU_FREE"}')]
