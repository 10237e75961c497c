"""A lane's process as its worker sees it: started, spoken to, watched, killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tweezer.adapters.lane_messages import (
    HEADER_BYTES,
    ToChild,
    ToWorker,
    body_bytes,
    pack,
    unpack_for_worker,
)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_OUR_PREFIX = "TWEEZER_"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Died(msgspec.Struct, frozen=True):
    """The process is gone or no longer speaks the protocol."""


class Nothing(msgspec.Struct, frozen=True):
    """No message came in time, or somebody asked the receiver to look up."""


class ChildProcess:
    """One process of :mod:`tweezer.adapters.lane_main` and the socket to it. Made by :meth:`spawn`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer
        self._inbox: asyncio.Queue[ToWorker | Died | Nothing] = asyncio.Queue()
        self._gone = False
        self._pump = asyncio.create_task(self._read_messages(), name=f"lane-{process.pid}")

    @classmethod
    async def spawn(cls, threads: int, gpu: str | None = None) -> ChildProcess:
        """Start a process in a session of its own, which sees this GPU or none. Raises ``OSError`` when refused."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",
                    "-m",
                    "tweezer.adapters.lane_main",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=_environment(os.environ, threads, gpu),
                )
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer)

    @property
    def alive(self) -> bool:
        return not self._gone

    def send(self, message: ToChild) -> None:
        """Send without waiting; what a dead process does not read is noticed by the receiver."""
        if not self._gone:
            self._writer.write(pack(message))

    async def receive(self, timeout_s: float) -> ToWorker | Died | Nothing:
        """The next message, ``Died`` at the end of the process, ``Nothing`` after the time or a :meth:`wake`."""
        if self._gone and self._inbox.empty():
            return Died()
        try:
            return await asyncio.wait_for(self._inbox.get(), max(timeout_s, 0.0))
        except TimeoutError:
            return Nothing()

    def wake(self) -> None:
        """Make a waiting :meth:`receive` return ``Nothing``."""
        self._inbox.put_nowait(Nothing())

    def resident_mb(self) -> float:
        """Resident memory of the process in MB (2**20 bytes); 0 where the system does not tell (not Linux)."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * _PAGE_BYTES / (1 << 20)
        except (OSError, IndexError):
            return 0.0

    def kill(self) -> None:
        """Kill the process now, without waiting for its end."""
        self._gone = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self, timeout_s: float) -> None:
        """Kill the process, wait for its end for at most so long, and free the socket."""
        self.kill()
        self._pump.cancel()
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), timeout_s)

    async def describe_end(self, timeout_s: float) -> str:
        """How the process ended, in words. Kills one that lost its voice but not its life."""
        try:
            code = await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            await self.stop(timeout_s)
            return "broke off its connection"
        if code >= 0:
            return f"exited with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (perhaps by the system, for lack of memory)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"

    async def _read_messages(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(HEADER_BYTES)
                body = await self._reader.readexactly(body_bytes(header))
                self._inbox.put_nowait(unpack_for_worker(body))
        except (asyncio.IncompleteReadError, OSError, ValueError, msgspec.DecodeError):
            pass  # all of them say the same: there is nobody to talk to
        finally:
            self._gone = True
            self._inbox.put_nowait(Died())


def _environment(inherited: Mapping[str, str], threads: int, gpu: str | None) -> dict[str, str]:
    """Ours without our secrets; hashes and threads fixed, so that equal seeds give equal results; GPUs counted out."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(_OUR_PREFIX)}
    fixed = {"PYTHONHASHSEED": "0", "PYTHONFAULTHANDLER": "1", GPU_VARIABLE: gpu or ""}
    return kept | dict.fromkeys(_THREAD_VARIABLES, str(threads)) | fixed
