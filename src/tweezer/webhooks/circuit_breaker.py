"""The circuit breaker of an endpoint: after some failures in a row nothing is sent there for a while, then one try."""

from __future__ import annotations

import random

_FAILURES = 5
_COOL_S = 5.0
COOL_MAX_S = 300.0
"""The longest that nothing is sent to a receiver without a try."""


class Breaker:
    """``now`` is monotonic time in seconds. Closed at first."""

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether the last attempts went well enough: nothing holds back."""
        return self._failures < _FAILURES

    def shut_s(self, now: float) -> float:
        """How long nothing is to be sent yet; 0: now."""
        return max(self._open_until - now, 0.0)

    def worked(self) -> None:
        self._failures = 0
        self._open_until = 0.0

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """An attempt failed; the receiver may have said for how long it wants none."""
        if not self.shut_s(now):  # else it was under way when others failed, and says nothing new
            self._failures += 1
            if self._failures >= _FAILURES:
                cool_s = min(_COOL_S * 2.0 ** (self._failures - _FAILURES), COOL_MAX_S)
                self._open_until = now + cool_s * random.uniform(0.5, 1.0)
        if retry_after_s is not None:
            self._open_until = max(self._open_until, now + min(retry_after_s, COOL_MAX_S))
