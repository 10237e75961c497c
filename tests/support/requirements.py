"""What a test needs that may not be installed."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def give_up(reason: str) -> NoReturn:
    """Skip the test, or fail it where ``TWEEZER_REQUIRE_SERVERS=1`` says that everything is installed."""
    if os.environ.get("TWEEZER_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
