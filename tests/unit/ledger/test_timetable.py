"""The ticks of cron expressions and intervals, above all when the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.ledger.schedules.timetable import Cron, Interval, Timetable
from tweezer.model.errors import InvalidInput

PARIS = "Europe/Paris"
SPRING, AUTUMN = datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)
"""Days on which the clocks change in Paris, at 01:00 UTC: from 02:00 to 03:00, and from 03:00 to 02:00."""


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def ticks(timetable: Timetable, begins: datetime, ends: datetime) -> list[str]:
    """Return the ticks after a time and until another one, in UTC."""
    found, at = [], ms(begins)
    while (at := timetable.next_after(at)) <= ms(ends):
        found.append(datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="minutes")[:16])
    return found


def around(day: datetime, expression: str) -> list[str]:
    return ticks(Cron(expression, PARIS), day - timedelta(hours=12), day + timedelta(hours=12))


def test_a_time_that_the_clocks_skip_runs_right_after_the_gap() -> None:
    assert around(SPRING, "30 2 * * *") == ["2026-03-29T01:00"]


def test_a_time_that_the_clocks_repeat_runs_once() -> None:
    assert around(AUTUMN, "30 2 * * *") == ["2026-10-25T00:30"]


@pytest.mark.parametrize("day", [SPRING, AUTUMN])
def test_a_nightly_run_happens_once_every_night(day: datetime) -> None:
    found = ticks(Cron("30 2 * * *", PARIS), day - timedelta(days=3), day + timedelta(days=3))
    assert len({tick[:10] for tick in found}) == len(found) == 6


def test_every_second_hour_is_neither_lost_nor_doubled() -> None:
    assert around(SPRING, "0 */2 * * *")[5:9] == [
        f"2026-03-{it}" for it in ("28T23:00", "29T01:00", "29T02:00", "29T04:00")
    ]
    assert around(AUTUMN, "0 */2 * * *")[4:7] == [f"2026-10-{it}" for it in ("24T22:00", "25T00:00", "25T03:00")]


def test_minutes_of_a_repeated_hour_run_once() -> None:
    assert around(AUTUMN, "*/20 2 * * *") == ["2026-10-25T00:00", "2026-10-25T00:20", "2026-10-25T00:40"]


def test_an_expression_for_every_hour_runs_in_each_hour_that_passes() -> None:
    for day in (SPRING, AUTUMN):
        found = [datetime.fromisoformat(tick) for tick in around(day, "30 * * * *")]
        assert len(found) == 24
        assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(hours=1)}


@given(st.sampled_from(["30 2 * * *", "*/20 2 * * *", "0 */2 * * *", "15 * * * *"]), st.integers(0, 3 * 86_400))
def test_the_ticks_do_not_depend_on_where_the_search_begins(expression: str, after_s: int) -> None:
    for day in (SPRING, AUTUMN):
        begins, ends = day - timedelta(days=1), day + timedelta(days=2)
        middle = begins + timedelta(seconds=after_s)
        cron = Cron(expression, PARIS)
        whole = ticks(cron, begins, ends)
        assert ticks(cron, begins, middle) + ticks(cron, middle, ends) == whole


def test_intervals_are_counted_from_their_anchor() -> None:
    hourly = Interval(3600, 500)
    assert [hourly.next_after(at) for at in (0, 500, 3_600_499, 3_600_500)] == [3_600_500] * 3 + [7_200_500]
    assert hourly.due(3_600_500, 4 * 3_600_000) == (3 * 3_600_000 + 500, 2)


def test_of_ticks_that_are_due_together_the_last_one_is_found() -> None:
    every_minute, first = Cron("* * * * *", PARIS), ms(SPRING)
    assert every_minute.due(first, first + 150_000) == (first + 120_000, 2)
    years = first + 3 * 366 * 86_400_000
    assert every_minute.due(first, years + 30_000) == (years, 10_000)
    assert Cron("0 0 1 1 *", "UTC").due(ms(datetime(2020, 1, 1, tzinfo=UTC)), first) == (
        ms(datetime(2026, 1, 1, tzinfo=UTC)),
        6,
    )


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("61 * * * *", "the field minute is not valid"),
        ("* * * *", "has 4 fields instead of 5"),
        ("* * * * * *", "has 6 fields instead of 5"),
        ("@daily", "has 1 fields instead of 5"),
        ("", "has 0 fields"),
        ("0 0 30 2 *", "the field day-of-month is not valid"),
        ("0 0 * 2 MON#6", "the field day-of-week is not valid"),
        ("0 0 31 * *L", "not valid"),
    ],
)
def test_an_invalid_expression_is_rejected_with_its_field(expression: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        Cron(expression, PARIS)
    assert caught.value.field == "cron"


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "../etc/passwd", "/etc/localtime", "localtime", "posixrules", "Europe", "", "a\x00b", "é"]
)
def test_an_unknown_time_zone_is_rejected(name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a known time zone") as caught:
        Cron("0 0 * * *", name)
    assert caught.value.field == "time_zone"
