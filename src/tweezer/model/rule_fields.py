"""The rules of a batch as producers give them: the same fields in the Python API, in arq messages and over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypedDict
from uuid import UUID

import msgspec
from msgspec import Meta

from tweezer.model.arguments import quote_name, shown
from tweezer.model.checks import MAX_TRANSIENT_RETRIES, suggest_name
from tweezer.model.errors import InvalidInput
from tweezer.model.messages import Limits
from tweezer.model.rules import Dependency, OnFailures, Rules, When
from tweezer.model.windows import check_time


class Retries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The retries of a batch; null where there is no such limit.

    Attributes:
        per_job: How often one job is retried after a transient failure.
        total: How often all jobs together are retried after transient failures and crashes.
    """

    per_job: Annotated[
        int | None,
        Meta(description="How often a job is retried after a transient failure; null means the default.", examples=[3]),
    ] = None
    total: Annotated[
        int | None,
        Meta(
            description="Limit of all retries of the batch after transient failures and crashes; null means no limit.",
            examples=[20],
        ),
    ] = None


class NamedDependency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch that another one waits for."""

    batch: Annotated[UUID, Meta(description="Id of the batch, in the same project.")]
    when: Annotated[
        str,
        Meta(
            description="How it must end: `DONE`; `ENDED` (in any status); or `ERROR` (in `ERROR`, `CANCELED` or "
            "`TIMED_OUT`, or in `DONE` with at least one failed job).",
            examples=["DONE"],
        ),
    ] = When.DONE.value


class RuleFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a submit that are the rules of its batch, except ``limits`` and the older names of fields."""

    start_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(
            description="The earliest time to start, ISO 8601 with an offset; null means at once.",
            examples=["2030-11-01T09:00:00Z"],
        ),
    ] = None
    schedule_threshold_s: Annotated[
        float | None,
        Meta(
            description="Report the batch as late if it has not started so many seconds after `start_at`; it still "
            "runs. Null: never.",
            examples=[600.0],
        ),
    ] = None
    queue_timeout_s: Annotated[
        float | None,
        Meta(
            description="Seconds in which the batch must start, counted from when it may start; otherwise it ends in "
            "`TIMED_OUT`. Null: no limit.",
            examples=[3600.0],
        ),
    ] = None
    failure_threshold: Annotated[
        int | None,
        Meta(description="Number of failed jobs at which `on_failures` applies; null: never.", examples=[10]),
    ] = None
    on_failures: Annotated[
        str | None,
        Meta(
            description="What happens to the batch at `failure_threshold`: `pause` or `cancel`; null means `pause`.",
            examples=["pause"],
        ),
    ] = None
    retries: Annotated[Retries | None, Meta(description="Limits of retries; null means the defaults.")] = None
    depends_on: Annotated[
        list[NamedDependency | UUID] | None,
        Meta(
            description="The batches of the same project that this one waits for, at most 50. An id alone means that "
            "the batch must end in `DONE`. When one of them can no longer end as required, this batch is `CANCELED`.",
        ),
    ] = None
    keep_s: Annotated[
        float | None,
        Meta(
            description="Seconds after its end at which the batch is archived; null: never by itself.",
            examples=[604_800.0],
        ),
    ] = None


RULE_FIELDS = RuleFields.__struct_fields__


class AppliedRules(TypedDict):
    """The members of a submission that the rules decide."""

    not_before: datetime | None
    limits: Limits
    rules: Rules | None


def apply_rules(given: RuleFields, *, limits: Limits, not_before: datetime | None) -> AppliedRules:
    """Return the members of a submission that these fields decide. The values are checked with the batch.

    Args:
        given: The fields. ``depends_on`` may also have ``Dependency`` objects, and ``retries`` may be a dictionary.
        limits: The limits of the submit.
        not_before: The older name of ``start_at``.

    Raises:
        InvalidInput: Two fields contradict each other, or a field does not have the right form.
    """
    retries = as_retries(given.retries)
    rules = Rules(
        schedule_threshold_s=given.schedule_threshold_s,
        queue_timeout_s=given.queue_timeout_s,
        failure_threshold=given.failure_threshold,
        on_failures=_as_member(OnFailures, given.on_failures, OnFailures.PAUSE),
        total_retries=retries.total,
        keep_s=given.keep_s,
        depends_on=tuple(map(_as_dependency, given.depends_on or ())),
    )
    return {
        "not_before": choose_start(given.start_at, not_before),
        "limits": _limit_retries(limits, retries.per_job),
        "rules": None if rules == Rules() else rules,
    }


def choose_start(start_at: datetime | None, not_before: datetime | None) -> datetime | None:
    """Return the start time, given with its current or with its older name. Raises InvalidInput for both."""
    for field, at in (("start_at", start_at), ("not_before", not_before)):
        if at is not None:
            check_time(field, at)
    if start_at is not None and not_before not in (None, start_at):
        raise InvalidInput("not_before", "contradicts start_at; it is the older name of start_at, so omit it")
    return start_at or not_before


def as_retries(retries: object) -> Retries:
    """Convert a dictionary with some of the fields of ``Retries``; None means the defaults. Raises InvalidInput."""
    if retries is None or isinstance(retries, Retries):
        return retries or Retries()
    if not isinstance(retries, Mapping):
        raise InvalidInput("retries", f"expected a dictionary with per_job and total, got {shown(retries)}")
    for name in retries:
        if name not in Retries.__struct_fields__:
            problem = f"is not a limit of retries{suggest_name(name, Retries.__struct_fields__)}"
            raise InvalidInput(f"retries.{quote_name(name)}", f"{problem}; the limits are per_job and total")
    return Retries(**retries)


def _limit_retries(limits: Limits, per_job: object) -> Limits:
    if per_job is None:
        return limits
    if type(per_job) is not int or not 0 <= per_job <= MAX_TRANSIENT_RETRIES:
        problem = f"expected a whole number from 0 to {MAX_TRANSIENT_RETRIES}, got {shown(per_job)}"
        raise InvalidInput("retries.per_job", problem)
    if limits.transient_retries not in (Limits().transient_retries, per_job):
        problem = "contradicts retries.per_job; it is the older name of retries.per_job, so omit it"
        raise InvalidInput("limits.transient_retries", problem)
    return msgspec.structs.replace(limits, transient_retries=per_job)


def _as_dependency(given: Any) -> Any:
    match given:
        case UUID():
            return Dependency(given)
        case NamedDependency():
            return Dependency(given.batch, _as_member(When, given.when, When.DONE))
        case _:
            return given


def _as_member(kind: Any, value: Any, default: Any) -> Any:
    """Return the member of an enumeration with this name in upper or lower case; else the value, for the checks."""
    if value is None:
        return default
    if isinstance(value, str):
        for word in (value.lower(), value.upper()):
            with contextlib.suppress(ValueError):
                return kind(word)
    return value
