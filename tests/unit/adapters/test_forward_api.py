"""The client that forwards to a Pasqal API: how it reads responses and logs in, and its options."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from tweezer.adapters.registry import check_binding
from tweezer.adapters.remote.errors import (
    RemoteRefused,
    RemoteUnreachable,
    SubmitDeferred,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
    UnknownRemoteJob,
)
from tweezer.adapters.remote.forward.api import ForwardApi, ServerJob, _read_submitted, read_data, read_result
from tweezer.adapters.remote.http import HttpAnswer
from tweezer.adapters.remote.options import ForwardOptions, LoginOptions
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.lifecycle import JobStatus

SECRET = "s3cr3t-of-ours"
BASE = "http://far.example.org"
GIVEN: dict[str, Any] = {"base_url": BASE, "device": "EMU_FREE"}

bodies = st.binary(max_size=100) | st.dictionaries(
    st.sampled_from(["data", "message", "code"]),
    st.none() | st.text(max_size=5) | st.dictionaries(st.sampled_from(["id", "description", "reason"]), st.text()),
).map(lambda value: json.dumps(value).encode())


def answer(status: int, **document: Any) -> HttpAnswer:
    return HttpAnswer("GET /x", status, json.dumps(document).encode())


# --- answers


@given(status=st.integers(100, 599), body=bodies)
def test_every_response_is_read_or_raises_an_error(status: int, body: bytes) -> None:
    for read in (lambda it: read_data(it, ServerJob), read_result):
        with contextlib.suppress(RemoteUnreachable, RemoteRefused):
            read(HttpAnswer("GET /x", status, body))
            assert 200 <= status < 300


@given(status=st.integers(100, 599), body=bodies)
def test_an_answer_to_a_submit_is_a_batch_a_refusal_or_open(status: int, body: bytes) -> None:
    try:
        batch_id = _read_submitted(HttpAnswer("POST /x", status, body))
    except (SubmitRefused, SubmitDeferred):
        assert 400 <= status < 500 or status == 503
    except SubmitUncertain:
        assert not 400 <= status < 500 or status in (408, 499)
    else:
        assert batch_id
        assert " " not in batch_id


@pytest.mark.parametrize(
    ("status", "data", "error"),
    [
        (400, {"description": "jobs[0].runs: must be at least 1", "field": "jobs[0].runs"}, SubmitRefused),
        (401, {"description": "no"}, SubmitDeferred),
        (408, {"description": "slow"}, SubmitUncertain),
        (429, {"description": "too many"}, SubmitDeferred),
        (503, {"description": "full", "reason": "full"}, SubmitDeferred),
        (503, {"description": "redis", "reason": "unavailable"}, SubmitUncertain),
        (504, None, SubmitUncertain),
        (302, None, SubmitUncertain),
        (200, {"id": "with spaces"}, SubmitUncertain),
    ],
)
def test_each_failure_of_a_submit_is_distinguished(status: int, data: Any, error: type[TweezerError]) -> None:
    with pytest.raises(error):
        _read_submitted(answer(status, data=data))


def test_a_refusal_names_the_field_and_its_problem_once() -> None:
    with pytest.raises(SubmitRefused) as raised:
        _read_submitted(answer(400, data={"description": "jobs[0].runs: must be more", "field": "jobs[0].runs"}))
    assert (raised.value.field, raised.value.message) == ("jobs[0].runs", "must be more")


def test_a_result_keeps_the_servers_provenance() -> None:
    made = read_result(answer(200, counter={"01": 3}, raw=["01"], provenance={"backend": "qutip", "seed": 5}))
    assert made.counter == {"01": 3}
    assert made.provenance is not None
    assert made.provenance.seed == 5
    assert read_result(answer(200, counter={"1": 1})).provenance is None


# --- a server


class FarServer:
    """A transport that returns the test's responses by method and path, and keeps the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.answers: dict[str, list[web.Response]] = {}
        self.url = ""

    def answers_with(self, what: str, *responses: web.Response) -> None:
        """Set responses; the last one is repeated."""
        self.answers[what] = list(responses)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.text()
        headers = {
            name: value for name, value in request.headers.items() if name in ("Authorization", "Idempotency-Key")
        }
        self.asked.append((request.method, request.path_qs, headers, body))
        given = self.answers.get(f"{request.method} {request.path}", [web.json_response({"message": "?"}, status=404)])
        response = given[0] if len(given) == 1 else given.pop(0)
        return web.Response(body=response.body, status=response.status, headers=response.headers)

    def headers(self, path: str) -> list[dict[str, str]]:
        return [headers for _, asked, headers, _ in self.asked if asked.startswith(path)]


def data(value: Any, status: int = 200) -> web.Response:
    return web.json_response({"status": "success", "code": str(status), "data": value}, status=status)


@pytest.fixture
async def far() -> AsyncIterator[FarServer]:
    server = FarServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with TestServer(app) as running:
        server.url = str(running.make_url("")).rstrip("/")
        yield server


@contextlib.asynccontextmanager
async def client(far: FarServer, **options: Any) -> AsyncIterator[ForwardApi]:
    given = {"base_url": far.url, "device": "EMU_FREE", "retry_s": 0.0}
    if "login" not in options:
        given["api_key"] = SECRET
    api = ForwardApi(ForwardOptions(**{**given, **options}))
    try:
        yield api
    finally:
        await api.close()


LOGIN = {"client_id": "local", "username": "ada", "password": "pw", "realm": "r", "audience": "a"}


def test_a_rejection_by_a_proxy_is_retryable_unless_the_body_is_too_large() -> None:
    with pytest.raises(SubmitTurnedAway, match="404"):
        _read_submitted(HttpAnswer("POST /x", 404, b"<html>Not Found</html>"))
    with pytest.raises(SubmitRefused):
        _read_submitted(HttpAnswer("POST /x", 413, b"<html>Request Entity Too Large</html>"))


async def test_a_submit_carries_its_key_and_its_idempotency_key(far: FarServer) -> None:
    far.answers_with("POST /api/v1/batches", data({"id": "b-1", "status": "PENDING"}))
    async with client(far) as api:
        assert await api.submit({"jobs": []}, idempotency_key="tweezer:1") == "b-1"
    assert far.headers("/api/v1/batches") == [{"Authorization": f"Bearer {SECRET}", "Idempotency-Key": "tweezer:1"}]


async def test_an_error_of_the_last_check_prevents_the_submit(far: FarServer) -> None:
    def look() -> None:
        raise TweezerError("the lease is over")

    async with client(far) as api:
        with pytest.raises(TweezerError, match="the lease is over"):
            await api.submit({}, idempotency_key="k", before_send=look)
    assert not far.asked


async def test_nothing_was_sent_to_a_server_that_cannot_be_reached() -> None:
    far = FarServer()
    far.url = "http://127.0.0.1:1"
    async with client(far) as api:
        with pytest.raises(SubmitDeferred, match="cannot be reached"):
            await api.submit({}, idempotency_key="k")
        with pytest.raises(RemoteUnreachable):
            await api.get_job("b")


async def test_a_log_in_by_password_gives_a_token_that_is_used_until_it_is_refused(far: FarServer) -> None:
    tokens = [web.json_response({"access_token": f"t-{n}", "expires_in": 3600}) for n in (1, 2)]
    far.answers_with("POST /oauth/token", *tokens)
    far.answers_with(
        "GET /api/v2/jobs",
        data([{"id": "j", "status": "DONE"}]),
        data(None, 401),
        data([{"id": "j", "status": "DONE"}]),
    )
    login = LoginOptions(token_url=f"{far.url}/oauth/token", **LOGIN)
    async with client(far, login=login) as api:
        assert (await api.get_job("b")).status is JobStatus.DONE
        assert (await api.get_job("b")).status is JobStatus.DONE
    used = [headers["Authorization"] for headers in far.headers("/api/v2/jobs")]
    assert used == ["Bearer t-1", "Bearer t-1", "Bearer t-2"]
    form = far.asked[0][3]
    assert "grant_type=password" in form
    assert "username=ada" in form
    assert "realm=r" in form


async def test_wrong_credentials_are_reported_without_the_secret_and_defer_the_submit(far: FarServer) -> None:
    refusal = web.json_response({"error": "invalid_grant", "error_description": f"not {SECRET}"}, status=403)
    far.answers_with("POST /oauth/token", refusal)
    login = LoginOptions(token_url=f"{far.url}/oauth/token", client_id="us", client_secret=SECRET)
    async with client(far, login=login) as api:
        with pytest.raises(RemoteRefused, match="invalid_grant; check the option login") as raised:
            await api.get_job("b")
        assert SECRET not in raised.value.message
        with pytest.raises(SubmitDeferred):
            await api.submit({}, idempotency_key="k")
    assert "grant_type=client_credentials" in far.asked[0][3]


async def test_an_echoed_token_is_not_in_the_error(far: FarServer) -> None:
    far.answers_with("GET /api/v2/jobs", web.json_response({"message": f"bad key {SECRET}"}, status=401))
    async with client(far) as api:
        with pytest.raises(RemoteRefused, match=r"bad key \*\*\*"):
            await api.get_job("b")


async def test_a_batch_is_found_by_its_tag_and_not_one_that_repeats_it(far: FarServer) -> None:
    again = {"id": "b-2", "tags": ["tweezer:1"], "parent_id": "b-1"}
    far.answers_with(
        "GET /api/v1/batches", data([again, {"id": "b-0", "tags": None}, {"id": "b-1", "tags": ["tweezer:1"]}])
    )
    async with client(far, project_id="lab") as api:
        assert await api.find_batch("tweezer:1") == "b-1"
        assert await api.find_batch("tweezer:2") is None
    assert far.asked[0][1] == "/api/v1/batches?tag=tweezer:1&limit=100&project_id=lab"


async def test_results_are_fetched_by_their_link_without_the_key(far: FarServer) -> None:
    link = "/api/v1/jobs/j/results_link"
    far.answers_with(f"GET {link}", data({"results_link": None}), data({"results_link": f"{far.url}/results?sig=1"}))
    far.answers_with("GET /results", web.json_response({"counter": {"0": 4}}))
    async with client(far) as api:
        assert await api.get_result("j") is None
        result = await api.get_result("j")
    assert result is not None
    assert result.counter == {"0": 4}
    assert far.headers("/results") == [{}]


@pytest.mark.parametrize("how", ["link", "redirect"])
@pytest.mark.parametrize("elsewhere", ["http://127.0.0.1:9/x", "https://169.254.169.254/x", "https://localhost:8443/"])
async def test_a_link_to_results_may_not_lead_elsewhere_in_the_network(
    far: FarServer, how: str, elsewhere: str
) -> None:
    far.answers_with("GET /results", web.Response(status=302, headers={"Location": elsewhere}))
    link = elsewhere if how == "link" else f"{far.url}/results"
    far.answers_with("GET /api/v1/jobs/j/results_link", data({"results_link": link}))
    async with client(far) as api:
        with pytest.raises(RemoteRefused, match="the link") as refused:
            await api.get_result("j")
    assert refused.value.field == "results_link"


async def test_a_host_name_is_judged_by_its_addresses(far: FarServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            found = ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)
            return [found]

        async def close(self) -> None: ...

    monkeypatch.setattr("aiohttp.connector.DefaultResolver", lambda **_: Resolver())
    far.answers_with("GET /api/v1/jobs/j/results_link", data({"results_link": "https://results.example.org/x"}))
    async with client(far) as api:
        with pytest.raises(RemoteRefused, match="an address that is not public"):
            await api.get_result("j")


async def test_an_operator_allows_links_to_results(far: FarServer) -> None:
    elsewhere = far.url.replace("127.0.0.1", "localhost")
    far.answers_with("GET /results", web.Response(status=302, headers={"Location": f"{elsewhere}/moved"}))
    far.answers_with("GET /moved", web.json_response({"counter": {"0": 4}}))
    far.answers_with("GET /api/v1/jobs/j/results_link", data({"results_link": f"{far.url}/results"}))
    async with client(far, results_allow="localhost") as api:
        result = await api.get_result("j")
    assert result is not None
    assert result.counter == {"0": 4}


async def test_reads_are_retried_while_the_server_fails(far: FarServer) -> None:
    far.answers_with("GET /api/v1/batches/b/status", data(None, 502), data(None, 429), data({"status": "DONE"}))
    async with client(far, retry_s=5.0) as api:
        assert await api.get_batch_status("b") == "DONE"
    assert len(far.asked) == 3


async def test_an_unknown_batch_and_an_unknown_device_are_distinguished(far: FarServer) -> None:
    far.answers_with("GET /api/v2/jobs", data([]))
    far.answers_with("GET /api/v1/devices/specs", data({"FRESNEL": "{}"}))
    far.answers_with("GET /api/v1/devices", data([{"device_type": "FRESNEL", "status": "UP"}]))
    async with client(far) as api:
        with pytest.raises(UnknownRemoteJob):
            await api.get_job("b")
        with pytest.raises(RemoteRefused, match="no specs of EMU_FREE; it has specs of FRESNEL"):
            await api.get_specs()
        assert await api.get_device() is None


# --- options


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "api_key"),
        ({"api_key_file": "/nowhere/at/all"}, "api_key_file"),
        ({"api_key": SECRET, "base_url": "far.example.org"}, "base_url"),
        ({"api_key": SECRET, "base_url": "http://ada:pw@far.example.org"}, "base_url"),
        ({"api_key": SECRET, "tls_verify": False, "tls_ca_file": "/ca.pem"}, "tls_ca_file"),
        ({"api_key": SECRET, "login": {"token_url": BASE, "username": "ada", "password": "pw"}}, "login"),
        ({"login": {"token_url": "nowhere", "username": "ada", "password": "pw"}}, "login.token_url"),
        ({"login": {"token_url": BASE, "username": "ada"}}, "login.password"),
        ({"login": {"token_url": BASE, "client_id": "us"}}, "login.client_secret"),
        ({"login": {"token_url": BASE}}, "login.username"),
    ],
)
def test_an_invalid_option_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_binding("forward", GIVEN | options)
    assert raised.value.field == f"options.{field}"
    assert SECRET not in raised.value.message


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    options = ForwardOptions(**GIVEN, api_key_file=str(tmp_path / "key"))
    assert options.key() == SECRET
    login = LoginOptions(token_url=BASE, username="ada", password_file=str(tmp_path / "key"))
    assert login.form()["password"] == SECRET
    (tmp_path / "key").write_text("\n")
    with pytest.raises(InvalidInput, match=r"api_key_file: .*key is empty; it must contain only the secret"):
        options.key()
    shown = ForwardOptions(**GIVEN, api_key=SECRET)
    assert SECRET not in f"{shown!r} {LoginOptions(token_url=BASE, username='ada', password=SECRET)!r}"


def test_a_base_url_may_end_with_the_version() -> None:
    assert ForwardOptions(base_url=f"{BASE}/core/api/v1/", device="X").url == f"{BASE}/core"
