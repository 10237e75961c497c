"""One question about asyncio tasks."""

from __future__ import annotations

import asyncio


def is_cancelled() -> bool:
    """Whether somebody asked the current task to end.

    Loops that run until they are cancelled look here each time around: in Python 3.11 a cancellation that
    meets an arriving reply of Redis can be swallowed on its way up (seen in one shutdown of fifty).
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
