"""The tables of the ledger.

Batches and jobs are stored in the same form as in Redis (``record``, ``about``, ``spec``, ``state``, ``result``), so
that the same functions make the typed records. Further columns are for filtering and sorting lists. Times are
milliseconds since 1970. Statuses, priorities and origins are stored as their first letters (PAUSED is ``S``). A job's
id begins with its batch's id, so the jobs of a batch are a range of ids.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self, TypeVar, overload
from uuid import UUID

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    TextClause,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

T = TypeVar("T", bound=msgspec.Struct)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Lettered(StrEnum):
    """An enum whose members are stored as their first letter."""

    @property
    def letter(self) -> str:
        return self.value[0].upper()

    @classmethod
    def from_letter(cls, letter: str) -> Self:
        return next(it for it in cls if it.letter == letter)


@overload
def as_datetime(milliseconds: int) -> datetime: ...
@overload
def as_datetime(milliseconds: None) -> None: ...


def as_datetime(milliseconds: int | None) -> datetime | None:
    """Convert a column's milliseconds to a UTC time."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def read_row(kind: type[T], row: Row[Any], /, **others: Any) -> T:
    """Make a struct from a row. A field's column has its name; for times, its name with ``_ms``.

    others: values of fields that differ from their columns.
    """
    columns = row._asdict()
    for name in kind.__struct_fields__:
        if name not in others:
            others[name] = columns[name] if name in columns else as_datetime(columns[f"{name}_ms"])
    return kind(**others)


def insert_into(connection: Connection, table: Table) -> Any:
    """Return the dialect's INSERT, which supports ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Id(TypeDecorator[UUID]):
    """A UUID that sorts by its bytes: PostgreSQL's UUID type, sixteen bytes in SQLite."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        return dialect.type_descriptor(LargeBinary(16))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        return value.bytes if value is not None and dialect.name != "postgresql" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        return UUID(bytes=value) if isinstance(value, bytes) else value


_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates values for INTEGER columns only
_CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}


def _partial_index(name: str, *columns: str, where: TextClause) -> Index:
    return Index(name, *columns, sqlite_where=where, postgresql_where=where)


projects = Table(
    "projects",
    metadata,
    Column("no", _Number, primary_key=True),  # the number that other tables refer to
    Column("id", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("retention_s", BigInteger),  # null: the default of the settings; 0: for ever
    Column("last_activity_ms", BigInteger),
)

limits = Table(
    "limits",
    metadata,
    Column("project", BigInteger, ForeignKey("projects.no", ondelete="CASCADE"), primary_key=True),
    Column("quota", String(40), primary_key=True),  # name in model.quotas
    Column("value", BigInteger, nullable=False),  # replaces the default; 0: unlimited
    **_CLUSTERED,
)

batches = Table(
    "batches",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", BigInteger, ForeignKey("projects.no"), nullable=False),
    Column("device", String(64), nullable=False),
    Column("user", String(200)),
    Column("priority", String(1), nullable=False),
    Column("origin", String(1), nullable=False),
    Column("status", String(1), nullable=False),
    Column("open", Boolean, nullable=False),
    Column("jobs", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("updated_ms", BigInteger, nullable=False),
    Column("parent", Id),
    Column("sequence_number", BigInteger, nullable=False),  # of its last recorded event
    Column("record", LargeBinary, nullable=False),  # its fields in Redis, MessagePack
    Column("about", LargeBinary, nullable=False),  # its BatchDoc without the sequence
    Column("failed", Integer, nullable=False, server_default="0"),  # number of its jobs in ERROR
    Column("shots", BigInteger, nullable=False, server_default="0"),  # of all of its jobs
    Column("device_ms", BigInteger, nullable=False, server_default="0"),  # time on the device of its ended jobs
    Column("previous", String(1)),  # its status before the last transition; null: none is recorded
    Column("changed_ms", BigInteger),  # time of the last transition of the batch itself
    Column("previous_ms", BigInteger),  # time of the transition before that
    Column("keep_ms", BigInteger),  # how long after its end it is archived; null: not by itself
    Column("archived_ms", BigInteger),  # null: not archived
    Index(
        "ix_batches_list",
        *("project", "created_ms", "id", "status", "open", "device", "user", "priority", "origin"),
        *("jobs", "started_ms", "ended_ms", "updated_ms", "failed", "archived_ms"),
    ),
    Index("ix_batches_ended_ms", "ended_ms"),
    Index("ix_batches_parent", "parent"),
    _partial_index("ix_batches_keep", "ended_ms", "keep_ms", where=text("keep_ms IS NOT NULL AND archived_ms IS NULL")),
    **_CLUSTERED,
)

sequences = Table(
    "sequences",
    metadata,
    Column("id", Id, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Text, nullable=False),
)

tags = Table(
    "tags",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("tag", String(200), primary_key=True),
    Column("batch", Id, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_tags_batch", "batch"),
    **_CLUSTERED,
)

SHORT_ID, NAME, PARENT = "S", "N", "P"
"""Kinds of the names of a batch. PARENT: the id, in hexadecimal digits, of a batch that it depends on."""

batch_names = Table(
    "batch_names",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("kind", String(1), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("batch", Id, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_batch_names_batch", "batch"),
    **_CLUSTERED,
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", BigInteger, nullable=False),
    Column("device", String(64), nullable=False),
    Column("user", String(200)),
    Column("priority", String(1), nullable=False),
    Column("origin", String(1), nullable=False),
    Column("status", String(1), nullable=False),
    Column("runs", BigInteger),
    Column("failed", Boolean, nullable=False),  # whether it has an error
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("updated_ms", BigInteger, nullable=False),
    Column("spec", LargeBinary, nullable=False),  # as in Redis: microseconds of its submit, a space, JobSpec
    Column("state", String(400)),  # as in Redis: the words of records.STATE_FIELDS; null is PENDING
    Index(
        "ix_jobs_list",
        *("project", "created_ms", "id", "status", "runs", "failed", "device", "user", "priority", "origin"),
        *("started_ms", "ended_ms", "updated_ms"),
    ),
    **_CLUSTERED,
)

result_sizes = Table(
    "result_sizes",
    metadata,
    Column("batch", Id, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("project", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # of all results of the batch, including those in the results folder
    **_CLUSTERED,
)

results = Table(
    "results",
    metadata,
    Column("id", Id, primary_key=True),  # of the job
    Column("result", LargeBinary),  # as in Redis: the packed Result, or a reference to one in the results folder
    Column("fault", LargeBinary),  # as in Redis: Fault (JSON)
)

transitions = Table(
    "transitions",
    metadata,
    Column("position", BigInteger, primary_key=True),  # of the entry in the stream: milliseconds << 20 | number
    Column("batch", Id, nullable=False),
    Column("project", BigInteger, nullable=False),
    Column("sequence_number", BigInteger, nullable=False),  # of the first event
    Column("time_us", BigInteger, nullable=False),
    Column("words", Text, nullable=False),  # the events, as model.events reads them
    Column("holder", String(200)),  # the lane that held the ticket, and why its jobs became pending; null: none did
    Column("faults", Text),  # why attempts failed that are repeated, as model.events reads them; null: none did
    Index("ix_transitions_batch", "batch", "position"),
    Index("ix_transitions_project", "project", "position"),
    **_CLUSTERED,
)

notices = Table(
    "notices",
    metadata,
    Column("position", BigInteger, primary_key=True),  # of the entry in the stream
    Column("id", String(120), nullable=False),
    Column("type", String(40), nullable=False),
    Column("project", String(64)),  # null: for all projects
    Column("time_us", BigInteger, nullable=False),
    Column("data", Text, nullable=False),  # JSON
    **_CLUSTERED,
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", BigInteger, ForeignKey("projects.no", ondelete="CASCADE"), nullable=False),
    Column("kind", String(1), nullable=False),  # Project: registered; Batch: the ``webhook`` of submitted batches
    Column("url", Text, nullable=False),
    Column("types", Text, nullable=False),  # separated by spaces; empty: the usual ones
    Column("description", String(200), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("failing_ms", BigInteger),  # since when every attempt has failed; null: the last one succeeded
    Column("disabled_ms", BigInteger),
    Column("disabled_why", String(200)),
    Index("ix_endpoints_project", "project"),
    _partial_index("ix_endpoints_disabled_ms", "disabled_ms", where=text("disabled_ms IS NOT NULL")),
    _partial_index("ix_endpoints_failing_ms", "failing_ms", where=text("failing_ms IS NOT NULL")),
)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("project", BigInteger, ForeignKey("projects.no", ondelete="CASCADE"), nullable=False),
    Column("endpoint", Id, ForeignKey("endpoints.id", ondelete="CASCADE")),  # null: the project's secret
    Column("algorithm", String(1), nullable=False),  # Hmac-sha256, Ed25519
    Column("value", LargeBinary, nullable=False),  # encrypted
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),  # null: the current secret; else a rotated one, which signs until then
    Index("ix_webhook_secrets_project_endpoint", "project", "endpoint"),
)

GIVEN_UP = text("status IN ('E', 'H')")
"""Deliveries that failed and are not attempted any more. The text must be that of the index, so that it is used."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Id, primary_key=True),  # derived from the endpoint and the event, so that it is delivered once
    Column("endpoint", Id, ForeignKey("endpoints.id", ondelete="CASCADE"), nullable=False),
    Column("project", BigInteger, nullable=False),
    Column("batch", Id),  # null: the event does not belong to a batch
    Column("sequence_number", BigInteger),  # of the event in its batch
    Column("event", String(120), nullable=False),  # id of the event, which the receiver gets
    Column("type", String(40), nullable=False),
    Column("body", Text, nullable=False),  # the same in every attempt
    Column("status", String(1), nullable=False),  # Pending, Delivered, Exhausted, Held (the endpoint is disabled)
    Column("attempts", Integer, nullable=False),  # of this schedule; sending again begins a new schedule
    Column("log", LargeBinary),  # every attempt: list of Attempt, MessagePack
    Column("created_ms", BigInteger, nullable=False),
    Column("due_ms", BigInteger),  # of the next attempt, or end of the current one's lease; null: no more attempts
    Column("trace", String(55)),  # the context of the trace of its batch (W3C traceparent)
    _partial_index("ix_deliveries_due", "endpoint", "due_ms", where=text("due_ms IS NOT NULL")),
    Index("ix_deliveries_batch", "batch", "endpoint", "sequence_number"),
    Index("ix_deliveries_endpoint", "endpoint", "created_ms"),
    Index("ix_deliveries_created_ms", "created_ms"),
    _partial_index("ix_deliveries_given_up", "status", where=GIVEN_UP),
)

couriers = Table(
    "couriers",
    metadata,
    Column("namespace", String(32), primary_key=True),
    Column("position", BigInteger, nullable=False),  # of the last entry whose deliveries are all written
    Column("updated_ms", BigInteger, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("kind", String(1), primary_key=True),  # Batch, Job, Task: a batch that is not archived
    Column("status", String(1), primary_key=True),  # of tasks: the letter of model.tasks.TaskStatus
    Column("count", BigInteger, nullable=False),
    **_CLUSTERED,
)

hours = Table(
    "hours",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("hour", BigInteger, primary_key=True),  # since 1970
    Column("created", BigInteger, nullable=False),  # number of jobs, as in the next columns
    Column("done", BigInteger, nullable=False),
    Column("error", BigInteger, nullable=False),
    Column("canceled", BigInteger, nullable=False),
    Column("started", BigInteger, nullable=False),  # number of ended jobs that had begun
    Column("queue_ms", BigInteger, nullable=False),  # sum of their times from submit to begin
    Column("device_ms", BigInteger, nullable=False),
    **_CLUSTERED,
)

TIME_BOUNDS_MS = (10, 50, 100, 500, 1000, 5000, 15_000, 60_000, 300_000, 900_000, 3_600_000, 14_400_000, 86_400_000)
"""The upper bounds of the buckets in which times of jobs are counted; one more bucket has the rest."""

totals = Table(
    "totals",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("kind", String(1), primary_key=True),  # Done, Error, Canceled: jobs by their end; Queue, Run: times of these
    Column("bucket", Integer, primary_key=True),  # of the time, see TIME_BOUNDS_MS; 0 for jobs by their end
    Column("count", BigInteger, nullable=False),  # number of jobs that ever ended, also of those that were deleted
    Column("sum_ms", BigInteger, nullable=False),  # of the times
    **_CLUSTERED,
)

recorder = Table(
    "recorder",
    metadata,
    Column("namespace", String(32), primary_key=True),
    Column("position", String(40), nullable=False),  # id of the last recorded entry of the stream
    Column("updated_ms", BigInteger, nullable=False),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("consumer", String(16), nullable=False),  # recorder, courier, intake, scheduler
    Column("origin", String(200), nullable=False),  # id of the entry, the message or the batch
    Column("batch", Id),  # null: without a batch, or unknown
    Column("project", String(64)),
    Column("position", BigInteger, nullable=False),  # of the entry in the stream; 0: not an entry
    Column("last_position", BigInteger, nullable=False),  # of the last entry that waits behind it
    Column("waiting", BigInteger, nullable=False),  # entries that wait behind it
    Column("error", Text, nullable=False),
    Column("payload", LargeBinary),  # null: too large to store, or without one
    Column("size", BigInteger, nullable=False),  # of the payload
    Column("version", String(40), nullable=False),  # of the Tweezer that parked it
    Column("created_ms", BigInteger, nullable=False),
    Column("retry_ms", BigInteger),  # when a retry was requested; null: it was not
    Index("uq_dead_letters_consumer_origin", "consumer", "origin", unique=True),
    Index("ix_dead_letters_consumer_batch", "consumer", "batch"),
)

dead_letter_totals = Table(
    "dead_letter_totals",
    metadata,
    Column("consumer", String(16), primary_key=True),
    Column("parked", BigInteger, nullable=False),  # ever
    Column("evicted", BigInteger, nullable=False),  # dropped because of the limits on number, size and age
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", BigInteger, ForeignKey("projects.no", ondelete="CASCADE"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("cron", String(200)),  # null: every every_s seconds
    Column("time_zone", String(64), nullable=False),  # of the cron expression
    Column("every_s", BigInteger),
    Column("anchor_ms", BigInteger, nullable=False),  # from which intervals are counted
    Column("overlap", String(8), nullable=False),
    Column("missed", String(8), nullable=False),
    Column("grace_s", BigInteger, nullable=False),
    Column("template", LargeBinary, nullable=False),  # Submission, compressed JSON
    Column("user", String(64)),  # who created it, if that is a user
    Column("key", String(16)),  # the key that created it; null for a session, and without the API
    Column("created_by", String(200), nullable=False),
    Column("status", String(8), nullable=False),
    Column("reason", String(500)),  # of the pause or the stop
    Column("changed_by", String(200), nullable=False),
    Column("since_ms", BigInteger, nullable=False),  # of the status
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("next_ms", BigInteger),  # the next tick; null unless the schedule is active
    Column("last_ms", BigInteger),  # the last tick that was handled
    Column("told", Boolean, nullable=False),  # whether the event of its status was published
    Index("uq_schedules_project_name", "project", "name", unique=True),
    _partial_index("ix_schedules_next_ms", "next_ms", where=text("next_ms IS NOT NULL")),
)

schedule_ticks = Table(
    "schedule_ticks",
    metadata,
    Column("schedule", Id, ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(300), primary_key=True),  # what makes it unique: the time, or the key of a manual run
    Column("at_ms", BigInteger, nullable=False),
    Column("manual", Boolean, nullable=False),
    Column("batch", Id, nullable=False),  # the id that its batch has, or would have
    Column("user", String(64)),  # of the batch
    Column("outcome", String(10), nullable=False),
    Column("code", String(40)),  # why it was skipped or failed
    Column("message", Text),
    Column("missed", BigInteger, nullable=False),  # number of earlier ticks that were left out
    Column("tries", Integer, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("due_ms", BigInteger),  # when a scheduler handles it next; null: nothing is left to do
    Index("ix_schedule_ticks_at_ms", "schedule", "at_ms"),
    Index("ix_schedule_ticks_batch", "batch"),
    _partial_index("ix_schedule_ticks_due_ms", "due_ms", where=text("due_ms IS NOT NULL")),
)

schedule_totals = Table(
    "schedule_totals",
    metadata,
    Column("outcome", String(10), primary_key=True),
    Column("count", BigInteger, nullable=False),  # number of ticks that ever had it
    Column("lag_ms", BigInteger, nullable=False),  # of the last of them: from its time to its outcome
)

users = Table(
    "users",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),  # for logging in
    Column("password", Text),  # Argon2id, in the PHC string format; null: cannot log in
    Column("created_ms", BigInteger, nullable=False),
    Column("disabled_ms", BigInteger),
)

members = Table(
    "members",
    metadata,
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("project", BigInteger, ForeignKey("projects.no", ondelete="CASCADE"), primary_key=True),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),  # the part of a key that may be shown
    Column("digest", LargeBinary(32), nullable=False),  # SHA-256 of the whole key, which is random
    Column("kind", String(1), nullable=False),  # Key, Session (created by a log-in)
    Column("role", String(16), nullable=False),
    Column("project", BigInteger, ForeignKey("projects.no", ondelete="CASCADE")),  # null: not limited to one project
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE")),
    Column("name", String(200), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("used_ms", BigInteger),  # approximate time of its last use
    Index("ix_keys_project", "project"),
    Index("ix_keys_user", "user"),
    Index("ix_keys_expires_ms", "expires_ms"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
