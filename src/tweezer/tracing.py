"""Traces with OpenTelemetry: the submit of a batch, its wait, its jobs on lanes, their settles, and its webhooks.

Processes export spans if the extra ``tracing`` is installed and the standard variables of OpenTelemetry name a
collector. Otherwise nothing is imported, and every function here returns at once. In a program that uses the library,
spans belong to the trace that the program has begun, if it uses OpenTelemetry.

The context of a trace (W3C Trace Context) travels with the batch. A batch that came without one has a trace whose id is
the id of the batch.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import UUID

import structlog

from tweezer.model.checks import TRACEPARENT

log = structlog.get_logger(__name__)

_COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OFF: AbstractContextManager[None] = nullcontext()
_SAMPLED = 1
_EXIT_S = 5.0  # how long the end of a process may wait until its last spans are exported


def configure(process: str) -> None:
    """Export the spans of this process, if a collector is configured. process: ``api``, ``worker``, …"""
    if not any(map(os.environ.get, _COLLECTORS)) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("tracing.not_installed", missing=error.name, advice="pip install 'tweezer[tracing]'")
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or f"tweezer-{process}"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))  # it is shut down, and flushed, at exit
    provider.add_span_processor(BatchSpanProcessor(exporter := OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    exiting = threading.Event()
    atexit.register(exiting.set)  # called before the provider's own, which was registered earlier
    threading.Thread(target=_give_up, args=(exporter, exiting), name="tracing-exit", daemon=True).start()
    log.info("tracing.started", service=name)


def _give_up(exporter: Any, exiting: threading.Event) -> None:
    """End the exports of an ending process after some seconds, because a collector may not answer."""
    exiting.wait()
    time.sleep(_EXIT_S)
    exporter.shutdown()


def is_on() -> bool:
    """Return whether this process uses OpenTelemetry."""
    return "opentelemetry.trace" in sys.modules


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """Return a span around a block, within the current one. Attributes that are None are omitted."""
    if not is_on():
        return _OFF
    found: AbstractContextManager[Any] = _tracer().start_as_current_span(name, attributes=_present(attributes))
    return found


def continued(name: str, traceparent: str | None, **attributes: Any) -> AbstractContextManager[Any]:
    """Return a span around a block that continues a caller's trace, or begins one."""
    if not is_on():
        return _OFF
    context = None if traceparent is None else _context(traceparent)
    found: AbstractContextManager[Any] = _tracer().start_as_current_span(
        name, context=context, attributes=_present(attributes)
    )
    return found


def of_batch(name: str, batch_id: UUID, traceparent: str | None, **attributes: Any) -> AbstractContextManager[Any]:
    """Return a span around a block in the trace of a batch."""
    if not is_on():
        return _OFF
    attributes["tweezer.batch"] = str(batch_id)
    return continued(name, traceparent or _own_traceparent(batch_id), **attributes)


def record(name: str, began_s: float, **attributes: Any) -> None:
    """Add a span that began at this time (seconds since 1970) and ends now to the current one."""
    if is_on():
        began_ns = min(int(began_s * 1e9), time.time_ns())
        _tracer().start_span(name, start_time=began_ns, attributes=_present(attributes)).end()


def current() -> str | None:
    """Return the current span's context as ``traceparent``; None without one."""
    if not is_on():
        return None
    found = sys.modules["opentelemetry.trace"].get_current_span().get_span_context()
    if not found.is_valid:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"


def propagated() -> dict[str, str]:
    """Return the headers with which a request continues the current span; empty unless the span is exported."""
    is_exported = is_on() and sys.modules["opentelemetry.trace"].get_current_span().is_recording()
    return {"traceparent": current() or ""} if is_exported else {}


def check_traceparent(header: str | None) -> str | None:
    """Return a header's value if it is a valid ``traceparent``, else None: the standard requires to ignore it."""
    return header if header is not None and TRACEPARENT.fullmatch(header) else None


def _tracer() -> Any:
    return sys.modules["opentelemetry.trace"].get_tracer("tweezer")


def _present(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _own_traceparent(batch_id: UUID) -> str:
    """Return a context in the trace with the batch's id. All spans of the batch have the same, made-up parent."""
    return f"00-{batch_id.hex}-{batch_id.hex[:16]}-{_SAMPLED:02x}"


def _context(traceparent: str) -> Any:
    """Return OpenTelemetry's context for a valid ``traceparent``, else None."""
    match = TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    trace = sys.modules["opentelemetry.trace"]
    flags = trace.TraceFlags(int(match[3], 16))
    remote = trace.SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote))
