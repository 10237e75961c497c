"""The hourly chores, as cron jobs of an arq queue of their own, away from the lanes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from arq.cron import CronJob, cron

from tweezer.settings import Settings

if TYPE_CHECKING:
    from tweezer.ledger.database import Database


async def retention_chore(context: dict[Any, Any]) -> None:
    """Each hour: deletes what projects keep no longer, old deliveries, and secrets and keys that have expired."""
    from tweezer.ledger.database import Database
    from tweezer.ledger.deliveries import delete_old_deliveries
    from tweezer.ledger.retention import expire

    settings: Settings = context["settings"]
    database = Database.open(settings.database())
    try:
        await expire(context["store"], database, retention_s=settings.retention_s)
        await database.run(partial(delete_old_deliveries, database, kept_s=settings.webhook_kept_s))
        await database.run(_forget_expired, database, settings)
    finally:
        database.close()


def _forget_expired(database: Database, settings: Settings) -> None:
    from tweezer.ledger.dead_letters import expire_letters
    from tweezer.ledger.webhook_secrets import forget_expired

    with database.write() as connection:
        forget_expired(connection)
        expire_letters(connection, settings.dead_letters())


def cron_jobs(queue_name: str) -> list[CronJob]:
    """What is done when.

    arq keeps the jobs of all queues in one place: the queue's name in theirs keeps installations apart.
    """
    chores: dict[str, tuple[Any, dict[str, Any]]] = {
        "retention": (retention_chore, {"minute": 17, "timeout": 3000}),
    }
    return [
        cron(chore, name=f"{queue_name}:{name}", keep_result=0, max_tries=1, **when)
        for name, (chore, when) in chores.items()
    ]
