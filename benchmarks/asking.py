"""Send requests to a server over many connections at once, and run such a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import harness
import httpx
from harness import Broken


class _Asker(asyncio.Protocol):
    """A connection that sends a request as soon as the last one was answered, and counts the responses."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = requests
        self._seen = b""
        self.answers = 0
        self.broken: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, found, body = self._seen.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.broken = head.decode("latin-1").splitlines()[0]
            self._transport.close()
            return
        self._seen = b""
        self.answers += 1
        self._ask()

    def _ask(self) -> None:
        self._transport.write(random.choice(self._requests))


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise Broken("a response has no Content-Length")


def request(port: int, key: str, path: str, body: bytes = b"") -> bytes:
    """Return a GET of the path, or a POST if there is a body."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Authorization: Bearer {key}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.asynccontextmanager
async def asking(port: int, requests: list[bytes], connections: int) -> AsyncIterator[Callable[[], int]]:
    """Send requests over all connections until the block ends; yield a function that counts the responses."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: _Asker(requests), "127.0.0.1", port) for _ in range(connections)]
    askers = [asker for _, asker in made]
    try:
        yield lambda: sum(asker.answers for asker in askers)
    finally:
        for transport, _ in made:
            transport.close()
    for asker in askers:
        if asker.broken:
            raise Broken(f"the server answered {asker.broken}")


async def answers_per_s(port: int, requests: list[bytes], connections: int, seconds: float) -> float:
    """Return the responses per second over all connections."""
    async with asking(port, requests, connections) as answered:
        await asyncio.sleep(seconds / 4)
        before, began = answered(), time.perf_counter()
        await asyncio.sleep(seconds)
        return (answered() - before) / (time.perf_counter() - began)


@contextlib.asynccontextmanager
async def serving(*command: str, environment: dict[str, str], port: int) -> AsyncIterator[int]:
    """Run a server until the block ends; yield its process id."""
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env={**os.environ, **environment})
    try:
        async with httpx.AsyncClient() as client:

            async def answers() -> bool:
                if process.returncode is not None:
                    raise Broken(f"{command[-1]} ended with status {process.returncode}")
                with contextlib.suppress(httpx.TransportError):
                    await client.get(f"http://127.0.0.1:{port}/health")
                    return True
                return False

            await harness.until(answers, "the server listens")
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
