"""A lane backend that hangs, crashes, leaks or returns a result, as the test specifies."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from tests.support import jail_attempts

from tweezer.adapters.lane.backend import Execution, Refusal, Watch
from tweezer.model.messages import BatchWork, Fault, JobWork, Result


class MisbehavingBackend:
    """A backend that misbehaves as the batch's sequence or the job's variable ``act`` specifies."""

    def __init__(self, watch: Watch, memo_bytes: int) -> None:
        self.evolutions = 0
        self._watch = watch
        self._prepared = 0
        print("output of a library", flush=True)  # noqa: T201  # the point of the test

    def prepare(self, batch: BatchWork) -> None:
        match batch.doc.sequence:
            case "hang":
                time.sleep(600)
            case "crash":
                os._exit(4)
            case "refuse":
                raise Refusal(Fault("user", "is not accepted here", "sequence"))
            case "fault":
                raise KeyError("an unexpected error")
        self._prepared += 1

    def run(self, job: JobWork) -> Execution:
        value: Any = job.spec.variables.get("value")
        match job.spec.variables["act"]:
            case "echo":
                print("output " * 1000, flush=True)  # noqa: T201  # as above
            case "print":
                print(value.encode().decode("unicode_escape"), end="")  # noqa: T201  # as above
                os.write(2, b"an error\n")
                ctypes.CDLL(None).puts(b"a library in C")
            case "write":
                os.write(1, bytes.fromhex(value))
            case "flood":
                for _ in range(int(value)):
                    os.write(1, b"x" * (1 << 16))
            case "print and exit":
                os.write(2, b"last words\n")
                if job.attempt < 3:
                    os._exit(3)
            case "print and wait":  # until a cancel
                os.write(1, b"begun\n")
                while True:
                    time.sleep(0.005)
                    self._watch.advance(0.5)
            case "environment":
                return _with_counter({f"{name}={value}": 1 for name, value in os.environ.items()})
            case "escape":
                return _with_counter(jail_attempts.outcomes(jail_attempts.escapes(str(value))))
            case "use what libraries need":
                return _with_counter(jail_attempts.outcomes(jail_attempts.needs()))
            case "refuse":
                raise Refusal(Fault("invalid", "is missing", "variables.omega"))
            case "fault":
                raise KeyError("an unexpected error")
            case "memory_error":
                raise MemoryError
            case "exit":
                os._exit(int(value))
            case "signal":
                os.kill(os.getpid(), int(value))
            case "hog":
                hoard = []
                while True:
                    hoard.append(bytearray(os.urandom(1 << 20)) * 10)
            case "solve":  # until a cancel
                while True:
                    time.sleep(0.005)
                    self._watch.advance(0.5)
            case "ignore cancels":  # like a solver that never checks for a cancel
                self._watch.advance(0.25)
                time.sleep(0.02)
                self._watch.advance(0.25)
                time.sleep(600)
        return _with_counter({"prepared": self._prepared})


def _with_counter(counter: dict[str, int]) -> Execution:
    return Execution(Result(counter), preparation_s=0.0, device_s=0.0)
