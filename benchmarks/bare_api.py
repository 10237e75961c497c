"""The smallest server that returns a job: FastAPI with one route, behind the API's own authentication.

It returns the bytes that the API returned, from a dictionary. Run by ``ledger.py``:
``bare_api.py <port> <database url> <folder of responses, each named by the id of its job>``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

from tweezer.api.access.auth import AuthenticationMiddleware, Authenticator, RateLimiter
from tweezer.api.access.dependencies import Caller
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database

UNLIMITED = 10**9


def application(database: Database, answers: dict[str, bytes]) -> FastAPI:
    app = FastAPI()
    app.add_middleware(
        AuthenticationMiddleware, authenticator=Authenticator(database), rates=RateLimiter(UNLIMITED, UNLIMITED)
    )

    @app.get("/api/v2/jobs/{job_id}")
    async def get_job(job_id: str, caller: Caller) -> Response:
        return Response(answers[job_id], media_type="application/json")

    return app


def main() -> None:
    port, url, folder = sys.argv[1:]
    answers = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    app = application(Database.open(OpenDatabase(url)), answers)
    uvicorn.run(app, port=int(port), log_config=None, access_log=False, server_header=False)


if __name__ == "__main__":
    main()
