"""The configuration of a worker."""

from __future__ import annotations

import msgspec

from tweezer.duties import Backoff
from tweezer.settings import WorkerSettings
from tweezer.store.scripts import StoreConfig

_DEFAULTS = WorkerSettings()


class WorkerConfig(msgspec.Struct, frozen=True):
    """The configuration of a worker. Times are in seconds.

    Attributes:
        lease_s: How long the ticket of a silent worker stays reserved.
        beat_s: Time between heartbeats. A worker counts as gone after three missed ones.
        drain_s: How long running jobs may continue after SIGTERM.
        bell_s: Longest wait for the doorbell.
        turn_s: A turn shorter than this doubles the number of jobs claimed at once; a longer one settles the finished
            jobs.
        claim_max: Largest number of jobs claimed at once.
        failures_max: How many consecutive failures of its tickets end a batch.
        max_backlog: Number of the device's pending jobs above which submits are refused; 0: no limit.
        full_at: Fraction of Redis' maxmemory above which submits are refused.
        results_s: Time before another attempt to store a result for which the results folder has no room.
        job_backoff: Pause before a job is retried after a transient failure, unless its adapter specifies one.
        ticket_backoff: Pause after a failure of a ticket.
        redis_backoff: Pause between attempts while Redis does not answer.
        store: The configuration that the worker publishes for the scripts.
    """

    lease_s: float = _DEFAULTS.lease_s
    beat_s: float = _DEFAULTS.heartbeat_s
    drain_s: float = _DEFAULTS.drain_s
    bell_s: float = 1.0
    turn_s: float = 0.05
    claim_max: int = 128
    failures_max: int = 10
    max_backlog: int = 1_000_000
    full_at: float = 0.8
    results_s: float = 60.0
    job_backoff: Backoff = Backoff(base_s=1.0, cap_s=60.0)
    ticket_backoff: Backoff = Backoff(base_s=0.5, cap_s=60.0)
    redis_backoff: Backoff = Backoff(base_s=0.1, cap_s=2.0)
    store: StoreConfig = StoreConfig()
