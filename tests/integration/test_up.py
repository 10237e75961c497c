"""``tweezer up`` and its ledger: created before the processes start, written while they run, kept when they stop."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import psutil
import pytest
from tests.support.processes import NULL
from tests.support.waiting import PATIENCE_S, wait_until

from tweezer import connect
from tweezer.cli.local import owned
from tweezer.cli.local.ledger_setup import prepare_ledger
from tweezer.data_folder import running_environment
from tweezer.ledger.access.credentials import new_key
from tweezer.ledger.migrations import HEAD
from tweezer.model.errors import TweezerError
from tweezer.model.lifecycle import BatchStatus

ROOT = Path(__file__).parents[2]
DATA = "d ä 100%?#"
"""The name of the data folder."""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_any_server")]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``tweezer up`` on the folder of this name, with its output in ``log``; kill it at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(**settings: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
        with (tmp_path / "log").open("w") as log:
            started.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "tweezer.cli", "up", "--data", str(tmp_path / DATA)),
                        *("--port", "0", "--redis-port", "0", "--device", NULL, "--lanes", "1"),
                    ],
                    cwd=ROOT,
                    env=inherited | {f"TWEEZER_{name.upper()}": value for name, value in settings.items()},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    text=True,
                )
            )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def started(running: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """Wait until ``tweezer up`` is ready, and return the variables that it provides."""

    def is_up() -> bool:
        assert running.poll() is None, log.read_text(encoding="utf-8")
        return "Ctrl-C stops it all" in log.read_text(encoding="utf-8")

    wait_until(is_up, "tweezer up", within_s=2 * PATIENCE_S)
    return running_environment(log.parent / DATA)


def tweezer(variables: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tweezer.cli", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_well(variables: dict[str, str]) -> bool:
    """Return whether the doctor finds no fault; while the courier starts, it finds one."""
    done = subprocess.run(
        [sys.executable, "-m", "tweezer.cli", "doctor"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode == 0 and "recorder: active and up to date" in done.stdout


def holds(ledger: Path, expected: list[tuple[str, int]]) -> bool:
    """Return whether the batches in the ledger have these statuses and numbers of jobs."""
    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute("SELECT status, jobs FROM batches ORDER BY id").fetchall() == expected


def test_up_makes_a_ledger_that_records_and_is_kept(start: Start, tmp_path: Path) -> None:
    ledger, log = tmp_path / DATA / "ledger.db", tmp_path / "log"
    sequence = tmp_path / "sequence.json"
    sequence.write_text("{}")
    for round_ in (1, 2):
        running = start()
        variables = started(running, log)
        tweezer(variables, "submit", str(sequence), "--runs", "3", "--device", NULL, "--wait")
        wait_until(partial(holds, ledger, [("D", 1)] * round_))
        assert f"(step {HEAD})" in tweezer(variables, "db", "upgrade")
        wait_until(partial(is_well, variables))
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 0, log.read_text()


def test_commands_and_the_library_find_the_running_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, log, data = start(), tmp_path / "log", tmp_path / DATA
    variables = started(running, log)
    (tmp_path / "sequence.json").write_text("{}")
    for name in [name for name in os.environ if name.startswith("TWEEZER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(data))
    batch = tweezer({}, "submit", str(tmp_path / "sequence.json"), "--runs", "3", "--device", NULL, "--wait").split()[0]
    with connect() as queue:
        assert queue.batch(batch).record().status is BatchStatus.DONE
    password = urlsplit(variables["TWEEZER_REDIS_URL"]).password
    assert password
    assert password not in log.read_text()
    for process in (psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)):
        assert password not in " ".join(process.cmdline())
    curl = 'curl -sf -H "Authorization: Bearer $TWEEZER_API_KEY" "$TWEEZER_API_URL/api/v1/devices"'
    printed = next(line for line in log.read_text().splitlines() if line.startswith("  . "))
    answer = subprocess.run(
        ["env", "-i", f"PATH={os.environ['PATH']}", "sh", "-c", f"{printed}; {curl}"], capture_output=True, check=True
    )
    assert NULL in answer.stdout.decode()
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE_S) == 0
    assert not (data / "env").exists()


REPORT = """
import atexit, os, sys

def report():
    command = next((word for word in sys.argv if word in COMMANDS), None)
    if command is not None:
        found = sorted(name for name, module in sys.modules.items() if getattr(module, "__file__", None))
        with open(os.path.join(FOLDER, command), "w") as file:
            file.write(" ".join(found))

atexit.register(report)
"""
"""A ``sitecustomize``, with which each process writes at its end which modules it has imported."""

NEVER = {"alembic", "jwt", "matplotlib", "numpy", "pulser", "scipy"}
WEB = {"fastapi", "starlette", "uvicorn"}
PLAIN = {*NEVER, *WEB, "aiohttp", "cryptography.hazmat"}
UNUSED = {
    "up": {*PLAIN, "arq", "sqlalchemy"},
    "worker": {*PLAIN, "sqlalchemy"},
    "scheduler": PLAIN,  # it reads the schedules
    "recorder": PLAIN,
    "courier": {*NEVER, *WEB},
    "api": {*NEVER, "aiohttp"},
}
"""Process → heavy libraries that it does not need while it is idle."""


def test_idle_processes_import_no_heavy_library_that_they_do_not_need(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"FOLDER, COMMANDS = {str(tmp_path)!r}, {set(UNUSED)!r}\n{REPORT}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    running = start()
    started(running, tmp_path / "log")
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE_S) == 0
    imported = {command: set((tmp_path / command).read_text().split()) for command in UNUSED}
    assert all("msgspec" in modules for modules in imported.values())
    assert [(command, name) for command, unused in UNUSED.items() for name in unused & imported[command]] == []


def test_the_data_of_up_are_for_its_user_only(start: Start, tmp_path: Path) -> None:
    (tmp_path / DATA / "redis").mkdir(parents=True, mode=0o755)  # as earlier versions created it
    started(start(), tmp_path / "log")
    kept = [path for path in (tmp_path / DATA).rglob("*") if not path.is_socket()]
    assert any(path.name.startswith("appendonly") for path in kept)
    assert [path for path in kept if path.stat().st_mode & 0o077] == []


def test_up_does_not_start_on_a_ledger_of_a_newer_version(start: Start, tmp_path: Path, sqlite_template: Path) -> None:
    (tmp_path / DATA).mkdir()
    (tmp_path / DATA / "ledger.db").write_bytes(sqlite_template.read_bytes())
    with closing(sqlite3.connect(tmp_path / DATA / "ledger.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert start().wait(PATIENCE_S) == 1
    output = (tmp_path / "log").read_text()
    assert "at step 9999, which is newer" in output
    assert "Traceback" not in output


def test_a_new_redis_of_up_does_not_join_the_ledger_of_another_installation(
    start: Start, tmp_path: Path, sqlite_template: Path
) -> None:
    ledger = tmp_path / "ledger.db"
    ledger.write_bytes(sqlite_template.read_bytes())
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("INSERT INTO recorder VALUES ('tweezer', '1-0', 0)")
    assert start(database_url=f"sqlite:///{ledger}").wait(PATIENCE_S) == 1
    output = (tmp_path / "log").read_text()
    assert f"records another Redis, not the new one in {tmp_path / DATA}; unset it" in output


def test_the_key_of_another_installation_is_not_used(start: Start, tmp_path: Path) -> None:
    theirs = new_key()
    (tmp_path / "key").write_text(theirs)
    (tmp_path / "tweezer.toml").write_text(f'[api]\nkey = "{theirs}"\n')
    running = start(
        data_dir=str(tmp_path / "another"),
        api_key_file=str(tmp_path / "key"),
        config=str(tmp_path / "tweezer.toml"),
    )
    variables = started(running, tmp_path / "log")
    assert "ignoring TWEEZER_API_KEY_FILE of this shell" in (tmp_path / "log").read_text()
    assert variables["TWEEZER_API_KEY"] == (tmp_path / DATA / "api-key").read_text().strip() != theirs


def prepare(data: Path, redis_url: str = "redis://127.0.0.1:1/0", **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
    own = {"TWEEZER_DATA_DIR": str(data), "TWEEZER_REDIS_URL": redis_url}
    return prepare_ledger(inherited | own | variables, is_own=True)


@pytest.fixture
def _not_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start programs as on systems without a signal at the death of the parent."""
    monkeypatch.setattr(owned, "sys", SimpleNamespace(platform="darwin", executable=sys.executable))


@pytest.mark.usefixtures("_not_linux")
def test_the_ledger_is_prepared_on_other_systems(tmp_path: Path, real_redis_url: str) -> None:
    key = prepare(tmp_path / "data", real_redis_url)
    assert key == (tmp_path / "data" / "api-key").read_text().strip()
    assert (tmp_path / "data" / "ledger.db").exists()


@pytest.mark.usefixtures("_not_linux")
def test_a_program_ends_with_its_owner_on_other_systems() -> None:
    program = owned.start_owned([sys.executable, "-c", "import time; time.sleep(600)"])
    assert program.stdin is not None
    assert program.poll() is None
    program.stdin.close()  # as the system does when the owner ends
    assert program.wait(PATIENCE_S) == -signal.SIGKILL


def test_a_ledger_that_cannot_be_created_is_reported_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TweezerError) as caught:
        prepare(tmp_path, TWEEZER_DATABASE_URL=f"sqlite:///{tmp_path}/file/ledger.db")
    assert caught.value.message == f"{tmp_path}/file: File exists"
    assert capfd.readouterr().err == ""


def test_a_failure_to_prepare_the_ledger_is_reported_with_the_exit_status(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(7)")
    with pytest.raises(TweezerError, match="the program ended with status 7; see above"):
        prepare(tmp_path, PYTHONPATH=str(tmp_path))


@pytest.mark.postgres
def test_up_leaves_the_upgrade_of_a_database_server_to_its_operator(
    start: Start, tmp_path: Path, postgres_url: str
) -> None:
    assert start(database_url=postgres_url).wait(PATIENCE_S) == 1
    assert "has no tables yet; run `tweezer db upgrade`" in (tmp_path / "log").read_text()
