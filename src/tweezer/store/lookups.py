"""Looks up batches and jobs for people: what they may not see is not read, so that it takes no longer than nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.cancels import read_attempts
from tweezer.model.errors import Unavailable
from tweezer.model.ids import split_job_id
from tweezer.model.messages import decode_fault
from tweezer.store.records import BatchRecord, JobOwner, JobRecord, batch_record, check_version, job_record
from tweezer.store.scripts import Scripts

_TOGETHER_MAX = 64  # jobs that one call of the script reads


class Lookups:
    """Reads for requests that come in crowds: those for jobs that meet are answered by one round trip.

    projects: ids of those whose things are shown; None for all.
    """

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._asked: list[_Ask] = []
        self._reading: asyncio.Task[None] | None = None

    async def batch(
        self, batch_id: UUID, *, projects: Collection[str] | None, jobs_max: int = -1
    ) -> tuple[BatchRecord, list[JobRecord]] | None:
        """The batch and, if there are at most ``jobs_max`` (1,000), its jobs, all of one moment. Raises Unavailable."""
        found = await self._scripts.call(
            "look_up_batch",
            batch_id=str(batch_id),
            jobs_max=jobs_max,
            project_count=-1 if projects is None else len(projects),
            projects=projects or (),
        )
        if not found:
            return None
        flat, *columns = found
        fields = dict(zip((name.decode() for name in flat[::2]), flat[1::2], strict=True))
        batch = batch_record(batch_id, fields)
        rows = enumerate(zip(*columns, strict=True))
        return batch, [job_record(batch, index, spec, state, fault) for index, (spec, state, fault) in rows]

    async def job(self, job_id: UUID, *, projects: Collection[str] | None) -> JobRecord | None:
        """The job. Raises Unavailable."""
        batch_id, index = split_job_id(job_id)
        answer: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()
        self._asked.append(_Ask(str(batch_id), index, projects, answer))
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        row = await answer
        if row is None:
            return None
        project, doom, cancels, spec, state, fault, version = row
        check_version(batch_id, version or b"")
        fault_of_batch = None if doom is None else decode_fault(doom)
        owner = JobOwner(batch_id, project.decode(), fault_of_batch, read_attempts((cancels or b"").decode()))
        return job_record(owner, index, spec, state, fault)

    async def _read(self) -> None:
        """Answers until nobody asks; what is asked during one round trip goes into the next."""
        try:
            while self._asked:
                asked, self._asked = self._asked[:_TOGETHER_MAX], self._asked[_TOGETHER_MAX:]
                await self._answer([ask for ask in asked if not ask.answer.done()])
        finally:
            self._reading = None

    async def _answer(self, asked: list[_Ask]) -> None:
        try:
            rows = await self._scripts.call(
                "look_up_jobs",
                jobs=[(it.batch_id, it.index, -1 if it.projects is None else len(it.projects)) for it in asked],
                projects=[project for it in asked for project in it.projects or ()],
            )
        except BaseException as error:
            for ask in asked:
                if not ask.answer.done():
                    ask.answer.set_exception(error if isinstance(error, Exception) else Unavailable("cut off"))
            if not isinstance(error, Exception):
                raise
            return
        for ask, row in zip(asked, rows, strict=True):
            if not ask.answer.done():  # whoever asked may have gone meanwhile
                ask.answer.set_result(row)


class _Ask(msgspec.Struct, frozen=True):
    """A job to read, for somebody who may see these projects, and waits for the answer."""

    batch_id: str
    index: int
    projects: Collection[str] | None
    answer: asyncio.Future[list[Any] | None]
