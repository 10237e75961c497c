"""The service itself: whether it lives, whether it can work, and the devices it serves."""

from __future__ import annotations

from fastapi import APIRouter

from tweezer.api.dependencies import Caller, LiveStore
from tweezer.api.envelope import Envelope, failure_docs
from tweezer.api.schemas import Device, Health

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


@router.get("/api/v1/devices", summary="All devices", responses=failure_docs(503))
async def get_devices(caller: Caller, live: LiveStore) -> Envelope[list[Device]]:
    """The devices that workers have announced, by name."""
    return Envelope(data=[Device.of(record) for record in await live.devices()])
