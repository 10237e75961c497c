"""Loads the Lua scripts and calls them.

Each script is a file in ``lua/``, named with a verb. Its header is its contract and declares its arguments. A script
lists its includes: files of ``lua/include/``, and those generated here (keys, fields, the lifecycle tables, limits).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeVar, cast

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
from tweezer.store.keys import Key, Keys
from tweezer.store.records import (
    MADE_FIELDS,
    NO_TIMES,
    NOW_FIELDS,
    OLDER,
    RARE_FIELDS,
    RECORD_VALUES,
    SPECS_FIELDS,
    STATE_FIELDS,
    TEXT_VALUES,
    TIME_FIELDS,
    USUAL_WORDS,
)

T = TypeVar("T")

CRASHES_MAX = 3
LOST_MAX = 10
_LOST = Fault(
    "lost",
    f"the job was begun {LOST_MAX} times by workers that were lost before they could report its outcome; "
    "check the workers' logs (memory, power, network), then submit it again",
)


CALL_LEASE_S = 0.9
"""A running attempt at a call without an idempotency key is abandoned if its lease was not renewed for this time.

Pasqal's clients wait a second before they repeat a call.
"""

CALL_RETRY_S = 61.0
"""How long an abandoned call can be repeated: Pasqal's clients wait for 31 s in total, and a request may take 30 s."""


PENALTIES_S = {Priority.HIGH: 0.0, Priority.MEDIUM: 60.0, Priority.LOW: 600.0}
"""The delay of each priority in the queue, in seconds of lane time."""


MEMORY = "memory"
"""Field of the settings: the bytes that Redis has for work, measured by the last sweep; 0 means unlimited."""


class StoreConfig(msgspec.Struct, frozen=True):
    """Settings that the scripts use. They are stored in Redis, so that all processes use the same values.

    Attributes:
        idempotency_s: How long a repeated call is recognised, in seconds.
        quantum_s: Lane time in seconds after which a ticket yields to one that ranks before it.
        restore_wait_s: After a restart of Redis, the longest time in seconds during which no job is handed out and no
            older batch changes, while the ledger restores what Redis lost.
        queued_jobs: Default limit of the quota, as are ``queued_bytes`` and ``result_bytes``; 0 means unlimited.
    """

    idempotency_s: float = 86_400
    quantum_s: float = 1.0
    restore_wait_s: float = 30.0
    queued_jobs: int = 250_000
    queued_bytes: int = 256 << 20
    result_bytes: int = 10 << 30

    def stored(self) -> dict[str, int]:
        """Return the fields of the hash in Redis; times in milliseconds."""
        return {
            "idempotency": round(self.idempotency_s * 1000),
            "quantum": round(self.quantum_s * 1000),
            "restore_wait": round(self.restore_wait_s * 1000),
            **{quota.name: getattr(self, quota.name) for quota in QUOTAS},
        }


def _strings(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f"'{name}'" for name in names) + " }"


def _words(words: Iterable[str]) -> str:
    """Return a Lua string of words that ``string.find`` searches; a table would be made anew by each call."""
    return "'" + " ".join(sorted(words)) + "'"


def _record() -> str:
    """Return Lua that reads and packs the record of a batch.

    The values are written out, because Lua then makes the table, and Redis the command, in one step.
    """
    place = {name: at for at, name in enumerate(RECORD_VALUES, 1)}
    values = [f"{name} = raw[{at}]" + ("" if name in TEXT_VALUES else " or 0") for name, at in place.items()]
    values += [f"was_{name} = raw[{place[name]}] or 0" for name in ("pending", "running", "error", "bytes")]
    values.append(f"was_open = raw[{place['open']}] == 1")
    names = ", ".join(f"'{name}'" for name in RECORD_VALUES)
    text = ", ".join(str(name in TEXT_VALUES).lower() for name in RECORD_VALUES)
    rare = " + ".join(f"b.{name}" for name in RARE_FIELDS)
    return f"""
local VERSION, OLDER = '{RECORD_VERSION}', '{OLDER.decode()}'
local NO_TIMES = '{NO_TIMES.decode()}'
local USUAL_VALUES = {len(RECORD_VALUES) - len(RARE_FIELDS)}
local function read_batch(id, raw)
  return {{ id = id, events = {{}}, asked = {{}}, changed = {{}}, {", ".join(values)} }}
end
local function pack_made(b) return {_packing(MADE_FIELDS)} end
local function pack_times(b) return {_packing(TIME_FIELDS)} end
local function pack_now(b)
  local usual = {_packing(NOW_FIELDS)}
  if {rare} == 0 then return usual end
  return usual .. ',' .. {_packing(RARE_FIELDS)}
end
local function read_older(name)
  local raw = redis.call('HMGET', name, {names})
  if not (raw[{place["device"]}] and raw[{place["status"]}]) then return nil end
  for at, value in ipairs({{ {text} }}) do raw[at] = value and (raw[at] or '') or tonumber(raw[at] or 0) end
  return raw
end
local function drop_older(name) redis.call('HDEL', name, {names}) end
"""


def _packing(names: Sequence[str]) -> str:
    """Return a Lua expression that packs these values of the batch ``b``. Texts are names of devices, and words."""
    pattern = ",".join('"%s"' if name in TEXT_VALUES else "%d" for name in names)
    values = (f"b.{name} or ''" if name in TEXT_VALUES else f"b.{name}" for name in names)
    return f"string.format('{pattern}', {', '.join(values)})"


def _settings() -> str:
    """Return Lua that reads the settings, or their defaults."""
    defaults = {**StoreConfig().stored(), MEMORY: 0}
    names = ", ".join(f"'{name}'" for name in defaults)
    values = ", ".join(
        f"{name} = tonumber(raw[{at}] or {value})" for at, (name, value) in enumerate(defaults.items(), 1)
    )
    return (
        "local function read_settings(name)\n"
        f"  local raw = redis.call('HMGET', name, {names})\n"
        f"  return {{ {values} }}\n"
        "end"
    )


def _quotas() -> str:
    counters = dict.fromkeys(counter for quota in QUOTAS for counter in quota.counters)
    fields = _strings((*counters, *(f"max:{quota.name}" for quota in QUOTAS)))
    places = {name: at for at, name in enumerate((*counters, *(quota.name for quota in QUOTAS)), 1)}
    rows = ", ".join(
        f"{{ name = '{quota.name}', max = {places[quota.name]}, "
        f"counters = {{ {', '.join(str(places[counter]) for counter in quota.counters)} }} }}"
        for quota in QUOTAS
    )
    return f"local QUOTA_FIELDS, QUOTAS, MEMORY_SHARES = {fields}, {{ {rows} }}, {MEMORY_SHARES}"


def generated_includes() -> dict[str, str]:
    """Return the includes that are generated from Python's definitions, so that Python and Lua agree."""
    job_moves = {before.letter + after.letter for (before, _), after in JOB_TABLE.items() if before is not after}
    job_moves.add("RC")  # RETRY, RECLAIM or GIVE_BACK of a job whose cancel was requested
    batch_moves = {before.letter + after.letter for (before, _), after in BATCH_TABLE.items()}
    batch_moves.add(BatchStatus.PAUSED.letter + BatchStatus.PENDING.letter)  # RESUME when no job ever began
    assert (BatchStatus.PAUSED, BatchEvent.RESUME) in BATCH_TABLE
    penalties = ", ".join(f"{priority.value} = {round(s * 1000)}" for priority, s in PENALTIES_S.items())
    over = ", ".join(f"{status.letter} = true" for status in sorted(TERMINAL_JOB))
    fresh = _strings(("P", "0", *("-" for _ in STATE_FIELDS[2:USUAL_WORDS])))
    return {
        "state": f"local function fresh_state() return {fresh} end",
        "record": _record(),
        "job_moves": f"local JOB_MOVES = {_words(job_moves)}",
        "batch_moves": f"local BATCH_MOVES = {_words(batch_moves)}",
        "job_over": f"local JOB_OVER = {{ {over} }}",
        "priorities": f"local PENALTY = {{ {penalties} }}",
        "specs": f"local SPECS_FIELDS = {_strings(SPECS_FIELDS)}",
        "settings": _settings(),
        "calls": f"local CALL_LEASE, CALL_RETRY = {round(CALL_LEASE_S * 1000)}, {round(CALL_RETRY_S * 1000)}",
        "quotas": _quotas(),
        "sizes": f"local BATCH_BYTES, JOB_BYTES = {BATCH_BYTES}, {JOB_BYTES}",
        "attempts": f"local CRASH_MAX, LOST_MAX = {CRASHES_MAX}, {LOST_MAX}\n"
        f"local LOST_FAULT = [==[{encode_fault(_LOST).decode()}]==]",
    }


_INCLUDE = re.compile(r"(?m)^-- include: (.+)\n")
_ARGUMENTS = re.compile(r"(?m)^-- ARGV (.*(?:\n--     .*)*)")
_ARGUMENT = re.compile(r"(\w+):(str|bytes|int|digits|any|\{[^}]*\})(\.\.\.|\[\])?")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "bytes": (bytes,),
    "int": (int,),  # a number in Lua
    "digits": (int,),  # stays text in Lua
    "any": (str, bytes, int, float),
}


def resolve_includes(text: str, read: Callable[[str], str]) -> list[str]:
    """Return the includes of a script in the order in which Lua needs them, each once.

    Args:
        text: The script, whose line ``-- include: a, b`` names them.
        read: Returns the text of an include, which may include others.

    Raises:
        ValueError: An include does not exist, or includes itself.
    """
    found: dict[str, str] = {}

    def add(text: str, path: tuple[str, ...]) -> None:
        for name in included_names(text):
            if name in path:
                raise ValueError(f"circular includes: {' -> '.join((*path, name))}")
            if name not in found:
                try:
                    include = read(name)
                except (OSError, KeyError) as error:
                    by = f" (included by {path[-1]})" if path else ""
                    raise ValueError(f"there is no include {name!r}{by}") from error
                add(include, (*path, name))
                found[name] = include

    add(text, ())
    return list(found.values())


def included_names(text: str) -> list[str]:
    """Return the includes that a script or an include names."""
    return [name for line in _INCLUDE.findall(text) for name in line.split(", ")]


class _Argument(NamedTuple):
    """An argument of a script. A list has rows of these columns; if other arguments follow, its length comes first."""

    name: str
    columns: tuple[str, ...]
    is_list: bool
    is_counted: bool

    @classmethod
    def parse(cls, name: str, kind: str, many: str) -> _Argument:
        columns = tuple(column.partition(":")[2] for column in kind[1:-1].split()) if kind[0] == "{" else (kind,)
        return cls(name, columns, is_list=many != "", is_counted=many == "[]")

    def flatten(self, rows: Sequence[Any]) -> list[Any]:
        """Return the values of a list. Only the first row's types are checked: there may be many."""
        width = len(self.columns)
        values = list(rows) if width == 1 else list(itertools.chain.from_iterable(rows))
        if width > 1 and len(values) != len(rows) * width:
            raise TypeError(f"{self.name} takes rows of {width} values")
        for value, column in zip(values, self.columns, strict=False):
            if not isinstance(value, _TYPES[column]):
                raise TypeError(f"{self.name} must be {column}, not {type(value).__name__}")
        return [len(values), *values] if self.is_counted else values


_CONSTANT = re.compile(r"\b(KEY|S)\.(\w+)")


def fold_constants(text: str) -> str:
    """Replace the constants ``KEY.<name>`` (a pattern of keys) and ``S.<name>`` (a place in a job's state) by values.

    A table of them would be made anew by each call of a script.
    """

    def value(found: re.Match[str]) -> str:
        table, name = found.groups()
        return f"'{Key[name.upper()].value}'" if table == "KEY" else str(STATE_FIELDS.index(name) + 1)

    return _CONSTANT.sub(value, text)


class Script:
    """A script with its includes and its arguments. source: its text before constants are folded."""

    def __init__(self, name: str, source: str, arguments: Sequence[_Argument]) -> None:
        self.name, self.source, self.arguments = name, source, arguments
        self.text = fold_constants(source)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self._names = frozenset(it.name for it in arguments)
        self._plain = [(it.name, _TYPES[it.columns[0]]) for it in arguments if not it.is_list]
        self._lists = [it for it in arguments if it.is_list]

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        """Return ARGV with these values. Raises TypeError for a name or type that the header does not declare."""
        if values.keys() != self._names:
            raise TypeError(f"{self.name} takes {', '.join(it.name for it in self.arguments)}; got {', '.join(values)}")
        bound = []
        for name, types in self._plain:
            value = values[name]
            if not isinstance(value, types):
                kind = next(it.columns[0] for it in self.arguments if it.name == name)
                raise TypeError(f"{name} must be {kind}, not {type(value).__name__}")
            bound.append(value)
        for argument in self._lists:
            bound += argument.flatten(values[argument.name])
        return bound


def read_arguments(text: str) -> tuple[_Argument, ...]:
    """Read the arguments that a header declares, as in ``-- ARGV ticket:str   jobs:{index:int stage:str}...``."""
    found = _ARGUMENTS.search(text)
    return tuple(_Argument.parse(*parts) for parts in _ARGUMENT.findall(found[1])) if found else ()


def name_arguments(arguments: Sequence[_Argument]) -> Iterator[str]:
    """Yield lines of Lua that assign names to ARGV's values; for a list, to the positions of its first and last one."""
    plain = [it for it in arguments if not it.is_list]
    if plain:
        values = (
            f"tonumber(ARGV[{at}])" if it.columns == ("int",) else f"ARGV[{at}]" for at, it in enumerate(plain, 1)
        )
        yield f"local {', '.join(it.name for it in plain)} = {', '.join(values)}"
    place = f"{len(plain) + 1}"
    for it in arguments[len(plain) :]:
        ends = f"{place} + 1, {place} + tonumber(ARGV[{place}])" if it.is_counted else f"{place}, #ARGV"
        yield f"local {it.name}_first, {it.name}_last = {ends}"
        place = f"{it.name}_last + 1"


_LEVEL_NAMES = 30  # of local variables, before the next part goes into another function

_DEFINED = re.compile(r"(?m)^local (?:function )?([\w, ]+)")


def nest_parts(parts: Sequence[str]) -> str:
    """Join the parts of a script, with a nested function after every few of them.

    Each call of a script creates all of its functions. For each local variable that a function uses, Lua then searches
    the variables of the enclosing function that other functions use, which takes long if these are many. A function may
    use at most 60 variables of the enclosing ones.
    """
    levels, names = [[parts[0]]], 0
    for part in parts[1:]:
        if names >= _LEVEL_NAMES:
            levels.append([])
            names = 0
        levels[-1].append(part)
        names += sum(found.count(",") + 1 for found in _DEFINED.findall(part))
    joined = "\nreturn (function()\n".join("\n".join(level) for level in levels)
    return joined + "\nend)()" * (len(levels) - 1)


@functools.cache
def _load() -> dict[str, Script]:
    folder = resources.files("tweezer.store") / "lua"
    generated = generated_includes()

    def read(name: str) -> str:
        kind, _, rest = name.rpartition("/")
        return generated[rest] if kind else (folder / "include" / f"{name}.lua").read_text("utf-8")

    scripts = {}
    for file in folder.iterdir():
        if file.name.endswith(".lua"):
            name, text = file.name.removesuffix(".lua"), file.read_text("utf-8")
            arguments = read_arguments(text)
            parts = (*resolve_includes(text, read), *name_arguments(arguments), text)
            scripts[name] = Script(name, nest_parts(parts), arguments)
    return scripts


def script_names() -> list[str]:
    """Return the names of all scripts."""
    return sorted(_load())


def script_text(name: str) -> str:
    """Return the text of a script with its includes, and with its constants by name."""
    return _load()[name].source


def eval_command(keys: Keys, name: str, /, **arguments: Any) -> tuple[Any, ...]:
    """Return the EVAL command that runs a script, for a server that may not have loaded it."""
    script = _load()[name]
    return ("EVAL", script.text, 1, keys.prefix, *script.bind(arguments))


def script_arguments(name: str) -> tuple[str, ...]:
    """Return the names of a script's arguments."""
    return tuple(argument.name for argument in _load()[name].arguments)


_REFUSED = re.compile(
    r"(?:Error running script .*?-)?(?:MISCONF|LOADING|READONLY|MASTERDOWN|NOREPLICAS|BUSY|UNBLOCKED|TRYAGAIN)\b"
)
"""The beginning of temporary errors that have no class in redis-py, which strips the prefixes that it knows.

Redis 6.2 puts a prefix before an error that occurs in a script.
"""


_FORBIDDEN_IN_SCRIPT = re.compile("ACL failure in script|The user executing the script can't")


def _forbidden(text: str) -> TweezerError:
    return TweezerError(
        f"the user in TWEEZER_REDIS_URL lacks a permission in Redis ({text}); use the user that `tweezer redis-users` "
        "makes for this process; after an upgrade, run that command again, then ACL LOAD",
        code="redis_auth",
    )


_CONNECTING = re.compile(r"Error .* connecting to (\S+?)\.(?: (.*?)\.?)?", re.DOTALL)


def _why_unreachable(text: str) -> str:
    """Shorten redis-py's description of a failed connection."""
    if "as reply type byte" in text:
        return "another kind of server answers at its URL; check the port (the API has a different one)"
    if failed := _CONNECTING.fullmatch(text):
        place, reason = failed.groups()
        return f"no server listens at {place}" if "Connect call failed" in text else f"{reason or ''} ({place})".lower()
    return text


def translate_error(error: redis_errors.RedisError) -> TweezerError:
    """Convert an error of Redis to Tweezer's error."""
    text = str(error)
    match error:
        case redis_errors.OutOfMemoryError():
            return QueueFull("Redis has reached its maxmemory; wait until work finishes, or raise maxmemory")
        case redis_errors.NoPermissionError():
            return _forbidden(text)
        case redis_errors.AuthenticationError() if text.startswith("Authentication required"):
            return TweezerError("Redis requires a password", code="redis_auth")
        case redis_errors.AuthenticationError():
            return TweezerError(f"Redis rejects the credentials in TWEEZER_REDIS_URL: {text}", code="redis_auth")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError():
            return Unavailable(f"Redis cannot be reached: {_why_unreachable(text)}")
        case _ if _FORBIDDEN_IN_SCRIPT.search(text):
            return _forbidden(text)
        case _ if "GATE_SHUT" in text:  # raised by refuse_while_shut
            return Unavailable(
                "Redis has restarted, and the work that it lost is being restored from the ledger; try again"
            )
        case redis_errors.InvalidResponse():
            return Unavailable(f"Redis sent an invalid reply: {text}")
        case _ if "OOM command not allowed" in text:
            return QueueFull("Redis has reached its maxmemory; wait until work finishes, or raise maxmemory")
        case redis_errors.ReadOnlyError():
            return Unavailable(f"this Redis is a replica, which does not accept writes: {text}")
        case _ if _REFUSED.match(text):
            return Unavailable(f"Redis refuses requests at the moment: {text}")
        case _ if "WRONGTYPE" in text:
            return Unreadable(f"a Redis key does not have the type that Tweezer uses for it: {text}")
        case _:
            return TweezerError(f"Redis returned an error: {text}", code="redis")


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Convert errors of Redis and of the connection to Tweezer's errors."""
    try:
        yield
    except redis_errors.RedisError as error:
        raise translate_error(error) from error
    except OSError as error:
        raise Unavailable(f"Redis cannot be reached: {error}") from error


async def ask(call: Any) -> Any:
    """Await a reply of Redis, converting its errors. The reply is Any because redis-py's types are incomplete."""
    with translating():
        return await call


def split_pages(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in pages of at most ``size``."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


class Scripts:
    """The scripts of one namespace on one Redis."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self._scripts = _load()

    async def call_after(self, command: tuple[Any, ...], name: str, /, **arguments: Any) -> list[Any]:
        """Send a command and a script together, and return the script's reply. Raises as :meth:`call`."""
        script = self._scripts[name]
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.execute_command(*command)
        pipeline.execute_command("EVALSHA", script.sha, 1, self.keys.prefix, *script.bind(arguments))
        with translating():
            try:
                _, reply = await pipeline.execute()
            except redis_errors.NoScriptError:
                return await self.call(name, **arguments)
        return cast(list[Any], reply)

    async def call_ok(self, name: str, /, **arguments: Any) -> bool:
        """Run a script as :meth:`call`, and return whether its reply is ``ok``."""
        return bool((await self.call(name, **arguments))[0] == b"ok")

    async def call(self, name: str, /, **arguments: Any) -> list[Any]:
        """Run a script with the arguments that its header declares, and return its reply (bytes, integers, lists).

        Raises Unavailable if Redis does not respond; it is then unknown whether the script ran. Many scripts also
        raise it, without changing anything, while the gate is shut; see their headers. Raises TypeError for wrong
        arguments.
        """
        script = self._scripts[name]
        call = (1, self.keys.prefix, *script.bind(arguments))
        with translating():
            try:
                reply = await self.redis.execute_command("EVALSHA", script.sha, *call)
            except redis_errors.NoScriptError:
                reply = await self.redis.execute_command("EVAL", script.text, *call)
        return cast(list[Any], reply)
