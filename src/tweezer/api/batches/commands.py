"""What routes that change the queue are given, and what they answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, cast
from uuid import UUID

from fastapi import Depends, Header, Request, Response

from tweezer.api.batches.filters import NO_CONTROLS
from tweezer.api.batches.read import EMBEDDED_JOBS_MAX
from tweezer.api.batches.schemas import BatchResponse
from tweezer.api.http.bodies import Bodies
from tweezer.api.http.responses import success
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal
from tweezer.model.checks import MAX_KEY_LENGTH
from tweezer.model.errors import Conflict, NotFound, Unavailable
from tweezer.store.connection import Store
from tweezer.store.records import BatchRecord


async def _store(request: Request) -> Store:
    return cast(Store, request.app.state.store)


async def _bodies(request: Request) -> Bodies:
    return cast(Bodies, request.app.state.bodies)


Queue = Annotated[Store, Depends(_store)]
ReadBodies = Annotated[Bodies, Depends(_bodies)]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=MAX_KEY_LENGTH,
        pattern=NO_CONTROLS,
        description="Calls of a project with the same key within a day count once; with other content they conflict.",
    ),
]


async def answer_batch(live: ReadModel, caller: Principal, batch_id: UUID) -> Response:
    """The batch as it stands after a command."""
    record, jobs = await live.batch_with_jobs(caller, batch_id, jobs_max=EMBEDDED_JOBS_MAX)
    return success(BatchResponse.from_records(record, jobs))


def asker(caller: Principal) -> str:
    """Who is behind a request, as it is noted of a cancel: the user if the key is of one, and the key's id."""
    key = f"key {caller.key}"
    return key if caller.user is None else f"{caller.user} ({key})"


def ended(kind: str, identity: UUID) -> Conflict:
    """The error for what has ended and so cannot be changed."""
    return Conflict(f"{kind} {identity} has ended", code="terminal")


@contextlib.asynccontextmanager
async def unless_forgotten(batch: BatchRecord) -> AsyncIterator[None]:
    """Says of a batch that the caller sees but Redis does not know what it is: it has ended and was forgotten."""
    try:
        yield
    except NotFound:
        if not batch.status.terminal:  # lost with Redis' last second, and not put back yet
            raise Unavailable(f"batch {batch.id} is being restored; try again") from None
        raise ended("batch", batch.id) from None
