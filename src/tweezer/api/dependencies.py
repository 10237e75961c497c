"""What routes are given: the live store, the holds, and the parameters that several of them take."""

from __future__ import annotations

from typing import Annotated, cast
from uuid import UUID

from fastapi import Depends, Path, Query, Request
from pydantic import Field

from tweezer.api.live import Live
from tweezer.api.longpoll import Holds

WAIT_MAX_S = 20.0
"""The longest hold: Pasqal's clients give a request up after 30 s."""


async def _live(request: Request) -> Live:
    return cast(Live, request.app.state.live)


async def _holds(request: Request) -> Holds:
    return cast(Holds, request.app.state.holds)


async def _wait_s(
    request: Request,
    wait_s: Annotated[
        Annotated[float, Field(ge=0, le=WAIT_MAX_S, allow_inf_nan=False)] | None,
        Query(description="How long to hold the request, in seconds; 0 answers at once. Default: the server's."),
    ] = None,
) -> float:
    return cast(float, request.app.state.longpoll_s) if wait_s is None else wait_s


LiveStore = Annotated[Live, Depends(_live)]
HeldRequests = Annotated[Holds, Depends(_holds)]
WaitSeconds = Annotated[float, Depends(_wait_s)]
BatchId = Annotated[UUID, Path(description="Id of a batch.", examples=["0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"])]
JobId = Annotated[UUID, Path(description="Id of a job.", examples=["0199f3a2-7c1e-8b1d-9f04-a1b2c3000003"])]
