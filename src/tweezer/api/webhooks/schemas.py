"""Request and response schemas of the routes of webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

import msgspec
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

_GIVEN_URL = doc(
    f"The URL that receives webhooks, at most {URL_MAX} characters: a public `https://…` URL, unless the operator "
    "allows others.",
    _URL,
)
_GIVEN_TYPES = doc(
    "Types of events to send. Empty: all events of batches, the ends of jobs, `endpoint.disabled`, and `schedule.*`.",
    ["job.done", "job.error"],
)
_GIVEN_DESCRIPTION = doc(f"A description for people, at most {DESCRIPTION_MAX} characters.", "the lab's")


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint to register, which receives the events of a project."""

    url: Annotated[str, _GIVEN_URL]
    types: Annotated[list[str], _GIVEN_TYPES] = []
    description: Annotated[str, _GIVEN_DESCRIPTION] = ""
    project_id: Annotated[
        str | None, doc("Id of the project; may be omitted if the key belongs to a single project.")
    ] = None
    ed25519: Annotated[bool, doc("Whether deliveries are also signed with an ed25519 key (`v1a`).")] = False


class WebhookChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes to an endpoint; null leaves a field unchanged."""

    url: Annotated[str | None, _GIVEN_URL] = None
    types: Annotated[list[str] | None, _GIVEN_TYPES] = None
    description: Annotated[str | None, _GIVEN_DESCRIPTION] = None


class ResendBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The deliveries of an endpoint to resend."""

    since: Annotated[
        datetime,
        doc("Deliveries created at this time or later (ISO 8601; without an offset, the time is in UTC).", _NOW),
    ]
    all: Annotated[bool, doc("Whether to include deliveries that have been delivered.")] = False


class WebhookPageQuery(BaseModel):
    """The filter and page of a list of endpoints."""

    model_config = ConfigDict(frozen=True)

    kind: EndpointKind | None = Field(
        None,
        description="`project`: registered endpoints; `batch`: the `webhook` of batches. Default: both.",
    )
    project_id: tuple[Text, ...] = Field(
        (), max_length=300, description="Id of a project; all projects of the caller by default. May be repeated."
    )
    limit: int = Field(100, ge=1, le=100, description="The largest number of rows to return.")
    offset: Number = Field(
        0, description="The number of rows to skip. For the next page, send `pagination.end` of this one."
    )


class DeliveryPageQuery(BaseModel):
    """The filter and page of a list of deliveries."""

    model_config = ConfigDict(frozen=True)

    batch_id: UUID | None = Field(None, description="Only deliveries of events of this batch.")
    status: DeliveryStatus | None = Field(None, description="Only deliveries with this status.")
    type: EventType | None = Field(None, description="Only deliveries of events of this type.")
    since: Time | None = Field(None, description="Only deliveries created at this time or later (ISO 8601).")
    limit: int = Field(LIMIT_MAX, ge=1, le=LIMIT_MAX, description="The largest number of rows to return.")
    after: Text = Field("", description="Cursor: `after` of the previous page. Default: the first page.")

    def filter(self, endpoint: UUID | None) -> DeliveryFilter:
        return DeliveryFilter(endpoint, self.batch_id, self.status, self.type, self.since)


class WebhookResponse(RecordResponse, frozen=True):
    """An endpoint: a URL that receives webhooks."""

    id: Annotated[UUID, doc("Id of the endpoint.", _ID)]
    kind: Annotated[
        EndpointKind, doc("`project`: a registered endpoint; `batch`: the `webhook` of batches.", "project")
    ]
    project_id: Annotated[str, Source("project"), doc("Id of its project.", "6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11")]
    url: Annotated[str, doc("The URL that receives webhooks.", _URL)]
    types: Annotated[list[str], doc("The types of events that are sent to the endpoint.", ["job.done", "job.error"])]
    description: Annotated[str, doc("A description for people; may be empty.", "the lab's")]
    created_at: Annotated[Moment, Source("created"), doc("When the endpoint was created.")]
    failing_since: Annotated[
        Moment | None,
        Source("failing"),
        doc("Since when every attempt has failed; null if the last attempt did not fail.", None),
    ]
    disabled_at: Annotated[
        Moment | None, Source("disabled"), doc("When the endpoint was disabled; null while it is enabled.", None)
    ]
    disabled_because: Annotated[
        str | None, Source("disabled_why"), doc("Why it was disabled, for people; null while it is enabled.", None)
    ]

    @classmethod
    def from_record(cls, record: Endpoint, **computed: Any) -> Self:
        return super().from_record(record, types=sorted(record.subscribed), **computed)


class WebhookSecretResponse(RecordResponse, frozen=True):
    """The secret with which a receiver verifies signatures (HMAC-SHA256), and the public key (ed25519), if there is
    one."""

    secret: Annotated[str, doc("HMAC secret in the format of Standard Webhooks.", "whsec_…")]
    public_key: Annotated[
        str | None, doc("Public ed25519 key in the format of Standard Webhooks; null if the endpoint has none.", None)
    ]
    older_until: Annotated[
        Moment | None, doc("When the rotated secrets stop signing; null if only the current ones sign.", None)
    ]


class MadeWebhookResponse(msgspec.Struct, frozen=True):
    """A new endpoint and its secret."""

    webhook: Annotated[WebhookResponse, doc("The endpoint.")]
    secret: Annotated[WebhookSecretResponse, doc("The secret of the endpoint.")]


class DeliveryAttemptResponse(RecordResponse, frozen=True):
    """One attempt of a delivery."""

    number: Annotated[Count, doc("Number of the attempt, from 1.", 1)]
    at: Annotated[Moment, doc("When the attempt began.")]
    status: Annotated[int | None, doc("HTTP status of the response; null if there was no response.", 503)]
    milliseconds: Annotated[Count, Source("ms"), doc("Duration of the attempt, in milliseconds.", 37)]
    error: Annotated[
        str | None, doc("Why the attempt failed, for people; null on success, or if the status shows why.", None)
    ]
    answer: Annotated[str, doc("The first characters of the response body.", "busy")]
    next_at: Annotated[Moment | None, doc("When the next attempt was due; null if this was the last.")]

    @classmethod
    def from_record(cls, record: Attempt, **computed: Any) -> Self:
        at, next_at = as_datetime(record.at_ms), as_datetime(record.next_ms)
        return super().from_record(record, at=at, next_at=next_at, **computed)


class DeliveryResponse(RecordResponse, frozen=True):
    """The delivery of one event to one endpoint."""

    id: Annotated[UUID, doc("Id of the delivery.", _DELIVERY)]
    endpoint_id: Annotated[UUID, Source("endpoint"), doc("Id of the endpoint.", _ID)]
    project_id: Annotated[str, Source("project"), doc("Id of the project.", "6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11")]
    batch_id: Annotated[
        UUID | None, Source("batch"), doc("Id of the event's batch; null if the event is not about a batch.", _BATCH)
    ]
    event_id: Annotated[str, Source("event"), doc("Id of the event, sent as the header `webhook-id`.", _EVENT)]
    type: Annotated[str, doc("Type of the event.", "job.done")]
    sequence: Annotated[int | None, doc("Number of the event in its batch; null without a batch.", 5)]
    status: Annotated[
        DeliveryStatus,
        doc(
            "`pending`: more attempts will follow; `delivered`: the receiver responded with 2xx; `exhausted`: all "
            "attempts failed; `held`: not sent, because the endpoint is disabled.",
            "pending",
        ),
    ]
    attempts: Annotated[
        Count, doc("Number of attempts in the current retry schedule; a resend starts a new schedule.", 1)
    ]
    log: Annotated[list[DeliveryAttemptResponse], doc("All attempts, oldest first.")]
    created_at: Annotated[Moment, Source("created"), doc("When the delivery was created.")]
    due_at: Annotated[
        Moment | None, Source("due"), doc("When the next attempt is due; null if no attempt will follow.")
    ]

    @classmethod
    def from_record(cls, record: Delivery, **computed: Any) -> Self:
        attempts = [DeliveryAttemptResponse.from_record(attempt) for attempt in record.log]
        return super().from_record(record, log=attempts, **computed)


class DeliveryWithBodyResponse(DeliveryResponse, frozen=True):
    """A delivery with its body."""

    body: Annotated[str, doc("The JSON text that is sent, exactly as it is signed.", '{"type":"job.done"}')]

    @classmethod
    def from_record(cls, record: Delivery, **computed: Any) -> Self:
        return super().from_record(record, body=record.body or "", **computed)


class DeliveryPageResponse(msgspec.Struct, frozen=True):
    """A page of deliveries."""

    deliveries: Annotated[list[DeliveryResponse], doc("The deliveries, newest first.")]
    after: Annotated[str | None, doc("Cursor of the next page; null on the last page.", None)]


class ResentResponse(msgspec.Struct, frozen=True):
    """The number of deliveries that are resent."""

    count: Annotated[Count, doc("Number of deliveries.", 12)]
