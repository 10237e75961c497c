"""Tasks over the HTTP API of a running installation, on both databases: worker, recorder, scheduler's job and API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.api_rig import bearer
from tests.support.processes import NULL, Site
from tests.support.waiting import PATIENCE_S, until

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_key
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.archive import archive_due
from tweezer.ledger.database import Database
from tweezer.ledger.schema import batches
from tweezer.model.ids import new_batch_id

PROJECT, ANOTHER = "ours", "theirs"


@pytest.fixture
def keys(database: Database) -> dict[str, str]:
    with database.write() as connection:
        for project in (PROJECT, ANOTHER):
            create_project(connection, project, project)
        found = {it: create_key(connection, name=it, project_id=it).text for it in (PROJECT, ANOTHER)}
        return found | {"operator": create_key(connection, name="operator", role=Role.OPERATOR).text}


async def test_a_task_is_listed_counted_restarted_archived_and_deleted(
    real_redis_url: str, ledger_url: str, database: Database, keys: dict[str, str], tmp_path: Path
) -> None:
    async with Site(real_redis_url, tmp_path, database_url=ledger_url, data_dir=tmp_path) as site:
        await site.workers(1)
        site.spawn("recorder")
        _, url = await site.api()
        async with httpx.AsyncClient(base_url=url, headers=bearer(keys[PROJECT]), timeout=PATIENCE_S) as http:

            async def ask(method: str, path: str, *, status: int = 200, **options: Any) -> Any:
                answer = await http.request(method, path, **options)
                assert answer.status_code == status, answer.text
                return answer.json()

            async def submit(**more: Any) -> str:
                body = {"device_type": NULL, "jobs": [{"runs": 3}] * 2, **more}
                answer = await ask("POST", "/api/v1/batches", json=body)
                return str(answer["data"]["id"])

            async def shown() -> dict[str, int]:
                found = await ask("GET", "/api/tasks/counts")
                return {name: count for name, count in found.items() if count}

            first, held = await submit(name="first", tags=["a", "b"]), await submit(open=True)

            async def has_ended() -> bool:
                return await shown() == {"success": 1, "running": 1, "total": 2}

            await until(has_ended)
            task = await ask("GET", f"/api/tasks/{first}")
            assert (task["state"], task["previous_state"], task["shots"]) == ("finished", "running", 6)
            assert [result["index"] for result in task["result"]] == [0, 1]
            shards = await ask("GET", f"/api/tasks/{first}/shards")
            assert sum(shard["circuit_count"] for shard in shards["shards"]) == 2
            assert (await ask("GET", "/api/tasks?tag=a&tag=b,c&name__contains=irs"))["total"] == 1
            snapshot = await ask("GET", f"/api/tasks/{first}/snapshot")
            copy = (await ask("POST", "/api/v1/batches", json=snapshot))["data"]
            assert (copy["name"], copy["jobs_count"]) == ("first", 2), "a snapshot can be submitted as it is"
            again = await ask("POST", f"/api/tasks/{first}/restart?status=DONE")
            assert again["metadata"]["parent_id"] == first
            assert (await ask("DELETE", f"/api/tasks/{held}", status=409))["data"]["reason"] == "live"

            async def is_quiet() -> bool:
                return await shown() == {"success": 3, "running": 1, "total": 4}

            await until(is_quiet)
            ids = {"task_ids": [first, held, str(new_batch_id())]}
            found = await ask("POST", "/api/tasks/bulk-archive", json=ids)
            assert (found["archived"], found["live"], found["missing"]) == ([first], [held], ids["task_ids"][2:])
            assert await shown() == {"success": 2, "running": 1, "total": 3}
            assert [row["task_id"] for row in (await ask("GET", "/api/archive"))["tasks"]] == [first]
            with database.write() as connection:  # as if the batch had been submitted with keep_s, and ended long ago
                due = batches.update().where(batches.c.status == "D", batches.c.archived_ms.is_(None))
                connection.execute(due.values(keep_ms=1000, ended_ms=batches.c.ended_ms - 10_000))
            assert await archive_due(database) == 2
            assert await shown() == {"running": 1, "total": 1}
            found = await ask("POST", "/api/tasks/bulk-cancel", json={"task_ids": [held, first]})
            assert (found["canceled"], found["ended"]) == ([held], [first])

            async def is_canceled() -> bool:
                return await shown() == {"cancelled": 1, "total": 1}

            await until(is_canceled)
            assert await ask("DELETE", f"/api/archive/{first}") == {"deleted": first}
            await ask("GET", f"/api/tasks/{first}", status=404)
            assert await ask("DELETE", f"/api/tasks/{held}") == {"deleted": held}
            assert await shown() == {}
            http.headers.update(bearer(keys[ANOTHER]))
            assert (await ask("GET", "/api/archive"))["total"] == 0
