"""Tweezer, a self-hosted asynchronous job queue for neutral-atom quantum work.

A user submits a *batch*: a serialised Pulser sequence and its *jobs*, each with a number of shots and values for the
sequence's variables. Workers run the jobs on emulators or QPUs. Redis holds the live queue; a SQL database, the ledger,
keeps what has ended. :func:`connect` opens the queue, and :func:`connect_async` does the same for asyncio:

```python
import tweezer

with tweezer.connect() as queue:
    batch = queue.submit(sequence, [{"runs": 200, "variables": {"omega": 6.3}}])
    for job in batch.results(timeout_s=60):
        print(job.status, job.counter)
```

Every error is a :class:`TweezerError`. Its ``code`` identifies the problem, and ``retryable`` states whether repeating
the call may help. :func:`verify_webhook` checks the signature of a received webhook.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tweezer.client import AsyncBatch, AsyncQueue, Finished, JobFailed, ListedBatch, WaitTimeout, connect_async
    from tweezer.display.data import JobList
    from tweezer.ledger.bulk_actions import BulkOutcome
    from tweezer.model.attempts import JobAttempt, JobAttemptOutcome
    from tweezer.model.errors import (
        Conflict,
        EventsTrimmed,
        InvalidInput,
        NotFound,
        QueueFull,
        ResultUnavailable,
        TweezerError,
        Unavailable,
    )
    from tweezer.model.events import Event
    from tweezer.model.lifecycle import BatchStatus, JobStatus
    from tweezer.model.messages import JobSpec as Job
    from tweezer.model.messages import Limits, Priority, Result
    from tweezer.model.quotas import QuotaExceeded
    from tweezer.model.signatures import Webhook, WebhookInvalid, verify_webhook
    from tweezer.store.job_logs import JobLog
    from tweezer.sync import Batch, Queue, connect

__version__ = "0.1.0"

__all__ = [
    "AsyncBatch",
    "AsyncQueue",
    "Batch",
    "BatchStatus",
    "BulkOutcome",
    "Conflict",
    "Event",
    "EventsTrimmed",
    "Finished",
    "InvalidInput",
    "Job",
    "JobAttempt",
    "JobAttemptOutcome",
    "JobFailed",
    "JobList",
    "JobLog",
    "JobStatus",
    "Limits",
    "ListedBatch",
    "NotFound",
    "Priority",
    "Queue",
    "QueueFull",
    "QuotaExceeded",
    "Result",
    "ResultUnavailable",
    "TweezerError",
    "Unavailable",
    "WaitTimeout",
    "Webhook",
    "WebhookInvalid",
    "__version__",
    "connect",
    "connect_async",
    "verify_webhook",
]

# The exports are imported on first use, so that the command line starts quickly.
_MODULES = {
    "tweezer.client": (
        "AsyncBatch",
        "AsyncQueue",
        "Finished",
        "JobFailed",
        "ListedBatch",
        "WaitTimeout",
        "connect_async",
    ),
    "tweezer.display.data": ("JobList",),
    "tweezer.ledger.bulk_actions": ("BulkOutcome",),
    "tweezer.model.attempts": ("JobAttempt", "JobAttemptOutcome"),
    "tweezer.model.errors": (
        "Conflict",
        "EventsTrimmed",
        "InvalidInput",
        "NotFound",
        "QueueFull",
        "ResultUnavailable",
        "TweezerError",
        "Unavailable",
    ),
    "tweezer.model.events": ("Event",),
    "tweezer.model.lifecycle": ("BatchStatus", "JobStatus"),
    "tweezer.model.messages": ("Limits", "Priority", "Result"),
    "tweezer.model.quotas": ("QuotaExceeded",),
    "tweezer.model.signatures": ("Webhook", "WebhookInvalid", "verify_webhook"),
    "tweezer.store.job_logs": ("JobLog",),
    "tweezer.sync": ("Batch", "Queue", "connect"),
}
_PLACES = {name: (module, name) for module, names in _MODULES.items() for name in names}
_PLACES["Job"] = ("tweezer.model.messages", "JobSpec")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tweezer' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    found = getattr(import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
