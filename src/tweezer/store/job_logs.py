"""What the lanes and solvers wrote while jobs ran: the end of it, as text files beside the results.

A file begins with a line of JSON. Then follows text without control characters other than tabs and line ends. Positions
count the bytes of the text from the beginning of the job's output, so that a reader can continue after the beginning
was cut.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from pathlib import Path
from uuid import UUID

import msgspec

from tweezer.model.errors import ResultUnavailable
from tweezer.model.ids import split_job_id
from tweezer.store.results import batch_folder, write_file

KEPT_BYTES = 64 << 10
"""How much of a job's output is kept; of more, the end."""

_LINE_BYTES = 4096  # the kept part begins with a whole line, if one begins within so many bytes
_HEAD_BYTES = 200
_CONTROLS = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_decode_head = msgspec.json.Decoder(dict[str, int]).decode


class JobLog(msgspec.Struct, frozen=True):
    """A part of a job's output.

    Attributes:
        text: The output, with control characters as escapes such as ``\\x1b``.
        next: The position after it, for the next read.
        cut: Number of bytes before ``text`` that were not kept.
    """

    text: str = ""
    next: int = 0
    cut: int = 0


class OutputBuffer:
    """Collects the output of a job as clean text, of which it keeps the end."""

    def __init__(self, before: JobLog = JobLog()) -> None:  # noqa: B008  immutable
        """before: what earlier attempts wrote."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = before.text.encode()
        self._start = before.cut
        self._after_return = False

    def add(self, chunk: bytes) -> None:
        """Add output as the process wrote it; at most a few times KEPT_BYTES at once."""
        self._add_text(self._decoder.decode(chunk))

    def skip(self, size: int) -> None:
        """Note output that is not kept: more came at once than is kept."""
        self._start += len(self._text) + size
        self._text = b""

    def add_line(self, text: str) -> None:
        """Add a line between two attempts."""
        self._add_text(("\n" if self._text and not self._text.endswith(b"\n") else "") + text + "\n")

    @property
    def content(self) -> bytes:
        """The content of the file."""
        return msgspec.json.encode({"start": self._start}) + b"\n" + self._text

    def _add_text(self, text: str) -> None:
        if self._after_return and text.startswith("\n"):
            text = text[1:]
        self._after_return = text.endswith("\r")
        plain = text.replace("\r\n", "\n").replace("\r", "\n")  # a progress bar is many lines
        self._text += _CONTROLS.sub(_escape, plain).encode(errors="replace")
        if len(self._text) > KEPT_BYTES:
            drop = len(self._text) - KEPT_BYTES
            line_end = self._text.find(b"\n", drop, drop + _LINE_BYTES)
            drop = line_end + 1 if line_end >= 0 else drop
            while drop < len(self._text) and self._text[drop] & 0xC0 == 0x80:  # within a character
                drop += 1
            self._start += drop
            self._text = self._text[drop:]


class JobLogs:
    """The logs of jobs in the results folder; None in a process without one. All methods raise ResultUnavailable."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    async def write(self, job: UUID, content: bytes) -> None:
        """Replace the log of a job. It may be lost in a power failure."""
        path = self._path(job)
        try:
            await asyncio.to_thread(write_file, path, content, durable=False)
        except OSError as error:
            raise ResultUnavailable(f"the log of job {job} cannot be written to {path}: {error.strerror}") from error

    async def read(self, job: UUID, *, after: int = 0) -> JobLog:
        """Return what the job wrote after a position; empty if it has written nothing."""
        path = self._path(job)
        try:
            content = await asyncio.to_thread(_read, path)
        except OSError as error:
            raise ResultUnavailable(f"the log {path} cannot be read: {error.strerror}") from error
        head, _, text = content.partition(b"\n")
        try:
            start = max(_decode_head(head).get("start", 0), 0) if content else 0
        except msgspec.MsgspecError as error:
            raise ResultUnavailable(f"the log {path} is damaged: {error}") from error
        end = start + len(text)
        begin = min(max(after, start), end) if after <= end else start  # a position after the end is of another log
        kept = text[begin - start :]
        return JobLog(kept.decode(errors="replace"), end, begin - min(after, begin))

    def _path(self, job: UUID) -> Path:
        if self._root is None:
            raise ResultUnavailable(
                "the logs of jobs are in the workers' results folder; set TWEEZER_RESULTS_DIR to that folder, or read "
                "them from the API, GET /api/v2/jobs/{id}/logs"
            )
        batch_id = split_job_id(job)[0]
        return batch_folder(self._root, batch_id) / f"{job}.log"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(KEPT_BYTES + _HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return b""
