"""Values that were of use lately, within a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """A mapping that forgets what was used longest ago once the weights of its values exceed ``budget``."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._spent = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, weight: int = 1) -> None:
        """Keep a value; one that alone exceeds the budget is not kept."""
        previous = self._entries.pop(key, None)
        if previous is not None:
            self._spent -= previous[1]
        if weight > self._budget:
            return
        self._entries[key] = value, weight
        self._spent += weight
        while self._spent > self._budget:
            _, (_, freed) = self._entries.popitem(last=False)
            self._spent -= freed
