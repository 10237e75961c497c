"""Times in the notation of users, with the hours that clocks skip and repeat."""

from __future__ import annotations

import time as clocks
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import click
import pytest

from tweezer.cli.options import parse_time
from tweezer.model.errors import InvalidInput
from tweezer.model.windows import check_time


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv(
            "TZ", "CET-1CEST,M3.5.0,M10.5.0/3"
        )  # the rule of Berlin, written out so that no zone files are needed
        clocks.tzset()
        yield
    clocks.tzset()


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2027-03-28T01:59", "2027-03-28T00:59"),
        ("2027-03-28T03:00", "2027-03-28T01:00"),
        ("2027-03-28T02:30+01:00", "2027-03-28T01:30"),
        ("2027-03-28T02:30Z", "2027-03-28T02:30"),
        ("2027-10-31T01:59", "2027-10-30T23:59"),
        ("2027-10-31T03:00", "2027-10-31T02:00"),
        ("2027-10-31T02:30+02:00", "2027-10-31T00:30"),
        ("2027-10-31T02:30+01:00", "2027-10-31T01:30"),
        ("2027-07-01", "2027-06-30T22:00"),
    ],
)
def test_an_unambiguous_time_is_accepted(text: str, hour: str) -> None:
    assert parse_time(text) == datetime.fromisoformat(f"{hour}+00:00")


def test_a_time_that_the_clocks_skip_is_refused() -> None:
    with pytest.raises(click.BadParameter, match=r"does not exist here.*T02:30.*or") as raised:
        parse_time("2027-03-28T02:30")
    assert "2027-03-28T02:30+02:00" in raised.value.message
    assert "2027-03-28T02:30+01:00" in raised.value.message


def test_an_ambiguous_time_is_refused_with_both_choices() -> None:
    with pytest.raises(click.BadParameter, match="is ambiguous here") as raised:
        parse_time("2027-10-31T02:30")
    first, second = (datetime.fromisoformat(f"2027-10-31T02:30{offset}") for offset in ("+02:00", "+01:00"))
    assert f"{first.isoformat(timespec='minutes')} or {second.isoformat(timespec='minutes')}" in raised.value.message


@pytest.mark.parametrize("text", ["", "soon", "2027", "0001-01-01", "9999-12-31T23:59-10:00", "2027-13-01", "1e9"])
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_time(text)


def test_a_datetime_that_its_zone_skips_is_refused() -> None:
    zone = ZoneInfo("Europe/Berlin")
    with pytest.raises(InvalidInput, match="begins: 2027-03-28T02:30 does not exist in Europe/Berlin"):
        check_time("begins", datetime(2027, 3, 28, 2, 30, tzinfo=zone))
    check_time("begins", datetime(2027, 3, 28, 3, 0, tzinfo=zone))
    check_time("begins", datetime(2027, 10, 31, 2, 30, tzinfo=zone, fold=1))
    check_time("begins", datetime(2027, 3, 28, 2, 30, tzinfo=UTC))
