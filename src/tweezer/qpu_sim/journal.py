"""The journal of the simulated QPU: one line of JSON for each event of a job, and counts of the events.

Tests that kill processes use it as independent evidence, because no part of the queue writes it. The times ``t`` are
seconds of the host's monotonic clock, so they can be compared with those of other processes.
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
    """The kinds of lines.

    open: The simulator started. reset: It deleted all jobs. sequence: The text of a digest, once. submit: A job was
    accepted. begin, end: A job began or ended to run. cancel: A client cancelled a job, or a new submit displaced it
    (``displaced_by``). cut: The connection was cut on purpose before the answer to an accepted submit or cancel.
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
    """One line.

    job: The job's ``pasqman_job_id``. by: The client's ``User-Agent``, or its address. late: The cancel changed
    nothing.
    reason: Why the job ended in ``ERROR``.
    """

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
    """The events of the job with one ``pasqman_job_id``.

    uids: The uids of its submits. cancels: Requested cancels. late_cancels: Those that changed nothing. displaced: How
    often another submit ended it. lost_replies: Answers cut on purpose. ended: Status → how often the job ended with
    it.
    asked_by: The clients of its submits and cancels, in order.
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
    """Appends lines to a file, each with one write, and counts them.

    path: The file; None: only the counts are kept. past: The lines that the file already had, since its last reset.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises TweezerError if the file is not a journal, OSError if it cannot be written."""
        self.past = [] if path is None or not path.exists() else since_reset(read_journal(path))
        self.tallies = tally(self.past)
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._encoder = msgspec.json.Encoder()

    def write(self, event: JournalEvent, **fields: Any) -> str:
        """Write an entry and return its time."""
        line = JournalEntry(event=event, t=time.monotonic(), at=datetime.now(UTC).isoformat(), **fields)
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
    """Return all lines of a file. An incomplete last line, whose writer was killed, is ignored.

    Raises TweezerError if the file is not a journal.
    """
    *whole, _ = path.read_bytes().split(b"\n")
    try:
        return [msgspec.json.decode(line, type=JournalEntry) for line in whole]
    except msgspec.DecodeError as error:
        raise TweezerError(
            f"journal: {path} is not a journal of tweezer qpu-sim ({error}); choose another file"
        ) from error


def tally(lines: Iterable[JournalEntry], counted: dict[str, Tally] | None = None) -> dict[str, Tally]:
    """Count the entries of each ``pasqman_job_id``, and add them to earlier counts."""
    tallies = {} if counted is None else counted
    for line in lines:
        if line.job is not None:
            tallies.setdefault(line.job, Tally()).add(line)
    return tallies


def since_reset(lines: list[JournalEntry]) -> list[JournalEntry]:
    last = max((place for place, line in enumerate(lines) if line.event is JournalEvent.RESET), default=-1)
    return lines[last + 1 :]
