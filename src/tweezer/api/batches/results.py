"""Send results: small ones from the job's record, and large ones streamed from their file."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from io import BufferedIOBase, BufferedReader
from typing import Annotated

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tweezer.api.access.dependencies import part
from tweezer.model.messages import decode_result, result_file, result_json
from tweezer.store.results import Results

_JSON = "application/json"
_CHUNK_BYTES = 256 << 10


async def result_response(packed: bytes, results: Results, accept_encoding: str) -> Response:
    """Return the response with a packed result as a JSON object. Raises ResultUnavailable."""
    file = result_file(packed)
    if file is None:
        return Response(result_json(decode_result(packed)), media_type=_JSON)
    stream = await results.open(file)
    if accepts_gzip(accept_encoding):
        return _Streamed(stream, stream, {"Content-Encoding": "gzip", "Content-Length": str(file.size)})
    return _Streamed(stream, gzip.GzipFile(fileobj=stream), {})


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip."""
    weights: dict[str, str] = {}
    for entry in accept_encoding.lower().split(","):
        coding, _, weight = entry.partition(";")
        weights[coding.strip()] = weight.partition("=")[2].strip() or "1"
    return weights.get("gzip", weights.get("*", "0")).strip("0.") != ""


KeptResults = Annotated[Results, part("results")]


class _Streamed(StreamingResponse):
    """A response from a file, which is closed even if the client disconnects."""

    def __init__(self, file: BufferedReader, content: BufferedIOBase, headers: Mapping[str, str]) -> None:
        super().__init__(_chunks(content), media_type=_JSON, headers={**headers, "Vary": "Accept-Encoding"})
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _chunks(content: BufferedIOBase) -> Iterator[bytes]:
    while chunk := content.read(_CHUNK_BYTES):
        yield chunk
