"""The process of a lane: ``python -m tweezer.adapters.lane.child_main FD WORKER_PID``.

It enters its jail, imports its backend once, says so, and then prepares batches and runs jobs, one at a time, as the
messages on the socket FD ask. It ends when that socket does, or with its worker, and ignores SIGINT and
SIGTERM: only its worker decides. What libraries print goes to standard error.
"""

from __future__ import annotations

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
    body_bytes,
    pack,
    unpack_for_child,
)
from tweezer.model.errors import FaultKind
from tweezer.model.messages import Fault, Outcome, OutcomeKind

_PR_SET_PDEATHSIG = 1
_LONGEST_TEXT = 300
_OF_TORCH = frozenset({"emu_sv", "emu_mps", "torch"})


def die_with_worker(worker_pid: int) -> None:
    """Have the kernel kill this process when its worker dies (Linux); elsewhere the end of the socket does it.

    To the kernel the worker is the *thread* that started this process: the one of its event loop.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker_pid:  # it died before the kernel was asked
        os._exit(1)


class LaneProcess:
    """Answers the worker's requests on one socket."""

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
            raise TypeError(f"the first message was {type(start).__name__}, not Start")
        try:
            entered = jail.enter(start.jail)  # before there is a second thread: Landlock binds the one that calls it
        except (jail.Exposed, OSError) as error:
            problem = f"cannot jail the lane: {_short(error)}; TWEEZER_WORKER_JAIL=off runs lanes without a jail"
            return self._refuse_start(problem)
        threading.Thread(target=self._listen, name="lane-listener", daemon=True).start()
        self._watch = watch = Watch(self._report, start.progress_interval_s)
        try:
            backend = _load(start.backend)(watch, start.memo_mb << 20, *start.arguments)
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker is told
            return self._refuse_start(f"cannot load the emulator: {_short(error)}{_remedy(error)}")
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
                    self._send(RunFinished(request.serial, _run(backend, watch, request), backend.evolutions))
                case Start():
                    raise TypeError("a lane starts once")
                case _:
                    assert_never(request)

    def _refuse_start(self, problem: str) -> None:
        """Report why this process cannot start. Call it while the exception is handled."""
        traceback.print_exc()
        self._send(ChildRefused(0, FaultKind.INTERNAL, Fault("internal", problem)))

    def _prepare(self, backend: Backend, request: Prepare) -> Prepared | ChildRefused:
        try:
            backend.prepare(request.batch)
        except Aborted:
            return ChildRefused(request.serial, FaultKind.TRANSIENT, Fault("transient", "stopped"))
        except Exception as error:  # noqa: BLE001  # as above
            kind, fault = _blame(error)
            return ChildRefused(request.serial, kind, fault)
        return Prepared(request.serial)

    def _report(self, fraction: float) -> None:
        self._send(Advanced(self._serial, fraction))

    def _send(self, message: ToWorker) -> None:
        """Only the main thread sends, so frames are never mixed."""
        try:
            self._connection.sendall(pack(message))
        except OSError:  # the worker is gone
            os._exit(0)

    def _listen(self) -> None:
        """Read messages in a thread of its own, so that an abort and the worker's end are heard during a solve."""
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
        return unpack_for_child(self._read_exactly(body_bytes(header)))

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
        kind, fault = _blame(error)
        return Outcome(OutcomeKind.ERROR, fault=fault, cause=kind)
    return Outcome(
        OutcomeKind.DONE,
        result=execution.result,
        preparation_s=execution.preparation_s,
        device_s=execution.device_s,
    )


def _blame(error: Exception) -> tuple[FaultKind, Fault]:
    """Return a backend's refusal, or what a user may know of an exception nobody expected; the log gets the rest."""
    if isinstance(error, Refusal):
        return error.kind, error.fault
    traceback.print_exc()
    if isinstance(error, MemoryError):
        message = "the emulation asked for more memory than there is; use fewer qubits or evaluation times"
        return FaultKind.OUT_OF_MEMORY, Fault("out_of_memory", message)
    return FaultKind.INTERNAL, Fault("internal", f"the emulator failed: {_short(error)}")


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _remedy(error: Exception) -> str:
    """Return how to install a missing module."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    extra = "torch" if error.name in _OF_TORCH else "emulators"
    return f"; install it where the worker runs: pip install 'tweezer[{extra}]'"


def _load(backend: str) -> Callable[..., Backend]:
    module, _, factory = backend.partition(":")
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
