"""Tasks over HTTP: the examples of three other systems, and what each route does and refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from tests.support.api_rig import DEVICE, DONE, FAILED, LEASE_S, PROJECT, ApiRig, bearer

from tweezer.api.batches.bodies import BatchBody
from tweezer.api.tasks.schemas import REDACTED, is_credential, redact
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.database import Database
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.ids import job_id, new_batch_id, short_id
from tweezer.model.messages import BatchDoc, JobSpec, Limits
from tweezer.model.rule_fields import apply_rules
from tweezer.model.rules import OnFailures, Rules
from tweezer.settings import ApiSettings, Settings
from tweezer.store.job_logs import OutputBuffer
from tweezer.store.workers import Settlement

ROW = {
    *("task_id", "backend", "status", "shots", "submit_time", "update_time", "has_result", "metadata"),
    *("error_message", "archived_at"),
}
SUMMARY = {
    *("task_id", "name", "shortname", "backend", "status", "state", "previous_state", "state_transition_time"),
    *("previous_state_transition_time", "progress", "running_instance_count", "instance_count"),
    *("max_retries_per_instance", "execution_time", "wall_time", "cancel_attempts", "scheduled_time", "start_time"),
    *("finish_time", "creation_date", "last_modified", "end_date", "tags"),
}
TASK = ROW | SUMMARY | {"limits", "exception", "traceback", "result"}
SHARD = {
    *("uniqc_task_id", "shard_index", "platform_task_id", "backend", "circuit_count", "sub_index_offset", "status"),
    *("error_message", "submit_time", "update_time"),
}
PROGRESS = {"done", "total", "stage", "message"}


class Tasks(ApiRig):
    """A rig with a user of one project and one of another project."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.user, self.stranger_key = self.key(), self.key(project="another")

    async def ask(self, method: str, path: str, *, key: str | None = None, status: int = 200, **options: Any) -> Any:
        """Return the content of a response with this status."""
        answer = await self.http.request(method, path, headers=bearer(key or self.user), **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def record(self) -> None:
        recorder = Recorder(self.store, self.database, namespace="tweezer")
        await recorder.resume()
        await recorder.catch_up()

    async def ended(self, *outcomes: Any, **fields: Any) -> UUID:
        doc = BatchDoc(**{"device": DEVICE, "sequence": "{}", **fields})
        batch_id = await self.submit(len(outcomes) or 1, doc=doc)
        await self.run(*outcomes)
        await self.record()
        return batch_id

    async def listed(self, **params: Any) -> list[UUID]:
        return [UUID(task["task_id"]) for task in (await self.ask("GET", "/api/tasks", params=params))["tasks"]]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[Tasks]:
    monkeypatch.chdir(tmp_path)  # so that the developer's tweezer.toml is not read
    rig = Tasks(Settings(api=ApiSettings(longpoll_s=0)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


# -- the examples of the seeds --------------------------------------------------------------------------


async def test_the_calls_of_the_uniqc_gateway_get_its_keys(rig: Tasks) -> None:
    first, second = await rig.ended(DONE), await rig.ended(FAILED)
    page = await rig.ask("GET", "/api/tasks?status=success&backend=EMU_FREE&limit=100&offset=0")
    assert page.keys() == {"tasks", "total", "limit", "offset"}
    assert [task.keys() for task in page["tasks"]] == [ROW]
    assert (page["tasks"][0]["task_id"], page["total"], page["limit"], page["offset"]) == (str(first), 1, 100, 0)
    counts = await rig.ask("GET", "/api/tasks/counts")
    assert counts == {"pending": 0, "running": 0, "success": 1, "failed": 1, "cancelled": 0, "total": 2}
    assert (await rig.ask("GET", f"/api/tasks/{first}")).keys() >= ROW | {"result"}
    shards = await rig.ask("GET", f"/api/tasks/{first}/shards")
    assert shards.keys() == {"task_id", "shard_count", "shards"}
    assert [shard.keys() for shard in shards["shards"]] == [SHARD]
    ids = {"task_ids": [str(first)]}
    found = await rig.ask("POST", "/api/tasks/bulk-archive", json=ids)
    assert found == {"archived": [str(first)], "missing": [], "live": [], "count": 1}
    archived = await rig.ask("POST", "/api/tasks/archive-expired?hours=72&terminal_only=true")
    assert archived == {"archived": [], "count": 0, "hours": 72, "terminal_only": True, "skipped_running": 0}
    assert await rig.ask("DELETE", f"/api/tasks/{first}") == {"deleted": str(first)}
    found = await rig.ask("POST", "/api/tasks/bulk-delete", json={"task_ids": [str(second)]})
    assert found == {"deleted": [str(second)], "missing": [], "live": [], "count": 1}


async def test_the_calls_of_pulp_get_its_fields(rig: Tasks) -> None:
    await rig.submit(1)
    await rig.record()
    page = await rig.ask("GET", "/api/tasks?state=waiting")
    task = await rig.ask("GET", f"/api/tasks/{page['tasks'][0]['task_id']}")
    assert task.keys() == TASK
    pulps = {"state", "start_time", "finish_time", "result", "exception", "traceback", "progress", "scheduled_time"}
    assert {name: task[name] for name in pulps - {"progress"}} == {
        **dict.fromkeys(pulps - {"progress", "state"}),
        "state": "waiting",
    }
    assert task["progress"] == {"done": 0, "total": 1, "stage": None, "message": None}
    for state in ("waiting", "running", "complete", "incomplete", "current", "archived"):
        assert (await rig.ask("GET", f"/api/tasks?state={state}")).keys() == {"tasks", "total", "limit", "offset"}
    await rig.ask("GET", f"/api/tasks/{new_batch_id()}", status=404)


async def test_the_calls_of_qarnot_get_its_fields(rig: Tasks) -> None:
    both = await rig.ended(DONE, name="hello constant", tags=("t1", "t2"))
    await rig.ended(DONE, tags=("t1",))
    page = await rig.ask("GET", "/api/tasks/summaries")
    assert page["total"] == 2
    page = await rig.ask("GET", "/api/tasks/summaries?tag=t1&tag=t2,t")
    assert page.keys() == {"tasks", "total", "limit", "offset"}
    (summary,) = page["tasks"]
    assert summary.keys() == SUMMARY
    assert summary["progress"].keys() == PROGRESS
    assert summary["task_id"] == str(both)
    facts = {
        "name": "hello constant",
        "shortname": short_id(both),
        "progress": {"done": 1, "total": 1, "stage": None, "message": None},
        "running_instance_count": 0,
        "execution_time": 1.5,
        "state": "finished",
        "previous_state": "running",
        "instance_count": 1,
        "max_retries_per_instance": 3,
    }
    assert {name: summary[name] for name in facts} == facts
    assert summary["creation_date"] <= summary["previous_state_transition_time"] <= summary["state_transition_time"]
    assert summary["state_transition_time"] == summary["end_date"]
    assert await rig.listed(tag=["t1", "t2,t"]) == [both]


# -- reads ----------------------------------------------------------------------------------------------


async def test_a_task_that_has_not_ended_is_shown_as_it_is_now(rig: Tasks) -> None:
    batch_id = await rig.submit(2)
    assert (await rig.ask("GET", f"/api/tasks/{batch_id}"))["shots"] == 20, "it is not recorded yet"
    await rig.record()
    await rig.take()
    await rig.store.commands.pause(batch_id, project=None)
    (row,) = (await rig.ask("GET", "/api/tasks/summaries"))["tasks"]
    assert (row["state"], row["status"], row["previous_state"]) == ("suspended", "pending", "waiting")
    task = await rig.ask("GET", f"/api/tasks/{short_id(batch_id)}")
    assert (task["state"], task["task_id"]) == ("suspended", str(batch_id))


async def test_a_task_has_its_results_and_the_error_of_its_first_failed_job(rig: Tasks) -> None:
    batch_id = await rig.ended(DONE, FAILED)
    for stored in ("in Redis", "in the ledger only"):
        task = await rig.ask("GET", f"/api/tasks/{batch_id}")
        assert (task["status"], task["state"]) == ("failed", "finished"), stored
        assert task["error_message"] == "1 of 2 jobs failed"
        assert task["exception"] == "job 1: variables.omega: it broke"
        (result,) = task["result"]
        assert (result["job_id"], result["index"]) == (str(job_id(batch_id, 0)), 0)
        assert result["counter"] == {"01": 10}
        assert (task["shots"], task["execution_time"], task["has_result"]) == (20, 1.5, True)
        await rig.store.recovery.forget({batch_id: 99}, least_age_s=0)


async def test_only_operators_see_the_traceback_of_a_failed_job(rig: Tasks) -> None:
    batch_id = await rig.ended(FAILED)
    output = OutputBuffer()
    output.add(b"before\nTraceback (most recent call last):\n" + b"x" * 20_000 + b"\nValueError: it broke\n")
    await rig.store.job_logs.write(job_id(batch_id, 0), output.content)
    path = f"/api/tasks/{batch_id}"
    assert (await rig.ask("GET", path))["traceback"] is None
    shown = (await rig.ask("GET", path, key=rig.key(Role.OPERATOR, project=None)))["traceback"]
    assert shown.endswith("ValueError: it broke\n")
    assert len(shown) == 16 << 10


async def test_jobs_of_one_claim_are_one_shard(rig: Tasks) -> None:
    batch_id = await rig.submit(3)
    assert (await rig.ask("GET", f"/api/tasks/{batch_id}/shards"))["shards"] == []
    grant, settled = await rig.take(), []
    for index, outcome in enumerate((DONE, FAILED)):
        settled.append((await rig.ask("GET", f"/api/tasks/{batch_id}/shards"))["shards"][0])
        await rig.store.tickets.settle(
            grant.ticket, grant.token, [Settlement.of(index, outcome)], want=1, used_s=0.1, lease_s=LEASE_S
        )
    assert [(it["circuit_count"], it["status"]) for it in settled] == [(1, "running"), (2, "running")]
    await rig.store.tickets.settle(
        grant.ticket, grant.token, [Settlement.of(2, DONE)], want=1, used_s=0.1, lease_s=LEASE_S
    )
    await rig.record()
    for stored in ("in Redis", "in the ledger only"):
        found = await rig.ask("GET", f"/api/tasks/{batch_id}/shards")
        assert (found["task_id"], found["shard_count"]) == (str(batch_id), 1)
        (shard,) = found["shards"]
        facts = {"circuit_count": 3, "sub_index_offset": 0, "status": "failed", "platform_task_id": None}
        assert {name: shard[name] for name in facts} == facts, stored
        assert shard["error_message"] == "variables.omega: it broke"
        await rig.store.recovery.forget({batch_id: 99}, least_age_s=0)


async def test_a_snapshot_submits_the_same_again(rig: Tasks) -> None:
    doc = BatchDoc(device=DEVICE, sequence="{}", name="again", tags=("a",), configuration={"dt": 1, "api_token": "x"})
    doc = msgspec.structs.replace(doc, rules=Rules(keep_s=60.0, total_retries=4))
    batch_id = await rig.submit([JobSpec(runs=7), JobSpec(runs=8, seed=3)], doc=doc)
    body = await rig.ask("GET", f"/api/tasks/{batch_id}/snapshot")
    assert body["configuration"] == {"dt": 1, "api_token": REDACTED}
    rules = {"keep_s": 60.0, "retries": {"per_job": None, "total": 4}, "on_failures": None, "depends_on": None}
    assert {name: body[name] for name in rules} == rules
    body["sequence_builder"], body["configuration"] = None, None
    for job in body["jobs"]:
        job["sequence"] = None
    assert [(job["runs"], job["seed"]) for job in body["jobs"]] == [(7, None), (8, 3)]
    assert (body["name"], body["tags"], body["device_type"], body["project_id"]) == ("again", ["a"], DEVICE, PROJECT)


async def test_a_snapshot_has_the_rules_except_those_of_the_start(rig: Tasks) -> None:
    rules = Rules(
        schedule_threshold_s=5.0,
        queue_timeout_s=60.0,
        failure_threshold=2,
        on_failures=OnFailures.CANCEL,
        total_retries=4,
        keep_s=0.0,
    )
    batch_id = await rig.submit(doc=BatchDoc(device=DEVICE, rules=rules))
    body = await rig.ask("GET", f"/api/tasks/{batch_id}/snapshot")
    applied = apply_rules(msgspec.convert(body, BatchBody), limits=Limits(), not_before=None)
    assert applied["rules"] == msgspec.structs.replace(rules, schedule_threshold_s=None)


def test_values_of_keys_that_look_like_credentials_are_redacted() -> None:
    for name in ("token", "apiToken", "ACCESS_TOKEN", "client-secret", "passwords", "auth", "x_auth", "privateKey"):
        assert is_credential(name), name
    for name in ("author", "key", "tokenizer", "secretary", "monkey", "dt", "authentic"):
        assert not is_credential(name), name
    nested = {"a": [{"token": "t", "n": 1}], "password": None, "b": '{"secret": {"x": 1}, "y": 2}', "c": "{no json"}
    assert redact(nested) == {
        "a": [{"token": REDACTED, "n": 1}],
        "password": None,
        "b": json.dumps({"secret": REDACTED, "y": 2}),
        "c": "{no json",
    }


async def test_metadata_never_shows_the_webhook_or_a_credential(rig: Tasks) -> None:
    await rig.ended(
        DONE,
        webhook="https://hooks.example.org/s3cret",
        backend_configuration='{"password": "s3cret"}',
        configuration={"nested": {"secret": "s3cret"}},
    )
    for path in ("/api/tasks", "/api/tasks/summaries", "/api/tasks/@last"):
        answer = await rig.get(path, key=rig.key(Role.OPERATOR, project=None))
        assert answer.status_code == 200
        assert "s3cret" not in answer.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=DONE", "status"),
        ("state=done", "state"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("offset=-1", "offset"),
        ("name__contains=%00", "name__contains"),
        ("project=x", "project"),
    ],
)
async def test_a_wrong_parameter_is_named(rig: Tasks, query: str, field: str) -> None:
    for path in ("/api/tasks", "/api/tasks/summaries"):
        answer = await rig.ask("GET", f"{path}?{query}", status=422)
        assert answer["data"]["field"] == field


async def test_a_search_in_names_reports_whether_it_was_cut(rig: Tasks) -> None:
    batch_id = await rig.ended(DONE, name="hello constant")
    page = await rig.ask("GET", "/api/tasks?name__contains=constant")
    assert ([task["task_id"] for task in page["tasks"]], page["is_cut"]) == ([str(batch_id)], False)
    assert (await rig.ask("GET", "/api/tasks?name__contains=Constant"))["total"] == 0


# -- commands -------------------------------------------------------------------------------------------


async def test_a_restart_repeats_what_did_not_succeed_and_names_its_parent(rig: Tasks) -> None:
    batch_id = await rig.ended(DONE, FAILED, DONE)
    again = await rig.ask("POST", f"/api/tasks/{batch_id}/restart")
    assert again.keys() == TASK
    assert (again["instance_count"], again["metadata"]["parent_id"]) == (1, str(batch_id))
    jobs = await rig.store.reader.jobs(await rig.store.reader.batch(UUID(again["task_id"]), project=None), [0])
    assert jobs[0].spec.parent_id == str(job_id(batch_id, 1))
    all_of_them = await rig.ask("POST", f"/api/tasks/{batch_id}/restart?status=DONE&status=ERROR")
    assert all_of_them["instance_count"] == 3
    good = await rig.ended(DONE)
    refused = await rig.ask("POST", f"/api/tasks/{good}/restart", status=400)
    assert refused["data"]["field"] == "jobs"
    open_one = await rig.submit(1, open=True)
    assert (await rig.ask("POST", f"/api/tasks/{open_one}/restart", status=409))["data"]["reason"] == "open"


async def test_a_restart_with_an_idempotency_key_makes_one_task(rig: Tasks) -> None:
    batch_id = await rig.ended(FAILED)
    path, headers = f"/api/tasks/{batch_id}/restart", bearer(rig.user) | {"Idempotency-Key": "k"}
    first, second = [(await rig.http.post(path, headers=headers)).json() for _ in range(2)]
    assert first["task_id"] == second["task_id"]


async def test_a_live_task_is_neither_deleted_nor_archived(rig: Tasks) -> None:
    batch_id = await rig.submit(1)
    for is_recorded in (False, True):
        for method, path in (("DELETE", ""), ("POST", "/archive")):
            refused = await rig.ask(method, f"/api/tasks/{batch_id}{path}", status=409)
            assert refused["data"]["reason"] == "live", is_recorded
        await rig.record()
    await rig.run()
    refused = await rig.ask("DELETE", f"/api/tasks/{batch_id}", status=409)
    assert "still being recorded" in refused["data"]["description"]
    await rig.record()
    assert await rig.ask("DELETE", f"/api/tasks/{batch_id}") == {"deleted": str(batch_id)}
    await rig.ask("GET", f"/api/tasks/{batch_id}", status=404)
    await rig.ask("DELETE", f"/api/tasks/{batch_id}", status=404)


async def test_an_archived_task_is_in_the_archive_until_it_is_restored_or_deleted(rig: Tasks) -> None:
    batch_id = await rig.ended(DONE)
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/restore")):
        place = f"/api/archive{path}/{batch_id}"
        assert "archived task" in (await rig.ask(method, place, status=404))["data"]["description"]
    for _ in range(2):
        assert await rig.ask("POST", f"/api/tasks/{batch_id}/archive") == {"archived": str(batch_id)}
    assert await rig.listed() == []
    assert await rig.listed(state="archived") == [batch_id]
    page = await rig.ask("GET", "/api/archive")
    assert page.keys() == {"tasks", "total", "limit", "offset"}
    (row,) = page["tasks"]
    assert row["archived_at"] is not None
    assert (await rig.ask("GET", f"/api/archive/{batch_id}"))["archived_at"] == row["archived_at"]
    assert (await rig.ask("GET", f"/api/tasks/{batch_id}"))["archived_at"] == row["archived_at"]
    batches = await rig.ask("GET", "/api/v1/batches")
    assert [it["id"] for it in batches["data"]] == [str(batch_id)], "lists of batches have it"
    assert await rig.ask("POST", f"/api/archive/restore/{batch_id}") == {"restored": str(batch_id)}
    assert await rig.listed() == [batch_id]
    await rig.ask("POST", f"/api/tasks/{batch_id}/archive")
    assert await rig.ask("DELETE", f"/api/archive/{batch_id}") == {"deleted": str(batch_id)}
    assert (await rig.ask("GET", "/api/archive"))["total"] == 0


async def test_bulk_calls_report_each_id_once(rig: Tasks) -> None:
    over, live, unrecorded = await rig.ended(DONE), await rig.submit(1), new_batch_id()
    await rig.record()
    fresh = await rig.submit(1)
    foreign = await rig.submit(1, project="another")
    await rig.record()
    body = {"task_ids": [str(it) for it in (over, live, unrecorded, fresh, foreign, over)]}
    missing, kept = [str(unrecorded), str(foreign)], [str(live), str(fresh)]
    found = await rig.ask("POST", "/api/tasks/bulk-archive", json=body)
    assert found == {"archived": [str(over)], "missing": missing, "live": kept, "count": 1}
    found = await rig.ask("POST", "/api/tasks/bulk-delete", json=body)
    assert found == {"deleted": [str(over)], "missing": missing, "live": kept, "count": 1}
    ended = await rig.submit(0)
    body = {"task_ids": [str(it) for it in (live, fresh, ended, unrecorded, foreign)]}
    found = await rig.ask("POST", "/api/tasks/bulk-cancel", json=body)
    assert (found["canceled"], found["ended"], found["count"]) == ([str(live), str(fresh)], [str(ended)], 2)
    assert found["missing"] == missing
    assert set(found["live"]) <= set(found["canceled"])


async def test_a_body_with_a_wrong_or_too_many_ids_changes_nothing(rig: Tasks) -> None:
    over = await rig.ended(DONE)
    for path in ("bulk-delete", "bulk-archive", "bulk-cancel"):
        for body, field in (
            ({"task_ids": [str(over), "x"]}, "task_ids[1]"),
            ({"task_ids": [str(over)] * 1001}, "task_ids"),
            ({"task_id": []}, "task_id"),
            ({}, "task_ids"),
        ):
            answer = await rig.http.post(f"/api/tasks/{path}", json=body, headers=bearer(rig.user))
            assert answer.status_code == 400, answer.text
            assert answer.json()["data"]["field"].startswith(field)
    assert await rig.listed() == [over]


async def test_readers_cannot_change_tasks(rig: Tasks) -> None:
    batch_id, reader = await rig.ended(FAILED), rig.key(Role.READ)
    await rig.ask("GET", f"/api/tasks/{batch_id}", key=reader)
    for method, path in (
        ("DELETE", f"/api/tasks/{batch_id}"),
        ("DELETE", f"/api/archive/{batch_id}"),
        ("POST", f"/api/tasks/{batch_id}/restart"),
        ("POST", f"/api/tasks/{batch_id}/archive"),
        ("POST", f"/api/archive/restore/{batch_id}"),
        ("POST", "/api/tasks/archive-expired"),
        ("POST", "/api/tasks/bulk-delete"),
    ):
        await rig.ask(method, path, key=reader, status=403)


async def test_nothing_of_other_projects_is_listed_counted_or_archived(rig: Tasks) -> None:
    batch_id = await rig.ended(DONE)
    stranger = rig.stranger_key
    assert (await rig.ask("GET", "/api/tasks", key=stranger))["total"] == 0
    assert (await rig.ask("GET", "/api/tasks/counts", key=stranger))["total"] == 0
    assert (await rig.ask("POST", "/api/tasks/archive-expired?hours=0", key=stranger))["count"] == 0
    for path in ("", "/shards", "/snapshot"):
        await rig.ask("GET", f"/api/tasks/{batch_id}{path}", key=stranger, status=404)
    assert await rig.listed() == [batch_id]


async def test_old_tasks_are_archived_by_age(rig: Tasks) -> None:
    over, live = await rig.ended(DONE), await rig.submit(1)
    await rig.record()
    found = await rig.ask("POST", "/api/tasks/archive-expired")
    assert (found["count"], found["skipped_running"], found["hours"]) == (0, 0, 72.0)
    with rig.database.write() as connection:
        connection.exec_driver_sql("UPDATE batches SET updated_ms = updated_ms - 7200000")
    found = await rig.ask("POST", "/api/tasks/archive-expired?hours=1")
    assert (found["archived"], found["skipped_running"]) == ([str(over)], 1)
    found = await rig.ask("POST", "/api/tasks/archive-expired?hours=1&terminal_only=false")
    assert (found["archived"], found["skipped_running"]) == ([str(live)], 0)
    refused: httpx.Response = await rig.http.post("/api/tasks/archive-expired?hours=-1", headers=bearer(rig.user))
    assert (refused.status_code, refused.json()["data"]["field"]) == (422, "hours")
