"""The rules of a batch: when it expires, how many failures and retries it may have, and which batches it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.arguments import shown
from tweezer.model.errors import InvalidInput

MAX_DEPENDENCIES = 50
MAX_WAIT_S = 366 * 86_400.0
MAX_KEEP_S = 3660 * 86_400.0
MAX_COUNT = 1_000_000
"""The largest failure threshold and the largest number of retries in total."""


RULE_FAULTS = frozenset({"expired", "failures", "dependency"})
"""The codes of the faults of batches that one of their rules ended, which the jobs that it cancelled share."""


class When(StrEnum):
    """How a batch must end, so that a batch that depends on it can start.

    Attributes:
        DONE: In DONE; single jobs may have failed.
        ENDED: In any status.
        ERROR: In ERROR, CANCELED or TIMED_OUT, or in DONE with at least one failed job.
    """

    DONE = "DONE"
    ENDED = "ENDED"
    ERROR = "ERROR"

    @property
    def letter(self) -> str:
        """The value in scripts."""
        return "X" if self is When.ENDED else self.value[0]


class OnFailures(StrEnum):
    """What happens to a batch when the number of its failed jobs reaches its threshold."""

    PAUSE = "pause"
    CANCEL = "cancel"


class Dependency(msgspec.Struct, frozen=True, array_like=True):
    """A batch that another one waits for, and how it must end."""

    batch: UUID
    when: When = When.DONE


class StoredRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rules that scripts enforce, as they are in Redis, and what was used of them; times in milliseconds.

    Attributes:
        failures: The failure threshold; ``failed`` is the number of jobs that had failed when its count started.
        retries: The limit of all retries; ``retried`` is their number.
        queue_ms: The queue timeout; ``expires`` is when it ends, in milliseconds since 1970.
        late_ms: The schedule threshold; ``late`` is 1 once the batch was reported as late.
    """

    failures: int | None = None
    on_failures: OnFailures | None = None
    failed: int = 0
    retries: int | None = None
    retried: int = 0
    queue_ms: int | None = None
    expires: float | None = None
    late_ms: int | None = None
    late: int = 0


class Rules(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rules of a batch; None where there is no such rule.

    Attributes:
        schedule_threshold_s: Seconds after the start time at which a batch that has not started is late.
        queue_timeout_s: Seconds in which a batch must start, counted from when it may start.
        failure_threshold: Number of jobs in ERROR at which ``on_failures`` applies.
        on_failures: Whether the batch is then paused or cancelled.
        total_retries: Limit of all retries after transient failures and crashes, for all jobs together.
        keep_s: Seconds after its end at which it is archived.
        depends_on: Batches of the same project that it waits for.
    """

    schedule_threshold_s: float | None = None
    queue_timeout_s: float | None = None
    failure_threshold: int | None = None
    on_failures: OnFailures = OnFailures.PAUSE
    total_retries: int | None = None
    keep_s: float | None = None
    depends_on: tuple[Dependency, ...] = ()

    def stored(self) -> StoredRules | None:
        """Return the rules that scripts enforce; None without any."""
        found = StoredRules(
            failures=self.failure_threshold,
            on_failures=None if self.failure_threshold is None else self.on_failures,
            retries=self.total_retries,
            queue_ms=_milliseconds(self.queue_timeout_s),
            late_ms=_milliseconds(self.schedule_threshold_s),
        )
        return None if found == StoredRules() else found


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(round(seconds * 1000), 1)


def check_rules(rules: object) -> None:
    """Check the values of a batch's rules; whether the batches exist that it depends on is checked later.

    Raises:
        InvalidInput: Names the field, as the submit calls it.
    """
    if not isinstance(rules, Rules):
        raise InvalidInput("rules", f"expected Rules, got {shown(rules)}")
    for field in ("schedule_threshold_s", "queue_timeout_s"):
        _check_seconds(field, getattr(rules, field), MAX_WAIT_S)
    _check_seconds("keep_s", rules.keep_s, MAX_KEEP_S, includes_zero=True)
    _check_count("failure_threshold", rules.failure_threshold, 1)
    _check_count("retries.total", rules.total_retries, 0)
    if not isinstance(rules.on_failures, OnFailures):
        raise InvalidInput("on_failures", f"must be one of {', '.join(OnFailures)}, got {shown(rules.on_failures)}")
    if rules.on_failures is not OnFailures.PAUSE and rules.failure_threshold is None:
        raise InvalidInput("on_failures", "has no effect without failure_threshold; give that too")
    _check_dependencies(rules.depends_on)


def check_start(rules: Rules | None, *, has_start: bool) -> None:
    """Raise InvalidInput if a rule needs a start time and the batch has none."""
    if rules is not None and rules.schedule_threshold_s is not None and not has_start:
        raise InvalidInput("schedule_threshold_s", "has no effect without start_at; give that too")


def _check_seconds(field: str, value: Any, most: float, *, includes_zero: bool = False) -> None:
    if value is None:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most or (value == 0 and not includes_zero):
        least = "from 0 to" if includes_zero else "above 0, at most"
        raise InvalidInput(field, f"expected a number of seconds {least} {most:.0f}, got {shown(value)}")


def _check_count(field: str, value: object, least: int) -> None:
    if value is not None and (type(value) is not int or not least <= value <= MAX_COUNT):
        raise InvalidInput(field, f"expected a whole number from {least} to {MAX_COUNT}, got {shown(value)}")


def _check_dependencies(dependencies: Sequence[Any]) -> None:
    if not isinstance(dependencies, tuple):
        raise InvalidInput("depends_on", f"expected a tuple of dependencies, got {shown(dependencies)}")
    if len(dependencies) > MAX_DEPENDENCIES:
        raise InvalidInput("depends_on", f"at most {MAX_DEPENDENCIES} batches are allowed (got {len(dependencies)})")
    positions: dict[UUID, int] = {}
    for position, dependency in enumerate(dependencies):
        field = f"depends_on[{position}]"
        if not isinstance(dependency, Dependency) or not isinstance(dependency.batch, UUID):
            raise InvalidInput(field, f"expected a batch and how it must end, got {shown(dependency)}")
        if not isinstance(dependency.when, When):
            raise InvalidInput(f"{field}.when", f"must be one of {', '.join(When)}, got {shown(dependency.when)}")
        if dependency.batch in positions:
            first = positions[dependency.batch]
            raise InvalidInput(field, f"names the same batch as depends_on[{first}]; name each batch once")
        positions[dependency.batch] = position
