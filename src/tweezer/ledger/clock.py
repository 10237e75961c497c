"""Times as the ledger's tables hold them: milliseconds since 1970."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import overload


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@overload
def moment_of(milliseconds: int) -> datetime: ...
@overload
def moment_of(milliseconds: None) -> None: ...


def moment_of(milliseconds: int | None) -> datetime | None:
    """The UTC time of a column."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
