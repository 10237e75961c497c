"""How long to wait before trying again."""

from __future__ import annotations

import random

import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """Exponential backoff with full jitter, in seconds.

    The delay before try *n* (1-based) is uniform between half and all of
    ``min(cap_s, base_s * 2 ** (n - 1))``, so that many waiters do not come back together.
    """

    base_s: float = 0.1
    cap_s: float = 5.0

    def delay_s(self, attempt: int) -> float:
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 30))
        return ceiling * random.uniform(0.5, 1.0)
