"""Quotas: how much of the shared resources one project may use.

Each quota is a row of :data:`QUOTAS`. Scripts count its use in fields of the project's hash in Redis, and refuse calls
that would exceed it. The default limit is a setting; operators can set a different limit for a project.
"""

from __future__ import annotations

import msgspec

from tweezer.model.errors import TweezerError


class Quota(msgspec.Struct, frozen=True):
    """One quota.

    counters: the fields of the project's hash in Redis whose sum is the use. unit: 'bytes', or '' for a number of
    objects. holds: what is limited, as the end of "project x may have n …". advice: what users can do when it is
    used up.
    """

    name: str
    counters: tuple[str, ...]
    unit: str
    holds: str
    advice: str
    passes: bool = True
    """Whether the use decreases as work ends, so that the same call may succeed later."""

    def amount(self, number: int) -> str:
        """Format a number with its unit, for people: ``12``, ``1.5 MiB``."""
        if self.unit != "bytes":
            return str(number)
        return f"{number / (1 << 20):.1f} MiB" if number >= 1 << 20 else f"{number} bytes"


_WAIT = "wait until some have ended, or cancel some"

QUOTAS = (
    Quota("queued_jobs", ("jobs",), "", "queued jobs", _WAIT),
    Quota("queued_bytes", ("bytes",), "bytes", "sequences and jobs of batches that have not ended", _WAIT),
    Quota(
        "result_bytes",
        ("results", "kept"),
        "bytes",
        "results",
        "delete batches whose results are no longer needed, or ask the operator for a higher limit",
        passes=False,
    ),
)
"""All quotas, in the order in which they are checked."""

BY_NAME = {quota.name: quota for quota in QUOTAS}

LIMIT_MAX = 10**14
"""The highest limit; Lua's numbers are exact up to slightly more."""

BATCH_BYTES = 1024
"""Approximate size of a batch in Redis without its sequence; it counts towards ``queued_bytes``."""

JOB_BYTES = 64
"""Approximate size of a job in Redis without its values; it counts towards ``queued_bytes``."""

MEMORY_SHARES = 4
"""By default, the queued bytes of a project are limited to 1/MEMORY_SHARES of the memory that Redis has for work."""


class Usage(msgspec.Struct, frozen=True):
    """The use of one quota by a project. limit: 0 means unlimited. own: whether the limit is not the default."""

    quota: str
    used: int
    limit: int
    own: bool = False


class QuotaExceeded(TweezerError):
    """A quota of the project is used up, or the call alone exceeds it. Nothing was written.

    Attributes:
        project: Id of the project.
        quota: ``queued_jobs``, ``queued_bytes`` or ``result_bytes``.
        limit: The limit of the quota, a number of jobs or bytes.
        used: How much of it is in use.
        asked: How much the call would add.
        retryable: Whether the same call may succeed later, when work has ended.
    """

    code = "quota"
    retryable = True

    def __init__(self, project: str, quota: str, limit: int, used: int, asked: int) -> None:
        self.project, self.quota = project, quota
        self.limit, self.used, self.asked = limit, used, asked
        about = BY_NAME[quota]
        self.retryable = about.passes and asked <= limit
        of = " of" if about.unit else ""
        allowed = f"{quota}: project {project} may have {about.amount(limit)}{of} {about.holds}"
        if asked > limit and about.passes:
            problem = f"this call alone adds {about.amount(asked)}; split it, or ask the operator for a higher limit"
        else:
            more = f" and this call adds {about.amount(asked)}" if about.passes else ""
            problem = f"{about.amount(used)} are in use{more}; {about.advice}"
        super().__init__(f"{allowed}; {problem}")
