"""``tweezer db``: care for the ledger's database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from tweezer.cli import show
from tweezer.cli.access import Access, pass_access, require
from tweezer.cli.findings import Finding, tell
from tweezer.cli.ledger_checks import check_health, look_at_ledger

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def db() -> None:
    """Care for the ledger, the SQL database: TWEEZER_DATABASE_URL, else a SQLite file in the data folder."""


@db.command()
@pass_access
def upgrade(access: Access) -> None:
    """Make the tables, or bring them up to date. Does nothing where they are.

    With a new version of Tweezer: stop all processes, back up, upgrade, start them again.
    """
    from tweezer.ledger.migrations import HEAD

    with access.ledger("db upgrade", at_any_step=True) as database:
        from tweezer.ledger import migrate

        found = migrate.upgrade(database)
        place = migrate.place(database)
    if found == HEAD:
        show.echo(f"{place} is up to date (step {HEAD})")
    else:
        show.echo(f"{place} is now at step {HEAD}; it was {'empty' if found is None else f'at step {found}'}")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
@pass_access
def check(access: Access, context: click.Context, /, *, as_json: bool) -> None:
    """Check the database: its tables, whether it can be written, and whether what is written stays.

    The exit code is 1 when something FAILs. `tweezer doctor` checks this and everything else.
    """
    require("db check", "server", "sqlalchemy", "alembic", "psycopg")
    found = look_at_ledger(access.settings())
    tell(context, [found] if isinstance(found, Finding) else list(check_health(found)), as_json=as_json)


@db.command()
@pass_access
def join(access: Access) -> None:
    """Make this ledger the one that records this Redis, although another one did.

    A ledger and a Redis of different installations are not joined otherwise: the recorder and the API refuse.
    """
    with access.ledger("db join") as database:
        from tweezer.ledger.installation import join as join_on_purpose
        from tweezer.ledger.migrate import place

        async def run() -> None:
            async with access.queue() as queue:
                await join_on_purpose(queue.store, database, force=True)

        asyncio.run(run())
        show.echo(f"{place(database)} records this Redis from now on")


@db.command()
@click.argument("file", type=_FILE)
@pass_access
def backup(access: Access, *, file: Path) -> None:
    """Copy the ledger, as it is now, to a new FILE, while everything goes on.

    A SQLite file, or for PostgreSQL what `pg_dump --format=custom` makes. Large results are in the results folder:
    copy that too, after this.
    """
    with access.ledger("db backup") as database:
        from tweezer.ledger.backup import backup as back_up

        back_up(database, file)
    show.echo(f"{file}: {file.stat().st_size / (1 << 20):.1f} MiB")


@db.command()
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Even if the ledger holds something: that is lost.")
@pass_access
def restore(access: Access, *, file: Path, force: bool) -> None:
    """Make the ledger what it was when FILE was made by `tweezer db backup`. Stop the recorder and the API before."""
    from tweezer.ledger.migrations import HEAD

    with access.ledger("db restore", at_any_step=True) as database:
        from tweezer.ledger.backup import restore as bring_back
        from tweezer.ledger.migrate import place

        step = bring_back(database, file, force=force)
        show.echo(f"{place(database)} is what {file} says")
    if step != HEAD:
        show.echo(f"its tables are at step {step}: run `tweezer db upgrade`")
