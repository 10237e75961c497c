"""Reads batches that Redis has forgotten, in the form in which it had them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Select, bindparam, select

from tweezer.ledger.database import Database
from tweezer.ledger.schema import batches, jobs, results
from tweezer.model.ids import job_id, split_job_id
from tweezer.store.snapshots import Snapshot, Wanted

_PAGE = 500  # ids in one statement

_BATCHES: Select[Any] = select(batches.c.id, batches.c.record, batches.c.about, batches.c.jobs).where(
    batches.c.id.in_(bindparam("ids", expanding=True))
)
_JOBS: Select[Any] = (
    select(jobs.c.id, jobs.c.spec, jobs.c.state, results.c.result, results.c.fault)
    .select_from(jobs.outerjoin(results, results.c.id == jobs.c.id))
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)))
)

_fields_decoder = msgspec.msgpack.Decoder(dict[str, bytes])


def recorded_snapshots(database: Database, wanted: Sequence[Wanted]) -> dict[UUID, Snapshot]:
    """The batches that the ledger has, with their doc (but for the sequence) and of their jobs the touched ones.

    Blocks. Raises Unavailable.
    """
    found: dict[UUID, Snapshot] = {}
    with database.read() as connection:
        for page in _pages([want.batch_id for want in wanted]):
            for row in connection.execute(_BATCHES, {"ids": page}):
                found[row.id] = Snapshot(row.id, _fields_decoder.decode(row.record), row.jobs, row.about)
        ids = [job_id(want.batch_id, index) for want in wanted if want.batch_id in found for index in want.touched]
        for page in _pages(ids):
            for row in connection.execute(_JOBS, {"ids": page}):
                batch_id, index = split_job_id(row.id)
                _add_job(found[batch_id], index, row)
    return found


def _add_job(snapshot: Snapshot, index: int, row: Any) -> None:
    snapshot.specs[index] = row.spec
    for column, value in (
        (snapshot.states, None if row.state is None else row.state.encode()),
        (snapshot.results, row.result),
        (snapshot.faults, row.fault),
    ):
        if value is not None:
            column[index] = value


def _pages(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    for first in range(0, len(ids), _PAGE):
        yield ids[first : first + _PAGE]
