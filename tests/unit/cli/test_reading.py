"""Commands that only read create no files, and a ledger without tables counts as none."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from tweezer.cli import main
from tweezer.ledger.config import OpenDatabase, sqlite_url
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.queries.queries import Queries
from tweezer.model.errors import TweezerError

NOWHERE = "redis://127.0.0.1:1/0"

READING = (
    ("events",),
    ("keys", "list"),
    ("projects", "list"),
    ("users", "list"),
    ("webhooks", "list"),
    ("webhooks", "deliveries"),
    ("webhooks", "listen", "--port", "0"),
    ("dead-letters", "list"),
    ("db", "check"),
    ("devices",),
    ("status", "01a22a97-0b48-8b31-a35a-5f776a000000"),
    ("results", "01a22a97-0b48-8b31-a35a-5f776a000000"),
    ("doctor",),
)


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_command_that_only_reads_creates_no_file(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("TWEEZER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    result = CliRunner().invoke(main, ["--redis", NOWHERE, *arguments])
    assert result.exit_code == 1
    assert list(tmp_path.rglob("*")) == []


def test_a_ledger_without_tables_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    place = OpenDatabase(sqlite_url(file))
    assert Queries.open(place) is None
    assert not file.exists()
    file.touch()
    assert Queries.open(place) is None
    with closing(Database.open(place)) as database:
        upgrade(database)
    queries = Queries.open(place)
    assert queries is not None
    queries.close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(TweezerError, match="newer"):
        Queries.open(place)
