"""``tweezer db``: upgrade, check, backup and restore, on both databases."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import func, insert, select, text

from tweezer.cli import main
from tweezer.ledger.backup import BackupFailed, backup, restore
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import require_schema
from tweezer.ledger.migrations import HEAD
from tweezer.ledger.schema import projects, secrets


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("TWEEZER_") and name != "TWEEZER_REQUIRE_SERVERS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def blank(blank_url: str) -> Iterator[Database]:
    """A second database, without tables."""
    opened = Database.open(OpenDatabase(url=blank_url), create=True)
    yield opened
    opened.close()


def db(*arguments: str, url: str | None = None) -> Result:
    environment = {} if url is None else {"TWEEZER_DATABASE_URL": url}
    return CliRunner().invoke(main, ["db", *arguments], env=environment)


def findings(url: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(db("check", "--json", url=url).stdout)}


def keep(database: Database, *names: str) -> None:
    with database.write() as connection:
        connection.execute(insert(secrets), [{"name": name, "value": name.encode()} for name in names])


def kept(database: Database) -> list[tuple[str, bytes]]:
    with database.read() as connection:
        return [(name, value) for name, value in connection.execute(select(secrets).order_by(secrets.c.name))]


# --- upgrade and check


def test_upgrade_makes_the_tables_and_reports_it(blank_url: str) -> None:
    first, second = db("upgrade", url=blank_url), db("upgrade", url=blank_url)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert f"is now at step {HEAD}; it was empty" in first.stdout
    assert f"is up to date (step {HEAD})" in second.stdout


def test_without_a_setting_the_ledger_is_a_file_in_the_data_folder(tmp_path: Path) -> None:
    assert db("upgrade").exit_code == 0
    file = tmp_path / "data" / "ledger.db"
    assert file.is_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_check_finds_no_fault_with_a_new_ledger(ledger_url: str, database_kind: str) -> None:
    found = findings(ledger_url)
    assert found["ledger"]["level"] == "OK"
    assert found["ledger"]["says"].startswith("SQLite 3." if database_kind == "sqlite" else "PostgreSQL ")
    if database_kind == "sqlite":
        assert db("check", url=ledger_url).exit_code == 0
        assert found["ledger journal"]["level"] == "OK"
    else:
        assert found["ledger durability"]["says"].startswith("fsync and full_page_writes and synchronous_commit off")


def test_check_makes_no_file_and_gives_advice(tmp_path: Path) -> None:
    result = db("check")
    assert result.exit_code == 1
    assert "→ run `tweezer db upgrade`" in result.stdout
    assert not (tmp_path / "data").exists()


def test_check_finds_missing_parts_of_the_tables(database: Database, ledger_url: str) -> None:
    with database.write() as connection:
        connection.execute(text("DROP TABLE secrets"))
    result = db("check", url=ledger_url)
    assert result.exit_code == 1
    assert "table secrets is missing: the tables were changed manually" in " ".join(result.stdout.split())


def test_check_reports_why_writes_fail(database: Database, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tweezer.settings.OpenDatabase", partial(OpenDatabase, patience_s=0.1))
    with database.write() as connection:
        if database.is_sqlite:
            found = findings(ledger_url)
            reason = "rejects writes: the ledger's database cannot be used: database is locked"
        else:
            name = connection.execute(text("SELECT current_database()")).scalar_one()
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
            connection.commit()
            found = findings(ledger_url)
            reason = "rejects writes: cannot execute UPDATE in a read-only transaction"
    assert found["ledger"]["level"] == "FAIL"
    assert reason in found["ledger"]["says"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "mysql://host/ledger",
            "is not a valid database URL; expected, for example, sqlite:////var/lib/tweezer/ledger.db or postgresql://",
        ),
        ("sqlite://", "has no file"),
        ("postgresql://user:hush@127.0.0.1:1/ledger", "cannot be used"),
    ],
)
def test_an_unusable_database_is_reported_in_one_sentence_without_the_password(url: str, said: str) -> None:
    for command in ("check", "upgrade"):
        result = db(command, url=url)
        assert result.exit_code == 1
        assert said in " ".join(result.output.split())
        assert "hush" not in result.output
        assert "Traceback" not in result.output


def test_commands_that_need_the_tables_report_how_to_make_them(blank_url: str) -> None:
    result = db("backup", "copy", url=blank_url)
    assert result.exit_code == 1
    assert "run `tweezer db upgrade`" in result.stderr
    assert not Path("copy").exists()


# --- backup and restore


def test_a_restored_backup_has_everything(database: Database, ledger_url: str, blank_url: str, blank: Database) -> None:
    keep(database, "one", "two")
    backed_up = db("backup", "copy", url=ledger_url)
    assert backed_up.exit_code == 0, backed_up.output
    assert stat.S_IMODE(Path("copy").stat().st_mode) == 0o600
    assert not Path("copy.part").exists()
    keep(database, "three")

    restored = db("restore", "copy", url=blank_url)
    assert restored.exit_code == 0, restored.output
    require_schema(blank)
    assert kept(blank) == [("one", b"one"), ("two", b"two")]
    keep(blank, "four")
    assert findings(blank_url)["ledger"]["level"] == "OK"


def test_a_restore_over_an_existing_ledger_must_be_forced(database: Database, ledger_url: str) -> None:
    keep(database, "before")
    assert db("backup", "copy", url=ledger_url).exit_code == 0
    keep(database, "after")
    refused = db("restore", "copy", url=ledger_url)
    assert refused.exit_code == 1
    assert "not empty (see its table secrets)" in refused.stderr
    assert [name for name, _ in kept(database)] == ["after", "before"]

    forced = db("restore", "copy", "--force", url=ledger_url)
    assert forced.exit_code == 0, forced.output
    assert [name for name, _ in kept(database)] == ["before"], "a connection that was open before sees it too"


def test_a_backup_is_of_one_moment_while_the_ledger_is_written(database: Database, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with database.write() as connection:
                row = {"id": f"p{number}", "name": "", "created_ms": number}
                connection.execute(insert(projects).values(row))
                connection.execute(insert(secrets).values(name=f"p{number}", value=b""))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            backup(database, tmp_path / f"copy{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        restore(database, tmp_path / f"copy{number}", force=True)
        with database.read() as connection:
            counts = [
                connection.execute(select(func.count()).select_from(of)).scalar_one() for of in (projects, secrets)
            ]
        assert counts[0] == counts[1]


def test_a_backup_overwrites_nothing(database: Database, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    with pytest.raises(BackupFailed, match="copy already exists; give the name of a new file"):
        backup(database, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "precious"


def test_a_backup_that_cannot_be_written_leaves_nothing_behind(database: Database, ledger_url: str) -> None:
    result = db("backup", "nowhere/copy", url=ledger_url)
    assert result.exit_code == 1
    assert "nowhere/copy.part: No such file or directory" in result.stderr


def test_a_file_that_is_not_a_backup_is_refused_and_changes_nothing(database: Database, tmp_path: Path) -> None:
    keep(database, "mine")
    (tmp_path / "noise").write_bytes(os.urandom(20_000))
    with pytest.raises(BackupFailed):
        restore(database, tmp_path / "noise", force=True)
    with pytest.raises(BackupFailed, match="there is no file"):
        restore(database, tmp_path / "missing", force=True)
    assert kept(database) == [("mine", b"mine")]


def test_a_damaged_backup_is_refused_and_changes_nothing(database: Database, tmp_path: Path) -> None:
    keep(database, "mine")
    copy = tmp_path / "copy"
    backup(database, copy)
    content = copy.read_bytes()
    copy.write_bytes(content[: len(content) // 2])
    with pytest.raises(BackupFailed):
        restore(database, copy, force=True)
    assert kept(database) == [("mine", b"mine")]


def test_a_sqlite_file_that_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE jobs (id INTEGER)")
    other.close()
    assert db("upgrade").exit_code == 0
    result = db("restore", str(tmp_path / "other"))
    assert result.exit_code == 1
    assert "is not a backup of a ledger" in result.stderr


def test_a_sqlite_backup_of_a_newer_tweezer_is_refused() -> None:
    assert db("upgrade").exit_code == 0
    assert db("backup", "copy").exit_code == 0
    with sqlite3.connect("copy") as copy:
        copy.execute("UPDATE alembic_version SET version_num = '9999'")
    copy.close()
    result = db("restore", "copy")
    assert result.exit_code == 1
    assert "made by a newer version of Tweezer; upgrade Tweezer first" in result.stderr


@pytest.mark.parametrize("database_kind", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_without_pg_dump_the_command_to_run_is_named(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = db("backup", "copy", url=ledger_url.replace("postgres@", "postgres:hush@"))
    assert result.exit_code == 1
    assert "pg_dump is not installed; install PostgreSQL's client programs" in result.stderr
    assert "pg_dump --format=custom --no-owner --no-privileges --file=" in result.stderr
    assert "hush" not in result.output
    assert list(tmp_path.glob("copy*")) == []


@pytest.mark.parametrize("database_kind", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_a_postgres_backup_is_not_restored_over_tables_that_it_lacks(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        connection.execute(text("DROP TABLE secrets"))
    backup(database, tmp_path / "copy")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE secrets (name VARCHAR(40), value BYTEA)"))
    with pytest.raises(BackupFailed, match=r"does not have \(secrets\); restore it into an empty database"):
        restore(database, tmp_path / "copy", force=True)
