"""When a schedule runs: the ticks of a cron expression in a time zone, or of an interval.

Times are milliseconds since 1970. For a cron expression with given hours (``30 2 * * *``, ``0 */2 * * *``), a time that
the clocks skip in spring becomes the first one after the gap, and of a time that they repeat in autumn the first one
counts: no run is lost or doubled. Where the hour is ``*``, the expression runs in every hour that passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tweezer.model.arguments import shown
from tweezer.model.errors import InvalidInput

_FIELDS = 5
_HOUR = 1
_EVERY = {0: "0-59", 1: "0-23"}  # instead of a star
_FORM = "expected minute, hour, day of month, month and day of week, such as 30 2 * * *"
_COUNTED_MAX = 10_000
_WINDOW_MS = 3_600_000
_YEAR_MAX = 9000
_NO_PLACES = {"Factory", "localtime", "posixrules"}  # files beside the time zones; what they mean differs between hosts


class DueTicks(NamedTuple):
    """The last tick that is due, and how many are due before it (at least, if that is 10,000)."""

    last_ms: int
    earlier: int


class Timetable(Protocol):
    """The ticks of a schedule."""

    def next_after(self, at_ms: int) -> int:
        """Return the first tick after this time."""
        ...

    def due(self, first_ms: int, now_ms: int) -> DueTicks:
        """Return the last tick until now. first_ms: the first tick that was not handled yet, not after now."""
        ...


class Interval:
    """Ticks at equal intervals. anchor_ms: the time from which they are counted; it is not a tick itself."""

    def __init__(self, every_s: int, anchor_ms: int) -> None:
        self._every_ms = every_s * 1000
        self._anchor_ms = anchor_ms

    def next_after(self, at_ms: int) -> int:
        passed = max((at_ms - self._anchor_ms) // self._every_ms, 0)
        return self._anchor_ms + (passed + 1) * self._every_ms

    def due(self, first_ms: int, now_ms: int) -> DueTicks:
        last_ms = self.next_after(now_ms) - self._every_ms
        return DueTicks(last_ms, min((last_ms - first_ms) // self._every_ms, _COUNTED_MAX))


class Cron:
    """The ticks of a cron expression. Raises InvalidInput("cron" or "time_zone", …)."""

    def __init__(self, expression: str, time_zone: str) -> None:
        self._zone = load_zone(time_zone)
        fields = expression.split()
        if len(fields) != _FIELDS:
            raise InvalidInput("cron", f"has {len(fields)} fields instead of 5; {_FORM} (got {shown(expression)})")
        if fields[_HOUR] != "*":  # the library shifts only times whose minute and hour do not begin with a star
            for place, every in _EVERY.items():
                fields[place] = fields[place].replace("*", every) if fields[place].startswith("*") else fields[place]
        self._expression = " ".join(fields)
        try:
            CronSim(self._expression, datetime(2000, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            wrong = str(error).removeprefix("Bad ")
            raise InvalidInput("cron", f"the field {wrong} is not valid; {_FORM} (got {shown(expression)})") from None
        try:
            self.next_after(0)
        except InvalidInput:
            raise InvalidInput(
                "cron", f"never matches; correct the day or the month (got {shown(expression)})"
            ) from None

    def next_after(self, at_ms: int) -> int:
        return next(self._ticks_after(at_ms))

    def due(self, first_ms: int, now_ms: int) -> DueTicks:
        last_ms, earlier = first_ms, 0
        for tick in self._ticks_after(first_ms):
            if tick > now_ms:
                return DueTicks(last_ms, earlier)
            last_ms, earlier = tick, earlier + 1
            if earlier == _COUNTED_MAX:
                break
        return DueTicks(self._last(last_ms, now_ms), earlier)

    def _last(self, last_ms: int, now_ms: int) -> int:
        """Return the last tick until now, without going through all of them. last_ms: one of them."""
        window_ms = _WINDOW_MS
        while (begin := now_ms - window_ms) > last_ms and self.next_after(begin) > now_ms:
            window_ms *= 4
        for tick in self._ticks_after(max(begin, last_ms)):
            if tick > now_ms:
                break
            last_ms = tick
        return last_ms

    def _ticks_after(self, at_ms: int) -> Iterator[int]:
        """Yield the ticks after this time in order. Raises InvalidInput at their end."""
        began, last_ms = datetime.fromtimestamp(at_ms // 1000, UTC), at_ms
        if began.year < _YEAR_MAX:
            for tick in CronSim(self._expression, began.astimezone(self._zone)):
                found = round(tick.timestamp()) * 1000
                if found > last_ms:  # while the clocks repeat an hour, the first one of which has passed
                    last_ms = found
                    yield found
        raise InvalidInput("cron", "has no further ticks; correct the day or the month")


def load_zone(name: str) -> ZoneInfo:
    """Return the time zone. Raises InvalidInput("time_zone", …)."""
    try:
        return ZoneInfo("" if name in _NO_PLACES else name)
    except (KeyError, ValueError, OSError):
        problem = f"is not a known time zone; use a name such as Europe/Paris or UTC (got {shown(name)})"
        raise InvalidInput("time_zone", problem) from None


def make_timetable(cron: str | None, time_zone: str, every_s: int | None, anchor_ms: int) -> Timetable:
    """Return the timetable of a schedule with these settings. Raises InvalidInput."""
    if cron is not None:
        return Cron(cron, time_zone)
    assert every_s is not None
    load_zone(time_zone)
    return Interval(every_s, anchor_ms)
