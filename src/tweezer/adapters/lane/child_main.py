"""The process of a lane: ``python -m tweezer.adapters.lane.child_main FD WORKER_PID``.

It enters its jail, imports its backend once, and reports that it is ready. Then it prepares batches and runs jobs, one
at a time, as the messages on the socket FD request. It ends when the socket closes or its worker dies. It ignores
SIGINT and SIGTERM, because only the worker may stop it. The output of libraries goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import assert_never, cast

import msgspec

from tweezer.adapters.lane import jail
from tweezer.adapters.lane.backend import Aborted, Backend, Collector, Refusal, Watch
from tweezer.adapters.lane.messages import (
    HEADER_BYTES,
    Abort,
    Advanced,
    ChildRefused,
    Prepare,
    Prepared,
    Ready,
    Run,
    RunFinished,
    Start,
    ToChild,
    ToWorker,
    pack,
    read_body_size,
    unpack_for_child,
)
from tweezer.deferred_imports import DRAWING, defer_imports
from tweezer.model.errors import FaultKind, install_command
from tweezer.model.messages import Fault, Outcome, OutcomeKind, Steps

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_LONGEST_TEXT = 300
_TORCH_MODULES = frozenset({"emu_sv", "emu_mps", "torch"})


def die_with_worker(worker_pid: int) -> None:
    """Let the kernel kill this process when its worker dies (Linux only; elsewhere the process ends with the socket).

    For the kernel the parent is the *thread* that started this process, which runs the worker's event loop.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker_pid:  # it died before the call
        os._exit(1)


class LaneProcess:
    """Serves the worker's requests on one socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._requests: queue.SimpleQueue[Start | Prepare | Run] = queue.SimpleQueue()
        self._serial = 0
        self._aborted_serial = -1
        self._watch: Watch | None = None

    def serve(self) -> None:
        """Serve until the worker closes the socket, which ends the process."""
        start = self._receive()
        if not isinstance(start, Start):
            raise TypeError(f"expected Start as the first message, got {type(start).__name__}")
        try:
            entered = jail.enter(start.jail)  # before a second thread starts: Landlock restricts the calling thread
        except (jail.Exposed, OSError) as error:
            problem = f"cannot jail the lane: {_shorten(error)}; TWEEZER_WORKER_JAIL=off runs lanes without a jail"
            return self._refuse_start(problem)
        threading.Thread(target=self._listen, name="lane-listener", daemon=True).start()
        self._watch = watch = Watch(self._report, start.progress_interval_s)
        try:
            backend = _load(start.backend)(watch, start.memo_mb << 20, *start.arguments)
        except Exception as error:  # noqa: BLE001  # any failure is reported to the worker
            return self._refuse_start(f"cannot load the emulator: {_shorten(error)}{_suggest_remedy(error)}")
        self._send(Ready(jail=entered))
        while True:
            request = self._requests.get()
            self._serial = 0 if isinstance(request, Start) else request.serial
            watch.begin()
            if self._aborted_serial == self._serial:
                watch.abort()
            match request:
                case Prepare():
                    self._send(self._prepare(backend, request))
                case Run():
                    outcome = _run(backend, watch, request)
                    _flush_output()
                    self._send(RunFinished(request.serial, outcome, backend.evolutions))
                case Start():
                    raise TypeError("Start was sent twice")
                case _:
                    assert_never(request)

    def _refuse_start(self, problem: str) -> None:
        """Report why this process cannot start. To be called from an ``except`` block."""
        traceback.print_exc()
        self._send(ChildRefused(0, FaultKind.INTERNAL, Fault("internal", problem)))

    def _prepare(self, backend: Backend, request: Prepare) -> Prepared | ChildRefused:
        try:
            backend.prepare(request.batch)
        except Aborted:
            return ChildRefused(request.serial, FaultKind.TRANSIENT, Fault("transient", "stopped"))
        except Exception as error:  # noqa: BLE001  # as above
            kind, fault = _explain(error)
            return ChildRefused(request.serial, kind, fault)
        return Prepared(request.serial)

    def _report(self, fraction: float, steps: Steps | None) -> None:
        self._send(Advanced(self._serial, fraction, steps))

    def _send(self, message: ToWorker) -> None:
        """Send a message. Only the main thread sends, so frames are never mixed."""
        try:
            self._connection.sendall(pack(message))
        except OSError:  # the worker is gone
            os._exit(0)

    def _listen(self) -> None:
        """Read messages in a separate thread, so that an abort or the worker's end is noticed during an evolution."""
        try:
            while True:
                message = self._receive()
                if isinstance(message, Abort):
                    self._aborted_serial = message.serial
                    if self._watch is not None and message.serial == self._serial:
                        self._watch.abort()
                else:
                    self._requests.put(message)
        except EOFError:
            os._exit(0)
        except (OSError, ValueError, msgspec.DecodeError):
            traceback.print_exc()
            os._exit(1)

    def _receive(self) -> ToChild:
        header = self._read_exactly(HEADER_BYTES)
        return unpack_for_child(self._read_exactly(read_body_size(header)))

    def _read_exactly(self, size: int) -> bytes:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            received = self._connection.recv_into(view)
            if received == 0:
                raise EOFError
            view = view[received:]
        return bytes(buffer)


def _run(backend: Backend, watch: Watch, request: Run) -> Outcome:
    try:
        watch.check()
        if request.measured is None:
            execution = backend.run(request.job)
        else:
            execution = cast(Collector, backend).collect(request.job, request.measured)
    except Aborted:
        return Outcome(OutcomeKind.CANCELED)
    except Exception as error:  # noqa: BLE001  # as above
        kind, fault = _explain(error)
        return Outcome(OutcomeKind.ERROR, fault=fault, cause=kind)
    return Outcome(
        OutcomeKind.DONE,
        result=execution.result,
        preparation_s=execution.preparation_s,
        device_s=execution.device_s,
    )


def _flush_output() -> None:
    """Write what Python and C libraries have buffered, so that it belongs to the job that has just ended."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    _libc.fflush(None)


def _explain(error: Exception) -> tuple[FaultKind, Fault]:
    """Return the fault of a refusal, or of an unexpected exception, whose traceback only the log shows."""
    if isinstance(error, Refusal):
        return error.kind, error.fault
    traceback.print_exc()
    if isinstance(error, MemoryError):
        message = "the emulation needs more memory than is available; use fewer qubits or evaluation times"
        return FaultKind.OUT_OF_MEMORY, Fault("out_of_memory", message)
    return FaultKind.INTERNAL, Fault("internal", f"internal error of the emulator: {_shorten(error)}")


def _shorten(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _suggest_remedy(error: Exception) -> str:
    """Return how to install the missing module, if that is the error."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    extra = "torch" if error.name in _TORCH_MODULES else "emulators"
    return f"; install it where the worker runs, with {install_command(extra)}"


def _load(backend: str) -> Callable[..., Backend]:
    module, _, factory = backend.partition(":")
    with defer_imports(*DRAWING):
        loaded: Callable[..., Backend] = getattr(importlib.import_module(module), factory)
    return loaded


def main() -> None:
    descriptor, worker_pid = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_worker(worker_pid)
    LaneProcess(socket.socket(fileno=descriptor)).serve()


if __name__ == "__main__":
    main()
