"""Logs of jobs, from the lane that writes to those who read them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from tests.support.api_rig import bearer
from tests.support.processes import MISBEHAVING, Site
from tests.support.redis_users import as_user
from tests.support.waiting import PATIENCE_S, until

import tweezer
from tweezer.cli import main
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.model.ids import job_id
from tweezer.store.acl import RedisUser


class LoggedSite(Site):
    """A site with a ledger, a results folder, and a device whose jobs write output."""

    def __init__(self, url: str, folder: Path, ledger: Path) -> None:
        self.ledger_url = f"sqlite:///{shutil.copy(ledger, folder / 'ledger.db')}"
        self.results = folder / "results"
        super().__init__(url, folder, database_url=self.ledger_url, data_dir=folder, results_dir=self.results)

    def key(self) -> str:
        database = Database.open(OpenDatabase(url=self.ledger_url))
        with database.write() as connection:
            project_no(connection, "ours")
            text = create_key(connection, name="test", project_id="ours").text
        database.close()
        return text

    def call(self, *arguments: str) -> tuple[str, str]:
        """Return what a command writes to stdout and stderr."""
        environment = {"TWEEZER_PROJECT_ID": "ours", "TWEEZER_RESULTS_DIR": str(self.results)}
        ran = CliRunner(env=environment).invoke(main, ["--redis", as_user(self.url, RedisUser.OPERATOR), *arguments])
        assert ran.exit_code == 0, ran.output
        return ran.stdout, ran.stderr

    async def act(self, act: str, value: object = None) -> tweezer.AsyncBatch:
        return await self.submit([{"act": act, "value": value}], device=MISBEHAVING)


@pytest.fixture
async def site(
    real_redis_url: str, tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LoggedSite]:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    async with LoggedSite(real_redis_url, tmp_path, sqlite_template) as site:
        await site.workers(1, MISBEHAVING)
        yield site


async def test_output_is_read_over_the_api_and_by_the_command(site: LoggedSite) -> None:
    _, url = await site.api()
    batch = await site.act("print", r"hello\x1b[31m\n")
    await batch.wait(PATIENCE_S)
    silent = await site.act("none")
    await silent.wait(PATIENCE_S)
    async with httpx.AsyncClient(base_url=url, headers=bearer(site.key())) as http:
        data = (await http.get(f"/api/v2/jobs/{batch.id}/logs")).json()["data"]
        assert sorted(data["text"].splitlines()) == ["a library in C", "an error", "hello\\x1b[31m"]
        assert (data["cut"], data["ended"]) == (0, True)
        rest = (await http.get(f"/api/v2/jobs/{batch.id}/logs", params={"after": data["next"]})).json()["data"]
        assert rest == {"text": "", "next": data["next"], "cut": 0, "ended": True}
        assert (await http.get(f"/api/v2/jobs/{batch.id}/logs?after=-1")).status_code == 422
        link = (await http.get(f"/api/v1/jobs/{batch.id}/logs_link")).json()["data"]["logs_link"]
        assert (await http.get(f"/api/v1/jobs/{silent.id}/logs_link")).json()["data"] == {"logs_link": None}
    async with httpx.AsyncClient() as anyone:
        answer = await anyone.get(link)
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.text == data["text"]
        assert (await anyone.get(link.replace("/logs?", "/results?"))).status_code == 403
    out, _ = await asyncio.to_thread(site.call, "logs", f"{batch.id}/0")
    assert out == data["text"]
    assert await asyncio.to_thread(site.call, "logs", str(silent.id)) == ("", "The job has written nothing.\n")


async def test_output_can_be_followed_while_the_job_runs(site: LoggedSite) -> None:
    batch = await site.act("print and wait")

    async def has_begun() -> bool:
        return (await site.store.job_logs.read(batch.id)).text == "begun\n"

    site.store.job_logs._root = site.results
    await until(has_begun, "the output of a running job")
    following = asyncio.create_task(asyncio.to_thread(site.call, "logs", "--follow", str(batch.id)))
    await batch.cancel()
    assert (await following)[0] == "begun\n"


async def test_the_output_of_all_attempts_is_kept(site: LoggedSite) -> None:
    batch = await site.act("print and exit")
    await batch.wait(PATIENCE_S)
    out, _ = await asyncio.to_thread(site.call, "logs", str(batch.id))
    assert out.count("last words\n") == 3
    assert "--- attempt 2 ---\n" in out
    assert "--- attempt 3 ---\n" in out


async def test_of_a_flood_the_end_is_kept_and_the_rest_is_counted(site: LoggedSite) -> None:
    batch = await site.act("flood", 50)
    await batch.wait(PATIENCE_S)
    out, err = await asyncio.to_thread(site.call, "logs", str(batch.id))
    assert len(out) == (64 << 10) + 1
    assert err == f"[{49 << 16} bytes of earlier output were not kept]\n"


async def test_a_log_of_another_project_is_not_found(site: LoggedSite) -> None:
    batch = await site.act("print", r"secret\n")
    await batch.wait(PATIENCE_S)
    async with site.connect("theirs") as queue:
        with pytest.raises(tweezer.NotFound):
            await queue.logs(batch.id)
    async with site.connect("ours", results_dir=site.results) as queue:
        found = await queue.logs(job_id(batch.id, 0))
        assert "secret" in found.text
        with pytest.raises(tweezer.InvalidInput, match="after"):
            await queue.logs(batch.id, after=-1)


async def test_a_full_results_folder_does_not_fail_a_job_because_of_its_output(site: LoggedSite) -> None:
    site.results.write_text("in the way")
    batch = await site.act("print", r"lost\n")
    await batch.wait(PATIENCE_S)
    assert (await batch.record()).counts[tweezer.JobStatus.DONE] == 1
    (worker,) = site.processes
    warning, *_ = await worker.wait_logged("output.not_stored")
    assert "cannot be written" in warning["error"]


async def test_a_job_on_a_qpu_has_no_log_and_is_not_followed(site: LoggedSite) -> None:
    about = {"adapter": "qpu", "exclusive": 1, "reattaches": 1, "max_runs": 1000}
    beat = {"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1}
    await site.store.tickets.heartbeat("w", "FRESNEL", ttl_s=60, about_device=about, about_worker=beat)
    batch = await site.submit([{}], device="FRESNEL")
    for options in ([], ["--follow"]):
        said = await asyncio.to_thread(site.call, "logs", *options, str(batch.id))
        assert said == ("", "FRESNEL is a QPU or another server, so its jobs have no logs here.\n")
