"""How thorough a test run is: short by default, in full with ``TWEEZER_TEST_FULL=1`` (as ``.ci/full`` sets it).

A short run tries the same examples each time, so that it fails for what changed; a full run tries new ones.
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
    """Choose how examples are found; before any test is imported. How long they take says more about the machine."""
    hypothesis.settings.register_profile(
        "tweezer", derandomize=not FULL, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("tweezer")
