"""The one bounded cache: values that were used lately, within a budget and, if wanted, up to an age."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Entry(NamedTuple, Generic[Value]):
    value: Value
    weight: int
    since: float


class Recent(Generic[Key, Value]):
    """A mapping that forgets what was used longest ago once the weights of its values exceed ``budget``.

    kept_s: how long a value is returned, in seconds; None while there is room for it.
    """

    def __init__(self, budget: int, *, kept_s: float | None = None) -> None:
        self._budget = budget
        self._kept_s = kept_s
        self._spent = 0
        self._entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._kept_s is not None and time.monotonic() - entry.since >= self._kept_s:
            self.pop(key)
            return None
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: Key, value: Value, weight: int = 1, *, since: float | None = None) -> None:
        """Keep a value; one that alone exceeds the budget is not kept.

        since: the ``time.monotonic()`` from which its age counts, such as when the call began that read it; None: now.
        """
        self.pop(key)
        if weight > self._budget:
            return
        self._entries[key] = _Entry(value, weight, time.monotonic() if since is None else since)
        self._spent += weight
        while self._spent > self._budget:
            _, gone = self._entries.popitem(last=False)
            self._spent -= gone.weight

    def pop(self, key: Key) -> Value | None:
        """Forget a key; return its value, however old, or None."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._spent -= entry.weight
        return entry.value

    def clear(self) -> None:
        self._entries.clear()
        self._spent = 0
