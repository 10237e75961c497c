"""Redis users: one for each kind of process, limited to the commands, keys and channels that it needs.

The needs of the scripts are read from their texts, so changing a script changes the users. The rules work on Redis 6.2
and later and on Valkey: they use no command that is newer than 6.2, and no read-only key patterns.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import assert_never
from urllib.parse import urlsplit, urlunsplit

import msgspec

from tweezer.store.keys import Key, Keys
from tweezer.store.scripts import script_names, script_text


class RedisUser(StrEnum):
    """A kind of process that connects to Redis, and the last part of its user's name."""

    API = "api"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    RECORDER = "recorder"
    COURIER = "courier"
    PRODUCER = "producer"  # programs with the library
    SENDER = "sender"  # programs that send plain arq messages
    OPERATOR = "operator"  # the command line
    ADMIN = "admin"  # redis-cli


_USERS_CALL = (
    *("submit", "apply_ends", "add_jobs", "close", "cancel_batch", "cancel_jobs", "pause_batch", "resume_batch"),
    *("set_tags", "set_priority", "check_submit"),
    *("pause_device", "resume_device", "plan_window", "drop_window", "note_child"),
)

SCRIPTS: Mapping[RedisUser, tuple[str, ...]] = {
    RedisUser.PRODUCER: (*_USERS_CALL, "look_up_jobs", "look_up_batch"),
    RedisUser.API: (
        *_USERS_CALL,
        *("look_up_jobs", "look_up_batch", "mark_calls", "measure", "end_batch", "report"),
        *("set_specs", "forget_specs", "forget", "drop_kept"),
    ),
    RedisUser.WORKER: (
        *("take", "settle", "renew", "release", "fail", "note_timeout", "ring", "sweep", "heartbeat"),
        *("set_settings", "set_full", "set_specs", "set_condition"),
        *("intend", "set_out", "note_remote", "withdraw_intent", "note_set_back"),
    ),
    RedisUser.SCHEDULER: (
        *("submit", "apply_ends", "add_jobs", "cancel_batch"),
        *("set_settings", "set_full", "sweep", "forget", "drop_kept", "index_batches"),
    ),
    RedisUser.RECORDER: (
        *("claim_recorder", "join_ledger", "mark_ledger", "open_gate", "restore", "trim", "forget"),
        *("set_limits", "set_kept", "drop_kept"),
    ),
    RedisUser.OPERATOR: tuple(script_names()),
}
"""The scripts that each kind of process calls."""

EACH_CALLS = ("arrive",)
"""The scripts that every new connection calls."""


class Rights(msgspec.Struct, frozen=True):
    """The rights of a user: commands in lower case, patterns of keys and channels below the namespace, and of arq's
    keys."""

    commands: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    arq: frozenset[str] = frozenset()

    def __or__(self, other: Rights) -> Rights:
        return Rights(*map(operator.or_, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


_CALL = re.compile(r"(?:redis\.p?call|each_thousand)\('(\w+)'")
_KEY = re.compile(r"\bKEY\.(\w+)")
_CHANNELS = (Key.NEWS, Key.STEPS, Key.POOL)


def _pattern(key: Key) -> str:
    return key.value.replace("%s", "*")


def _direct(commands: str, *keys: Key, channels: tuple[Key, ...] = (), arq: tuple[str, ...] = ()) -> Rights:
    """Return the rights for commands that a process sends directly, outside scripts."""
    return Rights(
        frozenset(commands.split()), frozenset(map(_pattern, keys)), frozenset(map(_pattern, channels)), frozenset(arq)
    )


def _read_rights(name: str) -> Rights:
    """Return the rights that a script needs on any path through it."""
    text = script_text(name)
    keys = {Key[word.upper()] for word in _KEY.findall(text)}
    return Rights(
        frozenset(map(str.lower, _CALL.findall(text))),
        frozenset(_pattern(key) for key in keys if key not in _CHANNELS),
        frozenset(_pattern(key) for key in keys if key in _CHANNELS),
    )


def _scripts(*names: str) -> Rights:
    return functools.reduce(operator.or_, map(_read_rights, names), Rights())


def _connection() -> Rights:
    """Return the rights to connect, to call scripts, and to read Redis' memory and version."""
    return _direct("eval evalsha info time") | _scripts(*EACH_CALLS)


def _reads() -> Rights:
    """Return the rights of :class:`~tweezer.store.reader.Reader`, the stream's readers and channel listeners."""
    return _direct(
        "exists get hget hgetall hmget hvals smembers subscribe time unsubscribe xrange xread xrevrange zrange "
        "zrevrange zrevrangebyscore",
        *(Key.BATCH, Key.BATCHES, Key.DEVICE, Key.DEVICES, Key.WORKER, Key.EVENTS, Key.FULL, Key.LEDGER),
        *(Key.INSTALLATION, Key.GATE, Key.SERVER),
        channels=_CHANNELS,
    )


def _stream_group() -> Rights:
    return _direct("xack xadd xautoclaim xclaim xgroup xinfo xpending xreadgroup", Key.EVENTS, Key.ENDPOINTS, Key.GATE)


def _arq_worker(*queues: Key) -> Rights:
    """Return the rights of arq's worker on these queues, whose messages may have any id, and to park bad messages."""
    rights = _direct(
        "dbsize del exec exists expire get incrby multi pexpire psetex set unwatch watch zadd zcard zincrby zrange "
        "zrangebyscore zrem zremrangebyscore zscore",
        arq=("*",),
    )
    return rights | Rights(keys=frozenset(f"{queue.value}{part}" for queue in queues for part in ("", ":health-check")))


def _alarms() -> Rights:
    """Return the rights to wake the couriers: arq's keys of their queue, whose ids begin with its name."""
    commands = "exec exists incrby multi psetex unwatch watch zadd"
    return _direct(
        commands, Key.COURIER, Key.ENDPOINTS, arq=("job:{namespace}courier:*", "result:{namespace}courier:*")
    )


def _rights(user: RedisUser) -> Rights:
    rights = _scripts(*SCRIPTS.get(user, ()))
    match user:
        case RedisUser.PRODUCER:
            return rights | _connection() | _reads()
        case RedisUser.API:
            logins = _direct("exec get incrby multi pttl set", Key.LOGINS)
            own = logins | _direct("getdel set", Key.STREAM_TICKET) | _direct("set", Key.PROCESS)
            return rights | _connection() | _reads() | _alarms() | own
        case RedisUser.WORKER:
            waits = _direct("blpop wait", Key.BATCH, Key.DEVICE)
            return rights | _connection() | _reads() | waits | _direct("dbsize del psetex zcard")
        case RedisUser.SCHEDULER:
            arq = _arq_worker(Key.INTAKE, Key.SCHEDULER)
            return rights | _connection() | _reads() | arq | _direct("scan") | _direct("set", Key.PROCESS)
        case RedisUser.RECORDER:
            maintenance = _direct("del scan xadd zrangebyscore zrem", Key.EVENTS, Key.ENDED, Key.COUNTED)
            return rights | _connection() | _reads() | maintenance
        case RedisUser.COURIER:
            return rights | _connection() | _reads() | _alarms() | _arq_worker(Key.COURIER) | _stream_group()
        case RedisUser.SENDER:
            asks = "exec exists get info multi psetex unwatch watch zadd zcard zrange zrem zscore"
            return _direct(asks, Key.INTAKE, arq=("job:*", "result:*", "in-progress:*", "abort"))
        case RedisUser.OPERATOR:
            rights |= _direct("config|get hdel scan type unlink")
            for other in RedisUser:
                rights |= Rights() if other in (RedisUser.OPERATOR, RedisUser.ADMIN) else _rights(other)
            return Rights(rights.commands, frozenset({"*"}), frozenset({"*"}), frozenset({"*"}))
        case RedisUser.ADMIN:
            raise ValueError("the admin user has all rights")
        case _:
            assert_never(user)


def user_name(user: RedisUser, namespace: str) -> str:
    """Return the user's name in Redis. Installations that share a server have different users."""
    return f"{namespace}-{user}"


def user_line(user: RedisUser, namespace: str, password: str) -> str:
    """Return one line of an ACL file. password: a Redis ACL rule, such as ``#`` and the SHA-256 in hexadecimal."""
    head = f"user {user_name(user, namespace)} on resetpass {password}"
    if user is RedisUser.ADMIN:
        return f"{head} ~* &* +@all"
    rights, prefix = _rights(user), Keys(namespace).prefix
    keys = _widest(prefix + key for key in rights.keys)
    arq = _widest("arq:" + key.format(namespace=prefix) for key in rights.arq)
    if "eval" in rights.commands and f"{prefix}*" not in keys:
        keys = [prefix, *keys]  # KEYS[1] of the scripts
    rules = (
        "resetkeys",
        *(f"~{key}" for key in (*keys, *arq)),
        "resetchannels",
        *(f"&{channel}" for channel in _widest(prefix + channel for channel in rights.channels)),
        "-@all +@connection -@dangerous",
        *(f"+{command}" for command in sorted(rights.commands)),
    )
    return " ".join((head, *rules))


def acl_lines(namespace: str, passwords: Mapping[RedisUser, str]) -> list[str]:
    """Return the lines of an ACL file: the default user, which is off, and the users."""
    return ["user default off", *(user_line(it, namespace, passwords[it]) for it in RedisUser)]


def hash_password(password: str) -> str:
    """Return the ACL rule of a password. The password must be long and random, because the hash has no salt."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def _widest(patterns: Iterable[str]) -> list[str]:
    """Return the patterns without those that another one covers."""
    found = sorted(set(patterns))
    return [one for one in found if not any(one != other and fnmatchcase(one, other) for other in found)]


def add_credentials(url: str, user: str, password: str) -> str:
    """Return the URL of a Redis server or of Sentinels with its user and password replaced by these."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return urlunsplit(parts._replace(netloc=f"{user}:{password}@"))
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))
