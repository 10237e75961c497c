"""The only place where a key of Redis is spelled.

Scripts get the same patterns, as a table ``KEY`` that the loader makes of :class:`Key`, because a script such as
*take* learns which batch it touches only while it runs.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Key(StrEnum):
    """Patterns below the namespace. What owns each key, and so when it goes, stands behind it."""

    # of a batch: they go when the batch is forgotten, after it ended and the ledger has all of it
    BATCH = "batch:%s"  # hash: the batch record and its tickets (fields ``t:<n>``)
    SPEC = "batch:%s:spec"  # hash: job index → microseconds of its submit, a space, JobSpec
    STATE = "batch:%s:state"  # hash: job index → words of records.STATE_FIELDS; absent is PENDING
    RESULT = "batch:%s:result"  # hash: job index → Result
    FAULT = "batch:%s:fault"  # hash: job index → Fault (JSON)
    BACK = "batch:%s:back"  # list: job indices that came back
    DELAY = "batch:%s:delay"  # sorted set: job index → due time (ms)
    REMOTE = "batch:%s:remote"  # hash: job index → what is known of its submit to a machine (model.intents)
    CALL = "batch:%s:call"  # list of at most one element: rung when jobs are added, for who holds the device for it
    HELD = "batch:%s:held:%s"  # set: job indices that a ticket holds; gone when the ticket is
    # of a device: they live as long as the device is known
    DEVICES = "devices"  # set of device names
    DEVICE = "device:%s"  # hash: status, lanes, counters, limits
    READY = "device:%s:ready"  # sorted set: ticket → rank
    DUE = "device:%s:due"  # sorted set: ticket → due time (ms)
    LEASES = "device:%s:leases"  # sorted set: ticket → expiry (ms)
    FAIR = "device:%s:fair"  # hash: virtual time and the finish of each project (ms of service)
    WINDOWS = "device:%s:windows"  # hash: id of a window of maintenance → begin and end (ms), id, DeviceState (JSON)
    BELL = "device:%s:bell"  # list of at most one element: the doorbell
    WORKERS = "device:%s:workers"  # sorted set: worker → expiry of its heartbeat (ms)
    # of a worker: it expires when the heartbeat stops
    WORKER = "worker:%s"  # hash: what the worker says of itself
    # of a project: it goes with the last of its fields; a counter that is 0 has none
    PROJECT = "project:%s"  # hash: counters of its quotas, and limits of its own (``max:<name>``); see model.quotas
    # of everything
    SETTINGS = "settings"  # hash: what operators set and scripts need, published by workers and the scheduler
    IDLE = "idle"  # sorted set: open batch without work → deadline (ms)
    ENDED = "ended"  # sorted set: batch that ended and is not forgotten → when (ms)
    EVENTS = "events"  # stream of transitions
    FULL = "full"  # string, expiring: why submits are refused
    NONE = "full:none"  # never exists: scripts that free memory begin with a write that changes nothing
    IDEMPOTENCY = "idempotency:%s:%s"  # string, expiring: digest and answer of a call
    CALLS = "calls:%s"  # hash, expiring: calls of this digest that have no key of their own
    LOGINS = "logins:%s:%s"  # string, expiring: failed log-ins by a name, or from an address
    # of the ledger
    LEDGER = "ledger"  # string: there since a recorder first read the stream
    INSTALLATION = "installation"  # string: id of the installation, which its ledger has, too
    RECORDER = "recorder"  # string, expiring: the recorder that is active
    SERVER = "server"  # string: since when the last writes may be lacking (ms), or 0; run id of the Redis in use
    GATE = "gate"  # string, expiring: no job is handed out, until the ledger has put back what Redis lost
    COUNTED = "counted"  # string, expiring: the recorder has counted the results of which only the ledger knows
    # channels
    NEWS = "news:%s"  # of a batch: its events and progress
    POOL = "pool:%s"  # of a device: cancels of running work
    # queues of arq
    INTAKE = "intake"
    SCHEDULER = "scheduler"
    ENDPOINTS = "endpoints"  # string: counts the changes of endpoints, so that couriers read them again
    COURIER = "courier"  # alarms of deliveries


KINDS = {
    **dict.fromkeys((Key.INTAKE, Key.SCHEDULER, Key.COURIER, Key.IDLE, Key.ENDED), "zset"),
    Key.DEVICES: "set",
    Key.SETTINGS: "hash",
    Key.EVENTS: "stream",
    **dict.fromkeys((Key.LEDGER, Key.INSTALLATION, Key.SERVER, Key.GATE, Key.RECORDER, Key.ENDPOINTS), "string"),
}
"""What Redis calls the type of each key that all processes share."""


_NAME = re.compile(r"\bKEY\.(\w+)")


class Keys:
    """Spells keys below a namespace."""

    def __init__(self, namespace: str = "tweezer") -> None:
        self.prefix = f"{namespace}:"

    def __call__(self, key: Key, *parts: object) -> str:
        return self.prefix + key.value % parts


def lua_table(text: str) -> str:
    """Return a Lua table ``KEY`` with the patterns that a script names: a call makes it anew, so it is short."""
    fields = ", ".join(f"{name} = '{Key[name.upper()].value}'" for name in sorted(set(_NAME.findall(text))))
    return f"local KEY = {{ {fields} }}"
