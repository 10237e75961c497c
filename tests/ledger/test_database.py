"""SQLite and PostgreSQL behind one interface: transactions, threads, loading, and errors."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import exc, func, insert, select, text, update
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE_S, until

from tweezer.ledger.config import OpenDatabase, sqlite_file, sqlite_url
from tweezer.ledger.database import Database, load, parse_url, sharing
from tweezer.ledger.migrate import place, upgrade
from tweezer.ledger.schema import batches, endpoints, projects, secrets, sequences
from tweezer.model.errors import InvalidInput, Unavailable


def keep(database: Database, *names: str) -> None:
    with database.write() as connection:
        connection.execute(insert(secrets), [{"name": name, "value": name.encode()} for name in names])


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.execute(select(secrets.c.name).order_by(secrets.c.name)).scalars())


# --- threads


async def test_the_threads_of_an_account_are_limited_and_others_do_not_wait(sqlite_template: Path) -> None:
    place = OpenDatabase(url=f"sqlite:///{sqlite_template}", connections_max=4, share=2)
    database = Database.open(place)
    release, begun = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        begun.release()
        assert release.wait(PATIENCE_S)

    try:
        with sharing("greedy"):
            calls = [asyncio.create_task(database.run(work)) for _ in range(5)]
        await until(lambda: begun.acquire(blocking=False))
        await until(lambda: begun.acquire(blocking=False))
        calls[0].cancel()  # its thread continues, so that no other call gets its turn
        with sharing("other"):
            assert await database.run(int, "7") == 7
        assert await database.run(int, "8") == 8
        assert not begun.acquire(blocking=False)
        release.set()
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(begun.acquire(blocking=False) for _ in range(3))
        await until(lambda: database._turns == {})
    finally:
        release.set()
        database.close()


# --- transactions


def test_writes_are_visible_to_all_after_the_block(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(secrets).values(name="new", value=b"1"))
        assert names(database) == []
    assert names(database) == ["new"]


def test_errors_contain_no_values(database: Database) -> None:
    row = {"id": uuid4(), "project": 999, "kind": "P", "types": "", "description": "", "created_ms": 0}
    with pytest.raises(exc.IntegrityError) as caught, database.write() as connection:
        connection.execute(insert(endpoints).values(row | {"url": "https://hooks.example.org/?token=private"}))
    assert "private" not in str(caught.value)


def test_a_block_that_fails_writes_nothing(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            connection.execute(insert(secrets).values(name="new", value=b"1"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(database) == []


def test_writers_wait_for_each_other_and_none_is_lost(database: Database) -> None:
    keep(database, "counter")
    with database.write() as connection:
        connection.execute(insert(projects).values(id="p", name="", created_ms=0))

    def count() -> None:
        for _ in range(20):
            with database.write() as connection:
                if not database.is_sqlite:
                    connection.execute(select(projects).with_for_update())
                held = connection.execute(select(projects.c.created_ms)).scalar_one()
                connection.execute(update(projects).values(created_ms=held + 1))

    writers = [threading.Thread(target=count) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with database.read() as connection:
        assert connection.execute(select(projects.c.created_ms)).scalar_one() == 80


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    keep(database, "old")
    with database.write() as connection:
        connection.execute(insert(secrets).values(name="new", value=b"1"))
        read = threading.Thread(target=lambda: found.extend(names(database)))
        found: list[str] = []
        read.start()
        read.join(timeout=10)
        assert not read.is_alive()
    assert found == ["old"]


def test_a_reader_sees_one_state_despite_concurrent_writes(database: Database) -> None:
    with database.read() as connection:
        before = connection.execute(select(func.count()).select_from(secrets)).scalar_one()
        keep(database, "new")
        assert connection.execute(select(func.count()).select_from(secrets)).scalar_one() == before == 0
    assert names(database) == ["new"]


def test_foreign_keys_are_kept(database: Database) -> None:
    with pytest.raises(exc.IntegrityError), database.write() as connection:
        connection.execute(insert(sequences).values(id=uuid4(), sequence="{}"))


# --- threads


async def test_work_does_not_block_the_loop(database: Database) -> None:
    here = threading.current_thread()
    there = await database.run(threading.current_thread)
    assert there is not here
    await asyncio.gather(*(database.run(keep, database, f"{number:02}") for number in range(20)))
    assert await database.run(names, database) == [f"{number:02}" for number in range(20)]


async def test_errors_of_the_work_reach_the_caller(database: Database) -> None:
    with pytest.raises(exc.IntegrityError):
        await database.run(keep, database, "twice", "twice")


# --- rows and ids


def test_ids_are_read_as_written_and_sort_by_their_bytes(database: Database) -> None:
    ids = [UUID(int=number << 64 | 7) for number in (3, 1, 2)]
    with database.write() as connection:
        connection.execute(insert(projects).values(no=1, id="p", name="", created_ms=0))
        columns = ["id", "project", "device", "priority", "origin", "status", "open", "jobs", "created_ms"]
        columns += ["updated_ms", "sequence_number", "record", "about"]
        rows = [[database.id(it), 1, "EMU", "M", "C", "P", True, 1, 5, 5, 1, b"\0r", b""] for it in ids]
        load(connection, batches, columns, rows)
    with database.read() as connection:
        found = connection.execute(select(batches.c.id, batches.c.record, batches.c.open).order_by(batches.c.id)).all()
    assert [tuple(row) for row in found] == [(it, b"\0r", True) for it in sorted(ids)]
    with database.read() as connection:
        one = connection.execute(select(batches.c.jobs).where(batches.c.id == ids[0])).scalar_one()
    assert one == 1


def test_many_rows_are_loaded_in_the_transaction(database: Database) -> None:
    rows = [(f"{number}", b"\0\xff\\x") for number in range(5000)]

    def fail() -> None:
        with database.write() as connection:
            load(connection, secrets, ["name", "value"], rows)
            assert connection.execute(select(func.count()).select_from(secrets)).scalar_one() == 5000
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(database) == []
    with database.write() as connection:
        load(connection, secrets, ["name", "value"], rows)
    with database.read() as connection:
        assert connection.execute(select(secrets.c.value).distinct()).scalars().all() == [b"\0\xff\\x"]


# --- errors


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ledger.db", "is not a valid database URL; expected, for example, sqlite:////"),
        ("mysql://user:hush@host/ledger", "is not a valid database URL; expected, for example, sqlite:////"),
        ("sqlite://", "has no file"),
        ("sqlite:///:memory:", "has no file"),
    ],
)
def test_an_unusable_url_is_refused_by_the_name_of_its_setting(url: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        parse_url(url)
    assert refused.value.field == "database_url"
    assert "hush" not in refused.value.message


@pytest.mark.parametrize("name", ["100%", "what?", "no#1", "%3F?a=b", "ä b", "a+b&c"])
def test_the_path_of_a_url_may_have_any_characters(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "ledger.db"
    url = sqlite_url(file)
    assert (sqlite_file(url), parse_url(url).database) == (file, str(file))
    with contextlib.closing(Database.open(OpenDatabase(url), create=True)) as database:
        upgrade(database)
        assert place(database) == url
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.stat().st_size


@pytest.mark.parametrize(
    "url", ["postgresql://u@h/d", "postgresql+psycopg2://u@h/d", "postgres://u@h/d", "sqlite:///x.db"]
)
def test_the_driver_of_the_url_is_replaced(url: str) -> None:
    assert parse_url(url).drivername in {"postgresql+psycopg", "sqlite+pysqlite"}


def test_only_the_owner_can_read_a_new_file(tmp_path: Path) -> None:
    database = Database.open(OpenDatabase(url=f"sqlite:///{tmp_path}/new/ledger.db"), create=True)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE things (id INTEGER)"))
        files = sorted(path.name for path in (tmp_path / "new").iterdir())
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    database.close()
    assert "ledger.db-wal" in files
    assert modes == {0o600}


def test_a_missing_file_is_unavailable_and_not_created_again(tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "ledger.db", tmp_path / "elsewhere.db"
    given = OpenDatabase(url=f"sqlite:///{file}")
    with contextlib.closing(Database.open(given, create=True)) as database:
        with database.write() as connection:
            connection.execute(text("CREATE TABLE things (id INTEGER)"))
        file.rename(elsewhere)
        for opened in (database, Database.open(given)):
            with pytest.raises(Unavailable, match="unable to open database file"), opened.read():
                pass
            assert not file.exists()
        elsewhere.rename(file)
        with database.write() as connection:
            connection.execute(text("INSERT INTO things VALUES (1)"))


def test_a_replaced_file_is_opened_again(tmp_path: Path) -> None:
    file, other = tmp_path / "ledger.db", tmp_path / "other.db"
    for path, value in ((file, 1), (other, 2)):
        with contextlib.closing(sqlite3.connect(path)) as made:
            made.execute("CREATE TABLE things (id INTEGER)")
            made.execute("INSERT INTO things VALUES (?)", (value,))
            made.commit()
    query = text("SELECT id FROM things")
    with contextlib.closing(Database.open(OpenDatabase(url=f"sqlite:///{file}"))) as database:
        with database.read() as connection:
            assert connection.execute(query).scalar_one() == 1
        other.replace(file)
        with database.read() as connection:
            assert connection.execute(query).scalar_one() == 2


def test_a_locked_file_is_unavailable_after_the_patience(tmp_path: Path) -> None:
    given = OpenDatabase(url=f"sqlite:///{tmp_path}/ledger.db", patience_s=0.05)
    one, other = Database.open(given, create=True), Database.open(given)
    with one.write(), pytest.raises(Unavailable, match="cannot be used: database is locked") as away, other.write():
        pass
    assert away.value.retryable
    one.close()
    other.close()


def test_a_file_that_is_not_a_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 100)
    database = Database.open(OpenDatabase(url=f"sqlite:///{tmp_path}/ledger.db"))
    with pytest.raises(Unavailable, match="file is not a database"), database.read():
        pass
    database.close()


def test_a_server_that_is_down_is_unavailable() -> None:
    database = Database.open(OpenDatabase(url="postgresql://u:hush@127.0.0.1:1/ledger", patience_s=1))
    with pytest.raises(Unavailable, match="the ledger's database cannot be used") as away, database.read():
        pass
    assert "hush" not in away.value.message
    database.close()


def test_the_pool_is_unavailable_if_all_connections_stay_in_use(ledger_url: str) -> None:
    database = Database.open(OpenDatabase(url=ledger_url, connections_max=1, patience_s=0.05))
    with database.read(), pytest.raises(Unavailable), database.read():
        pass
    database.close()


@pytest.mark.postgres
def test_a_statement_that_takes_too_long_is_unavailable(postgres_url: str) -> None:
    database = Database.open(OpenDatabase(url=postgres_url, statement_s=0.05))
    with pytest.raises(Unavailable, match="statement timeout"), database.read() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))
    database.close()


@pytest.mark.postgres
def test_a_server_that_was_down_is_used_again_without_a_restart() -> None:
    with PostgresServer() as server:
        database = Database.open(OpenDatabase(url=server.url(), patience_s=5))
        with database.write() as connection:
            connection.execute(text("CREATE TABLE things AS SELECT 7 AS number"))
        server.stop()
        with pytest.raises(Unavailable), database.read() as connection:
            connection.execute(text("SELECT 1"))
        server.start()
        with database.read() as connection:
            assert connection.execute(text("SELECT number FROM things")).scalar_one() == 7
        database.close()


@pytest.mark.postgres
def test_a_connection_that_breaks_in_a_transaction_is_unavailable(postgres_url: str) -> None:
    database = Database.open(OpenDatabase(url=postgres_url))

    def lose() -> None:
        with database.write() as connection:
            own = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with database.read() as other:
                other.execute(text("SELECT pg_terminate_backend(:own)"), {"own": own})
            connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        lose()
    with database.read() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    database.close()
