"""How results are sent: small ones, and large ones directly from their file."""

from __future__ import annotations

import gzip
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from tweezer.api.batches.results import accepts_gzip, result_response
from tweezer.model.errors import ResultUnavailable
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import Provenance, Result, encode_result_file, result_file
from tweezer.store.results import Results, ResultsFolder

LARGE = Result(serialised_results=os.urandom(400_000).hex(), provenance=Provenance(backend="b"))
SMALL = Result(counter={"01": 3})


class Sending:
    """Return an application that sends one result, and its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = Results(ResultsFolder(root))
        self.packed = b""
        self.app = Starlette(routes=[Route("/", self._send)])
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://here")

    async def _send(self, request: Request) -> Response:
        return await result_response(self.packed, self.results, request.headers.get("accept-encoding", ""))

    async def pack(self, result: Result) -> None:
        self.packed = await self.results.pack(new_batch_id(), 0, result)

    async def get(self, accept_encoding: str = "gzip, deflate") -> httpx.Response:
        return await self.http.get("/", headers={"Accept-Encoding": accept_encoding})


@pytest.fixture
async def sending(tmp_path: Path) -> AsyncIterator[Sending]:
    sending = Sending(tmp_path)
    yield sending
    await sending.http.aclose()


def body_of(result: Result) -> object:
    return {"counter": None} | msgspec.to_builtins(result)


@pytest.mark.parametrize("accept_encoding", ["gzip", "identity"])
@pytest.mark.parametrize("result", [SMALL, LARGE], ids=["small", "large"])
async def test_a_result_is_equal_however_it_is_stored_and_sent(
    sending: Sending, result: Result, accept_encoding: str
) -> None:
    await sending.pack(result)
    response = await sending.get(accept_encoding)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == body_of(result)


async def test_a_large_result_is_sent_as_it_is_in_its_file(sending: Sending) -> None:
    await sending.pack(LARGE)
    file = result_file(sending.packed)
    assert file is not None
    response = await sending.get()
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["Content-Length"] == str(file.size)
    assert response.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress((sending.root / file.name).read_bytes()) == response.content


async def test_a_client_without_gzip_gets_the_result_in_chunks(sending: Sending) -> None:
    await sending.pack(LARGE)
    parts: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        parts.append(len(message.get("body", b"")))
        assert (b"content-encoding", b"gzip") not in message.get("headers", [])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "extensions": {}}
    await sending.app({**scope, "asgi": {"spec_version": "2.4"}}, receive, send)
    assert sum(parts) == len(msgspec.json.encode(body_of(LARGE)))
    assert max(parts) <= 256 << 10


async def test_the_file_is_closed_when_the_caller_leaves_before_it_is_sent(sending: Sending) -> None:
    await sending.pack(LARGE)
    response = await result_response(sending.packed, sending.results, "gzip")

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise OSError("gone")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        await response(scope, receive, send)
    assert response._file.closed  # type: ignore[attr-defined]


async def test_nothing_of_a_damaged_file_is_sent(sending: Sending) -> None:
    await sending.pack(LARGE)
    file = result_file(sending.packed)
    assert file is not None
    sending.packed = encode_result_file(msgspec.structs.replace(file, sha256=b"0" * 32))
    with pytest.raises(ResultUnavailable, match="is damaged"):
        await sending.get()


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("deflate, gzip, br", True),
        ("deflate, br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0.5", True),
        ("gzip;q=1.0, identity;q=0.1", True),
        ("*", True),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("identity", False),
        (",;=,gzip", True),
    ],
)
def test_gzip_is_sent_only_to_clients_that_accept_it(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) == accepted
