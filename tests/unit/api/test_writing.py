"""The routes that write, with a store in memory and a ledger on SQLite: what they do and what they refuse."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.support.api_rig import DEVICE, SEQUENCE, ApiRig, bearer
from tests.support.effort import effort
from tests.support.records import NEWER, VERSION

from tweezer.api.batches.bodies import BatchBody
from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import create_session
from tweezer.ledger.access.projects import create_project
from tweezer.ledger.access.users import add_to_project, create_user
from tweezer.ledger.database import Database
from tweezer.ledger.recorder.recorder import Recorder
from tweezer.model.errors import Unavailable
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import MAX_JOBS_PER_CALL, Outcome, OutcomeKind, Result
from tweezer.model.sequence import MAX_SEQUENCE_BYTES
from tweezer.settings import ApiSettings, Settings
from tweezer.store.records import BatchRecord
from tweezer.store.workers import Settlement

LOOSE = "NULL"  # a device that accepts any sequence; the other one checks it
OURS, THEIRS = "ours", "0199f3a2-7c1e-4b1d-9f04-a1b2c3d4e5f6"
UNKNOWN = new_batch_id()

BUILT = json.dumps({**json.loads(SEQUENCE), "variables": {}, "operations": []})
JOB = {"runs": 50, "variables": {"omega": 6.0}}


def body(**parts: Any) -> dict[str, Any]:
    """Return the body that pasqal-cloud sends, with changed or additional fields."""
    return {
        "sequence_builder": SEQUENCE,
        "webhook": None,
        "jobs": [JOB],
        "open": False,
        "device_type": DEVICE,
        "project_id": OURS,
    } | parts


class Doors(ApiRig):
    """The rig with the keys and the requests of several callers."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        with database.write() as connection:
            for project in (OURS, THEIRS):
                create_project(connection, project.title(), project)
            self.user, lost = create_user(connection, "ada", None).id, create_user(connection, "lost", None).id
            for project in (OURS, THEIRS):
                add_to_project(connection, "ada", project)
            sessions = [create_session(connection, user, session_s=60).text for user in (self.user, lost)]
        self.keys = {
            "ours": self.key(project=OURS),
            "theirs": self.key(project=THEIRS),
            "operator": self.key(Role.OPERATOR, project=None),
            "reader": self.key(Role.READ),
            "both": sessions[0],
            "none": sessions[1],
        }

    async def ask(self, method: str, path: str, content: Any = None, *, key: str = "ours", **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(content, (dict, list)):
            named, content = {"Content-Type": "application/json"} | named, json.dumps(content).encode()
        return await self.http.request(method, path, content=content, headers=named | bearer(self.keys[key]))

    async def done(self, method: str, path: str, content: Any = None, **options: Any) -> Any:
        """Return the data of a successful response."""
        response = await self.ask(method, path, content, **options)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def refusal(self, method: str, path: str, content: Any = None, **options: Any) -> tuple[int, str, Any]:
        """Return the status, reason and field of a refused request, and check that it changed nothing."""
        before = await self.everything()
        response = await self.ask(method, path, content, **options)
        assert await self.everything() == before
        told = response.json()
        assert told["code"] == str(response.status_code)
        assert told["data"]["description"]
        return response.status_code, told["data"]["reason"], told["data"]["field"]

    async def post(self, **parts: Any) -> UUID:
        return UUID((await self.done("POST", "/api/v1/batches", body(**parts)))["id"])

    async def record(self, batch_id: UUID) -> BatchRecord:
        return await self.store.reader.batch(batch_id, project=None)

    async def everything(self) -> dict[str, Any]:
        """Return the content of Redis without statistics and keys that expire."""
        held: dict[str, Any] = {}
        redis: Any = self.store.redis
        for raw in sorted(await redis.keys("*")):
            name = raw.decode()
            if name.startswith("tweezer:calls:"):
                continue
            match (await redis.type(name)).decode():
                case "hash":
                    held[name] = await redis.hgetall(name)
                case "stream":
                    held[name] = await redis.xlen(name)
                case "zset":
                    held[name] = await redis.zrange(name, 0, -1, withscores=True)
                case "set":
                    held[name] = await redis.smembers(name)
                case "list":
                    held[name] = await redis.lrange(name, 0, -1)
                case _:
                    held[name] = await redis.get(name)
        return held

    async def forget(self, batch_id: UUID) -> None:
        """Record the batch and remove it from Redis."""
        recorder = Recorder(self.store, self.database, namespace="tweezer")
        await recorder.resume()
        await recorder.catch_up()
        number = (await self.record(batch_id)).sequence_number
        await self.store.recovery.forget({batch_id: number}, least_age_s=0)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[Doors]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = Doors(Settings(api=ApiSettings(body_max_kb=1024, requests_per_s=10_000)), ledger)
    for device, checks in ((DEVICE, 1), (LOOSE, 0)):
        await rig.store.tickets.heartbeat(
            f"w-{device}",
            device,
            ttl_s=60,
            about_device={"adapter": "null", "exclusive": 0, "max_runs": 1000, "checks_sequence": checks},
            about_worker={"lanes": 1, "started": 1, "host": "here", "version": "0", "record_version": 1},
        )
    yield rig
    await rig.close()


# --- submitting


async def test_a_batch_is_submitted_as_pasqals_client_does(rig: Doors) -> None:
    wanted = body(
        tags=["a", "b"],
        webhook="https://hooks.example.org/x",
        configuration={"with_noise": False},
        backend_configuration='{"default_num_shots": 100, "autosave_dt": Infinity}',
    )
    packed = gzip.compress(json.dumps(wanted).encode())
    headers = {"Content_Encoding": "gzip", "Content_Type": "application/json"}
    batch = await rig.done("POST", "/api/v1/batches", packed, **headers)
    expected = {
        "status": "PENDING",
        "open": False,
        "complete": True,
        "device_type": DEVICE,
        "project_id": OURS,
        "sequence_builder": SEQUENCE,
        "webhook": "https://hooks.example.org/x",
        "tags": ["a", "b"],
        "configuration": {"with_noise": False},
        "backend_configuration": wanted["backend_configuration"],
        "queue_priority": "MEDIUM",
        "jobs_count": 1,
    }
    assert {name: batch[name] for name in expected} == expected
    assert [(job["runs"], job["variables"], job["status"]) for job in batch["jobs"]] == [
        (50, {"omega": 6.0}, "PENDING")
    ]
    assert await rig.done("GET", f"/api/v2/batches/{batch['id']}") == batch
    await rig.run()
    assert (await rig.record(UUID(batch["id"]))).counts[JobStatus.DONE] == 1


async def test_a_batch_has_tweezers_additional_fields(rig: Doors) -> None:
    batch = await rig.done(
        "POST", "/api/v1/batches", body(queue_priority="HIGH", name="n", jobs=[JOB | {"seed": 7, "sequence": None}])
    )
    assert (batch["queue_priority"], batch["name"]) == ("HIGH", "n")
    (job,) = await rig.store.reader.jobs(await rig.record(UUID(batch["id"])), [0])
    assert job.spec.seed == 7


async def test_an_unknown_field_is_refused_and_nothing_is_written(rig: Doors) -> None:
    for sent, field, hint in (
        ({"sequence": SEQUENCE}, "sequence", " (did you mean sequence_builder?)"),
        ({"jobs": [JOB, JOB | {"shots": 5}]}, "jobs[1].shots", ""),
        ({"limits": {"job_timeout": 5}}, "limits.job_timeout", " (did you mean job_timeout_s?)"),
    ):
        answer = await rig.ask("POST", "/api/v1/batches", body() | sent)
        assert answer.status_code == 400, answer.text
        assert answer.json()["data"]["field"] == field
        assert answer.json()["data"]["description"] == f"{field}: is not a known field{hint}"
    batch = await rig.post(open=True)
    answer = await rig.ask("POST", f"/api/v2/batches/{batch}/jobs", [JOB | {"variable": {}}])
    assert answer.json()["data"]["description"] == "jobs[0].variable: is not a known field (did you mean variables?)"
    assert (await rig.record(batch)).jobs == 1


async def test_unknown_fields_of_pasqals_clients_are_ignored(rig: Doors) -> None:
    sent = body(jobs=[JOB | {"priority": 3}], new_in_2027={"a": [1]})
    answer = await rig.ask("POST", "/api/v1/batches", sent, User_Agent="PasqalCloudSDK/1.0.0")
    assert answer.json()["data"]["jobs_count"] == 1, answer.text


async def test_only_jobs_and_a_sequence_are_needed(rig: Doors) -> None:
    batch = await rig.done("POST", "/api/v1/batches", {"sequence_builder": SEQUENCE, "jobs": [JOB]})
    assert (batch["project_id"], batch["device_type"], batch["open"]) == (OURS, DEVICE, False)


async def test_without_a_device_the_sequence_names_it(rig: Doors) -> None:
    own = {"runs": 5, "sequence": BUILT}
    for parts in ({"device_type": None}, {"device_type": None, "sequence_builder": None, "jobs": [own]}):
        assert (await rig.record(await rig.post(**parts))).device == DEVICE
    elsewhere = json.dumps({**json.loads(SEQUENCE), "device": {"name": "FRESNEL"}})
    answer = await rig.ask("POST", "/api/v1/batches", body(device_type=None, sequence_builder=elsewhere))
    assert answer.json()["data"]["field"] == "device_type"
    assert "'FRESNEL'; the devices are EMU_FREE, NULL" in answer.json()["data"]["description"]


async def test_older_names_of_fields_are_understood(rig: Doors) -> None:
    legacy = body(emulator=DEVICE, complete=False)
    del legacy["device_type"], legacy["open"]
    batch = await rig.done("POST", "/api/v1/batches", legacy)
    assert (batch["device_type"], batch["open"], batch["complete"]) == (DEVICE, True, False)
    assert (await rig.record(await rig.post(open=None, complete=True))).open is False
    assert (await rig.record(await rig.post(open=True, complete=False))).open is True


@pytest.mark.parametrize(("of", "field"), [({"complete": False}, "complete"), ({"emulator": "EMU_MPS"}, "emulator")])
async def test_names_that_contradict_each_other_are_refused(rig: Doors, of: dict[str, Any], field: str) -> None:
    assert await rig.refusal("POST", "/api/v1/batches", body(**of)) == (400, "invalid", field)


async def test_the_same_call_with_the_same_key_makes_one_batch(rig: Doors) -> None:
    calls = [rig.done("POST", "/api/v1/batches", body(), Idempotency_Key="k") for _ in range(5)]
    assert len({batch["id"] for batch in await asyncio.gather(*calls)}) == 1
    answer = await rig.refusal("POST", "/api/v1/batches", body(name="other"), Idempotency_Key="k")
    assert answer == (409, "idempotency", None)
    assert (await rig.refusal("POST", "/api/v1/batches", body(), Idempotency_Key="k" * 256))[0] == 422


async def test_without_a_key_each_call_makes_a_batch(rig: Doors) -> None:
    assert len({await rig.post() for _ in range(3)}) == 3


async def test_many_submits_at_once_all_succeed(rig: Doors) -> None:
    ids = await asyncio.gather(*(rig.post() for _ in range(50)))
    assert len(set(ids)) == 50


async def test_ten_thousand_jobs_are_one_call(rig: Doors) -> None:
    batch_id = await rig.post(jobs=[JOB] * MAX_JOBS_PER_CALL)
    assert (await rig.record(batch_id)).jobs == MAX_JOBS_PER_CALL
    batch = await rig.done("GET", f"/api/v2/batches/{batch_id}")
    assert batch["jobs"] == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"jobs": []}, "jobs"),
    ({"jobs": None}, "jobs"),
    ({"jobs": {}}, "jobs"),
    ({"jobs": [None]}, "jobs[0]"),
    ({"jobs": [JOB, {"runs": "5"}]}, "jobs[1].runs"),
    ({"jobs": [JOB, {"runs": 0, "variables": {"omega": 1}}]}, "jobs[1].runs"),
    ({"jobs": [JOB | {"runs": 2**70}]}, "jobs[0].runs"),
    ({"jobs": [{"variables": {"omega": 1}}]}, "jobs[0].runs"),
    ({"jobs": [{"runs": 5}]}, "jobs[0].variables.omega"),
    ({"jobs": [{"runs": 5, "variables": {"omega": "x"}}]}, "jobs[0].variables.omega"),
    ({"jobs": [{"runs": 5, "variables": {"omega": 2**64}}]}, "jobs[0].variables.omega"),
    ({"jobs": [{"runs": 5, "variables": {"omega": [1, 2]}}]}, "jobs[0].variables.omega"),
    ({"jobs": [{"runs": 5, "variables": {"omega": 1, "omeg": 1}}]}, "jobs[0].variables.omeg"),
    ({"jobs": [{"runs": 5, "variables": [1]}]}, "jobs[0].variables"),
    ({"jobs": [JOB | {"seed": -1}]}, "jobs[0].seed"),
    ({"jobs": [JOB | {"sequence": "{}"}]}, "jobs[0].variables"),
    ({"jobs": [{"runs": 5, "sequence": SEQUENCE}]}, "jobs[0].sequence"),
    ({"sequence_builder": None}, "jobs[0].sequence"),
    ({"sequence_builder": ""}, "sequence_builder"),
    ({"sequence_builder": "{}"}, "sequence_builder"),
    ({"sequence_builder": "{}", "device_type": None}, "sequence_builder"),
    ({"sequence_builder": json.loads(SEQUENCE)}, "sequence_builder"),
    ({"sequence_builder": None, "device_type": None}, "device_type"),
    ({"sequence_builder": None, "device_type": None, "jobs": [{"sequence": "x"}]}, "jobs[0].sequence"),
    ({"device_type": "NOWHERE"}, "device_type"),
    ({"device_type": 7}, "device_type"),
    ({"open": "yes"}, "open"),
    ({"tags": "a"}, "tags"),
    ({"tags": ["a", "a"]}, "tags[1]"),
    ({"tags": ["x" * 101]}, "tags[0]"),
    ({"configuration": []}, "configuration"),
    ({"backend_configuration": {}}, "backend_configuration"),
    ({"backend_configuration": "[]"}, "backend_configuration"),
    ({"queue_priority": "CRITICAL"}, "queue_priority"),
    ({"name": ""}, "name"),
    ({"project_id": 7}, "project_id"),
    ({"open": 1}, "open"),
]


async def test_a_wrong_field_is_named_and_nothing_is_written(rig: Doors) -> None:
    for parts, field in WRONG:
        assert await rig.refusal("POST", "/api/v1/batches", body(**parts)) == (400, "invalid", field), parts


@pytest.mark.parametrize("device", [DEVICE, LOOSE])
async def test_the_number_of_jobs_a_call_is_bounded_on_every_device(rig: Doors, device: str) -> None:
    too_many = body(jobs=[JOB] * (MAX_JOBS_PER_CALL + 1), device_type=device)
    assert await rig.refusal("POST", "/api/v1/batches", too_many) == (413, "too_many_jobs", "jobs")
    batch_id = await rig.post(open=True, device_type=device)
    answer = await rig.refusal("POST", f"/api/v2/batches/{batch_id}/jobs", too_many["jobs"])
    assert answer == (413, "too_many_jobs", "jobs")


@pytest.mark.parametrize("device", [DEVICE, LOOSE])
async def test_the_length_of_a_sequence_is_bounded_on_every_device(rig: Doors, device: str) -> None:
    long = SEQUENCE + " " * MAX_SEQUENCE_BYTES
    headers = {"Content_Encoding": "gzip", "Content_Type": "application/json"}
    for parts, field in (
        ({"sequence_builder": long}, "sequence_builder"),
        ({"jobs": [JOB, {"runs": 1, "sequence": long}]}, "jobs[1].sequence"),
    ):
        packed = gzip.compress(json.dumps(body(device_type=device, **parts)).encode())
        assert await rig.refusal("POST", "/api/v1/batches", packed, **headers) == (413, "sequence_too_long", field)


@pytest.mark.parametrize("sign", ["\0", "\x1b", "\n", "\x7f", "\x85"])
@pytest.mark.parametrize("device", ["EMU_FREE", LOOSE])
async def test_control_characters_are_refused_in_every_text_of_a_batch(rig: Doors, device: str, sign: str) -> None:
    text = f"a{sign}b"
    for changed, field in (
        ({"name": text}, "name"),
        ({"tags": ["fine", text]}, "tags[1]"),
        ({"webhook": f"https://hooks.example.org/{text}"}, "webhook"),
        ({"configuration": {"dt": {text: 1}}}, "configuration.dt"),
    ):
        refusal = await rig.refusal("POST", "/api/v1/batches", body(device_type=device) | changed)
        assert refusal[2] == field
        assert refusal[:2] in ((400, "invalid"), (422, "malformed"))
    batch_id = await rig.post(device_type=device, open=True)
    assert await rig.refusal("PATCH", f"/api/v1/batches/{batch_id}/tags", [text]) == (400, "invalid", "tags[0]")


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ({"variables": {"x": 2**70}}, "variables.x"),
        ({"runs": 2**70}, "runs"),
        ({"seed": -(2**70)}, "seed"),
        ({"variables": {"x": [[{"y": 2**64}]]}}, "variables.x.0"),
        ({"variables": {"x": "a\0"}}, "variables.x"),
        ({"variables": {"a\u009b": 1}}, "variables"),
        ({"sequence": "a\0b"}, "sequence"),
    ],
)
async def test_a_device_that_accepts_any_sequence_refuses_what_cannot_be_stored(
    rig: Doors, job: dict[str, Any], field: str
) -> None:
    loose = body(device_type=LOOSE, sequence_builder=None)
    answer = await rig.refusal("POST", "/api/v1/batches", loose | {"jobs": [{"runs": 1}, job]})
    assert answer == (400, "invalid", f"jobs[1].{field}")
    answer = await rig.refusal("POST", "/api/v1/batches", loose | {"configuration": {"x": 2**70}})
    assert answer == (400, "invalid", "configuration.x")
    assert (await rig.ask("POST", "/api/v1/batches", loose)).status_code == 200


HOSTILE: list[tuple[bytes, dict[str, str], tuple[int, str]]] = [
    (b"", {}, (400, "not_json")),
    (b"null", {}, (400, "invalid")),
    (b"[]", {}, (400, "invalid")),
    (b'"jobs"', {}, (400, "invalid")),
    (json.dumps(body()).encode()[:-1], {}, (400, "not_json")),
    (json.dumps(body()).encode() + b"}", {}, (400, "not_json")),
    (json.dumps(body()).encode() * 2, {}, (400, "not_json")),
    (json.dumps(body()).encode("utf-16"), {}, (400, "not_json")),
    (json.dumps(body(name="é"), ensure_ascii=False).encode("latin-1"), {}, (400, "not_json")),
    (json.dumps(body(name="\ud800")).encode(), {}, (400, "not_json")),
    (json.dumps(body(tags=["\udfff"])).encode(), {}, (400, "not_json")),
    (json.dumps(body(jobs=[{"runs": 1, "variables": {"omega": float("nan")}}])).encode(), {}, (400, "not_json")),
    (json.dumps(body(configuration={"x": float("-inf")})).encode(), {}, (400, "not_json")),
    (b'{"project_id":"theirs",' + json.dumps(body()).encode()[1:], {}, (400, "repeated_key")),
    (b'{"jobs":[],' + json.dumps(body()).encode()[1:], {}, (400, "repeated_key")),
    (b'{"jobs":' + b"[" * 200_000, {}, (400, "nested_too_deeply")),
    (
        json.dumps(body(configuration={"x": [[]]})).replace("[[]]", "[" * 99 + "]" * 99).encode(),
        {},
        (400, "nested_too_deeply"),
    ),
    (json.dumps(body()).replace("6.0", "9" * 5000).encode(), {}, (400, "number_too_long")),
    (json.dumps(body()).replace("50", "9" * 5000).encode(), {}, (400, "number_too_long")),
    (json.dumps(body()).replace("6.0", "1e400").encode(), {}, (400, "not_json")),
    (b" " * (1 << 20) + json.dumps(body()).encode(), {}, (413, "body_too_large")),
    (gzip.compress(b"[" * (21 << 20)), {"Content_Encoding": "gzip"}, (413, "unpacked_too_large")),
    (gzip.compress(gzip.compress(json.dumps(body()).encode())), {"Content_Encoding": "gzip"}, (400, "not_json")),
    (gzip.compress(json.dumps(body()).encode())[:-9], {"Content_Encoding": "gzip"}, (400, "broken_gzip")),
    (gzip.compress(json.dumps(body()).encode()) + b"!", {"Content_Encoding": "gzip"}, (400, "broken_gzip")),
    (json.dumps(body()).encode(), {"Content_Encoding": "gzip"}, (400, "broken_gzip")),
    (json.dumps(body()).encode(), {"Content_Encoding": "br"}, (415, "content_encoding")),
    (b"jobs=1", {"Content_Type": "application/x-www-form-urlencoded"}, (415, "content_type")),
]


async def test_hostile_bodies_are_refused_whole_or_in_chunks(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    for content, headers, (status, reason) in HOSTILE:
        paths = ["/api/v1/batches"]
        if reason != "invalid" and b"[]" not in content:  # this route expects a list
            paths.append(f"/api/v2/batches/{batch_id}/jobs")
        for path in paths:
            for sent in (content, in_chunks(content)):
                named = {"Content_Type": "application/json"} | headers
                answer = await rig.refusal("POST", path, sent, **named)
                assert (answer[:2], bool(answer[2])) == ((status, reason), True), content[:100]


async def in_chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


wild = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(BatchBody.__struct_fields__)


@given(
    parts=st.dictionaries(fields, wild, min_size=1, max_size=3), job=st.dictionaries(st.sampled_from(list(JOB)), wild)
)
@hypothesis_settings(
    max_examples=effort(short=40, full=150), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
async def test_no_value_of_any_field_causes_an_internal_error(
    rig: Doors, parts: dict[str, Any], job: dict[str, Any]
) -> None:
    for device in (DEVICE, LOOSE):
        sent = {**body(device_type=device, jobs=[JOB, job]), **parts}
        answer = await rig.ask("POST", "/api/v1/batches", json.dumps(sent).encode())
        assert answer.status_code in (200, 400, 403, 422), answer.text
        assert answer.status_code == 200 or answer.json()["data"]["field"]


# --- whose


async def test_a_key_of_one_project_needs_to_name_none(rig: Doors) -> None:
    del (parts := body())["project_id"]
    assert (await rig.done("POST", "/api/v1/batches", parts))["project_id"] == OURS
    assert (await rig.done("POST", "/api/v1/batches", parts, key="theirs"))["project_id"] == THEIRS


@pytest.mark.parametrize("project", [THEIRS, "nowhere", " ", "x" * 10_000, "a\nb"])
async def test_a_foreign_project_is_refused_like_one_that_does_not_exist(rig: Doors, project: str) -> None:
    before = await rig.everything()
    answer = await rig.ask("POST", "/api/v1/batches", body(project_id=project))
    assert (answer.status_code, answer.json()["data"]["reason"]) == (403, "foreign_project")
    assert answer.json()["data"]["field"] == "project_id"
    assert answer.json()["data"]["description"] == "project_id: is not a project of this key; use a key of the project"
    assert await rig.everything() == before


async def test_a_submit_of_a_session_with_several_projects_names_one(rig: Doors) -> None:
    assert await rig.refusal("POST", "/api/v1/batches", body(project_id=None), key="both") == (
        400,
        "invalid",
        "project_id",
    )
    batch = await rig.done("POST", "/api/v1/batches", body(project_id=THEIRS), key="both")
    assert (batch["project_id"], batch["user_id"]) == (THEIRS, rig.user)
    assert (await rig.refusal("POST", "/api/v1/batches", body(), key="none"))[0] == 403
    assert (await rig.refusal("POST", "/api/v1/batches", body(project_id=None), key="none"))[0] == 400


async def test_an_operator_submits_for_any_project(rig: Doors) -> None:
    assert (await rig.done("POST", "/api/v1/batches", body(project_id=THEIRS), key="operator"))["project_id"] == THEIRS
    for project in (None, "not/an/id", ""):
        answer = await rig.refusal("POST", "/api/v1/batches", body(project_id=project), key="operator")
        assert answer == (400, "invalid", "project_id")


async def test_a_key_that_only_reads_writes_nothing(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    job = job_id(batch_id, 0)
    for method, path in writes(batch_id, job):
        assert (await rig.refusal(method, path, body(), key="reader"))[:2] == (403, "forbidden")


def writes(batch_id: UUID, job: UUID) -> list[tuple[str, str]]:
    return [("POST", "/api/v1/batches"), *commands(batch_id, job)]


def commands(batch_id: UUID, job: UUID) -> list[tuple[str, str]]:
    return [
        ("POST", f"/api/v2/batches/{batch_id}/jobs"),
        ("PATCH", f"/api/v2/batches/{batch_id}/complete"),
        ("PATCH", f"/api/v2/batches/{batch_id}/cancel"),
        ("PATCH", f"/api/v2/jobs/{job}/cancel"),
    ]


async def test_without_a_key_nothing_is_read_or_written(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    for method, path in writes(batch_id, job_id(batch_id, 0)):
        before = await rig.everything()
        answer = await rig.stranger.request(method, path, content=b"[" * 1000)
        assert answer.status_code == 401
        assert await rig.everything() == before


async def test_batches_of_other_projects_are_not_found(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    unknown = commands(UNKNOWN, job_id(UNKNOWN, 0))
    for (method, path), (_, nowhere) in zip(commands(batch_id, job_id(batch_id, 0)), unknown, strict=True):
        answer = await rig.ask(method, path, [JOB], key="theirs")
        other = await rig.ask(method, nowhere, [JOB], key="theirs")
        assert answer.status_code == other.status_code == 404
        assert answer.text.replace(str(batch_id)[:30], "") == other.text.replace(str(UNKNOWN)[:30], "")
    for method, path in commands(batch_id, job_id(batch_id, 0)):
        assert (await rig.refusal(method, path, [JOB], key="theirs"))[:2] == (404, "not_found")
    assert (await rig.record(batch_id)).open


async def test_foreign_batches_are_not_found_even_with_an_invalid_body(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    for of in (batch_id, UNKNOWN):
        answer = await rig.refusal("POST", f"/api/v2/batches/{of}/jobs", b"{", key="theirs")
        assert answer[:2] == (404, "not_found")


async def test_a_user_of_several_projects_can_write_to_each(rig: Doors) -> None:
    for project in (OURS, THEIRS):
        batch = await rig.done("POST", "/api/v1/batches", body(project_id=project), key="operator")
        cancelled = await rig.done("PATCH", f"/api/v2/batches/{batch['id']}/cancel", key="both")
        assert cancelled["status"] == "CANCELED"


# --- commands


async def test_jobs_are_added_to_an_open_batch(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    more = [{"runs": 5, "variables": {"omega": 1}, "sequence": None}, JOB]
    batch = await rig.done("POST", f"/api/v2/batches/{batch_id}/jobs", more)
    assert [job["runs"] for job in batch["jobs"]] == [50, 5, 50]
    assert [job["creation_order"] for job in batch["jobs"]] == [0, 1, 2]


async def test_the_same_jobs_with_the_same_key_are_added_once(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    for _ in range(3):
        batch = await rig.done("POST", f"/api/v2/batches/{batch_id}/jobs", [JOB], Idempotency_Key="k")
        assert batch["jobs_count"] == 2


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ([], "jobs"),
        ({}, "jobs"),
        ({"jobs": [JOB]}, "jobs"),
        ([7], "jobs[0]"),
        ([JOB, {"runs": []}], "jobs[1].runs"),
        ([JOB, {"runs": 5}], "jobs[1].variables.omega"),
    ],
)
async def test_invalid_jobs_are_named_and_none_is_added(rig: Doors, content: Any, field: str) -> None:
    batch_id = await rig.post(open=True)
    assert await rig.refusal("POST", f"/api/v2/batches/{batch_id}/jobs", content) == (400, "invalid", field)


async def test_a_batch_is_closed_once_and_for_all(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    for _ in range(2):
        batch = await rig.done("PATCH", f"/api/v2/batches/{batch_id}/complete")
        assert (batch["open"], batch["complete"], batch["status"]) == (False, True, "PENDING")
    assert await rig.refusal("POST", f"/api/v2/batches/{batch_id}/jobs", [JOB]) == (409, "closed", None)
    await rig.run()
    assert (await rig.done("PATCH", f"/api/v2/batches/{batch_id}/complete"))["status"] == "DONE"


async def test_an_open_batch_without_work_ends_when_it_is_closed(rig: Doors) -> None:
    batch_id = await rig.post(open=True, jobs=[])
    assert (await rig.done("PATCH", f"/api/v2/batches/{batch_id}/complete"))["status"] == "DONE"


async def test_a_batch_is_cancelled(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    batch = await rig.done("PATCH", f"/api/v2/batches/{batch_id}/cancel")
    assert (batch["status"], [job["status"] for job in batch["jobs"]]) == ("CANCELED", ["CANCELED"])
    assert await rig.refusal("PATCH", f"/api/v2/batches/{batch_id}/cancel") == (409, "terminal", None)
    assert await rig.refusal("POST", f"/api/v2/batches/{batch_id}/jobs", [JOB]) == (409, "terminal", None)


async def test_a_job_is_cancelled(rig: Doors) -> None:
    batch_id = await rig.post(jobs=[JOB, JOB])
    path = f"/api/v2/jobs/{job_id(batch_id, 1)}/cancel"
    job = await rig.done("PATCH", path)
    assert (job["status"], job["creation_order"]) == ("CANCELED", 1)
    assert await rig.refusal("PATCH", path) == (409, "terminal", None)
    assert (await rig.record(batch_id)).counts[JobStatus.PENDING] == 1


async def test_a_running_job_is_asked_to_stop(rig: Doors) -> None:
    batch_id = await rig.post()
    await rig.take()
    job = await rig.done("PATCH", f"/api/v2/jobs/{job_id(batch_id, 0)}/cancel")
    assert job["status"] == "RUNNING"
    (record,) = await rig.store.reader.jobs(await rig.record(batch_id), [0])
    assert record.cancel_requests == 1


async def test_the_author_and_the_outcome_of_a_cancel_are_shown(rig: Doors) -> None:
    batch_id = await rig.post(jobs=[JOB, JOB])
    grant = await rig.take()
    running, waiting = (job_id(batch_id, index) for index in (0, 1))
    key, of_session = (text.split("_")[1] for text in (rig.keys["ours"], rig.keys["both"]))
    asked = await rig.done("PATCH", f"/api/v2/jobs/{running}/cancel")
    assert (asked["cancel_outcome"], asked["cancel_attempts"][0]["by"]) == (None, f"key {key}")
    await rig.done("PATCH", f"/api/v2/batches/{batch_id}/cancel/jobs?id={running}", key="both")
    await rig.done("PATCH", f"/api/v2/batches/{batch_id}/cancel", key="operator")
    partial = Outcome(OutcomeKind.CANCELED, result=Result(counter={"01": 3}))
    settlements = [Settlement.of(0, partial)]
    await rig.store.tickets.settle(grant.ticket, grant.token, settlements, want=1, used_s=0.1, lease_s=60)
    recorder = Recorder(rig.store, rig.database, namespace="tweezer")
    for forgotten in (False, True):
        if forgotten:
            await recorder.resume()
            await recorder.catch_up()
            await rig.forget(batch_id)
        stopped, prevented = [await rig.done("GET", f"/api/v2/jobs/{job}") for job in (running, waiting)]
        assert (stopped["cancel_outcome"], prevented["cancel_outcome"]) == ("stopped", "prevented")
        first, second, *_ = [attempt["by"] for attempt in stopped["cancel_attempts"]]
        assert (first, second) == (f"key {key}", f"{rig.user} (key {of_session})")
        result = (await rig.ask("GET", f"/api/v1/jobs/{running}/results")).json()
        assert result["counter"] == {"01": 3}
        assert (await rig.done("GET", f"/api/v1/jobs/{running}/results_link"))["results_link"]
        assert (await rig.ask("GET", f"/api/v1/jobs/{waiting}/results")).status_code == 404
        links = await rig.done("GET", f"/api/v1/batches/{batch_id}/results_link")
        assert (list(links["results_links"]), list(links["errors"])) == ([str(running)], [str(waiting)])


async def test_a_job_that_its_batch_does_not_contain_is_not_found(rig: Doors) -> None:
    batch_id = await rig.post()
    assert (await rig.refusal("PATCH", f"/api/v2/jobs/{job_id(batch_id, 1)}/cancel"))[:2] == (404, "not_found")


async def test_a_forgotten_batch_answers_that_it_has_ended(rig: Doors) -> None:
    batch_id = await rig.post()
    await rig.run()
    await rig.forget(batch_id)
    job = job_id(batch_id, 0)
    assert await rig.refusal("POST", f"/api/v2/batches/{batch_id}/jobs", [JOB]) == (409, "terminal", None)
    assert await rig.refusal("PATCH", f"/api/v2/batches/{batch_id}/cancel") == (409, "terminal", None)
    assert await rig.refusal("PATCH", f"/api/v2/jobs/{job}/cancel") == (409, "terminal", None)
    assert (await rig.done("PATCH", f"/api/v2/batches/{batch_id}/complete"))["status"] == "DONE"
    for method, path in commands(batch_id, job):
        assert (await rig.refusal(method, path, [JOB], key="theirs"))[:2] == (404, "not_found")


async def test_a_batch_that_redis_lost_is_not_reported_as_ended(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    recorder = Recorder(rig.store, rig.database, namespace="tweezer")
    await recorder.resume()
    await recorder.catch_up()
    redis: Any = rig.store.redis
    for name in await redis.keys(f"tweezer:batch:{batch_id}*"):
        await redis.delete(name)
    for method, path in commands(batch_id, job_id(batch_id, 0)):
        assert (await rig.refusal(method, path, [JOB]))[:2] == (503, "unavailable")


async def test_invalid_ids_are_refused(rig: Doors) -> None:
    for method, path in commands(UUID(int=0), UUID(int=0)):
        answer = await rig.refusal(method, path.replace(str(UUID(int=0)), "7"), [JOB])
        assert answer[:2] == (422, "malformed")


async def test_a_body_that_is_not_needed_is_not_read(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    answer = await rig.ask("PATCH", f"/api/v2/batches/{batch_id}/complete", b"[" * 100_000)
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"


async def test_an_unavailable_redis_is_reported_as_retryable(rig: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*arguments: Any, **named: Any) -> Any:
        raise Unavailable("Redis cannot be reached: gone")

    monkeypatch.setattr(rig.store.scripts, "call", away)
    answer = await rig.ask("POST", "/api/v1/batches", body())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_a_caller_over_its_rate_is_refused_before_the_body_is_read(
    ledger: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tweezer.api.app.BURST_S", 20)
    rig = Doors(Settings(api=ApiSettings(requests_per_s=0.1), data_dir=tmp_path), ledger)
    for key in ("ours", "both"):
        answers = [await rig.ask("POST", "/api/v1/batches", b"{", key=key) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [400, 400, 429]
        assert answers[2].json()["data"]["reason"] == "too_many_requests"
        assert 1 <= int(answers[2].headers["retry-after"]) <= 10
    await rig.close()


# --- the document


async def test_the_openapi_document_describes_the_bodies(rig: Doors) -> None:
    document = (await rig.http.get("/openapi.json")).json()
    paths = document["paths"]
    reference = paths["/api/v1/batches"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert reference == {"$ref": "#/components/schemas/BatchBody"}
    schema = document["components"]["schemas"]["BatchBody"]
    assert set(schema["properties"]) == set(BatchBody.__struct_fields__)
    assert all(about.get("description") for about in schema["properties"].values())
    added = paths["/api/v2/batches/{batch_id}/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert (added["type"], added["maxItems"]) == ("array", MAX_JOBS_PER_CALL)
    assert {"400", "401", "403", "408", "413", "415", "429"} <= set(paths["/api/v1/batches"]["post"]["responses"])


# --- records of another version


async def test_a_batch_that_a_newer_tweezer_wrote_is_named_by_every_route(rig: Doors) -> None:
    batch_id = await rig.post(open=True)
    redis: Any = rig.store.redis
    await redis.hset(f"tweezer:batch:{batch_id}", "v", NEWER)
    job = job_id(batch_id, 0)
    before = await rig.everything()
    for method, path, content in (
        ("GET", f"/api/v2/batches/{batch_id}", None),
        ("GET", f"/api/v1/batches/{batch_id}", None),
        ("GET", f"/api/v1/batches/{batch_id}/status?wait_s=0", None),
        ("GET", f"/api/v2/jobs/{job}", None),
        ("GET", f"/api/v1/jobs/{job}/results", None),
        ("PATCH", f"/api/v2/batches/{batch_id}/cancel", None),
        ("PUT", f"/api/v1/batches/{batch_id}/cancel", None),
        ("PATCH", f"/api/v2/batches/{batch_id}/cancel/jobs", None),
        ("PATCH", f"/api/v2/jobs/{job}/cancel", None),
        ("PATCH", f"/api/v2/batches/{batch_id}/complete", None),
        ("PATCH", f"/api/v1/batches/{batch_id}/tags", ["a"]),
        ("POST", f"/api/v2/batches/{batch_id}/jobs", [JOB]),
        ("POST", f"/api/v1/batches/{batch_id}/rebatch", None),
    ):
        answer = await rig.ask(method, path, content)
        told = answer.json()["data"]
        assert (answer.status_code, told["reason"]) == (409, "newer_record"), (path, answer.text)
        assert f"was written by a newer Tweezer: its record has version {NEWER}" in told["description"]
        assert str(batch_id) in told["description"]
    several = await rig.done("PATCH", "/api/v1/batches/cancel", {"batch_ids": [str(batch_id)]})
    assert f"its record has version {NEWER}" in several["errors"][str(batch_id)]
    assert await rig.everything() == before
    await redis.hset(f"tweezer:batch:{batch_id}", "v", VERSION)
    canceled = await rig.done("PATCH", f"/api/v2/batches/{batch_id}/cancel")
    assert canceled["status"] == "CANCELED"
