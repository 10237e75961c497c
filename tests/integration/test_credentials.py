"""Credentials in running processes: revoked keys, log-ins, the commands, and the key of ``tweezer up``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from tests.support.processes import NULL, Site
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, until, wait_until

from tweezer.cli import main
from tweezer.data_folder import running_environment
from tweezer.ledger.access.credentials import new_key
from tweezer.store.acl import RedisUser
from tweezer.store.guards import FAILURES_MAX, CountedBy

ROOT = Path(__file__).parents[2]
DEVICES = "/api/v1/devices"
PASSWORD = "correct horse battery"
FORM = {"client_id": "local", "grant_type": "password", "realm": "local", "audience": "local"}


class Setting:
    """Two APIs with one ledger and one Redis, and the command line on the same."""

    def __init__(self, site: Site, urls: list[str], environment: dict[str, str]) -> None:
        self.site = site
        self.urls = urls
        self._environment = environment
        self.http = httpx.AsyncClient(timeout=PATIENCE_S)

    def tweezer(self, *arguments: str, input: str | None = None) -> str:
        ran = CliRunner(env=self._environment).invoke(main, arguments, input=input)
        assert ran.exit_code == 0, ran.output
        return ran.stdout.strip()

    def json(self, *arguments: str) -> Any:
        return json.loads(self.tweezer(*arguments, "--json"))

    async def statuses(self, key: str) -> set[int]:
        """Return the statuses of a request to each of the APIs."""
        headers = {"Authorization": f"Bearer {key}"}
        return {(await self.http.get(f"{url}{DEVICES}", headers=headers)).status_code for url in self.urls}

    async def ends_within(self, key: str, seconds: float) -> None:
        """Check that the key, which was just revoked, is refused after this time."""
        began = time.monotonic()

        async def ended() -> bool:
            return await self.statuses(key) == {401}

        await until(ended, "the end of a key")
        assert time.monotonic() - began < seconds

    async def log_in(self, at: int = 0, **form: str) -> httpx.Response:
        return await self.http.post(f"{self.urls[at]}/oauth/token", data=FORM | form)


@pytest.fixture
async def setting(real_redis_url: str, ledger_url: str, tmp_path: Path) -> AsyncIterator[Setting]:
    settings = {"database_url": ledger_url, "data_dir": tmp_path / "data"}
    async with Site(real_redis_url, tmp_path, **settings) as site:
        urls = [(await site.api())[1] for _ in range(2)]
        environment = {
            "TWEEZER_REDIS_URL": as_user(real_redis_url, RedisUser.OPERATOR),
            "TWEEZER_DATABASE_URL": ledger_url,
        }
        setting = Setting(site, urls, environment)
        setting.tweezer("projects", "create", "Lab", "--id", "lab")
        yield setting
        await setting.http.aclose()


async def test_a_key_is_revoked_within_a_second_in_every_process(setting: Setting) -> None:
    key = setting.tweezer("keys", "create", "laptop", "--project", "lab")
    assert await setting.statuses(key) == {200}
    setting.tweezer("keys", "revoke", key[4:16])
    await setting.ends_within(key, 5)


async def test_a_rotated_key_works_until_its_overlap_with_the_new_one_ends(setting: Setting) -> None:
    old = setting.tweezer("keys", "create", "laptop", "--project", "lab")
    new = setting.tweezer("keys", "rotate", old[4:16], "--overlap", "3s")
    assert await setting.statuses(new) == {200}
    assert await setting.statuses(old) == {200}
    await setting.ends_within(old, 5)
    assert await setting.statuses(new) == {200}


async def test_a_project_that_is_deleted_takes_its_keys_with_it(setting: Setting) -> None:
    key = setting.tweezer("keys", "create", "laptop", "--project", "lab")
    assert await setting.statuses(key) == {200}
    assert "Deleted lab" in await asyncio.to_thread(setting.tweezer, "projects", "delete", "lab", "--yes")
    await setting.ends_within(key, 5)
    assert setting.json("projects", "list") == setting.json("keys", "list", "--all") == []


async def test_a_user_logs_in_like_pasqals_client(setting: Setting) -> None:
    setting.tweezer("users", "create", "ada", "--stdin", input=f"{PASSWORD}\n")
    setting.tweezer("users", "add-to", "ada", "lab")
    answer = await setting.log_in(username="ada", password=PASSWORD)
    assert answer.status_code == 200
    assert answer.json()["expires_in"] > 60  # otherwise the client would log in before each request
    token = answer.json()["access_token"]
    assert await setting.statuses(token) == {200}
    setting.tweezer("users", "disable", "ada")
    await setting.ends_within(token, 5)
    assert (await setting.log_in(username="ada", password=PASSWORD)).json()["error"] == "invalid_grant"


async def test_failed_log_ins_are_counted_by_all_processes_together(setting: Setting) -> None:
    answers = [
        await setting.log_in(number % 2, username="ada", password="x") for number in range(FAILURES_MAX[CountedBy.NAME])
    ]
    assert {answer.status_code for answer in answers} == {400}
    for at in range(2):
        late = await setting.log_in(at, username="ada", password=PASSWORD)
        assert (late.status_code, late.json()["error"]) == (429, "too_many_attempts")
    await setting.site.store.redis.flushall()  # the counters of failures do not expire before the end of the test


async def test_use_of_a_key_is_written_when_the_process_ends(setting: Setting) -> None:
    key = setting.tweezer("keys", "create", "laptop", "--project", "lab")
    assert await setting.statuses(key) == {200}
    assert setting.json("keys", "list")[0]["used"] is None
    for process in setting.site.processes:
        process.terminate()
        await process.ended()
    assert setting.json("keys", "list")[0]["used"] is not None


# -- tweezer up -----------------------------------------------------------------------------------------


class Up:
    """A ``tweezer up`` on a folder, from its start until it is killed."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.log = folder / "log"
        self.data = folder / "data"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
        command = ["up", "--data", str(self.data), "--port", "0", "--redis-port", "0", "--device", NULL]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tweezer.cli", *command, "--lanes", "1"],
                cwd=ROOT,
                env=inherited | {f"TWEEZER_{name.upper()}": value for name, value in settings.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def find(self, pattern: str) -> str:
        wait_until(lambda: "Ctrl-C stops it all" in self.log.read_text() or self.process.poll() is not None)
        match = re.search(pattern, self.log.read_text())
        assert match is not None, self.log.read_text()
        return match[1]

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables that it provides once it is up."""
        self.find(r"(API)")
        return running_environment(self.data)

    @property
    def key(self) -> str:
        return self.variables["TWEEZER_API_KEY"]

    def projects(self) -> list[str]:
        """Return the projects of its key."""
        url = self.find(r"API +(http://\S+)")
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = httpx.get(f"{url}/account/api/v1/projects", headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        return [project["id"] for project in answer.json()["data"]]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def ups() -> Iterator[list[Up]]:
    """A function that starts ``tweezer up``; all are killed at the end of the test."""
    started: list[Up] = []
    yield started
    for up in started:
        up.process.kill()
        up.process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("_any_server")
def test_up_keeps_a_key_that_works_at_its_api(ups: list[Up], tmp_path: Path) -> None:
    ups.append(Up(tmp_path))
    first = ups[-1].key
    assert ups[-1].projects() == ["default"]
    assert ups[-1].variables["TWEEZER_PROJECT_ID"] == "default"
    ups[-1].end()
    ups.append(Up(tmp_path))
    assert ups[-1].key == first
    ups[-1].end()

    mine = new_key()
    ups.append(Up(tmp_path, api_key=mine, project_id="mine"))
    assert ups[-1].key == mine
    assert ups[-1].projects() == ["mine"]


def test_up_does_not_start_with_an_invalid_key(ups: list[Up], tmp_path: Path) -> None:
    ups.append(Up(tmp_path, api_key="secret"))
    assert ups[-1].process.wait(PATIENCE_S) == 1
    output = ups[-1].log.read_text()
    assert output.startswith("Error: TWEEZER_API_KEY: ")
    assert "secret" not in output.replace("<secret>", "")
