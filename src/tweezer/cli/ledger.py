"""``tweezer db`` and ``dead-letters``: manage the ledger database, and messages that could not be processed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from tweezer.cli import show
from tweezer.cli.ledger_checks import Finding, check_health, print_findings, read_ledger_health
from tweezer.cli.options import Options, ledger_list, pass_options, require, yes_option
from tweezer.model.errors import Conflict

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tweezer.ledger.database import Database
    from tweezer.ledger.dead_letters import Letter
    from tweezer.store.connection import Store


_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def db() -> None:
    """Manage the ledger database: TWEEZER_DATABASE_URL, else a SQLite file in the data folder."""


@db.command()
@pass_options
def upgrade(options: Options) -> None:
    """Create or upgrade the tables; does nothing if they are up to date.

    For a new version of Tweezer: stop all processes, back up, upgrade, and start them again.
    """
    from tweezer.ledger.migrations import HEAD

    with options.ledger(at_any_step=True) as database:
        from tweezer.ledger import migrate

        found = migrate.upgrade(database)
        place = migrate.place(database)
    if found == HEAD:
        show.echo(f"{place} is up to date (step {HEAD})")
    else:
        show.echo(f"{place} is now at step {HEAD}; it was {'empty' if found is None else f'at step {found}'}")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@pass_options
def check(options: Options, *, as_json: bool) -> None:
    """Check the database: its tables, write access, and durability.

    The exit code is 1 if a check FAILs. `tweezer doctor` includes these checks.
    """
    require("db check", "server", "sqlalchemy", "alembic", "psycopg")
    found = read_ledger_health(options.settings())
    print_findings([found] if isinstance(found, Finding) else list(check_health(found)), as_json=as_json)


@db.command()
@pass_options
def join(options: Options) -> None:
    """Make this ledger record this Redis, even if another one did.

    Without this, the recorder and the API refuse to use a ledger and a Redis of different installations.
    """
    with options.ledger() as database:
        from tweezer.ledger.installation import join as join_on_purpose
        from tweezer.ledger.migrate import place

        options.run_store(lambda store: join_on_purpose(store, database, force=True))
        show.echo(f"{place(database)} records this Redis from now on.")


@db.command()
@click.argument("file", type=_FILE)
@pass_options
def backup(options: Options, *, file: Path) -> None:
    """Back up the ledger to a new FILE while all processes keep running.

    FILE is a SQLite database, or for PostgreSQL the output of `pg_dump --format=custom`. Large results are in the
    results folder: copy that, too, after the backup.
    """
    with options.ledger() as database:
        from tweezer.ledger.backup import backup as back_up

        back_up(database, file)
    show.echo(f"Wrote {file} ({file.stat().st_size / (1 << 20):.1f} MiB).")


@db.command()
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Overwrite the ledger, even if it is not empty.")
@pass_options
def restore(options: Options, *, file: Path, force: bool) -> None:
    """Restore the ledger from a FILE made by `tweezer db backup`. Stop the recorder and the API first."""
    from tweezer.ledger.migrations import HEAD

    with options.ledger(at_any_step=True) as database:
        from tweezer.ledger.backup import restore as bring_back
        from tweezer.ledger.migrate import place

        step = bring_back(database, file, force=force)
        show.echo(f"Restored {file} into {place(database)}.")
    if step != HEAD:
        show.echo(f"Its tables are at step {step}; run `tweezer db upgrade`.")


_CONSUMERS = ("recorder", "courier", "intake", "scheduler")
_SHOWN = 90  # characters of an error in the table

_ids = click.argument("letters", type=click.IntRange(1), nargs=-1, metavar="[ID]...")
_all = click.option("--all", "everything", is_flag=True, help="Select all dead letters.")


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Manage dead letters: messages that could not be processed.

    A recorder, a courier or the scheduler sets such a message aside with the error, and continues. Later messages of
    the same batch wait behind it.
    """


@dead_letters.command(name="list")
@click.option("--consumer", type=click.Choice(_CONSUMERS), help="List only dead letters of this process.")
@click.option("--batch", type=click.UUID, metavar="ID", help="List only dead letters of this batch.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Maximum number to list.")
@ledger_list(
    ("id", "consumer", "parked", "project", "batch", "", "error"),
    lambda it: (it.id, it.consumer.value, show.minute(it.created), *_about(it)),
    none="No dead letters.",
)
def list_(connection: Connection, *, consumer: str | None, batch: UUID | None, limit: int) -> list[Letter]:
    """List dead letters, oldest first."""
    from tweezer.ledger.dead_letters import Consumer, list_letters

    kind = None if consumer is None else Consumer(consumer)
    return list_letters(connection, consumer=kind, batch=batch, limit=limit)


@dead_letters.command()
@_ids
@_all
@pass_options
def retry(options: Options, *, letters: tuple[int, ...], everything: bool) -> None:
    """Retry dead letters, after you have fixed the cause.

    A recorder retries within a second, a courier within ten seconds. arq messages return to the intake queue at once. A
    letter that fails again stays, with the new error.
    """
    with options.ledger() as database:
        found = _find(database, letters, everything=everything)
        messages = [it for it in found if it.consumer == "intake"]
        if messages:
            options.run_store(lambda store: _send_again(store, messages))
        with database.write() as connection:
            from tweezer.ledger.dead_letters import drop_letters, request_retry

            drop_letters(connection, [it.id for it in messages])
            request_retry(connection, [it.id for it in found if it.consumer != "intake"])
    show.echo(f"Retrying {_count(found)}; see `tweezer dead-letters list`.")


@dead_letters.command()
@_ids
@_all
@yes_option
@pass_options
def drop(options: Options, *, letters: tuple[int, ...], everything: bool, yes: bool) -> None:
    """Drop dead letters permanently.

    For a dead letter of the recorder, the batch is deleted with its jobs and results. For one of a courier, the
    webhooks of its waiting events are not sent.
    """
    with options.ledger() as database:
        found = _find(database, letters, everything=everything)
        batches = sorted({it.batch for it in found if it.consumer == "recorder" and it.batch is not None})
        if not yes:
            also = f", and delete {len(batches)} batches with their results" if batches else ""
            show.confirm(f"Drop {_count(found)}{also}?")
        if batches:
            options.run_store(lambda store: _discard(store, database, batches))
        with database.write() as connection:
            from tweezer.ledger.dead_letters import drop_letters

            drop_letters(connection, [it.id for it in found])
    show.echo(f"Dropped {_count(found)}.")


async def _discard(store: Store, database: Database, batches: Collection[UUID]) -> None:
    from tweezer.ledger.retention import discard_batch

    for batch_id in batches:
        await discard_batch(store, database, batch_id)
        show.echo(f"Deleted batch {batch_id}.")


async def _send_again(store: Store, found: Sequence[Letter]) -> None:
    from tweezer.processes.runtime import send_again

    for letter in found:
        if letter.payload is None:
            raise Conflict(f"dead letter {letter.id}: its content was too large to keep; drop it", code="not_kept")
        await send_again(store, letter.origin, letter.payload)


def _find(database: Database, letters: Sequence[int], *, everything: bool) -> list[Letter]:
    from tweezer.ledger.dead_letters import find_letters, list_letters

    if bool(letters) == everything:
        raise click.UsageError("give the ids of dead letters, or --all")
    with database.read() as connection:
        return list_letters(connection) if everything else find_letters(connection, letters)


def _count(found: Sequence[Letter]) -> str:
    return f"{len(found)} dead letter{'' if len(found) == 1 else 's'}"


def _about(letter: Letter) -> tuple[object, ...]:
    waiting = f"{letter.waiting} wait behind it" if letter.waiting else ""
    error = letter.error if len(letter.error) <= _SHOWN else f"{letter.error[:_SHOWN]}…"
    return letter.project or "-", letter.batch or "-", "will be retried" if letter.retry else waiting, error
