"""The worker's side of a lane's process: start it, exchange messages, check its memory, kill it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys

import msgspec

from tweezer.adapters.lane.jail.home import Scratch, build_environment
from tweezer.adapters.lane.messages import HEADER_BYTES, ToChild, ToWorker, pack, read_body_size, unpack_for_worker
from tweezer.adapters.protocol import OnOutput

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_OUTPUT_BYTES = 1 << 16  # as many as a pipe holds
_OUTPUT_PAUSE_S = 0.01
_COLLECTED_MAX = 4  # reads after a job, if the process goes on writing
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Died(msgspec.Struct, frozen=True):
    """The process has ended or violated the protocol."""


class Nothing(msgspec.Struct, frozen=True):
    """No message arrived in time, or :meth:`ChildProcess.wake` was called."""


class ChildProcess:
    """One process of :mod:`tweezer.adapters.lane.child_main` and the socket to it. Made by :meth:`spawn`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        scratch: Scratch,
        output: int,
    ) -> None:
        """output: the end of a pipe from which its output is read; it does not block."""
        self.pid = process.pid
        self.on_output: OnOutput | None = None
        """Receives what the process writes."""
        self._pipe: int | None = output
        self._unforwarded: list[bytes] = []
        self._readable = asyncio.Event()
        self.scratch = scratch
        self._statm = _open_statm(process.pid)
        self._process = process
        self._reader = reader
        self._writer = writer
        self._inbox: asyncio.Queue[ToWorker | Died | Nothing] = asyncio.Queue()
        self.alive = True
        self._pump = asyncio.create_task(self._read_messages(), name=f"lane-{process.pid}")
        self._output = asyncio.create_task(self._forward_output(), name=f"lane-{process.pid}-output")

    @classmethod
    async def spawn(cls, threads: int, gpu: str | None = None) -> ChildProcess:
        """Start a process in a new session, which can use this GPU or none. Raises ``OSError`` if that fails."""
        scratch = Scratch()
        ours, theirs = socket.socketpair()
        output, written = os.pipe()
        os.set_blocking(output, False)
        try:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",
                    "-m",
                    "tweezer.adapters.lane.child_main",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=written,
                    stderr=written,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    cwd=scratch.path,
                    env=build_environment(os.environ, scratch.path) | _build_variables(threads, gpu),
                )
            finally:
                theirs.close()
                os.close(written)
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            os.close(output)
            scratch.remove()
            raise
        return cls(process, reader, writer, scratch, output)

    def send(self, message: ToChild) -> None:
        """Send a message without waiting. The receiver notices if the process is dead."""
        if self.alive:
            self._writer.write(pack(message))

    async def receive(self, timeout_s: float) -> ToWorker | Died | Nothing:
        """Return the next message, ``Died`` after the end of the process, or ``Nothing`` after a timeout or a wake."""
        if not self.alive and self._inbox.empty():
            return Died()
        try:
            async with asyncio.timeout(max(timeout_s, 0.0)):  # with wait_for, a message may swallow a cancel
                return await self._inbox.get()
        except TimeoutError:
            return Nothing()

    def wake(self) -> None:
        """Make a waiting :meth:`receive` return ``Nothing``."""
        self._inbox.put_nowait(Nothing())

    def get_resident_mb(self) -> float:
        """Return the process's resident memory in MB (2**20 bytes); 0 if the system does not report it (not Linux)."""
        if self._statm is None:
            return 0.0
        try:
            pages = os.pread(self._statm, 128, 0).split()[1]
            return int(pages) * _PAGE_BYTES / (1 << 20)
        except (OSError, IndexError):
            return 0.0

    def kill(self) -> None:
        """Kill the process now, without waiting for its end."""
        self.alive = False
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self, timeout_s: float) -> None:
        """Kill the process, wait at most ``timeout_s`` for its end, and free the socket and the scratch folder."""
        self.kill()
        self._pump.cancel()
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._output
        if self._statm is not None:
            os.close(self._statm)
            self._statm = None
        await asyncio.to_thread(self.scratch.remove)

    async def describe_end(self, timeout_s: float) -> str:
        """Return in words how the process ended. A process that only lost its connection is killed."""
        try:
            async with asyncio.timeout(timeout_s):
                code = await self._process.wait()
        except TimeoutError:
            await self.stop(timeout_s)
            return "closed its connection"
        if code >= 0:
            return f"exited with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (perhaps by the system, for lack of memory)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"

    async def _read_messages(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(HEADER_BYTES)
                body = await self._reader.readexactly(read_body_size(header))
                self._inbox.put_nowait(unpack_for_worker(body))
        except (asyncio.IncompleteReadError, OSError, ValueError, msgspec.DecodeError):
            pass  # in each of these cases the process cannot be used any more
        finally:
            self.alive = False
            self._inbox.put_nowait(Died())

    def collect_output(self) -> None:
        """Pass on what the process has written before its last message."""
        for _ in range(_COLLECTED_MAX):
            if not self._read_output():
                return

    def _read_output(self) -> bytes | None:
        """Read a part of the output; return it, empty at its end, or None if there is nothing to read now."""
        if self._pipe is None:
            return b""
        try:
            chunk = os.read(self._pipe, _OUTPUT_BYTES)
        except BlockingIOError:
            return None
        if chunk:
            self._unforwarded.append(chunk)
            self._readable.set()
            if self.on_output is not None:
                self.on_output(chunk)
        return chunk

    async def _forward_output(self) -> None:
        """Copy the process's output to standard error, which it cannot open itself, because it may be a terminal."""
        loop, pipe = asyncio.get_running_loop(), self._pipe
        assert pipe is not None
        try:
            while True:
                loop.add_reader(pipe, self._readable.set)
                await self._readable.wait()
                loop.remove_reader(pipe)
                has_ended = self._read_output() == b""
                self._readable.clear()
                if has_ended:
                    return
                chunks, self._unforwarded = self._unforwarded, []
                await asyncio.to_thread(_write_output, b"".join(chunks))
                await asyncio.sleep(_OUTPUT_PAUSE_S)  # a process that writes endlessly must not occupy the worker
        finally:
            loop.remove_reader(pipe)
            self._pipe = None
            os.close(pipe)
            _write_output(b"".join(self._unforwarded))


def _build_variables(threads: int, gpu: str | None) -> dict[str, str]:
    """Fix hashes and threads, so that equal seeds give equal results, and select the GPU."""
    fixed = {"PYTHONHASHSEED": "0", "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", GPU_VARIABLE: gpu or ""}
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | fixed


def _open_statm(pid: int) -> int | None:
    """Open the file with a process's memory, which cannot be opened once the process is jailed."""
    if sys.platform != "linux":
        return None
    try:
        return os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    except OSError:
        return None


def _write_output(chunk: bytes) -> None:
    rest = memoryview(chunk)
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(2, rest) :]
