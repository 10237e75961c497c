"""Rebatch, tags, bulk calls, and old and alternative routes, with a store in memory and a ledger on SQLite."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support.api_rig import DEVICE, DONE, FAILED, ApiRig, bearer

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, JobSpec, Limits, Priority
from tweezer.settings import ApiSettings, Settings

UNKNOWN = new_batch_id()
OLD, NEW = "PasqalCloudSDK/0.22.0", "PasqalCloudSDK/0.23.1"
CONFIGURED = '{"default_num_shots": 100, "autosave_dt": Infinity, "x": NaN}'


class Routes(ApiRig):
    """The rig with keys of two projects, and a recorder on demand."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.keys = {"ours": self.key(project="p"), "theirs": self.key(project="q")}
        self.keys |= {"operator": self.key(Role.OPERATOR, project=None), "reader": self.key(Role.READ)}

    async def ask(self, method: str, path: str, content: Any = None, *, key: str = "ours", agent: str = "") -> Any:
        headers = {"User-Agent": agent} | bearer(self.keys[key])
        if content is not None:
            headers["Content-Type"] = "application/json"
        body = None if content is None else json.dumps(content).encode()
        return await self.http.request(method, path, content=body, headers=headers)

    async def done(self, method: str, path: str, content: Any = None, **options: Any) -> Any:
        response = await self.ask(method, path, content, **options)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def refused(self, method: str, path: str, content: Any = None, **options: Any) -> tuple[int, str]:
        response = await self.ask(method, path, content, **options)
        told = response.json()
        assert told["data"]["description"]
        return response.status_code, told["data"]["reason"]

    async def record(self) -> None:
        recorder = Recorder(self.store, self.database, namespace="tweezer")
        await recorder.resume()
        await recorder.catch_up()

    async def forget(self, batch_id: UUID) -> None:
        await self.record()
        number = (await self.store.reader.batch(batch_id, project=None)).sequence_number
        assert await self.store.recovery.forget({batch_id: number}, least_age_s=0) == [batch_id]

    async def finished(self, *outcomes: Any) -> UUID:
        """Submit a batch whose jobs end with these outcomes."""
        batch_id = await self.submit(len(outcomes))
        await self.run(*outcomes)
        return batch_id


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[Routes]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = Routes(Settings(api=ApiSettings(requests_per_s=10_000)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


# --- rebatch


async def test_a_rebatch_repeats_the_filtered_jobs_unchanged(rig: Routes) -> None:
    doc = BatchDoc(
        device=DEVICE,
        sequence="{}",
        name="n",
        tags=("a",),
        webhook="http://h/x",
        backend_configuration=CONFIGURED,
        configuration={"x": None},
        limits=Limits(job_timeout_s=7.0),
        user="ada",
    )
    specs = [JobSpec(runs=10 + index, variables={"omega": 1.0 * index}, seed=index) for index in range(3)]
    batch_id = await rig.submit(specs, doc=doc, priority=Priority.HIGH)
    await rig.run(DONE, FAILED, DONE)
    child = await rig.done("POST", f"/api/v1/batches/{batch_id}/rebatch?status=ERROR&status=CANCELED")
    assert child["id"] != str(batch_id)
    assert (child["parent_id"], child["status"], child["open"]) == (str(batch_id), "PENDING", False)
    (job,) = child["jobs"]
    assert (job["parent_id"], job["runs"], job["variables"]) == (str(job_id(batch_id, 1)), 11, {"omega": 1.0})
    record = await rig.store.reader.batch(UUID(child["id"]), project=None)
    same = ("device", "sequence", "name", "tags", "webhook", "backend_configuration", "configuration", "limits")
    assert {name: getattr(record.doc, name) for name in same} == {name: getattr(doc, name) for name in same}
    assert (record.priority, record.project, record.doc.user) == (Priority.HIGH, "p", None)
    (repeated,) = await rig.store.reader.jobs(record, [0])
    assert repeated.spec.seed == 1


async def test_the_parent_names_its_children_live_and_forgotten(rig: Routes) -> None:
    batch_id = await rig.finished(DONE)
    path = f"/api/v1/batches/{batch_id}/rebatch"
    children = [(await rig.done("POST", path))["id"] for _ in range(2)]
    assert (await rig.done("GET", f"/api/v2/batches/{batch_id}"))["child_ids"] == children
    await rig.forget(batch_id)
    assert (await rig.done("GET", f"/api/v2/batches/{batch_id}"))["child_ids"] == sorted(children)
    third = await rig.done("POST", path)
    assert third["parent_id"] == str(batch_id)
    assert third["jobs"][0]["parent_id"] == str(job_id(batch_id, 0))


async def test_children_and_parents_survive_in_the_ledger(rig: Routes) -> None:
    batch_id = await rig.finished(DONE)
    child = UUID((await rig.done("POST", f"/api/v1/batches/{batch_id}/rebatch"))["id"])
    await rig.run(DONE)
    await rig.forget(child)
    told = await rig.done("GET", f"/api/v2/batches/{child}")
    assert (told["parent_id"], told["child_ids"]) == (str(batch_id), [])
    assert told["jobs"][0]["parent_id"] == str(job_id(batch_id, 0))


@pytest.mark.parametrize(
    ("query", "indices"),
    [
        ("", [0, 1, 2]),
        ("min_runs=11", [1, 2]),
        ("max_runs=11", [0, 1]),
        ("errors=True", [1]),
        ("id={1}&id={2}&status=DONE", [2]),
        ("start_date=2020-01-01&end_date=2999-01-01T00:00:00Z", [0, 1, 2]),
    ],
)
async def test_the_filters_of_a_rebatch_are_those_of_lists(rig: Routes, query: str, indices: list[int]) -> None:
    batch_id = await rig.submit([JobSpec(runs=10 + index) for index in range(3)])
    await rig.run(DONE, FAILED, DONE)
    ids = [job_id(batch_id, index) for index in range(3)]
    child = await rig.done("POST", f"/api/v1/batches/{batch_id}/rebatch?{query.format(*ids)}")
    assert [job["parent_id"] for job in child["jobs"]] == [str(ids[index]) for index in indices]


async def test_an_open_batch_no_jobs_or_foreign_jobs_cannot_be_repeated(rig: Routes) -> None:
    opened, closed = await rig.submit(1, open=True), await rig.submit(1)
    assert await rig.refused("POST", f"/api/v1/batches/{opened}/rebatch") == (409, "open")
    assert await rig.refused("POST", f"/api/v1/batches/{closed}/rebatch?status=DONE") == (400, "invalid")
    assert await rig.refused("POST", f"/api/v1/batches/{closed}/rebatch", key="theirs") == (404, "not_found")
    assert await rig.refused("POST", f"/api/v1/batches/{UNKNOWN}/rebatch") == (404, "not_found")
    assert await rig.refused("POST", f"/api/v1/batches/{closed}/rebatch", key="reader") == (403, "forbidden")


# --- tags


async def test_tags_are_replaced_and_lists_find_the_batch_by_the_new_ones(rig: Routes) -> None:
    batch_id = await rig.submit(1, doc=BatchDoc(device=DEVICE, sequence="{}", tags=("old", "kept")))
    await rig.record()
    tagged = await rig.done("PATCH", f"/api/v1/batches/{batch_id}/tags", ["kept", "new"])
    assert tagged["tags"] == ["kept", "new"]
    await rig.record()
    found = {tag: len(await rig.done("GET", f"/api/v1/batches?tag={tag}")) for tag in ("old", "kept", "new")}
    assert found == {"old": 0, "kept": 1, "new": 1}
    (listed,) = await rig.done("GET", "/api/v1/batches")
    assert listed["tags"] == ["kept", "new"]


async def test_tags_of_ended_batches_are_replaced_recorded_or_forgotten(rig: Routes) -> None:
    batch_id = await rig.finished(DONE)
    await rig.done("PATCH", f"/api/v1/batches/{batch_id}/tags", ["first"])  # the batch is not recorded yet
    await rig.record()
    assert len(await rig.done("GET", "/api/v1/batches?tag=first")) == 1
    await rig.done("PATCH", f"/api/v1/batches/{batch_id}/tags", ["second"])
    assert len(await rig.done("GET", "/api/v1/batches?tag=second")) == 1
    await rig.forget(batch_id)
    assert (await rig.done("GET", f"/api/v2/batches/{batch_id}"))["tags"] == ["second"]
    assert (await rig.done("PATCH", f"/api/v1/batches/{batch_id}/tags", []))["tags"] == []
    assert (await rig.done("GET", f"/api/v2/batches/{batch_id}"))["tags"] == []
    assert await rig.done("GET", "/api/v1/batches?tag=second") == []


async def test_invalid_tags_are_refused(rig: Routes) -> None:
    batch_id = await rig.submit(1)
    for wrong in (["a", "a"], [""], ["x" * 101], ["t"] * 51, [1], {"a": 1}):
        assert await rig.refused("PATCH", f"/api/v1/batches/{batch_id}/tags", wrong) == (400, "invalid")
    assert await rig.refused("PATCH", f"/api/v1/batches/{batch_id}/tags", ["a"], key="theirs") == (404, "not_found")
    assert (await rig.store.reader.batch(batch_id, project=None)).doc.tags == ()


# --- several at once


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_several_batches_are_cancelled_and_each_refusal_is_reported(rig: Routes, version: str) -> None:
    over, theirs = await rig.finished(DONE), await rig.submit(1, project="q")
    ours = await rig.submit(2)
    told = await rig.done(
        "PATCH", f"/api/{version}/batches/cancel", {"batch_ids": [str(each) for each in (ours, over, theirs, UNKNOWN)]}
    )
    assert [(batch["id"], batch["status"]) for batch in told["batches"]] == [(str(ours), "CANCELED")]
    assert told["errors"] == {
        str(over): f"batch {over} has ended",
        str(theirs): f"there is no batch {theirs}",
        str(UNKNOWN): f"there is no batch {UNKNOWN}",
    }
    assert (await rig.store.reader.batch(theirs, project=None)).status == "PENDING"


async def test_an_invalid_list_of_batches_changes_nothing(rig: Routes) -> None:
    for wrong in ({}, {"batch_ids": "x"}, {"batch_ids": ["x"]}, {"batch_ids": [str(UNKNOWN)] * 1001}):
        assert await rig.refused("PATCH", "/api/v1/batches/cancel", wrong) == (400, "invalid")


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_jobs_of_a_batch_are_cancelled_by_filter(rig: Routes, version: str) -> None:
    batch_id = await rig.submit([JobSpec(runs=runs) for runs in (10, 20, 30, 40)])
    await rig.take()  # the first job runs
    path = f"/api/{version}/batches/{batch_id}/cancel/jobs"
    foreign = job_id(UNKNOWN, 0)
    told = await rig.done("PATCH", f"{path}?max_runs=20&id={job_id(batch_id, 0)}&id={job_id(batch_id, 1)}&id={foreign}")
    assert [(job["creation_order"], job["status"]) for job in told["jobs"]] == [(0, "RUNNING"), (1, "CANCELED")]
    assert list(told["errors"]) == [str(foreign)]
    told = await rig.done("PATCH", path)
    assert [job["creation_order"] for job in told["jobs"]] == [0, 2, 3]
    assert list(told["errors"]) == [str(job_id(batch_id, 1))]
    assert await rig.refused("PATCH", path, key="theirs") == (404, "not_found")


async def test_jobs_of_a_batch_that_has_ended_are_all_among_the_errors(rig: Routes) -> None:
    batch_id = await rig.finished(DONE, FAILED)
    await rig.forget(batch_id)
    told = await rig.done("PATCH", f"/api/v2/batches/{batch_id}/cancel/jobs")
    assert (told["jobs"], len(told["errors"])) == ([], 2)


async def test_the_links_to_results_of_a_batch_work_without_a_key(rig: Routes) -> None:
    batch_id = await rig.finished(DONE, FAILED)
    path = f"/api/v1/batches/{batch_id}/results_link"
    told = await rig.done("GET", path)
    done, failed = str(job_id(batch_id, 0)), str(job_id(batch_id, 1))
    assert told["errors"] == {failed: f"job {failed} has no result; its status is ERROR"}
    assert (await rig.stranger.get(told["results_links"][done])).json()["counter"] == {"01": 10}
    assert await rig.done("GET", f"{path}?id={failed}") == {"results_links": {}, "errors": told["errors"]}
    assert await rig.refused("GET", path, key="theirs") == (404, "not_found")


# --- older and other ways


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PATCH", "/api/v1/batches/{}/complete"),
        ("PUT", "/api/v1/batches/{}/complete"),
        ("PATCH", "/api/v1/batches/{}/cancel"),
        ("PUT", "/api/v1/batches/{}/cancel"),
    ],
)
async def test_the_older_verbs_close_and_cancel(rig: Routes, method: str, path: str) -> None:
    batch_id = await rig.submit(1, open=True)
    told = await rig.done(method, path.format(batch_id))
    assert (told["open"], told["complete"]) == (False, True)
    assert told["status"] == ("CANCELED" if path.endswith("cancel") else "PENDING")


async def test_jobs_are_added_and_cancelled_the_older_way(rig: Routes) -> None:
    batch_id = await rig.submit(1, open=True)
    assert (await rig.done("POST", f"/api/v1/batches/{batch_id}/jobs", [{"runs": 5}]))["jobs_count"] == 2
    for method, index in (("PUT", 0), ("PATCH", 1)):
        told = await rig.done(method, f"/api/v1/jobs/{job_id(batch_id, index)}/cancel")
        assert told["status"] == "CANCELED"


async def test_version_1_has_results_within_a_job(rig: Routes) -> None:
    batch_id = await rig.finished(DONE, FAILED)
    job = await rig.done("GET", f"/api/v1/jobs/{job_id(batch_id, 0)}")
    assert job["result"] == {"01": 10}
    assert job["full_result"]["serialised_results"] == '{"a": 1}'
    assert (await rig.done("GET", f"/api/v1/jobs/{job_id(batch_id, 1)}"))["result"] is None
    batch = await rig.done("GET", f"/api/v1/batches/{batch_id}")
    assert batch["child_ids"] == []
    assert [(job["logs_link"], job["result"], job["full_result"]) for job in batch["jobs"]] == [(None, None, None)] * 2


async def test_every_field_of_the_reference_is_there(rig: Routes) -> None:
    batch_id = await rig.submit(2)
    batch = await rig.done("GET", f"/api/v2/batches/{batch_id}")
    assert batch["job_ids"] == [str(job_id(batch_id, index)) for index in range(2)]
    assert {"parent_id", "priority", "device_status", "start_datetime", "end_datetime", "child_ids"} <= set(batch)
    job = await rig.done("GET", f"/api/v2/jobs/{job_id(batch_id, 0)}")
    assert {name: job[name] for name in ("parent_id", "logs_link", "slurm_job_id", "end_timestamp")} == dict.fromkeys(
        ("parent_id", "logs_link", "slurm_job_id", "end_timestamp")
    )


async def test_a_batch_of_many_jobs_does_not_list_their_ids(rig: Routes) -> None:
    batch_id = await rig.submit(1001)
    assert (await rig.done("GET", f"/api/v2/batches/{batch_id}"))["job_ids"] is None


async def test_third_parties_have_separate_paths(rig: Routes) -> None:
    base = "/api/v1/third-party-access/ovh"
    sent = {"sequence_builder": "{}", "jobs": [{"runs": 5}], "device_type": DEVICE, "project_id": "", "open": False}
    batch = await rig.done("POST", f"{base}/batches", sent)
    batch_id = UUID(batch["id"])
    assert batch["project_id"] == "p"
    assert await rig.done("GET", f"{base}/batches/{batch_id}") == batch
    assert (await rig.done("GET", f"{base}/batches/{batch_id}/status?wait_s=0"))["status"] == "PENDING"
    assert len(await rig.done("GET", f"{base}/jobs?batch_id={batch_id}")) == 1
    await rig.run(DONE)
    assert (await rig.done("GET", f"{base}/jobs/{job_id(batch_id, 0)}/status"))["status"] == "DONE"
    link = (await rig.done("GET", f"{base}/jobs/{job_id(batch_id, 0)}/results_link"))["results_link"]
    assert (await rig.stranger.get(link)).json()["counter"] == {"01": 10}


async def test_every_path_may_have_the_prefix_of_the_cloud(rig: Routes) -> None:
    batch_id = await rig.finished(DONE)
    assert await rig.done("GET", f"/core-fast/api/v2/batches/{batch_id}") == await rig.done(
        "GET", f"/api/v2/batches/{batch_id}"
    )
    assert (await rig.stranger.get("/core-fast/health")).status_code == 200
    assert (await rig.stranger.get(f"/core-fast/api/v2/batches/{batch_id}")).status_code == 401
    for path in ("/core-fast", "/core-fast/core-fast/health", "/core-fastapi/v2/jobs"):
        assert await rig.refused("GET", path) == (404, "no_such_route")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/workloads"),
        ("GET", "/api/v1/workloads"),
        ("GET", "/api/v1/workloads/x"),
        ("GET", "/api/v2/workloads/x"),
        ("PUT", "/api/v1/workloads/x/cancel"),
        ("PATCH", "/api/v1/workloads/x/status"),
        ("POST", "/api/v1/workloads/x/result"),
        ("POST", "/api/v1/workloads/x/errors"),
    ],
)
async def test_workloads_are_not_implemented_and_the_error_states_it(rig: Routes, method: str, path: str) -> None:
    assert await rig.refused(method, path, {"a": 1}) == (501, "not_implemented")
    assert (await rig.stranger.request(method, path)).status_code == 401


# --- shots, and the older options


@pytest.mark.parametrize(
    ("configuration", "shots"),
    [
        ('{"default_num_shots": 100}', 100),
        ("{}", 1000),
        ('{"observables": [{"observable": "bitstrings", "num_shots": 250}], "default_num_shots": 100}', 250),
        ('{"observables": [{"observable": "bitstrings", "num_shots": null}], "default_num_shots": 100}', 100),
        ('{"observables": 3, "default_num_shots": "x"}', 1000),
    ],
)
async def test_a_job_without_runs_shows_those_of_its_configuration(rig: Routes, configuration: str, shots: int) -> None:
    sent = {
        "sequence_builder": "{}",
        "jobs": [{"variables": {"a": 1}}, {"runs": 7, "variables": {"a": 1}}],
        "device_type": DEVICE,
        "backend_configuration": configuration,
        "open": True,
    }
    batch = await rig.done("POST", "/api/v1/batches", sent, agent=NEW)
    await rig.done("POST", f"/api/v2/batches/{batch['id']}/jobs", [{"runs": None, "variables": {"a": 1}}], agent=NEW)
    shown = await rig.done("GET", f"/api/v2/batches/{batch['id']}")
    assert [job["runs"] for job in shown["jobs"]] == [shots, 7, shots]
    record = await rig.store.reader.batch(UUID(batch["id"]), project=None)
    jobs = await rig.store.reader.jobs(record, range(3))
    assert [job.spec.runs for job in jobs] == [None, 7, None], "the emulator goes by its configuration"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"with_noise": True}, "configuration.with_noise"),
        ({"precision": "normal"}, "configuration.precision"),  # this emulator has no such option
        ({"x": 1}, "configuration.x"),
        ({"with_noise": False, "strict_validation": True, "result_types": [], "dt": None}, None),
    ],
)
async def test_an_old_option_without_effect_is_refused(rig: Routes, options: dict[str, Any], field: str | None) -> None:
    sent: dict[str, Any] = {
        "sequence_builder": None,
        "jobs": [],
        "device_type": "CHECKED",
        "open": True,
        "configuration": options,
    }
    await rig.store.tickets.heartbeat(
        "w",
        "CHECKED",
        ttl_s=60,
        about_device={"adapter": "qutip", "exclusive": 0, "max_runs": 1000, "checks_sequence": 1},
        about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
    )
    answer = await rig.ask("POST", "/api/v1/batches", sent)
    if field is None:
        assert answer.status_code == 200, answer.text
    else:
        assert (answer.status_code, answer.json()["data"]["field"]) == (400, field)


# --- the placeholder of old clients


@pytest.mark.parametrize(
    ("agent", "configuration", "runs", "kept"),
    [
        (OLD, CONFIGURED, 1, None),
        (OLD, CONFIGURED, 2, 2),
        (OLD, None, 1, 1),
        (NEW, CONFIGURED, 1, 1),
        ("curl/8", CONFIGURED, 1, 1),
    ],
)
async def test_runs_invented_by_old_clients_are_shown_and_ignored(
    rig: Routes, agent: str, configuration: str | None, runs: int, kept: int | None
) -> None:
    sent = {
        "sequence_builder": "{}",
        "jobs": [{"runs": runs, "variables": {"a": 1}, "seed": 3}],
        "device_type": DEVICE,
        "backend_configuration": configuration,
        "open": True,
    }
    batch = await rig.done("POST", "/api/v1/batches", sent, agent=agent)
    await rig.done("POST", f"/api/v2/batches/{batch['id']}/jobs", sent["jobs"], agent=agent)
    record = await rig.store.reader.batch(UUID(batch["id"]), project=None)
    assert record.doc.backend_configuration == configuration
    for job in await rig.store.reader.jobs(record, range(2)):
        assert (job.spec.runs, job.spec.variables, job.spec.seed) == (kept, {"a": 1}, 3)
    shown = await rig.done("GET", f"/api/v2/batches/{batch['id']}")
    assert [job["runs"] for job in shown["jobs"]] == [runs] * 2
