"""Fixtures of the ledger tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import pytest
from tests.support.ledger_rig import LedgerRig
from tests.support.store_rig import StoreRig

from tweezer.ledger.database import Database


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[LedgerRig]:
    """A store on fakeredis, recorded on each database in turn."""
    redis = fakeredis.FakeAsyncRedis()
    rig = StoreRig(redis)
    await rig.announce(lanes=2)
    yield LedgerRig(rig, database)
    await rig.store.news.close()
    await redis.aclose()
