"""What ``tweezer db check`` and the doctor say of the ledger and of webhooks."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.options import exit_unless, print_json
from tweezer.ledger.config import sqlite_file
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.messages import RECORD_VERSION
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.measures import measure

if TYPE_CHECKING:
    from tweezer.ledger.dead_letters import Consumer, LetterCounts
    from tweezer.ledger.health import LedgerHealth
    from tweezer.webhooks.health import ReceiverHealth, SecretHealth, WebhookHealth


class Level(StrEnum):
    """``FAIL``: a promise of the queue does not hold, or work stands still. ``WARN``: look at it."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was checked: what was found and what it means, and what to change if anything."""

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
    """Print them, and end the command with exit code 1 when something FAILs."""
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            show.echo("\n".join(_lines(finding, show.width())))
    exit_unless(all(finding.level is not Level.FAIL for finding in findings))


def _lines(finding: Finding, columns: int) -> list[str]:
    label = show.style(f"{finding.level.value:<4}", fg=_COLOURS[finding.level], bold=finding.level is not Level.OK)
    indent = " " * 6
    says = click.wrap_text(f"{finding.name}: {finding.says}", columns, initial_indent=indent, subsequent_indent=indent)
    lines = [f"{label}  {show.style(finding.name, bold=True)}{says[len(indent + finding.name) :]}"]
    if finding.change:
        lines.append(
            click.wrap_text(f"→ {finding.change}", columns, initial_indent=indent, subsequent_indent=indent + "  ")
        )
    return lines


OLDEST_POSTGRES = 15
"""What Tweezer is tested with."""

_SLOW_RECORDER_S = 30.0
_REACH = "start the database, or set TWEEZER_DATABASE_URL; docs/operations/database.md describes how to set one up"


def read_ledger_health(settings: Settings) -> LedgerHealth | Finding:
    """Return how the ledger's database stands, or why that cannot be said. Makes no file where there is none."""
    if importlib.util.find_spec("sqlalchemy") is None:
        return ok("ledger", "not looked at: a host that only runs workers or producers does not need it")
    from tweezer.ledger.database import Database
    from tweezer.ledger.health import read_health

    given = settings.locate_ledger()
    file = sqlite_file(given.url)
    if file is not None and not file.is_file():
        return fail("ledger", f"there is no file {file}", "run `tweezer db upgrade`")
    try:
        with closing(Database.open(given)) as database:
            return read_health(database)
    except TweezerError as error:
        return fail("ledger", error.message, _REACH)


def check_health(health: LedgerHealth) -> Iterator[Finding]:
    """Check the tables, whether they can be written, and whether what is written stays."""
    kind = "SQLite" if health.is_sqlite else "PostgreSQL"
    version = health.settings["version" if health.is_sqlite else "server_version"].split()[0]
    if health.unfit is not None:
        yield fail("ledger", health.unfit)
    elif health.refusal is not None:
        yield fail(
            "ledger",
            f"{health.place} takes no writes: {health.refusal}",
            "let TWEEZER_DATABASE_URL name a primary and a user who owns the tables; or look for a full disk",
        )
    else:
        yield ok("ledger", f"{kind} {version} at {health.place}, its tables as they should be")
    if health.letters:
        yield check_letters(health.letters)
    if health.newer:
        yield fail(
            "record version",
            f"{health.newer} batches were written by a newer Tweezer (record version above {RECORD_VERSION}) and are "
            "left alone",
            "upgrade every process to one version",
        )
    yield from _check_sqlite(health.settings) if health.is_sqlite else _check_postgres(health.settings)


def _check_sqlite(settings: dict[str, str]) -> Iterator[Finding]:
    mode = settings["journal_mode"]
    if mode == "wal":
        yield ok("ledger journal", "a write-ahead log: readers and writers do not wait for each other")
    else:
        yield warn(
            "ledger journal",
            f"journal mode is {mode}: readers wait for writers, and these for readers",
            "keep the file on a disk of this machine, for network file systems cannot do better; or use PostgreSQL",
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
            "make the database anew with `createdb --encoding=UTF8 --template=template0`",
        )
    lossy = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if settings[name] == "off"]
    if lossy:
        yield fail(
            "ledger durability",
            f"{' and '.join(lossy)} off: Redis lets go of what the ledger has, and a crash of the host can lose that",
            "turn it on in postgresql.conf",
        )
    else:
        yield ok("ledger durability", "what is recorded is on the disk")


def check_letters(letters: Mapping[Consumer, LetterCounts]) -> Finding:
    """Check what could not be processed, and what was lost of it."""
    there = {consumer: it for consumer, it in letters.items() if it.letters}
    evicted = sum(it.evicted for it in letters.values())
    lost = f"; {evicted} were dropped for want of room or for their age" if evicted else ""
    if not there:
        return ok("dead letters", f"none{lost}")
    many = ", ".join(f"{it.letters} of the {consumer.value}" for consumer, it in there.items())
    oldest = min(it.oldest for it in there.values() if it.oldest is not None)
    return fail(
        "dead letters",
        f"{many} could not be processed, since {show.minute(oldest)}; what comes later of the same batch waits{lost}",
        "`tweezer dead-letters list` shows why; then retry or drop them",
    )


def check_recorder(*, active: bool, behind_s: float | None) -> Finding:
    """Check whether a recorder is at work. behind_s: age of the oldest event not recorded yet; None when all are."""
    start = "start it: tweezer recorder"
    if not active and behind_s is not None:
        return fail(
            "recorder",
            f"none is active, and nothing was recorded for {show.duration(behind_s)}: Redis keeps everything meanwhile",
            start,
        )
    if not active:
        return warn("recorder", "none is active; all that happened so far is recorded", start)
    if behind_s is not None and behind_s > _SLOW_RECORDER_S:
        return warn(
            "recorder",
            f"one is active, and {show.duration(behind_s)} behind",
            "look at its log, and at the load of the database and its disk",
        )
    return ok("recorder", "one is active and up to date")


def check_installation(ledger: str | None, redis: str | None) -> Finding | None:
    """Whether the ledger and Redis are of one installation, by the ids that they have; None before one was joined."""
    if redis is None:
        return None
    if redis == ledger:
        return ok("installation", f"{redis}, which the ledger and Redis agree on")
    return fail(
        "installation",
        f"Redis belongs to the installation {redis}, and the ledger to {ledger or 'none yet'}: recorder, courier and "
        "API refuse them",
        "correct TWEEZER_REDIS_URL, TWEEZER_NAMESPACE or TWEEZER_DATABASE_URL; `tweezer db join` joins them on purpose",
    )


def check_keeping(settings: Settings) -> Finding:
    """For how long Redis and the ledger keep what has ended."""
    redis, ledger = show.duration(settings.redis.grace_s), show.duration(settings.database.retention_s)
    if settings.database.retention_s and settings.database.retention_s < settings.redis.grace_s:
        return warn(
            "retention",
            f"the ledger deletes what has ended after {ledger}, before Redis lets go of it after {redis}",
            "set TWEEZER_DATABASE_RETENTION_S (the ledger's) to more than TWEEZER_REDIS_GRACE_S (Redis')",
        )
    kept = f"for {ledger}" if settings.database.retention_s else "for ever"
    return ok(
        "retention",
        f"what has ended stays in Redis for {redis} and in the ledger {kept}, unless its project says something else",
    )


def check_results_folder(settings: Settings, hosts: set[str]) -> Finding:
    """Check whether the folder of large results can be used here. hosts: those that workers live on."""
    folder = settings.results_folder()
    near = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(near, os.W_OK | os.X_OK):
        return warn(
            "results folder",
            f"{folder} cannot be written by this user: a worker of its own could not keep large results",
            "give it to the user who runs Tweezer, or set TWEEZER_RESULTS_DIR",
        )
    if settings.results_dir is None and hosts - {socket.gethostname()}:
        return warn(
            "results folder",
            f"workers live on {', '.join(sorted(hosts))}, and {folder} is this host's own: large results of the others "
            "cannot be read here",
            "set TWEEZER_RESULTS_DIR everywhere to a folder that all hosts share",
        )
    return ok("results folder", str(folder))


_SILENT_S = 30.0
_SLOW_S = 30.0
_START_COURIER = "start one: tweezer courier"
_MANY = (
    "start another courier (tweezer courier), and look at the logs of those that run and at the load of the database"
)


class WebhookState(msgspec.Struct, frozen=True):
    """What the ledger knows."""

    health: WebhookHealth
    receivers: ReceiverHealth
    secrets: SecretHealth | InvalidInput


def read_webhook_state(settings: Settings) -> WebhookState:
    """Ask the database, whose tables must be as they should be. Raises TweezerError."""
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
    """Check what can be checked without Redis."""
    yield check_deliveries(found.health)
    yield check_receivers(found.receivers, found.health.disabled)
    yield check_secrets(found.secrets)


async def examine_couriers(store: Store, found: WebhookState) -> Finding:
    """Who of them lives, and how far behind they are. Raises TweezerError."""
    from tweezer.webhooks.courier import GROUP

    measures = await measure(store.scripts, None, found.health.position)
    behind_s = measures.undelivered_s if measures.undelivered else None
    return check_couriers(await store.events.idle_s(GROUP), behind_s=behind_s, wanted=found.receivers.endpoints > 0)


def check_couriers(idle_s: Sequence[float] | None, *, behind_s: float | None, wanted: bool) -> Finding:
    """idle_s: of each courier, since when it has asked for nothing; None: there never was one. behind_s: age of the
    oldest event that none has taken care of; None when there is none. wanted: somebody is to be sent webhooks."""
    if idle_s is None:
        level = Level.FAIL if wanted else Level.WARN
        return Finding("courier", level, "none has ever run here, so no webhook is sent", _START_COURIER)
    alive = sum(idle < _SILENT_S for idle in idle_s)
    if not alive and behind_s is not None:
        says = f"none runs, and what happened in the last {show.duration(behind_s)} is told to nobody; Redis keeps it"
        return fail("courier", says, _START_COURIER)
    if not alive:
        return warn("courier", "none runs; all that happened so far was told", _START_COURIER)
    runs = "one runs" if alive == 1 else f"{alive} run"
    if behind_s is not None and behind_s > _SLOW_S:
        return warn("courier", f"{runs}, {show.duration(behind_s)} behind", _MANY)
    return ok("courier", f"{runs}, up to date")


def check_deliveries(health: WebhookHealth) -> Finding:
    if health.overdue:
        return warn(
            "deliveries",
            f"{health.overdue} of {health.pending} that are pending should have been attempted a minute ago",
            _MANY,
        )
    return ok(
        "deliveries", f"{health.pending} pending, none overdue; {health.exhausted} given up, {health.held} held back"
    )


def check_receivers(receivers: ReceiverHealth, disabled: int) -> Finding:
    troubles = []
    if receivers.failing:
        more = ", …" if receivers.failing > len(receivers.named) else ""
        named = ", ".join(receivers.named)
        troubles.append(f"{receivers.failing} have answered nothing but failures for ten minutes ({named}{more})")
    if disabled:
        troubles.append(f"{disabled} are disabled and sent nothing")
    if troubles:
        return warn(
            "receivers",
            f"of {receivers.endpoints}, {'; '.join(troubles)}",
            "tweezer webhooks list --all-projects --batches shows which, tweezer webhooks show ID why; once they work "
            "again: tweezer webhooks enable ID, and tweezer webhooks resend --endpoint ID --since TIME",
        )
    return ok("receivers", f"{receivers.endpoints}, none failing or disabled")


def check_secrets(secrets: SecretHealth | TweezerError) -> Finding:
    """Check whether what signs webhooks and links can be decrypted here."""
    name = "secrets key"
    if isinstance(secrets, TweezerError):
        return fail(name, secrets.message, "restore the key from its backup")
    if secrets.missing and not secrets.total:
        return ok(name, f"none is needed yet; {secrets.place} is made when one is")
    if secrets.sealed:
        says = f"{secrets.sealed} of {secrets.total} secrets of webhooks and links cannot be decrypted"
        why = f"there is no {secrets.place}" if secrets.missing else f"the key in {secrets.place} is another"
        return fail(
            name,
            f"{says}, so nothing is signed with them: {why}",
            "give this host the key of the others (TWEEZER_SECRETS_KEY), or the former one behind the new one with a "
            "comma between; where it is lost, tweezer webhooks rotate --overlap 0, and for links tweezer keys "
            "rotate-links --overlap 0",
        )
    return ok(name, f"{secrets.place} opens all {secrets.total} secrets of webhooks and links; keep a backup of it")
