"""What tests need of an open queue beyond its public calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tweezer.client import AsyncQueue
from tweezer.store.connection import Store
from tweezer.transports.direct import DirectTransport

Reach = Callable[[str], dict[str, Any]]
"""Returns the arguments of ``tweezer.connect`` for a producer of a project."""


def store_of(queue: AsyncQueue) -> Store:
    """Return the store of a queue that is connected to Redis."""
    assert isinstance(queue.transport, DirectTransport)
    return queue.transport.store
