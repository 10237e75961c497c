"""The service itself: whether it lives, and whether it can work."""

from __future__ import annotations

from fastapi import APIRouter

from tweezer.api.access.dependencies import LiveStore
from tweezer.api.batches.schemas import Health
from tweezer.api.http.envelope import Envelope, failure_docs

router = APIRouter(tags=["service"])


@router.get("/health", summary="Whether the process is alive", responses=failure_docs(keyless=True))
async def get_health() -> Envelope[Health]:
    """Asks nothing of anybody: restart the process when this does not answer."""
    return Envelope(data=Health(health="ok"))


@router.get("/ready", summary="Whether Redis and the ledger answer", responses=failure_docs(503, keyless=True))
async def get_ready(live: LiveStore) -> Envelope[Health]:
    """503 while Redis or the ledger's database does not answer within two seconds: send no requests here then."""
    await live.check()
    return Envelope(data=Health(health="ok"))
