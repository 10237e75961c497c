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
    """``2027-01-31T08:00`` of here, or with an offset, for options; in UTC.

    Raises BadParameter also for a local time that the clocks skip, or have twice: the offset says which is meant.
    """
    try:
        given = datetime.fromisoformat(text)
        found = given.astimezone(UTC)
        if given.tzinfo is None:
            _check_local(text, given)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{text!r} is not a time such as 2027-01-31T08:00 or 2027-01-31T08:00+01:00") from None
    return found


def _check_local(text: str, given: datetime) -> None:
    earlier, later = given.replace(fold=0).astimezone(), given.replace(fold=1).astimezone()
    if earlier.utcoffset() == later.utcoffset():
        return
    examples = " or ".join(given.replace(tzinfo=it.tzinfo).isoformat(timespec="minutes") for it in (earlier, later))
    if earlier.replace(tzinfo=None) != given:
        raise click.BadParameter(f"{text!r} does not exist here: the clocks go forward then; write {examples}")
    raise click.BadParameter(f"{text!r} comes twice here: the clocks go back then; write {examples}")


def clock(moment: datetime) -> str:
    """The time of here: ``14:00`` today, ``2027-01-31 08:00`` on another day."""
    here = moment.astimezone()
    return f"{here:%H:%M}" if here.date() == datetime.now().astimezone().date() else f"{here:%Y-%m-%d %H:%M}"
