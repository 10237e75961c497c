"""How thorough a test run is: short by default, in full with ``TWEEZER_TEST_FULL=1`` (as ``.ci/full`` sets it).

A short run tries the same examples each time, so that only a change makes it fail; a full run tries new ones.
"""

from __future__ import annotations

import os
from typing import TypeVar

import hypothesis

FULL = os.environ.get("TWEEZER_TEST_FULL") == "1"

_T = TypeVar("_T")


def effort(*, short: _T, full: _T) -> _T:
    """Return the value for this run: how many examples Hypothesis tries, or how long a storm lasts."""
    return full if FULL else short


def load_hypothesis_profile() -> None:
    """Configure Hypothesis before any test is imported; without deadlines, because the machine may be busy."""
    hypothesis.settings.register_profile(
        "tweezer", derandomize=not FULL, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("tweezer")
