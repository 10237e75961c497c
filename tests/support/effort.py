"""How thorough a test run is: short by default, in full with ``TWEEZER_TEST_FULL=1`` (as ``.ci/full`` sets it)."""

from __future__ import annotations

import os
from typing import TypeVar

FULL = os.environ.get("TWEEZER_TEST_FULL") == "1"

_T = TypeVar("_T")


def effort(*, short: _T, full: _T) -> _T:
    """Return the value for this run: how many examples Hypothesis tries, or how long a storm lasts."""
    return full if FULL else short
