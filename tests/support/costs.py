"""Bound the CPU time of a piece of a test; unlike wall time, it does not depend on the load of the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def untraced() -> Iterator[None]:
    """Do not measure coverage of the functions that the block calls: it may cost more than they do."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


@contextmanager
def cpu_time_below(limit_s: float) -> Iterator[None]:
    """Fail if this process uses this much CPU time within the block: far more than a linear algorithm needs."""
    with untraced():
        began = time.process_time()
        yield
        used_s = time.process_time() - began
    assert used_s < limit_s
