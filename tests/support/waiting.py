"""Wait for a condition with a deadline; a test never sleeps for a fixed time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 60.0
"""The default deadline: far longer than anything takes, because the machine may be busy."""

_POLL_S = 0.005


def wait_until(condition: Callable[[], bool], what: str = "a condition", within_s: float = PATIENCE_S) -> None:
    """Wait in a thread without an event loop until the condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}"
        threading.Event().wait(_POLL_S)


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str = "a condition", within_s: float = PATIENCE_S
) -> None:
    """Wait until the condition, which may be asynchronous, holds."""
    deadline = time.monotonic() + within_s
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}"
        await asyncio.sleep(_POLL_S)
