"""The names of all Redis keys.

Scripts use the same patterns, as ``KEY.<name>``, which the loader replaces: a script such as *take* determines which
batch it changes only while it runs.
"""

from __future__ import annotations

from enum import StrEnum


class Key(StrEnum):
    """Patterns of keys below the namespace, grouped by their owner, which determines when they are deleted."""

    # of a batch: deleted when the batch is forgotten, after it has ended and is recorded in the ledger
    BATCH = "batch:%s"  # hash: the batch record and its tickets (fields ``t:<n>``)
    SPEC = "batch:%s:spec"  # hash: job index → microseconds of its submit, a space, JobSpec
    STATE = "batch:%s:state"  # hash: job index → words of records.STATE_FIELDS; absent is PENDING
    RESULT = "batch:%s:result"  # hash: job index → Result
    FAULT = "batch:%s:fault"  # hash: job index → Fault (JSON)
    BACK = "batch:%s:back"  # list: job indices that came back
    DELAY = "batch:%s:delay"  # sorted set: job index → due time (ms)
    REMOTE = "batch:%s:remote"  # hash: job index → intent of its submission to a machine (model.intents)
    CALL = "batch:%s:call"  # list of at most one element: rung when jobs are added, for the holder of the device
    HELD = "batch:%s:held:%s"  # set: job indices that a ticket holds; deleted with the ticket
    DEPENDENTS = "dependents:%s"  # sorted set: batch that waits for this one → when it was created (µs)
    # of a device: kept as long as the device is known
    DEVICES = "devices"  # set of device names
    DEVICE = "device:%s"  # hash: status, lanes, counters, limits
    READY = "device:%s:ready"  # sorted set: ticket → rank
    DUE = "device:%s:due"  # sorted set: ticket → due time (ms)
    LEASES = "device:%s:leases"  # sorted set: ticket → expiry (ms)
    FAIR = "device:%s:fair"  # hash: virtual time and the finish of each project (ms of service)
    WINDOWS = "device:%s:windows"  # hash: id of a window of maintenance → begin and end (ms), id, DeviceState (JSON)
    BELL = "device:%s:bell"  # list of at most one element: the doorbell
    WORKERS = "device:%s:workers"  # sorted set: worker → expiry of its heartbeat (ms)
    # of a worker: expires when the heartbeat stops
    WORKER = "worker:%s"  # hash: the worker's description of itself
    # of a project: deleted with its last field or member; a counter of 0 has no field
    PROJECT = "project:%s"  # hash: counters of its quotas, and its own limits (``max:<name>``); see model.quotas
    BATCHES = "batches:%s"  # sorted set: batch of the project → when it was created (ms)
    # global
    SETTINGS = "settings"  # hash: settings that scripts need, published by workers and the scheduler
    IDLE = "idle"  # sorted set: open batch without work → deadline (ms)
    DEADLINES = "deadlines"  # sorted set: batch that has not started → when it is late, or expires (ms)
    RELEASES = "releases"  # sorted set: batch with dependents, and its end → when the sweep handles them (ms)
    ENDED = "ended"  # sorted set: batch that ended and is not forgotten → when (ms)
    EVENTS = "events"  # stream of transitions
    FULL = "full"  # string, expiring: why submits are refused
    NONE = "full:none"  # never exists: scripts that free memory begin by deleting it
    IDEMPOTENCY = "idempotency:%s:%s"  # string, expiring: digest and result of a call
    CALLS = "calls:%s"  # hash, expiring: calls with this digest and without an idempotency key
    LOGINS = "logins:%s:%s"  # string, expiring: failed log-ins by a name, or from an address
    STREAM_TICKET = "stream_ticket:%s"  # string, expiring: id of a key, and the path of the stream that it may open
    # of the ledger
    LEDGER = "ledger"  # string: exists since a recorder first read the stream
    INSTALLATION = "installation"  # string: id of the installation, the same as in its ledger
    RECORDER = "recorder"  # string, expiring: the active recorder
    SERVER = "server"  # string: when the last writes may have been lost (ms), or 0; run id of the Redis in use
    PROCESS = "process:%s"  # string, expiring: the scheduler or API that last reported that it runs
    GATE = "gate"  # string, expiring: no job is handed out until the ledger has restored what Redis lost
    COUNTED = "counted"  # string, expiring: the recorder has counted the results that only the ledger has
    # channels
    NEWS = "news:%s"  # of a batch: its events and progress
    STEPS = "news:%s:steps"  # of a batch: its progress with steps
    POOL = "pool:%s"  # of a device: cancels of running work
    # queues of arq
    INTAKE = "intake"
    SCHEDULER = "scheduler"
    ENDPOINTS = "endpoints"  # string: counts the changes of endpoints, so that couriers read them again
    COURIER = "courier"  # alarms of deliveries


KINDS = {
    **dict.fromkeys((Key.INTAKE, Key.SCHEDULER, Key.COURIER, Key.IDLE, Key.DEADLINES, Key.ENDED, Key.RELEASES), "zset"),
    Key.DEVICES: "set",
    Key.SETTINGS: "hash",
    Key.EVENTS: "stream",
    **dict.fromkeys((Key.LEDGER, Key.INSTALLATION, Key.SERVER, Key.GATE, Key.RECORDER, Key.ENDPOINTS), "string"),
}
"""The Redis type of each global key."""


class Keys:
    """Makes the names of keys in a namespace."""

    def __init__(self, namespace: str = "tweezer") -> None:
        self.namespace = namespace
        self.prefix = f"{namespace}:"

    def __call__(self, key: Key, *parts: object) -> str:
        return self.prefix + key.value % parts
