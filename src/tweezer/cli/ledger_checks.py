"""The checks of the ledger and of webhooks, for ``tweezer db check`` and ``tweezer doctor``."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tweezer.cli import show
from tweezer.cli.options import exit_unless, print_json
from tweezer.ledger.config import sqlite_file
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.messages import RECORD_VERSION
from tweezer.model.summaries import format_count, format_duration
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.measures import measure

if TYPE_CHECKING:
    from tweezer.ledger.dead_letters import Consumer, LetterCounts
    from tweezer.ledger.health import LedgerHealth
    from tweezer.ledger.schedules.ticks import ScheduleHealth
    from tweezer.webhooks.health import ReceiverHealth, SecretHealth, WebhookHealth


class Level(StrEnum):
    """``FAIL``: a guarantee of the queue does not hold, or work has stopped. ``WARN``: worth a look."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: what was found, and what to change, if anything."""

    name: str
    level: Level
    says: str
    change: str | None = None


def ok(name: str, says: str) -> Finding:
    return Finding(name, Level.OK, says)


def warn(name: str, says: str, change: str) -> Finding:
    return Finding(name, Level.WARN, says, change)


def fail(name: str, says: str, change: str | None = None) -> Finding:
    return Finding(name, Level.FAIL, says, change)


_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print findings, and end the command with exit code 1 if one is a FAIL."""
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            show.echo("\n".join(_lines(finding, show.width())))
    exit_unless(all(finding.level is not Level.FAIL for finding in findings))


def _lines(finding: Finding, columns: int) -> list[str]:
    label = show.style(f"{finding.level.value:<4}", fg=_COLOURS[finding.level], bold=finding.level is not Level.OK)
    indent = " " * 6
    wrap = textwrap.TextWrapper(columns, indent, indent, break_on_hyphens=False, break_long_words=False)
    says = wrap.fill(f"{finding.name}: {finding.says}")
    lines = [f"{label}  {show.style(finding.name, bold=True)}{says[len(indent + finding.name) :]}"]
    if finding.change:
        wrap.subsequent_indent = indent + "  "
        lines.append(wrap.fill(f"→ {finding.change}"))
    return lines


OLDEST_POSTGRES = 15
"""The oldest version that Tweezer is tested with."""

_SLOW_RECORDER_S = 30.0
_OVERDUE_S = 60.0
_REACH = "start the database, or set TWEEZER_DATABASE_URL; docs/operations/database.md explains how to set one up"


def read_ledger_health(settings: Settings) -> LedgerHealth | Finding:
    """Read the state of the ledger's database, or return why it cannot be read. Creates no file."""
    if importlib.util.find_spec("sqlalchemy") is None:
        return ok("ledger", "not checked: a host that only runs workers or producers does not need it")
    from tweezer.ledger.database import Database
    from tweezer.ledger.health import read_health

    given = settings.locate_ledger()
    file = sqlite_file(given.url)
    if file is not None and not file.is_file():
        return fail("ledger", f"the file {file} does not exist", "run `tweezer db upgrade`")
    try:
        with closing(Database.open(given)) as database:
            return read_health(database)
    except TweezerError as error:
        return fail("ledger", error.message, _REACH)


def check_health(health: LedgerHealth) -> Iterator[Finding]:
    """Check the tables, write access, and durability."""
    kind = "SQLite" if health.is_sqlite else "PostgreSQL"
    version = health.settings["version" if health.is_sqlite else "server_version"].split()[0]
    if health.unfit is not None:
        yield fail("ledger", health.unfit)
    elif health.refusal is not None:
        yield fail(
            "ledger",
            f"{health.place} rejects writes: {health.refusal}",
            "set TWEEZER_DATABASE_URL to a primary and a user who owns the tables; or check for a full disk",
        )
    else:
        yield ok("ledger", f"{kind} {version} at {health.place}, tables up to date")
    if health.letters:
        yield check_letters(health.letters)
    if health.schedules is not None and (finding := check_schedules(health.schedules)) is not None:
        yield finding
    if health.newer:
        yield fail(
            "record version",
            f"{health.newer} batches were written by a newer Tweezer (record version above {RECORD_VERSION}) and are "
            "ignored",
            "upgrade all processes to the same version",
        )
    yield from _check_sqlite(health.settings) if health.is_sqlite else _check_postgres(health.settings)


def _check_sqlite(settings: dict[str, str]) -> Iterator[Finding]:
    mode = settings["journal_mode"]
    if mode == "wal":
        yield ok("ledger journal", "write-ahead log: readers and writers do not block each other")
    else:
        yield warn(
            "ledger journal",
            f"journal mode {mode}: readers and writers block each other",
            "keep the file on a local disk, because network file systems do not support WAL; or use PostgreSQL",
        )


def _check_postgres(settings: dict[str, str]) -> Iterator[Finding]:
    if int(settings["server_version"].split(".")[0]) < OLDEST_POSTGRES:
        yield warn(
            "ledger server",
            f"PostgreSQL {settings['server_version']} is older than what Tweezer is tested with",
            f"upgrade it to {OLDEST_POSTGRES} or newer",
        )
    if settings["server_encoding"] != "UTF8":
        yield fail(
            "ledger encoding",
            f"{settings['server_encoding']}: names and tags in other scripts cannot be recorded",
            "create the database again with `createdb --encoding=UTF8 --template=template0`",
        )
    lossy = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if settings[name] == "off"]
    if lossy:
        yield fail(
            "ledger durability",
            f"{' and '.join(lossy)} off: a crash of the host can lose recorded batches, which Redis no longer holds",
            "turn it on in postgresql.conf",
        )
    else:
        yield ok("ledger durability", "a commit is on disk")


def check_letters(letters: Mapping[Consumer, LetterCounts]) -> Finding:
    """Check the dead letters, and how many were dropped."""
    there = {consumer: it for consumer, it in letters.items() if it.letters}
    evicted = sum(it.evicted for it in letters.values())
    lost = f"; {evicted} were dropped because of their number or age" if evicted else ""
    if not there:
        return ok("dead letters", f"none{lost}")
    many = ", ".join(f"{it.letters} from the {consumer.value}" for consumer, it in there.items())
    oldest = min(it.oldest for it in there.values() if it.oldest is not None)
    return fail(
        "dead letters",
        f"{many}, since {show.minute(oldest)}; later messages of the same batches wait{lost}",
        "see `tweezer dead-letters list` for the errors; then retry or drop them",
    )


def check_recorder(*, active: bool, behind_s: float | None) -> Finding:
    """Check whether a recorder is active. behind_s: age of the oldest unrecorded event; None if all are recorded."""
    start = "start one: tweezer recorder"
    if not active and behind_s is not None:
        return fail(
            "recorder",
            f"no recorder is active: {format_duration(behind_s)} of events are waiting in Redis",
            start,
        )
    if not active:
        return warn("recorder", "no recorder is active; all events so far are recorded", start)
    if behind_s is not None and behind_s > _SLOW_RECORDER_S:
        return warn(
            "recorder",
            f"active, but {format_duration(behind_s)} behind",
            "check its log, and the load of the database and its disk",
        )
    return ok("recorder", "active and up to date")


def check_unread_recorder(*, active: bool) -> Finding:
    """Check the recorder while the ledger does not answer."""
    if active:
        return warn("recorder", "active, but it cannot write while the ledger does not answer", "see `ledger` above")
    return warn("recorder", "no recorder is active", "once the ledger answers, start one: tweezer recorder")


def check_scheduler(process: str | None, *, messages: int) -> Finding:
    """Check the scheduler. process: the one that runs. messages: those of arq that wait for it."""
    if process is not None:
        return ok("scheduler", f"running ({process})")
    start = "start one: tweezer scheduler"
    if messages:
        return fail(
            "scheduler", f"no scheduler is running: {format_count(messages, 'arq message')} in the queue", start
        )
    return warn("scheduler", "no scheduler is running: expired batches, deliveries and secrets are not deleted", start)


def check_schedules(health: ScheduleHealth) -> Finding | None:
    """Check whether ticks are submitted in time; None without schedules."""
    if not sum(health.statuses.values()):
        return None
    if health.overdue is not None and health.overdue_s > _OVERDUE_S:
        name, project = health.overdue
        return fail(
            "schedules",
            f"the next tick of schedule {name} (project {project}) is {format_duration(health.overdue_s)} overdue",
            "start a scheduler (tweezer scheduler), or check its log and whether it uses this ledger",
        )
    counts = ", ".join(f"{count} {status.value}" for status, count in health.statuses.items() if count)
    return ok("schedules", f"{counts}; no tick is overdue")


def check_api(process: str | None, *, has_keys: bool) -> Finding:
    """Check the API, which is needed once there are keys. process: one that runs."""
    if process is not None:
        return ok("API", f"running ({process})")
    if has_keys:
        return warn("API", "no API is running: requests with keys and links are not answered", "start one: tweezer api")
    return ok("API", "not running, and there are no keys; `tweezer api` serves clients over HTTP")


def check_installation(ledger: str | None, redis: str | None) -> Finding | None:
    """Check that the ledger and Redis have the same installation id; None if Redis has none yet."""
    if redis is None:
        return None
    if redis == ledger:
        return ok("installation", f"{redis}, the same in the ledger and in Redis")
    return fail(
        "installation",
        f"Redis belongs to the installation {redis}, but the ledger to {ledger or 'none yet'}: recorder, courier and "
        "API refuse to use them",
        "correct TWEEZER_REDIS_URL, TWEEZER_NAMESPACE or TWEEZER_DATABASE_URL; or join them with `tweezer db join`",
    )


def check_keeping(settings: Settings) -> Finding:
    """Check how long Redis and the ledger keep ended batches."""
    redis, ledger = format_duration(settings.redis.grace_s), format_duration(settings.database.retention_s)
    if settings.database.retention_s and settings.database.retention_s < settings.redis.grace_s:
        return warn(
            "retention",
            f"the ledger deletes ended batches after {ledger}, before Redis drops them after {redis}",
            "set TWEEZER_DATABASE_RETENTION_S (ledger) to more than TWEEZER_REDIS_GRACE_S (Redis)",
        )
    kept = f"for {ledger}" if settings.database.retention_s else "forever"
    return ok(
        "retention",
        f"ended batches are kept in Redis for {redis} and in the ledger {kept}, unless their project has another limit",
    )


def check_results_folder(settings: Settings, hosts: set[str]) -> Finding:
    """Check whether the folder of large results can be used on this host. hosts: the hosts with workers."""
    folder = settings.results_folder()
    advice = "free some space, mount it or make it writable for the user who runs Tweezer; or set TWEEZER_RESULTS_DIR"
    try:
        free = _try_to_write(folder)
    except OSError as error:
        return fail("results folder", f"large results cannot be stored in {folder}: {error.strerror}", advice)
    if free < _LOW_BYTES:
        return warn("results folder", f"{folder} has only {free >> 20} MiB of free space", advice)
    if settings.results_dir is None and hosts - {socket.gethostname()}:
        return warn(
            "results folder",
            f"workers run on {', '.join(sorted(hosts))}, but {folder} is local to this host: large results of other "
            "hosts cannot be read here",
            "set TWEEZER_RESULTS_DIR on all hosts to a shared folder",
        )
    return ok("results folder", f"{folder}, {free / (1 << 30):.1f} GiB free")


def _try_to_write(folder: Path) -> int:
    """Write a temporary file into the folder, or where it would be created; return the free space in bytes.

    Raises OSError.
    """
    near = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.TemporaryDirectory(prefix=".tweezer-doctor-", dir=near) as scratch:
        file = Path(scratch, "result")
        file.write_bytes(bytes(_TRIED_BYTES))
    return shutil.disk_usage(near).free


_TRIED_BYTES = 1 << 16
_LOW_BYTES = 256 << 20

_SILENT_S = 30.0
_SLOW_S = 30.0
_START_COURIER = "start one: tweezer courier"
_MANY = "start another courier (tweezer courier); check the logs of the running couriers and the load of the database"


class WebhookState(msgspec.Struct, frozen=True):
    """The state of webhooks in the ledger."""

    health: WebhookHealth
    receivers: ReceiverHealth
    secrets: SecretHealth | InvalidInput


def read_webhook_state(settings: Settings) -> WebhookState:
    """Read the state of webhooks from the database, whose tables must be up to date. Raises TweezerError."""
    from tweezer.ledger.database import Database
    from tweezer.webhooks.health import read_receiver_health, read_secret_health, read_webhook_health

    with closing(Database.open(settings.locate_ledger())) as database:
        secrets: SecretHealth | InvalidInput
        try:
            secrets = read_secret_health(database, settings.secrets.key, settings.data_dir)
        except InvalidInput as error:
            secrets = error
        return WebhookState(read_webhook_health(database, settings.namespace), read_receiver_health(database), secrets)


def check_webhooks(found: WebhookState) -> Iterator[Finding]:
    """Run the checks of webhooks that do not need Redis."""
    yield check_deliveries(found.health)
    yield check_receivers(found.receivers, found.health.disabled)
    yield check_secrets(found.secrets)


async def examine_couriers(store: Store, found: WebhookState | None) -> Finding:
    """Check which couriers are running, and how far behind they are, unless the ledger does not answer (None).

    Raises TweezerError.
    """
    from tweezer.store.streams.feed import COURIERS

    if found is None:
        return check_couriers(await store.events.idle_s(COURIERS), behind_s=None, wanted=False)
    measures = await measure(store.scripts, None, found.health.position)
    behind_s = measures.undelivered_s if measures.undelivered else None
    return check_couriers(await store.events.idle_s(COURIERS), behind_s=behind_s, wanted=found.receivers.endpoints > 0)


def check_couriers(idle_s: Sequence[float] | None, *, behind_s: float | None, wanted: bool) -> Finding:
    """Check the couriers.

    idle_s: seconds since each courier last asked for work; None if none ever ran. behind_s: age of the oldest
    unprocessed event; None if all are processed. wanted: whether webhooks have receivers.
    """
    if idle_s is None:
        level = Level.FAIL if wanted else Level.WARN
        return Finding("courier", level, "no courier has ever run here, so no webhook is sent", _START_COURIER)
    alive = sum(idle < _SILENT_S for idle in idle_s)
    if not alive and behind_s is not None:
        problem = f"no courier is running: {format_duration(behind_s)} of webhooks are waiting in Redis"
        return fail("courier", problem, _START_COURIER)
    if not alive:
        return warn("courier", "no courier is running; all webhooks so far were processed", _START_COURIER)
    runs = f"{alive} running"
    if behind_s is not None and behind_s > _SLOW_S:
        return warn("courier", f"{runs}, {format_duration(behind_s)} behind", _MANY)
    return ok("courier", f"{runs}, up to date")


def check_deliveries(health: WebhookHealth) -> Finding:
    if health.overdue:
        return warn(
            "deliveries",
            f"{health.overdue} of {health.pending} pending deliveries are overdue by more than a minute",
            _MANY,
        )
    return ok("deliveries", f"{health.pending} pending, none overdue; {health.exhausted} given up, {health.held} held")


def check_receivers(receivers: ReceiverHealth, disabled: int) -> Finding:
    troubles = []
    if receivers.failing:
        more = ", …" if receivers.failing > len(receivers.named) else ""
        named = ", ".join(receivers.named)
        troubles.append(f"{receivers.failing} have returned only failures for ten minutes ({named}{more})")
    if disabled:
        troubles.append(f"{disabled} are disabled")
    if troubles:
        return warn(
            "receivers",
            f"of {receivers.endpoints}, {'; '.join(troubles)}",
            "`tweezer webhooks list --all-projects --batches` lists them, and `tweezer webhooks show ID` shows errors; "
            "once they work again: `tweezer webhooks enable ID`, and `tweezer webhooks resend --endpoint ID --since "
            "TIME`",
        )
    return ok("receivers", f"{receivers.endpoints}, none failing or disabled")


def check_secrets(secrets: SecretHealth | TweezerError) -> Finding:
    """Check whether the secrets that sign webhooks and links can be decrypted on this host."""
    name = "secrets key"
    if isinstance(secrets, TweezerError):
        return fail(name, secrets.message, "restore the key from its backup")
    if secrets.missing and not secrets.total:
        return ok(name, f"not needed yet; {secrets.place} is created on first use")
    if secrets.sealed:
        problem = (
            f"{secrets.sealed} of {secrets.total} secrets of webhooks and links cannot be decrypted, and sign nothing"
        )
        why = f"{secrets.place} does not exist" if secrets.missing else f"the key in {secrets.place} is a different one"
        return fail(
            name,
            f"{problem}: {why}",
            "set TWEEZER_SECRETS_KEY to the key of the other hosts; after a change of keys, to the new and the old "
            "key, separated by a comma. If the key is lost: `tweezer webhooks rotate --overlap 0`, and for links "
            "`tweezer keys rotate-links --overlap 0`",
        )
    return ok(
        name, f"{secrets.place} decrypts the secrets of webhooks and links ({secrets.total}); keep a backup of it"
    )
