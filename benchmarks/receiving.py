"""The other side of webhooks: a receiver with minimal responses, and a bare loop that posts.

``receiving.py receiver`` prints its port, then obeys lines of stdin: ``has COUNT`` (answered once this many requests
have arrived), ``save FILE`` (writes the requests since the last one in MessagePack: a list of Receipt). Paths but
``/well`` act as receivers that misbehave. ``receiving.py poster URL FILE CONNECTIONS GAP_S`` posts what was saved and
prints when each request began, as a JSON list of unix times.

The receiver represents other machines: it only uses the CPU time that is left, does as little as it can, and gets no
commands while it receives.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

MISBEHAVING = ("error", "hang", "reset", "redirect", "slow")
SLOW_S = 2.0
_ANSWERS = {
    "error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /well\r\nContent-Length: 0\r\n\r\n",
}
_WELL = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_LOOK_S = 0.005

Raw = tuple[float, bytes, bytes]
"""When a request arrived (unix time), its head and its body."""


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """A request. ``at`` is a unix time; ``headers`` are those of webhooks, and the content type."""

    at: float
    path: str
    id: str
    headers: dict[str, str]
    body: bytes


class _Connection(asyncio.Protocol):
    """A connection that receives one request after the other."""

    def __init__(self, came: list[Raw]) -> None:
        self._came = came
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        while True:
            head, found, rest = self._seen.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not found or length is None or len(rest) < (size := int(length[1])):
                return
            self._seen = rest[size:]
            self._came.append((time.time(), head, rest[:size]))
            self._answer(_path(head).strip("/").partition("/")[0])

    def _answer(self, how: str) -> None:
        match how:
            case "hang":
                return
            case "reset":
                self._transport.abort()
            case "slow":
                asyncio.get_running_loop().call_later(SLOW_S, self._transport.write, _WELL)
            case _:
                self._transport.write(_ANSWERS.get(how, _WELL))


def _path(head: bytes) -> str:
    return head.split(b" ", 2)[1].decode("latin-1")


def _receipt(raw: Raw) -> Receipt:
    at, head, body = raw
    _, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    kept = {name: value for name, value in headers.items() if name.startswith(("webhook-", "content-type"))}
    return Receipt(at, _path(head), headers["webhook-id"], kept, body)


def save(file: str, receipts: list[Receipt]) -> None:
    Path(file).write_bytes(msgspec.msgpack.encode(receipts))


def saved(file: str) -> list[Receipt]:
    return msgspec.msgpack.decode(Path(file).read_bytes(), type=list[Receipt])


async def receive() -> None:
    os.nice(19)
    came: list[Raw] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(came), "127.0.0.1", 0, backlog=1000)
    _print_line(str(server.sockets[0].getsockname()[1]))
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        if line[0] == "save":
            save(line[1], [_receipt(raw) for raw in came])
            came.clear()
        else:
            while len(came) < int(line[1]):  # noqa: ASYNC110  an asyncio.Event would slow down each request
                await asyncio.sleep(_LOOK_S)
        _print_line(str(len(came)))


async def post(url: str, receipts: list[Receipt], connections: int, gap_s: float) -> None:
    waiting = iter(receipts)
    began: list[float] = []

    async def keep_posting() -> None:
        for receipt in waiting:
            began.append(time.time())
            async with session.post(url, data=receipt.body, headers=receipt.headers, allow_redirects=False) as answer:
                await answer.read()
            if gap_s:
                await asyncio.sleep(gap_s)

    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        await asyncio.gather(*(keep_posting() for _ in range(connections)))
    _print_line(msgspec.json.encode(began).decode())


def _print_line(line: str) -> None:
    os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1] == "receiver":
        uvloop.run(receive())
    else:
        _, _, to, file, count, pause_s = sys.argv
        uvloop.run(post(to, saved(file), int(count), float(pause_s)))
