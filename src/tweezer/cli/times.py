"""Times and durations as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION = re.compile(rf"(\d{{1,9}})\s*({'|'.join(_UNITS_S)})", re.ASCII)


def seconds(text: str) -> int:
    """``90d``, ``12h``, ``30min``, for options."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{text!r} is no time such as 90d, 12h or 30min")
    return int(match[1]) * _UNITS_S[match[2]]


def overlap(text: str) -> int:
    """As :func:`seconds`, or ``0``: none."""
    return 0 if text.strip() == "0" else seconds(text)


def time(text: str) -> datetime:
    """``2027-01-31T08:00`` of here, or with an offset, for options; in UTC."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a time such as 2027-01-31T08:00 or 2027-01-31T08:00+01:00") from None


def clock(moment: datetime) -> str:
    """The time of here: ``14:00`` today, ``2027-01-31 08:00`` on another day."""
    here = moment.astimezone()
    return f"{here:%H:%M}" if here.date() == datetime.now().astimezone().date() else f"{here:%Y-%m-%d %H:%M}"
