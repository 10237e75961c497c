"""The numbers that a worker goes by."""

from __future__ import annotations

import msgspec

from tweezer.duties import Backoff
from tweezer.settings import WorkerSettings
from tweezer.store.scripts import StoreConfig

_DEFAULTS = WorkerSettings()


class WorkerConfig(msgspec.Struct, frozen=True):
    """Times in seconds.

    lease_s: how long a ticket stays a silent worker's. beat_s: between heartbeats; a worker is gone after
    three. drain_s: how long running jobs may go on after SIGTERM. bell_s: longest wait for the doorbell.
    turn_s: a turn shorter than this doubles the jobs claimed at once, up to ``claim_max``; a longer one
    settles what is ready. failures_max: failures of a ticket's body in a row that end its batch.
    max_backlog: pending jobs of the device above which submits are refused (0: no limit). full_at:
    fraction of Redis' maxmemory above which submits are refused. results_s: before a result is tried again that the
    results folder did not take: somebody has to make room there. job_backoff: before a job is retried after a
    transient failure, where its adapter does not say; ticket_backoff: after a failure of a ticket's body;
    redis_backoff: while Redis does not answer. store: what the worker publishes for the scripts.
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
