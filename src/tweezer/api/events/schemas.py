"""What the feed of events answers with."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from tweezer.api.batches.schemas import Schema
from tweezer.api.http.envelope import Envelope
from tweezer.model.webhooks import EventType

_BATCH_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_ID = f"{_BATCH_ID}:5:1795341602000000"


class FedEvent(Schema):
    """An event. What ``data`` has depends on its type; a webhook of the event has more."""

    id: str = Field(description="The same wherever the event is told.", examples=[_ID])
    type: EventType = Field(examples=["job.done"])
    timestamp: datetime = Field(examples=["2026-11-22T10:00:02.000000Z"])
    data: dict[str, Any] = Field(examples=[{"batch_id": _BATCH_ID, "status": "DONE", "sequence": 5}])


class EventPage(Envelope[list[FedEvent]]):
    """Events, oldest first."""

    next: str = Field(description="What to give as `after` for what comes behind these.", examples=["1795341602000-0"])
