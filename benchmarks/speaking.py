"""Send the requests of Pasqal's SDK 0.24 over one connection, with its bodies and headers but without its CPU time.

With fifty processes of the SDK, the benchmark would measure the SDK; these connections use a tenth of its CPU time.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections import defaultdict
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import harness
import msgspec
from harness import Broken

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ANYBODY = {
    "User-Agent": "python-requests/2.34.2",
    "Accept-Encoding": "gzip, deflate",
    "Accept": "*/*",
    "Connection": "keep-alive",
}
_SDK = _ANYBODY | {"User-Agent": "PasqalCloudSDK/0.24.0", "content-type": "application/json"}
_FIRST_REST_S = 2.0  # the SDK's pause between two reads of a status that the server did not hold long enough

Timings = defaultdict[str, list[float]]


def route(method: str, path: str) -> str:
    """Return the route of a request, with a placeholder for each id."""
    return f"{method} {_UUID.sub('{id}', path.partition('?')[0])}"


class Speaker:
    """One user with a key, on one connection that stays open. ``timings`` gets the seconds of each request by route."""

    def __init__(self, port: int, key: str, project: str, timings: Timings) -> None:
        self._port = port
        self._project = project
        self._timings = timings
        self._sdk = _SDK | {"Authorization": f"Bearer {key}"}

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    async def batch(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send the requests of ``create_batch(wait=True)`` and of reading each job's result; return the results."""
        body = {"sequence_builder": "{}", "webhook": None, "jobs": jobs, "open": False, "device_type": "NULL"}
        batch = await self._call("POST", "/api/v1/batches", body | {"project_id": self._project})
        await self._wait(f"/api/v1/batches/{batch['id']}/status")
        ended = await self._call("GET", f"/api/v2/batches/{batch['id']}")
        return [await self._result(job["id"]) for job in ended["jobs"]]

    async def _wait(self, path: str) -> None:
        rest_s = _FIRST_REST_S
        while True:
            counts = (await self._call("GET", path))["jobs_count_per_status"]
            if not counts["PENDING"] + counts["RUNNING"]:
                return
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, 30.0)

    async def _result(self, job_id: str) -> dict[str, Any]:
        link = urlsplit((await self._call("GET", f"/api/v1/jobs/{job_id}/results_link"))["results_link"])
        result: dict[str, Any] = await self._ask("GET", f"{link.path}?{link.query}", _ANYBODY)
        return result

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        if body is None:
            return (await self._ask(method, path, self._sdk))["data"]
        packed = gzip.compress(json.dumps(body).encode())
        return (await self._ask(method, path, self._sdk | {"Content-Encoding": "gzip"}, packed))["data"]

    async def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Any:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        began = time.perf_counter()
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        async with asyncio.timeout(harness.WAIT_S):
            answer = await self._answer(path)
        self._timings[route(method, path)].append(time.perf_counter() - began)
        return msgspec.json.decode(answer)

    async def _answer(self, path: str) -> bytes:
        status, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in rest if line)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        if status.split()[1] not in {"200", "201"}:
            raise Broken(f"{path}: the server answered {status}: {answer[:300]!r}")
        return gzip.decompress(answer) if headers.get("content-encoding") == "gzip" else answer
