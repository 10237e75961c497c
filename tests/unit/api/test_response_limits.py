"""Large responses are sent in pieces, and only as many at a time as fit into the budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import Message, Scope
from tests.support.api_rig import ApiRig, bearer
from tests.support.waiting import until

from tweezer.api.http import limits
from tweezer.ledger.database import Database
from tweezer.model.messages import BatchDoc
from tweezer.settings import Settings

SIZE = 300_000


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(), ledger)
    await rig.announce()
    yield rig
    await rig.close()


class Reader:
    """A client that reads the first part of a response, and the rest when the test asks for it."""

    def __init__(self, rig: ApiRig, path: str, key: str) -> None:
        self.messages: list[Message] = []
        self.goes_on = asyncio.Event()
        self._app = rig.app
        headers = [(b"host", b"h"), *((k.lower().encode(), v.encode()) for k, v in bearer(key).items())]
        self._scope: Scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "server": ("h", 80),
            "client": ("c", 1),
            "headers": headers,
        }
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            self.messages.append(message)
            if len(self.messages) > 1:
                await self.goes_on.wait()

        await self._app(self._scope, receive, send)

    async def begun(self) -> None:
        await until(lambda: len(self.messages) > 1)


async def test_a_large_response_is_sent_in_pieces_and_counts_until_it_is_read(
    rig: ApiRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PER_ACCOUNT_MAX", 2 * SIZE)
    batch_id = await rig.submit(1, doc=BatchDoc(device="EMU_FREE", sequence="x" * SIZE))
    path = f"/api/v2/batches/{batch_id}"
    key, another = rig.key(), rig.key()
    slow = Reader(rig, path, key)
    await slow.begun()
    refused = await rig.get(path, key=another)  # the limit applies to the project, not to the key
    assert (refused.status_code, refused.json()["data"]["reason"]) == (429, "too_many_answers")
    assert refused.headers["retry-after"] == "1"
    assert (await rig.get("/api/v1/batches", key=another)).status_code == 200, "it is small"
    assert (await rig.get(path)).status_code == 200, "an operator is another caller"
    slow.goes_on.set()
    await slow.task
    pieces = [message["body"] for message in slow.messages[1:]]
    assert max(map(len, pieces)) <= limits.PIECE
    whole = await rig.get(path, key=another)
    assert whole.status_code == 200
    assert whole.content == b"".join(pieces)


async def test_all_large_responses_together_are_bounded(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IN_ALL_MAX", 2 * SIZE)
    batch_id = await rig.submit(1, doc=BatchDoc(device="EMU_FREE", sequence="x" * SIZE))
    path = f"/api/v2/batches/{batch_id}"
    slow = Reader(rig, path, rig.key())
    await slow.begun()
    refused = await rig.get(path)
    assert (refused.status_code, refused.json()["data"]["reason"]) == (503, "too_many_answers")
    slow.goes_on.set()
    await slow.task
    assert (await rig.get(path)).status_code == 200
