"""Skip or fail a test that needs a program which is not installed."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def give_up(reason: str) -> NoReturn:
    """Skip the test, or fail it if ``TWEEZER_REQUIRE_SERVERS=1`` promises that everything is installed."""
    if os.environ.get("TWEEZER_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
