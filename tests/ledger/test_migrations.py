"""The migrations of the ledger, and the errors of a process whose tables are at another step."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import ColumnClause, column, insert, select, table, text

from tweezer.ledger import migrate, migrations
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import list_keys
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import differences, require_schema, schema_version, upgrade
from tweezer.ledger.migrations import HEAD
from tweezer.ledger.schema import batch_names, batches, jobs, keys, metadata, projects, secrets
from tweezer.model.errors import TweezerError
from tweezer.model.ids import job_id, new_batch_id, short_id
from tweezer.model.messages import BatchDoc, encode_doc

_SQLITE = "SELECT type, name, sql FROM sqlite_master WHERE tbl_name <> 'alembic_version' ORDER BY type, name"
_COLUMNS = """
    SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default, is_identity
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
    ORDER BY table_name, ordinal_position
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
_CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
"""


@pytest.fixture
def blank(blank_url: str) -> Iterator[Database]:
    opened = Database.open(OpenDatabase(url=blank_url), create=True)
    yield opened
    opened.close()


def all_about(database: Database) -> list[list[tuple[object, ...]]]:
    """Return everything that the database knows about its tables."""
    queries = [_SQLITE] if database.is_sqlite else [_COLUMNS, f"{_INDEXES} ORDER BY 1", f"{_CONSTRAINTS} ORDER BY 1, 2"]
    with database.read() as connection:
        found = [[tuple(row) for row in connection.execute(text(query))] for query in queries]
    return [[(kind, name, *definitions(kind, sql)) for kind, name, sql in found[0]]] if database.is_sqlite else found


def definitions(kind: str, sql: str | None) -> list[str]:
    """Return the columns and constraints of a table of SQLite, sorted: an added column is at the end."""
    words = " ".join((sql or "").split())
    if kind != "table":
        return [words]
    head, _, rest = words.partition("(")
    body, _, tail = rest.rpartition(")")
    return [head, *sorted(part.strip() for part in re.split(r",(?![^(]*\))", body)), tail]


def set_step(database: Database, step: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :step"), {"step": step})


def test_the_steps_make_exactly_the_tables_of_the_schema(blank: Database, database: Database) -> None:
    with blank.write() as connection:
        metadata.create_all(connection)
    assert all_about(database) == all_about(blank)


def test_the_newest_step_is_the_one_that_is_required() -> None:
    (folder,) = migrations.__path__
    steps = ScriptDirectory(folder)
    assert steps.get_current_head() == HEAD
    assert [step.revision for step in steps.walk_revisions()] == sorted(
        (step.revision for step in steps.walk_revisions()), reverse=True
    ), "steps are numbered in their order: what is newer is found by comparing"


def test_an_upgrade_makes_the_tables_and_a_second_one_changes_nothing(blank: Database) -> None:
    assert upgrade(blank) is None
    require_schema(blank)
    made = all_about(blank)
    assert upgrade(blank) == HEAD
    assert all_about(blank) == made
    assert differences(blank) == []


def test_upgrades_at_the_same_time_make_the_tables_once(blank: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: upgrade(blank), range(4)))
    assert sorted(found, key=str) == [HEAD] * 3 + [None]
    assert differences(blank) == []


@pytest.fixture
def next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add a step with this body, as a later version of Tweezer would."""

    def add(body: str) -> None:
        steps = tmp_path / "100%"
        shutil.copytree(migrations.__path__[0], steps)
        (steps / "versions" / "9999_next.py").write_text(
            f"from alembic import op\nrevision, down_revision = '9999', '{HEAD}'\ndef upgrade():\n    {body}\n"
        )
        monkeypatch.setattr(migrate, "_STEPS", steps)
        monkeypatch.setattr(migrate, "HEAD", "9999")

    return add


def test_an_upgrade_keeps_what_the_tables_hold(database: Database, next_step: Callable[[str], None]) -> None:
    with database.write() as connection:
        connection.execute(insert(secrets).values(name="kept", value=b"1"))
    next_step("op.execute('ALTER TABLE secrets ADD COLUMN more INTEGER')")
    with pytest.raises(TweezerError, match="9999 is required"):
        require_schema(database)
    assert upgrade(database) == HEAD
    require_schema(database)
    with database.read() as connection:
        assert connection.execute(text("SELECT name, more FROM secrets")).all() == [("kept", None)]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch, blank: Database) -> Callable[[str], None]:
    """Bring an empty database to an older step."""

    def bring(step: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(migrate, "HEAD", step)
            upgrade(blank)

    return bring


def test_keys_of_the_role_worker_become_metrics_keys(blank: Database, at_step: Callable[[str], None]) -> None:
    at_step("0004")
    with blank.write() as connection:
        rows = [
            {"id": role, "digest": b"", "kind": "K", "role": role, "name": "k", "created_ms": 1}
            for role in ("user", "operator", "worker")
        ]
        connection.execute(insert(keys), rows)
    upgrade(blank)
    with blank.read() as connection:
        roles = {key.id: key.role for key in list_keys(connection)}
    assert roles == {"user": Role.USER, "operator": Role.OPERATOR, "worker": Role.METRICS}


def test_batches_of_an_older_ledger_get_their_names(blank: Database, at_step: Callable[[str], None]) -> None:
    at_step("0005")
    docs = {new_batch_id(): BatchDoc("EMU", name=name) for name in ("a sweep", None, "with a \0", *"x" * 2500)}
    with blank.write() as connection:
        connection.execute(insert(projects).values(no=1, id="a", name="a", created_ms=1))
        row = {"project": 1, "device": "EMU", "priority": "M", "origin": "C", "status": "D", "open": False, "jobs": 0}
        times = {"created_ms": 1, "updated_ms": 1, "sequence_number": 1, "record": b""}
        connection.execute(
            insert(batches),
            [{"id": identity, **row, **times, "about": encode_doc(doc)} for identity, doc in docs.items()],
        )
        damaged = new_batch_id()
        connection.execute(insert(batches).values(id=damaged, **row, **times, about=b"\xff"))
    upgrade(blank)
    found = {kind: dict[UUID, str]() for kind in "SN"}
    with blank.read() as connection:
        for row_ in connection.execute(select(batch_names)):
            found[row_.kind][row_.batch] = row_.name
    assert found["S"] == {identity: short_id(identity) for identity in (*docs, damaged)}
    assert found["N"] == {identity: doc.name.replace("\0", "") for identity, doc in docs.items() if doc.name}


def test_batches_of_an_older_ledger_get_the_amounts_of_their_jobs(
    blank: Database, at_step: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step("0008")
    full, empty = new_batch_id(), new_batch_id()
    state = "{} 1 1790000000000001 5 9 1 {} - - - - - - - - -"
    times = {"created_ms": 1, "updated_ms": 1, "origin": "C", "priority": "M", "device": "EMU", "project": 1}
    row = {"status": "D", "open": False, "jobs": 0, "sequence_number": 1, "record": b"", "about": b"", **times}
    states = [("D", 10, state.format("D", 250)), ("E", None, state.format("E", 50)), ("P", 7, None), ("E", 1, "E")]
    with blank.write() as connection:
        connection.execute(insert(projects).values(no=1, id="a", name="a", created_ms=1))
        old: list[ColumnClause[Any]] = [column(name, batches.c[name].type) for name in ("id", *row)]
        connection.execute(insert(table("batches", *old)), [{"id": identity, **row} for identity in (full, empty)])
        connection.execute(
            insert(jobs),
            [
                {"id": job_id(full, index), "status": status, "runs": runs, "state": words, "failed": False}
                | {"spec": b"", **times}
                for index, (status, runs, words) in enumerate(states)
            ],
        )
    step = importlib.import_module("tweezer.ledger.migrations.versions.0009_tasks")
    monkeypatch.setattr(step, "_PAGE", 3)  # so that the jobs of the batch are on two pages
    upgrade(blank)
    with blank.read() as connection:
        columns = (batches.c.id, batches.c.failed, batches.c.shots, batches.c.device_ms, batches.c.archived_ms)
        found = {row.id: tuple(row)[1:] for row in connection.execute(select(*columns))}
        counted = connection.execute(text("SELECT project, device, status, count FROM counters WHERE kind = 'T'")).all()
    assert found == {full: (2, 19, 300, None), empty: (0, 0, 0, None)}
    assert sorted(map(tuple, counted)) == [(1, "EMU", "F", 1), (1, "EMU", "S", 1)]


def test_an_upgrade_that_fails_changes_nothing(database: Database, next_step: Callable[[str], None]) -> None:
    made = all_about(database)
    next_step("op.execute('CREATE TABLE half (id INTEGER)'); raise RuntimeError('no further')")
    with pytest.raises(RuntimeError, match="no further"):
        upgrade(database)
    assert schema_version(database) == HEAD
    assert all_about(database) == made


def test_a_database_with_tables_of_another_program_is_refused(blank: Database) -> None:
    with blank.write() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
    with pytest.raises(TweezerError, match=r"did not create \(jobs\); set TWEEZER_DATABASE_URL to an empty database"):
        upgrade(blank)


def test_other_tables_may_exist_beside_those_of_the_ledger(blank: Database) -> None:
    with blank.write() as connection:
        connection.execute(text("CREATE TABLE notes (id INTEGER)"))
    upgrade(blank)
    assert differences(blank) == []


def test_a_database_without_tables_is_refused_with_advice(blank: Database) -> None:
    with pytest.raises(TweezerError, match=r"\(\w+://.+\) has no tables yet; run `tweezer db upgrade`") as refused:
        require_schema(blank)
    assert refused.value.code == "schema"


def test_tables_of_an_older_step_are_refused_with_advice(database: Database) -> None:
    set_step(database, "0000")
    with pytest.raises(TweezerError, match=f"at step 0000, but {HEAD} is required; run `tweezer db upgrade`"):
        require_schema(database)


def test_tables_of_a_newer_step_are_refused_and_left_alone(database: Database) -> None:
    set_step(database, "9999")
    with pytest.raises(TweezerError, match=r"at step 9999, which is newer.*; upgrade Tweezer"):
        require_schema(database)
    with pytest.raises(TweezerError, match=r"at step 9999, which is newer.*; upgrade Tweezer"):
        upgrade(database)
    assert schema_version(database) == "9999"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP TABLE secrets", "table secrets is missing"),
        ("ALTER TABLE batches DROP COLUMN about", "column batches.about is missing"),
        ("DROP INDEX ix_batches_parent", "index ix_batches_parent is missing or different"),
    ],
)
def test_differences_of_the_tables_are_listed(database: Database, statement: str, said: str) -> None:
    with database.write() as connection:
        connection.execute(text(statement))
    assert differences(database) == [said]


def test_an_additional_index_of_an_operator_is_not_a_difference(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("CREATE INDEX mine ON batches (sequence_number)"))
    assert differences(database) == []
