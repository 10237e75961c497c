"""When an attempt that failed is made again."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

_RETRY_AFTER_MAX_S = 86_400.0
_JITTER = 0.2


class Schedule(msgspec.Struct, frozen=True):
    """delays_s: before each attempt, the first one's among them."""

    delays_s: Sequence[float]

    def next_s(self, attempts: int, retry_after_s: float | None = None) -> float | None:
        """How long to wait after so many attempts; None: that was the last. Up to a fifth longer than said, so that
        what failed together does not come back together; never sooner than the receiver asked for."""
        if attempts >= len(self.delays_s):
            return None
        delay_s = self.delays_s[attempts] * random.uniform(1.0, 1.0 + _JITTER)
        return max(delay_s, min(retry_after_s or 0.0, _RETRY_AFTER_MAX_S))
