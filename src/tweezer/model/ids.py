"""Ids of batches, jobs, workers and projects.

A batch id is a UUID version 8 (RFC 9562): 48 bits of milliseconds since 1970, 50 random bits, and
24 low bits of zero. A job's id is its batch's id plus its index, so a job id alone identifies its batch,
and ids sort by time.

People see short ids: the 50 random bits of a batch's id as ten characters of Crockford's base 32, such as
``5m2q0xw8kd``, and ``5m2q0xw8kd/3`` for its job 3.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from uuid import UUID, uuid5

INDEX_BITS = 24
_INDEX_MASK = (1 << INDEX_BITS) - 1
_DEVICES = UUID("b7a4c1de-6f1f-5c8e-9a55-7e11ee5e0001")  # arbitrary: the UUID namespace of device names
DEFAULT_PROJECT = "default"
"""The project of producers and messages that do not name one."""

_PROJECT_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)

SHORT_LENGTH = 10
_SHORT_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
SHORT_ID_PATTERN = rf"[0-9a-hjkmnp-tv-z]{{{SHORT_LENGTH}}}"
_LOOK_ALIKES = str.maketrans("oil", "011")
_LOW_BITS = 38  # of the random bits, below the variant


def new_batch_id() -> UUID:
    """Return a new batch id. It sorts after ids that were made at least a millisecond earlier."""
    milliseconds = time.time_ns() // 1_000_000 & ((1 << 48) - 1)
    high = milliseconds << 16 | 8 << 12 | secrets.randbits(12)
    low = 0b10 << 62 | secrets.randbits(38) << INDEX_BITS
    return UUID(int=high << 64 | low)


def created_s(batch_id: UUID) -> float:
    """Return when the id of a batch was made, in seconds since 1970."""
    return (batch_id.int >> 80) / 1000


def job_id(batch_id: UUID, index: int) -> UUID:
    """Return the id of the job with this index (from 0) in the batch."""
    if not 0 <= index <= _INDEX_MASK:
        raise ValueError(f"a job index must be 0 to {_INDEX_MASK} (got {index})")
    return UUID(int=batch_id.int | index)


def split_job_id(job: UUID) -> tuple[UUID, int]:
    """Split a job id into its batch's id and its index within the batch."""
    return UUID(int=job.int & ~_INDEX_MASK), job.int & _INDEX_MASK


def last_job_id(batch_id: UUID) -> UUID:
    """Return the greatest possible job id of a batch: the ids of its jobs range from the batch's id to this one."""
    return UUID(int=batch_id.int | _INDEX_MASK)


def short_id(batch: UUID) -> str:
    """Return the short id of a batch (or of a job's batch): the random bits of its id in Crockford's base 32."""
    high, low = batch.int >> 64 & 0xFFF, batch.int >> INDEX_BITS & ((1 << _LOW_BITS) - 1)
    bits = high << _LOW_BITS | low
    return "".join(_SHORT_LETTERS[bits >> 5 * place & 31] for place in reversed(range(SHORT_LENGTH)))


def short_job_id(job: UUID) -> str:
    """Return the short id of a job: that of its batch, a slash, and its index."""
    return f"{short_id(job)}/{split_job_id(job)[1]}"


def read_short_id(text: str) -> str | None:
    """Return the short id in its usual form; None if the text is not one.

    Upper case is accepted, and so are ``o`` for 0 and ``i`` and ``l`` for 1, as Crockford's base 32 recommends.
    """
    found = text.lower().translate(_LOOK_ALIKES)
    return found if len(text) == SHORT_LENGTH and all(letter in _SHORT_LETTERS for letter in found) else None


def device_id(name: str) -> UUID:
    """Return the id of a device. It is derived from the name, so it never changes."""
    return uuid5(_DEVICES, name)


def new_worker_id() -> str:
    """Return ``host:pid:random``: unique among all workers, readable in a list."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def is_project_id(candidate: object) -> bool:
    """Return whether this is a valid project id."""
    return isinstance(candidate, str) and _PROJECT_ID.fullmatch(candidate) is not None


def is_namespace(candidate: object) -> bool:
    """Return whether this is a valid namespace, the prefix of an installation's keys."""
    return isinstance(candidate, str) and _NAMESPACE.fullmatch(candidate) is not None
