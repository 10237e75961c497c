"""The bounded cache: what it keeps, and for how long."""

from __future__ import annotations

import time

from tweezer.model.lru import Recent


def test_recent_forgets_what_was_used_longest_ago() -> None:
    recent: Recent[str, int] = Recent(budget=10)
    recent.put("a", 1, weight=4)
    recent.put("b", 2, weight=4)
    assert recent.get("a") == 1
    recent.put("c", 3, weight=4)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)


def test_recent_does_not_keep_what_exceeds_its_budget_alone() -> None:
    recent: Recent[str, int] = Recent(budget=10)
    recent.put("small", 1, weight=9)
    recent.put("large", 2, weight=11)
    assert (recent.get("small"), recent.get("large")) == (1, None)
    recent.put("small", 3, weight=11)
    assert len(recent) == 0


def test_recent_returns_nothing_that_is_too_old() -> None:
    recent: Recent[str, int] = Recent(budget=10, kept_s=1000)
    recent.put("old", 1, since=time.monotonic() - 1001)
    recent.put("new", 2)
    assert (recent.get("old"), recent.get("new"), len(recent)) == (None, 2, 1)


def test_what_recent_was_told_to_forget_takes_no_room() -> None:
    recent: Recent[str, int] = Recent(budget=10)
    recent.put("a", 1, weight=9)
    assert (recent.pop("a"), recent.pop("a"), recent.get("a")) == (1, None, None)
    recent.put("b", 2, weight=9)
    recent.put("c", 3, weight=1)
    assert (recent.get("b"), recent.get("c")) == (2, 3)
    recent.clear()
    recent.put("d", 4, weight=10)
    assert (len(recent), recent.get("d")) == (1, 4)
