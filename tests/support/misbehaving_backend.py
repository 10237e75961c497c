"""A lane backend that hangs, crashes, leaks or returns a result, as a test asks."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.support import jail_attempts

from tweezer.adapters.lane.backend import Execution, Refusal, Watch
from tweezer.model.messages import BatchWork, Fault, JobWork, Result


class MisbehavingBackend:
    """A backend that does in the lane's process what the batch's sequence or the job's variables ask for."""

    def __init__(self, watch: Watch, memo_bytes: int) -> None:
        self.evolutions = 0
        self._watch = watch
        self._prepared = 0
        print("a library that likes to talk", flush=True)  # noqa: T201  # the point of the test

    def prepare(self, batch: BatchWork) -> None:
        match batch.doc.sequence:
            case "hang":
                time.sleep(600)
            case "crash":
                os._exit(4)
            case "refuse":
                raise Refusal(Fault("user", "is not to its liking", "sequence"))
            case "fault":
                raise KeyError("an unexpected error")
        self._prepared += 1

    def run(self, job: JobWork) -> Execution:
        value: Any = job.spec.variables.get("value")
        match job.spec.variables["act"]:
            case "echo":
                print("chatty " * 1000, flush=True)  # noqa: T201  # as above
            case "environment":
                return _told({f"{name}={value}": 1 for name, value in os.environ.items()})
            case "escape":
                return _told(jail_attempts.outcomes(jail_attempts.escapes(str(value))))
            case "work honestly":
                return _told(jail_attempts.outcomes(jail_attempts.needs()))
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
            case "solve":  # until aborted
                while True:
                    time.sleep(0.005)
                    self._watch.advance(0.5)
            case "deaf":  # like a solver that never checks for an abort
                self._watch.advance(0.25)
                time.sleep(0.02)
                self._watch.advance(0.25)
                time.sleep(600)
        return _told({"prepared": self._prepared})


def _told(counter: dict[str, int]) -> Execution:
    return Execution(Result(counter), preparation_s=0.0, device_s=0.0)
