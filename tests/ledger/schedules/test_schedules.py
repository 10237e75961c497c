"""Schedules in the ledger: limits, names, changes at the same time, backups and what a template may be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert

from tweezer.ledger.backup import backup, restore
from tweezer.ledger.config import OpenDatabase, sqlite_url
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schedules.records import (
    SCHEDULES_MAX,
    Creator,
    ScheduleChange,
    ScheduleSettings,
    make_batch_id,
)
from tweezer.ledger.schedules.schedules import (
    change_schedule,
    create_schedule,
    find_schedule,
    list_schedules,
    pack_template,
    read_template,
    unpack_template,
)
from tweezer.ledger.schema import schedules
from tweezer.model.errors import Conflict, TweezerError
from tweezer.model.ids import created_s, split_job_id
from tweezer.model.messages import JobSpec, Limits
from tweezer.model.rules import Dependency, Rules, When
from tweezer.store.producers import Submission

TEMPLATE = pack_template(Submission(sequence="{}", jobs=[{"runs": 1}], device="EMU"))
ALICE = Creator("alice@lab")


def create(database: Database, name: str, *, project: str = "lab", identity: UUID | None = None) -> UUID:
    with database.write() as connection:
        settings = ScheduleSettings(name, every_s=60)
        return create_schedule(connection, identity, settings, TEMPLATE, project_id=project, creator=ALICE)


def fill(database: Database, count: int) -> None:
    """Copy the only schedule until there are so many."""
    with database.write() as connection:
        row = connection.execute(schedules.select()).one()._asdict()
        more = [row | {"id": uuid4(), "name": f"copy {number}"} for number in range(count - 1)]
        connection.execute(insert(schedules), more)


def test_concurrent_creates_do_not_exceed_the_limit(database: Database) -> None:
    create(database, "first")
    fill(database, SCHEDULES_MAX - 3)

    def attempt(number: int) -> bool:
        try:
            create(database, f"new {number}")
        except TweezerError as error:
            assert error.code == "too_many_schedules"
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(attempt, range(16))) == 3
    with database.read() as connection:
        assert len(list_schedules(connection, ["lab"])) == SCHEDULES_MAX
    create(database, "other", project="other")


def test_of_concurrent_creates_with_one_name_one_succeeds(database: Database) -> None:
    create(database, "first")

    def attempt(_: int) -> bool:
        try:
            create(database, "same")
        except Conflict as error:
            assert error.code == "exists"
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(attempt, range(4))) == 1


def test_of_concurrent_changes_of_one_revision_one_succeeds(database: Database) -> None:
    identity = create(database, "first")

    def attempt(number: int) -> bool:
        try:
            with database.write() as connection:
                change = ScheduleChange(revision=1, name=f"new {number}")
                change_schedule(connection, identity, change, project_ids=None)
        except Conflict as error:
            assert error.code == "changed"
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(attempt, range(4))) == 1
    with database.read() as connection:
        assert find_schedule(connection, identity, None).revision == 2


def test_a_template_keeps_all_fields_of_a_submission() -> None:
    parent = make_batch_id(uuid4(), "x", 0)
    given = Submission(
        sequence='{"a": 1}',
        jobs=[{"runs": 5, "variables": {"omega": [1.0, 2]}, "seed": 3}, JobSpec(sequence="{}")],
        device="EMU",
        priority="HIGH",
        open=True,
        name="n",
        tags=("a", "b"),
        backend_configuration="{}",
        configuration={"dt": 1},
        limits=Limits(job_timeout_s=5),
        rules=Rules(keep_s=5.0, depends_on=(Dependency(parent, When.ENDED),)),
        idempotency_key="k",
        batch_id=parent,
        user="u",
    )
    found = unpack_template(pack_template(given))
    assert found.jobs == [JobSpec(5, {"omega": [1.0, 2]}, 3), JobSpec(sequence="{}")]
    changed = {"jobs", "idempotency_key", "batch_id", "user"}
    kept = [name for name in Submission.__struct_fields__ if name not in changed]
    assert [getattr(found, name) for name in kept] == [getattr(given, name) for name in kept]
    assert (found.idempotency_key, found.batch_id, found.user) == ("", None, None)


def test_the_id_of_a_batch_follows_from_its_tick() -> None:
    schedule = uuid4()
    first = make_batch_id(schedule, "1795341602000", 1795341602000)
    assert first == make_batch_id(schedule, "1795341602000", 1795341602000)
    assert first != make_batch_id(uuid4(), "1795341602000", 1795341602000)
    assert first.version == 8
    assert split_job_id(first) == (first, 0)
    assert created_s(first) == 1795341602


def test_a_backup_has_the_schedules(tmp_path: Path) -> None:
    ledger = Database.open(OpenDatabase(sqlite_url(tmp_path / "ledger.db")), create=True)
    upgrade(ledger)
    identity = create(ledger, "nightly")
    backup(ledger, tmp_path / "backup.db")
    copy = Database.open(OpenDatabase(sqlite_url(tmp_path / "copy.db")), create=True)
    try:
        restore(copy, tmp_path / "backup.db")
        with copy.read() as connection, ledger.read() as other:
            assert find_schedule(connection, identity, None) == find_schedule(other, identity, None)
            assert read_template(connection, identity).jobs == [JobSpec(1)]
    finally:
        copy.close()
        ledger.close()


@pytest.mark.parametrize("name", ["a\nb", "", " a", "x" * 256])
def test_a_name_that_cannot_be_shown_is_rejected(database: Database, name: str) -> None:
    with pytest.raises(TweezerError, match=r"^name: "):
        create(database, name)
