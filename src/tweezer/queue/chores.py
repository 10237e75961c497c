"""The chores: periodic duties, as cron jobs of an arq queue of their own, away from the lanes."""

from __future__ import annotations

from typing import Any

from arq.cron import CronJob, cron

from tweezer.queue.policy import Policy
from tweezer.queue.upkeep import sweep
from tweezer.store.connection import Store


async def sweep_chore(context: dict[Any, Any]) -> None:
    """Each second: deadlines of open batches, expired leases, due tickets, and whether Redis is full."""
    store: Store = context["store"]
    policy: Policy = context["policy"]
    await sweep(store, policy)


def cron_jobs(queue_name: str) -> list[CronJob]:
    """What is done when. Workers sweep too: without any worker, deadlines still pass.

    arq keeps the jobs of all queues in one place: the queue's name in theirs keeps installations apart.
    """
    name = f"{queue_name}:sweep"
    each_second = set(range(60))
    # arq's type wants *args, which a cron job is never given
    job = cron(sweep_chore, name=name, second=each_second, timeout=30, keep_result=0, max_tries=1)  # type: ignore[arg-type]
    return [job]
