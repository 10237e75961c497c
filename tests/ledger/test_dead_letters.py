"""Work that cannot be recorded is parked, and everything else is recorded; operators retry or drop parked work."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import pytest
from click.testing import CliRunner
from tests.support.ledger_rig import NAMESPACE, LedgerRig
from tests.support.records import NEWER, VERSION, change_record

from tweezer.cli import main
from tweezer.cli.ledger_checks import Level, check_health
from tweezer.ledger import dead_letters, retention
from tweezer.ledger.config import DeadLetterBounds
from tweezer.ledger.dead_letters import Consumer, Letter, NewLetter
from tweezer.ledger.health import read_health
from tweezer.model.errors import Conflict, NotFound
from tweezer.model.messages import OutcomeKind
from tweezer.store.streams.feed import position_id


def letters(bench: LedgerRig) -> list[Letter]:
    with bench.database.read() as connection:
        return dead_letters.list_letters(connection)


def retry(bench: LedgerRig, *parked: Letter) -> None:
    with bench.database.write() as connection:
        dead_letters.request_retry(connection, [letter.id for letter in parked])


async def put(bench: LedgerRig, batch_id: UUID, field: str, value: bytes | str) -> None:
    await bench.rig.redis.hset(bench.rig.keys.prefix + f"batch:{batch_id}", field, value)


async def get(bench: LedgerRig, batch_id: UUID, field: str) -> bytes | None:
    value: bytes | None = await bench.rig.redis.hget(bench.rig.keys.prefix + f"batch:{batch_id}", field)
    return value


async def repair(bench: LedgerRig, batch_id: UUID, field: str, value: bytes | None) -> None:
    if value is None:
        await bench.rig.redis.hdel(bench.rig.keys.prefix + f"batch:{batch_id}", field)
    else:
        await put(bench, batch_id, field, value)


POISONS: dict[str, tuple[str, bytes]] = {
    "doc": ("doc", b"\xc1"),
    "tags": ("tags", b"no JSON"),
    "number": ("times", b"%d,0,0,0" % 2**70),  # valid, but too large for any database
    "newer": ("v", NEWER.encode()),
}


@pytest.mark.parametrize("poison", POISONS)
async def test_a_batch_that_cannot_be_recorded_is_parked_and_others_continue(bench: LedgerRig, poison: str) -> None:
    rig, (field, value) = bench.rig, POISONS[poison]
    before = await rig.submit(2)
    bad = await rig.submit(2, open=True)
    fine = await get(bench, bad, field)
    await put(bench, bad, field, value)
    after = [await rig.submit(2, project=f"p{number}") for number in range(5)]
    await bench.record()
    for batch_id in (before, *after):
        await bench.agree(batch_id)
    assert bench.batch(bad) is None
    (letter,) = letters(bench)
    assert (letter.consumer, letter.batch, letter.project) == (Consumer.RECORDER, bad, "a")
    assert letter.origin == position_id(letter.position)
    assert letter.error
    assert bench.rows("SELECT position FROM recorder") == [(await rig.store.events.last(),)]
    # Its transitions are recorded, so a reader of the feed misses nothing.
    assert len(bench.rows("SELECT position FROM transitions")) == 7

    await repair(bench, bad, field, fine)
    await rig.commands.close(bad, project=None)
    await bench.record()
    assert bench.batch(bad) is None, "later events wait behind the letter"
    assert letters(bench)[0].waiting >= 1
    retry(bench, letter)
    await bench.recorder.tend_letters()
    assert letters(bench) == []
    await bench.agree(bad)
    await rig.run_all()
    await bench.record()
    await bench.agree(bad)
    bench.counts_add_up()


async def test_a_foreign_entry_is_parked(bench: LedgerRig) -> None:
    rig, events = bench.rig, bench.rig.keys.prefix + "events"
    first = await rig.submit(1)
    for fields in (
        {"x": "y"},
        {"b": "no id", "s": 1, "t": 1, "e": "PR"},
        {"b": str(first), "s": 1, "t": 1, "e": "0-99999999999PC"},
        {"b": str(first), "s": 2**70, "t": 1, "e": "PR"},
        {"b": str(first), "s": 1, "t": 10**30, "e": "PR"},
        {"n": "device.down", "i": "x:1", "p": "", "t": 1, "d": "no JSON"},
        {"n": "device.down", "i": "x" * 500, "p": "", "t": 1, "d": "{}"},
        {b"b": b"\xff", b"s": b"1", b"t": b"1", b"e": b""},
    ):
        await rig.redis.xadd(events, fields)
    second = await rig.submit(1)
    await bench.record()
    await bench.agree(first)
    await bench.agree(second)
    found = letters(bench)
    assert len(found) == 8
    assert found[0].error == "the field 't' is missing"
    assert {letter.batch for letter in found} == {None}
    assert await bench.recorder.tidy() is False
    assert await rig.redis.xlen(events) == 1, "they are kept in the ledger before the stream is trimmed"
    retry(bench, found[0])
    await bench.recorder.tend_letters()
    assert letters(bench)[0].retry is None, "it failed again"
    with bench.database.write() as connection:
        dead_letters.drop_letters(connection, [letter.id for letter in found])
    assert letters(bench) == []
    await rig.run_all()


async def test_entries_of_an_unknown_project_wait_one_by_one(bench: LedgerRig) -> None:
    rig = bench.rig
    bad = await rig.submit(1, open=True)
    doc = await get(bench, bad, "doc")
    await put(bench, bad, "doc", b"\xc1")
    await put(bench, bad, "project", b"\x00")
    await bench.record()
    await put(bench, bad, "project", "a")
    await rig.commands.close(bad, project=None)
    await bench.record()
    found = letters(bench)
    assert [letter.batch for letter in found] == [bad, bad]
    assert found[0].project is None
    assert bench.rows("SELECT count(*) FROM transitions") == [(0,)]
    await repair(bench, bad, "doc", doc)
    retry(bench, *found)
    await bench.recorder.tend_letters()
    assert letters(bench) == []
    await bench.agree(bad)
    assert bench.rows("SELECT count(*) FROM transitions") == [(2,)]
    await rig.run_all()


async def test_a_recorder_of_another_version_retries_by_itself(bench: LedgerRig) -> None:
    bad = await bench.rig.submit(1)
    await put(bench, bad, "v", NEWER)
    await bench.record()
    (letter,) = letters(bench)
    assert f"was written by a newer Tweezer: its record has version {NEWER}" in letter.error
    await put(bench, bad, "v", VERSION)
    with bench.database.write() as connection:
        connection.exec_driver_sql("UPDATE dead_letters SET version = '0.0.1'")
    await bench.record()
    await bench.recorder.tend_letters()
    assert letters(bench) == []
    await bench.agree(bad)
    await bench.rig.run_all()


async def test_a_parked_batch_is_not_forgotten_and_does_not_block_others(
    bench: LedgerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tweezer.ledger.retention._FORGOTTEN_AT_ONCE", 1)
    rig = bench.rig
    bad, good = await rig.submit(1), await rig.submit(1)
    doc = await get(bench, bad, "doc")
    await rig.run_all()
    await put(bench, bad, "doc", b"\xc1")
    await bench.record()
    await rig.redis.zadd(rig.keys.prefix + "ended", {"no id": 0, str(bad): 1, str(good): 2})
    for batch_id in (bad, good):
        await change_record(rig.store, batch_id, ended=1)
    for _ in range(4):
        await bench.recorder.tidy()
    with pytest.raises(NotFound):
        await rig.reader.batch(good, project=None)
    await repair(bench, bad, "doc", doc)
    assert (await rig.reader.batch(bad, project=None)).id == bad
    retry(bench, *letters(bench))
    await bench.recorder.tend_letters()
    await bench.recorder.tidy()
    with pytest.raises(NotFound):
        await rig.reader.batch(bad, project=None)


async def test_a_new_ledger_takes_over_all_usable_batches(bench: LedgerRig) -> None:
    bad, good = await bench.rig.submit(1), await bench.rig.submit(1)
    await bench.record()
    await bench.recorder.tidy()
    with bench.database.write() as connection:
        for table in ("transitions", "results", "jobs", "sequences", "batches", "counters", "hours", "recorder"):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608
    doc = await get(bench, bad, "doc")
    await put(bench, bad, "doc", b"\xc1")
    await bench.record()
    await bench.agree(good)
    (letter,) = letters(bench)
    assert (letter.origin, letter.batch, letter.position) == (f"batch {bad}", bad, 0)
    await repair(bench, bad, "doc", doc)
    grant = await bench.rig.take()
    await bench.rig.settle(grant, {0: OutcomeKind.DONE})
    await bench.rig.run_all()


def park(bench: LedgerRig, count: int, bounds: DeadLetterBounds, size: int = 10) -> None:
    some = [NewLetter(f"{count}-{number}", "broken\0", b"x" * size) for number in range(count)]
    with bench.database.write() as connection:
        dead_letters.park(connection, Consumer.INTAKE, some, bounds)


async def test_letters_are_bounded_by_count_bytes_and_age_oldest_first(bench: LedgerRig) -> None:
    count = partial(park, bench)
    count(5, DeadLetterBounds(count=3))
    assert [letter.origin for letter in letters(bench)] == ["5-2", "5-3", "5-4"]
    count(2, DeadLetterBounds(size=35))
    assert [letter.origin for letter in letters(bench)] == ["5-4", "2-0", "2-1"]
    count(1, DeadLetterBounds(), (1 << 20) + 1)
    assert letters(bench)[-1].payload is None
    assert letters(bench)[-1].error == "broken\\x00"
    with bench.database.write() as connection:
        connection.exec_driver_sql("UPDATE dead_letters SET created_ms = 1 WHERE origin = '2-0'")
        dead_letters.expire_letters(connection, DeadLetterBounds())
        parked = dead_letters.count_letters(connection)[Consumer.INTAKE]
    assert (parked.letters, parked.total, parked.evicted) == (3, 8, 5)


async def test_a_failing_disk_parks_nothing(bench: LedgerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.rig.submit(1)

    def broken(*_: object) -> None:
        raise OSError("the disk is on fire")

    with monkeypatch.context() as patched:
        patched.setattr("tweezer.ledger.recorder.writing.Writer._write", broken)
        with pytest.raises(OSError, match="fire"):
            await bench.record()
    assert letters(bench) == []
    assert bench.rows(f"SELECT position FROM recorder WHERE namespace = '{NAMESPACE}'") == [("0-0",)]  # noqa: S608
    await bench.rig.run_all()


def tweezer(bench: LedgerRig, *arguments: str) -> str:
    url = bench.database.engine.url.set(drivername=bench.database.engine.url.get_backend_name())
    environment = {"TWEEZER_DATABASE_URL": url.render_as_string(hide_password=False).replace("%2F", "/")}
    done = CliRunner().invoke(main, ["dead-letters", *arguments], env=environment)
    assert done.exit_code == 0, done.output
    return done.output


async def test_operators_list_retry_and_drop_letters(bench: LedgerRig) -> None:
    bad = await bench.rig.submit(1)
    assert tweezer(bench, "list") == "No dead letters.\n"
    await put(bench, bad, "v", NEWER)
    await bench.rig.redis.xadd(bench.rig.keys.prefix + "events", {"x": "y"})
    await bench.record()
    first, second = letters(bench)
    shown = tweezer(bench, "list")
    assert str(bad) in shown
    assert "the field 't' is missing" in shown
    assert "was written by a newer Tweezer" in tweezer(bench, "list", "--batch", str(bad), "--json")
    tweezer(bench, "retry", str(first.id))
    assert "will be retried" in tweezer(bench, "list", "--consumer", "recorder")
    tweezer(bench, "drop", "--yes", str(second.id))
    assert [letter.id for letter in letters(bench)] == [first.id]
    health = read_health(bench.database)
    assert (health.newer, health.letters[Consumer.RECORDER].letters) == (1, 1)
    told = {finding.name: finding for finding in check_health(health)}
    assert told["dead letters"].level is Level.FAIL
    assert "1 from the recorder" in told["dead letters"].says
    assert "1 batches were written by a newer Tweezer" in told["record version"].says
    await put(bench, bad, "v", VERSION)
    await bench.rig.run_all()


async def test_a_batch_that_cannot_be_read_is_deleted_by_an_operator(bench: LedgerRig) -> None:
    rig = bench.rig
    bad, other = await rig.submit(2), await rig.submit(1)
    await put(bench, bad, "doc", b"\xc1")
    await bench.record()
    await retention.discard_batch(rig.store, bench.database, bad)
    with pytest.raises(NotFound):
        await rig.reader.batch(bad, project=None)
    device = await rig.reader.device("EMU")
    assert device is not None
    assert device.pending == 1
    grant = await rig.take()
    assert grant.batch_id == other
    with pytest.raises(Conflict, match="a worker is running batch"):
        await retention.discard_batch(rig.store, bench.database, other)
    await rig.settle(grant, {0: OutcomeKind.DONE})
