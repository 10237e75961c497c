"""The commands for users over HTTP with a key, and the errors of the commands for operators there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from tests.support.processes import NULL, QUICK, Process, make_key
from tests.support.redis_users import as_user
from tests.support.waiting import wait_until

from tweezer.cli import main
from tweezer.model.ids import short_id
from tweezer.store.acl import RedisUser

Run = Callable[..., Result]


@pytest.fixture
def api(real_redis_url: str, tmp_path: Path, sqlite_template: Path) -> Iterator[str]:
    """The URL of an API with a worker for the null device."""
    shutil.copy(sqlite_template, tmp_path / "ledger.db")
    started = []
    for name, user, more in (
        ("api", RedisUser.API, {"data_dir": tmp_path, "api_port": 0}),
        ("worker", RedisUser.WORKER, {"worker_device": NULL, "worker_lanes": 2}),
    ):
        settings = {**QUICK, "redis_url": as_user(real_redis_url, user), **more}
        started.append(Process([name], settings, tmp_path / f"{name}.log"))
    events = ("api.listening", "worker.started")
    for process, event in zip(started, events, strict=True):
        wait_until(lambda process=process, event=event: bool(process.logged(event)) or not process.alive)  # type: ignore[misc]
    yield str(started[0].logged("api.listening")[0]["url"])
    for process in started:
        process.kill()


@pytest.fixture
def run(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command of a user who has the URL and a file with the key, and nothing else."""
    file = tmp_path / "key"
    file.write_text(f"{make_key(tmp_path, 'ours')}\n")
    for name in ("REDIS_URL", "API_KEY", "API_KEY_FILE", "PROJECT_ID", "API_CA_FILE"):
        monkeypatch.delenv(f"TWEEZER_{name}", raising=False)
    monkeypatch.setenv("TWEEZER_API_URL", api)
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(tmp_path / "nothing here"))

    def call(*arguments: str, fails: bool = False, input: str | None = None) -> Result:
        ran = CliRunner().invoke(main, ["--key-file", str(file), *arguments], input=input)
        assert (ran.exit_code != 0) is fails, ran.output
        return ran

    return call


def test_a_user_with_a_key_needs_no_access_to_redis(run: Run, tmp_path: Path) -> None:
    jobs = ("--job", "runs=3", "--job", "runs=5")
    batch = run("submit", "-", "--device", NULL, *jobs, "--wait", input="{}").stdout.split()[0]
    status = json.loads(run("status", batch, "--json").stdout)
    assert (status["status"], status["counts"]["DONE"]) == ("DONE", 2)
    assert "DONE" in run("status", batch).stdout
    assert "2/2 jobs" in run("watch", batch).stdout
    found = json.loads(run("results", batch, "--json").stdout)
    assert [job["counter"] for job in found["jobs"]] == [{"0": 3}, {"0": 5}]
    types = [json.loads(line)["type"] for line in run("events", batch, "--json").stdout.splitlines()]
    assert (types[0], types[-1], types.count("job.done")) == ("batch.created", "batch.done", 2)
    assert set(types) <= {json.loads(line)["type"] for line in run("events", "--json").stdout.splitlines()}
    lines = [json.loads(line) for line in run("export", batch).stdout.splitlines()]
    assert [line["type"] for line in lines] == ["batch", "job", "job"]
    assert lines[1]["result"]["counter"] == {"0": 3}
    assert NULL in run("devices").stdout
    assert not (tmp_path / "nothing here").exists()


def test_the_attempts_of_a_job_are_shown(run: Run) -> None:
    batch = run("submit", "-", "--device", NULL, "--job", "runs=1,sleep_s=0.3", "--wait", input="{}").stdout.split()[0]
    (line,) = run("attempts", batch).stdout.splitlines()[1:]
    assert line.split()[0] == "1"
    assert line.endswith(" done")
    (attempt,) = json.loads(run("attempts", f"{batch}/0", "--json").stdout)
    assert (attempt["number"], attempt["outcome"], attempt["fault"]) == (1, "done", None)
    assert attempt["duration_s"] >= 0
    later = ("--not-before", "2999-01-01T00:00")
    pending = run("submit", "-", "--device", NULL, "--job", "runs=1", *later, input="{}").stdout.split()[0]
    assert run("attempts", pending).stderr == "The job has not begun.\n"
    run("cancel", pending)
    assert "there is no job" in run("attempts", f"{batch}/7", fails=True).stderr


def test_a_batch_is_filled_paused_and_cancelled(run: Run) -> None:
    batch = run("submit", "-", "--device", NULL, "--open", input="{}").stdout.strip()
    assert run("pause", batch).stdout == f"{short_id(UUID(batch))} paused\n"
    assert run("add", batch, "--job", "runs=1", "--job", "runs=1").stdout == "0\n"
    assert run("cancel", batch, "--job", "1", "--by", "alice").stdout == "job 1 canceled\n"
    assert "alice (key " in run("status", batch).stdout
    run("resume", batch)
    run("close", batch)
    assert "not all jobs" in run("watch", batch, fails=True).output
    assert "has ended" in run("cancel", batch, fails=True).output


def test_commands_for_operators_name_the_role_they_need(run: Run, api: str) -> None:
    assert "use a key with the role operator" in run("workers", fails=True).output
    assert "use a key with the role operator" in run("pause", NULL, "--reason", "x", fails=True).output


def test_commands_that_need_redis_explain_it(
    run: Run, api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(tmp_path))  # it has a ledger
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tweezer.toml").write_text('[redis]\nurl = "redis://127.0.0.1:9/0"\n')
    output = run("projects", "delete", "ours", "--yes", fails=True).output
    assert f"this command is for operators: it needs Redis itself, not the API at {api}" in output


def test_no_option_takes_the_key_itself(run: Run) -> None:
    """Other users of the machine see the arguments."""
    assert "--key-file" in run("--help").stdout
    assert "--key " not in run("--help").stdout
    assert "No such option" in run("--key", "twz_x", "devices", fails=True).output


def test_options_exclude_each_other_and_a_missing_key_is_explained(
    run: Run, api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = CliRunner()
    both = runner.invoke(main, ["--api", api, "--redis", "redis://127.0.0.1", "devices"])
    assert (both.exit_code, "either --api or --redis" in both.output) == (2, True)
    without = runner.invoke(main, ["devices"])
    assert (without.exit_code, "key: is missing" in without.output) == (1, True)
    monkeypatch.delenv("TWEEZER_API_URL")
    useless = runner.invoke(main, ["--key-file", str(tmp_path / "key"), "devices"])
    assert (useless.exit_code, "give its URL with --api" in useless.output) == (1, True)
    monkeypatch.setenv("TWEEZER_API_URL", api)
    for given, named in ((["--api", "NaN"], "--api: has no"), ([], "TWEEZER_API_URL: has no")):
        monkeypatch.setenv("TWEEZER_API_URL", "" if given else "NaN")
        wrong = runner.invoke(main, [*given, "devices"])
        assert (wrong.exit_code, named in wrong.output) == (1, True)
    monkeypatch.setenv("TWEEZER_API_URL", api)
    lost = runner.invoke(main, ["--key-file", str(tmp_path / "lost"), "devices"])
    assert (lost.exit_code, "--key-file: " in lost.output) == (1, True)
