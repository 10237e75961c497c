"""What the ledger has of a project, for who reads the queue: batches that Redis has forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import require_schema
from tweezer.ledger.queries.queries import Queries
from tweezer.model.errors import ResultUnavailable
from tweezer.model.ids import job_id
from tweezer.model.messages import Result
from tweezer.store.records import BatchRecord, JobRecord
from tweezer.store.results import Results
from tweezer.store.streams.feed import Entry


class History:
    """Reads the ledger as one project sees it. All methods raise Unavailable."""

    def __init__(self, place: OpenDatabase, project: str, results: Results) -> None:
        """Connects at once. Raises InvalidInput, and TweezerError where the tables are not those that are needed."""
        self._database = Database.open(place)
        require_schema(self._database)
        self._queries = Queries(self._database)
        self._caller = Principal("", Role.USER, frozenset({project}))
        self._results = results

    async def batch(self, batch_id: UUID) -> BatchRecord | None:
        """The batch, if the ledger has it."""
        return await self._database.run(self._queries.batch, self._caller, batch_id)

    async def job(self, job: UUID) -> JobRecord | None:
        """The job, if the ledger has it."""
        return await self._database.run(self._queries.job, self._caller, job)

    async def jobs(self, batch: BatchRecord, indices: Sequence[int]) -> list[JobRecord]:
        """Those jobs of the batch that the ledger has."""
        return await self._database.run(self._queries.batch_jobs, batch, indices)

    async def results(self, batch_id: UUID, indices: Sequence[int]) -> dict[int, Result | ResultUnavailable]:
        """The results that there are, by index, or why one cannot be read."""
        found: dict[int, Result | ResultUnavailable] = {}
        for index in indices:
            packed = await self._database.run(self._queries.packed_result, job_id(batch_id, index))
            if packed is not None:
                found[index] = await self._results.read(packed)
        return found

    async def entries(self, batch: BatchRecord, after: int) -> list[Entry]:
        """The next recorded entries of the batch behind a position, oldest first; find the batch first."""
        return await self._database.run(self._queries.entries, batch.id, after)

    def close(self) -> None:
        self._database.close()
