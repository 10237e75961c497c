"""Quotas: how much of what all projects share one project may use.

A quota is a row of :data:`QUOTAS`: scripts count its use in the fields of the project's hash in Redis, and refuse what
would exceed it. Its default is a setting; operators can give one project another limit.
"""

from __future__ import annotations

import msgspec

from tweezer.model.errors import TweezerError


class Quota(msgspec.Struct, frozen=True):
    """One quota.

    counters: fields of the project's hash in Redis whose sum is in use. unit: '' counts things, else 'bytes'.
    holds: what a project "may have" of it, and advice: what its user can do when it is used up.
    """

    name: str
    counters: tuple[str, ...]
    unit: str
    holds: str
    advice: str
    passes: bool = True
    """Whether use goes down by itself as work ends, so that the same call may succeed later."""

    def amount(self, number: int) -> str:
        """The number with its unit, for people: ``12 jobs``, ``1.5 MiB``."""
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
"""The highest limit; Lua's numbers are exact up to a little more."""

BATCH_BYTES = 1024
"""What a batch takes in Redis beside its sequence, about: counted to ``queued_bytes``."""

JOB_BYTES = 64
"""What a job takes in Redis beside its values, about: counted to ``queued_bytes``."""

MEMORY_SHARES = 4
"""By default no project's queued bytes may take more than this part of the memory that Redis may fill with work."""


class Usage(msgspec.Struct, frozen=True):
    """One quota of a project. limit: 0 is none. own: the limit was set for this project, else it is the default."""

    quota: str
    used: int
    limit: int
    own: bool = False


class QuotaExceeded(TweezerError):
    """A quota of the project is used up, or the call alone is more than it allows: nothing was written.

    ``quota``, ``limit``, ``used`` and ``asked`` say which and by how much; ``retryable`` whether it may pass by itself.
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
