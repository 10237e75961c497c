"""The simulated QPU's own record: one line of JSON for whatever happened to a job, and the counts of it.

It is the outside witness of tests that kill things: no part of the queue writes it. Times ``t`` are of the host's
monotonic clock, in seconds, so that they compare with those of other processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from tweezer.model.errors import TweezerError


class JournalEvent(StrEnum):
    """What a line tells of.

    open: the simulator started. reset: it forgot everything. sequence: the text behind a digest, once. submit: a job
    was accepted. begin, end: of its execution. cancel: somebody asked, or a new submit displaced it (``displaced_by``).
    cut: the answer to an accepted submit or cancel was lost on purpose.
    """

    OPEN = "open"
    RESET = "reset"
    SEQUENCE = "sequence"
    SUBMIT = "submit"
    BEGIN = "begin"
    END = "end"
    CANCEL = "cancel"
    CUT = "cut"


class JournalEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line. job: its ``pasqman_job_id``. by: who asked, as they presented themselves. late: a cancel that changed
    nothing. reason: why a job ended in ``ERROR``."""

    event: JournalEvent
    t: float
    at: str
    uid: int | None = None
    job: str | None = None
    batch: str | None = None
    by: str | None = None
    nb_run: int | None = None
    context: dict[str, Any] | None = None
    sequence: str | None = None
    text: str | None = None
    status: str | None = None
    counter: dict[str, int] | None = None
    reason: str | None = None
    displaced_by: int | None = None
    late: bool = False


class Tally(msgspec.Struct):
    """What happened to the job of one ``pasqman_job_id``.

    uids: of its submits. cancels: asked for; late_cancels: those of them that changed nothing. displaced: ended by
    another submit. lost_replies: answers cut on purpose. ended: how often each status was its end. asked_by: who sent
    a submit or a cancel, in turn.
    """

    submits: int = 0
    begins: int = 0
    cancels: int = 0
    late_cancels: int = 0
    displaced: int = 0
    lost_replies: int = 0
    uids: list[int] = []
    ended: dict[str, int] = {}
    asked_by: list[str] = []

    def add(self, line: JournalEntry) -> None:
        match line.event:
            case JournalEvent.SUBMIT:
                self.submits += 1
                self.uids.append(line.uid or 0)
                self.asked_by.append(line.by or "")
            case JournalEvent.BEGIN:
                self.begins += 1
            case JournalEvent.CANCEL if line.displaced_by is not None:
                self.displaced += 1
            case JournalEvent.CANCEL:
                self.cancels += 1
                self.late_cancels += line.late
                self.asked_by.append(line.by or "")
            case JournalEvent.CUT:
                self.lost_replies += 1
            case JournalEvent.END:
                self.ended[line.status or ""] = self.ended.get(line.status or "", 0) + 1
            case JournalEvent.OPEN | JournalEvent.RESET | JournalEvent.SEQUENCE:
                pass


class Journal:
    """Writes lines, each with one write to a file that is open for appending, and counts them.

    path: None keeps the counts only. ``past`` is what the file held, since its last reset.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises TweezerError when the file holds something else, OSError when it cannot be written."""
        self.past = [] if path is None or not path.exists() else since_reset(read_journal(path))
        self.tallies = tally(self.past)
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._encoder = msgspec.json.Encoder()

    def write(self, event: JournalEvent, **told: Any) -> str:
        """Write an entry and return its time."""
        line = JournalEntry(event=event, t=time.monotonic(), at=datetime.now(UTC).isoformat(), **told)
        if event is JournalEvent.RESET:
            self.tallies.clear()
        tally([line], self.tallies)
        if self._file is not None:
            os.write(self._file, self._encoder.encode(line) + b"\n")
        return line.at

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_journal(path: Path) -> list[JournalEntry]:
    """Return all lines of a file; one that is not whole, because its writer was killed, is left out if it is the last.

    Raises TweezerError for what is no journal.
    """
    *whole, _ = path.read_bytes().split(b"\n")
    try:
        return [msgspec.json.decode(line, type=JournalEntry) for line in whole]
    except msgspec.DecodeError as error:
        raise TweezerError(f"journal: {path} is no journal of tweezer qpu-sim: {error}; name another file") from error


def tally(lines: Iterable[JournalEntry], counted: dict[str, Tally] | None = None) -> dict[str, Tally]:
    """Count the entries of each ``pasqman_job_id``, on top of what was counted before."""
    tallies = {} if counted is None else counted
    for line in lines:
        if line.job is not None:
            tallies.setdefault(line.job, Tally()).add(line)
    return tallies


def since_reset(lines: list[JournalEntry]) -> list[JournalEntry]:
    last = max((place for place, line in enumerate(lines) if line.event is JournalEvent.RESET), default=-1)
    return lines[last + 1 :]
