"""Logs: structlog, JSON in production and readable in a terminal.

Callers bind their context (batch, job, ticket, token) and log named events, without prose::

    log = structlog.get_logger(__name__).bind(batch=batch_id, ticket=ticket_id, token=token)
    log.info("ticket.taken", jobs=12)

To bind context for everything that a task logs, including arq, use ``structlog.contextvars.bound_contextvars``. Logs
contain no secrets: values of keys that name a secret are replaced, and credentials are removed from all URLs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "console"]
"""``auto``: ``console`` if the stream is a terminal, else ``json``."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

REDACTED = "***"

# A key that is, or ends with, the name of a secret. Not `token`: the fencing token is not secret and must be shown.
_SECRET_KEY = re.compile(
    r"(^|[_.-])(secret|password|passwd|api[_-]?key|private[_-]?key|signing[_-]?key|authorization|credentials?"
    r"|cookie|(access|refresh|id|auth|bearer)[_-]token)s?$",
    re.IGNORECASE,
)
_URL_PARAMETERS = re.compile(r"""([?&](?:ticket|signature)=)[^&#\s"']+""")
_URL_CREDENTIALS = re.compile(r"""(\b[a-z][a-z0-9+.-]*://)[^/\s"'@]*@""", re.IGNORECASE)

# Libraries with their own handlers, which would print a line twice or in another format.
_ROUTED_LOGGERS = ("arq", "uvicorn", "uvicorn.error", "uvicorn.access")


class _Handler(logging.StreamHandler[TextIO]):
    """The handler that ``configure`` adds, and replaces when it is called again."""


def configure(format: LogFormat = "auto", level: LogLevel = "INFO", *, stream: TextIO | None = None) -> None:
    """Send structlog and the standard library's logging to one stream (stderr), in one format.

    Lines have ``timestamp`` (ISO 8601, UTC), ``level``, ``logger``, ``event``, and the bound context. A later call
    replaces the configuration. Pass ``log_config=None`` to uvicorn, or it restores its own handlers.
    """
    stream = stream or sys.stderr
    console = format == "console" or (format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # a later call must affect existing loggers; hot code binds once
    )
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _drop_colored_copy,
                structlog.processors.format_exc_info,
                redact,
                _console_renderer(stream) if console else structlog.processors.JSONRenderer(default=str),
                _cut_credentials,
            ],
        )
    )
    root = logging.getLogger()
    for former in [known for known in root.handlers if isinstance(known, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _ROUTED_LOGGERS:
        routed = logging.getLogger(name)
        routed.handlers.clear()
        routed.propagate = True
    logging.getLogger("arq.worker").setLevel("WARNING")  # it logs each cron job twice


def _drop_colored_copy(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Remove uvicorn's second copy of a message, a template with terminal colours."""
    event.pop("color_message", None)
    return event


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace the values of keys that name a secret, at any depth."""
    return {key: REDACTED if _SECRET_KEY.search(key) else _without_secrets(value) for key, value in event.items()}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: REDACTED if _SECRET_KEY.search(str(key)) else _without_secrets(inner) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return value


def _cut_credentials(logger: WrappedLogger, method: str, line: Any) -> Any:
    """Remove user, password, tickets and signatures from all URLs in the finished line, including its traceback."""
    return _URL_PARAMETERS.sub(rf"\1{REDACTED}", _URL_CREDENTIALS.sub(rf"\1{REDACTED}@", line))


def _console_renderer(stream: TextIO) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,  # the pretty one prints local variables
    )


_RANGES_MAX = 5
_PACED_LINES = 50  # of an event per second: a line takes about 50 µs, so that they take a few thousandths of a core
_CONTEXT = ("batch", "ticket", "token", "lane")  # that a task binds for its lines about one batch


class PacedLog:
    """Logs what happens to jobs: each event while there are few, beyond that only their numbers, once per second.

    So the log has the whole story of a slow job, and ten thousand fast jobs cost next to nothing. Methods must
    be called on an event loop.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._second = 0
        self._lines: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def info(self, event: str, jobs: Sequence[int], **details: object) -> None:
        """Log an event of these jobs of one batch; ``jobs`` in the line is their ranges, such as ``0-9,12``."""
        if self._may_log(event, len(jobs)):
            self._logger.info(event, jobs=join_ranges(jobs), **details)

    def warning(self, event: str, jobs: Sequence[int], **details: object) -> None:
        """Log an event as :meth:`info`, with the level WARNING."""
        if self._may_log(event, len(jobs)):
            self._logger.warning(event, jobs=join_ranges(jobs), **details)

    def _may_log(self, event: str, count: int) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._lines.clear()
        self._lines[event] += 1
        if self._lines[event] <= _PACED_LINES:
            return True
        if not self._left_out:
            asyncio.get_running_loop().call_later(1.0, self._summarise)
        self._left_out[event] += count
        return False

    def _summarise(self) -> None:
        left_out, self._left_out = self._left_out, Counter()
        structlog.contextvars.unbind_contextvars(*_CONTEXT)  # of the task that left out the first line
        self._logger.info("jobs.not_logged", **dict(sorted(left_out.items())))


def join_ranges(indices: Sequence[int]) -> str:
    """Join ascending indices into ranges: ``0-9,12``; at most five ranges, then ``…``."""
    if not indices:
        return ""
    if len(indices) > 1 and indices[-1] - indices[0] == len(indices) - 1:
        return f"{indices[0]}-{indices[-1]}"
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        elif len(ranges) == _RANGES_MAX:
            return f"{_join(ranges)},…"
        else:
            ranges.append([index, index])
    return _join(ranges)


def _join(ranges: Sequence[Sequence[int]]) -> str:
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
