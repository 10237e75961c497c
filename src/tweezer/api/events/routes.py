"""The routes of the event feed: pages that are held until there are events, and streams."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from tweezer.api.access.auth import STREAM_END
from tweezer.api.access.dependencies import (
    BatchId,
    Caller,
    LiveStore,
    Queue,
    ResultsLinks,
    StreamReader,
    WaitSeconds,
    part,
)
from tweezer.api.batches.filters import VALUES_MAX, Text
from tweezer.api.events.streams import FeedFollowers, FollowedEvents
from tweezer.api.http.openapi import Responses, describe_failures, describe_route
from tweezer.api.http.responses import Moment, created, doc, success
from tweezer.ledger.positions import Cursor
from tweezer.ledger.queries.feed import LIMIT_MAX, PAGE_LIMIT, Selection
from tweezer.model.errors import InvalidInput
from tweezer.model.webhooks import EventType
from tweezer.store.guards import STREAM_TICKET_S

router = APIRouter(tags=["events"], responses=describe_failures(422, 503))

_STREAM_DOCS: Responses = {
    200: {
        "description": "Server-sent events: `id` is the id of an event, `event` its type, `data` the event as JSON.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


_BATCH_ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
_ID = f"{_BATCH_ID}:5:1795341602000000"


class EventResponse(msgspec.Struct, frozen=True):
    """An event. The fields of `data` depend on its type; a webhook of the same event has more."""

    id: Annotated[str, doc("Id of the event; the same in the feed, in streams and in webhooks.", _ID)]
    type: Annotated[
        str,
        Meta(
            description="Type of the event; the last two only with `internal`.",
            examples=["job.done"],
            extra_json_schema={"enum": [*EventType, "job.pending", "batch.pending"]},
        ),
    ]
    timestamp: Annotated[Moment, doc("When the event happened.")]
    data: Annotated[dict[str, Any], doc("Data of the event.", {"batch_id": _BATCH_ID, "status": "DONE", "sequence": 5})]


class StreamTicketResponse(msgspec.Struct, frozen=True):
    """A ticket that opens a stream once."""

    ticket: Annotated[str, doc("The ticket; send it as the parameter `ticket` of the stream.", "R4nd0m…")]
    url: Annotated[
        str,
        doc(
            "Absolute URL of the stream with the ticket. More parameters may follow, such as `&after=now`.",
            "http://127.0.0.1:8000/api/v2/events/stream?ticket=R4nd0m…",
        ),
    ]
    expires_in: Annotated[
        int, doc("How long the ticket is valid, in seconds; a stream that it has opened continues.", STREAM_TICKET_S)
    ]


_NEXT = Annotated[str, doc("Cursor: send it as `after` to get the events that follow these.", "1795341602000-0")]


class EventsQuery(BaseModel):
    """Which events to follow."""

    model_config = ConfigDict(frozen=True)

    after: str | None = Field(
        None,
        max_length=200,
        description="Return the events after this one: the id of an event, or `next` of an earlier response; `now` for "
        "events from now on. Default: from the beginning.",
    )
    type: tuple[EventType, ...] = Field(
        (),
        max_length=VALUES_MAX,
        description="Type of events; all types by default. May be repeated: any of the values matches.",
    )

    @property
    def types(self) -> frozenset[str]:
        return frozenset(self.type)


class ProjectEventsQuery(EventsQuery):
    """Events of projects to follow."""

    project_id: tuple[Text, ...] = Field(
        (),
        max_length=VALUES_MAX,
        description="Id of a project; all projects of the caller by default. May be repeated. A project to which the "
        "key gives no access matches nothing.",
    )


class _EventPageQuery(BaseModel):
    limit: int = Field(PAGE_LIMIT, ge=1, le=LIMIT_MAX, description="The largest number of events to return.")
    internal: bool = Field(
        False,
        description="Without `type`: also return the events of a job or a batch that waits again (`job.pending`, "
        "`batch.pending`), which streams and webhooks leave out.",
    )


class ProjectEventsPageQuery(ProjectEventsQuery, _EventPageQuery):
    """A page of events of projects."""


class EventsPageQuery(EventsQuery, _EventPageQuery):
    """A page of events."""


Followers = Annotated[FeedFollowers, part("following")]
LastEventId = Annotated[
    str | None,
    Header(
        description="The last id that the client received from an interrupted stream; takes precedence over `after`.",
        max_length=200,
    ),
]


@router.get("/api/v2/events", summary="List events", **describe_route(list[EventResponse], next=_NEXT))
async def list_events(
    query: Annotated[ProjectEventsPageQuery, Query()],
    caller: Caller,
    following: Followers,
    wait_s: WaitSeconds,
    request: Request,
) -> Response:
    """Return the events of the caller's projects and of the devices, oldest first. The request is held until there are
    events, for `wait_s` seconds at most. To continue, send `next` of the
    response as `after`, even if it contains no events."""
    watched = _follow_projects(caller, query.project_id)
    return await _answer_page(request, caller, following, watched, query, wait_s)


@router.get(
    "/api/v2/batches/{batch_id}/events",
    summary="List the events of a batch",
    **describe_route(list[EventResponse], 404, next=_NEXT),
)
async def list_batch_events(
    batch_id: BatchId,
    query: Annotated[EventsPageQuery, Query()],
    caller: Caller,
    live: LiveStore,
    following: Followers,
    wait_s: WaitSeconds,
    request: Request,
) -> Response:
    """Return the events of the batch and its jobs, oldest first. The request is held as for `GET /api/v2/events`,
    unless the batch has ended."""
    watched = await _follow_batch(live, caller, batch_id)
    return await _answer_page(request, caller, following, watched, query, wait_s)


@router.get("/api/v2/events/stream", summary="Stream events", response_class=Response, responses=_STREAM_DOCS)
async def stream_events(
    query: Annotated[ProjectEventsQuery, Query()],
    caller: StreamReader,
    following: Followers,
    request: Request,
    last_event_id: LastEventId = None,
) -> Response:
    """Send the same events as `GET /api/v2/events`, as server-sent events. The stream ends when the client disconnects
    or its key is revoked."""

    async def watch() -> FollowedEvents:
        return _follow_projects(caller, query.project_id)

    cursor = await _cursor(following, await watch(), query.after, last_event_id)
    return _EventStream(following, caller.account, following.stream(watch, cursor, query.types, request.scope))


@router.get(
    "/api/v2/batches/{batch_id}/events/stream",
    summary="Stream the events of a batch",
    response_class=Response,
    responses={
        **_STREAM_DOCS,
        204: {"description": "The batch has ended, and the client has received all events."},
        **describe_failures(404),
    },
)
async def stream_batch_events(
    batch_id: BatchId,
    query: Annotated[EventsQuery, Query()],
    caller: StreamReader,
    live: LiveStore,
    following: Followers,
    request: Request,
    last_event_id: LastEventId = None,
) -> Response:
    """Send the events of the batch as server-sent events. When the batch has ended, the stream sends an `end` event
    and closes. A client that reconnects after that receives 204, after which a browser does not reconnect."""

    async def watch() -> FollowedEvents:
        return await _follow_batch(live, caller, batch_id)

    watched = await watch()
    cursor = await _cursor(following, watched, query.after, last_event_id)
    if await following.is_over(watched, cursor, query.types):
        return Response(status_code=204)
    return _EventStream(following, caller.account, following.stream(watch, cursor, query.types, request.scope))


@router.post(
    "/api/v2/events/stream/ticket",
    summary="Get a ticket for the stream of events",
    **describe_route(StreamTicketResponse, 400, creates=True),
)
async def create_stream_ticket(request: Request, caller: Caller, queue: Queue, links: ResultsLinks) -> Response:
    """Return a ticket with which a browser opens `GET /api/v2/events/stream` once, because its `EventSource` cannot
    send a key. The stream has the rights of the key of this request, and ends when the key is revoked."""
    return await _issue_ticket(request, caller, queue, links, f"/api/v2{STREAM_END}")


@router.post(
    "/api/v2/batches/{batch_id}/events/stream/ticket",
    summary="Get a ticket for the stream of a batch",
    **describe_route(StreamTicketResponse, 400, 404, creates=True),
)
async def create_batch_stream_ticket(
    request: Request, batch_id: BatchId, caller: Caller, live: LiveStore, queue: Queue, links: ResultsLinks
) -> Response:
    """Return a ticket with which a browser opens `GET /api/v2/batches/{batch_id}/events/stream` once, as for the stream
    of all events."""
    batch = await live.batch(caller, batch_id)
    return await _issue_ticket(request, caller, queue, links, f"/api/v2/batches/{batch.id}{STREAM_END}")


async def _issue_ticket(request: Request, caller: Caller, queue: Queue, links: ResultsLinks, path: str) -> Response:
    url = f"{links.find_base(request)}{path}"
    ticket = await queue.stream_tickets.issue(caller.key, path)
    return created(StreamTicketResponse(ticket, f"{url}?ticket={ticket}", STREAM_TICKET_S))


async def _answer_page(
    request: Request,
    caller: Caller,
    following: FeedFollowers,
    watched: FollowedEvents,
    query: ProjectEventsPageQuery | EventsPageQuery,
    wait_s: float,
) -> Response:
    cursor = await _cursor(following, watched, query.after)
    page = await following.page(
        watched,
        cursor,
        query.types,
        internal=query.internal,
        limit=query.limit,
        wait_s=wait_s,
        account=caller.account,
        receive=request.receive,
    )
    return success(page.events, next=str(page.next))


class _EventStream(StreamingResponse):
    """A stream, which counts towards the limit of its account until it ends. Raises RequestRejected (429)."""

    media_type = "text/event-stream"

    def __init__(self, following: FeedFollowers, account: str, frames: AsyncIterator[bytes]) -> None:
        following.enter(account)
        self._leave = functools.partial(following.leave, account)
        self._frames = frames
        super().__init__(frames, headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with contextlib.aclosing(cast(Any, self._frames)):
                await super().__call__(scope, receive, send)
        finally:
            self._leave()


def _follow_projects(caller: Caller, wanted: tuple[str, ...]) -> FollowedEvents:
    if wanted:
        return FollowedEvents(Selection(frozenset(it for it in wanted if caller.sees(it))))
    return FollowedEvents(Selection(None if caller.sees_all else caller.projects))


async def _follow_batch(live: LiveStore, caller: Caller, batch_id: BatchId) -> FollowedEvents:
    record = await live.batch(caller, batch_id)
    since_us = round(record.created.timestamp() * 1_000_000)
    return FollowedEvents(Selection(frozenset({record.project}), batch_id, since_us), record.status.terminal)


async def _cursor(
    following: FeedFollowers, watched: FollowedEvents, after: str | None, last_event_id: str | None = None
) -> Cursor:
    try:
        return await following.feed.cursor(last_event_id or after, watched.selection)
    except InvalidInput as error:
        place = ("header", "last-event-id") if last_event_id else ("query", error.field)
        raise RequestValidationError([{"type": "invalid", "loc": place, "msg": error.problem}]) from error
