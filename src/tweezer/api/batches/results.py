"""Send results: small ones from the job's record, and large ones streamed from their file."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from io import BufferedIOBase, BufferedReader
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tweezer.api.access.dependencies import part
from tweezer.api.batches.schemas import JobLineResponse, JobResponse
from tweezer.api.read_model import ReadModel
from tweezer.model.errors import ResultUnavailable
from tweezer.model.messages import decode_result, result_file, result_json
from tweezer.store.records import BatchRecord, JobRecord
from tweezer.store.results import Results
from tweezer.store.scripts import split_pages

log = structlog.get_logger(__name__)

_JSON = "application/json"
_CHUNK_BYTES = 256 << 10
_PAGE = 200  # jobs read at once


async def result_response(packed: bytes, results: Results, accept_encoding: str) -> Response:
    """Return the response with a packed result as a JSON object. Raises ResultUnavailable."""
    file = result_file(packed)
    if file is None:
        return Response(result_json(decode_result(packed)), media_type=_JSON)
    stream = await results.open(file)
    if accepts_gzip(accept_encoding):
        return _Streamed(stream, stream, {"Content-Encoding": "gzip", "Content-Length": str(file.size)})
    return _Streamed(stream, gzip.GzipFile(fileobj=stream), {})


async def stream_lines(
    live: ReadModel, kept: Results, batch: BatchRecord, indices: Sequence[int], *, results: bool
) -> AsyncIterator[bytes]:
    """Yield the lines of a stream of jobs, in pieces. Results are read one at a time: they may be large."""
    lines: list[bytes] = []
    size = 0
    for page in split_pages(indices, _PAGE):
        jobs = await live.jobs(batch, page)
        wanted = [job.index for job in jobs if results and job.may_have_result]
        packed = await live.packed_results(batch.id, wanted) if wanted else {}
        for job in jobs:
            line = await _line(job, packed.get(job.index), kept)
            lines.append(line)
            size += len(line)
            if size >= _CHUNK_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
    yield b"".join([*lines, _encode_line(JobLineResponse(end=True))])


async def _line(job: JobRecord, packed: bytes | None, kept: Results) -> bytes:
    result: Any = None
    problem = None
    if packed is not None:
        match await kept.read(packed):
            case ResultUnavailable() as error:
                log.error("api.result_unavailable", job=str(job.id), error=error.message)
                problem = f"the result of job {job.id} cannot be read on the server, whose log has the reason"
            case found:
                result = msgspec.Raw(result_json(found))
    return _encode_line(JobLineResponse(JobResponse.from_record(job), result, problem))


def _encode_line(line: JobLineResponse) -> bytes:
    return msgspec.json.encode(line) + b"\n"


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
