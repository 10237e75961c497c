"""What the routes of webhooks take and answer with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field

from tweezer.api.batches.filters import Number, Text, Time
from tweezer.api.batches.schemas import Count, Schema
from tweezer.ledger.clock import moment_of
from tweezer.model.webhooks import EventType
from tweezer.webhooks import deliveries, delivery_log
from tweezer.webhooks.delivery_log import DeliveryFilter, DeliveryStatus
from tweezer.webhooks.endpoints import DESCRIPTION_MAX, URL_MAX, Endpoint, EndpointKind
from tweezer.webhooks.shown_secrets import ShownSecret

_ID = "5f0c6b0e-3f1a-4c1e-9a41-0f6b5d7e8c21"
_DELIVERY = "a1c7e0d4-91b2-5d0c-8f0e-2f3b6c5d4e10"
_BATCH = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_EVENT = f"{_BATCH}:5:1795341602000000"
_NOW, _SOON = "2026-11-22T10:00:00.250000Z", "2026-11-22T10:00:05.250000Z"
_URL = "https://hooks.example.org/tweezer"

_GIVEN_URL = Meta(
    description=f"Where to: `https://…`, public, at most {URL_MAX} characters, unless the operator allows more.",
    examples=[_URL],
)
_GIVEN_TYPES = Meta(
    description="Types of events. None: those of batches, the ends of jobs, and `endpoint.disabled`.",
    examples=[["job.done", "job.error"]],
)
_GIVEN_DESCRIPTION = Meta(description=f"For people; at most {DESCRIPTION_MAX} characters.", examples=["the lab's"])


class NewWebhook(msgspec.Struct, frozen=True):
    """An endpoint that is to be sent the events of a project."""

    url: Annotated[str, _GIVEN_URL]
    types: Annotated[list[str], _GIVEN_TYPES] = []
    description: Annotated[str, _GIVEN_DESCRIPTION] = ""
    project_id: Annotated[
        str | None, Meta(description="A project of the caller's; needless with a key that belongs to one project.")
    ] = None
    ed25519: Annotated[bool, Meta(description="Whether it is signed with a private key, too (`v1a`).")] = False


class WebhookChange(msgspec.Struct, frozen=True):
    """What is to be different about an endpoint; null leaves it as it is."""

    url: Annotated[str | None, _GIVEN_URL] = None
    types: Annotated[list[str] | None, _GIVEN_TYPES] = None
    description: Annotated[str | None, _GIVEN_DESCRIPTION] = None


class ResendBody(msgspec.Struct, frozen=True):
    """Which deliveries of an endpoint are to be sent again."""

    since: Annotated[datetime, Meta(description="Those of events since then; without an offset UTC.", examples=[_NOW])]
    all: Annotated[bool, Meta(description="Those that were delivered, too.")] = False


class ListedWebhooks(BaseModel):
    """Which endpoints are meant."""

    model_config = ConfigDict(frozen=True)

    kind: EndpointKind | None = Field(
        None, description="`project`: registered; `batch`: the `webhook` that batches were submitted with. Both."
    )
    project_id: tuple[Text, ...] = Field((), max_length=300, description="Projects. May be repeated: any of them.")
    limit: int = Field(100, ge=1, le=100)
    offset: Number = 0


class ListedDeliveries(BaseModel):
    """Which deliveries are meant; all that is given must be so."""

    model_config = ConfigDict(frozen=True)

    batch_id: UUID | None = Field(None, description="Of events of this batch.")
    status: DeliveryStatus | None = None
    type: EventType | None = Field(None, description="Of events of this type.")
    since: Time | None = Field(None, description="Written then or later.")
    limit: int = Field(delivery_log.LIMIT_MAX, ge=1, le=delivery_log.LIMIT_MAX)
    after: Text = Field("", description="What the page before had as `after`; without it, the newest.")

    def filter(self, endpoint: UUID | None) -> DeliveryFilter:
        return DeliveryFilter(endpoint, self.batch_id, self.status, self.type, self.since)


class Webhook(Schema):
    """An endpoint: where webhooks go."""

    id: UUID = Field(examples=[_ID])
    kind: EndpointKind = Field(
        description="`project`: registered; `batch`: the `webhook` that batches were submitted with.",
        examples=["project"],
    )
    project_id: str = Field(examples=["6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11"])
    url: str = Field(examples=[_URL])
    types: list[str] = Field(description="The types of events that it is sent.", examples=[["job.done", "job.error"]])
    description: str = Field(examples=["the lab's"])
    created_at: datetime = Field(examples=[_NOW])
    failing_since: datetime | None = Field(
        description="Since when each attempt has failed; null while they do not.", examples=[None]
    )
    disabled_at: datetime | None = Field(description="Since when nothing is sent there.", examples=[None])
    disabled_because: str | None = Field(description="Why, for people.", examples=[None])

    @classmethod
    def of(cls, endpoint: Endpoint) -> Webhook:
        return cls(
            id=endpoint.id,
            kind=endpoint.kind,
            project_id=endpoint.project,
            url=endpoint.url,
            types=sorted(endpoint.subscribed),
            description=endpoint.description,
            created_at=endpoint.created,
            failing_since=endpoint.failing,
            disabled_at=endpoint.disabled,
            disabled_because=endpoint.disabled_why,
        )


class WebhookSecret(Schema):
    """With what a receiver verifies: HMAC-SHA256 by the secret, and ed25519 by the public key, if it has one."""

    secret: str = Field(examples=["whsec_…"])
    public_key: str | None = Field(examples=[None])
    older_until: datetime | None = Field(
        description="Until when older secrets sign beside it, after a rotation.", examples=[None]
    )

    @classmethod
    def of(cls, shown: ShownSecret) -> WebhookSecret:
        return cls(secret=shown.secret, public_key=shown.public_key, older_until=shown.older_until)


class MadeWebhook(Schema):
    """A new endpoint, and its secret."""

    webhook: Webhook
    secret: WebhookSecret


class Attempt(Schema):
    """One attempt to deliver."""

    number: Count = Field(examples=[1])
    at: datetime = Field(examples=[_NOW])
    status: int | None = Field(description="HTTP's; null when no answer came.", examples=[503])
    milliseconds: Count = Field(examples=[37])
    error: str | None = Field(description="Why no answer came.", examples=[None])
    answer: str = Field(description="The first characters of the answer.", examples=["busy"])
    next_at: datetime | None = Field(description="When the next was due; null: it was the last.", examples=[_SOON])

    @classmethod
    def of(cls, attempt: deliveries.Attempt) -> Attempt:
        return cls(
            number=attempt.number,
            at=moment_of(attempt.at_ms),
            status=attempt.status,
            milliseconds=attempt.ms,
            error=attempt.error,
            answer=attempt.answer,
            next_at=moment_of(attempt.next_ms),
        )


class Delivery(Schema):
    """What became of one event for one endpoint."""

    id: UUID = Field(examples=[_DELIVERY])
    endpoint_id: UUID = Field(examples=[_ID])
    project_id: str = Field(examples=["6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11"])
    batch_id: UUID | None = Field(examples=[_BATCH])
    event_id: str = Field(description="What the receiver has as `webhook-id`.", examples=[_EVENT])
    type: str = Field(examples=["job.done"])
    sequence: int | None = Field(description="Number of the event in its batch.", examples=[5])
    status: DeliveryStatus = Field(
        description="`pending`: an attempt is to come; `delivered`; `exhausted`: all failed; `held`: the endpoint is "
        "disabled.",
        examples=["pending"],
    )
    attempts: Count = Field(description="Of the present schedule: sending again begins a new one.", examples=[1])
    log: list[Attempt] = Field(description="All attempts there ever were, oldest first.")
    created_at: datetime = Field(examples=[_NOW])
    due_at: datetime | None = Field(description="When the next attempt is due.", examples=[_SOON])

    @classmethod
    def of(cls, found: delivery_log.Delivery) -> Delivery:
        return cls(**_fields(found))


class DeliveryWithBody(Delivery):
    """The same, and what is sent."""

    body: str = Field(description="JSON, to the byte as it is signed.", examples=['{"type":"job.done"}'])

    @classmethod
    def of(cls, found: delivery_log.Delivery) -> DeliveryWithBody:
        return cls(**_fields(found), body=found.body or "")


class DeliveryPage(Schema):
    """Deliveries, newest first."""

    deliveries: list[Delivery]
    after: str | None = Field(description="What gives the next page; null: this is the last.", examples=[None])


class Resent(Schema):
    """How many deliveries are sent again."""

    count: Count = Field(examples=[12])


def _fields(found: delivery_log.Delivery) -> dict[str, Any]:
    return {
        "id": found.id,
        "endpoint_id": found.endpoint,
        "project_id": found.project,
        "batch_id": found.batch,
        "event_id": found.event,
        "type": found.type,
        "sequence": found.sequence,
        "status": found.status,
        "attempts": found.attempts,
        "log": [Attempt.of(attempt) for attempt in found.log],
        "created_at": found.created,
        "due_at": found.due,
    }
