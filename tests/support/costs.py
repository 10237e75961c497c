"""Bound the CPU time of a piece of a test; unlike wall time, it does not depend on what else the machine does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu_time_below(limit_s: float) -> Iterator[None]:
    """Fail if this process uses this much CPU time within the block: far more than a linear algorithm needs."""
    began = time.process_time()
    yield
    assert time.process_time() - began < limit_s
