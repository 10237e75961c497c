"""Logs: structlog, JSON in production and readable in a terminal.

Callers bind their context (batch, job, ticket, token) and log named events, without prose::

    log = structlog.get_logger(__name__).bind(batch=batch_id, ticket=ticket_id, token=token)
    log.info("ticket.taken", jobs=12)

To bind context for everything that a task logs, including arq, use ``structlog.contextvars.bound_contextvars``. Logs
contain no secrets: values of keys that name a secret are replaced, and credentials are removed from all URLs.
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
"""``auto``: ``console`` if the stream is a terminal, else ``json``."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

REDACTED = "***"

# A key that is, or ends with, the name of a secret. Not `token`: the fencing token is not secret and must be shown.
_SECRET_KEY = re.compile(
    r"(^|[_.-])(secret|password|passwd|api[_-]?key|private[_-]?key|signing[_-]?key|authorization|credentials?"
    r"|cookie|(access|refresh|id|auth|bearer)[_-]token)s?$",
    re.IGNORECASE,
)
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
    """Remove user and password from all URLs in the finished line, including its traceback."""
    return _URL_CREDENTIALS.sub(rf"\1{REDACTED}@", line)


def _console_renderer(stream: TextIO) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,  # the pretty one prints local variables
    )
