"""Traces: nothing is imported without OpenTelemetry, and contexts are those of the standard."""

from __future__ import annotations

import subprocess
import sys
import time
from uuid import UUID

import pytest

from tweezer import tracing
from tweezer.model.messages import BatchDoc, decode_doc, encode_doc, pack_lasting

BATCH = UUID("0199f3a2-7c1e-8b1d-9f04-a1b2c3000000")
GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1"])
def test_opentelemetry_is_not_imported_unless_a_collector_is_configured(endpoint: str) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None if sys.argv[1] else sys.modules.get('opentelemetry')\n"
        "from tweezer import logs, tracing\n"
        "logs.configure('json')\n"
        "tracing.configure('worker')\n"
        "with tracing.span('a'), tracing.of_batch('b', __import__('uuid').UUID(int=1), None): pass\n"
        "assert not tracing.is_on() and tracing.current() is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, endpoint],
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ("tracing.not_installed" in done.stderr) is bool(endpoint)


def test_a_collector_that_does_not_answer_delays_the_end_of_a_process_for_seconds_only() -> None:
    pytest.importorskip("opentelemetry.sdk")
    code = (
        "from tweezer import tracing\n"
        "tracing._EXIT_S = 0.5\n"
        "tracing.configure('worker')\n"
        "for _ in range(2000):\n"
        "    with tracing.span('a'): pass\n"
        "print('over', flush=True)\n"
    )
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "over" not in (line := process.stdout.readline()):
            assert line
        began = time.monotonic()
        process.communicate(timeout=60)
    assert time.monotonic() - began < 8, "without a limit it takes ten seconds for each of four exports"


@pytest.mark.parametrize(
    ("header", "is_valid"),
    [
        (GIVEN, True),
        (None, False),
        ("", False),
        (GIVEN.upper(), False),
        (GIVEN + "-more", False),
        (GIVEN.replace("00-", "ff-", 1), False),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", False),
        (GIVEN + "\n", False),
    ],
)
def test_only_a_valid_context_is_accepted(header: str | None, is_valid: bool) -> None:
    assert tracing.check_traceparent(header) == (header if is_valid else None)


def test_a_batch_without_a_trace_has_the_trace_of_its_id() -> None:
    own = tracing._own_traceparent(BATCH)
    assert tracing.check_traceparent(own) == own
    assert own.split("-")[1] == BATCH.hex


def test_calls_that_differ_in_their_trace_are_equal() -> None:
    plain = BatchDoc("EMU_FREE", "{}", name="n")
    traced = BatchDoc("EMU_FREE", "{}", name="n", trace=GIVEN)
    assert decode_doc(encode_doc(plain)) == plain
    assert decode_doc(encode_doc(traced)) == traced
    assert pack_lasting(traced) == pack_lasting(plain)
    assert pack_lasting(plain)[0] == 0x9A  # an array of ten values, as in version 0.1.0
