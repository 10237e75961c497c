"""A ledger and a Redis of different installations are only joined on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner
from tests.support.ledger_rig import NAMESPACE, LedgerRig
from tests.support.processes import Site
from tests.support.redis_users import as_user
from tests.support.waiting import until

from tweezer.api.app import run_api
from tweezer.cli import main
from tweezer.duties import end_tasks
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.installation import installation_id, join, require_same
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.errors import TweezerError
from tweezer.settings import ApiSettings, DatabaseSettings, RedisSettings, Settings
from tweezer.store.acl import RedisUser
from tweezer.store.connection import Connect, Store
from tweezer.store.keys import Key
from tweezer.store.streams.feed import COURIERS


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Database]:
    """The ledger of another installation."""
    database = Database.open(OpenDatabase(f"sqlite:///{tmp_path / 'stranger.db'}"), create=True)
    upgrade(database)
    yield database
    database.close()


def test_the_id_of_an_installation_is_made_once(database: Database, stranger: Database) -> None:
    assert installation_id(database) == installation_id(database) != installation_id(stranger)


async def test_a_recorder_refuses_the_redis_of_another_installation(bench: LedgerRig, stranger: Database) -> None:
    batch_id = await bench.rig.submit(2)
    await bench.record()
    await require_same(bench.rig.store, bench.database)
    intruder = Recorder(bench.rig.store, stranger, namespace=NAMESPACE)
    with pytest.raises(TweezerError, match="belongs to the installation") as raised:
        await intruder.resume()
    assert raised.value.code == "installation"
    with pytest.raises(TweezerError, match="join them deliberately with `tweezer db join`"):
        await require_same(bench.rig.store, stranger)
    with structlog.testing.capture_logs() as lines:
        running = asyncio.create_task(intruder.run())
        await until(lambda: any(line["event"] == "duty.failed" for line in lines))
        assert await bench.rig.recovery.claim_recorder("the real one", 5.0), "the intruder does not take its place"
        await end_tasks(running)
    await bench.agree(batch_id)


async def test_installations_can_be_joined_on_purpose(bench: LedgerRig, stranger: Database) -> None:
    await bench.record()
    await join(bench.rig.store, stranger, force=True)
    await Recorder(bench.rig.store, stranger, namespace=NAMESPACE).resume()
    with pytest.raises(TweezerError, match="belongs to the installation"):
        await bench.recorder.resume()


async def test_a_redis_that_lost_everything_is_joined_again(bench: LedgerRig) -> None:
    await bench.record()
    await bench.rig.store.redis.flushall()
    await bench.recorder.resume()
    await require_same(bench.rig.store, bench.database)
    assert await bench.rig.recovery.installation() == installation_id(bench.database)


async def reads(store: Store) -> bool:
    """Return whether a courier reads the events."""
    return bool(await store.events.idle_s(COURIERS))


async def test_a_courier_refuses_the_redis_of_another_installation(
    real_redis_url: str, stranger: Database, tmp_path: Path
) -> None:
    settings = {"database_url": f"sqlite:///{tmp_path / 'stranger.db'}", "data_dir": tmp_path}
    async with Site(real_redis_url, tmp_path, **settings) as site:
        courier = site.spawn("courier")
        await until(lambda: reads(site.store), "the courier's first read")  # it has checked the installation
        await site.store.recovery.join_ledger("0123456789abcdef")
        await site.store.redis.delete(site.store.keys(Key.EVENTS))  # it must join its group again
        foreign = "belongs to the installation 0123456789abcdef"
        await until(lambda: any(foreign in failed["error"] for failed in courier.logged("duty.failed")))
        refused = site.spawn("courier")
        assert await refused.ended() == 1
        assert foreign in refused.text


def test_the_api_refuses_to_start_and_the_command_joins(
    real_redis_url: str, stranger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def belong_to_another() -> None:
        async with Store.open(Connect(real_redis_url)) as store:
            await store.recovery.join_ledger("0123456789abcdef")

    asyncio.run(belong_to_another())
    place = f"sqlite:///{tmp_path / 'stranger.db'}"
    with pytest.raises(TweezerError, match="Redis belongs to the installation 0123456789abcdef"):
        run_api(
            Settings(
                redis=RedisSettings(url=as_user(real_redis_url, RedisUser.API)),
                database=DatabaseSettings(url=place),
                api=ApiSettings(port=0),
            )
        )
    monkeypatch.setenv("TWEEZER_DATABASE_URL", place)
    joined = CliRunner().invoke(main, ["--redis", as_user(real_redis_url, RedisUser.OPERATOR), "db", "join"])
    assert (joined.exit_code, joined.stdout) == (0, f"{place} records this Redis from now on.\n")

    async def belongs() -> str | None:
        async with Store.open(Connect(real_redis_url)) as store:
            return await store.recovery.installation()

    assert asyncio.run(belongs()) == installation_id(stranger)
