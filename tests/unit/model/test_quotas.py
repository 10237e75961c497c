"""The error of a quota: its text, and that it can be sent between processes."""

from __future__ import annotations

import pickle

import pytest

from tweezer.model.quotas import QUOTAS, QuotaExceeded
from tweezer.store.scripts import StoreConfig


def test_the_error_survives_pickle() -> None:
    error = QuotaExceeded("a", "queued_jobs", 3, 2, 2)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # made here
    assert (copy.message, copy.retryable, copy.quota) == (error.message, True, "queued_jobs")


@pytest.mark.parametrize(
    ("error", "allowed", "problem"),
    [
        (
            QuotaExceeded("lab", "queued_bytes", 40 << 20, 39 << 20, 2 << 20),
            "queued_bytes: project lab may have 40.0 MiB of sequences and jobs of batches that have not ended; ",
            "39.0 MiB are in use and this call adds 2.0 MiB; wait until some have ended, or cancel some",
        ),
        (
            QuotaExceeded("lab", "queued_jobs", 3, 0, 4),
            "queued_jobs: project lab may have 3 queued jobs; ",
            "this call alone adds 4; split it, or ask the operator for a higher limit",
        ),
        (
            QuotaExceeded("lab", "result_bytes", 3 << 20, 3 << 20, 0),
            "result_bytes: project lab may have 3.0 MiB of results; 3.0 MiB are in use; ",
            "delete batches whose results are no longer needed, or ask the operator for a higher limit",
        ),
    ],
)
def test_the_error_names_the_quota_its_limit_and_what_is_used(error: QuotaExceeded, allowed: str, problem: str) -> None:
    assert error.message == allowed + problem


def test_each_quota_has_a_default() -> None:
    assert {quota.name for quota in QUOTAS} <= StoreConfig().stored().keys()
