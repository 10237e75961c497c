# ruff: noqa: INP001  # a script beside the pages that it writes, not a package
"""Draws the diagrams and tables of docs/explanation/lifecycle.md from src/tweezer/model/lifecycle.py.

    python docs/draw_lifecycle.py            writes the page anew
    python docs/draw_lifecycle.py --check    exits with 1 when the page is out of date

What stands between ``<!-- drawn: name -->`` and ``<!-- end -->`` is replaced; all else is written by hand.
A test (tests/unit/test_docs.py) checks that the committed page is what this makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from tweezer.model.lifecycle import (
    BATCH_TABLE,
    JOB_TABLE,
    TERMINAL_BATCH,
    TERMINAL_JOB,
    BatchEvent,
    BatchStatus,
    JobEvent,
    JobStatus,
)

PAGE = Path(__file__).parent / "explanation" / "lifecycle.md"

Table = Mapping[tuple[Any, Any], StrEnum]
Refinement = tuple[StrEnum, StrEnum, str]

_BLOCK = re.compile(r"(<!-- drawn: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The two rules that refine the tables, as the module's docstrings state them.
_IF_CANCELLED: tuple[Refinement, ...] = (
    (
        JobStatus.RUNNING,
        JobStatus.CANCELED,
        f"{JobEvent.RETRY} / {JobEvent.RECLAIM} / {JobEvent.GIVE_BACK} after a cancel request",
    ),
)
_IF_NEVER_BEGUN: tuple[Refinement, ...] = (
    (BatchStatus.PAUSED, BatchStatus.PENDING, f"{BatchEvent.RESUME} when no job ever began"),
)


def diagram(table: Table, statuses: type[StrEnum], over: frozenset[StrEnum], refined: tuple[Refinement, ...]) -> str:
    """A Mermaid state diagram: one arrow a pair of statuses, labelled with the events that lead there."""
    arrows: dict[tuple[StrEnum, StrEnum], list[str]] = {}
    for (before, event), after in table.items():
        arrows.setdefault((before, after), []).append(event.value)
    for before, after, why in refined:
        arrows.setdefault((before, after), []).append(why)
    order = list(statuses)
    pairs = sorted(arrows, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
    lines = [f"    {before.value} --> {after.value}: {', '.join(arrows[before, after])}" for before, after in pairs]
    ends = [f"    {status.value} --> [*]" for status in statuses if status in over]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> PENDING", *lines, *ends, "```"])


def matrix(table: Table, statuses: type[StrEnum], events: type[StrEnum], over: frozenset[StrEnum]) -> str:
    """Events against live statuses: where each leads, or a dash where it is refused and changes nothing."""
    live = [status for status in statuses if status not in over]
    header = [["event", *(f"from {status.value}" for status in live)], ["---"] * (1 + len(live))]
    rows = [[f"`{event.value}`", *(_to(table.get((status, event))) for status in live)] for event in events]
    return "\n".join(f"| {' | '.join(row)} |" for row in header + rows)


def _to(status: StrEnum | None) -> str:
    return "–" if status is None else status.value


DRAWN: Mapping[str, Callable[[], str]] = {
    "diagram of jobs": lambda: diagram(JOB_TABLE, JobStatus, TERMINAL_JOB, _IF_CANCELLED),
    "table of jobs": lambda: matrix(JOB_TABLE, JobStatus, JobEvent, TERMINAL_JOB),
    "diagram of batches": lambda: diagram(BATCH_TABLE, BatchStatus, TERMINAL_BATCH, _IF_NEVER_BEGUN),
    "table of batches": lambda: matrix(BATCH_TABLE, BatchStatus, BatchEvent, TERMINAL_BATCH),
}


def drawn(page: str) -> str:
    """The page with its drawn parts made anew. Raises ValueError when one is missing or unknown."""
    seen = [match["name"] for match in _BLOCK.finditer(page)]
    if sorted(seen) != sorted(DRAWN):
        raise ValueError(f"the page has the drawn parts {seen}; it must have {sorted(DRAWN)}, once each")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{DRAWN[match['name']]()}\n\n{match[3]}", page)


def main() -> int:
    before = PAGE.read_text(encoding="utf-8")
    after = drawn(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
