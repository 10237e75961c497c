"""An error of the library crosses the API and is the same error in the client."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from tweezer.api.http.responses import RequestRejected, error_response
from tweezer.model.errors import (
    Conflict,
    InvalidInput,
    NewerRecord,
    NotFound,
    QueueFull,
    TweezerError,
    Unavailable,
)
from tweezer.model.quotas import QuotaExceeded
from tweezer.transports.http_session import _as_error, _Failure, _retry_after_s

BATCH = UUID("01a20000-0000-8000-8000-000000000000")


def crossed(error: TweezerError) -> TweezerError:
    """Return the error that the client makes of the response to an error."""
    response = error_response(error)
    problem = msgspec.json.decode(bytes(response.body), type=_Failure).data
    return _as_error(response.status_code, problem, _retry_after_s(response.headers), "https://a.lab")


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("jobs[3].variables.omega", "expected 3 values, got 2"),
        InvalidInput("tags", "tags: is given twice"),
        NotFound("batch", str(BATCH)),
        NotFound("maintenance", "5f3a90c1"),
        Conflict(f"batch {BATCH} has ended", code="terminal"),
        Conflict("the idempotency key was already used", code="idempotency"),
        NewerRecord(BATCH, 2, "3"),
        QueueFull("no new work is accepted for now: the backlog of NULL is full"),
        QuotaExceeded("ours", "queued_jobs", 3, 0, 2),
        QuotaExceeded("ours", "queued_bytes", 300 << 20, 299 << 20, 2 << 20),
        QuotaExceeded("ours", "queued_jobs", 3, 0, 5),
        QuotaExceeded("ours", "result_bytes", 3 << 20, 3 << 20, 0),
        Unavailable("Redis has not responded for 2 s"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.code}",
)
def test_an_error_is_the_same_after_it_crossed_the_api(error: TweezerError) -> None:
    found = crossed(error)
    assert type(found) is type(error)
    assert (str(found), found.message, found.code) == (str(error), error.message, error.code)
    assert found.retryable is error.retryable
    for field in ("field", "problem", "project", "quota", "limit", "used", "asked"):
        assert getattr(found, field, None) == getattr(error, field, None)


@pytest.mark.parametrize(
    ("status", "code", "field", "kind", "named"),
    [
        (413, "too_many_jobs", "jobs", InvalidInput, "jobs"),
        (413, "body_too_large", "body", InvalidInput, "body"),
        (413, "sequence_too_long", "sequence_builder", InvalidInput, "sequence"),
        (400, "not_json", "device_type", InvalidInput, "device"),
        (429, "too_many_requests", None, Unavailable, None),
        (503, "too_many_bodies", "body", Unavailable, None),
        (401, "unauthorized", None, TweezerError, None),
        (403, "forbidden", None, TweezerError, None),
        (403, "foreign_project", "project_id", TweezerError, None),
        (404, "no_such_route", None, TweezerError, None),
        (500, "internal", None, TweezerError, None),
    ],
)
def test_what_only_the_api_refuses_has_the_nearest_class(
    status: int, code: str, field: str | None, kind: type[TweezerError], named: str | None
) -> None:
    found = crossed(RequestRejected(status, code, "is too much", field=field, headers={"Retry-After": "3"}))
    assert type(found) is kind
    assert getattr(found, "field", None) == named
    if kind is TweezerError:
        assert (found.code, found.retryable) == (code, False)
    if isinstance(found, Unavailable):
        assert found.retry_after_s == 3


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [("", 0), ("2", 2), (" 7 ", 7), ("-1", 0), ("1.5", 0), ("soon", 0), ("9" * 20, 0), ("86400", 3600)],
)
def test_a_time_to_wait_is_bounded(header: str, wait_s: float) -> None:
    assert _retry_after_s({"Retry-After": header}) == wait_s
