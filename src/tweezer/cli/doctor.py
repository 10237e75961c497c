"""``tweezer doctor``: check the installation and explain the findings."""

from __future__ import annotations

import asyncio
import difflib
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import click
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from tweezer import __version__
from tweezer.adapters.lane import jail
from tweezer.cli.ledger_checks import (
    Finding,
    Level,
    WebhookState,
    check_api,
    check_health,
    check_installation,
    check_keeping,
    check_recorder,
    check_results_folder,
    check_scheduler,
    check_unread_recorder,
    check_webhooks,
    examine_couriers,
    fail,
    ok,
    print_findings,
    read_ledger_health,
    read_webhook_state,
    warn,
)
from tweezer.cli.local.redis_server import OLDEST
from tweezer.cli.options import Options, advise_on_redis, clock, name_host, pass_options
from tweezer.data_folder import API_CA_FILE, API_URL
from tweezer.model.errors import TweezerError
from tweezer.model.messages import RECORD_VERSION
from tweezer.model.summaries import format_count
from tweezer.model.windows import UnavailabilityKind
from tweezer.settings import CONFIG_VARIABLE, PREFIX, SECRET_FILES, SETTINGS, Settings
from tweezer.store.connection import Store
from tweezer.store.keys import Key, Keys
from tweezer.store.measures import ProcessKind
from tweezer.store.records import DeviceRecord, Lease, WorkerRecord
from tweezer.store.remote import Durability, NotDurable, Remote
from tweezer.store.scripts import ask
from tweezer.store.streams.feed import START
from tweezer.worker.config import WorkerConfig

_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, API_URL, API_CA_FILE, "TWEEZER_REQUIRE_SERVERS", *SECRET_FILES.values()})
_SLOW_MS = 20.0
_SET_BACK_SHOWN = timedelta(days=7)
_GO_ON = {
    UnavailabilityKind.PAUSED: "to end the pause: tweezer resume {name}",
    UnavailabilityKind.MAINTENANCE: "it resumes by itself; to end it now: tweezer maintenance {name} list, and remove",
    UnavailabilityKind.DOWN: "the machine reports this; `tweezer devices` shows when it is back",
}
_DURABLE = {
    Durability.WAIT: "Redis can confirm that a write is on disk (WAITAOF)",
    Durability.ALWAYS: "Redis confirms a write only when it is on disk (appendfsync always)",
}
_PERSIST = "run `redis-cli CONFIG SET appendonly yes`, and set it in redis.conf; see deploy/redis.conf for an example"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@pass_options
def doctor(options: Options, *, as_json: bool) -> None:
    """Check Redis, the ledger, the processes and the settings; explain each finding and what to change.

    The exit code is 1 if a check FAILs.
    """
    print_findings(asyncio.run(examine(options)), as_json=as_json)


async def examine(options: Options) -> list[Finding]:
    """Run all checks; if Redis does not answer, skip those that need it."""
    findings = list(check_environment(os.environ))
    try:
        settings = options.settings()
    except TweezerError as error:
        return [*findings, fail("settings", error.message, "correct it; no process starts with this setting")]
    health = await asyncio.to_thread(read_ledger_health, settings)
    if isinstance(health, Finding) and health.level is Level.FAIL and options.api_url is not None:
        health = fail(health.name, health.says, name_host("the ledger", options.api_url))
    findings.extend([health] if isinstance(health, Finding) else check_health(health))
    findings.append(check_keeping(settings))
    webhooks = None if isinstance(health, Finding) or health.unfit else await _examine_webhooks(settings, findings)
    try:
        async with options.store() as store:
            began = time.perf_counter()
            await store.reader.ping()
            findings.append(check_latency((time.perf_counter() - began) * 1000))
            findings.append(check_access(settings.redis.url))
            foreign = await store.reader.foreign_keys()
            if foreign:  # the other checks need these keys
                return [*findings, check_keys(foreign)]
            findings.extend([finding async for finding in _examine_queue(store, settings)])
            if isinstance(health, Finding):
                if health.level is not Level.OK:  # the ledger does not answer
                    findings.append(await _examine_recorder(store, None))
            else:
                joined = None if health.unfit else await store.recovery.installation()
                findings.extend(filter(None, [check_installation(health.installation, joined)]))
                findings.append(await _examine_recorder(store, health.positions.get(settings.namespace, START)))
            findings.append(await examine_couriers(store, webhooks))
            findings.append(await _examine_scheduler(store))
            has_keys = not isinstance(health, Finding) and health.has_keys
            findings.append(check_api(await store.processes.find(ProcessKind.API), has_keys=has_keys))
    except TweezerError as error:
        cause = error.__cause__ if isinstance(error.__cause__, TweezerError) else error  # without its advice
        findings.append(fail("Redis", cause.message, advise_on_redis(cause, options.api_url) or "check Redis' log"))
    return findings


async def _examine_webhooks(settings: Settings, findings: list[Finding]) -> WebhookState | None:
    """Read the state of webhooks from the ledger, and add findings about it."""
    try:
        webhooks = await asyncio.to_thread(read_webhook_state, settings)
    except TweezerError as error:
        findings.append(fail("webhooks", error.message, "check the ledger's database"))
        return None
    findings.extend(check_webhooks(webhooks))
    return webhooks


async def _examine_queue(store: Store, settings: Settings) -> AsyncIterator[Finding]:
    info = await store.reader.server_info()
    yield check_server(info)
    yield await check_features(store.redis, store.keys)
    yield check_persistence(info, await _config(store, "appendfsync"))
    yield check_eviction(info)
    yield check_memory(info, WorkerConfig().full_at)
    yield check_idle_timeout(await _config(store, "timeout"))
    devices = await store.reader.devices()
    yield await check_durability(store.remote, devices, settings.machines())
    leases = [lease for device in devices for lease in await store.reader.leases(device.name)]
    workers = await store.reader.workers()
    silent = find_silent(leases, workers, settings)
    if silent:
        yield check_silent(silent)
    if workers or not silent:
        yield check_workers(workers)
    yield check_jails(workers, jail.describe_support())
    yield check_results_folder(settings, {worker.host for worker in workers})
    for finding in check_devices(devices):
        yield finding


async def _examine_scheduler(store: Store) -> Finding:
    messages = await ask(store.redis.zcard(store.keys(Key.INTAKE)))
    return check_scheduler(await store.processes.find(ProcessKind.SCHEDULER), messages=int(messages))


async def _examine_recorder(store: Store, position: str | None) -> Finding:
    """Check the recorder. position: id of the last recorded entry; None if the ledger does not answer."""
    active = await store.redis.exists(store.keys(Key.RECORDER))
    if position is None:
        return check_unread_recorder(active=bool(active))
    waiting = await store.events.read(position, most=1)
    behind_s = None
    if waiting:
        (seconds, _), since_ms = await store.redis.time(), int(waiting[0].id.split("-")[0])
        behind_s = max(seconds - since_ms / 1000, 0.0)
    return check_recorder(active=bool(active), behind_s=behind_s)


async def _config(store: Store, name: str) -> str | None:
    """Return a setting of Redis, or None if this user may not read it."""
    return (await store.reader.server_config(name)).get(name)


def check_environment(environment: Iterable[str]) -> Iterator[Finding]:
    """Warn about unknown variables with the prefix TWEEZER_, which are probably misspelt."""
    known = {setting.variable for setting in SETTINGS.values()} | _OTHER_VARIABLES
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            change = (
                f"rename it to {near[0]}" if near else "remove it, or see the list of settings in the documentation"
            )
            yield warn("environment", f"{name} is not a setting and has no effect", change)


def check_latency(milliseconds: float) -> Finding:
    if milliseconds <= _SLOW_MS:
        return ok("Redis", f"answers within {milliseconds:.1f} ms")
    return warn(
        "Redis",
        f"took {milliseconds:.0f} ms to answer, which delays every job",
        "run the workers close to Redis, and check `redis-cli SLOWLOG GET` for slow commands of other users",
    )


def check_access(url: str) -> Finding:
    """Check whether Redis requires a password. url: the URL by which it was just reached."""
    parts = urlsplit(url)
    if parts.password:
        return ok("access", f"connected as user {parts.username or 'default'}, with a password")
    if parts.scheme == "unix" or (parts.hostname or "") in ("127.0.0.1", "::1", "localhost"):
        return ok("access", "Redis requires no password: every user of its host has full access")
    return warn(
        "access",
        "Redis requires no password: anyone who can reach it has full access to all projects",
        "create users with `tweezer redis-users`, and load them in Redis (aclfile)",
    )


def check_server(info: dict[str, Any]) -> Finding:
    """Check the kind, the version and the role of the server."""
    is_valkey = "valkey_version" in info
    server = (
        f"Valkey {info['valkey_version']}" if is_valkey else f"Redis {info.get('redis_version', 'of unknown version')}"
    )
    if info.get("role", "master") != "master":
        return fail("server", f"{server} is a replica and accepts no writes", "set TWEEZER_REDIS_URL to the primary")
    if info.get("cluster_enabled"):
        return fail(
            "server",
            f"{server} runs in cluster mode, but the scripts use keys of several slots",
            "use a single primary, with Sentinel for high availability",
        )
    if not is_valkey and _version(str(info.get("redis_version", "0"))) < OLDEST:
        return fail("server", f"{server} is too old", f"install Redis {OLDEST[0]}.{OLDEST[1]} or newer, or Valkey")
    return ok("server", f"{server}, a primary")


async def check_features(redis: Redis, keys: Keys) -> Finding:
    """Try the commands that the scripts need on a key that does not exist, so that nothing is written."""
    nothing = f"{keys.prefix}doctor"
    attempts: dict[str, tuple[str | int, ...]] = {
        "scripts": ("EVAL", "return redis.call('TIME')", 0),
        "XTRIM … MINID": ("XTRIM", nothing, "MINID", "0"),
        "ZRANGE … BYSCORE": ("ZRANGE", nothing, 0, 0, "BYSCORE", "LIMIT", 0, 1),
        "XAUTOCLAIM": ("COMMAND INFO", "XAUTOCLAIM"),
    }
    missing = []
    for name, command in attempts.items():
        try:
            reply = await redis.execute_command(*command)
        except redis_errors.ResponseError as error:
            missing.append(f"{name} ({error})")
            continue
        if name == "XAUTOCLAIM" and not any(reply or ()):  # the command is unknown
            missing.append(name)
    if missing:
        return fail(
            "commands",
            f"Redis refuses commands that the queue needs: {', '.join(missing)}",
            "use Redis 6.2 or newer, or Valkey; if Redis has users, run the doctor as the operator's user",
        )
    return ok("commands", "Redis supports all commands that the queue needs")


async def check_durability(remote: Remote, devices: list[DeviceRecord], configured: list[str]) -> Finding:
    """Check whether Redis has a job's start on disk before a machine runs it; writes nothing.

    devices: those without workers and work do not matter. configured: the machines in the settings, announced or not.
    """
    try:
        how = await remote.require_durability()
    except NotDurable as error:
        in_use = [device for device in devices if device.lanes or device.pending or device.running]
        announced = {device.name for device in in_use if device.exclusive or device.reattaches}
        if machines := sorted({*announced, *configured}):
            problem = f"{error.message}; workers of {', '.join(machines)} cannot start"
            return fail("durability", problem, "change the setting of Redis, then start the workers of the machine")
        return ok("durability", f"sufficient for emulators, but not for a QPU: {error.message}")
    return ok("durability", f"{_DURABLE[how]}, sufficient for a QPU")


def check_persistence(info: dict[str, Any], appendfsync: str | None) -> Finding:
    """Check the append-only file, without which Redis may lose an acknowledged submit."""
    if not info.get("aof_enabled"):
        return fail("persistence", "no append-only file: a restart of Redis loses queued work and results", _PERSIST)
    if info.get("aof_last_write_status", "ok") != "ok":
        return fail(
            "persistence",
            "the last write of the append-only file failed, so Redis refuses writes",
            "check for a full disk, and check Redis' log",
        )
    if appendfsync is None:
        return warn(
            "persistence",
            "append-only file; its sync interval cannot be read (this user lacks +config|get)",
            "run the doctor as the operator's Redis user, or ensure that appendfsync is everysec or always",
        )
    if appendfsync == "no":
        return warn(
            "persistence",
            "appendfsync=no: a power failure can lose half a minute of acknowledged work",
            "run `redis-cli CONFIG SET appendfsync everysec`, and set it in redis.conf",
        )
    costs = "nothing" if appendfsync == "always" else "a second or two of work"
    return ok("persistence", f"append-only file with appendfsync={appendfsync}: a power failure loses {costs}")


def check_eviction(info: dict[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return ok("maxmemory-policy", "noeviction: Redis never evicts live work")
    return fail(
        "maxmemory-policy",
        f"{policy}: Redis deletes keys of live batches when its memory is full",
        "run `redis-cli CONFIG SET maxmemory-policy noeviction`, and set it in redis.conf",
    )


def check_memory(info: dict[str, Any], full_at: float) -> Finding:
    used, limit, host = (int(info.get(name, 0)) for name in ("used_memory", "maxmemory", "total_system_memory"))
    suggestion = f"{max(int(0.6 * host) >> 20, 64)}mb" if host else "60 % of the host's memory"
    if not limit:
        return warn(
            "memory",
            f"{_mib(used)} used, maxmemory is not set: when memory runs out, the system kills Redis",
            f"set maxmemory, here to {suggestion} or less; submits are then refused from {full_at:.0%} on",
        )
    usage = f"{_mib(used)} of {_mib(limit)} used"
    if used >= full_at * limit:
        return fail(
            "memory",
            f"{usage}: submits are refused from {full_at:.0%} on",
            "let work finish, delete ended batches, shorten TWEEZER_REDIS_GRACE_S, or raise maxmemory",
        )
    if used >= 0.75 * full_at * limit:
        return warn("memory", f"{usage}: submits are refused from {full_at:.0%} on", "raise maxmemory")
    return ok("memory", usage)


def check_keys(foreign: dict[str, tuple[str, str]]) -> Finding:
    """Report keys of the wrong type, written by another program. Processes that need them wait."""
    shown = ", ".join(f"{key} is a {kind} instead of a {right}" for key, (kind, right) in sorted(foreign.items()))
    advice = f"run `redis-cli RENAME {min(foreign)} foreign`, or set another TWEEZER_NAMESPACE; the processes continue"
    return fail("keys", f"another program uses keys of Tweezer in Redis: {shown}", advice)


def check_idle_timeout(timeout_s: str | None) -> Finding:
    if timeout_s is None:
        return ok("timeout", "cannot be read (this user lacks +config|get)")
    if timeout_s == "0":
        return ok("timeout", "Redis keeps idle connections open")
    return warn(
        "timeout",
        f"Redis closes connections that are idle for {timeout_s} s, including those that wait for notifications",
        "run `redis-cli CONFIG SET timeout 0`, and set it in redis.conf",
    )


def check_workers(workers: list[WorkerRecord]) -> Finding:
    """Check that workers run, all of the same version as this command."""
    if not workers:
        return warn(
            "workers", "no worker is running, so no job will start", "start one: tweezer worker --device EMU_FREE"
        )
    strange = sorted({f"{it.host} ({it.version})" for it in workers if it.record_version != RECORD_VERSION})
    if strange:
        return fail(
            "workers",
            f"some have another record version than {__version__} here, and ignore its batches: {', '.join(strange)}",
            "upgrade all processes to the same version",
        )
    others = sorted({f"{it.host} ({it.version})" for it in workers if it.version != __version__})
    if others:
        return warn(
            "workers",
            f"some have another version than {__version__} here: {', '.join(others)}",
            "upgrade all processes to the same version when you can",
        )
    lanes = sum(worker.lanes for worker in workers)
    return ok(
        "workers", f"{format_count(len(workers), 'worker')} with {format_count(lanes, 'lane')}, version {__version__}"
    )


def find_silent(leases: Iterable[Lease], workers: Iterable[WorkerRecord], settings: Settings) -> list[str]:
    """Find the workers that renew leases but send no heartbeat.

    The last heartbeat of a dead worker expires after two to three intervals; its leases are then older.
    """
    live = {worker.id for worker in workers}
    renewed_s = settings.worker.lease_s - 2 * settings.worker.heartbeat_s
    return sorted({lease.worker for lease in leases if lease.left_s > renewed_s} - live)


def check_silent(silent: list[str]) -> Finding:
    named = ", ".join(silent)
    return fail(
        "heartbeats",
        f"no heartbeats from working workers: {named} (host:process:…); their lanes get no new batches",
        "check `duty.failed` in their logs, and restart them",
    )


def check_jails(workers: list[WorkerRecord], offered: str) -> Finding:
    """Check what workers report about the jails of their lanes. offered: the jail that this host's kernel supports."""
    reported = [it for it in workers if it.jail]
    unjailed = sorted({f"{it.device} on {it.host} ({it.jail})" for it in reported if it.jail != jail.COMPLETE})
    if unjailed:
        return warn(
            "lane jail",
            f"incomplete: {', '.join(unjailed)}; a compromised lane there can access everything that its worker can",
            "run workers on Linux 5.13 or newer with Landlock and seccomp, without TWEEZER_WORKER_JAIL=off",
        )
    found = f"complete on {len(reported)} of {len(workers)} workers; " if workers else ""
    return ok("lane jail", f"{found}support on this host: {offered}. Jails are untested with GPUs")


def check_devices(devices: list[DeviceRecord]) -> Iterator[Finding]:
    now = datetime.now(UTC)
    for device in devices:
        name = f"device {device.name}"
        if device.set_back is not None and now - device.set_back < _SET_BACK_SHOWN:
            yield warn(
                name,
                f"the machine restarted its job ids (noticed {clock(device.set_back)}); its earlier jobs end as "
                "`unknown`",
                "check that the machine was reinstalled or reset, and that base_url is the right machine",
            )
        if device.unsure is not None and device.lanes:
            yield _check_answer(name, device)
        hold = device.unavailability(now)
        work = f"{format_count(device.pending, 'pending job')}, {format_count(device.running, 'running job')}"
        if hold is not None and hold.kind is not UnavailabilityKind.UNSERVED:
            yield warn(
                name,
                f"{hold.describe(clock)}; {work}",
                _GO_ON[hold.kind].format(name=device.name),
            )
        elif device.lanes:
            yield ok(name, f"{format_count(device.lanes, 'lane')}, {work}")
        elif device.pending or device.running:
            yield fail(name, f"{work}, but no worker is running", f"start one: tweezer worker --device {device.name}")
        else:
            yield warn(
                name,
                "no worker serves it, and it has no work",
                f"start one: tweezer worker --device {device.name}; or remove it: tweezer devices forget {device.name}",
            )


def _check_answer(name: str, device: DeviceRecord) -> Finding:
    """Report a machine that does not answer. It is a failure while jobs depend on it."""
    since = "" if device.unsure_since is None else f" since {clock(device.unsure_since)}"
    says = f"its machine has not answered{since}: {device.unsure}"
    change = "check the machine, its base_url and the network; its worker asks again and logs `machine.condition`"
    return (fail if device.pending or device.running else warn)(name, says, change)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size < 100 << 20 else f"{size >> 20} MiB"
