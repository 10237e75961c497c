"""The query parameters of lists, with Pasqal's names and some more."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tweezer.ledger.queries.filters import LIMIT_MAX, BatchFilter, BatchOrder, JobFilter, JobOrder, Origin, PageRequest
from tweezer.ledger.queries.tasks import NAMES_SCANNED, TaskFilter
from tweezer.model.checks import MAX_NAME_LENGTH
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Priority
from tweezer.model.tasks import StateFilter, TaskStatus

VALUES_MAX = 300
"""The most values of one parameter; longer URLs are rejected anyway."""

_NUMBER_MAX = 10**12
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_YEARS = range(1970, 3000)
TIME_FORMAT = "ISO 8601; without an offset, the time is in UTC"


def _check_iso(text: object) -> object:
    """Reject text that pydantic would read as a number of seconds since 1970."""
    if isinstance(text, str) and _DATE.match(text) is None:
        raise ValueError("is not a valid ISO 8601 time; use e.g. 2030-11-01T09:00:00Z or 2030-11-01")
    return text


def _to_utc(time: datetime) -> datetime:
    if time.year not in _YEARS:
        raise ValueError(f"the year must be between {_YEARS.start} and {_YEARS.stop - 1}")
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _without_dashes(prefix: str) -> str:
    return prefix.replace("-", "").lower()


NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]*$"
Text = Annotated[str, Field(max_length=200, pattern=NO_CONTROLS)]
"""A text without control characters, as :func:`tweezer.model.checks.check_text` accepts it."""
Prefix = Annotated[str, Field(max_length=36, pattern=r"^([0-9A-Fa-f]-?){0,32}$"), AfterValidator(_without_dashes)]
Time = Annotated[datetime, BeforeValidator(_check_iso), AfterValidator(_to_utc)]
Number = Annotated[int, Field(ge=0, le=_NUMBER_MAX)]


def _values(description: str) -> Any:
    return Field(
        default=(), max_length=VALUES_MAX, description=f"{description} May be repeated: any of the values matches."
    )


class Direction(StrEnum):
    """The sort direction."""

    ASCENDING = "ASC"
    DESCENDING = "DESC"


class _PageQuery(BaseModel):
    """The parameters of all lists."""

    model_config = ConfigDict(frozen=True)

    order_by_direction: Direction = Field(
        Direction.DESCENDING, description="`ASC` for ascending or `DESC` for descending order."
    )
    limit: int = Field(LIMIT_MAX, ge=1, le=LIMIT_MAX, description="The largest number of rows to return.")
    offset: Number = Field(
        0, description="The number of rows to skip. For the next page, send `pagination.end` of this one."
    )

    @property
    def paging(self) -> PageRequest:
        descending = self.order_by_direction is Direction.DESCENDING
        return PageRequest(descending=descending, limit=self.limit, offset=self.offset)


class _WorkQuery(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: tuple[UUID, ...] = _values("Id of the batch or job.")
    id__starts_with: Prefix = Field("", description="First hexadecimal digits of the id, with or without dashes.")
    project_id: tuple[Text, ...] = _values(
        "Id of a project. A project to which the key gives no access matches nothing."
    )
    user_id: tuple[Text, ...] = _values("Name of the user who submitted the batch.")
    device_type: tuple[Text, ...] = _values("Name of a device.")
    queue_priority: tuple[Priority, ...] = _values("Priority of the batch.")
    origin: tuple[Origin, ...] = _values("Origin of the batch. Every batch has the origin `CLIENT`.")
    start_date: Time | None = Field(None, description=f"Only what started at this time or later ({TIME_FORMAT}).")
    end_date: Time | None = Field(None, description=f"Only what ended at this time or earlier ({TIME_FORMAT}).")
    min_created_at: Time | None = Field(
        None, description=f"Only what was submitted at this time or later ({TIME_FORMAT})."
    )
    max_created_at: Time | None = Field(
        None, description=f"Only what was submitted at this time or earlier ({TIME_FORMAT})."
    )
    tag: tuple[Text, ...] = _values("Tag of the batch.")
    all_tags: tuple[Text, ...] = Field(
        (), max_length=20, description="Tag of the batch. May be repeated: the batch must have all of them."
    )

    def _common(self) -> dict[str, Any]:
        return {
            "ids": self.id,
            "id_prefix": self.id__starts_with,
            "projects": self.project_id,
            "users": self.user_id,
            "devices": self.device_type,
            "priorities": self.queue_priority,
            "origins": self.origin,
            "started_from": self.start_date,
            "ended_to": self.end_date,
            "created_from": self.min_created_at,
            "created_to": self.max_created_at,
            "tags_any": self.tag,
            "tags_all": self.all_tags,
        }


class BatchQuery(_WorkQuery):
    """The filter of a list of batches."""

    status: tuple[BatchStatus, ...] = _values("Status of the batch.")
    name: tuple[Annotated[str, Field(max_length=MAX_NAME_LENGTH, pattern=NO_CONTROLS)], ...] = _values(
        "Name of the batch."
    )
    depends_on: tuple[UUID, ...] = _values("Id of a batch that it depends on.")
    open: bool | None = Field(None, description="`true`: only batches that accept more jobs; `false`: only others.")
    complete: bool | None = Field(None, description="The opposite of `open`, for older clients.")
    min_jobs: Number | None = Field(None, description="Only batches with at least this number of jobs.")
    max_jobs: Number | None = Field(None, description="Only batches with at most this number of jobs.")

    @model_validator(mode="after")
    def _open_or_complete(self) -> Self:
        if self.open is not None and self.open == self.complete:
            raise ValueError("open and complete are opposites; send only one of them")
        return self

    @property
    def filter(self) -> BatchFilter:
        closed = self.complete if self.open is None else not self.open
        return BatchFilter(
            **self._common(),
            statuses=self.status,
            names=self.name,
            depends_on=self.depends_on,
            open=None if closed is None else not closed,
            jobs_min=self.min_jobs,
            jobs_max=self.max_jobs,
        )


class JobQuery(_WorkQuery):
    """The filter of a list of jobs."""

    batch_id: tuple[UUID, ...] = _values("Id of a batch.")
    status: tuple[JobStatus, ...] = _values("Status of the job.")
    min_runs: Number | None = Field(
        None, description="Only jobs with at least this number of runs; never jobs without a number of runs."
    )
    max_runs: Number | None = Field(
        None, description="Only jobs with at most this number of runs; never jobs without a number of runs."
    )
    errors: bool | None = Field(None, description="`true`: only jobs with errors; `false`: only jobs without.")

    @property
    def filter(self) -> JobFilter:
        return JobFilter(
            **self._common(),
            batches=self.batch_id,
            statuses=self.status,
            runs_min=self.min_runs,
            runs_max=self.max_runs,
            failed=self.errors,
        )


class BatchPageQuery(BatchQuery, _PageQuery):
    """A page of batches."""

    order_by: BatchOrder = Field(BatchOrder.CREATED, description="The field to sort by.")


class JobPageQuery(JobQuery, _PageQuery):
    """A page of jobs."""

    order_by: JobOrder = Field(JobOrder.CREATED, description="The field to sort by.")


class DeviceOrder(StrEnum):
    """The fields by which devices can be sorted."""

    CREATED = "created_at"
    NAME = "name"
    DEVICE_TYPE = "device_type"
    STATUS = "status"
    QUEUE_TIME = "average_queue_time"
    ATOMS = "max_atom_num"


class DevicePageQuery(_PageQuery):
    """A page of devices."""

    order_by: DeviceOrder = Field(DeviceOrder.CREATED, description="The field to sort by.")
    include_legacy: bool = Field(
        False, description="Whether to include devices that were created with `active: false`."
    )


TASKS_MAX = 1000
"""The largest page of tasks."""


class TaskQuery(BaseModel):
    """The filter and the page of a list of tasks."""

    model_config = ConfigDict(frozen=True)

    status: TaskStatus | None = Field(None, description="Coarse status of the task.")
    state: StateFilter = Field(
        StateFilter.CURRENT,
        description="A single state, or a group: `complete` (ended), `incomplete` (not ended), `current` (all that are "
        "not archived) or `archived`. Only `archived` returns archived tasks.",
    )
    backend: Text | None = Field(None, description="Name of the device.")
    tag: tuple[Text, ...] = Field(
        (),
        max_length=20,
        description="Tags of the task. `tag=a&tag=b,c` means a, and b or c.",
    )
    name__contains: Annotated[str, Field(max_length=MAX_NAME_LENGTH, pattern=NO_CONTROLS)] = Field(
        "",
        description="A part of the name; upper and lower case differ. Only the names of the "
        f"{NAMES_SCANNED:,} newest tasks that match the other parameters are searched: `is_cut` is true if "
        "there are more.",
    )
    limit: int = Field(100, ge=1, le=TASKS_MAX, description="The largest number of tasks to return.")
    offset: Number = Field(0, description="The number of tasks to skip.")

    @property
    def filter(self) -> TaskFilter:
        tags = tuple(tuple(value.split(",")) for value in self.tag)
        return TaskFilter(self.status, self.state, self.backend, tags, self.name__contains)


FindText = Annotated[
    str,
    Query(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        pattern=NO_CONTROLS,
        description="An id, a short id, `@last`, or the name of a batch.",
    ),
]
ProjectIds = Annotated[
    tuple[Text, ...], Query(max_length=VALUES_MAX, description="Only batches of these projects. May be repeated.")
]
BatchParams = Annotated[BatchQuery, Query()]
JobParams = Annotated[JobQuery, Query()]
TaskParams = Annotated[TaskQuery, Query()]
BatchPageParams = Annotated[BatchPageQuery, Query()]
JobPageParams = Annotated[JobPageQuery, Query()]
DevicePageParams = Annotated[DevicePageQuery, Query()]
