"""Follows a batch live: woken by its news, drawn as one line that renews itself."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.waiting import why_it_waits
from tweezer.client import AsyncQueue, is_settled
from tweezer.model.events import JobNews, read_news
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.store.records import BatchRecord

_LOOK_AGAIN_S = 2.0
_STALLED_S = 2.0
_WINDOW_S = 15.0
_BAR = 20
_FEW = 4


class View(msgspec.Struct, frozen=True):
    """What one line of progress says.

    progress: job index → fraction, of running jobs that told theirs. rate: jobs that ended per second.
    hint: why nothing moves.
    """

    record: BatchRecord
    progress: dict[int, float]
    rate: float | None = None
    hint: str | None = None


def progress_line(view: View, columns: int) -> str:
    """One line, of the parts that fit."""
    record, counts = view.record, view.record.counts
    ended = sum(count for status, count in counts.items() if status.terminal)
    share = (ended + sum(view.progress.values())) / record.jobs if record.jobs else 0.0
    filled = show.bar(share, _BAR)
    parts = [f"{ended}/{record.jobs} jobs"]
    if counts[JobStatus.ERROR]:
        parts.append(f"{counts[JobStatus.ERROR]} failed")
    if counts[JobStatus.CANCELED]:
        parts.append(f"{counts[JobStatus.CANCELED]} canceled")
    if record.status is BatchStatus.PAUSED:
        parts.append("paused")
    if counts[JobStatus.RUNNING]:
        parts.append(f"{counts[JobStatus.RUNNING]} running{_percentages(view.progress)}")
    if view.hint:
        parts.append(view.hint)
    if counts[JobStatus.PENDING]:
        parts.append(f"{counts[JobStatus.PENDING]} pending")
    if record.status.terminal:
        parts.append(record.status.value)
    elif view.rate:
        left = counts[JobStatus.PENDING] + counts[JobStatus.RUNNING]
        parts += [f"{view.rate:.{1 if view.rate < 100 else 0}f}/s", f"{show.duration(left / view.rate)} left"]
    line = f"{filled}{'░' * (_BAR - len(filled))}  {parts[0]}"
    for part in parts[1:]:
        if len(line) + len(part) + 3 < columns:
            line += f" · {part}"
    return line


def _percentages(progress: dict[int, float]) -> str:
    told = [fraction for _, fraction in sorted(progress.items())]
    if not told:
        return ""
    if len(told) > _FEW:
        return f" ({sum(told) / len(told):.0%} on average)"
    return f" ({', '.join(f'{fraction:.0%}' for fraction in told)})"


class Meter:
    """Shows views: on a terminal in one line that renews itself, elsewhere as a line now and then."""

    def __init__(self, *, err: bool) -> None:
        self._err = err
        self._live = (sys.stderr if err else sys.stdout).isatty()
        self.interval_s = 0.1 if self._live else 0.5
        self._said = ""
        self._said_at = 0.0

    def show(self, view: View) -> None:
        line = progress_line(view, show.width() if self._live else show.MAX_WIDTH + 20)
        if self._live:
            click.echo("\r\x1b[K", err=self._err, nl=False)
            show.echo(f"{show.style(line[:_BAR], fg='green')}{line[_BAR:]}", err=self._err, nl=False)
        elif self._is_news(view, line):
            show.echo(line, err=self._err)
        else:
            return
        self._said, self._said_at = line, time.monotonic()

    def end(self) -> None:
        """Leaves the last line where it is."""
        if self._live and self._said:
            show.echo(err=self._err)

    def _is_news(self, view: View, line: str) -> bool:
        return line != self._said and (is_settled(view.record) or time.monotonic() - self._said_at >= _LOOK_AGAIN_S)


class _Rate:
    """Jobs that ended per second, over the last while."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def now(self, ended: int) -> float | None:
        now = time.monotonic()
        if not self._seen or self._seen[-1][1] != ended:
            self._seen.append((now, ended))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        (began, before), (_, latest) = self._seen[0], self._seen[-1]
        return (latest - before) / (now - began) if latest > before and now > began else None

    @property
    def still_for_s(self) -> float:
        return time.monotonic() - self._seen[-1][0] if self._seen else 0.0


async def follow(queue: AsyncQueue, batch_id: UUID, meter: Meter) -> BatchRecord:
    """Shows the batch until nothing of it is pending or running, and returns it. Raises NotFound."""
    batch = queue.batch(batch_id)
    rate, progress = _Rate(), dict[int, float]()
    await batch.record()
    try:
        async with queue.store.news.batch(batch_id) as heard:
            record, looked = await batch.record(), time.monotonic()
            while True:
                ended = sum(count for status, count in record.counts.items() if status.terminal)
                per_s = rate.now(ended)
                hint = await _hint(queue, record) if rate.still_for_s > _STALLED_S else None
                if record.counts[JobStatus.RUNNING] == 0:
                    progress.clear()
                meter.show(View(record, dict(progress), per_s, hint))
                if is_settled(record):
                    return record
                words = await heard.next(meter.interval_s)
                read_progress(words, progress)
                if words or time.monotonic() - looked >= _LOOK_AGAIN_S:
                    record, looked = await batch.record(), time.monotonic()
                    await asyncio.sleep(0 if is_settled(record) else meter.interval_s)  # news may come by the thousand
    finally:
        meter.end()


def read_progress(messages: list[bytes], progress: dict[int, float]) -> None:
    """Brings the fractions of running jobs up to date with a batch's news."""
    for message in messages:
        news = read_news(message)
        if isinstance(news, JobNews):
            if news.percent is not None:
                progress[news.index] = news.percent / 100
            continue
        for word in news:
            if word.letters[1] != JobStatus.RUNNING.letter:
                for index in word.jobs:
                    progress.pop(index, None)


async def _hint(queue: AsyncQueue, record: BatchRecord) -> str | None:
    """Why a batch that does not move may stand still."""
    return why_it_waits(record, await queue.store.admission.device(record.device))
