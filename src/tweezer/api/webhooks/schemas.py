"""What the routes of webhooks take and answer with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field

from tweezer.api.batches.filters import Number, Text, Time
from tweezer.api.http.responses import Count, Moment, RecordResponse, Source, doc
from tweezer.ledger.schema import as_datetime
from tweezer.model.webhooks import EventType
from tweezer.webhooks.deliveries import Attempt
from tweezer.webhooks.delivery_log import LIMIT_MAX, Delivery, DeliveryFilter, DeliveryStatus
from tweezer.webhooks.endpoints import DESCRIPTION_MAX, URL_MAX, Endpoint, EndpointKind

_ID = "5f0c6b0e-3f1a-4c1e-9a41-0f6b5d7e8c21"
_DELIVERY = "a1c7e0d4-91b2-5d0c-8f0e-2f3b6c5d4e10"
_BATCH = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_EVENT = f"{_BATCH}:5:1795341602000000"
_NOW, _SOON = "2026-11-22T10:00:00.250000Z", "2026-11-22T10:00:05.250000Z"
_URL = "https://hooks.example.org/tweezer"

_GIVEN_URL = doc(f"Where to: `https://…`, public, at most {URL_MAX} characters, unless the operator allows more.", _URL)
_GIVEN_TYPES = doc(
    "Types of events. None: those of batches, the ends of jobs, and `endpoint.disabled`.", ["job.done", "job.error"]
)
_GIVEN_DESCRIPTION = doc(f"For people; at most {DESCRIPTION_MAX} characters.", "the lab's")


class NewWebhook(msgspec.Struct, frozen=True):
    """An endpoint that is to be sent the events of a project."""

    url: Annotated[str, _GIVEN_URL]
    types: Annotated[list[str], _GIVEN_TYPES] = []
    description: Annotated[str, _GIVEN_DESCRIPTION] = ""
    project_id: Annotated[
        str | None, doc("A project of the caller's; needless with a key that belongs to one project.")
    ] = None
    ed25519: Annotated[bool, doc("Whether it is signed with a private key, too (`v1a`).")] = False


class WebhookChange(msgspec.Struct, frozen=True):
    """What is to be different about an endpoint; null leaves it as it is."""

    url: Annotated[str | None, _GIVEN_URL] = None
    types: Annotated[list[str] | None, _GIVEN_TYPES] = None
    description: Annotated[str | None, _GIVEN_DESCRIPTION] = None


class ResendBody(msgspec.Struct, frozen=True):
    """Which deliveries of an endpoint are to be sent again."""

    since: Annotated[datetime, doc("Those of events since then; without an offset UTC.", _NOW)]
    all: Annotated[bool, doc("Those that were delivered, too.")] = False


class WebhookPageQuery(BaseModel):
    """Which endpoints are meant."""

    model_config = ConfigDict(frozen=True)

    kind: EndpointKind | None = Field(
        None, description="`project`: registered; `batch`: the `webhook` that batches were submitted with. Both."
    )
    project_id: tuple[Text, ...] = Field((), max_length=300, description="Projects. May be repeated: any of them.")
    limit: int = Field(100, ge=1, le=100)
    offset: Number = 0


class DeliveryPageQuery(BaseModel):
    """Which deliveries are meant; all that is given must be so."""

    model_config = ConfigDict(frozen=True)

    batch_id: UUID | None = Field(None, description="Of events of this batch.")
    status: DeliveryStatus | None = None
    type: EventType | None = Field(None, description="Of events of this type.")
    since: Time | None = Field(None, description="Written then or later.")
    limit: int = Field(LIMIT_MAX, ge=1, le=LIMIT_MAX)
    after: Text = Field("", description="What the page before had as `after`; without it, the newest.")

    def filter(self, endpoint: UUID | None) -> DeliveryFilter:
        return DeliveryFilter(endpoint, self.batch_id, self.status, self.type, self.since)


class WebhookResponse(RecordResponse, frozen=True):
    """An endpoint: where webhooks go."""

    id: Annotated[UUID, Meta(examples=[_ID])]
    kind: Annotated[
        EndpointKind, doc("`project`: registered; `batch`: the `webhook` that batches were submitted with.", "project")
    ]
    project_id: Annotated[str, Source("project"), Meta(examples=["6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11"])]
    url: Annotated[str, Meta(examples=[_URL])]
    types: Annotated[list[str], doc("The types of events that it is sent.", ["job.done", "job.error"])]
    description: Annotated[str, Meta(examples=["the lab's"])]
    created_at: Annotated[Moment, Source("created")]
    failing_since: Annotated[
        Moment | None, Source("failing"), doc("Since when each attempt has failed; null while they do not.", None)
    ]
    disabled_at: Annotated[Moment | None, Source("disabled"), doc("Since when nothing is sent there.", None)]
    disabled_because: Annotated[str | None, Source("disabled_why"), doc("Why, for people.", None)]

    @classmethod
    def from_record(cls, record: Endpoint, **computed: Any) -> Self:
        return super().from_record(record, types=sorted(record.subscribed), **computed)


class WebhookSecretResponse(RecordResponse, frozen=True):
    """With what a receiver verifies: HMAC-SHA256 by the secret, and ed25519 by the public key, if it has one."""

    secret: Annotated[str, Meta(examples=["whsec_…"])]
    public_key: Annotated[str | None, Meta(examples=[None])]
    older_until: Annotated[Moment | None, doc("Until when older secrets sign beside it, after a rotation.", None)]


class MadeWebhookResponse(msgspec.Struct, frozen=True):
    """A new endpoint, and its secret."""

    webhook: WebhookResponse
    secret: WebhookSecretResponse


class DeliveryAttemptResponse(RecordResponse, frozen=True):
    """One attempt to deliver."""

    number: Annotated[Count, Meta(examples=[1])]
    at: Moment
    status: Annotated[int | None, doc("HTTP's; null when no answer came.", 503)]
    milliseconds: Annotated[Count, Source("ms"), Meta(examples=[37])]
    error: Annotated[str | None, doc("Why no answer came.", None)]
    answer: Annotated[str, doc("The first characters of the answer.", "busy")]
    next_at: Annotated[Moment | None, doc("When the next was due; null: it was the last.")]

    @classmethod
    def from_record(cls, record: Attempt, **computed: Any) -> Self:
        at, next_at = as_datetime(record.at_ms), as_datetime(record.next_ms)
        return super().from_record(record, at=at, next_at=next_at, **computed)


class DeliveryResponse(RecordResponse, frozen=True):
    """What became of one event for one endpoint."""

    id: Annotated[UUID, Meta(examples=[_DELIVERY])]
    endpoint_id: Annotated[UUID, Source("endpoint"), Meta(examples=[_ID])]
    project_id: Annotated[str, Source("project"), Meta(examples=["6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11"])]
    batch_id: Annotated[UUID | None, Source("batch"), Meta(examples=[_BATCH])]
    event_id: Annotated[str, Source("event"), doc("What the receiver has as `webhook-id`.", _EVENT)]
    type: Annotated[str, Meta(examples=["job.done"])]
    sequence: Annotated[int | None, doc("Number of the event in its batch.", 5)]
    status: Annotated[
        DeliveryStatus,
        doc(
            "`pending`: an attempt is to come; `delivered`; `exhausted`: all failed; `held`: the endpoint is disabled.",
            "pending",
        ),
    ]
    attempts: Annotated[Count, doc("Of the present schedule: sending again begins a new one.", 1)]
    log: Annotated[list[DeliveryAttemptResponse], doc("All attempts there ever were, oldest first.")]
    created_at: Annotated[Moment, Source("created")]
    due_at: Annotated[Moment | None, Source("due"), doc("When the next attempt is due.")]

    @classmethod
    def from_record(cls, record: Delivery, **computed: Any) -> Self:
        attempts = [DeliveryAttemptResponse.from_record(attempt) for attempt in record.log]
        return super().from_record(record, log=attempts, **computed)


class DeliveryWithBodyResponse(DeliveryResponse, frozen=True):
    """The same, and what is sent."""

    body: Annotated[str, doc("JSON, to the byte as it is signed.", '{"type":"job.done"}')]

    @classmethod
    def from_record(cls, record: Delivery, **computed: Any) -> Self:
        return super().from_record(record, body=record.body or "", **computed)


class DeliveryPageResponse(msgspec.Struct, frozen=True):
    """Deliveries, newest first."""

    deliveries: list[DeliveryResponse]
    after: Annotated[str | None, doc("What gives the next page; null: this is the last.", None)]


class ResentResponse(msgspec.Struct, frozen=True):
    """How many deliveries are sent again."""

    count: Annotated[Count, Meta(examples=[12])]
