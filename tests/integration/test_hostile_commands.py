"""Every command with wrong values for each option and argument: one sentence names it, and nothing changes.

Commands and parameters come from click, so that new ones are tested without being listed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import click
import pytest
import sqlalchemy
from click.testing import CliRunner, Result
from tests.support.effort import FULL
from tests.support.hostile_values import DEPTH, TEXTS

from tweezer.cli import main
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.access.users import create_user
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.schedules.records import Creator, ScheduleSettings
from tweezer.ledger.schedules.schedules import create_schedule, pack_template
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec
from tweezer.store.connection import Connect, Store
from tweezer.store.producers import Submission

DEVICE = "NULL"
SOON_S = 20.0
LONG = 3000
"""A message with more characters is too long to read."""

VALUES = {
    **TEXTS,
    "half a surrogate pair": os.fsdecode(b"a\xed\xa0\x80b"),  # as Python decodes it from a shell
    "NaN": "NaN",
    "1e400": "1e400",
    "a depth of 10,000": "[" * DEPTH,
    "a word": "abc",
    "a negative number": "-7",
}
NEVER_ACCEPTED = ("NUL", "ESC", "half a surrogate pair")
ENDLESS = {"demo", "up", "worker", "recorder", "courier", "scheduler", "api", "qpu-sim", "webhooks listen"}
"""Commands that run until a signal if they accept the value."""

NO_QUESTIONS = {"delete", "projects delete", "schedules delete", "webhooks remove", "dead-letters drop"}
GIVEN = {
    "submit": ["--device", DEVICE, "--runs", "1"],
    "schedules create": ["--device", DEVICE, "--runs", "1", "--every", "1h"],
    "add": ["--runs", "1"],
    "users create": ["--generate"],
    "users password": ["--generate"],
    "cancel": ["--all"],
    "pause": ["--device", DEVICE],
    "change": ["--tag", "a"],
    "projects limit": ["--queued-jobs", "5"],
}
SHOWN = {"NUL": "\\x00", "ESC": "\\x1b", "half a surrogate pair": "\\udced", "U+202E": "\\u202e"}
STATES = ("no job has ended yet", "the ledger is not empty")
"""Reasons for which a command may fail before it reads a value."""


class Command(NamedTuple):
    """A command. It is called with ``words``, its own arguments, and ``after``."""

    name: str
    command: click.Command
    words: tuple[str, ...]
    after: tuple[str, ...] = ()


class Stuck(Exception):
    """A command did not end in time."""


class Terminal:
    """Commands on a queue and a ledger with little content."""

    def __init__(self, url: str, database_url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.database_url = database_url
        self.batch = str(asyncio.run(self._furnish()))
        database = Database.open(OpenDatabase(database_url))
        with database.write() as connection:
            create_project(connection, "Default", "default")
            create_user(connection, "ada", None)
            template = pack_template(Submission(sequence="{}", jobs=[{"runs": 1}], device=DEVICE))
            hourly = ScheduleSettings("hourly", every_s=3600)
            create_schedule(connection, None, hourly, template, project_id="default", creator=Creator("ada"))
        database.close()
        self.endpoint = json.loads(self.run("webhooks", "add", "https://hooks.example.org/", "--json").stdout)["id"]

    async def _furnish(self) -> Any:
        about = {"adapter": "null", "exclusive": 0, "max_runs": 1000, "checks_sequence": 0}
        worker = {"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1}
        async with Store.open(Connect(self.url)) as store:
            await store.redis.flushdb()
            await store.tickets.heartbeat("w", DEVICE, ttl_s=600, about_device=about, about_worker=worker)
            doc = BatchDoc(device=DEVICE, sequence="{}")
            return await store.commands.submit(new_batch_id(), "default", doc, [JobSpec(runs=1)], open=True)

    def furnish(self) -> None:
        self.batch = str(asyncio.run(self._furnish()))

    def valid(self, parameter: click.Parameter) -> list[str]:
        """Return a valid value for a required parameter."""
        values = {
            "batch": self.batch,
            "batches": self.batch,
            "job": f"{self.batch}/0",
            "sequence_file": str(self.folder / "sequence.json"),
            "device": DEVICE,
            "name": "ada",
            "project": "default",
            "kept_s": "30d",
            "key": "abc",
            "window": "5f3a90c1",
            "url": "https://hooks.example.org/",
            "file": str(self.folder / "no-such.tar"),
            "endpoint_id": self.endpoint,
            "type_": "job.done",
            "begins": "2040-01-31T08:00",
            "ends": "2040-01-31T09:00",
            "reason": "new lens",
            "letters": "1",
            "shell": "bash",
            "schedule": "hourly",
            "delivery": "5f0c6b0e-3f1a-4c1e-9a41-0f6b5d7e8c21",
        }
        return [values[str(parameter.name)]]

    def arguments(self, command: Command, wrong: click.Parameter, value: str) -> list[str]:
        """Return the arguments of a call in which only the parameter ``wrong`` may be invalid."""
        options, arguments = [], []
        for parameter in command.command.params:
            values = [value] if parameter is wrong else self.valid(parameter) if parameter.required else []
            if isinstance(parameter, click.Option):
                options += [word for each in values for word in (max(parameter.opts, key=len), each)]
            else:
                arguments += values
        return [*command.words, *GIVEN.get(command.name, ()), *options, "--", *arguments, *command.after]

    def run(self, *words: str, before: tuple[str, ...] = ()) -> Result:
        environment = {"TWEEZER_DATABASE_URL": self.database_url, "TWEEZER_DATA_DIR": str(self.folder / "data")}
        signal.setitimer(signal.ITIMER_REAL, SOON_S)
        try:
            return CliRunner(env=environment).invoke(main, ["--redis", self.url, *before, *words], input="n\n")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def everything(self) -> Any:
        return asyncio.run(self._everything())

    async def _everything(self) -> dict[Any, Any]:
        held: dict[Any, Any] = {}
        async with Store.open(Connect(self.url)) as store:
            redis: Any = store.redis
            for key in await redis.keys("*"):
                held[key] = await redis.dump(key)
        database = Database.open(OpenDatabase(self.database_url))
        with database.read() as connection:
            for table in sqlalchemy.inspect(connection).get_table_names():
                held[table] = connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).fetchall()  # noqa: S608
        database.close()
        held["files"] = sorted(str(path) for path in self.folder.rglob("*") if not path.name.endswith(("-wal", "-shm")))
        return held


@pytest.fixture
def terminal(
    real_redis_url: str, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Terminal]:
    for name in os.environ:
        if name.startswith("TWEEZER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sequence.json").write_text("{}", encoding="utf-8")

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Stuck

    before = signal.signal(signal.SIGALRM, end)
    yield Terminal(real_redis_url, f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'ledger.db')}", tmp_path)
    signal.signal(signal.SIGALRM, before)


def commands() -> Iterator[Command]:
    context = click.Context(main)

    def walk(command: click.Command, name: str, words: tuple[str, ...]) -> Iterator[Command]:
        if not isinstance(command, click.Group):
            yield Command(name, command, words)
            return
        if name and (given := [it for it in command.params if isinstance(it, click.Argument)]):
            yield Command(name, command, words, ("list",))
            words = (*words, *(DEVICE for _ in given))
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from walk(found, f"{name} {inner}".lstrip(), (*words, inner))

    yield from walk(main, "", ())


def names(parameter: click.Parameter) -> set[str]:
    """Return the names that a message may use for the parameter."""
    if isinstance(parameter, click.Option):
        words = {*parameter.opts}
    else:
        shown = re.findall(r"\w+", parameter.make_metavar(click.Context(main)))  # of [BATCH…|DEVICE]
        words = {*shown, *(word.lower() for word in shown)}
    if parameter.name in ("batch", "batches"):
        words.add("batch_id")
    return {*words, *(word.lstrip("-").replace("-", "_") for word in words), str(parameter.name)}


def complaint(command: Command, parameter: click.Parameter, name: str, value: str, ran: Result) -> str:
    """Describe what is wrong with the outcome of the call, or return ''."""
    is_path = isinstance(parameter.type, (click.Path, click.File))
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        return f"raised {type(ran.exception).__name__}"
    if ran.exit_code in (0, 130) or (ran.exit_code == 1 and not ran.stderr):  # `doctor` has found problems
        return "was accepted" if name in NEVER_ACCEPTED and not is_path else ""
    if ran.exit_code not in (1, 2):
        return f"exited with {ran.exit_code}"
    if "Traceback" in ran.stderr or "bug" in ran.stderr:
        return "failed"
    if len(ran.stderr) > LONG:
        return f"has a message of {len(ran.stderr)} characters"
    error = ran.stderr.strip().splitlines()[-1]
    shown = SHOWN.get(name, value)[:20]
    if any(word in error for word in names(parameter)) or (shown and shown in error):
        return ""
    if (is_path and not value) or any(state in error for state in STATES):
        return ""
    return "is not named"


@pytest.mark.timeout(900 if FULL else 300)
def test_a_hostile_value_is_stored_unchanged_or_refused_with_its_parameter(terminal: Terminal) -> None:
    complaints: list[str] = []
    seen: set[tuple[str, str]] = set()
    calls = 0
    for command in commands():
        before = terminal.everything()
        for parameter in command.command.params:
            if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.hidden):
                continue  # hidden: a global option, which every command accepts
            values = dict(VALUES)
            known = (str(parameter.name), parameter.type.name)
            if not FULL and known in seen:
                name = list(VALUES)[len(command.name) % len(VALUES)]
                values = {name: VALUES[name]}
            seen.add(known)
            if isinstance(parameter.type, (click.Path, click.File)):
                values.pop("NUL", None)  # a shell cannot pass it
                if command.name in ENDLESS:
                    continue
            if command.name in ENDLESS:
                wrong = (*NEVER_ACCEPTED, "NaN", "1e400") if "float" in parameter.type.name else NEVER_ACCEPTED
                values = {name: values[name] for name in wrong if name in values}
            for name, value in values.items():
                ran = terminal.run(*terminal.arguments(command, parameter, value))
                calls += 1
                if problem := complaint(command, parameter, name, value, ran):
                    what = f"{command.name}: {parameter.opts[0]} = {name} {problem}"
                    complaints.append(f"{what}: {ran.output[-300:]!r} {ran.exception!r}"[:600])
                if ran.exit_code in (0, 130):
                    terminal.furnish()
                    before = terminal.everything()
        if terminal.everything() != before:
            complaints.append(f"{command.name} refuses the values, but changes something")
    assert calls > 500
    assert not complaints, "\n".join(complaints)
