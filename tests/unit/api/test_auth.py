"""Access: keys, roles, log-ins, signed links, and the responses to callers without access."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import argon2
import httpx
import pytest
from fastapi import APIRouter
from sqlalchemy import insert, select, update
from tests.support.api_rig import HOST, PROJECT, SECRETS_KEY, SOON_S, ApiRig, bearer
from tests.support.waiting import until

from tweezer.api.access import auth, logins
from tweezer.api.access.auth import OPEN_PATHS, REMEMBERED_S, Authenticator
from tweezer.api.access.dependencies import Caller, Scraper, Submitter
from tweezer.api.access.logins import Logins, get_network
from tweezer.ledger.access.credentials import Principal, Role, key_id, new_key
from tweezer.ledger.access.keys import create_key, find_key, list_keys, revoke_key
from tweezer.ledger.access.links import NAME, OVERLAP_S, Signer, read_link_keys, rotate_link_keys
from tweezer.ledger.access.projects import project_no
from tweezer.ledger.access.users import (
    add_to_project,
    create_user,
    find_login,
    hash_password,
    open_session,
    set_disabled,
    set_password,
)
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.config import LINK_MAX_S
from tweezer.ledger.database import Database
from tweezer.ledger.schema import keys, now_ms, secrets, users
from tweezer.model import lru
from tweezer.model.errors import Unavailable
from tweezer.model.ids import job_id, new_batch_id
from tweezer.settings import ApiSettings, SecretsSettings, Settings
from tweezer.store.guards import FAILURES_MAX, LOGIN_WINDOW_S, CountedBy

ID = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"
DEVICES = "/api/v1/devices"
PASSWORD = "correct horse battery"
QUICK_HASH = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(longpoll_s=0, link_s=100, session_s=500)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


class Clock:
    """The clock of the authenticator."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (auth, lru):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Counted:
    """A database that counts its calls, and that can be unavailable or slow."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0
        self.away = False
        self.gate: asyncio.Event | None = None

    async def run_read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        await self._count()
        return await self._database.run_read(work, *arguments)

    async def run_write(self, work: Callable[..., Any], *arguments: Any) -> Any:
        await self._count()
        return await self._database.run_write(work, *arguments)

    async def _count(self) -> None:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise Unavailable("the ledger's database cannot be used: it is away")


@pytest.fixture
def counted(ledger: Database) -> Counted:
    return Counted(ledger)


def watch(counted: Counted) -> Authenticator:
    return Authenticator(counted)  # type: ignore[arg-type]  # it has everything that is needed of a database


def make_key(ledger: Database, **options: Any) -> str:
    with ledger.write() as connection:
        project_no(connection, PROJECT)
        return create_key(connection, name="k", project_id=PROJECT, **options).text


def revoke(ledger: Database, key: str) -> None:
    with ledger.write() as connection:
        revoke_key(connection, key_id(key) or "")


def make_user(ledger: Database, name: str = "ada", *projects: str, password: str = PASSWORD) -> str:
    """Make a user whose password is checked quickly, and return its id."""
    with ledger.write() as connection:
        user = create_user(connection, name, QUICK_HASH.hash(password))
        for project in projects:
            project_no(connection, project)
            add_to_project(connection, name, project)
        return user.id


# -- the key of a request -------------------------------------------------------------------------------


async def test_every_route_except_the_open_ones_requires_a_key(rig: ApiRig) -> None:
    document = (await rig.stranger.get("/openapi.json")).json()
    closed = {path: its for path, its in document["paths"].items() if path not in OPEN_PATHS}
    assert len(closed) > 10
    for path, methods in closed.items():
        for method in methods:
            answer = await rig.stranger.request(method, path.format_map(Filled()))
            assert answer.status_code == 401, f"{method} {path}"


class Filled(dict[str, str]):
    """Fill every parameter of a path with an id."""

    def __missing__(self, name: str) -> str:
        return ID


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json"])
async def test_health_can_be_read_without_a_key(rig: ApiRig, path: str) -> None:
    assert (await rig.stranger.get(path)).status_code == 200


async def test_every_failed_authentication_has_the_same_response(rig: ApiRig, ledger: Database) -> None:
    good = rig.key()
    revoked, expired, disabled = rig.key(), rig.key(expires_s=60), rig.key(user_id=make_user(ledger))
    revoke(ledger, revoked)
    with ledger.write() as connection:
        over = {"expires_ms": now_ms() - 1}
        connection.execute(update(keys).where(keys.c.id == key_id(expired)).values(over))
        set_disabled(connection, "ada", disabled=True)
    headers: list[list[tuple[str, str | bytes]]] = [
        [],
        [("Authorization", f"Bearer {revoked}")],
        [("Authorization", f"Bearer {expired}")],
        [("Authorization", f"Bearer {disabled}")],
        [("Authorization", f"Bearer {new_key()}")],
        [("Authorization", f"Bearer {good[:17]}{new_key()[17:]}")],
        [("Authorization", f"Bearer {good[:-1]}")],
        [("Authorization", f"Bearer {good}x")],
        [("Authorization", f"Bearer {good.upper()}")],
        [("Authorization", good)],
        [("Authorization", f"Basic {good}")],
        [("Authorization", "Bearer")],
        [("Authorization", b"Bearer \xff")],
        [("Authorization", f"Bearer {'a' * 5000}")],
        [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")],
        [("Cookie", f"key={good}"), ("X-Api-Key", good)],
    ]
    assert (await rig.stranger.get(DEVICES, headers=bearer(good))).status_code == 200
    answers = [await rig.stranger.get(DEVICES, headers=cast(Any, each)) for each in headers]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert len({tuple(answer.headers.items()) for answer in answers}) == 1
    assert answers[0].headers["www-authenticate"] == 'Bearer realm="tweezer"'
    assert answers[0].json()["data"]["reason"] == "unauthorized"


async def test_a_key_in_the_query_is_ignored(rig: ApiRig) -> None:
    assert (await rig.stranger.get(DEVICES, params={"key": rig.key(), "access_token": rig.key()})).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_authorization_scheme_is_case_insensitive(rig: ApiRig, scheme: str) -> None:
    answer = await rig.stranger.get(DEVICES, headers={"Authorization": f"{scheme} {rig.key()}"})
    assert answer.status_code == 200


async def test_a_stranger_does_not_learn_which_routes_there_are(rig: ApiRig) -> None:
    assert (await rig.stranger.get("/api/v1/nowhere")).status_code == 401
    assert (await rig.stranger.get(f"{DEVICES}/")).status_code == 401
    assert (await rig.http.get("/api/v1/nowhere")).status_code == 404


async def test_the_document_marks_the_routes_that_need_a_key(rig: ApiRig) -> None:
    document = (await rig.stranger.get("/openapi.json")).json()
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in OPEN_PATHS), path


# -- look-ups -------------------------------------------------------------------------------------------


async def test_a_key_is_looked_up_at_most_once_a_second(ledger: Database, counted: Counted, clock: Clock) -> None:
    key, doorman = make_key(ledger), watch(counted)
    for _ in range(10):
        principal = await doorman.principal(key)
        assert principal is not None
        assert principal.projects == {PROJECT}
        clock.now += REMEMBERED_S / 11
    assert counted.asked == 1
    clock.now += REMEMBERED_S
    await doorman.principal(key)
    assert counted.asked == 2


async def test_a_revoked_key_is_refused_after_a_second(ledger: Database, counted: Counted, clock: Clock) -> None:
    assert REMEMBERED_S <= 1
    key, doorman = make_key(ledger), watch(counted)
    assert await doorman.principal(key) is not None
    revoke(ledger, key)
    clock.now += REMEMBERED_S + 0.001
    assert await doorman.principal(key) is None


async def test_a_cached_key_is_refused_after_its_expiry(ledger: Database, counted: Counted, clock: Clock) -> None:
    key, doorman = make_key(ledger, expires_s=0.3), watch(counted)
    assert await doorman.principal(key) is not None
    clock.now += 0.31
    with ledger.write() as connection:  # the ledger uses the real clock
        connection.execute(update(keys).values(expires_ms=now_ms() - 1))
    assert await doorman.principal(key) is None


async def test_a_new_project_of_a_user_is_seen_after_a_second(ledger: Database, counted: Counted, clock: Clock) -> None:
    make_user(ledger, "ada", "one")
    doorman = watch(counted)
    with ledger.write() as connection:
        login = find_login(connection, "ada")
        session = open_session(connection, login, password=login.password or "", session_s=60)
        project_no(connection, "two")
        assert session is not None
    assert (await principal_of(doorman, session.text)).projects == {"one"}
    with ledger.write() as connection:
        add_to_project(connection, "ada", "two")
    clock.now += REMEMBERED_S + 0.001
    assert (await principal_of(doorman, session.text)).projects == {"one", "two"}


async def principal_of(doorman: Authenticator, key: str) -> Principal:
    principal = await doorman.principal(key)
    assert principal is not None
    return principal


async def test_concurrent_requests_share_one_look_up(ledger: Database, counted: Counted) -> None:
    key, doorman = make_key(ledger), watch(counted)
    found = await asyncio.gather(*(doorman.principal(key) for _ in range(50)))
    assert counted.asked == 1
    assert len({principal.key for principal in found if principal is not None}) == 1
    assert None not in found


async def test_later_requests_do_not_join_a_slow_look_up(ledger: Database, counted: Counted, clock: Clock) -> None:
    key, doorman = make_key(ledger), watch(counted)
    counted.gate = asyncio.Event()
    first = asyncio.create_task(doorman.principal(key))
    await until(lambda: counted.asked == 1)
    clock.now += REMEMBERED_S + 0.001
    second = asyncio.create_task(doorman.principal(key))
    await until(lambda: counted.asked == 2)
    counted.gate.set()
    assert await first is not None
    assert await second is not None


async def test_a_cancelled_request_does_not_cancel_a_shared_look_up(ledger: Database, counted: Counted) -> None:
    key, doorman = make_key(ledger), watch(counted)
    counted.gate = asyncio.Event()
    asking = [asyncio.create_task(doorman.principal(key)) for _ in range(2)]
    await until(lambda: counted.asked == 1)
    asking[0].cancel()
    counted.gate.set()
    assert await asyncio.wait_for(asking[1], SOON_S) is not None
    assert asking[0].cancelled()


async def test_unknown_keys_fill_no_memory(ledger: Database, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_REMEMBERED_MAX", 5)
    doorman = watch(counted)
    key = make_key(ledger)
    for _ in range(20):
        assert await doorman.principal(new_key()) is None
        assert len(doorman._known) <= 5
    assert await doorman.principal(key) is not None


async def test_an_unknown_key_is_not_looked_up_again_within_the_second(counted: Counted, clock: Clock) -> None:
    doorman, key = watch(counted), new_key()
    for _ in range(5):
        assert await doorman.principal(key) is None
    assert counted.asked == 1


async def test_a_malformed_key_is_not_looked_up(counted: Counted) -> None:
    for text in ("", "x", "twz_", new_key()[:-1], new_key() + "\n"):
        assert await watch(counted).principal(text) is None
    assert counted.asked == 0


async def test_a_wrong_secret_with_a_known_id_is_refused(ledger: Database, counted: Counted) -> None:
    key, doorman = make_key(ledger), watch(counted)
    forged = key[:17] + new_key()[17:]
    assert await doorman.principal(forged) is None
    assert await doorman.principal(key) is not None
    assert await doorman.principal(forged) is None
    assert counted.asked == 1


async def test_without_the_database_a_cached_key_works_for_one_second(
    ledger: Database, counted: Counted, clock: Clock
) -> None:
    key, doorman = make_key(ledger), watch(counted)
    assert await doorman.principal(key) is not None
    counted.away = True
    clock.now += REMEMBERED_S - 0.001
    assert await doorman.principal(key) is not None
    clock.now += 0.002
    for _ in range(2):
        with pytest.raises(Unavailable):
            await doorman.principal(key)
    counted.away = False
    assert await doorman.principal(key) is not None


async def test_without_the_database_the_response_is_unavailable(rig: ApiRig, ledger: Database) -> None:
    key = rig.key()
    with ledger.write() as connection:
        connection.exec_driver_sql("ALTER TABLE keys RENAME TO locks")
    answer = await rig.stranger.get(DEVICES, headers=bearer(key))
    assert (answer.status_code, answer.json()["data"]["reason"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert (await rig.stranger.get("/health")).status_code == 200


async def test_only_the_use_of_valid_keys_is_recorded(ledger: Database, counted: Counted) -> None:
    used, guessed = make_key(ledger), make_key(ledger)
    doorman = watch(counted)
    await doorman.principal(used)
    await doorman.principal(guessed[:17] + new_key()[17:])
    counted.away = True
    with pytest.raises(Unavailable):
        await doorman.write_used()
    counted.away = False
    await doorman.write_used()
    with ledger.read() as connection:
        assert {key.id for key in list_keys(connection) if key.used is not None} == {key_id(used)}
    counted.asked = 0
    await doorman.write_used()
    assert counted.asked == 0


# -- roles ----------------------------------------------------------------------------------------------


async def test_the_error_for_a_forbidden_role_names_the_allowed_ones(rig: ApiRig) -> None:
    router = APIRouter()

    @router.get("/submit")
    async def submit(caller: Submitter) -> str:
        return caller.role

    @router.get("/scrape")
    async def scrape(caller: Scraper) -> str:
        return caller.role

    @router.get("/ask")
    async def ask(caller: Caller) -> str:
        return caller.role

    rig.app.include_router(router)
    allowed = {
        "/submit": {Role.USER, Role.OPERATOR},
        "/scrape": {Role.OPERATOR, Role.METRICS},
        "/ask": {Role.USER, Role.READ, Role.OPERATOR},
    }
    for role in Role:
        key = rig.key(role)
        for path, roles in allowed.items():
            answer = await rig.get(path, key=key)
            if role in roles:
                assert (answer.status_code, answer.json()) == (200, role)
            else:
                assert (answer.status_code, answer.json()["data"]["reason"]) == (403, "forbidden")
                told = answer.json()["data"]["description"]
                assert told.startswith(f"role: {role} may not do this; use a key with the role ")
                assert all(allowed_role in told for allowed_role in roles)
        assert (await rig.stranger.get("/ask")).status_code == 401


# -- what belongs to others -----------------------------------------------------------------------------

ROUTES = (
    "/api/v2/batches/{batch}",
    "/api/v1/batches/{batch}/status",
    "/api/v2/jobs/{job}",
    "/api/v1/jobs/{job}/status",
    "/api/v1/jobs/{job}/results_link",
    "/api/v1/jobs/{job}/results",
)


def fill(route: str, batch: UUID) -> str:
    return route.format(batch=batch, job=job_id(batch, 0))


@pytest.fixture
def asked(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the calls of Redis and of the ledger from now on."""
    asked: list[str] = []
    redis: Any = type(rig.store.redis)
    database = rig.database
    execute, run = redis.execute_command, database.run

    def noted_execute(client: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(str(arguments[0]))
        return execute(client, *arguments, **options)

    async def noted_run(work: Callable[..., Any], *arguments: Any) -> Any:
        asked.append(work.__qualname__)
        return await run(work, *arguments)

    monkeypatch.setattr(redis, "execute_command", noted_execute)
    monkeypatch.setattr(database, "run", noted_run)
    return asked


@pytest.mark.parametrize("route", ROUTES)
async def test_resources_of_other_projects_are_not_found(rig: ApiRig, route: str, asked: list[str]) -> None:
    key, theirs, nothing = rig.key(), await rig.submit(1, project="theirs"), new_batch_id()
    await rig.run()
    await rig.get(fill(route, new_batch_id()), key=key)  # now the key is cached, and the scripts are loaded
    told = []
    for batch in (theirs, nothing):
        asked.clear()
        answer = await rig.get(fill(route, batch), key=key)
        assert answer.status_code == 404
        text = answer.text.replace(str(job_id(batch, 0)), "JOB").replace(str(batch), "BATCH")
        told.append((text, len(answer.content), dict(answer.headers), list(asked)))
    assert told[0] == told[1]


@pytest.mark.parametrize("route", ROUTES)
async def test_resources_of_the_callers_project_are_found(rig: ApiRig, route: str) -> None:
    ours = await rig.submit(1)
    await rig.run()
    assert (await rig.get(fill(route, ours), key=rig.key())).status_code == 200
    assert (await rig.get(fill(route, ours), key=rig.key(project="theirs"))).status_code == 404
    for role, status in ((Role.OPERATOR, 200), (Role.READ, 200), (Role.METRICS, 403)):
        assert (await rig.get(fill(route, ours), key=rig.key(role))).status_code == status
    assert (await rig.get(fill(route, ours), key=rig.key(Role.READ, project="theirs"))).status_code == 404


# -- links to results -----------------------------------------------------------------------------------


@pytest.fixture
async def link(rig: ApiRig) -> str:
    """Return a link to the results of a job."""
    job = job_id(await rig.submit(1), 0)
    await rig.run()
    link: str = (await rig.data(f"/api/v1/jobs/{job}/results_link", key=rig.key()))["results_link"]
    return link


async def test_a_link_is_absolute_and_needs_no_key(rig: ApiRig, link: str) -> None:
    assert link.startswith("http://127.0.0.1:8000/api/v1/jobs/")
    answer = await rig.stranger.get(link)
    assert (answer.status_code, answer.json()["counter"]) == (200, {"01": 10})
    assert answer.headers["cache-control"] == "no-store"


async def test_a_link_works_in_every_process_of_the_api(rig: ApiRig, link: str) -> None:
    another = ApiRig(Settings(), rig.database)
    assert (await another.stranger.get(link)).json()["data"]["reason"] == "not_found"  # the signature is valid
    await another.close()


async def test_results_can_be_read_with_a_key_too(rig: ApiRig, link: str) -> None:
    path = urlsplit(link).path
    assert (await rig.get(path, key=rig.key())).status_code == 200
    assert (await rig.get(path, key=rig.key(project="theirs"))).status_code == 404
    assert (await rig.stranger.get(path)).status_code == 401


async def test_a_link_expires(rig: ApiRig, link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (expires,) = parse_qs(urlsplit(link).query)["expires"]
    assert 95 <= int(expires) - time.time() <= 100
    for later, status in ((int(expires) - 1, 200), (int(expires), 403), (int(expires) + 10_000, 403)):
        monkeypatch.setattr("tweezer.ledger.access.links.time", SimpleNamespace(time=lambda at=later: at))
        answer = await rig.stranger.get(link)
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["data"]["reason"] == "link_expired"
            assert "results_link" in answer.json()["data"]["description"]


async def test_a_changed_link_is_refused(rig: ApiRig, link: str) -> None:
    other = job_id(await rig.submit(1), 0)
    await rig.run()
    parts = urlsplit(link)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    mine = UUID(parts.path.split("/")[4])
    good, far = query["signature"], str(int(query["expires"]) + 1)
    changed = [
        (other, query),
        (mine, {**query, "expires": far}),
        (mine, {**query, "expires": "0" + query["expires"]}),
        (mine, {**query, "expires": "9" * 5000}),
        (mine, {**query, "expires": "x"}),
        (mine, {**query, "issued": str(int(query["issued"]) + 1)}),
        (mine, {name: value for name, value in query.items() if name != "issued"}),
        (mine, {"signature": good}),
        (mine, {**query, "signature": ""}),
        (mine, {**query, "signature": good[:-1]}),
        (mine, {**query, "signature": good.upper()}),
        (mine, {**query, "signature": "é"}),
        (mine, {**query, "signature": "0" * len(good)}),
    ]
    for job, parameters in changed:
        answer = await rig.stranger.get(f"/api/v1/jobs/{job}/results", params=parameters)
        assert answer.status_code == 403, parameters
        assert "01" not in answer.json()
    assert (await rig.stranger.get(f"/api/v1/jobs/{mine}/results", params={**query, "more": "1"})).status_code == 200


def forge(ledger: Database, job: str, link_s: int) -> str:
    """Forge a link with a backup of the ledger and the secrets key."""
    with ledger.read() as connection:
        keys = read_link_keys(connection, Vault.of(SECRETS_KEY, Path()))
    return Signer([key.secret for key in keys], link_s).link(HOST, job).url


async def test_a_forged_link_that_is_valid_for_years_is_refused(rig: ApiRig, ledger: Database, link: str) -> None:
    job = urlsplit(link).path.split("/")[4]
    assert (await rig.stranger.get(forge(ledger, job, LINK_MAX_S))).status_code == 200
    for link_s in (LINK_MAX_S + 1, 30 * 365 * 86_400):
        answer = await rig.stranger.get(forge(ledger, job, link_s))
        assert (answer.status_code, answer.json()["data"]["reason"]) == (403, "link_expired")


@pytest.mark.parametrize(("overlap_s", "status"), [(OVERLAP_S, 200), (0, 403)])
async def test_a_rotation_ends_links_and_the_key_in_old_backups(
    rig: ApiRig, ledger: Database, link: str, overlap_s: float, status: int
) -> None:
    path = urlsplit(link).path
    forged = forge(ledger, path.split("/")[4], 1000)
    with ledger.write() as connection:
        rotate_link_keys(connection, Vault.of(SECRETS_KEY, Path()), overlap_s=overlap_s)
    rig.app.state.links._links._signers.forget(None)  # as after a second
    assert [(await rig.stranger.get(old)).status_code for old in (link, forged)] == [status] * 2
    new = (await rig.data(f"{path}_link", key=rig.key()))["results_link"]
    assert (await rig.stranger.get(new)).status_code == 200


async def test_an_api_migrates_the_key_of_an_older_version_when_it_starts(rig: ApiRig, ledger: Database) -> None:
    plain = b"p" * 32
    with ledger.write() as connection:
        connection.execute(insert(secrets).values(name=NAME, value=plain))
    async with rig.app.router.lifespan_context(rig.app):
        with ledger.read() as connection:
            found = read_link_keys(connection, Vault.of(SECRETS_KEY, Path()))
            assert plain not in connection.execute(select(secrets.c.value)).scalar_one()
    assert [key.secret == plain for key in found] == [False, True]


async def test_an_api_starts_without_the_key_that_signs_links(ledger: Database) -> None:
    rig = ApiRig(Settings(secrets=SecretsSettings(key="none")), ledger)
    async with rig.app.router.lifespan_context(rig.app):
        assert (await rig.get(DEVICES)).status_code == 200
    await rig.close()


async def test_links_that_cannot_be_signed_are_a_server_error(ledger: Database) -> None:
    rig = ApiRig(Settings(secrets=SecretsSettings(key="none")), ledger)
    await rig.announce()
    job = job_id(await rig.submit(1), 0)
    await rig.run()
    answer = await rig.get(f"/api/v1/jobs/{job}/results_link")
    assert (answer.status_code, answer.json()["data"]["reason"]) == (500, "secrets_key")
    assert "TWEEZER_SECRETS_KEY" not in answer.text
    await rig.close()


@pytest.mark.parametrize("path", [f"/api/v2/jobs/{ID}", DEVICES, f"/api/v1/jobs/{ID}/results/"])
async def test_a_signature_gives_access_to_results_only(rig: ApiRig, link: str, path: str) -> None:
    assert (await rig.stranger.get(f"{path}?{urlsplit(link).query}")).status_code == 401


@pytest.mark.parametrize("host", ["localhost:9", "LOCALHOST", "[::1]:8000", "tweezer.example.org", "10.1.2.3:80"])
async def test_a_link_leads_to_the_host_of_the_request(rig: ApiRig, link: str, host: str) -> None:
    path = urlsplit(link).path.replace("/results", "/results_link")
    link = (await rig.data(path, headers={"Host": host}))["results_link"]
    assert urlsplit(link).netloc == host.lower()


@pytest.mark.parametrize(
    "host",
    ["evil.example@good.example", "good.example/evil", "a:80:80", "a:x", "a b", "::1", "é", "", "a" * 5000, 'a"'],
)
async def test_an_invalid_host_is_refused_where_it_would_become_a_link(rig: ApiRig, link: str, host: str) -> None:
    path = urlsplit(link).path.replace("/results", "/results_link")
    answer = await rig.get(path, headers={"Host": host.encode("latin-1")})
    assert (answer.status_code, answer.json()["data"]["field"]) == (400, "Host")
    assert "TWEEZER_API_PUBLIC_URL" in answer.json()["data"]["description"]
    assert len(answer.content) < 1000


@pytest.mark.parametrize("url", ["https://q.example.org", "https://q.example.org/tweezer/"])
async def test_a_link_leads_to_the_public_url_if_there_is_one(ledger: Database, url: str) -> None:
    rig = ApiRig(Settings(api=ApiSettings(public_url=url)), ledger)
    await rig.announce()
    job = job_id(await rig.submit(1), 0)
    await rig.run()
    link = (await rig.data(f"/api/v1/jobs/{job}/results_link", headers={"Host": "a b"}))["results_link"]
    assert link.startswith(f"{url.rstrip('/')}/api/v1/jobs/{job}/results?issued=")
    await rig.close()


# -- log-ins --------------------------------------------------------------------------------------------

FORM = {  # as pasqal-cloud sends it
    "client_id": "local",
    "grant_type": "password",
    "realm": "local",
    "audience": "local",
    "username": "ada",
    "password": PASSWORD,
}


async def log_in(rig: ApiRig, **changes: Any) -> httpx.Response:
    form = {name: value for name, value in {**FORM, **changes}.items() if value is not None}
    return await rig.stranger.post("/oauth/token", data=form)


def assert_refused(answer: httpx.Response, status: int, error: str) -> None:
    """Check for an error of RFC 6749 that Pasqal's clients can read."""
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert set(answer.json()) == {"error", "error_description"}
    assert answer.json()["error_description"]
    assert PASSWORD not in answer.text
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("grant", ["password", "http://auth0.com/oauth/grant-type/password-realm"])
async def test_a_user_logs_in_and_sees_all_its_projects(rig: ApiRig, ledger: Database, grant: str) -> None:
    user = make_user(ledger, "ada", "one", "two")
    project_of(ledger, "three")
    batches = [await rig.submit(1, project=project) for project in ("one", "two", "three")]
    answer = await log_in(rig, grant_type=grant)
    token = answer.json()
    assert answer.status_code == 200
    assert {**token, "access_token": ""} == {"access_token": "", "token_type": "Bearer", "expires_in": 500}
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    key = token["access_token"]
    statuses = [(await rig.get(f"/api/v2/batches/{batch}", key=key)).status_code for batch in batches]
    assert statuses == [200, 200, 404]
    projects = await rig.data("/account/api/v1/projects?project_status=ACTIVE", key=key)
    assert {project["id"] for project in projects} == {"one", "two"}
    with ledger.read() as connection:
        (session,) = [it for it in list_keys(connection, sessions=True) if it.user == user]
    assert session.expires is not None
    assert abs((session.expires - session.created).total_seconds() - 500) < 1


def project_of(ledger: Database, project: str) -> None:
    with ledger.write() as connection:
        project_no(connection, project)


async def test_wrong_names_and_passwords_have_the_same_error(rig: ApiRig, ledger: Database) -> None:
    make_user(ledger)
    make_user(ledger, "bob")
    with ledger.write() as connection:
        set_disabled(connection, "bob", disabled=True)
        create_user(connection, "carol", None)
    tries = [
        {"password": "x"},
        {"username": "nobody"},
        {"username": "bob"},
        {"username": "carol"},
        {"username": "a\x00"},
    ]
    answers = [await log_in(rig, **each) for each in tries]
    for answer in answers:
        assert_refused(answer, 400, "invalid_grant")
    assert len({answer.content for answer in answers}) == 1


async def test_an_unknown_name_costs_as_much_as_a_known_one(
    rig: ApiRig, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.write() as connection:
        create_user(connection, "ada", hash_password(PASSWORD))
    took: dict[str, list[float]] = {"ada": [], "nobody": []}
    for _ in range(3):
        for name, times in took.items():
            began = time.perf_counter()
            assert_refused(await log_in(rig, username=name, password="wrong"), 400, "invalid_grant")
            times.append(time.perf_counter() - began)
    assert 0.5 < min(took["ada"]) / min(took["nobody"]) < 2


@pytest.mark.parametrize("missing", ["grant_type", "username", "password"])
@pytest.mark.parametrize("value", [None, "", ["a", "b"]])
async def test_a_missing_form_field_is_named(rig: ApiRig, missing: str, value: Any) -> None:
    answer = await log_in(rig, **{missing: value})
    assert_refused(answer, 400, "invalid_request")
    assert missing in answer.json()["error_description"]


async def test_another_grant_is_refused(rig: ApiRig) -> None:
    assert_refused(await log_in(rig, grant_type="client_credentials"), 400, "unsupported_grant_type")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"username": "ada"}', "application/json"),
        (b"", ""),
        (b"username=%FF%FE&password=x&grant_type=password", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "application/x-www-form-urlencoded"),
        (b"a=" + b"b" * 20_000, "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % n for n in range(100)), "application/x-www-form-urlencoded"),
    ],
)
async def test_a_body_that_is_not_a_form_is_refused(rig: ApiRig, content: bytes, kind: str) -> None:
    answer = await rig.stranger.post("/oauth/token", content=content, headers={"Content-Type": kind})
    assert answer.status_code in (400, 413)
    if answer.status_code == 400:
        assert_refused(answer, 400, "invalid_request")


async def test_after_too_many_failures_a_name_must_wait_even_with_the_right_password(
    rig: ApiRig, ledger: Database
) -> None:
    make_user(ledger)
    make_user(ledger, "bob")
    for _ in range(FAILURES_MAX[CountedBy.NAME]):
        assert_refused(await log_in(rig, password="x"), 400, "invalid_grant")
    for password in ("x", PASSWORD):
        answer = await log_in(rig, password=password)
        assert_refused(answer, 429, "too_many_attempts")
        assert 0 < int(answer.headers["retry-after"]) <= LOGIN_WINDOW_S
    assert (await log_in(rig, username="bob")).status_code == 200


async def test_an_address_that_tries_many_names_must_wait(rig: ApiRig, ledger: Database) -> None:
    make_user(ledger)
    for number in range(FAILURES_MAX[CountedBy.ADDRESS]):
        assert_refused(await log_in(rig, username=f"user{number}"), 400, "invalid_grant")
    assert_refused(await log_in(rig), 429, "too_many_attempts")


async def test_log_ins_that_succeed_are_not_counted(rig: ApiRig, ledger: Database) -> None:
    make_user(ledger)
    answers = await asyncio.gather(*(log_in(rig) for _ in range(FAILURES_MAX[CountedBy.ADDRESS] + 10)))
    assert {answer.status_code for answer in answers} == {200}
    assert not await rig.store.redis.keys("*logins*")


async def test_failures_are_counted_across_processes_and_forgotten_after_the_window(
    rig: ApiRig, ledger: Database
) -> None:
    make_user(ledger)
    for _ in range(FAILURES_MAX[CountedBy.NAME]):
        await log_in(rig, password="x")
    found = await rig.store.redis.keys("*logins*")
    assert len(found) == 2
    assert all([0 < await rig.store.redis.ttl(name) <= LOGIN_WINDOW_S for name in found])
    assert all(b"ada" not in name for name in found)
    for name in found:
        await rig.store.redis.delete(name)
    assert (await log_in(rig)).status_code == 200


async def test_concurrent_failures_are_all_counted(rig: ApiRig, ledger: Database) -> None:
    make_user(ledger)
    answers = await asyncio.gather(*(log_in(rig, password="x") for _ in range(60)))
    tried = sum(answer.status_code == 400 for answer in answers)
    assert FAILURES_MAX[CountedBy.NAME] <= tried <= FAILURES_MAX[CountedBy.NAME] + logins.AT_ONCE


async def test_two_passwords_are_checked_at_a_time(
    rig: ApiRig, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_user(ledger)
    at_once, most, lock = 0, 0, threading.Lock()
    full = threading.Event()

    def slow(password: str, kept: str | None) -> bool:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            if at_once == logins.AT_ONCE:
                full.set()
        assert full.wait(SOON_S)
        with lock:
            at_once -= 1
        return True

    monkeypatch.setattr(logins, "is_password", slow)
    answers = await asyncio.gather(*(log_in(rig) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert most == logins.AT_ONCE == 2


async def test_more_log_ins_than_the_queue_holds_are_refused_for_now(
    rig: ApiRig, ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "_WAITING_MAX", 3)
    make_user(ledger)
    answers = await asyncio.gather(*(log_in(rig) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert_refused(answer, 503, "temporarily_unavailable")
            assert int(answer.headers["retry-after"]) > 0


async def test_a_log_in_renews_a_password_hash_with_old_parameters(rig: ApiRig, ledger: Database) -> None:
    make_user(ledger)

    def kept() -> str:
        with ledger.read() as connection:
            text: str = connection.execute(select(users.c.password)).scalar_one()
            return text

    older = kept()
    assert_refused(await log_in(rig, password="x"), 400, "invalid_grant")
    assert kept() == older
    assert (await log_in(rig)).status_code == 200
    newer = kept()
    assert newer.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert (await log_in(rig)).status_code == 200
    assert kept() == newer


async def test_a_changed_password_ends_the_sessions(rig: ApiRig, ledger: Database, clock: Clock) -> None:
    make_user(ledger)
    key = (await log_in(rig)).json()["access_token"]
    assert (await rig.get(DEVICES, key=key)).status_code == 200
    with ledger.write() as connection:
        set_password(connection, "ada", QUICK_HASH.hash("another password"))
    clock.now += REMEMBERED_S + 0.001
    assert (await rig.get(DEVICES, key=key)).status_code == 401
    assert_refused(await log_in(rig), 400, "invalid_grant")
    assert (await log_in(rig, password="another password")).status_code == 200


async def test_without_redis_log_ins_are_unavailable(rig: ApiRig, ledger: Database) -> None:
    make_user(ledger)
    rig.server.connected = False
    assert_refused(await log_in(rig), 503, "temporarily_unavailable")
    rig.server.connected = True


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_hosts_of_one_ipv6_network_count_as_one(address: str, network: str) -> None:
    assert get_network(address) == network


# -- sessions -------------------------------------------------------------------------------------------

SESSIONS = "/account/api/v1/sessions"


async def end(rig: ApiRig, session: str, *, key: str) -> httpx.Response:
    return await rig.stranger.delete(f"{SESSIONS}/{session}", headers=bearer(key))


async def test_a_session_that_logged_out_is_refused_at_once(rig: ApiRig, ledger: Database) -> None:
    rig.add_user("ada", PROJECT)
    first, second = rig.add_session("ada"), rig.add_session("ada")
    assert (await rig.get(DEVICES, key=first)).status_code == 200
    assert (await end(rig, "current", key=first)).json()["data"] is None
    assert (await rig.get(DEVICES, key=first)).status_code == 401
    assert (await rig.get(DEVICES, key=second)).status_code == 200
    with ledger.read() as connection:
        assert find_key(connection, key_id(first) or "").revoked is not None
        assert find_key(connection, key_id(second) or "").revoked is None


async def test_a_user_lists_its_sessions_and_ends_another_one(rig: ApiRig, ledger: Database) -> None:
    rig.add_user("ada", PROJECT)
    rig.add_user("bob", PROJECT)
    older, younger, theirs = rig.add_session("ada"), rig.add_session("ada"), rig.add_session("bob")
    with ledger.write() as connection:
        connection.execute(update(keys).where(keys.c.id == key_id(older)).values(created_ms=now_ms() - 60_000))
    listed = await rig.data(SESSIONS, key=older)
    assert [(it["id"], it["current"]) for it in listed] == [(key_id(younger), False), (key_id(older), True)]
    assert set(listed[0]) == {"id", "created_at", "expires_at", "last_used_at", "role", "current"}
    assert older not in str(listed)
    assert (await end(rig, str(key_id(younger)), key=older)).status_code == 200
    assert (await rig.get(DEVICES, key=younger)).status_code == 401
    assert [it["id"] for it in await rig.data(SESSIONS, key=older)] == [key_id(older)]
    assert (await rig.get(DEVICES, key=theirs)).status_code == 200


async def test_a_user_can_end_only_its_own_valid_sessions(rig: ApiRig, ledger: Database) -> None:
    user = rig.add_user("ada", PROJECT)
    rig.add_user("bob", PROJECT)
    mine, over, theirs = rig.add_session("ada"), rig.add_session("ada"), rig.add_session("bob")
    key = rig.key(user_id=user)
    with ledger.write() as connection:
        connection.execute(update(keys).where(keys.c.id == key_id(over)).values(expires_ms=now_ms() - 1))
    for other in (*map(key_id, (theirs, over, key)), "x", "a" * 40):
        assert (await end(rig, str(other), key=mine)).status_code == 404
    for wrong in (mine, "%00"):  # the token instead of its id; a control character
        assert (await end(rig, wrong, key=mine)).status_code == 422
    for kept in (mine, theirs, key):
        assert (await rig.get(DEVICES, key=kept)).status_code == 200


@pytest.mark.parametrize("role", Role)
async def test_a_key_has_no_sessions_to_list_or_end(rig: ApiRig, role: Role) -> None:
    key, session = rig.key(role, user_id=rig.add_user("ada", PROJECT)), rig.add_session("ada")
    for answer in (await rig.get(SESSIONS, key=key), await end(rig, str(key_id(session)), key=key)):
        assert (answer.status_code, answer.json()["data"]["reason"]) == (403, "not_a_session")
    assert (await rig.get(DEVICES, key=session)).status_code == 200


async def test_a_session_may_be_read_only(rig: ApiRig, ledger: Database) -> None:
    make_user(ledger, "ada", PROJECT)
    batch = f"/api/v2/batches/{await rig.submit(1, open=True)}"
    token = (await log_in(rig, scope="read")).json()
    assert token["scope"] == "read"
    reader, writer = token["access_token"], (await log_in(rig, scope="openid read")).json()["access_token"]
    assert (await rig.get(batch, key=reader)).status_code == 200
    refused = await rig.stranger.patch(f"{batch}/cancel", headers=bearer(reader))
    assert (refused.status_code, refused.json()["data"]["reason"]) == (403, "forbidden")
    roles = {it["id"]: it["role"] for it in await rig.data(SESSIONS, key=reader)}
    assert roles == {key_id(reader): "read", key_id(writer): "user"}
    refused = await end(rig, str(key_id(writer)), key=reader)
    assert (refused.status_code, refused.json()["data"]["reason"]) == (403, "forbidden")
    assert (await end(rig, "current", key=reader)).status_code == 200
    assert (await rig.stranger.patch(f"{batch}/cancel", headers=bearer(writer))).status_code == 200


async def test_as_many_sessions_are_listed_as_a_user_may_have(ledger: Database) -> None:
    rig = ApiRig(Settings(), ledger)
    rig.app.state.logins = Logins(rig.store, ledger, session_s=500, sessions_max=2)
    make_user(ledger)
    tokens = [(await log_in(rig)).json()["access_token"] for _ in range(4)]
    listed = [it["id"] for it in await rig.data(SESSIONS, key=tokens[-1])]
    assert len(listed) == 2
    assert key_id(tokens[-1]) in listed
    await rig.close()


# -- the account ----------------------------------------------------------------------------------------


async def test_a_key_has_its_project_and_an_operator_has_all(rig: ApiRig) -> None:
    ours = rig.key()
    rig.key(project="theirs")
    path = "/account/api/v1/projects"
    (project,) = await rig.data(path, key=ours)
    assert set(project) >= {"id", "name"}
    assert (project["id"], project["status"]) == (PROJECT, "ACTIVE")
    assert {each["id"] for each in await rig.data(path)} == {PROJECT, "theirs"}
    assert await rig.data(path, params={"project_status": "ARCHIVED"}) == []
    assert (await rig.stranger.get(path)).status_code == 401
