"""Tweezer: a self-hosted asynchronous job queue for neutral-atom quantum work."""

from tweezer.client import AsyncBatch, AsyncQueue, Finished, JobFailed, WaitTimeout, connect_async
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
from tweezer.model.signatures import Webhook, WebhookInvalid, verify_webhook
from tweezer.sync import Batch, Queue, connect

__version__ = "0.1.0"

__all__ = [
    "AsyncBatch",
    "AsyncQueue",
    "Batch",
    "BatchStatus",
    "Conflict",
    "Event",
    "EventsTrimmed",
    "Finished",
    "InvalidInput",
    "Job",
    "JobFailed",
    "JobStatus",
    "Limits",
    "NotFound",
    "Priority",
    "Queue",
    "QueueFull",
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
