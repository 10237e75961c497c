"""The progress of a wait: a line on stderr that is updated in place, or a bar in a notebook.

Without a terminal, as in the log of a job, a new line is printed now and then.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self
from uuid import UUID

from tweezer.display.html import draw_batch
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.summaries import format_count, format_duration

if TYPE_CHECKING:
    from tweezer.store.records import BatchRecord

_CELLS = 20
_LINE_EVERY_S = 10.0
_GREEN, _RED, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"


class ProgressBar:
    """Shows the progress of a wait while its context is open.

    An interrupt (Ctrl-C, the button of a notebook that interrupts the kernel, or the end of the task) leaves the
    batch alone: a last line reports that it continues, and how to cancel it. is_shown: False shows nothing.
    """

    def __init__(self, batch_id: UUID, *, is_shown: bool, cancels: bool = False) -> None:
        self._batch = short_id(batch_id)
        self._view: _View | None = (_Notebook() if _shell_shows_html() else _Lines()) if is_shown else None
        self._cancels = cancels
        self._began: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is None:
            return
        interrupted = kind is not None and issubclass(kind, (KeyboardInterrupt, asyncio.CancelledError))
        self._view.end(self._last_words() if interrupted else "")

    def show(self, record: BatchRecord) -> None:
        """Show the current state of the batch."""
        if self._view is None:
            return
        ended = sum(count for status, count in record.counts.items() if status.terminal)
        now = time.monotonic()
        began, before = self._began = self._began or (now, ended)
        per_s = (ended - before) / (now - began) if ended > before and now > began else 0.0
        left = f"about {format_duration((record.jobs - ended) / per_s)} left" if per_s and ended < record.jobs else ""
        self._view.show(record, left)

    def _last_words(self) -> str:
        if self._cancels:
            return f"Interrupted: batch {self._batch} is being cancelled."
        return (
            f"Stopped waiting; batch {self._batch} continues. Cancel it with batch.cancel() or "
            f"`tweezer cancel {self._batch}`."
        )


class _View(Protocol):
    def show(self, record: BatchRecord, left: str) -> None: ...

    def end(self, words: str) -> None: ...


class _Notebook:
    """A bar in the output of a cell."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._record: BatchRecord | None = None

    def show(self, record: BatchRecord, left: str) -> None:
        from IPython.display import HTML, display

        html = HTML(draw_batch(record, note=left))
        self._record = record
        if self._handle is None:
            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)

    def end(self, words: str) -> None:
        if words and self._record is not None:
            self.show(self._record, words)


class _Lines:
    """A line on stderr."""

    def __init__(self) -> None:
        self._is_live = sys.stderr.isatty()
        self._shown = ""
        self._shown_at = 0.0

    def show(self, record: BatchRecord, left: str) -> None:
        is_last = not record.counts[JobStatus.PENDING] + record.counts[JobStatus.RUNNING]
        columns = shutil.get_terminal_size((80, 24)).columns if self._is_live else 120
        line = format_line(record, left, columns - 1)
        if self._is_live:
            rest = " " * (len(self._shown) - len(line))
            coloured = line if os.environ.get("NO_COLOR") else _coloured(line, record)
            _write(f"\r{coloured}{rest}")
        elif line == self._shown or not (is_last or time.monotonic() - self._shown_at >= _LINE_EVERY_S):
            return
        else:
            _write(f"{line}\n")
        self._shown, self._shown_at = line, time.monotonic()

    def end(self, words: str) -> None:
        if self._is_live and self._shown:
            _write("\n")
        if words:
            _write(f"{words}\n")


def format_line(record: BatchRecord, left: str, columns: int) -> str:
    """Return a bar of ended jobs, followed by the numbers of jobs by status as far as they fit."""
    counts = record.counts
    ended = sum(count for status, count in counts.items() if status.terminal)
    filled = int(_CELLS * ended / record.jobs) if record.jobs else 0
    parts = [
        f"{counts[JobStatus.ERROR]} failed" if counts[JobStatus.ERROR] else "",
        f"{counts[JobStatus.CANCELED]} canceled" if counts[JobStatus.CANCELED] else "",
        "paused" if record.status is BatchStatus.PAUSED else "",
        f"{counts[JobStatus.RUNNING]} running" if counts[JobStatus.RUNNING] else "",
        f"{counts[JobStatus.PENDING]} pending" if counts[JobStatus.PENDING] else "",
        record.status.value if record.status.terminal else left,
    ]
    line = f"{'█' * filled}{'░' * (_CELLS - filled)}  {ended}/{format_count(record.jobs, 'job')}"
    for part in filter(None, parts):
        if len(line) + len(part) + 3 <= columns:
            line += f" · {part}"
    return line


def _coloured(line: str, record: BatchRecord) -> str:
    """Colour the filled part of the bar, with the share of failed jobs in red at its end."""
    filled = line[:_CELLS].count("█")
    failed = min(-(-record.counts[JobStatus.ERROR] * _CELLS // max(record.jobs, 1)), filled)
    good = filled - failed
    return f"{_GREEN}{line[:good]}{_RED}{line[good:filled]}{_PLAIN}{line[filled:]}"


def _write(text: str) -> None:
    """Write to stderr, with ``#`` and ``.`` where its encoding lacks the blocks of the bar."""
    encoding = sys.stderr.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = (
            text.translate({ord("█"): "#", ord("░"): ".", ord("·"): "-"}).encode(encoding, "replace").decode(encoding)
        )
    sys.stderr.write(text)
    sys.stderr.flush()


def _shell_shows_html() -> bool:
    """Return whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
