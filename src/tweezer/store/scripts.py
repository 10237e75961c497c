"""Loads the Lua scripts and calls them.

A script is one file of ``lua/``, named by its verb; its header is its contract. Before each goes what
is generated here (keys, fields, the lifecycle table, limits) and ``prelude.lua``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any, cast

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from tweezer.model.errors import QueueFull, TweezerError, Unavailable, Unreadable
from tweezer.model.lifecycle import (
    BATCH_TABLE,
    JOB_TABLE,
    TERMINAL_JOB,
    BatchEvent,
    BatchStatus,
)
from tweezer.model.messages import RECORD_VERSION, Fault, Priority, encode_fault
from tweezer.model.quotas import BATCH_BYTES, JOB_BYTES, MEMORY_SHARES, QUOTAS
from tweezer.store.keys import Keys, lua_table
from tweezer.store.records import NUMBER_FIELDS, SPECS_FIELDS, STATE_FIELDS, TEXT_FIELDS

CRASHES_MAX = 3
LOST_MAX = 10
_LOST = Fault(
    "lost",
    f"the job was begun {LOST_MAX} times by workers that were lost before they could report it; "
    "look at the workers' logs (memory, power, network), then submit it again",
)


PENALTIES_S = {Priority.HIGH: 0.0, Priority.MEDIUM: 60.0, Priority.LOW: 600.0}
"""Service that a batch of each priority stands behind, in seconds of lane time."""


MEMORY = "memory"
"""Field of the settings: the bytes that Redis may fill with work, as the last sweep found; 0: it has no limit."""


class StoreConfig(msgspec.Struct, frozen=True):
    """What operators set and scripts need. It is kept in Redis, so that all processes go by the same.

    idempotency_s: how long a repeated call is recognised. quantum_s: lane time after which a ticket yields to one
    that ranks before it. restore_wait_s: after a restart of Redis, how long no job is handed out and no older batch
    changes, at most, until the ledger has put back what Redis lost. queued_jobs, queued_bytes, result_bytes: limits of
    the quotas of a project that has no others; 0 is none.
    """

    idempotency_s: float = 86_400
    quantum_s: float = 1.0
    restore_wait_s: float = 30.0
    queued_jobs: int = 250_000
    queued_bytes: int = 256 << 20
    result_bytes: int = 10 << 30

    def stored(self) -> dict[str, int]:
        """The fields of its hash in Redis; times in milliseconds."""
        return {
            "idempotency": round(self.idempotency_s * 1000),
            "quantum": round(self.quantum_s * 1000),
            "restore_wait": round(self.restore_wait_s * 1000),
            **{quota.name: getattr(self, quota.name) for quota in QUOTAS},
        }


def _strings(names: tuple[str, ...]) -> str:
    return "{ " + ", ".join(f"'{name}'" for name in names) + " }"


def _batch_reader() -> str:
    """FIELDS and the function that makes a batch of their values: written out, since Lua makes a table at once
    when it can see its fields. Before the fields comes a ticket's; see ``load_batch``."""
    text = [f"{name} = raw[{at}] or nil" for at, name in enumerate(TEXT_FIELDS, 3)]
    place = {name: at for at, name in enumerate(NUMBER_FIELDS, 3 + len(TEXT_FIELDS))}
    numbers = [f"{name} = tonumber(raw[{at}] or 0)" for name, at in place.items()]
    before = [f"was_{name} = tonumber(raw[{place[name]}] or 0)" for name in ("pending", "running", "bytes")]
    before.append(f"was_open = raw[{place['open']}] == '1'")
    fields = ", ".join(("id = id, was = raw, events = {}, asked = {}, tickets = {}", *text, *numbers, *before))
    return (
        f"local FIELDS = {_strings(('v', *TEXT_FIELDS, *NUMBER_FIELDS))}\n"
        f"local function read_batch(id, raw) return {{ {fields} }} end"
    )


def _flags(words: set[str]) -> str:
    return "{ " + ", ".join(f"['{word}'] = true" for word in sorted(words)) + " }"


def _quotas() -> str:
    counters = dict.fromkeys(counter for quota in QUOTAS for counter in quota.counters)
    fields = _strings((*counters, *(f"max:{quota.name}" for quota in QUOTAS)))
    places = {name: at for at, name in enumerate((*counters, *(quota.name for quota in QUOTAS)), 1)}
    rows = ", ".join(
        f"{{ name = '{quota.name}', max = {places[quota.name]}, "
        f"counters = {{ {', '.join(str(places[counter]) for counter in quota.counters)} }} }}"
        for quota in QUOTAS
    )
    return (
        f"local QUOTA_FIELDS, QUOTAS = {fields}, {{ {rows} }}\n"
        f"local BATCH_BYTES, JOB_BYTES, MEMORY_SHARES = {BATCH_BYTES}, {JOB_BYTES}, {MEMORY_SHARES}"
    )


def _generated() -> str:
    job_moves = {before.letter + after.letter for (before, _), after in JOB_TABLE.items() if before is not after}
    job_moves.add("RC")  # a retry, reclaim or give-back of a job whose cancel was requested
    batch_moves = {before.letter + after.letter for (before, _), after in BATCH_TABLE.items()}
    batch_moves.add(BatchStatus.PAUSED.letter + BatchStatus.PENDING.letter)  # RESUME when no job ever began
    assert (BatchStatus.PAUSED, BatchEvent.RESUME) in BATCH_TABLE
    positions = ", ".join(f"{name} = {at}" for at, name in enumerate(STATE_FIELDS, 1))
    defaults = {**StoreConfig().stored(), MEMORY: 0}
    numbers = ", ".join(f"{name} = {at}" for at, name in enumerate(defaults, 1))
    values = ", ".join(f"{name} = {value}" for name, value in defaults.items())
    penalties = ", ".join(f"{priority.value} = {round(s * 1000)}" for priority, s in PENALTIES_S.items())
    return "\n".join(
        (
            lua_table(),
            f"local S, STATE_SIZE = {{ {positions} }}, {len(STATE_FIELDS)}",
            f"local TEXT, NUMBER = {_strings(TEXT_FIELDS)}, {_strings(NUMBER_FIELDS)}",
            _batch_reader(),
            f"local JOB_MOVES, BATCH_MOVES = {_flags(job_moves)}, {_flags(batch_moves)}",
            f"local JOB_OVER = {_flags({status.letter for status in TERMINAL_JOB})}",
            f"local VERSION, PENALTY = '{RECORD_VERSION}', {{ {penalties} }}",
            f"local SPECS_FIELDS = {_strings(SPECS_FIELDS)}",
            f"local SETTINGS = {_strings(tuple(defaults))}",
            f"local SETTING, DEFAULT = {{ {numbers} }}, {{ {values} }}",
            _quotas(),
            f"local CRASH_MAX, LOST_MAX = {CRASHES_MAX}, {LOST_MAX}",
            f"local LOST_FAULT = [==[{encode_fault(_LOST).decode()}]==]",
        )
    )


_WORD = re.compile(r"\w+")
_STATEMENT = re.compile(r"(?m)^(?=local )")
_NAMES = re.compile(r"local (?:function )?([\w, ]+)")


class _Script(msgspec.Struct, frozen=True):
    text: str
    sha: str


def _with_what_it_uses(prelude: str, script: str) -> str:
    """The script behind those statements of the prelude that it needs: each call makes what is there anew.

    A statement of the prelude begins with ``local`` at the start of a line, and is needed when a word of
    what comes after it is one of its names.
    """
    kept, words = script, set(_WORD.findall(script))
    for statement in reversed(_STATEMENT.split(prelude)):
        names = _NAMES.match(statement)
        if names is None or words.intersection(_WORD.findall(names[1])):
            kept = statement + kept
            words.update(_WORD.findall(statement))
    return kept


@functools.cache
def _load() -> dict[str, _Script]:
    folder = resources.files("tweezer.store") / "lua"
    prelude = _generated() + "\n" + (folder / "prelude.lua").read_text("utf-8")
    scripts = {}
    for file in folder.iterdir():
        if file.name.endswith(".lua") and file.name != "prelude.lua":
            text = _with_what_it_uses(prelude, file.read_text("utf-8"))
            sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            scripts[file.name.removesuffix(".lua")] = _Script(text, sha)
    return scripts


def script_names() -> list[str]:
    """All scripts."""
    return sorted(_load())


def script_text(name: str) -> str:
    """The whole script, as EVAL takes it."""
    return _load()[name].text


_REFUSED = re.compile(
    r"(?:Error running script .*?-)?(?:MISCONF|LOADING|READONLY|MASTERDOWN|NOREPLICAS|BUSY|UNBLOCKED|TRYAGAIN)\b"
)
"""How errors begin that pass by themselves and have no class in redis-py, which strips the words that it knows.

Redis 6.2 puts its own words before an error that a script met.
"""


_FORBIDDEN_IN_SCRIPT = re.compile("ACL failure in script|The user executing the script can't")


def _forbidden(text: str) -> TweezerError:
    return TweezerError(
        f"the user of TWEEZER_REDIS_URL lacks a right in Redis ({text}): give this process the user that "
        "`tweezer redis-users` makes for it; after an upgrade run that again, then ACL LOAD",
        code="redis_auth",
    )


def translated(error: redis_errors.RedisError) -> TweezerError:
    """The error of Tweezer for one of Redis: full, or unavailable with what to do."""
    text = str(error)
    match error:
        case redis_errors.OutOfMemoryError():
            return QueueFull("Redis has reached its maxmemory; let work finish, or raise maxmemory")
        case redis_errors.NoPermissionError():
            return _forbidden(text)
        case redis_errors.AuthenticationError():
            return TweezerError(f"Redis refuses the credentials of TWEEZER_REDIS_URL: {text}", code="redis_auth")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError():
            return Unavailable(f"Redis cannot be reached: {text}")
        case _ if _FORBIDDEN_IN_SCRIPT.search(text):
            return _forbidden(text)
        case _ if "GATE_SHUT" in text:  # raised by refuse_while_shut in prelude.lua
            return Unavailable(
                "Redis has restarted, and work that it lost is being restored from the ledger; try again"
            )
        case redis_errors.InvalidResponse():
            return Unavailable(f"Redis sent a reply that cannot be read: {text}")
        case _ if "OOM command not allowed" in text:
            return QueueFull("Redis has reached its maxmemory; let work finish, or raise maxmemory")
        case redis_errors.ReadOnlyError():
            return Unavailable(f"this Redis is a replica, which takes no writes: {text}")
        case _ if _REFUSED.match(text):
            return Unavailable(f"Redis refuses to serve at the moment: {text}")
        case _ if "WRONGTYPE" in text:
            return Unreadable(f"a key of Redis holds something else than Tweezer keeps there: {text}")
        case _:
            return TweezerError(f"Redis answered with an error: {text}", code="redis")


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Turns the errors of Redis, and of the way to it, into ours."""
    try:
        yield
    except redis_errors.RedisError as error:
        raise translated(error) from error
    except OSError as error:
        raise Unavailable(f"Redis cannot be reached: {error}") from error


class Scripts:
    """The scripts of one namespace on one Redis."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self._scripts = _load()

    async def call_after(self, command: tuple[Any, ...], name: str, *arguments: Any) -> list[Any]:
        """Sends a command and a script together, and gives the script's reply. Raises as :meth:`call`."""
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.execute_command(*command)
        pipeline.execute_command("EVALSHA", self._scripts[name].sha, 1, self.keys.prefix, *arguments)
        with translating():
            try:
                _, reply = await pipeline.execute()
            except redis_errors.NoScriptError:
                return await self.call(name, *arguments)
        return cast(list[Any], reply)

    async def call(self, name: str, *arguments: Any) -> list[Any]:
        """Runs a script; its reply as Redis gives it (bytes, integers, lists).

        Raises Unavailable when Redis does not answer: whether the script ran is then unknown. Also while the gate is
        shut, where the header of the script says so: nothing was changed.
        """
        script = self._scripts[name]
        with translating():
            try:
                reply = await self.redis.execute_command("EVALSHA", script.sha, 1, self.keys.prefix, *arguments)
            except redis_errors.NoScriptError:
                reply = await self.redis.execute_command("EVAL", script.text, 1, self.keys.prefix, *arguments)
        return cast(list[Any], reply)
