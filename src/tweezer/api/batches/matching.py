"""Commands on all batches that match the parameters of lists: cancel, retry, archive, delete."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field

from tweezer.api.access.dependencies import Ledger, LiveStore, Queue, Submitter
from tweezer.api.batches.commands import describe_caller
from tweezer.api.batches.filters import NO_CONTROLS, BatchQuery
from tweezer.api.batches.schemas import BulkOutcomeResponse
from tweezer.api.http.openapi import describe_failures, describe_route
from tweezer.api.http.responses import success
from tweezer.api.read_model import ReadModel
from tweezer.ledger.access.credentials import Principal
from tweezer.ledger.bulk_actions import BulkAction, BulkActions, BulkRequest
from tweezer.ledger.database import Database
from tweezer.ledger.repetition import UNSUCCESSFUL, check_unsuccessful
from tweezer.model.cancels import BY_LENGTH_MAX
from tweezer.model.lifecycle import JobStatus
from tweezer.store.connection import Store

router = APIRouter(tags=["batches"], responses=describe_failures(400, 403, 422, 503))

_CURSOR_LENGTH = 60


class _MatchingQuery(BatchQuery):
    """The filter of the batches to act on, and how."""

    all: bool = Field(
        False, description="Act on every batch of the caller's projects, if there is no other parameter that selects."
    )
    dry_run: bool = Field(False, description="Change nothing, and return what would be done.")
    after: str = Field(
        "",
        max_length=_CURSOR_LENGTH,
        pattern=NO_CONTROLS,
        description="Continue here: `next` of the response before, with the same parameters.",
    )

    def request(self, action: BulkAction, caller: Principal, by: str = "") -> BulkRequest:
        return BulkRequest(
            action=action,
            wanted=self.filter,
            every=self.all,
            dry_run=self.dry_run,
            after=self.after,
            by=describe_caller(caller, by),
        )


class _CancelQuery(_MatchingQuery):
    by: str = Field(
        "",
        max_length=BY_LENGTH_MAX,
        pattern=NO_CONTROLS,
        description="Name of the person or program that makes the request, to record beside the key.",
    )


class _RetryQuery(_MatchingQuery):
    job_status: tuple[JobStatus, ...] = Field(
        UNSUCCESSFUL,
        max_length=len(UNSUCCESSFUL),
        description="Status of the jobs to repeat: `ERROR`, `CANCELED`, or both. May be repeated.",
    )


@router.post(
    "/api/v2/batches/cancel-matching",
    summary="Cancel all batches that match",
    **describe_route(BulkOutcomeResponse),
)
async def cancel_matching(
    query: Annotated[_CancelQuery, Query()], caller: Submitter, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """Cancel the batches that match the parameters and have not ended, as
    `PATCH /api/v2/batches/{batch_id}/cancel` does.

    One request handles 1,000 batches at most, or fewer if they take ten seconds. While `next` is not null, repeat the
    request with it as `after`. Batches that are submitted after the first request began are left alone. The request is
    safe to repeat.
    """
    request = query.request(BulkAction.CANCEL, caller, query.by)
    return await _act(queue, live, ledger, caller, request)


@router.post(
    "/api/v2/batches/retry-matching",
    summary="Retry the failed jobs of all batches that match",
    **describe_route(BulkOutcomeResponse),
)
async def retry_matching(
    query: Annotated[_RetryQuery, Query()], caller: Submitter, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """Submit the failed and cancelled jobs of each ended batch that matches the parameters in a new batch, as
    `POST /api/v1/batches/{batch_id}/rebatch` does. A batch that another one repeats already is left out, so the request
    is safe to repeat.

    One request handles 1,000 batches at most, or fewer if they take ten seconds. While `next` is not null, repeat the
    request with it as `after`. New batches are not retried in turn.
    """
    statuses = check_unsuccessful("job_status", query.job_status)
    request = msgspec.structs.replace(query.request(BulkAction.RETRY, caller), job_statuses=statuses)
    return await _act(queue, live, ledger, caller, request)


@router.post(
    "/api/v2/batches/archive-matching",
    summary="Archive all ended batches that match",
    **describe_route(BulkOutcomeResponse),
)
async def archive_matching(
    query: Annotated[_MatchingQuery, Query()], caller: Submitter, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """Archive the ended batches that match the parameters, as `POST /api/tasks/{task_id}/archive` does: the list of
    tasks and its counts leave them out. Those that have not ended are left alone, and listed in `live`; `already` has
    those that were archived before.

    One request handles 1,000 batches at most, or fewer if they take ten seconds. While `next` is not null, repeat the
    request with it as `after`. The request is safe to repeat.
    """
    return await _act(queue, live, ledger, caller, query.request(BulkAction.ARCHIVE, caller))


@router.post(
    "/api/v2/batches/delete-matching",
    summary="Delete all ended batches that match",
    **describe_route(BulkOutcomeResponse),
)
async def delete_matching(
    query: Annotated[_MatchingQuery, Query()], caller: Submitter, queue: Queue, live: LiveStore, ledger: Ledger
) -> Response:
    """Permanently delete the ended batches that match the parameters, with their jobs and results. Those that have not
    ended are kept, and listed in `live`.

    One request handles 1,000 batches at most, or fewer if they take ten seconds. While `next` is not null, repeat the
    request with it as `after`. The request is safe to repeat.
    """
    return await _act(queue, live, ledger, caller, query.request(BulkAction.DELETE, caller))


async def _act(queue: Store, live: ReadModel, ledger: Database, caller: Principal, request: BulkRequest) -> Response:
    found = await BulkActions(queue, live, ledger, caller).run(request)
    return success(BulkOutcomeResponse(**msgspec.structs.asdict(found)))
