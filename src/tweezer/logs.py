"""Logs: structlog, JSON in production and readable in a terminal.

Callers bind what they work on (batch, job, ticket, token) and name events, without prose::

    log = structlog.get_logger(__name__).bind(batch=batch_id, ticket=ticket_id, token=token)
    log.info("ticket.taken", jobs=12)

or bind it for all that a task logs, arq included, with ``structlog.contextvars.bound_contextvars``. Secrets
never reach a line: values of keys that name one are replaced, and credentials are cut out of every URL.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "console"]
"""``auto`` is ``console`` when the stream is a terminal, else ``json``."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

REDACTED = "***"

# Names a secret, alone or as the last words of a key. Not `token`: that is the fencing number, and must show.
_SECRET_KEY = re.compile(
    r"(^|[_.-])(secret|password|passwd|api[_-]?key|private[_-]?key|signing[_-]?key|authorization|credentials?"
    r"|cookie|(access|refresh|id|auth|bearer)[_-]token)s?$",
    re.IGNORECASE,
)
_URL_CREDENTIALS = re.compile(r"""(\b[a-z][a-z0-9+.-]*://)[^/\s"'@]*@""", re.IGNORECASE)

# Libraries that bring handlers of their own, which would print a line twice or in another format.
_ROUTED_LOGGERS = ("arq", "uvicorn", "uvicorn.error", "uvicorn.access")


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that configuring again replaces it and nobody else's."""


def configure(format: LogFormat = "auto", level: LogLevel = "INFO", *, stream: TextIO | None = None) -> None:
    """Send structlog and the standard library's logging to one stream (stderr), in one format.

    Lines have ``timestamp`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``, and what is bound. May be
    called again; the last call counts. Give uvicorn ``log_config=None``, or it puts its own handlers back.
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
        cache_logger_on_first_use=False,  # configuring again must reach loggers that exist; hot code binds once
    )
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
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
    """The last word: whatever ended up in the line, tracebacks too, a URL in it shows no user and password."""
    return _URL_CREDENTIALS.sub(rf"\1{REDACTED}@", line)


def _console_renderer(stream: TextIO) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,  # the pretty one prints local variables
    )
