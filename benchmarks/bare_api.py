"""The smallest server that returns jobs and batches: FastAPI with two routes, behind the API's own authentication.

It returns the bytes that the API returned, from a dictionary, and echoes what is posted. Run by ``http_path.py``:
``bare_api.py <port> <database url> <folder of responses, each named by the id of its job or batch>``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request, Response

from tweezer.api.access.auth import AuthenticationMiddleware, Authenticator, RateLimiter
from tweezer.api.access.dependencies import Caller
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database

UNLIMITED = 10**9


def application(database: Database, answers: dict[str, bytes]) -> FastAPI:
    app = FastAPI()
    app.add_middleware(
        AuthenticationMiddleware,
        authenticator=Authenticator(database),
        tickets=cast(Any, None),  # there is no stream
        rates=RateLimiter(UNLIMITED, UNLIMITED),
    )

    @app.get("/api/v2/{kind}/{identity}")
    async def get(identity: str, caller: Caller) -> Response:
        return Response(answers[identity], media_type="application/json")

    @app.post("/api/v1/batches")
    async def echo(request: Request, caller: Caller) -> Response:
        return Response(await request.body(), media_type="application/json")

    return app


def main() -> None:
    port, url, folder = sys.argv[1:]
    answers = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    app = application(Database.open(OpenDatabase(url)), answers)
    uvicorn.run(app, port=int(port), log_config=None, access_log=False, server_header=False)


if __name__ == "__main__":
    main()
