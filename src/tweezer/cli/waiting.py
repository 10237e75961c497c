"""Why a device begins no jobs, and why a batch waits, for people."""

from __future__ import annotations

from datetime import UTC, datetime

from tweezer.cli.times import clock
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.store.records import BatchRecord, DeviceRecord


def availability(device: DeviceRecord, now: datetime) -> str:
    """``available``, or why not, and what is to come or not known."""
    hold, window = device.hold(now), device.window
    parts = ["available" if hold is None else hold.told(clock)]
    if device.unsure is not None:
        since = "" if device.unsure_since is None else f" since {clock(device.unsure_since)}"
        parts.append(f"status unknown{since}: {device.unsure}")
    if window is not None and now < window.begins:
        parts.append(f"maintenance from {clock(window.begins)} to {clock(window.ends)}: {window.reason}")
    return "; ".join(parts)


def why_it_waits(batch: BatchRecord, device: DeviceRecord | None, now: datetime | None = None) -> str | None:
    """Why a batch that has pending jobs begins none, where its device is the reason; None where it is not."""
    idle = batch.counts[JobStatus.PENDING] and not batch.counts[JobStatus.RUNNING]
    if device is None or not idle or batch.status.terminal or batch.status is BatchStatus.PAUSED:
        return None
    now = now or datetime.now(UTC)
    if (hold := device.hold(now)) is not None:
        return f"{device.name}: {hold.told(clock)}"
    if (window := device.waits_for_window(batch, now)) is not None:
        when = f"{clock(window.begins)} to {clock(window.ends)}"
        return f"{device.name}: would not end before the maintenance from {when}: {window.reason}"
    return None
