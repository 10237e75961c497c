"""How many requests a user or project may make: a token bucket each, in the memory of this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tweezer.api.http.responses import RequestRefused

_ACCOUNTS_KEPT = 10_000
_ROUNDING_S = 1e-9


class Rates:
    """Requests of each account (``Principal.account``): ``per_s`` a second over time, ``burst`` at once."""

    def __init__(self, per_s: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._full_at: dict[str, float] = {}  # all of a bucket: when it will be full again; full ones may be dropped
        self._kept_most = _ACCOUNTS_KEPT

    def spend(self, account: str) -> None:
        """Count a request of the account. Raises RequestRefused, a 429, which counts nothing."""
        now = self._clock()
        full_at = max(self._full_at.get(account, now), now) + 1 / self._per_s
        wait_s = full_at - now - self._burst / self._per_s
        if wait_s > _ROUNDING_S:
            raise RequestRefused(
                429,
                "too_many_requests",
                f"{account} has made more than {self._per_s:g} requests a second (and {self._burst} at once), all keys "
                "and sessions together; wait as long as Retry-After says",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        self._full_at[account] = full_at
        if len(self._full_at) > self._kept_most:
            self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
            self._kept_most = max(_ACCOUNTS_KEPT, 2 * len(self._full_at))
