"""``tweezer export`` and ``tweezer delete``: take batches with you, and away."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from tweezer.api.batches.schemas import BatchResponse, JobResponse
from tweezer.cli import show
from tweezer.cli.access import Access, pass_access
from tweezer.client import AsyncBatch, as_uuid
from tweezer.model.errors import ResultUnavailable, TweezerError

_PAGE = 500  # jobs read in one go


@click.command()
@click.argument("batches", nargs=-1, required=True, metavar="BATCH…")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A new file  [default: print it].")
@pass_access
def export(access: Access, *, batches: tuple[str, ...], out: Path | None) -> None:
    """Write batches with their sequence, jobs and results as JSON lines, from Redis or from the ledger.

    A line is an object: `{"type": "batch", …}` or `{"type": "job", …, "result": {…}}`, with the fields of the API.
    """

    async def run(file: BinaryIO) -> None:
        async with access.queue() as queue:
            for batch in [queue.batch(text) for text in batches]:
                async for line in _lines(batch):
                    file.write(line + b"\n")

    with contextlib.ExitStack() as stack:
        asyncio.run(run(sys.stdout.buffer if out is None else stack.enter_context(out.open("xb"))))


@click.command()
@click.argument("batches", nargs=-1, required=True, metavar="BATCH…")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_access
def delete(access: Access, *, batches: tuple[str, ...], yes: bool) -> None:
    """Delete batches that have ended for good: from Redis, the results folder and the ledger."""
    ids = [as_uuid("batch", text) for text in batches]
    if not yes:
        show.confirm(f"Delete {len(ids)} batch{'es' if len(ids) > 1 else ''} with all results for good?")

    async def run() -> list[str]:
        from tweezer.ledger.retention import delete_batch

        failures = []
        with access.ledger("delete") as database:
            async with access.queue() as queue:
                for batch_id in ids:
                    try:
                        await delete_batch(queue.store, database, batch_id, project=queue.project)
                    except TweezerError as error:
                        failures.append(error.message)
                    else:
                        show.echo(f"deleted {batch_id}")
        return failures

    if failures := asyncio.run(run()):
        raise TweezerError("\n       ".join(failures), code="not_deleted")


async def _lines(batch: AsyncBatch) -> AsyncIterator[bytes]:
    record = await batch.record()
    about = msgspec.to_builtins(BatchResponse.from_records(record, []))
    del about["jobs"]
    yield msgspec.json.encode({"type": "batch", **about})
    for first in range(0, record.jobs, _PAGE):
        jobs = await batch.jobs_at(record, range(first, min(first + _PAGE, record.jobs)))
        results = await batch.results_at([job.index for job in jobs if job.may_have_result])
        for job in jobs:
            result = results.get(job.index)
            if isinstance(result, ResultUnavailable):
                raise result  # an export without it would look complete
            line = {"type": "job", **msgspec.to_builtins(JobResponse.from_record(job)), "result": result}
            yield msgspec.json.encode(line)
